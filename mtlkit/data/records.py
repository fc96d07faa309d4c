"""The contents of a data set: records of images or exams, and findings about missing or odd items."""

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
        key: name within the data set, as listed in splits.
        image: image file.
        label: index into the catalogue's classes; -1 if the class is unknown.
        masks: mask files of the lesion, which are merged; empty for no lesion.
        group: unit that a split must not divide: patient, lesion, or the image itself.
        split: "train", "val" or "test" if the data set defines it.
        segmented: whether the mask is known; False for an image with only a class.
        frame: index of the frame in a DICOM file with several, from 0.

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
        """Whether its class has no lesion, by the folder in its key."""
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
        views: the files of L-CC, L-MLO, R-CC and R-MLO (`VIEWS`); None for a missing one.
        labels: labels of the left and the right breast: 0 normal or benign, 1 malignant, -1 unknown or no image.
        birads: index into the BI-RADS categories in use for the left and the right breast, or -1.
        group: unit that a split must not divide.
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
        """The class that splits balance: the worse of the two breasts."""
        return max(self.labels)

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything it is read from."""
        return tuple(view for view in self.views if view is not None)


@dataclass(frozen=True)
class Finding:
    """Something missing or odd.

    Args:
        level: "error" for something unusable; "warning" for something usable that needs a look; "note" for information.
        kind: short name, the same for all findings of a kind.
        path: file or folder.
        text: end of a sentence that starts with the path.
        key: key of the record that cannot be used.

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
    """A data set on disk.

    Args:
        layout: name of its layout.
        root: its folder.
        classes: class names by label; for exams, the classes of a breast.
        records: records in a fixed order.
        findings: missing or odd items; records with an error are not among `records`.
        birads: BI-RADS categories in use, for exams.

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
        """Whether its records are exams with four views."""
        return bool(self.records) and isinstance(self.records[0], Exam)

    def counts(self) -> dict[str, int]:
        """The number of records, or breasts, of each class, and of those "not known" if there are any."""
        labels = Counter(label for r in self.records for label in (r.labels if isinstance(r, Exam) else (r.label,)))
        counts = {name: labels[index] for index, name in enumerate(self.classes)}
        return counts | ({"not known": labels[-1]} if labels[-1] else {})

    def subset(self, keys: Iterable[str]) -> "Catalogue":
        """The catalogue with only the records of these keys, in their order.

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
        """The catalogue without the records of these errors; the findings are kept."""
        bad = {finding.key for finding in findings if finding.level == "error"}
        kept = tuple(record for record in self.records if record.key not in bad)
        return replace(self, records=kept, findings=(*self.findings, *findings))


def and_more(items: Sequence[object]) -> str:
    """Counts the items after the first, for messages."""
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
