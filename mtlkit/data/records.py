"""What a data set holds: records of images or exams, and what was found to be missing or odd on the way."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mtlkit._text import printable
from mtlkit.errors import DataError

__all__ = ["VIEWS", "Catalogue", "Exam", "Finding", "Record"]

VIEWS = ("L-CC", "L-MLO", "R-CC", "R-MLO")
WITHOUT_LESION = ("normal", "no_tumor", "healthy")  # classes


@dataclass(frozen=True)
class Record:
    """One image with its lesion and its class.

    Args:
        key: its name within the data set, by which splits list it.
        image: the file.
        label: index into the catalogue's classes; -1 where the class is not known.
        masks: files of the lesion, to be merged; none stands for no lesion.
        group: what must stay on one side of a split: patient, lesion, or the image itself.
        split: "train", "val" or "test" where the data set says so.
        segmented: whether the mask is known; False for an image that has a class only.
        frame: which frame of a DICOM file that holds several, from 0.

    Example:
        >>> from pathlib import Path
        >>> from mtlkit.data import Record
        >>> Record("benign/1", Path("1.png"), 0, (Path("1_mask.png"),), "benign/1").segmented
        True
    """

    key: str
    image: Path
    label: int
    masks: tuple[Path, ...]
    group: str
    split: str | None = None
    segmented: bool = True
    frame: int | None = None

    @property
    def stratum(self) -> int:
        """What splits balance."""
        return self.label

    @property
    def without_lesion(self) -> bool:
        """Whether it is of a class that has no lesion, by the folder in its key."""
        return Path(self.key).parent.name in WITHOUT_LESION

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything it is read from."""
        return (self.image, *self.masks)


@dataclass(frozen=True)
class Exam:
    """One patient's mammograms.

    Args:
        key: the patient.
        views: the files of L-CC, L-MLO, R-CC and R-MLO (`VIEWS`); None where there is none.
        labels: of the left and the right breast: 0 normal or benign, 1 malignant, -1 not known or no image.
        birads: of the left and the right breast: index into the BI-RADS categories in use, or -1.
        group: what must stay on one side of a split.
        split: "train", "val" or "test" where the data set says so.

    Example:
        >>> from pathlib import Path
        >>> from mtlkit.data import Exam
        >>> Exam("D1-0001", (Path("1-1.dcm"), Path("1-2.dcm"), None, None), (1, -1), (2, -1), "D1-0001").stratum
        1
    """

    key: str
    views: tuple[Path | None, ...]
    labels: tuple[int, int]
    birads: tuple[int, int]
    group: str
    split: str | None = None

    @property
    def stratum(self) -> int:
        """What splits balance: the worse of the two breasts."""
        return max(self.labels)

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything it is read from."""
        return tuple(view for view in self.views if view is not None)


@dataclass(frozen=True)
class Finding:
    """Something missing or odd.

    Args:
        level: "error": what it concerns cannot be used; "warning": it can, but look at it; "note": good to know.
        kind: a short name, the same for all findings of a kind.
        path: where.
        text: what, as the end of a sentence that begins with the path.
        key: of the record that cannot be used.

    Example:
        >>> from pathlib import Path
        >>> from mtlkit.data import Finding
        >>> print(Finding("error", "missing mask", Path("a.png"), "has no mask"))
        a.png: has no mask
    """

    level: Literal["error", "warning", "note"]
    kind: str
    path: Path
    text: str
    key: str | None = None

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.text}")


@dataclass(frozen=True)
class Catalogue:
    """A data set as found on disk.

    Args:
        layout: the name of its layout.
        root: its folder.
        classes: names by label; for exams, those of a breast.
        records: in a fixed order.
        findings: what was missing or odd; records with an error are not among `records`.
        birads: the BI-RADS categories in use, for exams.

    Example:
        >>> import tempfile
        >>> from mtlkit.data import open_dataset, synthesize_ultrasound
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     synthesize_ultrasound(f"{folder}/busi", cases=6, size=64)
        ...     open_dataset(f"{folder}/busi").counts()
        {'benign': 3, 'malignant': 2, 'normal': 1}
    """

    layout: str
    root: Path
    classes: tuple[str, ...]
    records: tuple[Record, ...] | tuple[Exam, ...]
    findings: tuple[Finding, ...] = field(default=(), repr=False)
    birads: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    @property
    def mammography(self) -> bool:
        """Whether its records are exams of four views."""
        return bool(self.records) and isinstance(self.records[0], Exam)

    def counts(self) -> dict[str, int]:
        """Records, or breasts, of each class, and "not known" where there are such."""
        labels = Counter(label for r in self.records for label in (r.labels if isinstance(r, Exam) else (r.label,)))
        counts = {name: labels[index] for index, name in enumerate(self.classes)}
        return counts | ({"not known": labels[-1]} if labels[-1] else {})

    def subset(self, keys: Iterable[str]) -> "Catalogue":
        """The records of these keys, in their order.

        Raises:
            DataError: there is no such record.
        """
        by_key = {record.key: record for record in self.records}
        keys = list(keys)
        missing = [key for key in keys if key not in by_key]
        if missing:
            raise DataError(f"{self.root}: there is no record {missing[0]!r}{and_more(missing)}")
        return replace(self, records=tuple(by_key[key] for key in keys))

    def without(self, findings: Sequence[Finding]) -> "Catalogue":
        """What is left when the records that these errors concern are taken out; the findings are kept."""
        bad = {finding.key for finding in findings if finding.level == "error"}
        kept = tuple(record for record in self.records if record.key not in bad)
        return replace(self, records=kept, findings=(*self.findings, *findings))


def and_more(items: Sequence[object]) -> str:
    """What to say of the items after the first."""
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
