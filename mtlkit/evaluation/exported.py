"""Evaluates an exported network next to its original."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mtlkit.data import Exam, Record
from mtlkit.evaluation.analysis import judge
from mtlkit.evaluation.predictions import predict_records
from mtlkit.training import SavedRun

FIGURES = "iou", "accuracy", "auc"  # last part of the metrics' names
POINT = 0.01


def in_session(run: SavedRun, session: Any) -> SavedRun:
    """A run whose network is replaced by a session of ONNX Runtime on its exported file.

    Args:
        run: a run from `load_run`; it is not changed.
        session: a session from `mtlkit.deploy.open_session`.

    Example:
        >>> from mtlkit.evaluation.exported import in_session
        >>> in_session(run, mtlkit.deploy.open_session("mbdi.onnx")).predict(batch)  # doctest: +SKIP
    """
    inputs, outputs = ([one.name for one in found] for found in (session.get_inputs(), session.get_outputs()))

    def answer(*given: Tensor, gates: Mapping[str, float | Tensor] | None = None) -> SimpleNamespace:
        if gates:
            raise ValueError("gates: expected None, because an exported file has no input for them")
        arrays = session.run(None, {name: one.numpy() for name, one in zip(inputs, given, strict=True)})
        return SimpleNamespace(**dict(zip(outputs, map(torch.from_numpy, arrays), strict=True)))

    model = copy.copy(run.model)
    model.forward = model.inspect = answer
    return replace(run, model=model)


def key_figures(
    run: SavedRun,
    records: Sequence[Record] | Sequence[Exam],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """IoU, accuracy and AUROC by name, if the network and the records provide them.

    Args:
        run: a run from `load_run` or `in_session`.
        records: records of a catalogue.
        progress: called with the number of processed records and the total.

    Example:
        >>> from mtlkit.evaluation.exported import key_figures
        >>> key_figures(run, catalogue.records)  # doctest: +SKIP
        {'iou': 0.77, 'accuracy': 0.88, 'auc': 0.96}
    """
    found = judge(predict_records(run, records, progress=progress), samples=0)["figures"]
    values = {name: figure.value for name, figure in found.items() if name.rpartition("/")[2] in FIGURES}
    return {name: float(value) for name, value in values.items() if value is not None and value == value}


def split_for_calibration(
    records: Sequence[Record] | Sequence[Exam], most: int
) -> tuple[list[Record | Exam], list[Record | Exam]]:
    """Records for calibration, at most half of them, and the held-out rest; groups (patients) are not split.

    Args:
        records: records of a catalogue.
        most: maximal number of records for calibration.

    Example:
        >>> from pathlib import Path
        >>> from mtlkit.data import Record
        >>> from mtlkit.evaluation.exported import split_for_calibration
        >>> images = [Record(name, Path(f"{name}.png"), 0, (), name[0]) for name in ("a1", "b1", "a2", "c1", "d1")]
        >>> [[record.key for record in part] for part in split_for_calibration(images, 2)]
        [['a1', 'a2'], ['b1', 'c1', 'd1']]
    """
    groups: dict[str, list[Record | Exam]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record)
    names = list(groups)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
    taken: set[str] = set()
    count, limit = 0, min(most, len(records) // 2)
    for name in (names[i] for i in order):
        if count + len(groups[name]) <= limit:
            taken.add(name)
            count += len(groups[name])
    chosen = [record for record in records if record.group in taken]
    return chosen, [record for record in records if record.group not in taken]
