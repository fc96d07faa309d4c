"""BRISC 2025: 6,000 contrast-enhanced T1 slices of the brain, of four classes, with an official test part.

    [brisc2025/]
        classification_task/{train,test}/{glioma,meningioma,pituitary,no_tumor}/brisc2025_train_00001_gl_ax_t1.jpg
        segmentation_task/{train,test}/{images,masks}/brisc2025_train_00001_gl_ax_t1.{jpg,png}

Source: Fateh et al., "BRISC: Annotated Dataset for Brain Tumor Segmentation and Classification" (arXiv 2506.14318).
Slices without tumour have no mask file; their mask is empty. The data set does not name patients, so each slice is its
own group.
"""

from collections.abc import Sequence
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
from mtlkit.errors import DataError

NAME = "brisc"
CLASSES = ("glioma", "meningioma", "pituitary", "no_tumor")


def recognise(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return (inner(root, ("brisc2025",), "classification_task") / "classification_task").is_dir()


def scan(root: Path, classes: Sequence[str] | None = None) -> Catalogue:
    """Lists the slices; `classes` names those to use, in the order of their labels."""
    chosen = choose_classes(root, CLASSES, classes)
    folder = inner(root, ("brisc2025",), "classification_task")
    if not (folder / "classification_task").is_dir():
        raise DataError(f"{root}: there is no folder classification_task")
    records: list[Record] = []
    findings: list[Finding] = []
    for split in ("train", "test"):
        part = folder / "classification_task" / split
        findings += stray_findings(part, CLASSES)
        slices = [(name, image) for name in CLASSES for image in pictures(part / name)]
        outlines = pictures(folder / "segmentation_task" / split / "masks")
        masks, orphans = match_masks([image for _, image in slices], outlines)
        findings += orphan_findings(orphans)
        for name, image in slices:
            if name not in chosen:
                continue
            key, found = key_of(f"{split}/{name}", image), masks[image]
            findings += mask_findings(key, image, found, lesion=name != "no_tumor")
            if found or name == "no_tumor":
                records.append(Record(key, image, chosen.index(name), tuple(found), key, split))
    findings += class_findings(folder, chosen, (record.label for record in records))
    for split in ("train", "test"):
        if records and not any(record.split == split for record in records):
            findings.append(Finding("error", "missing part", folder, f"there is no image of the {split} part"))
    return Catalogue(NAME, root, chosen, tuple(records), tuple(findings))
