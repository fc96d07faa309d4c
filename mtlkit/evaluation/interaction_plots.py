"""Plots of the effect of the tasks' interaction: failure detection by level, displacement, stages, oracle."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from mtlkit.evaluation.bootstrap import Array
from mtlkit.evaluation.failure import failure_scores, failures, risk_coverage
from mtlkit.evaluation.oracle import TARGETS, correlated
from mtlkit.evaluation.plots import (
    BLUE,
    COLOURS,
    FAINT,
    INK,
    add_grid,
    add_legend,
    new_canvas,
    set_labels,
    styled,
    to_png,
    unit_axes,
)
from mtlkit.evaluation.predictions import Predictions
from mtlkit.training.tasks import HEADS

__all__ = ["draw_interaction"]

Plots = dict[str, tuple[bytes, str, str]]
DASHES = ("--", ":", "-.", (0, (1, 1)))
BRANCHES = {"seg": "mask", "clf": "class"}
WAYS = {"seg_to_clf": "mask to class", "clf_to_seg": "class to mask"}
GAINS = {"iou": "IoU", "probability": "probability of the true class"}


# --- failure detection ------------------------------------------------------------------------------------------------


def draw_roc(ax: Axes, score: Array, failed: NDArray[np.bool_], **style: Any) -> None:
    from sklearn.metrics import roc_curve

    alarms, hits, _ = roc_curve(failed, score, drop_intermediate=False)
    ax.plot(alarms, hits, **style)


def draw_precision_recall(ax: Axes, score: Array, failed: NDArray[np.bool_], **style: Any) -> None:
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(failed, score)
    precision[-1] = precision[-2]  # at recall 0: the precision at the highest score, not 1
    ax.step(recall[::-1], precision[::-1], where="pre", **style)


def draw_risk(ax: Axes, score: Array, failed: NDArray[np.bool_], **style: Any) -> None:
    ax.step(*risk_coverage(score, failed), where="pre", **style)


def draw_failure_curves(
    predictions: Predictions, draw: Callable[..., None], x: str, y: str, place: str, chance: Callable[[float], Any]
) -> bytes:
    """A curve for each level's gate, and dashed for scores without gates, for masks and for classes.

    Args:
        predictions: predictions of a network.
        draw: function that draws a curve, such as `draw_roc`.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        place: place of the legend.
        chance: ends of the line of an uninformative score, as a function of the fraction of failures.
    """
    shown = {what: pair for what, pair in failures(predictions).items() if _both(*pair)}
    canvas, axes = new_canvas(4.9, max(2, len(shown)), squeeze=False)
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    for ax, (what, (failed, known)) in zip(axes, shown.items(), strict=False):
        scores = failure_scores(predictions, what)
        levels = [name for name in scores if name.startswith("level ")]
        others = [name for name in scores if "level" not in name]
        for i, name in enumerate((*levels, *others)):
            dash = "-" if name in levels else DASHES[(i - len(levels)) % len(DASHES)]
            colour = COLOURS[i % len(COLOURS)] if name in levels else INK
            draw(ax, scores[name][known], failed[known], color=colour, ls=dash, lw=1.8, label=name)
        ax.plot([0, 1], chance(float(failed[known].mean())), color=FAINT, lw=1, ls=":")
        unit_axes(ax)
        title = HEADS[what].title if what in HEADS else what
        set_labels(ax, x, y, f"{title}: {int(failed[known].sum())} of {int(known.sum())} failed")
        add_legend(ax, loc=place, frameon=True, facecolor="white", edgecolor="none", framealpha=0.85)
    return to_png(canvas)


def _both(failed: NDArray[np.bool_], known: NDArray[np.bool_]) -> bool:
    """Whether there are both failures and successes."""
    return 0 < failed[known].sum() < known.sum()


def _failure_plots(predictions: Predictions) -> Plots:
    words = "Gates by level; dashed: scores without gates."
    recall = "recall (fraction of failures found)"
    roc = draw_failure_curves(
        predictions, draw_roc, "fraction of the rest flagged", recall, "lower right", lambda share: [0, 1]
    )
    curve = draw_failure_curves(
        predictions, draw_precision_recall, recall, "precision", "lower left", lambda share: [share, share]
    )
    risk = draw_failure_curves(
        predictions, draw_risk, "coverage (fraction kept)", "risk", "upper left", lambda share: [share, share]
    )
    kept = "The fraction of failures among the kept predictions, most certain first; dotted: among all."
    return {
        "failure_roc": (roc, "Failure detection: ROC", f"{words} Dotted: by chance."),
        "failure_precision_recall": (curve, "Failure detection: precision-recall", f"{words} Dotted: by chance."),
        "risk_coverage": (risk, "Failure detection: risk and coverage", kept),
    }


# --- displacement and stages ------------------------------------------------------------------------------------------


def draw_by_difficulty(found: Mapping[str, Any]) -> bytes:
    """The displacement of vector and map by TIM, by level, in easy, medium and hard images."""
    canvas, axes = new_canvas(3.6, len(WAYS))
    for ax, (direction, title) in zip(axes, WAYS.items(), strict=True):
        for i, (difficulty, of) in enumerate(found.items()):
            place = np.arange(len(of[direction])) + 0.12 * (i - 1)
            means, spreads = ([entry[key] for entry in of[direction].values()] for key in ("mean", "sd"))
            ax.errorbar(
                place, means, spreads, fmt="o-", color=COLOURS[i], ms=5.5, lw=1.6, capsize=2.5, label=difficulty
            )
        names = next(iter(found.values()))[direction]
        ax.set_xticks(range(len(names)), [name.replace("level", "level ") for name in names])
        ax.set_ylim(bottom=0)
        add_grid(ax, "y")
        set_labels(ax, "", "displacement, relative" if ax is axes[0] else "", title)
    add_legend(axes[-1], loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return to_png(canvas)


def draw_stages(stages: Mapping[str, Any]) -> bytes:
    """How much each expert attends to each stage of its encoder, by class."""
    experts: dict[str, list[Any]] = {}
    for name, entry in stages.items():
        experts.setdefault(name.rpartition("_stage")[0], []).append(entry)
    canvas, axes = new_canvas(3.6, max(2, len(experts)), sharey=True)
    for ax in axes[len(experts) :]:
        ax.set_axis_off()
    for ax, (expert, entries) in zip(axes, experts.items(), strict=False):
        place = np.arange(len(entries))
        for i, name in enumerate(["all", *entries[0]["classes"]]):
            found = [entry if name == "all" else entry["classes"][name] for entry in entries]
            means, spreads = ([one[key] for one in found] for key in ("mean", "sd"))
            colour = INK if name == "all" else COLOURS[(i - 1) % len(COLOURS)]
            ax.errorbar(
                place + 0.1 * i, means, spreads, fmt="o-", color=colour, ms=5.5, lw=1.6, capsize=2.5, label=name
            )
        ax.set_xticks(place, [f"W{k}" for k in place + 1])
        ax.set_ylim(-0.02, 1.02)
        add_grid(ax, "y")
        set_labels(ax, "stage", "attention" if ax is axes[0] else "", expert)
    add_legend(axes[len(experts) - 1], loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return to_png(canvas)


# --- the oracle -------------------------------------------------------------------------------------------------------


def draw_gains(oracle: Mapping[str, Any]) -> bytes:
    """The gain of each gate's target, level by level, and for all gates at once."""
    canvas, axes = new_canvas(3.6, len(TARGETS))
    for ax, (branch, target) in zip(axes, TARGETS.items(), strict=True):
        shown = {name: entry[target]["gain"] for name, entry in oracle.items() if not name.startswith(_other(branch))}
        for y, (value, low, high) in enumerate(shown.values()):
            ax.plot([y, y], [low, high], color=BLUE, lw=2.2, solid_capstyle="round")
            ax.plot(y, value, "o", color=BLUE, ms=7)
        ax.axhline(0, color=INK, lw=1, ls=":")
        labels = ["all gates" if name == "all" else f"level {name.partition('_level')[2]}" for name in shown]
        ax.set_xticks(range(len(shown)), labels)
        ax.set_xlim(-0.5, len(shown) - 0.5)
        add_grid(ax, "y")
        set_labels(ax, "", f"gain in {GAINS[target]}", f"w_{branch}, of the {BRANCHES[branch]}")
    return to_png(canvas)


