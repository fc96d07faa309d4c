"""Drawing functions of the example scripts in plain matplotlib: rows of images, bars, curves."""

from collections.abc import Mapping, Sequence
from datetime import date

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

import mtlkit


def draw_rows(path: str, rows: Mapping[str, Sequence[ArrayLike] | torch.Tensor], title: str = "") -> None:
    """One row of grey images per name, black at 0 and white at 1."""
    columns = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.1 * columns + 0.3, 1.14 * len(rows) + 0.3), layout="constrained")
    panels = figure.subplots(len(rows), columns)
    for line, (name, images) in zip(panels, rows.items(), strict=True):
        line[0].set_ylabel(name)
        for axes, image in zip(line, images, strict=True):
            axes.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
    figure.suptitle(title)
    figure.savefig(path, dpi=72)


def draw_times(path: str, before: Mapping[str, float], after: Mapping[str, float], title: str) -> None:
    """Times as shares of those before, with machine and date."""
    figure = Figure(figsize=(7, 2.4), layout="constrained")
    axes = figure.subplots()
    for i, what in enumerate(before):
        share = after[what] / before[what]
        axes.barh(what, 1, color="#c9d1d9", height=0.6)
        axes.barh(what, share, color="#00796b", height=0.6)
        axes.text(share + 0.01, i, f"{1 / share:.3g} times as fast", va="center")
    machine = f"{mtlkit.info.cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {date.today()}"
    axes.set(title=f"{title}\n{machine}", xlim=(0, 1), xlabel="share of the time before")
    figure.savefig(path, dpi=72)


def draw_curves(path: str, curves: Mapping[str, Sequence[ArrayLike]], labels: Sequence[str], title: str = "") -> None:
    """One curve (x, y) per name; `labels` are those of the two axes."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, (x, y) in curves.items():
        axes.plot(np.asarray(x), np.asarray(y), label=name)
    axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
    axes.legend()
    figure.savefig(path, dpi=72)
