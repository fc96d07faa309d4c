"""Runs compared on the same images: differences with intervals and tests, as a table, as JSON, and as figures.

comparison.json                  every metric of every run, and its difference from the first run's
comparison.csv comparison.md     the same as tables
curves.png                       loss and accuracy by epoch, of training and validation
gates.png                        the mean gates by epoch, of training and validation
masks.png                        masks of all runs on the same images, with the true outline
features.png                     the classifier's features of each image, by t-SNE

Differences have bootstrap intervals, with groups resampled as in an evaluation and the same samples for both runs.
Masks are tested by Wilcoxon's signed-rank test on the IoU and Dice of the images, classes by McNemar's exact test, and
areas under the ROC curve of a positive class by DeLong's test. With several runs, p-values are adjusted by Holm's
method over the runs.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mtlkit
from mtlkit._files import csv_text, markdown_table, plain
from mtlkit._output import new_folder
from mtlkit._text import escape_markdown
from mtlkit.data.files import natural
from mtlkit.errors import DataError
from mtlkit.evaluation.bootstrap import Array, Figure, classification, intervals, score_means
from mtlkit.evaluation.comparison_plots import draw_comparison
from mtlkit.evaluation.predictions import Predictions, predict_records
from mtlkit.evaluation.runner import choose_records, progress_within
from mtlkit.evaluation.significance import delong, mcnemar, wilcoxon
from mtlkit.metrics import positive_class
from mtlkit.training import load_run
from mtlkit.training.aggregate import digits_of, holm
from mtlkit.training.saved_run import MARK
from mtlkit.training.tasks import CLASS, HEADS

__all__ = ["compare", "name_runs"]

KIND = "a comparison"  # kind of its folders
TESTED_SCORES = ("iou", "dice")


def compare(
    runs: Sequence[str | Path],
    data: str | Path | None,
    out: str | Path,
    *,
    part: str | None = None,
    samples: int = 2000,
    seed: int = 0,
    examples: int = 4,
    tsne: bool = False,
    batch_size: int | None = None,
    max_pixels: int | None = None,
    device: torch.device | str | None = None,
    skip_bad: bool = False,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Compares runs with the first one on the same images, and writes a folder with tables and plots.

    Args:
        runs: folders of runs, at least two; the folder of an ablation or of repeats means all runs in it.
        data: folder of the data set; None for that of the first run.
        out: folder to write, atomically.
        part: "test", "val", "train" or "all"; by default as for `evaluate`.
        samples: number of bootstrap samples for the intervals; 0 for no intervals.
        seed: seed of the bootstrap and of t-SNE.
        examples: number of images to show with the masks of all runs.
        tsne: whether to plot the features of the classifiers by t-SNE.
        batch_size: batch size; by default that of each run's own evaluation.
        max_pixels: maximal number of pixels in a frame; by default as in each recipe.
        device: device of the networks.
        skip_bad: whether to leave out unusable records of the data set instead of raising an error.
        force: whether to replace an earlier comparison.
        progress: called with the number of processed images and the total, over all runs.

    Returns:
        The content of comparison.json.

    Raises:
        DataError: a run, the data set or the folder is invalid, or the runs differ in tasks, classes or images.
        ValueError: there are fewer than two runs, or an option is out of range.

    Example:
        >>> from mtlkit.evaluation import compare
        >>> compare(["runs/mbdi"], None, "comparison")
        Traceback (most recent call last):
        ValueError: runs: expected at least two, got runs/mbdi
    """
    if samples < 0 or examples < 0 or seed < 0:
        name, value = next((n, v) for n, v in (("samples", samples), ("examples", examples), ("seed", seed)) if v < 0)
        raise ValueError(f"{name}: expected at least 0, got {value}")
    folders = name_runs(runs)
    if len(folders) < 2:
        raise ValueError(f"runs: expected at least two, got {', '.join(map(str, runs)) or 'none'}")
    with new_folder(out, KIND, force=force) as draft:
        draft.check_inputs(*folders.values(), data)
        found: dict[str, Predictions] = {}
        for number, (name, folder) in enumerate(folders.items()):
            run = load_run(folder, device=device).adjusted(max_pixels)
            root = data if data is not None else (next(iter(found.values())).run.data if found else run.data)
            draft.check_inputs(root)
            chosen, records, _ = choose_records(run, run.open_data(root, skip_bad=skip_bad), part, skip_bad)
            told = None if progress is None else progress_within(progress, number, len(folders))
            part = chosen
            found[name] = predict_records(run, records, batch_size=batch_size, features=tsne, progress=told)
            _check_alike(found)
        comparison = judge_pairs(found, samples, seed)
        about = {
            "mtlkit": mtlkit.__version__,
            "part": part,
            "images": len(next(iter(found.values()))),
            "runs": {name: str(Path(folder).resolve()) for name, folder in folders.items()},
            "bootstrap": {"samples": samples, "seed": seed},
        }
        for name, png in draw_comparison(found, examples=examples, seed=seed).items():
            with draft.file(f"{name}.png") as file:
                file.write_bytes(png)
        rows = comparison_rows(comparison)
        draft.write_text("comparison.csv", csv_text(rows))
        draft.write_text("comparison.md", "\n".join(_markdown(list(found), part, rows)) + "\n")
        values = plain(about | {"figures": comparison})
        draft.write_json("comparison.json", values)
    return values