def _other(branch: str) -> str:
    return "clf_" if branch == "seg" else "seg_"


def draw_correlations(oracle: Mapping[str, Any]) -> bytes:
    """Correlation of gates, signals and confidence with the gain, level by level."""
    found = correlated(oracle)
    canvas, axes = new_canvas(3.9, len(TARGETS), sharey=True)
    for ax, branch in zip(axes, TARGETS, strict=True):
        levels: Mapping[str, Any] = {}
        for i, (name, levels) in enumerate(found[branch].items()):
            place = np.arange(len(levels)) + 0.8 * ((i + 0.5) / len(found[branch]) - 0.5)
            colour = INK if name == "gate" else FAINT if "confidence" in name else COLOURS[(i - 1) % len(COLOURS)]
            for x, (value, low, high) in zip(place, levels.values(), strict=True):
                ax.plot([x, x], [low, high], color=colour, lw=2, solid_capstyle="round")
                ax.plot(x, value, "o", color=colour, ms=6, label=name if x == place[0] else None)
        ax.axhline(0, color=INK, lw=1, ls=":")
        ax.set_xticks(range(len(levels)), list(levels))
        ax.set_ylim(-1.02, 1.02)
        add_grid(ax, "y")
        words = "Spearman correlation with the gain" if ax is axes[0] else ""
        set_labels(ax, "", words, f"w_{branch}, of the {BRANCHES[branch]}")
    add_legend(axes[-1], loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return to_png(canvas)


# --- all --------------------------------------------------------------------------------------------------------------


@styled()
def draw_interaction(predictions: Predictions, judgement: Mapping[str, Any]) -> Plots:
    """The plots for which there is data: PNG, title and caption, by file name without suffix.

    Args:
        predictions: the evaluated predictions.
        judgement: the result of `judge`, with "oracle" if there is one.
    """
    plots: Plots = {}
    told = predictions.seconds or any("level" in name for name in predictions.gate_names)
    if told and any(_both(*pair) for pair in failures(predictions).values()):
        plots |= _failure_plots(predictions)
    if judgement["displacement_by_difficulty"]:
        words = "Thirds of the images by IoU; bars are standard deviations."
        picture = draw_by_difficulty(judgement["displacement_by_difficulty"])
        plots["displacement_by_difficulty"] = picture, "Displacement by TIM and difficulty", words
    if judgement["stages"]:
        words = "Cross-stage attention to each stage: mean and standard deviation over the images."
        plots["stages"] = draw_stages(judgement["stages"]), "Attention to the stages", words
    if "oracle" in judgement:
        words = (
            "Gain of a gate of 1 over a gate of 0, with the others unchanged: mean over the images, with its interval."
        )
        plots["oracle_gain"] = draw_gains(judgement["oracle"]), "Oracle: gain of the interaction", words
        words = "Correlation of the gate, its signals and the confidence with an image's gain; 0: none."
        plots["oracle_correlation"] = draw_correlations(judgement["oracle"]), "Oracle: correlation with the gain", words
    return plots
