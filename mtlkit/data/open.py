"""Opens a data set: finds its layout, then lists its records."""

from pathlib import Path
from typing import Any

from mtlkit.data.layouts import scan
from mtlkit.data.pixels import MAX_PIXELS
from mtlkit.data.records import Catalogue
from mtlkit.data.validate import read_findings
from mtlkit.errors import DataError, UnusableError

__all__ = ["open_dataset"]


def open_dataset(
    root: str | Path, layout: str = "auto", *, skip_bad: bool = False, max_pixels: int = MAX_PIXELS, **options: Any
) -> Catalogue:
    """Opens a data set on disk and lists its records.

    Args:
        root: folder of the data set.
        layout: "busi", "busi_whu", "ham10000", "brisc", "cmmd" (also for TOMPEI-CMMD) or "folder"; "auto" detects the
            layout.
        skip_bad: whether to leave out unusable records; this reads every file once to find unreadable ones. Otherwise
            the first missing item raises an error, and an unreadable file raises one when it is read.
        max_pixels: the most that a frame may have, for `skip_bad`.
        **options: `classes` (names in the order of their labels, for all layouts except "cmmd"), or `birads` (the
            BI-RADS categories to use, for "cmmd": (1, 5), (1, 3, 5) or all five).

    Raises:
        DataError: the folder does not exist, has another layout, or is incomplete.
        ValueError: there is no such layout.

    Example:
        >>> import tempfile
        >>> from mtlkit.data import open_dataset, synthesize_ultrasound
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     synthesize_ultrasound(f"{folder}/busi", cases=6, size=64)
        ...     catalogue = open_dataset(f"{folder}/busi", classes=("benign", "malignant"))
        >>> len(catalogue), catalogue.classes, catalogue.records[0].key
        (5, ('benign', 'malignant'), 'benign/benign (1)')
    """
    catalogue = scan(root, layout, **options)
    return usable(catalogue, skip_bad=skip_bad, max_pixels=max_pixels)


def usable(catalogue: Catalogue, *, skip_bad: bool, max_pixels: int = MAX_PIXELS) -> Catalogue:
    """A catalogue without errors: raises the first error, or leaves out the records concerned.

    Raises:
        UnusableError: there is an error.
        DataError: nothing is left.
    """
    errors = [finding for finding in catalogue.findings if finding.level == "error"]
    if errors and not skip_bad:
        more = f"; {len(errors) - 1} more: `mtlkit data check` lists them" if len(errors) > 1 else ""
        raise UnusableError(f"{errors[0].text}{more}", path=errors[0].path)
    if skip_bad:
        catalogue = catalogue.without(read_findings(catalogue, max_pixels=max_pixels))
    if not catalogue.records:
        raise DataError(f"{catalogue.root}: it contains no usable image")
    return catalogue
