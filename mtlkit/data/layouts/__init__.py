"""The layouts of public data sets on disk: one file per layout, each with `recognise` and `scan`."""

import inspect
from pathlib import Path
from typing import Any

from mtlkit.data.files import check_folder
from mtlkit.data.layouts import brisc, busi, busi_whu, cmmd, folder, ham10000
from mtlkit.data.layouts._folders import sound
from mtlkit.data.records import Catalogue
from mtlkit.errors import DataError

# in the order in which "auto" tries them
LAYOUTS = {layout.NAME: layout for layout in (busi, busi_whu, ham10000, brisc, cmmd, folder)}


def find_layout(root: Path) -> str:
    """The name of the layout that a folder has.

    Raises:
        DataError: no layout fits.
    """
    for name, layout in LAYOUTS.items():
        if layout.recognise(root):
            return name
    raise DataError(f"{root}: has none of the layouts {', '.join(LAYOUTS)}")


def scan(root: str | Path, layout: str = "auto", **options: Any) -> Catalogue:
    """`open_dataset`, except that errors stay among the findings."""
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
        return sound(LAYOUTS[name].scan(root, **options))
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read ({error.strerror or error})") from None