def name_runs(runs: Sequence[str | Path]) -> dict[str, Path]:
    """The folders of runs by unique names; the folder of an ablation or of repeats means all runs in it.

    Raises:
        DataError: a run is given twice.
    """
    folders: list[Path] = []
    for given in map(Path, runs):
        marks = () if (given / MARK).is_file() else (f"*/{MARK}", f"*/*/{MARK}")
        folders += sorted((path.parent for mark in marks for path in given.glob(mark)), key=natural) or [given]
    paths = [folder.resolve() for folder in folders]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise DataError(f"{twice}: expected different runs, but this one is given twice")
    for depth in range(1, max((len(path.parts) for path in paths), default=1)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return dict(zip(names, folders, strict=True))
    return {str(path): folder for path, folder in zip(paths, folders, strict=True)}


def _check_alike(found: dict[str, Predictions]) -> None:
    """Raises unless the last run was evaluated on the same records as the first."""
    first, name = next(iter(found)), next(reversed(found))
    a, b = found[first], found[name]
    for what, of_a, of_b in (
        ("tasks", a.run.config.task, b.run.config.task),
        ("classes", a.run.tasks, b.run.tasks),
    ):
        if of_a != of_b:
            raise DataError(f"expected runs of the same {what}, but {first} has {of_a}, {name} {of_b}")
    images, others = ([record.key for record in p.records] for p in (a, b))
    if images != others:
        only = {first: sorted(set(images) - set(others)), name: sorted(set(others) - set(images))}
        words = "; ".join(f"only {run} has {len(keys)}, such as {keys[0]!r}" for run, keys in only.items() if keys)
        words = words or "both have them in another order"
        raise DataError(f"expected runs over the same images, but {first} and {name} have different ones: {words}")


# --- figures ----------------------------------------------------------------------------------------------------------


def judge_pairs(found: Mapping[str, Predictions], samples: int = 2000, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Every metric of every run, and its difference from the first run's.

    Returns:
        By metric and run: "value", a Figure; and for all runs except the first "difference", a Figure, "test", "p" and
        "p_adjusted", which are None if there is no test for the metric.
    """
    (first, baseline), *others = found.items()
    figures = intervals(lambda weights: _values(weights, found), baseline.groups, samples, seed)
    comparison: dict[str, dict[str, Any]] = {}
    for name in [name for run, name, what in figures if run == first and what == "value"]:
        tests = {run: _test(name, p, baseline) for run, p in others}
        adjusted = holm([p for _, p in tests.values()])
        comparison[name] = {first: {"value": figures[first, name, "value"]}}
        for (run, (test, p)), p_adjusted in zip(tests.items(), adjusted, strict=True):
            values = {what: figures[run, name, what] for what in ("value", "difference")}
            comparison[name][run] = values | {"test": test, "p": p, "p_adjusted": p_adjusted}
    return comparison


def _values(weights: Array, found: Mapping[str, Predictions]) -> dict[tuple[str, str, str], Array]:
    """By run and metric, its value and its difference from the first run's."""
    values: dict[tuple[str, str, str], Array] = {}
    first = next(iter(found))
    for run, predictions in found.items():
        for name, value in _figures(weights, predictions).items():
            values[run, name, "value"] = value
            if run != first:
                values[run, name, "difference"] = value - values[first, name, "value"]
    return values


def _figures(weights: Array, predictions: Predictions) -> dict[str, Array]:
    found = dict(score_means(weights, predictions.scores))
    for task, labels in predictions.labels.items():
        positive = predictions.positive if task == CLASS.name else None
        values = classification(weights, predictions.probabilities[task], labels, positive)
        found |= {HEADS[task].prefix + name: v for name, v in values.items() if isinstance(name, str)}
    return found


def _test(figure: str, predictions: Predictions, baseline: Predictions) -> tuple[str | None, float]:
    """The name of the test for a metric, and its p-value."""
    if figure in TESTED_SCORES:
        return "Wilcoxon", wilcoxon(predictions.scores[figure], baseline.scores[figure])
    for task, labels in predictions.labels.items():
        prefix, known = HEADS[task].prefix, labels >= 0
        if figure == f"{prefix}accuracy":
            right = [(p.predicted(task) == labels)[known] for p in (predictions, baseline)]
            return "McNemar", mcnemar(*right)
        shares = predictions.probabilities[task]
        positive = positive_class(shares.shape[1], predictions.positive if task == CLASS.name else None)
        if figure == f"{prefix}auc" and shares.shape[1] == 2 and positive is not None:
            scores = [p.probabilities[task][known, positive] for p in (predictions, baseline)]
            return "DeLong", delong(scores[0], scores[1], labels[known] == positive)
    return None, np.nan


# --- tables -----------------------------------------------------------------------------------------------------------


def comparison_rows(comparison: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each metric and run."""
    rows = []
    for figure, runs in comparison.items():
        for name, entry in runs.items():
            row: dict[str, Any] = {"figure": figure, "run": name} | _columns("", entry["value"])
            row |= _columns("difference ", entry.get("difference", Figure(np.nan, np.nan, np.nan)))
            row |= {key: plain(entry.get(key)) for key in ("test", "p", "p_adjusted")}
            rows.append(row)
    return rows


def _columns(prefix: str, figure: Figure) -> dict[str, Any]:
    return {f"{prefix}{name}": plain(value) for name, value in figure._asdict().items()}


def _markdown(names: Sequence[str], part: str | None, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    words = f"Part {part}; differences from {escape_markdown(names[0])}, with 95 % intervals; "
    title = [f"# {len(names)} runs compared", "", f"{words}p-values adjusted by Holm's method.", ""]
    cells = []
    for row in rows:
        digits = digits_of(row["figure"])
        value, low, high = (row[f"difference {name}"] for name in ("value", "low", "high"))
        span = "" if low is None else f" ({low:+.{digits}f} to {high:+.{digits}f})"
        difference = "" if value is None else f"{value:+.{digits}f}{span}"
        p = "" if row["p_adjusted"] is None else f"{row['p_adjusted']:.3g}"
        own = "not defined" if row["value"] is None else f"{row['value']:.{digits}f}"
        cells.append((row["figure"], escape_markdown(row["run"]), own, difference, row["test"] or "", p))
    return [*title, *markdown_table(("figure", "run", "value", "difference", "test", "p"), cells)]
