"""Folders that mtlkit writes: what it owns in them, who writes to them, and how a new one takes an old one's place.

    .mtlkit-files    the list of what mtlkit wrote, with sizes and hashes, a JSON object a line
    .mtlkit-claim    locked by the process that writes to the folder
    .mtlkit-new/     what replaces the folder as soon as it is complete

Only files that the list names with the contents that they have are replaced, moved or removed, so that files which were
added or changed in a folder stay as they are.
"""

import contextlib
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from mtlkit._claims import claimed
from mtlkit._files import json_text
from mtlkit._journal import Journal
from mtlkit._owned import DRAFT, LIST, FileList, contents
from mtlkit._torchrun import hear_main, tell_others
from mtlkit.errors import DataError, ExistsError, OccupiedError

CLAIM, NEW = ".mtlkit-claim", ".mtlkit-new"


# --- a folder that is being written -----------------------------------------------------------------------------------


class Files(Protocol):
    """What takes files by their names within a folder."""

    def file(self, name: str) -> AbstractContextManager[Path]:
        """As that of `OutputFolder`."""
        ...


class OutputFolder:
    """A folder that is being written.

    Args:
        shown: its name in messages.
        files: its list.
        replaces: the folder whose place it takes.
        writes: False for those of several processes that only read.
    """

    def __init__(self, shown: Path, files: FileList, *, replaces: Path | None = None, writes: bool = True) -> None:
        self.shown = shown
        self.list = files
        self.replaces = replaces
        self.writes = writes
        self.resumable = False  # set as soon as there is something to continue

    @property
    def path(self) -> Path:
        """Where the files are until the folder is complete."""
        return self.list.folder

    def check_inputs(self, *inputs: str | Path | None) -> None:
        """Raises an OccupiedError where something that is read lies in the folder that is to be replaced."""
        if self.replaces is not None:
            check_outside(self.replaces, *inputs, shown=self.shown)

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """Gives a path to write to, which becomes `name` when all has gone well, and vanishes when not.

        Raises:
            OccupiedError: there is a file of that name which mtlkit does not own.
            DataError: it cannot be written.
        """
        path = self.path / name
        draft = path.with_name(f"{DRAFT}-{zlib.crc32(os.fsencode(name)):08x}{path.suffix}")
        with _in_words(self.shown / name):
            self.list.check_owned(name, self.shown)
            self.list.add_draft(draft.relative_to(self.path).as_posix())
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                yield draft
                self._adopt(draft, name)
            finally:
                draft.unlink(missing_ok=True)

    @contextmanager
    def files(self, name: str) -> Iterator[Path]:
        """Gives an empty folder to fill; its files move to the folder `name` when all has gone well.

        Raises:
            OccupiedError: there is a file of one of their names which mtlkit does not own.
            DataError: one cannot be written.
        """
        draft = self.path / f"{DRAFT}-{name}"
        with _in_words(self.shown / name):
            self.list.add_draft(draft.name)
            try:
                shutil.rmtree(draft, ignore_errors=True)  # of a killed process
                draft.mkdir()
                yield draft
                for path in sorted(path for path in draft.rglob("*") if path.is_file()):
                    inner = f"{name}/{path.relative_to(draft).as_posix()}"
                    self.list.check_owned(inner, self.shown)
                    (self.path / inner).parent.mkdir(parents=True, exist_ok=True)
                    self._adopt(path, inner)
            finally:
                shutil.rmtree(draft, ignore_errors=True)

    def _adopt(self, draft: Path, name: str) -> None:
        found = contents(draft)
        self.list.add(name, found)
        self.list.check_owned(name, self.shown)  # again: writing may have taken long
        draft.replace(self.path / name)
        self.list.wrote(name, found)

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file."""
        with self.file(name) as draft:
            draft.write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: Any) -> None:
        """Writes `value` as JSON."""
        self.write_text(name, json_text(value))

    def nested(self, name: str) -> Path:
        """The path of a folder with a list of its own, to be written within this one."""
        if self.writes:
            with _in_words(self.shown / name):
                self.list.add_nested(name)
        return self.path / name

    def journal(self, name: str) -> Journal:
        """What is written as it comes, and removed before the folder is complete."""
        draft = self.path / f"{DRAFT}-{name}"
        with _in_words(self.shown / name):
            self.list.add_draft(draft.name)
        return Journal(draft, self.shown / draft.name)

    def owns(self, name: str) -> bool:
        """Whether there is a file of that name, as it was written."""
        return self.list.present(name) is not None

    def remove(self, name: str) -> None:
        """Removes a file if it is owned."""
        if self.owns(name):
            (self.path / name).unlink()

    def check_room(self, size: int) -> None:
        """Raises a DataError where the disk has no room for so many bytes."""
        with _in_words(self.shown):
            free = shutil.disk_usage(self.path).free
        if free < size:
            words = f"expected at least {size / 1e6:,.0f} MB of free disk for what is to be written"
            raise DataError(f"{self.shown}: {words}, got {free / 1e6:,.0f} MB")


@contextmanager
def new_folder(path: str | Path, kind: str, *, force: bool = False) -> Iterator[OutputFolder]:
    """Gives a folder to fill, which becomes `path` when all has gone well, and vanishes when not.

    Args:
        path: where the folder is to be; links are followed.
        kind: what it holds, as "an evaluation"; only a folder of the same kind is ever replaced.
        force: replaces the files that an earlier call wrote there, and leaves all others.

    Raises:
        ExistsError: `path` holds what an earlier call wrote.
        OccupiedError: it holds other things, or the current directory lies in it.
        InUseError: another process writes to it.
        DataError: it cannot be written.
    """
    folder, shown = Path(os.path.realpath(path)), Path(path)
    with _claimed(folder, shown):
        old = _check_place(folder, shown, kind, force=force)
        draft = folder / NEW if folder.is_dir() else _beside(folder)
        try:
            with _in_words(shown):
                _clear(draft)
                files = FileList.create(draft, kind)
            yield OutputFolder(shown, files, replaces=None if old is None else folder)
            with _in_words(shown):
                _put_in_place(files, folder, shown)
        finally:
            if not (found := FileList.read(draft)) or not found.complete:  # else the next call finishes
                _clear(draft)


@contextmanager
def resumable_folder(
    path: str | Path,
    kind: str,
    *,
    resume: bool = False,
    force: bool = False,
    main: bool = True,
    resumes_at: str = "the last whole epoch",
) -> Iterator[OutputFolder]:
    """Gives a folder to fill that stays when the work is interrupted, to be continued.

    Where `force` replaces an earlier one, the new one is written within it and takes its place when it is complete;
    until then `resume` continues the new one. A folder in which there is nothing to continue vanishes on an error.

    Args:
        path: where the folder is to be; links are followed.
        kind: what it holds, as "a run"; only a folder of the same kind is ever continued or replaced.
        resume: continues where there is a folder already.
        force: starts again if there is a folder already.
        main: False for those of several processes that only read.
        resumes_at: where `resume` continues, in words. An error that leaves something to continue has them as its
            attribute `resumable`.

    Raises:
        ValueError: `resume` and `force` are both given.
        ExistsError, OccupiedError, InUseError, DataError: as for `new_folder`.
    """
    if resume and force:
        raise ValueError("resume, force: expected at most one of them, got both")
    folder, shown = Path(os.path.realpath(path)), Path(path)
    if not main:
        root = folder / NEW if hear_main((folder / NEW / LIST).is_file) else folder
        yield OutputFolder(shown, FileList(root), writes=False)
        return
    with _claimed(folder, shown, make=True):
        old = _check_place(folder, shown, kind, force=force, resume=resume)
        with _in_words(shown):
            files = FileList.read(folder / NEW) or old if resume else None
            fresh = files is None
            if files is None:
                root = folder if old is None else folder / NEW
                _clear(folder / NEW)
                files = FileList.create(root, kind)
        tell_others(files.folder != folder)
        output = OutputFolder(shown, files, replaces=folder if files.folder != folder and not resume else None)
        try:
            yield output
        except BaseException as error:
            started = output.resumable or any((files.folder / name / LIST).exists() for name in files.nested)
            if fresh and not started:
                _clear(files.folder)
            elif isinstance(error, KeyboardInterrupt | SystemExit) or output.resumable:
                error.resumable = resumes_at  # pyright: ignore[reportAttributeAccessIssue] - the command line tells it
            raise
        with _in_words(shown):
            if files.folder != folder:
                _put_in_place(files, folder, shown)
            elif files.appended:
                files.rewrite()


def check_outside(folder: str | Path, *inputs: str | Path | None, shown: Path | None = None) -> None:
    """Raises an OccupiedError where something that is read lies in a folder that is to be replaced."""
    for path in inputs:
        if path is not None and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            words = f"cannot be replaced, as {path}, which is read, lies in it; name another folder"
            raise OccupiedError(f"{shown or folder}: {words}")


def final_place(path: str | Path) -> Path:
    """Where a folder lies in the end, which may be within one that is to replace another."""
    return Path(*(part for part in Path(path).parts if part != NEW))


# --- places -----------------------------------------------------------------------------------------------------------


def _beside(folder: Path, name: str = NEW) -> Path:
    """The path of a helper of a folder that does not exist."""
    return folder.with_name(f".{folder.name}{name}")


@contextmanager
def _in_words(shown: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{shown}: cannot be written ({error.strerror or error})") from None


def _check_place(
    folder: Path,
    shown: Path,
    kind: str,
    *,
    force: bool,
    resume: bool | None = None,
) -> FileList | None:
    """The list of a folder that may be continued or replaced; None where there is nothing yet.

    Raises:
        ExistsError, OccupiedError: it may not.
    """
    if not folder.is_dir():
        return None
    with _in_words(shown):
        old = _finish(folder, shown)
        if old is None:
            names = {entry.name for entry in os.scandir(folder)} - {CLAIM, NEW, f"{LIST}{DRAFT}"}
            if not names:
                return None
            words = "exists already, and no list says that mtlkit wrote what is in it (earlier versions kept none)"
            raise OccupiedError(f"{shown}: {words}; name a new folder, or move it away")
    if old.kind != kind:
        raise OccupiedError(f"{shown}: holds {old.kind}, not {kind}; name a new folder")
    if resume:
        return old
    if not force:
        words = "exists already" if resume is None else f"there is {kind} already"
        raise ExistsError(f"{shown}: {words}", resumable=resume is not None)
    with _in_words(shown):
        if Path.cwd().is_relative_to(folder):
            raise OccupiedError(
                f"{shown}: cannot be replaced from within; change the directory, or name another folder"
            )
        _check_owned(old, shown)
    return old


def _check_owned(files: FileList, shown: Path) -> None:
    """Raises where a listed file has been changed."""
    for name, known in files.files.items():
        if known:
            files.check_owned(name, shown)
    for name in files.nested:
        inner = FileList.read(files.folder / name)
        if inner is not None:
            _check_owned(inner, shown / name)


def _finish(folder: Path, shown: Path) -> FileList | None:
    """The list of a folder, after the replacement that a killed process had begun, if any, has been finished."""
    new = FileList.read(folder / NEW)
    if new is not None and new.complete:
        _merge(new, folder, shown)
        _clear(new.folder)
    return FileList.read(folder)


def _put_in_place(files: FileList, folder: Path, shown: Path) -> None:
    """Gives a complete folder its name, or moves what is in it into the folder that has the name."""
    files.rewrite()
    if files.folder.parent != folder:
        files.folder.rename(folder)
        return
    _check_room(files, folder, shown)
    files.mark_complete()
    _merge(files, folder, shown)
    _clear(files.folder)


def _check_room(new: FileList, folder: Path, shown: Path) -> None:
    """Raises where a file of a new folder has the name of one that is not owned in the old folder."""
    old = FileList.read(folder) or FileList(folder)
    for name in new.files:
        old.check_owned(name, shown)
    for name in new.nested:
        if inner := FileList.read(new.folder / name):
            _check_room(inner, folder / name, shown / name)


def _merge(new: FileList, folder: Path, shown: Path) -> None:
    """Moves the files of a complete folder into an old one, and removes what else is owned there.

    The file that was written last stands for all of them, so that its predecessor goes first and it comes last.
    """
    old = FileList.read(folder) or FileList.create(folder, new.kind)
    for name, known in new.files.items():
        for found in known - old.files.get(name, set()):
            old.add(name, found)
    last = next(reversed(new.files), None)
    if last is not None and (new.folder / last).exists() and old.present(last) is not None:
        (folder / last).unlink()
    gone = [name for name in old.nested if name not in new.nested]
    for name in new.nested:
        old.add_nested(name)
        if inner := FileList.read(new.folder / name):
            _merge(inner, folder / name, shown / name)
            _clear(inner.folder)
    for name in new.files:
        if (new.folder / name).exists():  # else a killed process had moved it
            old.check_owned(name, shown)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (new.folder / name).replace(folder / name)
            old.moved_from(new, name)
    for name in gone:
        _clear(folder / name)
        del old.nested[name]
    for name in [name for name in old.files if name not in new.files]:
        _remove(old, name)
        del old.files[name]
    old.rewrite()


def _clear(folder: Path) -> None:
    """Removes what is owned in a folder, and the folder if nothing else is in it."""
    files = FileList.read(folder)
    if files is not None:
        for name in files.nested:
            _clear(folder / name)
            _clear(_beside(folder / name))
            _beside(folder / name, CLAIM).unlink(missing_ok=True)
        for name in files.files:
            _remove(files, name)
        _clear(folder / NEW)
        (folder / LIST).unlink(missing_ok=True)
    (folder / f"{LIST}{DRAFT}").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _remove(files: FileList, name: str) -> None:
    """Removes an owned file or a draft, and the folders that this leaves empty."""
    path = files.folder / name
    if files.files[name]:
        if files.present(name) is not None:
            path.unlink()
    elif path.name.startswith(DRAFT) and os.path.realpath(path.parent) == str(path.parent):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    for parent in path.parents:
        if parent == files.folder:
            break
        try:
            parent.rmdir()
        except OSError:
            break


@contextmanager
def _claimed(folder: Path, shown: Path, *, make: bool = False) -> Iterator[None]:
    """Claims a folder for this process; a folder that does not exist is claimed by its name.

    Args:
        folder: which.
        shown: its name in messages.
        make: also makes the folder, and removes it in the end if nothing is in it.

    Raises:
        InUseError: another process has claimed it.
        DataError: it is a file, or cannot be written.
    """
    with ExitStack() as stack:
        with _in_words(shown):
            if folder.exists() and not folder.is_dir():
                raise DataError(f"{shown}: expected a folder, found a file")
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            if missing:
                folder.parent.mkdir(parents=True, exist_ok=True)
                stack.callback(_remove_empty, missing)
            if missing or _beside(folder, CLAIM).exists():  # of one that makes the folder, or was killed behind that
                stack.enter_context(claimed(_beside(folder, CLAIM), shown))
            if missing and make:
                folder.mkdir(exist_ok=True)
            if folder.is_dir():
                stack.enter_context(claimed(folder / CLAIM, shown))
        yield


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
