"""Evaluates the runs of one recipe, with several seeds or on the folds of a cross-validation.

metrics.json mean and standard deviation of each metric, and its values in the runs; for folds also the metrics over all
                                 test images together, each predicted by the network that was not trained on it
metrics.csv                      the same, a row for each metric
report.html                      the same as a page, with a link to the report of each run
images.csv                       for folds, a row for each test image
seed-42/ ...                     the evaluation of each run, as `evaluate` writes it
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import mtlkit
from mtlkit._files import csv_text, plain
from mtlkit._output import new_folder
from mtlkit.errors import DataError
from mtlkit.evaluation.analysis import judge, table_rows
from mtlkit.evaluation.predictions import Predictions, pool
from mtlkit.evaluation.report import write_summary
from mtlkit.evaluation.runner import KIND, SAMPLES, evaluate, progress_within
from mtlkit.training.aggregate import summarise
from mtlkit.training.saved_run import read_recipe, runs_within

__all__ = ["evaluate_repeats"]

DRAWN = ("lesion_not_found", "empty_with_prediction")  # counts that depend on the run
SHARED = (
    "mtlkit",
    "model",
    "task",
    "data",
    "layout",
    "part",
    "tolerance",
    "bootstrap",
    "sliding_window",
    "tta",
)  # values that all runs share
# sections whose means over the images, or metrics at any depth, are averaged
AVERAGED = ("calibration", "seconds", "cost", "gates", "stages", "displacement", "displacement_by_difficulty", "oracle")
Key = tuple[str, ...]


def evaluate_repeats(
    folder: str | Path,
    data: str | Path | None,
    out: str | Path,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluates the networks of several runs of one recipe.

    If no image is in two test parts, as with the folds of a cross-validation, the predictions for the test parts are
    also evaluated together.

    Args:
        folder: folder of the runs, from `mtlkit.training.repeat` or `mtlkit.training.cross_validate`.
        data: folder of the data set; None for that of the runs.
        out: folder to write, atomically.
        force: whether to replace an earlier evaluation.
        progress: called with the number of processed images and the total.
        **options: as for `evaluate`.

    Returns:
        The content of metrics.json: "runs", their names; "figures", "classes", "failure_detection", "seconds", "gates",
        "stages", "displacement", "displacement_by_difficulty" and "oracle" as `evaluate` returns them, with "mean",
        "sd" (with one degree of freedom less) and "runs", by name, instead of each metric; "counts", likewise if they
        differ between runs. For gates, stages and displacement the mean over the images is averaged. For folds,
        "pooled" has the result of `judge` for all predictions together, and "counts" refers to them.

    Raises:
        DataError: the folder contains no runs, or runs of different recipes, or as for `evaluate`.
        ValueError, FloatingPointError: as for `evaluate`.

    Example:
        >>> from mtlkit.evaluation import evaluate_repeats
        >>> evaluate_repeats("/no/such/folder", None, "runs-test")
        Traceback (most recent call last):
        mtlkit.errors.DataError: /no/such/folder: there is no such folder
    """
    runs = {path.name: path for path in runs_within(folder)}
    if not runs:
        raise DataError(f"{folder}: contains no runs; `mtlkit.training.repeat` makes such folders")
    recipes = {name: read_recipe(path).change({"seed": 0}) for name, path in runs.items()}
    first = next(iter(runs))
    for name, recipe in recipes.items():
        if recipe != recipes[first]:
            raise DataError(f"{folder}: expected runs of one recipe, but those of {first} and {name} differ")
    found: dict[str, dict[str, Any]] = {}
    folds: list[Predictions] = []
    with new_folder(out, KIND, force=force) as draft:
        draft.check_inputs(folder, data)
        for number, (name, path) in enumerate(runs.items()):
            told = None if progress is None else progress_within(progress, number, len(runs))
            found[name] = evaluate(path, data, draft.nested(name), progress=told, judged=folds.append, **options)
        metrics, rows = _summary(Path(folder), found)
        together = None
        if (pooled := _pooled(folds, metrics["part"])) is not None:
            together = judge(pooled, options.get("samples", SAMPLES), options.get("seed", 0))
            metrics |= {"pooled": plain(together), "counts": together["counts"]}
            for task, classes in together["classes"].items():
                for name, entry in classes.items():
                    metrics["classes"][task][name]["images"] = entry["images"]
        about = {
            "title": f"Evaluation of {Path(folder).resolve().name}",
            "subtitle": f"{metrics['model']}, {metrics['part']} part of {Path(metrics['data']).name}, {len(runs)} runs",
            **{name: str(metrics[name]) for name in ("folder", "model", "data", "layout", "part")},
            "footer": f"{time.strftime('%Y-%m-%d')}: mtlkit {mtlkit.__version__}, torch {torch.__version__}. "
            "For research.",
        }
        draft.write_text("metrics.csv", csv_text(rows))
        if pooled is not None:
            of_rows = [name for name, fold in zip(runs, folds, strict=True) for _ in range(len(fold))]
            rows = [{"run": name} | row for name, row in zip(of_rows, table_rows(pooled), strict=True)]
            draft.write_text("images.csv", csv_text(rows))
        draft.write_text("report.html", write_summary(metrics, about, metrics["remarks"], list(runs), together))
        draft.write_json("metrics.json", metrics)
    return metrics


