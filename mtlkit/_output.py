"""Output folders: which files mtlkit owns in them, which process writes to them, and how a new one replaces an old one.

    .mtlkit-files    the files that mtlkit wrote, with sizes and hashes, one JSON object per line
    .mtlkit-claim    locked by the process that writes to the folder
    .mtlkit-new/     replaces the contents of the folder once it is complete

mtlkit replaces, moves or removes a file only if the list contains its name with its current contents. Files that were
added to a folder, or changed in it, are never touched.
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
    """A folder to which files can be written by name."""

    def file(self, name: str) -> AbstractContextManager[Path]:
        """Gives a path to write to, see `OutputFolder.file`."""
        ...


class OutputFolder:
    """A folder that is being written.

    Args:
        shown: name of the folder in messages.
        files: list of its files.
        replaces: the folder that it will replace.
        writes: False in processes that only read, where several share the folder.
    """

    def __init__(self, shown: Path, files: FileList, *, replaces: Path | None = None, writes: bool = True) -> None:
        self.shown = shown
        self.list = files
        self.replaces = replaces
        self.writes = writes
        self.resumable = False  # set once an interruption leaves something to resume

    @property
    def path(self) -> Path:
        """The folder that contains the files until the output is complete."""
        return self.list.folder

    def check_inputs(self, *inputs: str | Path | None) -> None:
        """Raises an OccupiedError if an input is in the folder that will be replaced."""
        if self.replaces is not None:
            check_outside(self.replaces, *inputs, shown=self.shown)

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """Gives a path to write to; the file is renamed to `name` on success and removed on an error.

        Raises:
            OccupiedError: a file of that name exists that mtlkit does not own.
            DataError: the file cannot be written.
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
        """Gives an empty folder to fill; its files are moved to the folder `name` on success.

        Raises:
            OccupiedError: a file of the same name exists that mtlkit does not own.
            DataError: a file cannot be written.
        """
        draft = self.path / f"{DRAFT}-{name}"
        with _in_words(self.shown / name):
            self.list.add_draft(draft.name)
            try:
                shutil.rmtree(draft, ignore_errors=True)  # left by a killed process
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
        self.list.check_owned(name, self.shown)  # again: someone may have changed it meanwhile
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
        """Returns the path of a folder within this one that has its own list of files."""
        if self.writes:
            with _in_words(self.shown / name):
                self.list.add_nested(name)
        return self.path / name

    def journal(self, name: str) -> Journal:
        """Returns a journal for intermediate results, which must be removed before the folder is complete."""
        draft = self.path / f"{DRAFT}-{name}"
        with _in_words(self.shown / name):
            self.list.add_draft(draft.name)
        return Journal(draft, self.shown / draft.name)

    def owns(self, name: str) -> bool:
        """Returns whether the file exists, unchanged since mtlkit wrote it."""
        return self.list.present(name) is not None

    def remove(self, name: str) -> None:
        """Removes a file if it is owned."""
        if self.owns(name):
            (self.path / name).unlink()

    def check_room(self, size: int) -> None:
        """Raises a DataError if the disk has less than `size` bytes free."""
        with _in_words(self.shown):
            free = shutil.disk_usage(self.path).free
        if free < size:
            words = f"expected at least {size / 1e6:,.0f} MB of free disk for what is to be written"
            raise DataError(f"{self.shown}: {words}, got {free / 1e6:,.0f} MB")


