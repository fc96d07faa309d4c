"""Saves the results of a prediction as they are computed, so that an interrupted prediction can be resumed.

The first line of a file in the output folder identifies network, inputs and options; one line for each image follows. A
resumed prediction forms the same batches as an uninterrupted one, so that it gives exactly the same results.
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
DRAWINGS = ("mask", "overlay", "dicom_seg", "dicom_sr")  # columns that contain file names


def now() -> str:
    """Returns the local time in ISO 8601 without time zone, as in DICOM."""
    return datetime.now().isoformat(timespec="seconds")


def digest_of_records(records: Sequence[Record] | Sequence[Exam]) -> str:
    """Returns a checksum of the names, paths and order of the records."""
    value = 0
    for record in records:
        frame = record.frame if isinstance(record, Record) else None
        value = zlib.crc32(json.dumps([record.key, *map(str, record.files), frame]).encode(), value)
    return f"{value:08x}"


def saved_prediction(
    place: OutputFolder, about: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[str], list[str]] | None:
    """Returns the rows, skipped files and remarks of a finished prediction; None if it is not finished.

    Raises:
        DataError: the prediction used another network, other inputs or other options.
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
    """The rows of an unfinished prediction.

    Args:
        place: the output folder.
        about: identifies network, inputs and options.
        records: images or exams to predict.
        batch_size: number of records in a batch.

    Attributes:
        rows: finished rows, by the index of their record.
        problems: reasons why records were left out, by the index of the record.
        started: start of the prediction, before any interruption; ISO 8601.

    Raises:
        DataError: the folder contains a prediction with another network, other inputs or other options; or an image
            has changed since it was predicted.
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
        """Returns a fingerprint of the files of a record; "" if they cannot be read."""
        record = self.records[index]
        if record.files not in self._prints:
            try:
                self._prints[record.files] = print_of(record.files)
            except DataError:
                self._prints[record.files] = ""
        return self._prints[record.files]

    def end(self) -> None:
        """Removes the saved rows, once the final files contain them."""
        self._journal.remove()

    def left(self) -> list[list[int]]:
        """Returns the unfinished batches, as indices of records."""
        every = range(len(self.records))
        batches = [list(every[start : start + self.batch_size]) for start in every[:: self.batch_size]]
        return [batch for batch in batches if not all(i in self.rows or i in self.problems for i in batch)]

    def add_row(self, index: int, row: dict[str, Any]) -> None:
        """Saves the row of a record; its mask, overlay and DICOM objects must have been written."""
        self._journal.append({"record": index, "print": self._print(index), "row": row})
        self.rows[index] = row
        self.place.resumable = True

    def add_problem(self, index: int, words: str) -> None:
        """Saves why a record is left out."""
        if index not in self.problems:
            self._journal.append({"record": index, "print": self._print(index), "problem": words})
            self.problems[index] = words
