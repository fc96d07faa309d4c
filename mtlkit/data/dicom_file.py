"""Opens DICOM files, with or without preamble, deflated or not, within limits on their size."""

import os
import zlib
from io import SEEK_CUR, SEEK_END, SEEK_SET, BytesIO
from pathlib import Path
from typing import Any, BinaryIO, overload

from mtlkit._files import check_file
from mtlkit._text import shown
from mtlkit.data.files import DICOM
from mtlkit.data.pixels import MAX_PIXELS, check_pixels
from mtlkit.errors import DataError, TooLargeError

GROUPS = (b"\x02\x00", b"\x08\x00")  # first groups of a data set without preamble
MAX_HEADER = 64 * 2**20  # maximal bytes of tags before the pixels of a deflated file
DEFLATE_RATIO = 1032  # deflate's largest expansion of one byte


def is_dicom(path: Path) -> bool:
    """Whether a file has a DICOM name or a DICOM header."""
    if path.suffix.lower() in DICOM:
        return True
    try:
        return path.is_file() and (_has_preamble(path) or (is_unnamed(path) and _begins_with_tags(path)))
    except OSError:
        return False


def _has_preamble(path: Path) -> bool:
    """The same as pydicom's `is_dicom`, without importing pydicom, which takes half a second."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def is_unnamed(path: Path) -> bool:
    """Whether a file has no suffix, or one that is the last number of a UID."""
    return not path.suffix or path.suffix[1:].isdigit()


def _begins_with_tags(path: Path) -> bool:
    """Whether a file starts with an element of the first groups, like data sets without preamble."""
    with path.open("rb") as file:
        head = file.read(8)
        size = os.fstat(file.fileno()).st_size
    if len(head) < 8 or head[:2] not in GROUPS or head[3] != 0:
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return explicit or int.from_bytes(head[4:8], "little") <= size


class Tags:
    """The tags of a file; an invalid tag raises a DataError, or adds a remark if it is not needed.

    Args:
        path: path of the file, for messages.
        dataset: pydicom's.
        room: number of bytes available for pixels.
    """

    def __init__(self, path: Path, dataset: Any, room: int) -> None:
        self.path = path
        self.dataset = dataset
        self.room = room
        self.remarks: list[str] = []

    def get(self, name: str, dataset: Any = None) -> Any:
        """The value in the file or in an item of it; None if it is missing, empty or invalid."""
        dataset = self.dataset if dataset is None else dataset
        try:
            value = dataset.get(name)
        except Exception:  # pydicom raises many exceptions for invalid values
            self.drop(name, _raw(dataset, name))
            return None
        return None if value is None or (hasattr(value, "__len__") and len(value) == 0) else value

    def drop(self, name: str, value: object) -> None:
        """Adds a remark about a tag that is ignored."""
        remark = f"{name} {shown(value)} is not valid and is ignored"
        if remark not in self.remarks:
            self.remarks.append(remark)

    def text(self, name: str, dataset: Any = None) -> str:
        """The value as stripped text; "" if there is none."""
        value = self.get(name, dataset)
        return "" if value is None else str(value).strip()

    def numbers(self, name: str, dataset: Any = None) -> list[float]:
        """The numbers of an optional tag; empty if one of them is not finite."""
        value = self.get(name, dataset)
        if value is None:
            return []
        try:
            found = [float(one) for one in (value if isinstance(value, list | tuple) or _several(value) else [value])]
        except (TypeError, ValueError, OverflowError):
            found = [float("nan")]
        if not all(abs(one) < 1e30 for one in found):  # rejects NaN and infinity too
            self.drop(name, value)
            return []
        return found

    @overload
    def number(self, name: str, default: float, dataset: Any = None) -> float: ...
    @overload
    def number(self, name: str, default: None = None, dataset: Any = None) -> float | None: ...
    def number(self, name: str, default: float | None = None, dataset: Any = None) -> float | None:
        """The first number of an optional tag."""
        return next(iter(self.numbers(name, dataset)), default)

    def items(self, name: str, dataset: Any = None) -> list[Any]:
        """The items of an optional sequence."""
        from pydicom import Dataset

        value = self.get(name, dataset)
        if value is None:
            return []
        if not _several(value) or not all(isinstance(item, Dataset) for item in value):
            self.drop(name, value)
            return []
        return list(value)

    def count(self, name: str, default: int, most: int) -> int:
        """An integer from 1 to `most`; `default` if there is none.

        Raises:
            DataError: it is anything else.
        """
        try:
            value = self.dataset.get(name)
        except Exception:
            value = _raw(self.dataset, name)
        if value is None or value == "":
            return default
        try:
            number = int(value)
        except (TypeError, ValueError, OverflowError):
            number = 0
        if not 1 <= number <= most or (isinstance(value, float) and value != number):
            text = f"{name}: expected an integer from 1 to {most}, got {shown(value)}"
            raise DataError(text, path=self.path)
        return number

    @property
    def compressed(self) -> bool:
        """Whether each frame is compressed separately."""
        return bool(self.dataset.file_meta.TransferSyntaxUID.is_encapsulated)

    @property
    def syntax(self) -> str:
        """The name of the transfer syntax."""
        return self.dataset.file_meta.TransferSyntaxUID.name

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of a frame; zeros if the file has no image."""
        if "Rows" not in self.dataset or "Columns" not in self.dataset:
            return 0, 0
        return self.count("Rows", 0, 65535), self.count("Columns", 0, 65535)

    @property
    def frame_bytes(self) -> float:
        """The minimal number of bytes of a frame."""
        if self.compressed:
            return 8  # the header of its item
        bits = self.count("BitsAllocated", 8, 64) * self.count("SamplesPerPixel", 1, 4)
        rows, columns = self.shape
        return max(
            rows * columns * bits / 8 * (2 / 3 if bits == 24 else 1), 1 / 8
        )  # YBR 4:2:2 stores two samples of three

    @property
    def frames(self) -> int:
        """The number of frames.

        Raises:
            DataError: it is not a number, or more than fit into the bytes of the file.
        """
        number = self.count("NumberOfFrames", 1, 2**31 - 1)
        most = int(self.room // self.frame_bytes)
        if number > max(most, 1):
            text = f"NumberOfFrames: expected at most {most}, by the size of the file, got {number}"
            raise DataError(text, path=self.path)
        return number


def _several(value: Any) -> bool:
    from pydicom.multival import MultiValue
    from pydicom.sequence import Sequence

    return isinstance(value, MultiValue | Sequence)


def _raw(dataset: Any, name: str) -> Any:
    """The bytes of an invalid value."""
    try:
        value = dataset.get_item(name).value
    except Exception:
        return "that is damaged"
    if isinstance(value, bytes):
        return value.decode("latin-1").strip(" \0")
    return value


class _Inflated:
    """`head` followed by the inflated rest of a file, inflated as it is read and limited to `limit` bytes."""

    def __init__(self, file: BinaryIO, head: bytes, limit: int) -> None:
        self.limit = limit
        self._file, self._engine = file, zlib.decompressobj(-zlib.MAX_WBITS)
        self._made, self._at = bytearray(head), 0

    def _reach(self, end: int | None) -> None:
        """Inflates up to `end`, or to the end."""
        while (end is None or len(self._made) < end) and not self._engine.eof:
            if len(self._made) > self.limit:
                raise OverflowError(f"it inflates to more than the {self.limit:,} bytes that its tags announce")
            chunk = self._engine.unconsumed_tail or self._file.read(2**16)
            if not chunk:
                break
            self._made += self._engine.decompress(chunk, 2**20)

    def read(self, size: int = -1) -> bytes:
        """As a file's."""
        self._reach(None if size < 0 else self._at + size)
        found = bytes(self._made[self._at :] if size < 0 else self._made[self._at : self._at + size])
        self._at += len(found)
        return found

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """As a file's."""
        if whence == SEEK_END:
            self._reach(None)
        self._at = max(0, offset + {SEEK_SET: 0, SEEK_CUR: self._at, SEEK_END: len(self._made)}[whence])
        return self._at

    def tell(self) -> int:
        """As a file's."""
        return self._at


def open_dicom(path: Path, *, pixels: bool = False, max_pixels: int = MAX_PIXELS) -> Tags:
    """Reads the tags of a file and optionally its pixels, after checking the announced sizes.

    Raises:
        DataError: there is no such file, it is not DICOM, or it announces more frames than it has bytes for.
        TooLargeError: its frames have too many pixels.
    """
    try:
        check_file(path)
        with path.open("rb") as file:
            return _open(path, file, pixels=pixels, max_pixels=max_pixels)
    except FileNotFoundError:
        raise DataError("there is no such file", path=path) from None
    except (DataError, MemoryError):
        raise
    except RecursionError:
        raise DataError("cannot be read as DICOM (its sequences are nested too deeply)", path=path) from None
    except Exception as error:  # pydicom raises many exceptions for a damaged file
        raise DataError(f"cannot be read as DICOM ({first_line(error)})", path=path) from None


def first_line(error: Exception) -> str:
    """The message of an error as part of a sentence."""
    words = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".:")
    return words if len(words) <= 300 else f"{words[:300]}..."


