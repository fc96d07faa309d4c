"""The plots of an evaluation, as PNG, in the colours of Okabe and Ito, which are safe for colour-blind readers."""

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from mtlkit._text import printable
from mtlkit.data import LesionDataset
from mtlkit.evaluation.bootstrap import Figure, confidence_bins
from mtlkit.evaluation.failure import BASELINE, FAILED_IOU
from mtlkit.evaluation.predictions import Predictions
from mtlkit.evaluation.uncertainty import ENTROPY
from mtlkit.training.tasks import HEADS

__all__ = ["draw_all"]

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
)
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY, YELLOW)
INK, FAINT = "#222222", "#8A8A8A"
# fonts on Linux, Windows and macOS for Chinese, Japanese and Korean, which DejaVu Sans does not have
SCRIPTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS")
DPI, PAGE = 144, 10.4  # inches


# --- paper and pencil -------------------------------------------------------------------------------------------------


def new_canvas(height: float, columns: int = 1, **options: Any) -> tuple[Canvas, list[Axes]]:
    """A figure and its axes without pyplot's state; as wide as the page with several axes, otherwise half of it."""
    canvas = Canvas((PAGE if columns > 1 else PAGE / 2, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(canvas)
    axes = list(np.ravel(canvas.subplots(1, columns, **options)))
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(FAINT)
        ax.tick_params(colors=INK, labelsize=9)
        ax.set_axisbelow(True)
    return canvas, axes


def set_labels(ax: Axes, x: str, y: str, title: str = "") -> None:
    ax.set_xlabel(x, fontsize=10, color=INK)
    ax.set_ylabel(y, fontsize=10, color=INK)
    if title:
        ax.set_title(title, fontsize=11, color=INK, loc="left")


def add_legend(ax: Axes, **options: Any) -> None:
    ax.legend(**({"frameon": False, "fontsize": 8.5, "labelcolor": INK} | options))


def shown_name(name: str) -> str:
    """A name without control characters and leading underscore, for which matplotlib hides labels."""
    return printable(f"\u200c{name}" if name.startswith("_") else name)


def add_grid(ax: Axes, axis: Literal["both", "x", "y"] = "both") -> None:
    ax.grid(axis=axis, color="#E3E3E3", linewidth=0.7)


def unit_axes(ax: Axes) -> None:
    """Both axes from 0 to 1, square."""
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    add_grid(ax)


def to_png(canvas: Canvas) -> bytes:
    file = io.BytesIO()
    canvas.savefig(file, format="png", metadata={"Software": None}, bbox_inches="tight", pad_inches=0.08)
    return file.getvalue()


# --- classes ----------------------------------------------------------------------------------------------------------


def draw_confusion(matrix: Sequence[Sequence[int]], names: Sequence[str], title: str) -> bytes:
    """Counts, coloured by the fraction of the true class."""
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    canvas, (ax,) = new_canvas(4.2)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        colour = "white" if shares[i, j] > 0.55 else INK
        words = f"{count}\n{shares[i, j]:.0%}" if counts[i].sum() else "0"
        ax.text(j, i, words, ha="center", va="center", fontsize=10, color=colour)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    words = [shown_name(name) for name in names]
    ax.set_xticks(range(len(names)), words, rotation=30 if len(names) > 3 else 0)
    ax.set_yticks(range(len(names)), words)
    set_labels(ax, "predicted", "true", title)
    return to_png(canvas)


def draw_curves(probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str], areas: Sequence[Figure]) -> bytes:
    """ROC and precision-recall curves of each class against the rest; with two classes only of the second."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    canvas, (roc, pr) = new_canvas(4.9, 2)
    known = labels >= 0
    for k in range(len(names)) if len(names) > 2 else (1,):
        positive, scores = labels[known] == k, probabilities[known, k]
        if not 0 < positive.sum() < len(positive):
            continue
        colour = COLOURS[k % len(COLOURS)]
        alarms, hits, _ = roc_curve(positive, scores, drop_intermediate=False)
        roc.plot(alarms, hits, color=colour, lw=2, label=f"{shown_name(names[k])}: {areas[k]}")
        precision, recall, _ = precision_recall_curve(positive, scores)
        precision[-1] = precision[-2]  # at recall 0: the precision at the highest score, not 1
        pr.step(recall[::-1], precision[::-1], where="pre", color=colour, lw=2, label=shown_name(names[k]))
        pr.axhline(positive.mean(), color=colour, lw=1, ls=":")
    roc.plot([0, 1], [0, 1], color=FAINT, lw=1, ls=":")
    set_labels(roc, "1 - specificity", "sensitivity", "ROC, with its area")
    set_labels(pr, "recall (sensitivity)", "precision", "Precision-recall; dotted: by chance")
    for ax, place in ((roc, "lower right"), (pr, "lower left")):
        unit_axes(ax)
        if ax.get_legend_handles_labels()[0]:
            add_legend(ax, loc=place, frameon=True, facecolor="white", edgecolor="none", framealpha=0.85)
    return to_png(canvas)


def draw_calibration(confidence: np.ndarray, right: np.ndarray, error: Figure) -> bytes:
    """Accuracy and fraction of images by confidence, in tenths."""
    bins = confidence_bins(confidence)
    canvas, (ax,) = new_canvas(4.2)
    counts = np.bincount(bins, minlength=10)
    middle = (np.arange(10) + 0.5) / 10
    share = np.bincount(bins, right, minlength=10)[counts > 0] / counts[counts > 0]
    sure = np.bincount(bins, confidence, minlength=10)[counts > 0] / counts[counts > 0]
    ax.bar(middle, counts / counts.sum(), width=0.09, color="#DDE6EE", label="fraction of the images")
    ax.plot([0, 1], [0, 1], color=FAINT, lw=1, ls=":")
    ax.plot(sure, share, "o-", color=BLUE, lw=2, ms=6, label="fraction correct")
    unit_axes(ax)
    set_labels(ax, "probability of the likeliest class", "share", f"Calibration error {error}")
    add_legend(ax, loc="upper left")
    return to_png(canvas)


# --- masks ------------------------------------------------------------------------------------------------------------


def draw_scores(predictions: Predictions) -> bytes:
    """The distribution of the images' IoU by class."""
    iou, labels = predictions.scores["iou"], predictions.labels["class"]
    names = (*predictions.run.classes, "class not known")
    labels = np.where(labels < 0, len(names) - 1, labels)
    shown = [k for k in range(len(names)) if (~np.isnan(iou[labels == k])).any()]
    canvas, (ax,) = new_canvas(3.6)
    values = [iou[(labels == k) & ~np.isnan(iou)] for k in shown]
    colours = [COLOURS[k % len(COLOURS)] for k in shown]
    words = [f"{shown_name(names[k])} ({len(v)})" for k, v in zip(shown, values, strict=True)]
    ax.hist(
        values, bins=np.linspace(0, 1, 21).tolist(), stacked=True, color=colours, label=words, edgecolor="white", lw=0.6
    )
    ax.axvline(FAILED_IOU, color=INK, lw=1, ls="--")
    ax.set_xlim(0, 1)
    ax.text(FAILED_IOU - 0.01, ax.get_ylim()[1], "failed ", ha="right", va="top", fontsize=8.5, color=INK)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    add_grid(ax, "y")
    set_labels(ax, "IoU of the image", "images")
    add_legend(ax, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(shown))
    return to_png(canvas)


def draw_outlines(ax: Axes, image: np.ndarray, *masks: np.ndarray) -> None:
    """An image with the outlines of its true and predicted masks, if given."""
    ax.imshow(image, interpolation="bilinear")
    for mask, colour in zip(masks, (GREEN, ORANGE), strict=False):
        if mask.any():
            ax.contour(mask, levels=[0.5], colors="black", linewidths=2.6)
            ax.contour(mask, levels=[0.5], colors=colour, linewidths=1.4)


def draw_examples(predictions: Predictions, rows: Sequence[int]) -> bytes:
    """Images with the true and the predicted outline."""
    run = predictions.run
    d = run.config.data
    images = predictions.images
    data = LesionDataset([images[row] for row in rows], d.size, normalize=False, max_pixels=d.max_pixels)
    names = run.classes
    columns = min(len(rows), 5)
    lines = -(-len(rows) // columns)
    canvas = Canvas((PAGE, 2.75 * lines), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(canvas)
    axes = np.ravel(canvas.subplots(lines, columns))
    for ax in axes[len(rows) :]:
        ax.set_axis_off()
    for i, (ax, row) in enumerate(zip(axes, rows, strict=False)):
        item = data[i]
        image = item["image"].permute(1, 2, 0).numpy().clip(0, 1)
        draw_outlines(ax, image, item["mask"][0].numpy() > 0.5, predictions.mask(row))
        label = predictions.labels["class"][row]
        told = names[predictions.predicted("class")[row]]
        told = told if label < 0 or names[label] == told else f"{told}, not {names[label]}"
        ax.set_title(f"IoU {predictions.scores['iou'][row]:.2f}\n{shown_name(told)}", fontsize=9, color=INK)
        ax.set_xlabel(shorten(shown_name(predictions.records[row].key)), fontsize=7.5, color=FAINT)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
    return to_png(canvas)


def shorten(words: str, most: int = 28) -> str:
    return words if len(words) <= most else f"...{words[3 - most :]}"


# --- the inside -------------------------------------------------------------------------------------------------------


def gate_label(name: str) -> str:
    """The display name of a gate: level 1 for seg_level1, L-CC for l_cc."""
    _, _, level = name.partition("_level")
    return f"level {level}" if level else name.replace("_", "-").upper() if "_" in name else name


def _panels(gates: Iterable[str]) -> dict[str, list[str]]:
    """The gates by panel: one panel per branch for gates of levels, one for all others."""
    gates, branches = list(gates), {"seg": "w_seg, of the mask", "clf": "w_clf, of the class"}
    panels = {words: [n for n in gates if n.startswith(f"{branch}_level")] for branch, words in branches.items()}
    return {words: names for words, names in panels.items() if names} or {"": gates}


def draw_gates(gates: Mapping[str, Any]) -> bytes:
    """Mean and standard deviation of each gate, over all images and per class."""
    panels = _panels(gates)
    canvas, axes = new_canvas(3.6, len(panels), sharey=True)
    for ax, (title, names) in zip(axes, panels.items(), strict=True):
        classes = list(gates[names[0]]["classes"])
        place = np.arange(len(names))
        for i, name in enumerate(["all", *classes]):
            found = [gates[gate] if name == "all" else gates[gate]["classes"][name] for gate in names]
            shift = 0.8 * ((i + 0.5) / (1 + len(classes)) - 0.5)
            colour, mark = (INK, "D") if name == "all" else (COLOURS[(i - 1) % len(COLOURS)], "o")
            means, spreads = ([entry[key] for entry in found] for key in ("mean", "sd"))
            ax.errorbar(place + shift, means, spreads, fmt=mark, color=colour, ms=5.5, lw=1.6, capsize=2.5, label=name)
        for edge in place[1:] - 0.5:
            ax.axvline(edge, color="#E3E3E3", lw=0.8)
        ax.set_xticks(place, [gate_label(name) for name in names])
        ax.set(xlim=(-0.5, len(names) - 0.5), ylim=(-0.02, 1.02))
        add_grid(ax, "y")
        set_labels(ax, "", "weight" if ax is axes[0] else "", title)
    add_legend(axes[-1], loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return to_png(canvas)


def draw_epochs(
    stages: Sequence[Mapping[str, Sequence[float]]],
    order: Sequence[str],
    training: Sequence[Mapping[str, Sequence[float]]] = (),
) -> bytes:
    """The mean gates by epoch, validation dashed, training solid; a vertical line marks the second stage."""
    panels = _panels(order)
    canvas, axes = new_canvas(3.6, len(panels), sharey=True)
    for ax, (title, chosen) in zip(axes, panels.items(), strict=True):
        first = 1
        for number, stage in enumerate(stages):
            length = len(next(iter(stage.values())))
            if number:
                ax.axvline(first - 0.5, color=INK, lw=1, ls="--")
                ax.text(first - 0.5, 1.0, " gates alone", fontsize=8.5, color=INK, va="top")
            for i, name in enumerate(chosen):
                words = gate_label(name) if number == 0 else None
                epochs = range(first, first + length)
                colour = COLOURS[i % len(COLOURS)]
                ax.plot(epochs, stage[name], "o--", ms=3.5, lw=1.8, color=colour, label=words)
                if len(training) == len(stages) and name in training[number]:
                    ax.plot(epochs, training[number][name], "-", lw=1.8, color=colour)
            first += length
        ax.set_ylim(-0.02, 1.02)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        add_grid(ax)
        set_labels(ax, "epoch", "mean weight" if ax is axes[0] else "", title)
    add_legend(axes[-1], loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return to_png(canvas)


def draw_displacement(found: Mapping[str, Any]) -> bytes:
    """The displacement of vector and map by TIM, by level."""
    canvas, (ax,) = new_canvas(3.6)
    words = {"seg_to_clf": "mask to class", "clf_to_seg": "class to mask"}
    levels: Mapping[str, Any] = {}
    for i, (direction, levels) in enumerate(found.items()):
        place = np.arange(len(levels)) + 0.38 * (i - 0.5)
        means, spreads = ([entry[key] for entry in levels.values()] for key in ("mean", "sd"))
        style = {"width": 0.34, "color": (BLUE, ORANGE)[i], "error_kw": {"ecolor": INK, "lw": 1.2, "capsize": 2.5}}
        ax.bar(place, means, yerr=spreads, label=words[direction], **style)
        for x, mean, spread in zip(place, means, spreads, strict=True):
            ax.annotate(f"{mean:.2f}", (x, mean + spread), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    ax.set_xticks(range(len(levels)), [name.replace("level", "level ") for name in levels])
    ax.set_ylim(bottom=0)
    add_grid(ax, "y")
    set_labels(ax, "", "displacement, relative")
    add_legend(ax, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return to_png(canvas)


def draw_failure(found: Mapping[str, Any]) -> bytes:
    """The AUROC of each failure score, with intervals."""
    shown = {what: entry for what, entry in found.items() if 0 < entry["failures"] < entry["images"]}
    most = max(len(entry["scores"]) for entry in shown.values())
    canvas, axes = new_canvas(1.2 + 0.36 * most, len(shown), squeeze=False)
    for ax, (what, entry) in zip(axes, shown.items(), strict=True):
        names = list(entry["scores"])[::-1]
        for y, name in enumerate(names):
            value, low, high = entry["scores"][name]["auroc"]
            colour = BLUE if "level" in name else FAINT
            ax.plot([low, high], [y, y], color=colour, lw=2.2, solid_capstyle="round")
            ax.plot(value, y, "o", color=colour, ms=7)
        ax.axvline(0.5, color=INK, lw=1, ls=":")
        ax.set_yticks(range(len(names)), names)
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.6, len(names) - 0.4))
        add_grid(ax, "x")
        title = f"{HEADS[what].title if what in HEADS else what}: {entry['failures']} of {entry['images']} failed"
        set_labels(ax, "AUROC, dotted: by chance", "", title)
    return to_png(canvas)


def draw_tsne(predictions: Predictions, seed: int) -> bytes:
    """The features of the classifier by t-SNE, coloured by true class; crosses mark errors."""
    canvas, (ax,) = new_canvas(4.2)
    draw_features(ax, predictions, seed)
    add_legend(ax, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    return to_png(canvas)


def draw_features(ax: Axes, predictions: Predictions, seed: int) -> None:
    """The features of the classifier as points of a plane, by t-SNE."""
    from sklearn.manifold import TSNE

    task = next(iter(predictions.run.tasks))
    rows = predictions.first_rows
    assert predictions.features is not None  # otherwise there is nothing to draw
    features = np.nan_to_num(predictions.features[rows])
    perplexity = min(30.0, (len(rows) - 1) / 3)
    place = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)
    labels, wrong = predictions.labels[task][rows], predictions.wrong(task)[rows]
    names = predictions.run.tasks[task]
    for k, name in enumerate((*names, "not known")):
        here = labels == (k if k < len(names) else -1)
        if not here.any():
            continue
        colour = COLOURS[k % len(COLOURS)] if (labels[here] >= 0).all() else FAINT
        right = here & ~wrong
        ax.scatter(*place[right].T, s=26, color=colour, edgecolor="white", lw=0.5, label=shown_name(name))
        ax.scatter(*place[here & wrong].T, s=38, color=colour, marker="X", edgecolor=INK, lw=0.7)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


# --- all --------------------------------------------------------------------------------------------------------------


@contextmanager
def styled() -> Iterator[None]:
    """Draws names in any script for which the machine has fonts, without interpreting them as formulas."""
    fonts = ["DejaVu Sans", *(name for name in SCRIPTS if name in font_manager.get_font_names())]
    with matplotlib.rc_context({"text.parse_math": False, "font.family": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


@styled()
def draw_all(
    predictions: Predictions,
    judgement: Mapping[str, Any],
    stages: Sequence[Mapping[str, Sequence[float]]],
    *,
    training: Sequence[Mapping[str, Sequence[float]]] = (),
    examples: int = 5,
    seed: int = 0,
) -> dict[str, tuple[bytes, str, str]]:
    """The plots for which there is data: PNG, title and caption, by file name without suffix.

    Args:
        predictions: the evaluated predictions.
        judgement: the result of `judge`.
        stages: gates of each epoch on the validation part, from `epoch_gates`.
        training: gates of each epoch on the training part.
        examples: number of best and of worst masks to show.
        seed: seed of t-SNE.
    """
    plots: dict[str, tuple[bytes, str, str]] = {}
    if predictions.scores and (~np.isnan(predictions.scores["iou"])).any():
        order = np.argsort(predictions.scores["iou"], kind="stable")
        order = order[~np.isnan(predictions.scores["iou"][order])]
        words = f"Dashed: below {FAILED_IOU}, a mask has failed. Images without lesion are left out."
        plots["iou"] = draw_scores(predictions), "IoU of each image", words
        both = "Green: true outline. Orange: predicted outline. Above: predicted class."
        if examples:
            plots["worst"] = draw_examples(predictions, order[:examples].tolist()), "The worst masks", both
            plots["best"] = draw_examples(predictions, order[::-1][:examples].tolist()), "The best masks", both
    for task, names in predictions.run.tasks.items():
        labels, probabilities = predictions.labels[task], predictions.probabilities[task]
        if not (labels >= 0).any():
            continue
        head = HEADS[task]
        tail, title = (f"_{task}", f", {head.title}") if head.prefix else ("", "")
        confusion = draw_confusion(judgement["confusion"][task], names, "")
        words = "Counts, and fractions of the true class."
        plots[f"confusion{tail}"] = confusion, f"Confusion matrix{title}", words
        areas = [judgement["classes"][task][name]["auc"] for name in names]
        curves = draw_curves(probabilities, labels, names, areas)
        words = f"Of {names[1]}." if len(names) == 2 else "Each class against the rest."
        plots[f"curves{tail}"] = curves, f"ROC and precision-recall{title}", words
        known = labels >= 0
        right = predictions.predicted(task)[known] == labels[known]
        error = judgement["figures"][f"{head.prefix}calibration_error"]
        words = "On the dotted line, accuracy equals confidence. Points with few images scatter."
        picture = draw_calibration(predictions.confidence(task)[known], right, error)
        plots[f"calibration{tail}"] = picture, f"Calibration{title}", words
    failed = [entry for entry in judgement["failure_detection"].values() if 0 < entry["failures"] < entry["images"]]
    if any(entry["scores"].keys() - {BASELINE, ENTROPY} for entry in failed):
        words = "How well each score predicts failure, with its interval: 1 is perfect, 0.5 is chance."
        plots["failure"] = draw_failure(judgement["failure_detection"]), "Failure detection", words
    if judgement["gates"]:
        words = "Mean and standard deviation over the images, and over those of each class."
        plots["gates"] = draw_gates(judgement["gates"]), "Gates", words
    if stages and all(name in stage for stage in stages for name in predictions.gate_names):
        words = "Means over the training part, solid, and over the validation part, dashed."
        plots["gates_by_epoch"] = draw_epochs(stages, predictions.gate_names, training), "Gates by epoch", words
    if judgement["displacement"]:
        words = (
            "Displacement by TIM of the vector (mask to class) and the map (class to mask), relative to their length."
        )
        plots["displacement"] = draw_displacement(judgement["displacement"]), "Displacement by TIM", words
    if predictions.features is not None and len(predictions.first_rows) >= 4:
        words = "The input of the classifier's last layer, by t-SNE; crosses mark errors. Distances mean little."
        plots["tsne"] = draw_tsne(predictions, seed), "Features of the classifier", words
    return plots
