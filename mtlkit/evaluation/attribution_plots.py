"""Plots Grad-CAM for the worst, the median and the best image, next to the gates."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from torch import Tensor

from mtlkit.data.items import MEAN, STD
from mtlkit.evaluation.analysis import worst_rows
from mtlkit.evaluation.attribution import grad_cam
from mtlkit.evaluation.plots import (
    BLUE,
    DPI,
    FAINT,
    INK,
    ORANGE,
    PAGE,
    add_grid,
    draw_outlines,
    gate_label,
    shorten,
    shown_name,
    styled,
    to_png,
)
from mtlkit.evaluation.predictions import SIDES, Predictions
from mtlkit.models.csa_moe import CSAMoE
from mtlkit.models.hybrid_vssm import VIEWS
from mtlkit.training.tasks import HEADS

__all__ = ["Look", "chosen_rows", "draw_attribution", "draw_looks", "look"]

HEAT = colormaps["inferno"]
VEIL = 0.72  # opacity at the map's maximum
WIDEST = 2.7  # size of an image in inches
CHOICES = ("worst", "median", "best")


class Panel(NamedTuple):
    """An image and its Grad-CAM map."""

    title: str
    image: np.ndarray | None  # (H, W, 3), in [0, 1]; None where a view is missing
    heat: np.ndarray | None = None  # (H, W), from 0 to 1; None draws the image alone
    outlines: tuple[np.ndarray, ...] = ()  # (H, W) each: the true mask, and the predicted one
    weight: str = "normal"  # of the title


class Look(NamedTuple):
    """A row of the figure."""

    title: str
    words: str
    key: str
    panels: tuple[Panel, ...]
    gates: Mapping[str, float]


def chosen_rows(predictions: Predictions) -> dict[str, int]:
    """The worst, the median and the best row, by IoU or by the probability of the true class; fewer of a few."""
    order = worst_rows(predictions, len(predictions))
    places = {"worst": 0, "median": (len(order) - 1) // 2, "best": len(order) - 1}
    found: dict[str, int] = {}
    for name in ("worst", "best", "median"):
        if order and order[places[name]] not in found.values():
            found[name] = order[places[name]]
    return {name: found[name] for name in CHOICES if name in found}


# --- what is seen -----------------------------------------------------------------------------------------------------


def look(predictions: Predictions, row: int, title: str) -> Look:
    """Grad-CAM of a row's predicted class."""
    run, record = predictions.run, predictions.records[row]
    task, names = next(iter(run.tasks.items()))
    taken, label = int(predictions.predicted(task)[row]), int(predictions.labels[task][row])
    item = run.task.items([record], run.config.data)[0]
    device = next(run.model.parameters()).device
    inputs = [item[name][None].to(device) for name in run.task.inputs.values()]
    side = SIDES.index(predictions.sides[row]) if predictions.sides else None
    found = grad_cam(run.model, *inputs, target=taken, output=HEADS[task].logits, side=side).maps
    most = max(float(one.max()) for one in found.values()) or 1.0
    heat = {name: one[0].cpu().numpy() / most for name, one in found.items()}
    words = f"predicted {names[taken]}, {predictions.probabilities[task][row, taken]:.2f}"
    words += "" if label in (taken, -1) else f"; is {names[label]}"
    gates = {} if predictions.gates is None else dict(zip(predictions.gate_names, predictions.gates[row], strict=True))
    title = f"{title}, {predictions.sides[row]} breast" if predictions.sides else title
    panels = (
        _of_exam(item, heat, predictions.sides[row]) if predictions.sides else _of_image(predictions, row, item, heat)
    )
    return Look(title, words, record.key, tuple(panels), {name: float(gate) for name, gate in gates.items()})


def _shown(pixels: Tensor, normalized: bool) -> np.ndarray:
    """Converts a normalised image (3, H, W) to (H, W, 3) from 0 to 1."""
    image = pixels.permute(1, 2, 0).numpy()
    return (image * STD + MEAN if normalized else image).clip(0, 1)


def _of_image(predictions: Predictions, row: int, item: Mapping[str, Any], heat: Mapping[str, np.ndarray]) -> Any:
    """The image with its outlines, and the views of the maps."""
    run = predictions.run
    image = _shown(item["image"], run.config.data.normalize)
    true = item["mask"][0].numpy() > 0.5
    outlines = (true, predictions.mask(row)) if predictions.masks else (true,)
    views = {"image": image}
    if isinstance(run.model, CSAMoE) and len(heat) > 1:
        pixels = torch.from_numpy(image.transpose(2, 0, 1))[None]
        found = run.model.views(pixels, item["mask"][None])._asdict()
        views = {name: view[0].permute(1, 2, 0).numpy() for name, view in found.items()}
    iou = f", IoU {predictions.scores['iou'][row]:.2f}" if predictions.scores else ""
    yield Panel(f"image{iou}", image, outlines=outlines)
    for name, one in heat.items():
        yield Panel(f"expert: {name}" if run.task.takes_masks else "Grad-CAM", views[name], one, (true,))


