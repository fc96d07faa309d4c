"""Folders and tables."""

import csv
import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from mtlkit.errors import DataError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MAX_TABLE = 256 * 2**20  # bytes that an .xlsx file may unpack to
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
        return [[cell.strip() for cell in row] for row in rows]
    except DataError:
        raise
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise DataError(f"{path}: the table cannot be read ({error})") from None
    except Exception as error:  # a damaged archive raises whatever zipfile, xml or openpyxl choose
        if path.suffix.lower() == ".xlsx" and not isinstance(error, ImportError):
            raise DataError(f"{path}: the table cannot be read ({error})") from None
        raise


def _decoded(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 as Windows programs mark it.

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
    """Index of the first column with one of these names, whatever the case and the line breaks.

    Raises:
        DataError: there is none.
    """
    plain = [" ".join(cell.split()).lower() for cell in header]
    for name in names:
        if name.lower() in plain:
            return plain.index(name.lower())
    raise DataError(f"{path}: there is no column {names[0]!r}; there are: {', '.join(filter(None, plain))}")
