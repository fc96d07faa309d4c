"""Checks a data set before training: reads every file once and reports missing or odd items."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mtlkit.data.duplicates import Looks, NearDuplicate
from mtlkit.data.images import load_image
from mtlkit.data.layouts import scan
from mtlkit.data.masks import odd_mask, read_mask
from mtlkit.data.pixels import MAX_PIXELS, Loaded
from mtlkit.data.records import Catalogue, Exam, Finding, Record
from mtlkit.data.splits import load_split
from mtlkit.errors import DataError, MismatchError, TooLargeError

__all__ = ["Report", "check_dataset"]

SMALLEST = 32  # pixels per side, minimum for the networks here


@dataclass(frozen=True)
class Report:
    """The result of a check.

    Args:
        catalogue: the usable records.
        findings: missing or odd items, in the order of the check.
        near_duplicates: images that look alike but belong to different groups.
        parts: the part of the split of each record, by key, if there is a split.

    Example:
        >>> import tempfile
        >>> from mtlkit.data import check_dataset, synthesize_ultrasound
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     synthesize_ultrasound(f"{folder}/busi", cases=6, size=64)
        ...     check_dataset(f"{folder}/busi").ok
        True
    """

    catalogue: Catalogue
    findings: tuple[Finding, ...]
    near_duplicates: tuple[NearDuplicate, ...] = field(default=(), repr=False)
    parts: Mapping[str, str | None] = field(default_factory=dict, repr=False)

    @property
    def ok(self) -> bool:
        """Whether there is no error: the data set can be opened without leaving anything out."""
        return all(finding.level != "error" for finding in self.findings)

    def by_kind(self) -> dict[tuple[str, str], list[Finding]]:
        """Findings by level and kind: errors first, then frequent kinds first."""
        kinds: dict[tuple[str, str], list[Finding]] = {}
        for finding in self.findings:
            kinds.setdefault((finding.level, finding.kind), []).append(finding)
        order = ("error", "warning", "note")
        return dict(sorted(kinds.items(), key=lambda item: (order.index(item[0][0]), -len(item[1]))))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        catalogue = self.catalogue
        return {
            "layout": catalogue.layout,
            "root": str(catalogue.root),
            "records": len(catalogue),
            "groups": len({record.group for record in catalogue.records}),
            "classes": catalogue.counts(),
            "ok": self.ok,
            "findings": [
                {"level": f.level, "kind": f.kind, "path": str(f.path), "text": f.text} for f in self.findings
            ],
        }


KINDS: dict[type[DataError], str] = {MismatchError: "wrong size", TooLargeError: "too large"}


def _error(error: DataError, path: Path, key: str) -> Finding:
    return Finding("error", KINDS.get(type(error), "unreadable"), error.path or path, error.text, key)


def _remarks(path: Path, loaded: Loaded) -> list[Finding]:
    """The remarks about a file."""
    notes = [Finding("note", "reading", path, text) for text in loaded.remarks]
    return [*notes, *([Finding("warning", "contradicting spacing", path, loaded.conflict)] if loaded.conflict else [])]


def _check_record(record: Record, seen: dict[bytes, Record], max_pixels: int, looks: Looks | None) -> list[Finding]:
    try:
        loaded = load_image(record.image, record.frame, max_pixels)
    except DataError as error:
        return [_error(error, record.image, record.key)]
    image, findings = loaded.pixels, _remarks(record.image, loaded)
    height, width, _ = image.shape
    if min(height, width) < SMALLEST:
        text = f"has only {width} x {height} pixels"
        findings.append(Finding("warning", "small image", record.image, text))
    if image.min() == image.max():
        findings.append(Finding("warning", "blank image", record.image, "all pixels are the same"))
    digest = hashlib.sha256(np.ascontiguousarray(image).data).digest() + bytes(str(image.shape), "ascii")
    if digest in seen:
        other = seen[digest]
        text = f"shows the same as {other.image}"
        if other.label != record.label:
            findings.append(Finding("error", "duplicate of another class", record.image, text, record.key))
        else:
            findings.append(Finding("warning", "duplicate", record.image, text))
    elif looks is not None:
        looks.see(record, record.image, image)
    seen.setdefault(digest, record)
    try:
        mask = read_mask(record.masks, (height, width), max_pixels=max_pixels)
    except DataError as error:
        return [*findings, _error(error, record.image, record.key)]
    return [*findings, *odd_mask(record, mask)]


def _check_exam(exam: Exam, seen: dict[bytes, Path], max_pixels: int, looks: Looks | None) -> list[Finding]:
    findings = []
    for path in exam.files:
        try:
            loaded = load_image(path, None, max_pixels)
        except DataError as error:
            findings.append(_error(error, path, exam.key))
            continue
        findings += _remarks(path, loaded)
        image, pixels = loaded.pixels, loaded.pixels[..., 0]
        if (image != pixels[..., None]).any():
            findings.append(Finding("error", "colours", path, "has colours where a mammogram is grey", exam.key))
            continue
        if min(pixels.shape) < SMALLEST:
            text = f"has only {pixels.shape[1]} x {pixels.shape[0]} pixels"
            findings.append(Finding("warning", "small image", path, text))
        if pixels.max() == pixels.min():
            findings.append(Finding("warning", "blank image", path, "all pixels are the same"))
        digest = hashlib.sha256(np.ascontiguousarray(pixels).data).digest()
        if digest in seen:
            findings.append(Finding("warning", "duplicate", path, f"shows the same as {seen[digest]}"))
        elif looks is not None:
            looks.see(exam, path, image)
        seen.setdefault(digest, path)
    return findings


def read_findings(
    catalogue: Catalogue,
    progress: Callable[[int, int], None] | None = None,
    max_pixels: int = MAX_PIXELS,
    looks: Looks | None = None,
) -> list[Finding]:
    """Reads every file of the records once; `progress` is called with the number of processed records and the total.

    Images that are not exact duplicates of others are added to `looks`.
    """
    findings: list[Finding] = []
    seen: dict[bytes, Any] = {}
    for done, record in enumerate(catalogue.records, start=1):
        if isinstance(record, Exam):
            findings += _check_exam(record, seen, max_pixels, looks)
        else:
            findings += _check_record(record, seen, max_pixels, looks)
        if progress is not None:
            progress(done, len(catalogue))
    return findings


def check_dataset(
    root: str | Path,
    layout: str = "auto",
    *,
    split: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    max_pixels: int = MAX_PIXELS,
    **options: Any,
) -> Report:
    """Reads every file of a data set and reports missing or odd items.

    Errors concern unusable items: missing masks, rows, tags and classes, unreadable files, masks that differ in size
    from their image, the same image in two classes. Warnings concern usable items that need a look: duplicates, images
    that look alike but belong to different groups (see `near_duplicates`), empty masks, masks without image, missing
    views, contradicting tags on the pixel size. Notes give information, for example on merged masks and on how numbers
    of more than 8 bits were read.

    Args:
        root: folder of the data set.
        layout: as for `open_dataset`.
        split: a saved split; similar images in different parts of it are reported. By default the data set's own
            partition is used.
        progress: called with the number of processed records and the total.
        max_pixels: maximal number of pixels in a frame.
        **options: as for `open_dataset`.

    Raises:
        DataError: the folder does not exist, is empty, or has none of the layouts.
        ValueError: there is no such layout.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mtlkit.data import check_dataset, synthesize_ultrasound
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     synthesize_ultrasound(f"{folder}/busi", cases=6, size=64)
        ...     Path(folder, "busi/benign/benign (1)_mask.png").unlink()
        ...     [finding.kind for finding in check_dataset(f"{folder}/busi").findings]
        ['missing mask']
    """
    catalogue = scan(root, layout, **options)
    part_of: dict[str, str | None] = {record.key: record.split for record in catalogue.records}
    if split is not None:
        part_of = {key: part for part, keys in load_split(split, catalogue).parts().items() for key in keys}
    looks = Looks()
    findings = read_findings(catalogue, progress, max_pixels, looks)
    pairs = tuple(looks.pairs())
    catalogue = catalogue.without([*findings, *(_leak(pair, part_of) for pair in pairs)])
    return Report(catalogue, catalogue.findings, pairs, part_of)


def _leak(pair: NearDuplicate, part_of: Mapping[str, str | None]) -> Finding:
    """The finding for images that look alike, more severe if they are in two parts of a split."""
    parts = [part_of.get(record.key) for record in (pair.second, pair.first)]
    if None in parts or parts[0] == parts[1]:
        return Finding("warning", "near-duplicate", pair.files[1], f"{pair}, of another group")
    text = f"{pair}, of another group; one is in {parts[0]}, the other in {parts[1]}"
    return Finding("warning", "near-duplicate across parts", pair.files[1], text)
