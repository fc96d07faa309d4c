"""Reading and atomic writing of files, and the text of JSON, CSV and Markdown tables."""

import errno
import json
import math
import os
import re
import stat
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtlkit._text import printable
from mtlkit.errors import DataError, ExistsError

FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # start of a formula for spreadsheets
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf)", re.IGNORECASE)
SURROGATE = re.compile("[\ud800-\udfff]")  # cannot be encoded in a text file
QUOTED = re.compile(r'[",\r\n]')


# --- reading ----------------------------------------------------------------------------------------------------------


def why_unreadable(path: Path, what: str = "a file") -> str | None:
    """Returns why a file cannot be read; None if it can. Does not open the path, because a pipe could block forever."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "is a link that leads to itself"
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return (
                f"is a link to {path.readlink()}, which is not there" if path.is_symlink() else "there is no such file"
            )
        return f"cannot be read ({error.strerror})"
    if stat.S_ISDIR(mode):
        return f"expected {what}, found a folder"
    if not stat.S_ISREG(mode):
        return f"expected {what}, found a device or a pipe"
    return None if os.access(path, os.R_OK) else "cannot be read (Permission denied)"


def check_file(path: Path, what: str = "a file") -> None:
    """Raises a DataError unless the file can be read."""
    if (why := why_unreadable(path, what)) is not None:
        raise DataError(why, path=path)


# --- writing ----------------------------------------------------------------------------------------------------------


def check_new(path: str | Path, *, force: bool = False) -> None:
    """Raises the errors of `written_whole`, for callers that compute for a long time before they write."""
    path = Path(path)
    try:
        if path.is_dir():
            raise DataError(f"{path}: expected a file, found a folder")
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: expected a file, found a device or a pipe")
        if path.exists() and not force:
            raise ExistsError(f"{path}: the file exists already")
        place = next(parent for parent in Path(os.path.realpath(path)).parents if parent.exists())
        with tempfile.TemporaryFile(dir=place) as trial:
            trial.write(b"x")
            trial.flush()
    except OSError as error:  # for example, the name is too long or the disk is full
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None


@contextmanager
def written_whole(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Gives a path to write to; the file is renamed to `path` on success and removed on an error.

    Args:
        path: the file; links are followed.
        force: whether to replace an existing file.

    Raises:
        ExistsError: `path` exists and `force` is False.
        DataError: the file cannot be written.
    """
    check_new(path, force=force)
    real = Path(os.path.realpath(path))
    draft = real.with_name(f".mtlkit-{zlib.crc32(os.fsencode(real.name)):08x}-{os.getpid()}")  # always short
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        draft.replace(real)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        draft.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """Converts mappings and sequences to dicts and lists for JSON, and NaN and infinities to None."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_text(value: Any) -> str:
    """Returns `value` as JSON; bytes of file names that are not UTF-8 become escapes, which reading reverses."""
    text = json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_json(path: str | Path, value: Any, *, force: bool = False) -> None:
    """Writes `value` as JSON, atomically."""
    with written_whole(path, force=force) as draft:
        draft.write_text(json_text(value), encoding="utf-8")


# --- CSV --------------------------------------------------------------------------------------------------------------


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns rows as comma-separated text: one column for each name in any row, empty where it is missing or None.

    Text that a spreadsheet would read as a formula gets a leading apostrophe, which `csv_value` removes.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [map(_cell, names), *(map(_cell, map(row.get, names)) for row in rows)]
    return "".join(",".join(line) + "\n" for line in lines)


def _cell(value: Any) -> str:
    """Returns a cell of CSV, quoted if necessary (the module csv does not quote carriage returns)."""
    text = "" if value is None else str(value)
    if isinstance(value, str):
        text = SURROGATE.sub(lambda found: printable(found[0]), value)
        text = f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text
    return '"' + text.replace('"', '""') + '"' if QUOTED.search(text) else text


def csv_value(cell: str) -> str:
    """Returns the text of a cell without the apostrophe that `csv_text`, or a spreadsheet, put before a formula.

    Example:
        >>> from mtlkit._files import csv_value
        >>> csv_value("'=1+1"), csv_value("'90s"), csv_value("-1")
        ('=1+1', "'90s", '-1')
    """
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


# --- Markdown ---------------------------------------------------------------------------------------------------------


def markdown_table(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table; escape names from users with `mtlkit._text.escape_markdown` first."""
    return ["| " + " | ".join(line) + " |" for line in (headings, ["---"] * len(headings), *cells)]