def _open(path: Path, file: BinaryIO, *, pixels: bool, max_pixels: int) -> Tags:
    from pydicom import dcmread

    size = os.fstat(file.fileno()).st_size
    if file.read(132)[128:] != b"DICM" and not _begins_with_tags(path):
        raise DataError("cannot be read as DICOM (it has no DICOM header)", path=path)
    head = _head_of_deflated(file)
    stream: Any = file if head is None else _Inflated(file, head, MAX_HEADER)
    stream.seek(0)
    dataset = dcmread(stream, force=True, stop_before_pixels=True)
    if len(dataset) == 0:
        raise DataError("cannot be read as DICOM (it has no tags)", path=path)
    room = size - stream.tell() if head is None else size * DEFLATE_RATIO
    tags = Tags(path, _with_syntax(dataset), room)
    rows, columns = tags.shape
    check_pixels(path, columns, rows, max_pixels)
    frames = tags.frames
    if pixels:
        if head is not None:
            announced = int(frames * tags.frame_bytes * 1.5)  # see frame_bytes
            if announced > 6 * max_pixels:
                text = f"expected at most {6 * max_pixels:,} bytes in a deflated file (max_pixels), got {announced:,}"
                raise TooLargeError(text, path=path)
            stream.limit = stream.tell() + announced + MAX_HEADER
        stream.seek(0)
        tags.dataset = _with_syntax(dcmread(stream, force=True))
    return tags


def _with_syntax(dataset: Any) -> Any:
    """The data set with a transfer syntax; if the file does not name one, the one in which its tags are written."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    dataset.file_meta = getattr(dataset, "file_meta", None) or FileMetaDataset()
    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _head_of_deflated(file: BinaryIO) -> bytes | None:
    """The header of a deflated file, rewritten as not deflated, and the rest of the file; None for other files."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

    file.seek(132)
    try:
        meta = FileMetaDataset(read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2))
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return None
    except Exception:  # no preamble, or damaged tags: left to pydicom
        return None
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    head = BytesIO()
    head.write(bytes(128) + b"DICM")
    write_file_meta_info(head, meta, enforce_standard=False)  # pyright: ignore[reportArgumentType] - any file object works
    return head.getvalue()
