"""Folders and tables, and writing files whole or not at all."""

import csv
import io
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtlkit.errors import DataError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MASK_SUFFIX = re.compile(r"(_mask|_anno|_segmentation|_gt)?(_\d+)?$", re.IGNORECASE)

# --- folders ----------------------------------------------------------------------------------------------------------


def check_folder(root: str | Path) -> Path:
    """The folder; raises a DataError where there is none, it cannot be listed, or it is empty."""
    root = Path(root)
    if not root.exists():
        raise DataError(f"{root}: there is no such folder")
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder, found a file")
    try:
        empty = next(root.iterdir(), None) is None
    except OSError as error:
        raise DataError(f"{root}: the folder cannot be listed ({error.strerror})") from None
    if empty:
        raise DataError(f"{root}: the folder is empty")
    return root


def pictures(folder: Path) -> list[Path]:
    """The image files of a folder in a fixed order: numbers count, so that 2 comes before 10."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")]
    return sorted(found, key=natural)


def image_stem(mask: str) -> str:
    """The stem of the image that a mask of this stem belongs to: "a" for "a_mask", "a_1" and "a_gt_2"."""
    return MASK_SUFFIX.sub("", mask)


def natural(path: Path) -> list[tuple[int, str]]:
    """Sort key of a path: digits by value."""
    parts, number = [], ""
    for character in path.name + "\0":
        if character.isdigit() and character.isascii():
            number += character
            continue
        if number:
            parts.append((int(number), ""))
            number = ""
        parts.append((-1, character))
    return parts


# --- tables -----------------------------------------------------------------------------------------------------------


def read_table(path: Path, sheet: str | None = None) -> list[list[str]]:
    """Rows of a table, .xlsx or comma- or tab-separated text, as stripped strings.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if path.suffix.lower() == ".xlsx":
            import openpyxl

            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            names = [name for name in book.sheetnames if sheet is not None and name.strip() == sheet]
            rows = book[names[0] if names else book.sheetnames[0]].iter_rows(values_only=True)
            cells = [["" if cell is None else str(cell).strip() for cell in row] for row in rows]
            book.close()
            return cells
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=head.count)
            return [[cell.strip() for cell in row] for row in csv.reader(file, delimiter=delimiter)]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise DataError(f"{path}: the table cannot be read ({error})") from None
    except Exception as error:  # a damaged archive raises whatever zipfile, xml or openpyxl choose
        if path.suffix.lower() == ".xlsx" and not isinstance(error, ImportError):
            raise DataError(f"{path}: the table cannot be read ({error})") from None
        raise


def column(header: Sequence[str], path: Path, *names: str) -> int:
    """Index of the first column with one of these names, whatever the case and the line breaks.

    Raises:
        DataError: there is none.
    """
    plain = [" ".join(cell.split()).lower() for cell in header]
    for name in names:
        if name.lower() in plain:
            return plain.index(name.lower())
    raise DataError(f"{path}: there is no column {names[0]!r}; there are: {', '.join(filter(None, plain))}")


# --- writing ----------------------------------------------------------------------------------------------------------


def check_new(path: str | Path, *, force: bool = False) -> None:
    """Raises a DataError where `written_whole` would, for one who works long before writing."""
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: expected a file, found a folder")
    if path.exists() and not force:
        raise DataError(f"{path}: the file exists already; --force overwrites it")


@contextmanager
def written_whole(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Gives a path to write to, which becomes `path` when all has gone well, and vanishes when not.

    Raises:
        DataError: `path` exists already and `force` was not given, or it cannot be written.
    """
    path = Path(path)
    check_new(path, force=force)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        draft.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        draft.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """For JSON: dictionaries and lists, and None for what is no finite number, of which JSON knows none."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_text(value: Any) -> str:
    """`value` as JSON."""
    return json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n"


def write_json(path: str | Path, value: Any, *, force: bool = False) -> None:
    """Writes `value` as JSON, whole or not at all."""
    with written_whole(path, force=force) as draft:
        draft.write_text(json_text(value), encoding="utf-8")


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as comma-separated text: a column for each name that any row has, empty where it is missing or None."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def check_replaceable(path: str | Path, mark: str, *, force: bool = False) -> None:
    """Raises a DataError where `folder_written_whole` would, for one who works long before writing."""
    path = Path(path)
    occupied = path.exists() and not (path.is_dir() and next(path.iterdir(), None) is None)
    if occupied and not force:
        raise DataError(f"{path}: exists already; --force overwrites what an earlier run wrote there")
    if occupied and not (path / mark).is_file():
        raise DataError(f"{path}: exists already and holds no {mark}, so that it is not overwritten even with --force")


@contextmanager
def folder_written_whole(path: str | Path, mark: str, *, force: bool = False) -> Iterator[Path]:
    """Gives a folder to fill, which becomes `path` when all has gone well, and vanishes when not.

    Args:
        path: where the folder is to be.
        mark: a file that is written into it; only a folder that holds one is ever replaced.
        force: replaces such a folder.

    Raises:
        DataError: `path` exists already and may not be replaced, or it cannot be written.
    """
    path = Path(path)
    check_replaceable(path, mark, force=force)
    draft = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield draft
        draft.chmod(0o777 & ~_umask())  # mkdtemp's is its owner's alone
        if path.exists():
            old = path.with_name(f"{draft.name}.old")
            path.rename(old)
            draft.rename(path)
            shutil.rmtree(old)
        else:
            draft.rename(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
