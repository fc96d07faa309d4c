"""The plots of a comparison, as PNG: epochs, gates, masks and features of several runs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from mtlkit.data import LesionDataset
from mtlkit.evaluation.analysis import epoch_rows
from mtlkit.evaluation.plots import (
    COLOURS,
    DPI,
    FAINT,
    INK,
    PAGE,
    add_grid,
    add_legend,
    draw_features,
    draw_outlines,
    new_canvas,
    set_labels,
    shorten,
    shown_name,
    styled,
    to_png,
)
from mtlkit.evaluation.predictions import Predictions

__all__ = ["draw_comparison"]

Epochs = Mapping[str, Sequence[float]]  # a column of metrics.csv by name
SCORES = ("accuracy", "label_auc", "birads_auc", "iou")  # plotted next to the loss, if logged


@styled()
def draw_comparison(found: Mapping[str, Predictions], *, examples: int = 4, seed: int = 0) -> dict[str, bytes]:
    """The plots for which there is data, by file name without suffix.

    Args:
        found: predictions of each run for the same images.
        examples: number of images to show with the masks of all runs.
        seed: seed of t-SNE.
    """
    epochs = {name: read_epochs(predictions.run.folder) for name, predictions in found.items()}
    epochs = {name: columns for name, columns in epochs.items() if columns}
    figures = {}
    if epochs:
        figures["curves"] = draw_curves(epochs)
    gated = {name: columns for name, columns in epochs.items() if any("/gate_" in column for column in columns)}
    if gated:
        figures["gates"] = draw_gates(gated)
    first = next(iter(found.values()))
    if examples and first.scores and (~np.isnan(first.scores["iou"])).any():
        figures["masks"] = draw_masks(found, spread_rows(found, examples))
    if first.features is not None:
        figures["features"] = draw_planes(found, seed)
    return figures


def read_epochs(folder: Path) -> Epochs:
    """The columns of metrics.csv, concatenated over both stages; NaN if a stage did not log one."""
    rows = [row for stage in epoch_rows(folder) for row in stage]
    names = dict.fromkeys(name for row in rows for name in row if name is not None)
    return {name: [_number(row.get(name)) for row in rows] for name in names}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan  # an edited table


def spread_rows(found: Mapping[str, Predictions], count: int) -> list[int]:
    """Images from the hardest to the easiest, by the mean IoU of all runs, evenly spread."""
    mean = np.mean([predictions.scores["iou"] for predictions in found.values()], axis=0)
    order = np.argsort(mean, kind="stable")
    order = order[~np.isnan(mean[order])]
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return order[places].tolist()


# --- epochs -----------------------------------------------------------------------------------------------------------


def draw_curves(epochs: Mapping[str, Epochs]) -> bytes:
    """The loss and a score by epoch: training solid if logged, validation dashed."""
    score = next((s for s in SCORES if any(f"val/{s}" in columns for columns in epochs.values())), None)
    panels = ["loss"] if score is None else ["loss", score]
    canvas, axes = new_canvas(3.8, 2)
    for ax, name in zip(axes, panels, strict=False):
        for colour, (run, columns) in zip(_colours(epochs), epochs.items(), strict=True):
            _draw_parts(ax, columns, name, colour, shown_name(run))
        _finish(ax, "loss" if name == "loss" else name.replace("_", " "))
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    add_legend(axes[len(panels) - 1], loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return to_png(canvas)


def draw_gates(epochs: Mapping[str, Epochs]) -> bytes:
    """The mean of each gate by epoch, a panel each: training solid, validation dashed, all runs over one another."""
    gates = list(dict.fromkeys(c.partition("/gate_")[2] for of in epochs.values() for c in of if "/gate_" in c))
    columns = min(4, len(gates))
    lines = -(-len(gates) // columns)
    canvas = Canvas((PAGE, 2.6 * lines), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(canvas)
    axes = list(np.ravel(canvas.subplots(lines, columns, sharey=True, squeeze=False)))
    for ax, gate in zip(axes, gates, strict=False):
        for colour, (run, of_run) in zip(_colours(epochs), epochs.items(), strict=True):
            _draw_parts(ax, of_run, f"gate_{gate}", colour, shown_name(run))
        _finish(ax, gate)
        ax.set_ylim(-0.02, 1.02)
    for ax in axes[len(gates) :]:
        ax.set_axis_off()
    add_legend(axes[columns - 1], loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return to_png(canvas)


def _colours(runs: Mapping[str, object]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(runs))]


def _draw_parts(ax: Axes, columns: Epochs, name: str, colour: str, run: str) -> None:
    for part, line, mark in (("train", "-", ""), ("val", "--", "")):
        values = columns.get(f"{part}/{name}")
        if values is not None:
            words = {"train": "training", "val": "validation"}[part]
            steps = range(1, len(values) + 1)
            ax.plot(steps, values, line, marker=mark, lw=1.7, color=colour, label=f"{run}, {words}")


def _finish(ax: Axes, title: str) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    add_grid(ax)
    set_labels(ax, "epoch", "", title)


# --- images -----------------------------------------------------------------------------------------------------------


def draw_masks(found: Mapping[str, Predictions], rows: Sequence[int]) -> bytes:
    """A line for each image and a column for each run: the predicted mask's outline, and that of the truth."""
    first = next(iter(found.values()))
    d = first.run.config.data
    data = LesionDataset([first.images[row] for row in rows], d.size, normalize=False, max_pixels=d.max_pixels)
    width = min(PAGE, 2.6 * len(found))
    canvas = Canvas((width, width / len(found) * len(rows) + 0.4), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(canvas)
    grid = canvas.subplots(len(rows), len(found), squeeze=False)
    for i, row in enumerate(rows):
        item = data[i]
        image = item["image"].permute(1, 2, 0).numpy().clip(0, 1)
        truth = item["mask"][0].numpy() > 0.5
        for ax, (name, predictions) in zip(grid[i], found.items(), strict=True):
            draw_outlines(ax, image, truth, _resized(predictions.mask(row), d.size))
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
            ax.set_xlabel(f"IoU {predictions.scores['iou'][row]:.2f}", fontsize=8, color=FAINT)
            if i == 0:
                ax.set_title(shorten(shown_name(name)), fontsize=9.5, color=INK)
        grid[i][0].set_ylabel(shorten(shown_name(first.records[row].key)), fontsize=7.5, color=FAINT)
    return to_png(canvas)


def _resized(mask: np.ndarray, size: int) -> np.ndarray:
    """A mask (n, n) as (size, size), by the nearest pixel."""
    nearest = (np.arange(size) + 0.5) * len(mask) // size
    return mask[np.ix_(nearest.astype(int), nearest.astype(int))]


def draw_planes(found: Mapping[str, Predictions], seed: int) -> bytes:
    """The features of each run's classifier by t-SNE, coloured by true class; crosses mark errors."""
    canvas, axes = new_canvas(3.9, max(2, len(found)))
    for ax, (name, predictions) in zip(axes, found.items(), strict=False):
        draw_features(ax, predictions, seed)
        ax.set_title(shorten(shown_name(name)), fontsize=9.5, color=INK)
    add_legend(axes[0], loc="upper left", bbox_to_anchor=(0, -0.02), ncols=4)
    return to_png(canvas)