def _pooled(folds: Sequence[Predictions], part: str) -> Predictions | None:
    """The predictions of all test parts together; None if an image is in two of them."""
    tested = [set(one.run.split.test) if one.run.split is not None else set() for one in folds]
    apart = len(tested) > 1 and sum(map(len, tested)) == len(set().union(*tested))
    return pool(folds) if apart and part == "test" else None


def _summary(folder: Path, found: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The content of metrics.json, and the rows of metrics.csv."""
    of_runs = {name: dict(_values(metrics)) for name, metrics in found.items()}
    common = set.intersection(*map(set, of_runs.values()))  # distances in mm may be known in only some runs
    of_runs = {name: {key: values[key] for key in values if key in common} for name, values in of_runs.items()}
    first = next(iter(found.values()))
    metrics = {name: first[name] for name in SHARED} | {
        "folder": str(folder.resolve()),
        "runs": list(found),
        "remarks": list(dict.fromkeys(remark for one in found.values() for remark in one["remarks"])),
        "counts": dict(first["counts"]),
        **{name: {} for name in ("figures", "classes", "failure_detection", *AVERAGED)},
    }
    rows = []
    for key, pair in summarise(list(of_runs.values())).items():
        values = {name: values[key] for name, values in of_runs.items()}
        place: dict[str, Any] = metrics
        for part in key[:-1]:
            place = place.setdefault(part, {})
        place[key[-1]] = plain(pair) | {"runs": values}
        rows.append({"figure": "/".join(key), **plain(pair), **values})
    for task, classes in metrics["classes"].items():
        for name, entry in classes.items():
            entry["images"] = first["classes"][task][name]["images"]
    return metrics, rows


def _values(metrics: Mapping[str, Any]) -> list[tuple[Key, float | None]]:
    """Every metric of an evaluation by its path, without its interval."""
    found = [(("figures", name), entry["value"]) for name, entry in metrics["figures"].items()]
    found += [(("counts", name), float(count)) for name, count in metrics["counts"].items() if name in DRAWN]
    for section, key in (("classes", None), ("failure_detection", "scores")):
        for what, entries in metrics[section].items():
            for name, figures in (entries if key is None else entries[key]).items():
                path = (section, what, *(() if key is None else (key,)), name)
                found += [((*path, figure), v["value"]) for figure, v in figures.items() if isinstance(v, Mapping)]
    return found + [pair for name in AVERAGED for pair in _leaves((name,), metrics.get(name, {}))]


def _leaves(key: Key, entry: Any) -> list[tuple[Key, float | None]]:
    """The numbers in a section, without standard deviations and intervals."""
    if not isinstance(entry, Mapping):
        return [(key, entry)]
    for name in ("mean", "value"):
        if name in entry:
            return [(key, entry[name])]
    return [pair for name, value in entry.items() for pair in _leaves((*key, name), value)]
