"""report.html: a complete evaluation in one self-contained file, for paper and light and dark screens."""

import base64
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, TypeVar
from urllib.parse import quote

import jinja2

from mtlkit._text import printable
from mtlkit.evaluation.analysis import worst_rows
from mtlkit.evaluation.plots import DPI
from mtlkit.evaluation.predictions import Predictions
from mtlkit.models.card import FIGURES, THRESHOLDS
from mtlkit.training.aggregate import in_words
from mtlkit.training.tasks import HEADS

__all__ = ["figure_rows", "write_report", "write_summary"]

T = TypeVar("T")


def capital(words: str) -> str:
    """Capitalises the first letter, for a heading."""
    return words[:1].upper() + words[1:]


BRANCHES = {  # target of a gate by its branch, and the target's title
    "seg": ("iou", "IoU, gates of the mask"),
    "clf": ("probability", "Probability of the true class, gates of the class"),
}
GAIN_COLUMNS = {
    "gain": "gain",
    "off": "off",
    "on": "on",
    "learnt": "as learnt",
    "best": "oracle",
    "helps": "gains above 0",
    "right": "gate is right",
}
WHAT = {"mask": "Masks (IoU below 0.5)"} | {name: capital(head.titles) for name, head in HEADS.items()}
COUNTS = {
    "images": "images",
    "exams": "exams",
    "breasts": "breasts",
    "groups": "patients or other groups",
    "with_lesion": "images with a lesion",
    "lesion_not_found": "of these, with an empty prediction",
    "empty": "images without lesion",
    "empty_with_prediction": "of these, with a predicted lesion",
    "mask_not_known": "images without known mask",
}


def figure_rows(figures: Mapping[str, T]) -> list[tuple[str, T]]:
    """The metrics by display name."""
    rows = []
    for name, figure in figures.items():
        head = next((head for head in HEADS.values() if head.prefix and name.startswith(head.prefix)), None)
        words = FIGURES[name] if head is None else f"{capital(head.title)}: {FIGURES[name.removeprefix(head.prefix)]}"
        rows.append((words, figure))
    return rows


def oracle_tables(oracle: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables of the oracle for masks and classes: title, head, and rows of a name and its metrics or None."""
    tables = []
    for branch, (target, title) in BRANCHES.items():
        levels = {
            f"level {name.partition('_level')[2]}": entry[target]
            for name, entry in oracle.items()
            if name.startswith(branch)
        }
        every = levels | {"all gates": oracle["all"][target]}
        gains = [(name, [entry.get(key) for key in GAIN_COLUMNS]) for name, entry in every.items()]
        known = [(name, list(entry["correlation"].values())) for name, entry in levels.items()]
        head = list(next(iter(levels.values()))["correlation"])
        tables.append({"title": title, "head": list(GAIN_COLUMNS.values()), "rows": gains})
        tables.append({"title": "Rank correlation with that gain", "head": head, "rows": known})
    return tables


def _worst(predictions: Predictions, count: int) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the table of worst images."""
    task, names = next(iter(predictions.run.tasks.items()))
    head = ["image" if not predictions.sides else "exam", *(["side"] if predictions.sides else [])]
    head += ["true", "predicted", "probability"]
    head += ["IoU"] if predictions.scores else []
    rows = []
    for row in worst_rows(predictions, count):
        label, told = predictions.labels[task][row], predictions.predicted(task)[row]
        cells = [predictions.records[row].key, *(predictions.sides[row : row + 1])]
        cells += [names[label] if label >= 0 else "", names[told], f"{predictions.probabilities[task][row, told]:.2f}"]
        cells += [f"{predictions.scores['iou'][row]:.3f}"] if predictions.scores else []
        rows.append(cells)
    return head, rows


def _width(png: bytes) -> int:
    """The width at which a plot's text has the page's size: 96 pixels per inch."""
    return round(int.from_bytes(png[16:20], "big") * 96 / DPI)


def write_report(
    predictions: Predictions,
    judgement: Mapping[str, Any],
    about: Mapping[str, str],
    remarks: Sequence[str],
    plots: Mapping[str, tuple[bytes, str, str]],
    *,
    worst: int = 20,
) -> str:
    """The report as HTML.

    Args:
        predictions: the evaluated predictions.
        judgement: the result of `judge`.
        about: facts about run, data and method, by name; "title" is the heading.
        remarks: remarks for the reader.
        plots: result of `draw_all`.
        worst: number of rows in the table of worst images.
    """
    head, rows = _worst(predictions, worst)
    pictures = [
        {"name": name, "data": base64.b64encode(png).decode(), "width": _width(png), "title": title, "caption": caption}
        for name, (png, title, caption) in plots.items()
    ]
    rest = {"worst_head": head, "worst_rows": rows, "plots": pictures}
    return _render(judgement, about, remarks, heading="value (95 % interval)", **rest)


def write_summary(
    summary: Mapping[str, Any],
    about: Mapping[str, str],
    remarks: Sequence[str],
    runs: Sequence[str],
    pooled: Mapping[str, Any] | None = None,
) -> str:
    """The report of several runs as HTML.

    Args:
        summary: result of `judge` with mean and standard deviation instead of each metric.
        about: facts about runs, data and method, by name; "title" is the heading.
        remarks: remarks for the reader.
        runs: names of the runs, and of the folders with their reports.
        pooled: for folds, the result of `judge` for all their predictions together.
    """
    heading = f"mean ± standard deviation, {len(runs)} runs"
    together = () if pooled is None else figure_rows(pooled["figures"])
    summary = {**summary, "calibration": {}}  # each run has its own
    return _render(summary, about, remarks, heading=heading, runs=runs, gates=summary["gates"], pooled=together)


def _finalize(value: Any) -> Any:
    """Text from run and data without bidirectional and control characters; the page's own markup is unchanged."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _render(judgement: Mapping[str, Any], about: Mapping[str, str], remarks: Sequence[str], **rest: Any) -> str:
    source = (files("mtlkit.evaluation") / "report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, finalize=_finalize
    )
    environment.filters["link"] = lambda name: quote(os.fsencode(name))
    without = {"worst_head": (), "worst_rows": (), "plots": (), "runs": (), "gates": {}, "pooled": ()}
    return environment.from_string(source).render(
        **without | rest,
        about=about,
        remarks=remarks,
        figures=figure_rows(judgement["figures"]),
        counts=[(COUNTS[name], count) for name, count in judgement["counts"].items()],
        classes={capital(HEADS[task].title): classes for task, classes in judgement["classes"].items()},
        calibration={capital(HEADS[task].title): entry for task, entry in judgement["calibration"].items()},
        thresholds=THRESHOLDS,
        failure={WHAT[what]: entry for what, entry in judgement["failure_detection"].items()},
        unit="breasts" if "breasts" in judgement["counts"] else "images",
        seconds=judgement.get("seconds", {}),
        oracle=oracle_tables(judgement["oracle"]) if judgement.get("oracle") else (),
        in_words=lambda pair: in_words(pair, 3),
    )
