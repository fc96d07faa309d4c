"""The list of the files that mtlkit wrote into a folder, with their sizes and hashes.

A file is owned if the list contains its name with its current contents. A file is listed before it gets its name, and
lines are only appended, so that the list is correct whenever a process is killed.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mtlkit.errors import ChangedError, OccupiedError

LIST = ".mtlkit-files"
DRAFT = ".mtlkit-draft"  # prefix of incomplete files and folders


class Contents(NamedTuple):
    """Size and hash, which identify the contents of a file."""

    size: int
    sha256: str


def contents(path: Path) -> Contents:
    """Returns size and hash of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return Contents(size, digest.hexdigest())


class FileList:
    """The list of a folder: its kind, its files with their possible contents, and subfolders with their own lists.

    An entry without contents is a draft, which may contain anything.
    """

    def __init__(self, folder: Path, kind: str = "") -> None:
        self.folder = folder
        self.kind: str = kind
        self.complete: bool = False
        self.appended: bool = False
        self.files: dict[str, set[Contents]] = {}
        self.nested: dict[str, None] = {}
        self._end = 0  # of the complete lines in the file
        self._written: dict[str, tuple[tuple[int, ...], Contents]] = {}  # by this process

    @classmethod
    def read(cls, folder: Path) -> "FileList | None":
        """Reads the list of a folder; returns None if there is none.

        Raises:
            OccupiedError: the list is damaged.
        """
        try:
            text = (folder / LIST).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        found = cls(folder)
        found._end = text.rfind(b"\n") + 1
        lines = text.split(b"\n")
        for number, line in enumerate(lines[:-1] or lines, 1):  # a last line without line end is incomplete
            try:
                found._take(json.loads(line))
                if not found.kind:
                    raise ValueError("the first line names the kind")
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
                words = f"line {number} is damaged, so that nothing here is replaced; name a new folder"
                raise OccupiedError(f"{folder / LIST}: {words}") from None
        return found

    @classmethod
    def create(cls, folder: Path, kind: str) -> "FileList":
        """Writes a new list into a folder, which is created if necessary."""
        folder.mkdir(parents=True, exist_ok=True)
        created = cls(folder, kind)
        created.rewrite()
        return created

    def _take(self, line: Mapping[str, Any]) -> None:
        if "kind" in line:
            self.kind = str(line["kind"])
        elif "complete" in line:
            self.complete = bool(line["complete"])
        elif "folder" in line:
            self.nested[_checked(line["folder"])] = None
        else:
            known = self.files.setdefault(_checked(line["file"]), set())
            if "sha256" in line:
                known.add(Contents(int(line["size"]), str(line["sha256"])))

    def _append(self, **line: Any) -> None:
        text = json.dumps(line).encode() + b"\n"
        with (self.folder / LIST).open("r+b") as file:
            file.seek(self._end)
            file.truncate()  # removes a line that a killed process or a full disk cut off
            file.write(text)
        self._end += len(text)
        self._take(line)
        self.appended = True

    def add(self, name: str, found: Contents) -> None:
        """Lists a file before it gets its name."""
        self._append(file=name, **found._asdict())

    def add_draft(self, name: str) -> None:
        """Lists a draft before it is written."""
        if name not in self.files:
            self._append(file=name)

    def add_nested(self, name: str) -> None:
        """Lists a folder that has a list of its own, before it is made."""
        if name not in self.nested:
            self._append(folder=name)

    def mark_complete(self) -> None:
        """Marks the folder as complete: from now on it replaces the folder that contains it."""
        self._append(complete=True)

    def rewrite(self) -> None:
        """Rewrites the list without drafts and missing files, and with only the current contents of each file."""
        lines: list[dict[str, Any]] = [{"kind": self.kind}, *({"folder": name} for name in self.nested)]
        kept: dict[str, set[Contents]] = {}
        for name, known in self.files.items():
            if known and os.path.lexists(self.folder / name):
                present = self.present(name)
                kept[name] = known if present is None else {present}
                lines += [{"file": name, **found._asdict()} for found in sorted(kept[name])]
        self.files = kept
        draft = self.folder / f"{LIST}{DRAFT}"
        text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        draft.write_bytes(text)
        draft.replace(self.folder / LIST)
        self._end = len(text)

    def wrote(self, name: str, found: Contents) -> None:
        """Remembers a file that this process has just written, so that it need not be read again."""
        self._written[name] = _identity(self.folder / name), found

    def moved_from(self, other: "FileList", name: str) -> None:
        """Remembers a file that was moved here from another folder."""
        if name in other._written:
            self._written[name] = other._written[name]

    def present(self, name: str) -> Contents | None:
        """Returns the contents of an owned file, or None if it is missing, changed, or reached through a link."""
        path = self.folder / name
        if path.is_symlink() or not path.is_file() or os.path.realpath(path.parent) != str(path.parent):
            return None
        if name in self._written and self._written[name][0] == _identity(path):
            return self._written[name][1]
        known = self.files.get(name, set())
        if path.stat().st_size not in {entry.size for entry in known}:
            return None
        found = contents(path)
        return found if found in known else None

    def check_owned(self, name: str, shown: Path) -> None:
        """Raises if the file exists and is not owned, or if a parent is not a plain folder."""
        path = self.folder / name
        for parent in path.parents:
            if parent == self.folder:
                break
            if parent.is_symlink() or (parent.exists() and not parent.is_dir()):
                where = shown / parent.relative_to(self.folder)
                raise OccupiedError(f"{where}: is not a folder that mtlkit made; move it away")
        if not os.path.lexists(path) or self.present(name) is not None:
            return
        if name in self.files:
            raise ChangedError(f"{shown / name}: has been changed since mtlkit wrote it; move or delete it")
        raise OccupiedError(f"{shown / name}: was not written by mtlkit; move it away")


def kind_of(folder: Path) -> str:
    """Returns the kind of a folder from its list, for example "a run"; "" without a list."""
    try:
        with (folder / LIST).open("rb") as file:
            return str(json.loads(file.readline(1000))["kind"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _identity(path: Path) -> tuple[int, ...]:
    stat = path.lstat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _checked(name: Any) -> str:
    """Returns the name; raises a ValueError if it leads out of the folder."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or b"\0" in os.fsencode(path):
        raise ValueError(name)
    return name
