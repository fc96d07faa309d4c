"""Opening a data set: the layout by name or by looking, then its records."""

import inspect
from pathlib import Path
from typing import Any

from mtlkit.data.files import check_folder
from mtlkit.data.layouts import brisc, busi, busi_whu, cmmd, folder, ham10000
from mtlkit.data.records import Catalogue, DataError

__all__ = ["LAYOUTS", "open_dataset"]

# in the order in which they are tried on a folder
LAYOUTS = {layout.NAME: layout for layout in (busi, busi_whu, ham10000, brisc, cmmd, folder)}


def find_layout(root: Path) -> str:
    """The name of the layout that a folder has.

    Raises:
        DataError: none fits.
    """
    for name, layout in LAYOUTS.items():
        if layout.recognise(root):
            return name
    raise DataError(f"{root}: has none of the layouts {', '.join(LAYOUTS)}")


def scan(root: str | Path, layout: str = "auto", **options: Any) -> Catalogue:
    """As `open_dataset`, but errors are left among the findings."""
    if layout != "auto" and layout not in LAYOUTS:
        raise ValueError(f"layout: expected 'auto' or one of {', '.join(LAYOUTS)}, got {layout!r}")
    root = check_folder(root)
    try:
        name = find_layout(root) if layout == "auto" else layout
        known = inspect.signature(LAYOUTS[name].scan).parameters
        for option in options:
            if option not in known or option == "root":
                choices = ", ".join(n for n in known if n != "root")
                raise ValueError(f"{option}: the layout {name} has no such option, only {choices}")
        return LAYOUTS[name].scan(root, **options)
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read ({error.strerror or error})") from None


def open_dataset(root: str | Path, layout: str = "auto", *, skip_bad: bool = False, **options: Any) -> Catalogue:
    """The records of a data set on disk.

    Args:
        root: its folder.
        layout: "busi", "busi_whu", "ham10000", "brisc", "cmmd" (also for TOMPEI-CMMD) or "folder"; "auto" looks.
        skip_bad: leaves out what cannot be used, unreadable files among it, which costs reading every file once;
            otherwise the first thing that is missing raises, and an unreadable file raises when it is read.
        **options: `classes` (names in the order of their labels, for all layouts but "cmmd"), or `birads` (the BI-RADS
            categories in use, for "cmmd": (1, 5), (1, 3, 5) or all five).

    Raises:
        DataError: the folder is not there, has another layout, or something in it is missing.
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
    return usable(catalogue, skip_bad=skip_bad)


def usable(catalogue: Catalogue, *, skip_bad: bool) -> Catalogue:
    """A catalogue without errors: raises the first, or leaves out what they concern.

    Raises:
        DataError: there is an error, or nothing is left.
    """
    errors = [finding for finding in catalogue.findings if finding.level == "error"]
    if errors and not skip_bad:
        more = f"; {len(errors) - 1} more: `mtlkit data check` lists them" if len(errors) > 1 else ""
        raise DataError(f"{errors[0]}{more}")
    if skip_bad:
        from mtlkit.data.validate import read_findings

        catalogue = catalogue.without(read_findings(catalogue))
    if not catalogue.records:
        raise DataError(f"{catalogue.root}: there is not a single image in it that can be used")
    return catalogue
