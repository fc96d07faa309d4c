"""A layout for data of one's own.

    images/<class>/scan 1.png       PNG, JPEG, BMP, TIFF or DICOM
    masks/<class>/scan 1.png        of the same name, in any of these formats; scan 1_1.png, scan 1_2.png ...
                                    are merged with it
    groups.csv                      optional, columns image and group: which images belong together, as of one patient

The images of the classes normal, no_tumor and healthy need no mask. Without a folder masks/ at all, the images have
classes only.
"""

import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mtlkit._text import shown
from mtlkit.data.files import column, natural, pictures, read_table
from mtlkit.data.layouts._folders import (
    choose_classes,
    class_findings,
    mask_findings,
    match_masks,
    orphan_findings,
    stray_findings,
)
from mtlkit.data.records import WITHOUT_LESION, Catalogue, Finding, Record
from mtlkit.errors import DataError

NAME = "folder"
DICOM = (".dcm", ".dicom")


def recognise(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return (root / "images").is_dir() and any(path.is_dir() for path in (root / "images").iterdir())


def _images(folder: Path) -> list[Path]:
    files = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    return sorted([*pictures(folder), *(path for path in files if path.suffix.lower() in DICOM)], key=natural)


def _groups(root: Path) -> dict[str, str]:
    """Group by key, of groups.csv."""
    path = root / "groups.csv"
    if not path.is_file():
        return {}
    header, *rows = read_table(path) or [[]]
    image, group = column(header, path, "image"), column(header, path, "group")
    rows = [row for row in rows if len(row) > max(image, group) and row[image]]
    return {_key(row[image]): row[group] for row in rows}


def _key(name: str) -> str:
    """The key of the image that a table names: with separators of Windows, below images/ or not, in any normal form."""
    path = PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/")))
    return str(PurePosixPath(*path.parts[path.parts[:1] == ("images",) :])).removesuffix(path.suffix)


def scan(root: Path, classes: Sequence[str] | None = None) -> Catalogue:
    """Lists the images; `classes` names those to use, in the order of their labels; by default all, by the alphabet."""
    if not (root / "images").is_dir():
        raise DataError(f"{root}: there is no folder images")
    names = sorted(p.name for p in (root / "images").iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise DataError(f"{root / 'images'}: there is no folder of a class in it")
    chosen = choose_classes(root, names, classes)
    segmented, groups = (root / "masks").is_dir(), _groups(root)
    records: list[Record] = []
    findings: list[Finding] = list(stray_findings(root / "images", {name.lower() for name in names}))
    stray = set(groups)
    for label, name in enumerate(chosen):
        images = _images(root / "images" / name)
        masks, orphans = match_masks(images, _images(root / "masks" / name))
        findings += [
            *orphan_findings(orphans),
            *stray_findings(root / "images" / name, {p.name.lower() for p in images}),
        ]
        for image in images:
            key, found = f"{name}/{image.stem}", masks[image.stem]
            lesion = segmented and name not in WITHOUT_LESION
            findings += mask_findings(key, image, found, lesion=lesion)
            listed = unicodedata.normalize("NFC", key)
            if groups and listed not in groups:
                text = "is not listed in groups.csv, and counts as a group of its own"
                findings.append(Finding("warning", "missing group", image, text))
            stray.discard(listed)
            if found or not lesion:
                group = groups.get(listed, key)
                records.append(Record(key, image, label, tuple(found), group, None, segmented))
    if classes is None:
        for key in sorted(stray):
            text = f"lists {shown(key)}, of which there is no image"
            findings.append(Finding("warning", "missing image", root / "groups.csv", text))
    findings += class_findings(root / "images", chosen, (record.label for record in records))
    return Catalogue(NAME, root, chosen, tuple(records), tuple(findings))
