"""CMMD and TOMPEI-CMMD: mammograms of 1,775 patients as DICOM, two views of one or both breasts.

    [CMMD/]D1-0001/<study>/<series>/1-1.dcm ...      side and view are in the tags
    TOMPEI-CMMD_clinical_data_*.xlsx                 sheet "Imaging Diagnosis Details Sheet": ID, LeftRight,
                                                     classification, BI-RADS category
    CMMD_clinicaldata_revision.xlsx                  ID1, LeftRight, classification; no BI-RADS

TOMPEI's table is preferred to the other one (both may be .csv). Normal and benign are 0, malignant is 1; a malignant
lesion that the readers could not see on the image ("Invisible") is malignant; "Exclusion" is unknown. A breast without
image, or outside the selected BI-RADS categories, has label and BI-RADS -1; a patient without any label is left out.

Sources: Cui et al., "The Chinese Mammography Database" (2021); TOMPEI-CMMD (The Cancer Imaging Archive, 2025); the
subsets {1, 5}, {1, 3, 5} and all five: "A Hybrid CNN-VSSM model for Multi-View, Multi-Task Mammography Analysis"
(arXiv 2507.16955).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from mtlkit._text import composed, shown
from mtlkit.data.dicom import read_dicom_tags
from mtlkit.data.dicom_file import is_dicom
from mtlkit.data.files import column, entries, files_below, natural, read_table, subfolders
from mtlkit.data.records import VIEWS, Catalogue, Exam, Finding
from mtlkit.errors import DataError

NAME = "cmmd"
CLASSES = ("benign or normal", "malignant")
LABELS = {"normal": 0, "benign": 0, "malignant": 1, "invisible": 1, "exclusion": -1}
TABLES = ("TOMPEI*.xlsx", "TOMPEI*.csv", "CMMD_clinical*.xlsx", "CMMD_clinical*.csv")
SHEET = "Imaging Diagnosis Details Sheet"


@dataclass(frozen=True)
class _Breast:
    label: int
    birads: int | None


def _table(root: Path) -> Path | None:
    folders = (root, root.parent) if root.name == "CMMD" else (root,)
    files = [path for folder in folders for path in entries(folder)]
    return next((path for pattern in TABLES for path in files if fnmatchcase(path.name, pattern)), None)


def _patients(root: Path) -> list[Path]:
    """The folders of patients: those that contain DICOM files."""
    home = root / "CMMD" if (root / "CMMD").is_dir() else root
    return [folder for folder in subfolders(home) if next(_dicoms(folder), None) is not None]


def _dicoms(folder: Path) -> Iterator[Path]:
    return (path for path in files_below(folder) if is_dicom(path))


def recognise(root: Path) -> bool:
    """Whether the folder looks like this layout."""
    return _table(root) is not None


def _breasts(path: Path) -> tuple[dict[tuple[str, str], _Breast], bool, list[Finding]]:
    """The table's entry for each (patient, side), and whether it has BI-RADS."""
    rows = read_table(path, SHEET)
    top = next((i for i, row in enumerate(rows) if {"ID", "ID1"} & set(row)), None)
    if top is None:
        raise DataError(f"{path}: there is no column 'ID' or 'ID1'")
    header = rows[top]
    patient = column(header, path, "ID", "ID1")
    side, kind = column(header, path, "LeftRight"), column(header, path, "classification")
    birads = next((i for i, cell in enumerate(header) if cell.upper().replace("-", "").startswith("BIRADS")), None)
    table: dict[tuple[str, str], _Breast] = {}
    findings = []
    for number, row in enumerate(rows[top + 1 :], start=top + 2):
        if len(row) <= max(patient, side, kind) or not row[patient]:
            continue  # a second row of headings, or an empty one
        name, which = composed(row[patient]), row[side].upper()[:1]
        if which not in ("L", "R"):
            text = f"row {number} has the side {shown(row[side])} where L or R is expected"
            findings.append(Finding("error", "unknown side", path, text))
            continue
        label = LABELS.get(row[kind].lower(), -1)
        if row[kind].lower() not in LABELS:
            text = f"row {number} has the unknown classification {shown(row[kind])}"
            findings.append(Finding("warning", "unknown class", path, text))
        category = None
        if birads is not None and birads < len(row) and row[birads]:
            digit = re.match(r"[1-5](?!\d)", row[birads])
            category = int(digit.group()) if digit else None
            if category is None:
                text = f"row {number} has the BI-RADS category {shown(row[birads])} where 1 to 5 is expected"
                findings.append(Finding("warning", "unknown BI-RADS", path, text))
        if (name, which) in table:
            text = f"{row[patient]} {row[side]} is listed again in row {number}"
            findings.append(Finding("error", "listed twice", path, text))
            continue
        table[name, which] = _Breast(label, category)
    return table, birads is not None, findings


