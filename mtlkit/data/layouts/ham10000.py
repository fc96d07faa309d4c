"""HAM10000: 10,015 dermatoscopic images of seven classes; several may show the same lesion.

    HAM10000_metadata.csv            lesion_id, image_id, dx, ... (also .tab, .txt, or without suffix)
    HAM10000_images_part_1/          ISIC_0024306.jpg ... (any folder HAM10000_images*)
    HAM10000_images_part_2/
    HAM10000_segmentations_lesion_tschandl/  ISIC_0024306_segmentation.png

Source: Tschandl et al., "The HAM10000 dataset" (2018). The lesion is the group that a split keeps together.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mtlkit._text import composed, shown
from mtlkit.data.files import column, entries, pictures, read_table
from mtlkit.data.layouts._folders import choose_classes, class_findings, mask_findings, match_masks, orphan_findings
from mtlkit.data.names import Names
from mtlkit.data.records import Catalogue, Finding, Record
from mtlkit.errors import DataError

NAME = "ham10000"
CLASSES = ("mel", "nv", "bcc", "akiec", "bkl", "df", "vasc")


def _table(root: Path) -> Path | None:
    tables = (path for path in entries(root) if path.name.startswith("HAM10000_metadata") and not path.is_dir())
    return next(tables, None)


def _files(root: Path, begin: str) -> list[Path]:
    folders = [path for path in entries(root) if path.name.startswith(begin)]
    return [path for folder in folders for path in (*pictures(folder), *_nested(folder))]


def _nested(folder: Path) -> list[Path]:
    """The folder, or the subfolder of the same name that an archive may unpack to."""
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
    files = _files(root, "HAM10000_images")
    masks, orphans = match_masks(files, _files(root, "HAM10000_segmentations"))
    images: dict[str, list[Path]] = defaultdict(list)  # several files with one name are reported later
    for file in files:
        images[composed(file.stem)].append(file)
    names = Names(images)
    records: list[Record] = []
    findings: list[Finding] = list(orphan_findings(orphans))
    listed = set()
    for number, row in enumerate(rows, start=2):
        if not any(row):
            continue
        if len(row) <= max(lesion, image_id, dx):
            findings.append(Finding("error", "short row", path, f"row {number} has only {len(row)} columns"))
            continue
        kind = row[dx].lower()
        key = names.find(row[image_id]) or row[image_id]
        if key in listed:
            findings.append(Finding("error", "listed twice", path, f"{key} is listed again in row {number}"))
            continue
        listed.add(key)
        if key not in images:
            text = f"there is no image {key} of row {number}"
            findings.append(Finding("error", "missing image", path, text, key))
        elif kind not in CLASSES:
            text = f"row {number} has the unknown class {shown(kind)}"
            findings.append(Finding("error", "unknown class", path, text, key))
        elif kind in chosen:
            for image in images[key]:
                found = masks[image]
                findings += mask_findings(key, image, found, lesion=True)
                if found:
                    records.append(Record(key, image, chosen.index(kind), tuple(found), row[lesion] or key))
    for key in images:
        if key not in listed:
            text = f"is not listed in {path.name}, which lists {len(listed)} images, and is not used"
            findings += [Finding("error", "missing row", image, text, key) for image in images[key]]
    findings += class_findings(root, chosen, (record.label for record in records))
    return Catalogue(NAME, root, chosen, tuple(records), tuple(findings))
