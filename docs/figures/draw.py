"""Draws the figures of the concepts pages, each for light and for dark pages: `python docs/figures/draw.py [FOLDER]`.

Orders and gradients come from mtlkit itself, so that the pictures show what it computes. Needs matplotlib.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import Tensor

import mtlkit
from mtlkit.ops import orders

HERE = Path(__file__).parent
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "mtlkit", "font.size": 11}


@dataclass(frozen=True)
class Scheme:
    """Colours of one kind of page."""

    ink: str
    faint: str
    fill: str
    ground: str
    first: str
    second: str

    @property
    def steps(self) -> LinearSegmentedColormap:
        """From the first step of a scan to its last."""
        return LinearSegmentedColormap.from_list("steps", (self.first, self.second))

    @property
    def strength(self) -> LinearSegmentedColormap:
        """From nothing to strong."""
        return LinearSegmentedColormap.from_list("strength", (self.ground, self.first))


SCHEMES = {
    "": Scheme("#1f2933", "#8a97a3", "#eef3f7", "#ffffff", "#00796b", "#d9730d"),
    "_dark": Scheme("#e6eaf0", "#7d8795", "#2b303c", "#1e2129", "#4dd0bd", "#ffb066"),
}


# --- scans ------------------------------------------------------------------------------------------------------------


def draw_walk(axes: Axes, scheme: Scheme, walk: list[int], height: int, width: int, title: str) -> None:
    """A grid of pixels and the path through it; the ring is the first token, the head the last."""
    at = [(token % width, token // width) for token in walk]
    axes.add_patch(Rectangle((-0.5, -0.5), width, height, fc=scheme.fill, ec="none"))
    axes.hlines([y - 0.5 for y in range(1, height)], -0.5, width - 0.5, scheme.ground, lw=2)
    axes.vlines([x - 0.5 for x in range(1, width)], -0.5, height - 0.5, scheme.ground, lw=2)
    colours = scheme.steps(torch.linspace(0, 1, len(at) - 1).numpy())
    axes.add_collection(LineCollection(list(pairwise(at)), colors=colours, lw=1.9, capstyle="round"))
    style = {"arrowstyle": "-|>", "mutation_scale": 13, "shrinkA": 0, "shrinkB": 0, "color": scheme.second}
    axes.add_patch(FancyArrowPatch(*at[-2:], **style))
    axes.plot(*at[0], "o", ms=8, mfc=scheme.ground, mec=scheme.first, mew=1.9, zorder=3)
    axes.set(xlim=(-0.6, width - 0.4), ylim=(height - 0.4, -0.6), aspect="equal")
    axes.set_title(title, color=scheme.ink, fontsize=11)
    axes.axis("off")


def draw_cross(scheme: Scheme) -> Figure:
    """The four directions of SS2D."""
    height, width = 4, 5
    figure, panels = plt.subplots(1, 4, figsize=(9.2, 2.1))
    titles = ("k = 0: rows", "k = 1: columns", "k = 2: k = 0 reversed", "k = 3: k = 1 reversed")
    for axes, walk, title in zip(panels, orders.cross(height, width).table().tolist(), titles, strict=True):
        draw_walk(axes, scheme, walk, height, width, title)
    return figure


def draw_orders(scheme: Scheme) -> Figure:
    """The other orders, the first direction of each unless its name says which."""
    size = 6
    shown = [
        ("snake(6, 6), k = 0", orders.snake(size, size), (0,)),
        ("snake(6, 6), k = 1", orders.snake(size, size), (1,)),
        ("diagonal(6, 6), k = 0", orders.diagonal(size, size), (0,)),
        ("windows(6, 6, 3), k = 0", orders.windows(size, size, 3), (0,)),
        ("atrous(6, 6), k = 0", orders.atrous(size, size), (0,)),
        ("atrous(6, 6), k = 1", orders.atrous(size, size), (1,)),
        ("reverse(rows(6, 6))", orders.reverse(orders.rows(size, size)), (0,)),
        ("slices(36, 6), k = 0", orders.slices(size * size, size), (0,)),
    ]
    figure, panels = plt.subplots(2, 4, figsize=(9.2, 5.0))
    for axes, (title, order, (direction,)) in zip(panels.flat, shown, strict=True):
        draw_walk(axes, scheme, order.table()[direction].tolist(), size, size, title)
    return figure


def gradient_of_centre(size: int, keep: tuple[int, ...]) -> Tensor:
    """How strongly each pixel moves the output at the centre, (size, size), with the directions in `keep` alone."""
    D, N = 1, 1
    u = torch.zeros(1, D, size, size, requires_grad=True)
    x_dbl = torch.ones(1, 4, 1 + 2 * N, size, size)
    x_dbl[:, :, 2:] = torch.tensor([float(k in keep) for k in range(4)])[:, None, None, None]  # C of the others is 0
    dt_weight, dt_bias = torch.zeros(4, D, 1), torch.full((4, D), -2.2)
    y = mtlkit.ops.ss2d(u, x_dbl, dt_weight, dt_bias, torch.full((4 * D, N), -0.4), torch.zeros(4 * D))
    (gradient,) = torch.autograd.grad(y[0, 0, size // 2, size // 2], u)
    return gradient[0, 0]


def draw_reach(scheme: Scheme) -> Figure:
    """What the pixel in the centre sees."""
    size = 15
    cases = (("one direction: rows", (0,)), ("two: rows, both ways", (0, 2)), ("four: SS2D", (0, 1, 2, 3)))
    figure, panels = plt.subplots(1, 3, figsize=(9.2, 3.4))
    for axes, (title, keep) in zip(panels, cases, strict=True):
        strength = gradient_of_centre(size, keep).abs().sqrt().numpy()
        axes.imshow(strength, cmap=scheme.strength, vmin=0)
        axes.add_patch(Rectangle((size // 2 - 0.5,) * 2, 1, 1, fc="none", ec=scheme.second, lw=2))
        axes.set_title(title, color=scheme.ink, fontsize=11)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_color(scheme.faint)
    return figure


# --- diagrams ---------------------------------------------------------------------------------------------------------


class Diagram:
    """Boxes and arrows on a plane of given size."""

    def __init__(self, scheme: Scheme, width: float, height: float) -> None:
        self.scheme = scheme
        self.figure, self.axes = plt.subplots(figsize=(width, height))
        self.axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
        self.axes.axis("off")
        self.figure.subplots_adjust(0, 0, 1, 1)

    def box(
        self, x: float, y: float, text: str, width: float = 1.5, height: float = 0.56, strong: bool = False
    ) -> None:
        """A box around its centre; a strong one has the colour of what mtlkit computes as one operator."""
        colour = self.scheme.first if strong else self.scheme.faint
        shape = FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=0.09",
            fc=self.scheme.fill, ec=colour, lw=2 if strong else 1,
        )  # fmt: skip
        self.axes.add_patch(shape)
        self.text(x, y, text)

    def text(self, x: float, y: float, text: str, size: float = 10.5, colour: str | None = None) -> None:
        """Text around its centre."""
        self.axes.text(x, y, text, ha="center", va="center", fontsize=size, color=colour or self.scheme.ink)

    def arrow(self, *points: tuple[float, float], colour: str | None = None) -> None:
        """A line through the points with a head at the last."""
        colour = colour or self.scheme.ink
        for start, end in pairwise(points[:-1]):
            self.axes.plot(*zip(start, end, strict=True), color=colour, lw=1.2, solid_capstyle="round")
        style = {"arrowstyle": "-|>", "mutation_scale": 11, "shrinkA": 0, "shrinkB": 0, "lw": 1.2, "color": colour}
        self.axes.add_patch(FancyArrowPatch(*points[-2:], **style))


def draw_layer(scheme: Scheme) -> Figure:
    """The layer around the scan."""
    d = Diagram(scheme, 9.2, 2.3)
    d.text(0.35, 1.6, "X")
    d.arrow((0.5, 1.6), (0.8, 1.6))
    d.box(1.35, 1.6, "linear\nin_proj", 1.1, 0.7)
    d.arrow((1.9, 1.6), (2.35, 1.6))
    d.text(2.12, 1.78, "x")
    d.box(3.1, 1.6, "depthwise 3 × 3\nSiLU", 1.5, 0.7)
    d.arrow((3.85, 1.6), (4.25, 1.6))
    d.text(4.05, 1.78, "u")
    d.box(4.95, 1.6, "ss2d\n4 directions", 1.4, 0.7, strong=True)
    d.arrow((5.65, 1.6), (6.05, 1.6))
    d.text(5.85, 1.78, "y")
    d.box(6.65, 1.6, "LayerNorm", 1.2, 0.7)
    d.arrow((7.25, 1.6), (7.53, 1.6))
    d.text(7.66, 1.6, "×", 15)
    d.arrow((7.79, 1.6), (8.05, 1.6))
    d.box(8.58, 1.6, "linear\nout_proj", 1.04, 0.7)
    d.arrow((1.35, 1.25), (1.35, 0.5), (4.25, 0.5))
    d.text(2.12, 0.68, "z")
    d.box(4.95, 0.5, "SiLU", 1.4, 0.5)
    d.arrow((5.65, 0.5), (7.66, 0.5), (7.66, 1.42))
    return d.figure


def draw_interaction(scheme: Scheme) -> Figure:
    """A level of task interaction: TIM on the left, UPA on the right."""
    d = Diagram(scheme, 9.2, 4.1)
    seg, clf = scheme.first, scheme.second
    top, bottom = 3.3, 0.8
    d.text(0.55, top, "map D\n(B, C, H, W)", colour=seg)
    d.text(0.55, bottom, "vector f\n(B, F)", colour=clf)
    d.axes.add_patch(Rectangle((1.35, 0.12), 3.4, 3.86, fc="none", ec=scheme.faint, ls="--"))
    d.axes.add_patch(Rectangle((5.45, 0.12), 2.75, 3.86, fc="none", ec=scheme.faint, ls="--"))
    d.text(3.05, 3.8, "TIM: each enhances the other", 10.5)
    d.text(6.82, 3.8, "UPA: how much to adopt", 10.5)
    d.arrow((1.12, top), (3.78, top), colour=seg)
    d.arrow((1.12, bottom), (3.78, bottom), colour=clf)
    d.box(2.25, 2.35, "pool, project\ncontext c, gate", 1.5, 0.62)
    d.box(2.25, 1.55, "scale per channel\nμ = 1 + τ g s", 1.5, 0.62)
    d.arrow((1.35 + 0.05, top), (1.4, 2.35), (1.5, 2.35), colour=seg)
    d.arrow((1.4, bottom), (1.4, 1.55), (1.5, 1.55), colour=clf)
    d.arrow((3.0, 2.35), (3.55, 2.35), (4.2, bottom + 0.28), colour=seg)
    d.arrow((3.0, 1.55), (3.55, 1.55), (4.2, top - 0.28), colour=clf)
    d.box(4.2, top, "D · μ", 0.84, 0.5)
    d.box(4.2, bottom, "f + g c", 0.84, 0.5)
    d.arrow((4.62, top), (6.26, top), colour=seg)
    d.arrow((4.62, bottom), (6.26, bottom), colour=clf)
    d.text(5.1, top + 0.2, "D~", colour=seg)
    d.text(5.1, bottom - 0.2, "f~", colour=clf)
    d.box(6.2, 2.05, "signals,\nsmall network", 1.35, 0.66)
    d.arrow((5.7, top), (5.7, 2.39), colour=seg)
    d.arrow((5.7, bottom), (5.7, 1.71), colour=clf)
    d.box(7.16, top, "D + w_seg (D~ − D)", 1.8, 0.5)
    d.box(7.16, bottom, "f + w_clf (f~ − f)", 1.8, 0.5)
    d.arrow((6.88, 2.15), (7.4, 2.15), (7.4, top - 0.26))
    d.arrow((6.88, 1.95), (7.4, 1.95), (7.4, bottom + 0.26))
    d.text(7.75, 2.55, "w_seg")
    d.text(7.75, 1.5, "w_clf")
    d.arrow((8.06, top), (8.5, top), colour=seg)
    d.arrow((8.06, bottom), (8.5, bottom), colour=clf)
    d.text(8.82, top, "next\nlevel", colour=seg)
    d.text(8.82, bottom, "class\nhead", colour=clf)
    return d.figure


FIGURES: dict[str, Callable[[Scheme], Figure]] = {
    "ss2d_layer": draw_layer,
    "ss2d_cross": draw_cross,
    "ss2d_reach": draw_reach,
    "scan_orders": draw_orders,
    "task_interaction": draw_interaction,
}


def main(folder: Path) -> None:
    """Writes two files a figure."""
    mpl.use("svg")
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        for suffix, scheme in SCHEMES.items():
            with mpl.rc_context(SETTINGS):
                figure = draw(scheme)
                path = folder / f"{name}{suffix}.svg"
                kept = {"bbox_inches": "tight", "pad_inches": 0.08, "metadata": {"Date": None}}
                figure.savefig(path, facecolor=scheme.ground, **kept)
                plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
