"""HAM10000: 10,015 dermatoscopic images of seven classes; several may show the same lesion.

    HAM10000_metadata.csv            lesion_id, image_id, dx, ... (also .tab, .txt, or without suffix)
    HAM10000_images_part_1/          ISIC_0024306.jpg ... (any folder HAM10000_images*)
    HAM10000_images_part_2/
    HAM10000_segmentations_lesion_tschandl/  ISIC_0024306_segmentation.png

Source: Tschandl et al., "The HAM10000 dataset" (2018). The lesion is the group that a split keeps together.
"""

from collections.abc import Sequence
from pathlib import Path

from mtlkit._text import shown
from mtlkit.data.files import column, pictures, read_table
from mtlkit.data.layouts._folders import choose_classes, class_findings, mask_findings, match_masks, orphan_findings
from mtlkit.data.records import Catalogue, Finding, Record
from mtlkit.errors import DataError

NAME = "ham10000"
CLASSES = ("mel", "nv", "bcc", "akiec", "bkl", "df", "vasc")


def _table(root: Path) -> Path | None:
    return next((path for path in sorted(root.glob("HAM10000_metadata*")) if path.is_file()), None)


def _files(root: Path, pattern: str) -> list[Path]:
    return [path for folder in sorted(root.glob(pattern)) for path in (*pictures(folder), *_nested(folder))]


def _nested(folder: Path) -> list[Path]:
    """An archive may unpack to a folder of its own name."""
    return pictures(folder / folder.name)


def recognise(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return _table(root) is not None


def scan(root: Path, classes: Sequence[str] | None = None) -> Catalogue:
    """Lists the images; `classes` names those to use, in the order of their labels."""
    chosen = choose_classes(root, CLASSES, classes)
    path = _table(root)
    if path is None:
        raise DataError(f"{root}: there is no HAM10000_metadata.csv")
    header, *rows = read_table(path) or [[]]
    lesion, image_id, dx = (column(header, path, name) for name in ("lesion_id", "image_id", "dx"))
    images = {image.stem: image for image in _files(root, "HAM10000_images*")}
    masks, orphans = match_masks(list(images.values()), _files(root, "HAM10000_segmentations*"))
    records: list[Record] = []
    findings: list[Finding] = list(orphan_findings(orphans))
    listed = set()
    for number, row in enumerate(rows, start=2):
        if not any(row):
            continue
        if len(row) <= max(lesion, image_id, dx):
            findings.append(Finding("error", "short row", path, f"row {number} has only {len(row)} columns"))
            continue
        key, kind = row[image_id], row[dx].lower()
        if key in listed:
            findings.append(Finding("error", "listed twice", path, f"{key} is listed again in row {number}"))
            continue
        listed.add(key)
        if key not in images:
            findings.append(Finding("error", "missing image", path, f"there is no image {key} of row {number}", key))
        elif kind not in CLASSES:
            findings.append(
                Finding("error", "unknown class", path, f"row {number} has the unknown class {shown(kind)}", key)
            )
        elif kind in chosen:
            found = masks[key]
            findings += mask_findings(key, images[key], found, lesion=True)
            if found:
                records.append(Record(key, images[key], chosen.index(kind), tuple(found), row[lesion] or key))
    for key, image in images.items():
        if key not in listed:
            findings.append(Finding("warning", "missing row", image, f"is not listed in {path.name}, and is not used"))
    findings += class_findings(root, chosen, (record.label for record in records))
    return Catalogue(NAME, root, chosen, tuple(records), tuple(findings))