@contextmanager
def new_folder(path: str | Path, kind: str, *, force: bool = False) -> Iterator[OutputFolder]:
    """Gives a folder to fill, which becomes `path` on success and is removed on an error.

    Args:
        path: the output folder; links are followed.
        kind: what it contains, for example "an evaluation"; only a folder of the same kind is ever replaced.
        force: whether to replace the files that an earlier call wrote there; other files stay.

    Raises:
        ExistsError: `path` contains the output of an earlier call.
        OccupiedError: `path` contains other files, or the current directory is in it.
        InUseError: another process writes to it.
        DataError: the folder cannot be written.
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
            if not (found := FileList.read(draft)) or not found.complete:  # else the next call finishes it
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
    """Gives a folder to fill that is kept if the work is interrupted, so that it can be resumed.

    With `force`, the new folder is written inside the old one and replaces it when complete; until then `resume`
    continues the new one. On an error, a folder with nothing to resume is removed.

    Args:
        path: the output folder; links are followed.
        kind: what it contains, for example "a run"; only a folder of the same kind is ever resumed or replaced.
        resume: whether to continue an existing folder.
        force: whether to replace an existing folder.
        main: False in processes that only read, where several share the folder.
        resumes_at: describes the point from which `resume` continues. An error that leaves something to resume carries
            it as its attribute `resumable`.

    Raises:
        ValueError: `resume` and `force` are both True.
        ExistsError, OccupiedError, InUseError, DataError: as in `new_folder`.
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
                error.resumable = resumes_at  # pyright: ignore[reportAttributeAccessIssue] - read by the command line
            raise
        with _in_words(shown):
            if files.folder != folder:
                _put_in_place(files, folder, shown)
            elif files.appended:
                files.rewrite()


def check_outside(folder: str | Path, *inputs: str | Path | None, shown: Path | None = None) -> None:
    """Raises an OccupiedError if an input is in a folder that will be replaced."""
    for path in inputs:
        if path is not None and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            words = f"cannot be replaced, as {path}, which is read, lies in it; name another folder"
            raise OccupiedError(f"{shown or folder}: {words}")


def final_place(path: str | Path) -> Path:
    """Returns the final path of a folder that may be inside a `.mtlkit-new` folder."""
    return Path(*(part for part in Path(path).parts if part != NEW))


# --- places -----------------------------------------------------------------------------------------------------------


def _beside(folder: Path, name: str = NEW) -> Path:
    """Returns the path of a helper file or folder next to a folder that does not exist yet."""
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
    """Returns the list of a folder that may be resumed or replaced; None if the folder is missing or empty.

    Raises:
        ExistsError, OccupiedError: the folder may not be resumed or replaced.
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
    """Raises if a listed file has been changed."""
    for name, known in files.files.items():
        if known:
            files.check_owned(name, shown)
    for name in files.nested:
        inner = FileList.read(files.folder / name)
        if inner is not None:
            _check_owned(inner, shown / name)


def _finish(folder: Path, shown: Path) -> FileList | None:
    """Finishes the replacement that a killed process may have begun, and returns the list of the folder."""
    new = FileList.read(folder / NEW)
    if new is not None and new.complete:
        _merge(new, folder, shown)
        _clear(new.folder)
    return FileList.read(folder)


def _put_in_place(files: FileList, folder: Path, shown: Path) -> None:
    """Renames a complete folder to its final name, or moves its files into an existing folder of that name."""
    files.rewrite()
    if files.folder.parent != folder:
        files.folder.rename(folder)
        return
    _check_room(files, folder, shown)
    files.mark_complete()
    _merge(files, folder, shown)
    _clear(files.folder)


def _check_room(new: FileList, folder: Path, shown: Path) -> None:
    """Raises if a file of the new folder has the name of a file in the old one that mtlkit does not own."""
    old = FileList.read(folder) or FileList(folder)
    for name in new.files:
        old.check_owned(name, shown)
    for name in new.nested:
        if inner := FileList.read(new.folder / name):
            _check_room(inner, folder / name, shown / name)


def _merge(new: FileList, folder: Path, shown: Path) -> None:
    """Moves the files of a complete folder into an old one, and removes the other files that are owned there.

    The last file of the list marks a complete output: its old version is removed first, and the new one moved last.
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
        if (new.folder / name).exists():  # if not, a killed process has moved it already
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
    """Removes the owned files of a folder, and the folder if it is then empty."""
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
    """Removes an owned file or a draft, and its parent folders if they are then empty."""
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
    """Claims a folder for this process; a missing folder is claimed by a file next to it.

    Args:
        folder: the folder.
        shown: its name in messages.
        make: whether to create the folder, and to remove it at the end if it is empty.

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
            if missing or _beside(folder, CLAIM).exists():  # left by a process that creates it, or was killed
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
