"""BUSI: 780 breast ultrasound images of three classes, with masks next to the images.

    [Dataset_BUSI_with_GT/]
        benign/     benign (1).png  benign (1)_mask.png  benign (1)_mask_1.png ...
        malignant/  ...
        normal/     normal (1).png  normal (1)_mask.png (black)

Source: Al-Dhabyani et al., "Dataset of breast ultrasound images" (2020). The data set does not name patients, so each
image is its own group.
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

NAME = "busi"
CLASSES = ("benign", "malignant", "normal")
ARCHIVES = ("Dataset_BUSI_with_GT", "BUSI")


def recognise(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    folder = inner(root, ARCHIVES, "benign")
    return any("_mask" in path.stem for name in CLASSES for path in pictures(folder / name))


def scan(root: Path, classes: Sequence[str] | None = None) -> Catalogue:
    """Lists the images; `classes` names those to use, in the order of their labels."""
    chosen = choose_classes(root, CLASSES, classes)
    folder = inner(root, ARCHIVES, "benign")
    records: list[Record] = []
    findings: list[Finding] = list(stray_findings(folder, (*CLASSES, "synthetic.json")))
    for label, name in enumerate(chosen):
        files = pictures(folder / name)
        images = [path for path in files if "_mask" not in path.stem]
        masks, orphans = match_masks(images, [path for path in files if "_mask" in path.stem])
        findings += [*orphan_findings(orphans), *stray_findings(folder / name)]
        for image in images:
            key, found = key_of(name, image), masks[image]
            findings += mask_findings(key, image, found, lesion=name != "normal")
            if found or name == "normal":
                records.append(Record(key, image, label, tuple(found), key))
    findings += class_findings(folder, chosen, (record.label for record in records))
    return Catalogue(NAME, root, chosen, tuple(records), tuple(findings))
