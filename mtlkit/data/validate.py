"""Checking a data set before any training: every file is read once, and what is missing or odd is told."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtlkit.data.images import load_image
from mtlkit.data.layouts import scan
from mtlkit.data.masks import odd_mask, read_mask
from mtlkit.data.pixels import MAX_PIXELS
from mtlkit.data.records import Catalogue, Exam, Finding, Record
from mtlkit.errors import DataError, MismatchError, TooLargeError

__all__ = ["Report", "check_dataset"]

SMALLEST = 32  # pixels a side, below which no network here has anything to look at


@dataclass(frozen=True)
class Report:
    """What a check found.

    Args:
        catalogue: the records that can be used.
        findings: what was missing or odd, in the order in which it was met.

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

    @property
    def ok(self) -> bool:
        """Whether there is no error: the data set can be opened without leaving anything out."""
        return all(finding.level != "error" for finding in self.findings)

    def by_kind(self) -> dict[tuple[str, str], list[Finding]]:
        """Findings by level and kind: errors first, the frequent kinds first."""
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


KINDS = {MismatchError: "wrong size", TooLargeError: "too large"}


def _error(error: DataError, path: Path, key: str) -> Finding:
    return Finding("error", KINDS.get(type(error), "unreadable"), error.path or path, error.text, key)


def _remarks(path: Path, remarks: Sequence[str]) -> list[Finding]:
    return [Finding("note", "reading", path, text) for text in remarks]


def _check_record(record: Record, seen: dict[bytes, Record], max_pixels: int) -> list[Finding]:
    try:
        image, _, remarks = load_image(record.image, record.frame, max_pixels)
    except DataError as error:
        return [_error(error, record.image, record.key)]
    findings = _remarks(record.image, remarks)
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
    seen.setdefault(digest, record)
    try:
        mask = read_mask(record.masks, (height, width), max_pixels=max_pixels)
    except DataError as error:
        return [*findings, _error(error, record.image, record.key)]
    return [*findings, *odd_mask(record, mask)]


def _check_exam(exam: Exam, seen: dict[bytes, Path], max_pixels: int) -> list[Finding]:
    findings = []
    for path in exam.files:
        try:
            image, _, remarks = load_image(path, None, max_pixels)
        except DataError as error:
            findings.append(_error(error, path, exam.key))
            continue
        findings += _remarks(path, remarks)
        pixels = image[..., 0]
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
        seen.setdefault(digest, path)
    return findings


def read_findings(
    catalogue: Catalogue, progress: Callable[[int, int], None] | None = None, max_pixels: int = MAX_PIXELS
) -> list[Finding]:
    """Reads every file of the records once; `progress` is told how many of how many records are done."""
    findings: list[Finding] = []
    seen: dict[bytes, Any] = {}
    for done, record in enumerate(catalogue.records, start=1):
        if isinstance(record, Exam):
            findings += _check_exam(record, seen, max_pixels)
        else:
            findings += _check_record(record, seen, max_pixels)
        if progress is not None:
            progress(done, len(catalogue))
    return findings


def check_dataset(
    root: str | Path,
    layout: str = "auto",
    *,
    progress: Callable[[int, int], None] | None = None,
    max_pixels: int = MAX_PIXELS,
    **options: Any,
) -> Report:
    """Reads every file of a data set and tells what is missing or odd.

    Errors concern what cannot be used: missing masks, rows, tags and classes, unreadable files, masks of another size
    than their image, the same image in two classes. Warnings concern what can be used and should be looked at:
    duplicates, empty masks, masks without image, missing views. Notes are for information, as on merged masks and on
    how numbers of more than 8 bits were read.

    Args:
        root: its folder.
        layout: as for `open_dataset`.
        progress: called with the number of records done and that of all.
        max_pixels: the most that a frame may have.
        **options: as for `open_dataset`.

    Raises:
        DataError: the folder is not there, is empty, or has none of the layouts.
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
    catalogue = catalogue.without(read_findings(catalogue, progress, max_pixels))
    return Report(catalogue, catalogue.findings)
