"""Lists folders and reads tables."""

import csv
import io
import os
import re
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from mtlkit._files import check_file, csv_value
from mtlkit.errors import DataError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
DICOM = (".dcm", ".dicom")
ARCHIVED = "__MACOSX"  # extra folder in archives made on a Mac
MAX_TABLE = 256 * 2**20  # maximal unpacked bytes of an .xlsx file
SAMPLE = 4096  # bytes of a file that its fingerprint covers
MASK_SUFFIX = re.compile(r"(_mask|_anno|_segmentation|_gt)?(_\d+)?$", re.IGNORECASE)

# --- folders ----------------------------------------------------------------------------------------------------------


def check_folder(root: str | Path) -> Path:
    """The folder; raises a DataError if there is none, it cannot be listed, or it is empty."""
    root = Path(root)
    if not root.exists():
        raise DataError(f"{root}: there is no such folder")
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder, found a file")
    if not _listed(root):
        raise DataError(f"{root}: the folder is empty")
    return root


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be listed ({error.strerror})") from None


def entries(folder: Path) -> list[Path]:
    """The entries of a folder in a fixed order; numbers sort by value, so that 2 comes before 10.

    Entries that start with a dot are left out, and so are links to a parent folder. Broken links, pipes and unreadable
    files are included; reading them raises the error.

    Raises:
        DataError: the folder cannot be listed.
    """
    found = [path for path in _listed(folder) if not path.name.startswith(".") and path.name != ARCHIVED]
    return sorted((path for path in found if not _leads_back(path)), key=natural)


def _leads_back(path: Path) -> bool:
    """Whether a path is a link to one of its parent folders."""
    if not path.is_symlink():
        return False
    return Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(path))


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, in the order of `entries`; empty if it does not exist."""
    return [path for path in entries(folder) if path.is_dir()] if folder.is_dir() else []


def pictures(folder: Path, suffixes: Sequence[str] = PICTURES) -> list[Path]:
    """The files with the name of an image in a folder, in the order of `entries`; empty if it does not exist."""
    return [path for path in entries(folder) if path.suffix.lower() in suffixes] if folder.is_dir() else []


def files_below(
    folder: Path,
    *,
    leave: Callable[[Path], bool] = lambda _: False,
    told: Callable[[DataError], None] | None = None,
) -> Iterator[Path]:
    """The files in a folder and its subfolders; each folder is listed once, whatever links point to it.

    Linked folders come last.

    Args:
        folder: where to start.
        leave: whether to skip a subfolder.
        told: called with the error of a folder that cannot be listed; without it, the error is raised.
    """
    waiting, links = [folder], deque[Path]()
    seen: set[str] = set()
    while waiting or links:
        one = waiting.pop() if waiting else links.popleft()
        place = os.path.realpath(one)
        if place in seen or (one != folder and leave(one)):
            continue
        seen.add(place)
        try:
            content = entries(one)
        except DataError as error:
            if told is None:
                raise
            told(error)
            continue
        yield from (path for path in content if not path.is_dir())
        inner = [path for path in content if path.is_dir()]
        waiting += [path for path in reversed(inner) if not path.is_symlink()]
        links += [path for path in inner if path.is_symlink()]


def image_stem(mask: str) -> str:
    """The stem of the image for a mask's stem: "a" for "a_mask", "a_1" and "a_gt_2"."""
    return MASK_SUFFIX.sub("", mask)


def natural(path: Path) -> tuple[list[tuple[int, str]], str]:
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
    return parts, path.name


# --- prints -----------------------------------------------------------------------------------------------------------


def print_of(files: Iterable[Path]) -> str:
    """A fingerprint of files from their sizes and the bytes in their middle, without reading them completely.

    Raises:
        DataError: a file cannot be read.
    """
    value = 0
    for path in files:
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                file.seek(max(0, (size - SAMPLE) // 2))
                value = zlib.crc32(file.read(SAMPLE), zlib.crc32(str(size).encode(), value))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return f"{value:08x}"


# --- tables -----------------------------------------------------------------------------------------------------------


def read_table(path: Path, sheet: str | None = None) -> list[list[str]]:
    """The rows of a table (.xlsx, or comma- or tab-separated text) as stripped strings.

    A leading apostrophe, which mtlkit writes before text that would be read as a formula, is removed.

    Raises:
        DataError: it cannot be read.
    """
    if path.exists() or path.is_symlink():  # a pipe could block
        check_file(path)
    try:
        if path.suffix.lower() == ".xlsx":
            import openpyxl

            with zipfile.ZipFile(path) as archive:
                size = sum(part.file_size for part in archive.infolist())
            if size > MAX_TABLE:
                raise DataError(f"expected at most {MAX_TABLE:,} bytes of table, got {size:,}", path=path)
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            names = [name for name in book.sheetnames if sheet is not None and name.strip() == sheet]
            rows = book[names[0] if names else book.sheetnames[0]].iter_rows(values_only=True)
            cells = [["" if cell is None else str(cell).strip() for cell in row] for row in rows]
            book.close()
            return cells
        text = _decoded(path)
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        return [[csv_value(cell.strip()) for cell in row] for row in rows]
    except (DataError, MemoryError):
        raise
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise DataError(f"{path}: the table cannot be read ({error})") from None
    except Exception as error:  # zipfile, xml and openpyxl raise many exceptions for a damaged archive
        if path.suffix.lower() == ".xlsx" and not isinstance(error, ImportError):
            raise DataError(f"{path}: the table cannot be read ({error})") from None
        raise


def _decoded(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        DataError: it is neither.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        text = f"expected text in UTF-8 or UTF-16, got other bytes in line {line}; save it as CSV UTF-8"
        raise DataError(text, path=path) from None


def column(header: Sequence[str], path: Path, *names: str) -> int:
    """Index of the first column with one of these names, ignoring case and line breaks.

    Raises:
        DataError: there is none.
    """
    plain = [" ".join(cell.split()).lower() for cell in header]
    for name in names:
        if name.lower() in plain:
            return plain.index(name.lower())
    known = ", ".join(filter(None, plain))
    raise DataError(f"{path}: there is no column {names[0]!r}; there are: {known[:300]}{'...' * (len(known) > 300)}")
