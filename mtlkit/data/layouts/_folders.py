"""What the layouts share: matching masks to images, and the findings that follow."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mtlkit.data.files import PICTURES, image_stem, natural
from mtlkit.data.records import Finding
from mtlkit.errors import DataError


def inner(root: Path, names: Iterable[str], *parts: str) -> Path:
    """The folder that holds `parts`: `root`, or the one of `names` in it that an archive unpacks to."""
    for folder in (root, *(root / name for name in names)):
        if all((folder / part).is_dir() for part in parts):
            return folder
    return root


def match_masks(images: Sequence[Path], masks: Sequence[Path]) -> tuple[dict[str, list[Path]], list[Path]]:
    """Masks by the stem of their image, and those that belong to none.

    The mask of "a" is "a", "a_mask", "a_anno", "a_segmentation" or "a_gt", and any of these with "_1", "_2", ...
    """
    stems = {image.stem for image in images}
    found: dict[str, list[Path]] = {stem: [] for stem in stems}
    orphans = []
    for mask in masks:
        stem = mask.stem if mask.stem in stems else image_stem(mask.stem)
        (found[stem] if stem in stems else orphans).append(mask)
    return found, orphans


def mask_findings(key: str, image: Path, masks: Sequence[Path], *, lesion: bool) -> Iterator[Finding]:
    """Whether an image has the one mask that it should have."""
    if not masks and lesion:
        yield Finding("error", "missing mask", image, "there is no mask of this image", key)
    if len(masks) > 1:
        yield Finding("note", "several masks", image, f"has {len(masks)} masks, which are merged")


def orphan_findings(orphans: Sequence[Path]) -> Iterator[Finding]:
    """Masks whose image is not there."""
    for mask in orphans:
        yield Finding("warning", "mask without image", mask, "there is no image that this mask belongs to")


def stray_findings(folder: Path, known: Iterable[str] = ()) -> Iterator[Finding]:
    """Files and folders that the layout has no place for."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir(), key=natural):
        if path.name.startswith(".") or path.name.lower() in known:
            continue
        if path.is_dir():
            yield Finding("warning", "unknown folder", path, "this folder is not part of the layout, and is not read")
        elif path.suffix.lower() not in PICTURES:
            yield Finding("note", "unknown file", path, "this is no image, and is not read")


def choose_classes(root: Path, known: Sequence[str], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The classes in use, in the order of their labels.

    Raises:
        DataError: one is not known.
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
