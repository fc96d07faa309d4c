"""Publishes the network of a run in a folder or on the Hugging Face Hub, with a model card that has its metrics.

README.md            the model card
config.json          options of the network, and its origin
model.safetensors    parameters
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from mtlkit._fields import read_fields
from mtlkit._output import new_folder
from mtlkit.data.files import check_folder
from mtlkit.errors import DataError
from mtlkit.evaluation.runner import PHANTOMS
from mtlkit.models import Origin, Pretrained, Result
from mtlkit.models.card import is_figure
from mtlkit.training import SavedRun, load_run
from mtlkit.training.origin import stored_origin

__all__ = ["publish"]

KIND = "a published network"
METRICS = "metrics.json"  # of an evaluation
NOT_OURS = "is not as an evaluation writes it"


def publish(
    run: SavedRun | str | Path,
    out: str | Path | None = None,
    *,
    evaluations: Sequence[str | Path] = (),
    licence: str | None = None,
    repo_id: str | None = None,
    private: bool | None = None,
    force: bool = False,
) -> str | None:
    """Writes the network of a run with its model card, into a folder, to the Hugging Face Hub, or both.

    Args:
        run: a run from `load_run`, or its folder.
        out: the folder to write; None for no folder.
        evaluations: folders written by `evaluate` for this run; the card shows their metrics and intervals, the last
            one first. They replace the run's own metrics for the same part of the data.
        licence: licence of the weights: an identifier of the Hub, such as "cc-by-nc-4.0", or text.
        repo_id: "user/name" on the Hub for the upload; an edited card there is kept.
        private: whether to make a new repository on the Hub private.
        force: whether to replace the result of an earlier call, if it is unchanged.

    Returns:
        The address on the Hub, if it was uploaded.

    Raises:
        DataError: the run, an evaluation or the folder is invalid.
        ValueError: neither a folder nor a repository is given.

    Example:
        >>> from mtlkit.evaluation import publish
        >>> publish("runs/mbdi")
        Traceback (most recent call last):
        ValueError: out, repo_id: expected at least one of them
    """
    if out is None and repo_id is None:
        raise ValueError("out, repo_id: expected at least one of them")
    run = run if isinstance(run, SavedRun) else load_run(check_folder(run))
    model = cast(Pretrained, run.model)
    before, model.origin = model.origin, _with_evaluations(stored_origin(run), run, evaluations)
    try:
        if out is not None:
            with new_folder(out, KIND, force=force) as draft, TemporaryDirectory() as folder:
                draft.check_inputs(run.folder, *evaluations)
                model.save_pretrained(folder, licence=licence)
                for path in sorted(Path(folder).iterdir()):
                    with draft.file(path.name) as place:
                        shutil.copyfile(path, place)
        return None if repo_id is None else model.push_to_hub(repo_id, licence=licence, private=private)
    finally:
        model.origin = before


def _with_evaluations(origin: Origin, run: SavedRun, folders: Sequence[str | Path]) -> Origin:
    for folder in folders:
        origin = origin.with_result(_read_result(Path(folder), run))
    return origin


def _read_result(folder: Path, run: SavedRun) -> Result:
    """The defined metrics of an evaluation.

    Raises:
        DataError: it is not the folder of an evaluation, or not one of this run.
    """
    path = check_folder(folder) / METRICS
    if not path.is_file():
        raise DataError(f"{folder}: is not the folder of an evaluation; `mtlkit evaluate` makes one")
    found = read_fields(path, NOT_OURS)
    if "runs" in found.values:
        raise DataError(f"{folder}: is an evaluation of several runs; pass the folder of one run in it")
    if os.path.realpath(found.text("run")) != os.path.realpath(run.folder):
        raise DataError(f"{folder}: is an evaluation of {found.text('run')}, not of {run.folder}")
    figures = found.fields("figures")
    values = {}
    for name in figures.values:
        figure = figures.fields(name)
        value = figure.number("value", None)
        if value is not None and is_figure(name):
            values[name] = value, figure.number("low", None), figure.number("high", None)
    bootstrap, counts = found.fields("bootstrap"), found.fields("counts")
    samples, groups = bootstrap.integer("samples"), counts.integer("groups")
    words = f"percentiles 2.5 and 97.5 of {samples:,} bootstrap samples of {groups:,} patients or other groups"
    return Result(
        data=Path(found.text("data")).name,
        part=found.text("part"),
        figures=values,
        intervals=words if samples else "",
        images=counts.integer("images", None) or counts.integer("breasts", None),
        remarks=tuple(remark for remark in found.texts("remarks") if remark != PHANTOMS),
    )
