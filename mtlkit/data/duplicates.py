"""Finds images that look alike but belong to different groups, and so leak from one part of a split into another.

Each image has a perceptual hash of 256 bits (`imagehash.phash`): the low frequencies of its brightness that are above
their median. Resizing, JPEG compression, another brightness or a few words drawn into the image change up to 30 bits,
cropping 2 % of the border up to 50; unrelated images differ in about 128 bits. Mirrored copies are found too.
"""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtlkit._extras import check_installed
from mtlkit._text import printable
from mtlkit.data.images import load_image
from mtlkit.data.pixels import MAX_PIXELS
from mtlkit.data.records import Catalogue, Exam, Record
from mtlkit.errors import DataError

__all__ = ["NearDuplicate", "near_duplicates", "surplus"]

SIDE = 16  # side of the square of bits
DISTANCE = 50  # images with at most this many different bits of 256 count as alike
THUMBNAIL = 320  # pixels per side
CELLS = 4_000_000  # rows of a distance matrix computed at once


class NearDuplicate(NamedTuple):
    """Two images that look alike.

    Example:
        >>> from pathlib import Path
        >>> from mtlkit.data import NearDuplicate, Record
        >>> first, second = (Record(name, Path(f"{name}.png"), 0, (), name) for name in ("a", "b"))
        >>> print(NearDuplicate(first, second, (first.image, second.image), 12, mirrored=True))
        looks like a.png mirrored (12 of 256 bits differ)
    """

    first: Record | Exam
    second: Record | Exam
    files: tuple[Path, Path]
    bits: int  # different bits of 256
    mirrored: bool

    def __str__(self) -> str:
        how = " mirrored" if self.mirrored else ""
        return f"looks like {self.files[0]}{how} ({self.bits} of {SIDE * SIDE} bits differ)"


class Looks:
    """Collects the hashes of images as they are read."""

    def __init__(self) -> None:
        check_installed("looking for near-duplicates")
        self._seen: list[tuple[Record | Exam, Path]] = []
        self._bits: list[NDArray[np.bool_]] = []  # hash of each image and of its mirror image, (2, 256)

    def see(self, record: Record | Exam, path: Path, pixels: NDArray[np.uint8]) -> None:
        """Adds an image (H, W, 3)."""
        from imagehash import phash
        from PIL import Image

        image = Image.fromarray(pixels).convert("L")
        sides = (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        self._seen.append((record, path))
        self._bits.append(np.stack([np.asarray(phash(side, SIDE).hash).ravel() for side in sides]))

    def pairs(self, distance: int = DISTANCE) -> Iterator[NearDuplicate]:
        """The pairs of different groups that differ in at most this many bits, in the order of the second image."""
        if len(self._seen) < 2:
            return
        signs = 2 * np.stack(self._bits).astype(np.float32) - 1  # (N, 2, 256)
        groups = np.array([record.group for record, _ in self._seen])
        step = max(1, CELLS // len(groups))
        for start in range(0, len(groups), step):
            block = signs[start : start + step, 0]
            agree = np.stack([block @ signs[:, way].T for way in (0, 1)])  # (2, rows, N)
            bits = (SIDE * SIDE - agree) / 2
            others = np.arange(len(groups)) < start + np.arange(len(block))[:, None]
            others &= groups != groups[start : start + step, None]
            for row, column in np.argwhere((bits.min(0) <= distance) & others):
                way = int(bits[:, row, column].argmin())
                (first, a), (second, b) = self._seen[column], self._seen[start + row]
                yield NearDuplicate(first, second, (a, b), int(bits[way, row, column]), way == 1)


def near_duplicates(
    catalogue: Catalogue,
    distance: int = DISTANCE,
    *,
    progress: Callable[[int, int], None] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[NearDuplicate, ...]:
    """Pairs of images that look alike but belong to different groups; unreadable files are skipped.

    Args:
        catalogue: the data set.
        distance: maximal number of different bits, of the 256 of a perceptual hash.
        progress: called with the number of processed records and the total.
        max_pixels: maximal number of pixels in a frame.

    Raises:
        ValueError: the distance is below 0 or above 256.
        ImportError: ImageHash is not installed.

    Example:
        >>> import shutil, tempfile
        >>> from mtlkit.data import near_duplicates, open_dataset, synthesize_ultrasound
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     synthesize_ultrasound(f"{folder}/busi", cases=6, size=64)
        ...     for end in ("", "_mask"):
        ...         benign = f"{folder}/busi/benign/benign"
        ...         _ = shutil.copy(f"{benign} (1){end}.png", f"{benign} (9){end}.png")
        ...     found = near_duplicates(open_dataset(f"{folder}/busi"))
        >>> [(pair.first.key, pair.second.key, pair.bits) for pair in found]
        [('benign/benign (1)', 'benign/benign (9)', 0)]
    """
    if not 0 <= distance <= SIDE * SIDE:
        raise ValueError(f"distance: expected 0 to {SIDE * SIDE} bits, got {distance}")
    looks = Looks()
    for done, record in enumerate(catalogue.records, start=1):
        files = record.files if isinstance(record, Exam) else (record.image,)
        for path in files:
            try:
                looks.see(record, path, load_image(path, getattr(record, "frame", None), max_pixels).pixels)
            except DataError:
                continue
        if progress is not None:
            progress(done, len(catalogue))
    return tuple(looks.pairs(distance))


def surplus(catalogue: Catalogue, pairs: Sequence[NearDuplicate]) -> tuple[str, ...]:
    """The keys to leave out so that one of the similar images remains: one in a published test part, or the first."""
    order = {
        record.key: ((record.split != "test", record.split != "val"), i) for i, record in enumerate(catalogue.records)
    }
    leader = {key: key for key in order}

    def find(key: str) -> str:
        while leader[key] != key:
            key = leader[key]
        return key

    for pair in pairs:
        kept, left = sorted((find(pair.first.key), find(pair.second.key)), key=order.__getitem__)
        leader[left] = kept
    return tuple(key for key in order if find(key) != key)


def write_page(
    catalogue: Catalogue,
    pairs: Sequence[NearDuplicate],
    part_of: Mapping[str, str | None],
    max_pixels: int = MAX_PIXELS,
) -> str:
    """The pairs side by side with their groups, classes and parts, as one self-contained HTML file."""
    import jinja2

    shown = [
        {
            "bits": pair.bits,
            "mirrored": pair.mirrored,
            "sides": [
                _side(catalogue, record, path, part_of, max_pixels)
                for record, path in zip(pair[:2], pair.files, strict=True)
            ],
        }
        for pair in sorted(pairs, key=lambda pair: pair.bits)
    ]
    source = (files("mtlkit.data") / "near_duplicates.html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    return template.render(name=printable(str(catalogue.root)), pairs=shown)


def _side(
    catalogue: Catalogue, record: Record | Exam, path: Path, part_of: Mapping[str, str | None], max_pixels: int
) -> dict[str, Any]:
    from PIL import Image

    image = Image.fromarray(load_image(path, getattr(record, "frame", None), max_pixels).pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    label = record.label if isinstance(record, Record) else -1
    return {
        "data": base64.b64encode(file.getvalue()).decode(),
        "file": printable(str(path)),
        "group": printable(record.group),
        "label": catalogue.classes[label] if label >= 0 else "",
        "part": part_of.get(record.key),
    }
