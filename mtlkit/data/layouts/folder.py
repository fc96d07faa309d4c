"""A layout for your own data.

    images/<class>/scan 1.png       PNG, JPEG, BMP, TIFF or DICOM
    masks/<class>/scan 1.png        with the same name, in any of these formats; scan 1_1.png, scan 1_2.png ...
                                    are merged with it
    groups.csv                      optional, columns image and group: images that belong together, for example to one
                                    patient; if it exists, it must list every image

The images of the classes normal, no_tumor and healthy need no mask. Without a folder masks/, the images have only
classes. Names of images in groups.csv may have backslashes, a leading images/, a suffix or none, and another case.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtlkit._text import composed, shown
from mtlkit.data.files import DICOM, PICTURES, column, entries, pictures, read_table, subfolders
from mtlkit.data.layouts._folders import (
    choose_classes,
    class_findings,
    mask_findings,
    match_masks,
    orphan_findings,
    stray_findings,
)
from mtlkit.data.names import Names, folded, key_of
from mtlkit.data.records import WITHOUT_LESION, Catalogue, Finding, Record
from mtlkit.errors import DataError

NAME = "folder"
IMAGES = (*PICTURES, *DICOM)
GROUPS = "groups.csv"
NEARLY = re.compile(r"groups?(\.(csv|tsv|tab|txt|xlsx?|ods))*", re.IGNORECASE)  # accepted variants of the name


def recognise(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return bool(subfolders(root / "images"))


# --- groups -----------------------------------------------------------------------------------------------------------


@dataclass
class _Groups:
    """The groups in groups.csv; without it, each image is its own group."""

    path: Path | None = None
    of_key: dict[str, str] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)  # names without an image
    findings: list[Finding] = field(default_factory=list)

    def finding(self, image: Path, key: str) -> Finding | None:
        """The error for an image that is not listed."""
        if self.path is None or key in self.of_key:
            return None
        instead = (
            f"{shown(self.strays[0])}, for which there is no image" if self.strays else f"{len(self.of_key)} others"
        )
        text = f"is {shown(key)}, which {self.path.name} does not list; it lists {instead}"
        return Finding("error", "missing group", image, text, key)


def _table(root: Path) -> Path | None:
    """The table of groups; the case of its name does not matter.

    Raises:
        DataError: there are several tables, or one with a misspelt name.
    """
    tables = [path for path in entries(root) if NEARLY.fullmatch(path.name) and not path.is_dir()]
    for path in tables:
        if folded(path.name) != GROUPS or len(tables) > 1:
            raise DataError(f"expected one table of groups with the name {GROUPS}, got {path.name}", path=path)
    return tables[0] if tables else None


def _groups(root: Path, images: Mapping[str, Path]) -> _Groups:
    """The groups of images by their keys, and rows of the table without an image."""
    path = _table(root)
    if path is None:
        return _Groups()
    header, *rows = read_table(path) or [[]]
    image, group = column(header, path, "image"), column(header, path, "group")
    names, found = Names(images), _Groups(path)
    spelt: dict[str, str] = {}
    listed: dict[str, int] = {}
    for number, row in enumerate(rows, start=2):
        name, called = (row[place] if place < len(row) else "" for place in (image, group))
        if not name and not called:
            continue
        key = names.find(name)
        if not name or not called:
            text = f"row {number} names no {'group' if name else 'image'}"
            found.findings.append(Finding("error", "short row", path, text, key))
            continue
        called = spelt.setdefault(folded(called), called)
        if key is None:
            found.strays.append(name)
        elif found.of_key.setdefault(key, called) != called:
            text = f"rows {listed[key]} and {number} list {shown(key)} in the groups {shown(found.of_key[key])} and "
            found.findings.append(Finding("error", "listed twice", path, f"{text}{shown(called)}", key))
        if key is not None:
            listed.setdefault(key, number)
    missing = next((key for key in images if key not in found.of_key), None)
    for name in found.strays:
        text = f"lists {shown(name)}, for which there is no image"
        text += "" if missing is None else f", and does not list {shown(missing)}"
        found.findings.append(Finding("error", "missing image", path, text))
    return found


# --- images -----------------------------------------------------------------------------------------------------------


def scan(root: Path, classes: Sequence[str] | None = None) -> Catalogue:
    """Lists the images; `classes` names those to use, in the order of their labels; by default all, sorted by name."""
    if not (root / "images").is_dir():
        raise DataError(f"{root}: there is no folder images")
    folders = _classes(root / "images")
    chosen = choose_classes(root, tuple(folders), None if classes is None else [composed(name) for name in classes])
    images = {name: pictures(folder, IMAGES) for name, folder in folders.items()}
    groups = _groups(root, {key_of(name, image): image for name, files in images.items() for image in files})
    segmented, masks_of = (root / "masks").is_dir(), _mask_folders(root / "masks", folders)
    findings: list[Finding] = [*_stray_findings(root, folders, masks_of), *groups.findings]
    records: list[Record] = []
    bad = {finding.key for finding in groups.findings}
    for label, name in enumerate(chosen):
        masks, orphans = match_masks(images[name], pictures(masks_of[name], IMAGES) if name in masks_of else [])
        findings += [*orphan_findings(orphans), *stray_findings(folders[name], _lower(images[name]))]
        for image in images[name]:
            key, found = key_of(name, image), masks[image]
            lesion = segmented and name not in WITHOUT_LESION
            findings += mask_findings(key, image, found, lesion=lesion)
            if (missing := groups.finding(image, key)) is not None:
                findings.append(missing)
            elif key not in bad and (found or not lesion):
                group = groups.of_key.get(key, key)
                records.append(Record(key, image, label, tuple(found), group, None, segmented))
    findings += class_findings(root / "images", chosen, (record.label for record in records))
    return Catalogue(NAME, root, chosen, tuple(records), tuple(findings))


def _classes(images: Path) -> dict[str, Path]:
    """The folders of the classes by name, in alphabetical order.

    Raises:
        DataError: there is none, or two have the same name.
    """
    folders: dict[str, Path] = {}
    for path in subfolders(images):
        other = folders.setdefault(composed(path.name), path)
        if other is not path:
            raise DataError("has the same name as another folder, except for Unicode normal form or case", path=path)
    if not folders:
        raise DataError(f"{images}: it contains no folder of a class")
    return dict(sorted(folders.items()))


def _mask_folders(masks: Path, classes: Mapping[str, Path]) -> dict[str, Path]:
    """The folders of masks by class, ignoring the case of their names."""
    names, found = Names(classes), dict[str, Path]()
    for folder in sorted(subfolders(masks), key=lambda folder: composed(folder.name) not in classes):
        if (name := names.find(folder.name)) is not None:
            found.setdefault(name, folder)
    return found


def _lower(paths: Iterable[Path]) -> set[str]:
    return {composed(path.name).lower() for path in paths}


def _stray_findings(root: Path, classes: Mapping[str, Path], masks: Mapping[str, Path]) -> Iterator[Finding]:
    """Finds images and masks outside the folders of classes."""
    for folder, known in ((root / "images", classes), (root / "masks", masks)):
        files = [path for path in pictures(folder, IMAGES) if not path.is_dir()]
        yield from stray_findings(folder, _lower([*known.values(), *files]))
        for path in files:
            yield Finding("warning", "unknown file", path, "is not in the folder of a class, and is not read")
