"""BUSI-WHU: 927 breast ultrasound images, benign and malignant, in either of its two published forms.

    {train,valid,test}/            the published partition; the class is in the file name, if known
        {img,images}/[ori/]  benign_0001.bmp
        {gt,masks}/[ori/]    benign_0001.bmp or benign_0001_anno.bmp
    {benign,malignant}/            without partition
        {img,images}/  ...
        {gt,masks}/    ...

Source: Huang et al., "BUSI_WHU: Breast Cancer Ultrasound Image Dataset" (Mendeley Data, 2025). The data set does not
name patients, so each image is its own group.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from mtlkit.data.files import pictures
from mtlkit.data.layouts._folders import (
    choose_classes,
    class_findings,
    inner,
    mask_findings,
    match_masks,
    orphan_findings,
    stray_findings,
)
from mtlkit.data.names import key_of
from mtlkit.data.records import Catalogue, Finding, Record

NAME = "busi_whu"
CLASSES = ("benign", "malignant")
SPLITS = {"train": "train", "valid": "val", "val": "val", "validation": "val", "test": "test"}
IMAGES, MASKS = ("img", "images"), ("gt", "masks")
ARCHIVES = ("BUSI_WHU", "BUSI-WHU", "BUSI_WHU Breast Cancer Ultrasound Image  Dataset")


def _files(folder: Path, names: Sequence[str]) -> list[Path]:
    return [path for name in names for sub in (name, f"{name}/ori") for path in pictures(folder / sub)]


def _parts(root: Path) -> Iterator[tuple[Path, str | None, str | None]]:
    """Each folder of images and masks, with its split and its class if the folder's name has it."""
    for folder in (root, *(root / name for name in ARCHIVES)):
        for name in (*SPLITS, *CLASSES):
            if any((folder / name / images).is_dir() for images in IMAGES):
                yield folder / name, SPLITS.get(name), name if name in CLASSES else None


def recognise(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return any(_files(folder, IMAGES) and _files(folder, MASKS) for folder, _, _ in _parts(root))


def scan(root: Path, classes: Sequence[str] | None = None) -> Catalogue:
    """Lists the images; `classes` names those to use, in the order of their labels."""
    chosen = choose_classes(root, CLASSES, classes)
    records: list[Record] = []
    findings: list[Finding] = []
    for folder, split, name in _parts(root):
        images = _files(folder, IMAGES)
        masks, orphans = match_masks(images, _files(folder, MASKS))
        findings += [*orphan_findings(orphans), *stray_findings(folder, (*IMAGES, *MASKS))]
        for image in images:
            kind = name or next((c for c in CLASSES if image.stem.lower().startswith(c)), None)
            if kind is not None and kind not in chosen:
                continue
            key, found = key_of(folder.name, image), masks[image]
            findings += mask_findings(key, image, found, lesion=True)
            if kind is None:
                text = "neither folder nor name says the class, so it stays unlabelled"
                findings.append(Finding("warning", "missing label", image, text))
            if found:
                label = -1 if kind is None else chosen.index(kind)
                records.append(Record(key, image, label, tuple(found), key, split))
    findings += stray_findings(inner(root, ARCHIVES), (*SPLITS, *CLASSES, "synthetic.json", *map(str.lower, ARCHIVES)))
    findings += class_findings(root, chosen, (record.label for record in records))
    return Catalogue(NAME, root, chosen, tuple(records), tuple(findings))