def _of_exam(item: Mapping[str, Any], heat: Mapping[str, np.ndarray], side: str) -> Any:
    """The views, right ones flipped back as in their files; those of the breast in bold."""
    for i, name in enumerate(VIEWS):
        title, weight = gate_label(name), "bold" if name[0] == side[0] else "normal"
        if not item["present"][i]:
            yield Panel(title, None, weight=weight)
            continue
        turn = slice(None, None, -1 if name.startswith("r") else 1)
        yield Panel(title, _shown(item["views"][i], True)[:, turn], heat[name][:, turn], weight=weight)


# --- the figure -------------------------------------------------------------------------------------------------------


def veiled(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) with a map (H, W) in colour, more opaque where the map is higher."""
    share = (VEIL * np.sqrt(heat.clip(0, 1)))[..., None]
    return (1 - share) * image + share * HEAT(0.25 + 0.7 * heat)[..., :3]


def draw_panel(ax: Axes, panel: Panel) -> None:
    """An image with its map and outlines, or that there is none."""
    ax.set_title(panel.title, fontsize=9, color=INK, fontweight=panel.weight)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    if panel.image is None:
        ax.set(aspect="equal", facecolor="#F2F2F2")
        ax.text(0.5, 0.5, "no such view", ha="center", va="center", fontsize=9, color=FAINT, transform=ax.transAxes)
        return
    draw_outlines(ax, panel.image if panel.heat is None else veiled(panel.image, panel.heat), *panel.outlines)


def draw_gates_of(ax: Axes, gates: Mapping[str, float]) -> None:
    """The gates of one image, those of the mask and of the class side by side at each level."""
    branches = {"seg": ("mask", BLUE), "clf": ("class", ORANGE)}
    labels = list(dict.fromkeys(gate_label(name) for name in gates))
    seen: set[str] = set()
    for name, value in gates.items():
        place, branch = labels.index(gate_label(name)), name.partition("_level")[0]
        paired = "_level" in name and branch in branches
        words, colour = branches[branch] if paired else ("", BLUE)
        shift, height = ((-0.19 if branch == "seg" else 0.19), 0.34) if paired else (0.0, 0.5)
        ax.barh(place + shift, value, height, color=colour, label=None if words in seen else words or None)
        ax.text(value + 0.03, place + shift, f"{value:.2f}", va="center", fontsize=7.5, color=INK)
        seen.add(words)
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.15), xticks=[0, 0.5, 1])
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)
    ax.spines["bottom"].set_bounds(0, 1)
    ax.tick_params(colors=INK, labelsize=8)
    ax.set_axisbelow(True)
    add_grid(ax, "x")
    ax.set_title("gates", fontsize=9, color=INK)
    if seen - {""}:
        style = {"handlelength": 1.0, "bbox_to_anchor": (0.45, -0.07), "ncols": 2, "borderaxespad": 0.5}
        ax.legend(frameon=False, fontsize=7.5, labelcolor=INK, loc="upper center", **style)


def draw_scale(ax: Axes) -> None:
    """The colours of a map over a grey image."""
    strip = veiled(np.full((1, 256, 3), 0.5), np.linspace(0, 1, 256)[None])
    ax.imshow(strip, aspect="auto", extent=(0, 1, 0, 1))
    ax.set(yticks=[])
    ax.set_xticks([0, 0.5, 1], ["0", "half", "maximum of the row"], fontsize=8, color=INK)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def draw_looks(looks: Sequence[Look]) -> bytes:
    """A row for each image, and the scale of the maps."""
    columns = max(len(one.panels) for one in looks)
    widths = [1.0] * columns + ([0.8] if any(one.gates for one in looks) else [])
    side = min(PAGE / sum(widths), WIDEST)
    high = [side + 0.45] * len(looks) + [0.45]
    canvas = Canvas((side * sum(widths), sum(high)), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(canvas)
    parts = canvas.subfigures(len(high), 1, hspace=0.03, height_ratios=high, squeeze=False)[:, 0]
    for part, one in zip(parts, looks, strict=False):
        axes = np.ravel(part.subplots(1, len(widths), width_ratios=widths))
        title = f"{one.title.capitalize()}: {shown_name(one.words)}"
        part.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold", color=INK)
        for ax in axes:
            ax.set_axis_off()
        for ax, panel in zip(axes, one.panels, strict=False):
            ax.set_axis_on()
            draw_panel(ax, panel)
        axes[0].set_xlabel(shorten(shown_name(one.key)), fontsize=7.5, color=FAINT)
        if one.gates:
            axes[-1].set_axis_on()
            draw_gates_of(axes[-1], one.gates)
    _, strip, _ = parts[-1].subplots(1, 3, width_ratios=[1, 2, 1])
    for ax in parts[-1].axes:
        ax.set_axis_off()
    strip.set_axis_on()
    draw_scale(strip)
    return to_png(canvas)


@styled()
def draw_attribution(predictions: Predictions) -> dict[str, tuple[bytes, str, str]]:
    """The plot with title and caption, by file name; empty if the network does not declare class_maps."""
    chosen = chosen_rows(predictions) if predictions.run.model.class_maps else {}
    if not chosen:
        return {}
    looks = [look(predictions, row, name) for name, row in chosen.items()]
    words = "Grad-CAM of the predicted class: brighter regions contributed more to it. "
    words += (
        "Bold: views of the breast; right ones as in their files." if predictions.sides else "Green: the true outline."
    )
    words += " Orange: the predicted one." if predictions.scores else ""
    return {"attribution": (draw_looks(looks), "Where the network looks for the class", words)}