def _views(folder: Path, findings: list[Finding]) -> tuple[Path | None, ...]:
    """The files of a patient's views."""
    views: dict[str, Path] = {}
    for path in sorted(_dicoms(folder), key=natural):
        try:
            tags = read_dicom_tags(path)
        except DataError as error:
            findings.append(Finding("error", "unreadable", path, error.text))
            continue
        if tags.patient and composed(tags.patient) != composed(folder.name):
            text = f"belongs to patient {tags.patient} by its tags, but is in the folder of {folder.name}"
            findings.append(Finding("warning", "other patient", path, text))
        if tags.name is None:
            missing = " and ".join(what for what, tag in (("side", tags.side), ("view", tags.view)) if not tag)
            text = f"has no tag for its {missing} and is not used"
            findings.append(Finding("error", "missing tags", path, text))
        elif tags.name in views:
            text = f"is a second {tags.name}, after {views[tags.name].name}, and is not used"
            findings.append(Finding("warning", "view twice", path, text))
        else:
            views[tags.name] = path
    return tuple(views.get(name) for name in VIEWS)


def scan(root: Path, birads: Sequence[int] = (1, 2, 3, 4, 5)) -> Catalogue:
    """Lists the patients; `birads` names the BI-RADS categories to use, in the order of their labels."""
    chosen = tuple(birads)
    if not chosen or not set(chosen) <= {1, 2, 3, 4, 5} or len(set(chosen)) < len(chosen):
        raise DataError(f"{root}: expected BI-RADS categories among 1 to 5, each once, got {chosen}")
    path = _table(root)
    if path is None:
        raise DataError(f"{root}: there is no TOMPEI-CMMD_clinical_data_*.xlsx and no CMMD_clinicaldata_revision.xlsx")
    table, knows_birads, findings = _breasts(path)
    whole = len(chosen) == 5
    if not knows_birads and not whole:
        raise DataError(f"{path}: this table has no BI-RADS categories to select {chosen} from")
    exams = []
    folders = _patients(root)
    for folder in folders:
        name, views = composed(folder.name), _views(folder, findings)
        labels, categories = [], []
        for i, side in enumerate("LR"):
            breast = table.get((name, side))
            seen = any(views[2 * i : 2 * i + 2])
            if breast is not None and seen and (whole or breast.birads in chosen):
                labels.append(breast.label)
                categories.append(chosen.index(breast.birads) if breast.birads else -1)
            else:
                labels.append(-1)
                categories.append(-1)
            if seen and breast is None:
                text = f"its {'left' if side == 'L' else 'right'} breast is not listed in {path.name}: label unknown"
                findings.append(Finding("note", "missing row", folder, text))
            for what, view in zip(VIEWS[2 * i : 2 * i + 2], views[2 * i : 2 * i + 2], strict=True):
                if seen and view is None:
                    findings.append(Finding("warning", "missing view", folder, f"there is no view {what}"))
        if max(*labels, *categories) >= 0:
            exams.append(Exam(name, views, tuple(labels), tuple(categories), name))
        elif not any((name, side) in table for side in "LR"):
            findings.append(Finding("error", "missing row", folder, f"this patient is not listed in {path.name}"))
    for patient in sorted({patient for patient, _ in table} - {composed(folder.name) for folder in folders}):
        findings.append(Finding("error", "missing image", path, f"there is no folder of patient {patient}"))
    counted = {label for exam in exams for label in exam.labels}
    for label, name in enumerate(CLASSES):
        if label not in counted:
            findings.append(Finding("error", "missing class", root, f"there is no breast of class {name!r}"))
    for index, category in enumerate(chosen):
        if knows_birads and not any(index in exam.birads for exam in exams):
            text = f"there is no breast of BI-RADS category {category}"
            findings.append(Finding("error", "missing class", root, text))
    return Catalogue(NAME, root, CLASSES, tuple(exams), tuple(findings), chosen)
