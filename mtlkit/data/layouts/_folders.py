"""Shared by the layouts: matching masks to images, and the findings about them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mtlkit._files import why_unreadable
from mtlkit._text import composed
from mtlkit.data.files import PICTURES, entries, image_stem
from mtlkit.data.names import Names, is_text
from mtlkit.data.records import Catalogue, Exam, Finding, Record, and_more
from mtlkit.errors import DataError


def inner(root: Path, names: Iterable[str], *parts: str) -> Path:
    """The folder that contains `parts`: `root`, or a subfolder from `names` that an archive unpacks to."""
    for folder in (root, *(root / name for name in names)):
        if all((folder / part).is_dir() for part in parts):
            return folder
    return root


def match_masks(images: Sequence[Path], masks: Sequence[Path]) -> tuple[dict[Path, list[Path]], list[Path]]:
    """Masks by their image, and masks without an image.

    The mask of "a" is "a", "a_mask", "a_anno", "a_segmentation" or "a_gt", and any of these with "_1", "_2", ...; names
    of images and masks may differ in case and Unicode normal form.
    """
    names = Names(image.stem for image in images)
    of_stem: dict[str, list[Path]] = defaultdict(list)
    orphans = []
    for mask in masks:
        stem = names.find(mask.stem, image_stem(mask.stem))
        (orphans if stem is None else of_stem[composed(stem)]).append(mask)
    return {image: of_stem[composed(image.stem)] for image in images}, orphans


def mask_findings(key: str, image: Path, masks: Sequence[Path], *, lesion: bool) -> Iterator[Finding]:
    """Finds images that do not have exactly one mask."""
    if not masks and lesion:
        yield Finding("error", "missing mask", image, "there is no mask of this image", key)
    if len(masks) > 1:
        yield Finding("note", "several masks", image, f"has {len(masks)} masks, which are merged")


def orphan_findings(orphans: Sequence[Path]) -> Iterator[Finding]:
    """Finds masks without an image."""
    for mask in orphans:
        yield Finding("warning", "mask without image", mask, "there is no image for this mask")


def stray_findings(folder: Path, known: Iterable[str] = ()) -> Iterator[Finding]:
    """Finds files and folders that do not belong to the layout."""
    if not folder.is_dir():
        return
    for path in entries(folder):
        if composed(path.name).lower() in known:
            continue
        if path.is_symlink() and not path.exists():
            yield Finding("error", "unreadable", path, why_unreadable(path) or "cannot be read")
        elif path.is_dir():
            yield Finding("warning", "unknown folder", path, "this folder is not part of the layout, and is not read")
        elif path.suffix.lower() not in PICTURES:
            yield Finding("note", "unknown file", path, "this is not an image, and is not read")


# --- records ----------------------------------------------------------------------------------------------------------


def sound(catalogue: Catalogue) -> Catalogue:
    """A catalogue without records that share a key or have unreadable files; these become errors."""
    alike: dict[str, list[Record | Exam]] = defaultdict(list)
    for record in catalogue.records:
        alike[record.key].append(record)
    findings = [finding for records in alike.values() for finding in _record_findings(catalogue.root, records)]
    return catalogue.without(findings)


def _record_findings(root: Path, records: Sequence[Record | Exam]) -> Iterator[Finding]:
    """The errors in the names and files of the records with one key."""
    for number, record in enumerate(records):
        key, first = record.key, record.files[0]
        if len(records) > 1:
            others = [other.files[0].relative_to(root) for i, other in enumerate(records) if i != number]
            text = f"has the same name, except for suffix or spelling, as {others[0]}{and_more(others)}: rename one"
            yield Finding("error", "same name", first, text, key)
        masks: dict[str, Path] = {}
        for path in record.files:
            if not is_text(path.relative_to(root)):
                yield Finding("error", "unreadable name", path, "its name is not text in UTF-8: rename it", key)
            elif (why := why_unreadable(path)) is not None:
                yield Finding("error", "unreadable", path, why, key)
        for mask in record.masks if isinstance(record, Record) else ():
            other = masks.setdefault(composed(str(mask.with_suffix(""))), mask)
            if other is not mask:
                text = f"has the same name, except for suffix or spelling, as {other.name}: which is the mask?"
                yield Finding("error", "same name", mask, text, key)


# --- classes ----------------------------------------------------------------------------------------------------------


def choose_classes(root: Path, known: Sequence[str], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The classes in use, in the order of their labels.

    Raises:
        DataError: a class is unknown.
    """
    classes = tuple(wanted or known)
    unknown = [name for name in classes if name not in known]
    if unknown or len(set(classes)) < len(classes):
        raise DataError(f"{root}: expected classes among {', '.join(known)}, each once, got {', '.join(classes)}")
    return classes


def class_findings(root: Path, classes: Sequence[str], labels: Iterable[int]) -> Iterator[Finding]:
    """Classes without any image."""
    seen = set(labels)
    for index, name in enumerate(classes):
        if index not in seen:
            yield Finding("error", "missing class", root, f"there is no image of class {name!r}")
