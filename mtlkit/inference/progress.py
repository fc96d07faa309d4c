"""What a prediction has found so far, written as it comes, and taken up again after a kill.

A line for each image goes to a file within the folder, behind a first line that says which network, inputs and options
the prediction is of. Batches are made of the same images as without the kill, so that the same numbers come out.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from mtlkit._fields import Fields, read_fields
from mtlkit._output import OutputFolder
from mtlkit._text import shown
from mtlkit.data import Exam, Record
from mtlkit.data.files import print_of
from mtlkit.errors import DataError
from mtlkit.inference.inputs import MARK

JOURNAL = "rows"
DRAWINGS = ("mask", "overlay", "dicom_seg", "dicom_sr")  # columns of a row that name files


def now() -> str:
    """The local time in ISO 8601, without that of the zone, as DICOM tells it."""
    return datetime.now().isoformat(timespec="seconds")


def digest_of_records(records: Sequence[Record] | Sequence[Exam]) -> str:
    """Tells a list of images from others by their names, places and order."""
    value = 0
    for record in records:
        frame = record.frame if isinstance(record, Record) else None
        value = zlib.crc32(json.dumps([record.key, *map(str, record.files), frame]).encode(), value)
    return f"{value:08x}"


def saved_prediction(
    place: OutputFolder, about: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[str], list[str]] | None:
    """The rows, skipped files and remarks of a finished prediction; None if it has not ended.

    Raises:
        DataError: it is of another network, or of other inputs or options.
    """
    if not place.owns(MARK):
        return None
    saved = read_fields(place.path / MARK)
    _check_same(saved, about)
    rows = [dict(row.values) for row in saved.list_of_fields("rows")]
    place.journal(JOURNAL).remove()
    return rows, list(saved.texts("skipped")), list(saved.texts("remarks"))


def _check_same(saved: Fields, about: Mapping[str, Any]) -> None:
    for name, value in about.items():
        if (old := saved.get(name)) != value:
            words = f"{name}: expected {shown(old)}, of the prediction to be continued, got {shown(value)}"
            raise DataError(words, path=saved.path.parent)


class Progress:
    """The rows of a prediction that has not ended.

    Args:
        place: its folder.
        about: the network, the inputs and the options.
        records: what is predicted.
        batch_size: how many at once.

    Attributes:
        rows: those that are known, by the numbers of their records.
        problems: why records were left out, by their numbers.
        started: when the prediction began, before any interruption.

    Raises:
        DataError: the folder holds a prediction of another network, or of other inputs or options; or an image has
            changed since it was predicted.
    """

    def __init__(
        self,
        place: OutputFolder,
        about: Mapping[str, Any],
        records: Sequence[Record] | Sequence[Exam],
        batch_size: int,
    ) -> None:
        self.place, self.records, self.batch_size = place, records, batch_size
        self.rows: dict[int, dict[str, Any]] = {}
        self.problems: dict[int, str] = {}
        self._prints: dict[tuple[Path, ...], str] = {}
        self.started = now()
        self._journal = place.journal(JOURNAL)
        if not self._journal.lines:
            self._journal.append({**about, "started": self.started})
            return
        first, *lines = (Fields(self._journal.shown, line) for line in self._journal.lines)
        _check_same(first, about)
        self.started = first.text("started")
        for line in lines:
            self._take(line)
        place.resumable = True

    def _take(self, line: Fields) -> None:
        index = line.integer("record")
        if not 0 <= index < len(self.records):
            raise DataError(f"there is no record {index}", path=line.path)
        if line.text("print") != self._print(index):
            path = self.records[index].files[0]
            raise DataError("has changed since it was predicted, so that the prediction cannot be resumed", path=path)
        if "problem" in line.values:
            self.problems[index] = line.text("problem")
            return
        row = line.fields("row")
        drawings = [row.text(name) for name in DRAWINGS if row.values.get(name)]
        if all(self.place.owns(name) for name in drawings):
            self.rows[index] = dict(row.values)

    def _print(self, index: int) -> str:
        """Of the files of a record; "" where they cannot be read."""
        record = self.records[index]
        if record.files not in self._prints:
            try:
                self._prints[record.files] = print_of(record.files)
            except DataError:
                self._prints[record.files] = ""
        return self._prints[record.files]

    def end(self) -> None:
        """Leaves the rows to the files that are written last."""
        self._journal.remove()

    def left(self) -> list[list[int]]:
        """The batches in which something is not known, by the numbers of their records."""
        every = range(len(self.records))
        batches = [list(every[start : start + self.batch_size]) for start in every[:: self.batch_size]]
        return [batch for batch in batches if not all(i in self.rows or i in self.problems for i in batch)]

    def add_row(self, index: int, row: dict[str, Any]) -> None:
        """Keeps what is known of a record, whose drawings are written."""
        self._journal.append({"record": index, "print": self._print(index), "row": row})
        self.rows[index] = row
        self.place.resumable = True

    def add_problem(self, index: int, words: str) -> None:
        """Keeps why a record is left out."""
        if index not in self.problems:
            self._journal.append({"record": index, "print": self._print(index), "problem": words})
            self.problems[index] = words
