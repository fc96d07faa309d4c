"""An evaluation: from a run and a data set to a folder with all results.

metrics.json                     metrics with intervals, by task and class; failure detection; gates; displacement
images.csv                       a row for each image or breast: true class, predicted class, scores
oracle.csv                       with the oracle: a row for each image, its results with each gate off and on
report.html                      all results as one page
*.png                            the plots of the report
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import mtlkit
from mtlkit._extras import check_installed
from mtlkit._files import csv_text, plain
from mtlkit._output import new_folder
from mtlkit.data import Catalogue, Exam, Record
from mtlkit.data.dicom_spacing import spacing_conflicts
from mtlkit.data.files import check_folder
from mtlkit.data.records import and_more
from mtlkit.errors import DataError, UnusableError
from mtlkit.evaluation.analysis import epoch_gates, judge, table_rows
from mtlkit.evaluation.attribution_plots import draw_attribution
from mtlkit.evaluation.bootstrap import PERCENTILES
from mtlkit.evaluation.comparison_plots import draw_curves, read_epochs
from mtlkit.evaluation.interaction_plots import draw_interaction
from mtlkit.evaluation.oracle import check_oracle, force_gates, judge_oracle, oracle_rows
from mtlkit.evaluation.plots import draw_all
from mtlkit.evaluation.predictions import TOLERANCE, Predictions, predict_records, rows_of
from mtlkit.evaluation.report import write_report
from mtlkit.evaluation.uncertainty import DROPOUT, run_rivals
from mtlkit.inference.passes import cost_in_words
from mtlkit.training import SavedRun, load_run
from mtlkit.training.origin import is_phantoms
from mtlkit.training.saved_run import read_recipe

__all__ = ["PARTS", "evaluate"]

KIND = "an evaluation"  # kind of its folders
PARTS = ("test", "val", "train", "all")
SAMPLES = 2000  # bootstrap samples
FEW = 100  # number of images below which intervals are wide
MASKS = "evaluated at this resolution with threshold 0.5; means over the images with a lesion"
BOUNDARIES = "for images with a predicted lesion; surface Dice at a tolerance of {} pixels of this resolution, or mm"
PHANTOMS = "These are phantoms, not patients: results on them say nothing about patients."


def evaluate(
    run: SavedRun | str | Path,
    data: str | Path | None,
    out: str | Path,
    *,
    part: str | None = None,
    layout: str | None = None,
    calibrate: bool = True,
    tolerance: float = TOLERANCE,
    samples: int = SAMPLES,
    seed: int = 0,
    examples: int = 5,
    tsne: bool = False,
    oracle: bool = False,
    rivals: int = 0,
    sliding_window: bool = False,
    tta: bool = False,
    batch_size: int | None = None,
    max_pixels: int | None = None,
    device: torch.device | str | None = None,
    skip_bad: bool = False,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    judged: Callable[[Predictions], None] | None = None,
) -> dict[str, Any]:
    """Evaluates the network of a run, and writes a folder with metrics, a table of the images, plots and a report.

    Args:
        run: a run from `load_run`, or its folder.
        data: folder of the data set; None for that of the run.
        out: folder to write, atomically.
        part: "test", "val" or "train" of the run's own split, or "all" of the data set. The default is "test" ("val"
            without a test part) for the run's own data set, and "all" for another one.
        layout: layout of the data set; detected by default.
        calibrate: whether to divide logits by the temperatures that were fitted after training.
        tolerance: largest distance at which the surface Dice counts two boundaries as equal, in pixels of the network's
            input and in mm.
        samples: number of bootstrap samples for the intervals; 0 for no intervals.
        seed: seed of the bootstrap and of t-SNE.
        examples: number of best and of worst masks to show; 0 also leaves out Grad-CAM.
        tsne: whether to plot the features of the classifier by t-SNE.
        oracle: whether to force the gates of each level off and on for every image, to measure the gain of the
            interaction and whether gates and signals predict it. The network runs four more times per level, and twice
            for all levels at once.
        rivals: number of passes of Monte Carlo dropout; dropout and flips are then evaluated as failure scores too. 0
            for neither.
        sliding_window: as for `mtlkit.inference.predict`; masks are still evaluated at the resolution of training.
        tta: whether to average over the image and its mirror images, as for `mtlkit.inference.predict`.
        batch_size: batch size; by default that of the run's own evaluation. The results of MBDI as published depend on
            it.
        max_pixels: maximal number of pixels in a frame; by default as in the recipe.
        device: device of the network; None keeps the device of an open run.
        skip_bad: whether to leave out unusable records of the data set instead of raising an error.
        force: whether to replace an earlier evaluation.
        progress: called with the number of processed images and the total.
        judged: called with the predictions.

    Returns:
        The content of metrics.json.

    Raises:
        DataError: the run, the data set or the folder is invalid.
        ValueError: an option is out of range.
        FloatingPointError: the network's output is NaN or infinite.

    Example:
        >>> from mtlkit.evaluation import evaluate
        >>> evaluate("runs/mbdi", None, "runs/mbdi-test", part="text")
        Traceback (most recent call last):
        ValueError: part: expected one of test, val, train, all, got 'text'
    """
    if part is not None and part not in PARTS:
        raise ValueError(f"part: expected one of {', '.join(PARTS)}, got {part!r}")
    least = {
        "tolerance": (tolerance, 0),
        "samples": (samples, 0),
        "seed": (seed, 0),
        "examples": (examples, 0),
        "rivals": (rivals, 0),
    }
    least |= {} if batch_size is None else {"batch_size": (batch_size, 1)}
    for name, (value, low) in least.items():
        if value < low:
            raise ValueError(f"{name}: expected at least {low}, got {value}")
    if oracle and (sliding_window or tta):
        raise ValueError("oracle: expected False with sliding_window or tta, because gates are forced in single passes")
    check_installed("the evaluation")
    if not isinstance(run, SavedRun):
        read_recipe(check_folder(run))  # wrong arguments are reported before problems with the output folder
    if data is not None:
        check_folder(data)
    with new_folder(out, KIND, force=force) as draft:
        run = run if isinstance(run, SavedRun) else load_run(run, device=device)
        draft.check_inputs(run.folder, run.data if data is None else data)
        run = (run if calibrate else run.uncalibrated()).adjusted(max_pixels)
        if oracle:
            check_oracle(run)
        if device is not None:
            run.model.to(device)
        catalogue = run.open_data(data, layout, skip_bad=skip_bad)
        part, records, remarks = choose_records(run, catalogue, part, skip_bad)
        if run.task.draws_masks and (conflicts := spacing_conflicts(records)):
            warnings.warn(f"distances in mm are doubtful: {conflicts}", stacklevel=2)
            remarks.append(f"Distances in mm are doubtful: {conflicts}.")
        steps = {"batch_size": batch_size, "progress": progress}
        ways = {"sliding_window": sliding_window, "tta": tta}
        predictions = predict_records(run, records, features=tsne, tolerance=tolerance, **ways, **steps)
        if rivals:
            predictions = _with_rivals(predictions, records, *run_rivals(run, records, rivals, seed=seed, **steps))
        judgement = judge(predictions, samples, seed)
        if oracle:
            forced = force_gates(run, predictions.images, **steps)
            judgement["oracle"] = judge_oracle(predictions, forced, samples, seed)
            draft.write_text("oracle.csv", csv_text(oracle_rows(predictions, forced)))
        remarks += _remarks(run, catalogue, predictions, rivals)
        about = _about(predictions, catalogue, part, samples, seed, tolerance)
        about |= {"passes": cost_in_words(**predictions.cost, **ways)} if predictions.cost else {}
        settings = _settings(run, catalogue, part, samples, seed, tolerance) | ways
        metrics = plain(settings | {"remarks": remarks, "cost": predictions.cost} | judgement)
        gates = [epoch_gates(run.folder, name) for name in ("val", "train")]
        plots = draw_all(predictions, judgement, gates[0], training=gates[1], examples=examples, seed=seed)
        if epochs := read_epochs(run.folder):
            words = "Training solid, as computed during training; validation dashed."
            plots["training"] = draw_curves({run.config.model.name: epochs}), "Loss and accuracy by epoch", words
        plots |= draw_attribution(predictions) if examples else {}
        plots |= draw_interaction(predictions, judgement)
        draft.write_text("images.csv", csv_text(table_rows(predictions)))
        for name, (png, _, _) in plots.items():
            with draft.file(f"{name}.png") as file:
                file.write_bytes(png)
        draft.write_text("report.html", write_report(predictions, judgement, about, remarks, plots))
        draft.write_json("metrics.json", metrics)
    if judged is not None:
        judged(predictions)
    return metrics


def progress_within(progress: Callable[[int, int], None], number: int, count: int) -> Callable[[int, int], None]:
    """Reports progress over the images of all runs, which have equally many."""
    return lambda done, total: progress(number * total + done, count * total)


def choose_records(
    run: SavedRun, catalogue: Catalogue, part: str | None, skip_bad: bool
) -> tuple[str, tuple[Record, ...] | tuple[Exam, ...], list[str]]:
    """The part, its records, and remarks on the choice.

    Raises:
        DataError: the data set or the split does not have the part.
    """
    known, split = run.recognise(catalogue), run.split
    parts = {} if split is None else split.parts()
    own = split is not None and len(known) > sum(map(len, parts.values())) / 2
    if part is None:
        part = ("test" if split.test else "val") if split is not None and own else "all"
    if part == "all":
        learnt = [key for name in ("train", "val") for key in parts.get(name, ()) if key in known]
        if split is None and known:
            return (
                part,
                catalogue.records,
                ["The run's split is missing: the network may have been trained on these images."],
            )
        words = f"{len(learnt)} of these images were used to train the network or to choose its best epoch."
        return part, catalogue.records, [words] if learnt else []
    if split is None:
        raise DataError(f"{run.folder}: its split, split.json, is missing; part 'all' takes every image")
    if not own:
        words = f"is not the data set of {run.folder}, so its split does not apply; part 'all' takes every image"
        raise DataError(f"{catalogue.root}: {words}")
    gone = [key for key in parts[part] if key not in known]
    if gone and not skip_bad:
        words = f"is missing or has changed since {run.folder} was trained{and_more(gone)}"
        raise UnusableError(f"{catalogue.root}: {gone[0]!r} of the part {part} {words}")
    records = catalogue.subset(key for key in parts[part] if key in known).records
    if not records:
        raise DataError(f"{run.folder}: the part {part} of its split is empty")
    remarks = {
        "train": ["The network was trained on these images: the metrics do not apply to others."],
        "val": ["The network's best epoch was chosen on these images: the metrics are optimistic."],
    }.get(part, [])
    if gone:
        remarks.append(f"{len(gone)} of the images of this part are missing or have changed, and are left out.")
    return part, records, remarks


def _with_rivals(predictions: Predictions, records: Any, found: Any, seconds: dict[str, float]) -> Predictions:
    """Predictions with the entropies of other methods, row by row."""
    rows = rows_of(predictions.run, records)
    images = rows[0] if isinstance(rows, tuple) else rows
    of_rows = {
        method: {what: values[images if values.ndim == 1 else rows] for what, values in of.items()}
        for method, of in found.items()
    }
    return replace(predictions, uncertainty={**predictions.uncertainty, **of_rows}, seconds=seconds)


def _remarks(run: SavedRun, catalogue: Catalogue, predictions: Predictions, rivals: int) -> list[str]:
    remarks = []
    if is_phantoms(catalogue.root):
        remarks.append(PHANTOMS)
    if len(predictions) < FEW:
        what = "breasts" if predictions.sides else "images"
        remarks.append(f"There are only {len(predictions)} {what}: the intervals are wide and inexact.")
    for task, names in run.tasks.items():
        missing = [name for k, name in enumerate(names) if not (predictions.labels[task] == k).any()]
        if missing:
            remarks.append(f"There is no image of the class {', '.join(missing)}.")
    if run.task.takes_masks and (unknown := sum(not record.segmented for record in predictions.images)):
        remarks.append(f"The masks of {unknown} images are unknown, and the network treated them as empty.")
    if rivals and DROPOUT not in predictions.uncertainty:
        remarks.append("The network has no dropout, so there is no entropy from it.")
    if run.model.depends_on_batch:
        remarks.append("As published, the gates of MBDI depend on which images share a batch.")
    return remarks


def _settings(
    run: SavedRun, catalogue: Catalogue, part: str, samples: int, seed: int, tolerance: float
) -> dict[str, Any]:
    """Facts about the evaluation, for programs."""
    return {
        "mtlkit": mtlkit.__version__,
        "run": str(run.folder.resolve()),
        "model": run.config.model.name,
        "task": run.config.task,
        "data": str(catalogue.root.resolve()),
        "layout": catalogue.layout,
        "part": part,
        "tolerance": tolerance,
        "bootstrap": {"samples": samples, "seed": seed, "percentiles": PERCENTILES},
    }


def _about(
    predictions: Predictions, catalogue: Catalogue, part: str, samples: int, seed: int, tolerance: float
) -> dict[str, str]:
    """Facts about run, data and method, for the reader."""
    run, size = predictions.run, predictions.run.config.data.size
    boundaries = BOUNDARIES.format(f"{tolerance:g}")
    config, count = run.config, sum(parameter.numel() for parameter in run.model.parameters())
    drawn = "images" if len(set(predictions.groups)) == len(predictions) else "patients or other groups"
    interval = f"percentiles 2.5 and 97.5 of {samples} bootstrap samples of {drawn}, seed {seed}" if samples else "none"
    return {
        "title": f"Evaluation of {run.folder.resolve().name}",
        "subtitle": f"{config.model.name}, {part} part of {catalogue.root.resolve().name}",
        "run": str(run.folder.resolve()),
        "network": f"{config.model.name}, {count:,} parameters",
        "trained with seed": str(config.seed),
        "data set": str(catalogue.root.resolve()),
        "layout": catalogue.layout,
        "part": part,
        "resolution": f"{size} x {size} pixels",
        **({"masks": MASKS, "boundaries": boundaries} if predictions.scores else {}),
        "intervals": interval,
        "footer": f"{time.strftime('%Y-%m-%d')}: mtlkit {mtlkit.__version__}, torch {torch.__version__}. For research.",
    }
