"""The data in the plots."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import precision_recall_curve, roc_curve

from mtlkit.evaluation import Figure as Interval
from mtlkit.evaluation.plots import COLOURS, draw_confusion, draw_curves, draw_displacement, draw_gates


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def colours(png: bytes) -> set[tuple[int, ...]]:
    return {tuple(int(v) for v in colour) for colour in pixels(png).reshape(-1, 3)}


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that would be saved as PNG, in order."""
    figures, save = [], Figure.savefig

    def savefig(figure, *arguments, **options):
        figures.append(figure)
        return save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


@pytest.mark.parametrize("digits", [1, 9])
def test_curves_are_those_of_scikit_learn(digits, drawn):
    generator = np.random.default_rng(0)
    positive = generator.random(60) < 0.4
    scores = (generator.random(60) + 0.3 * positive).round(digits)
    draw_curves(np.stack([1 - scores, scores], 1), positive.astype(int), ("a", "b"), [Interval(0.5, 0.4, 0.6)] * 2)
    roc, pr = (ax.lines[0].get_xydata() for ax in drawn[0].axes)
    wrong, right, _ = roc_curve(positive, scores, drop_intermediate=False)
    assert np.allclose(roc, np.stack([wrong, right], 1))
    precision, recall, _ = precision_recall_curve(positive, scores)
    assert np.allclose(pr[1:], np.stack([recall, precision], 1)[-2::-1])
    assert np.allclose(pr[0], [0, pr[1, 1]])


def test_curves_of_classes_that_occur():
    """Three classes, of which the third has no example: only two colours."""
    labels = np.array([0, 1, 0, 1, -1])
    probabilities = np.array([[0.6, 0.2, 0.2], [0.3, 0.5, 0.2], [0.2, 0.5, 0.3], [0.1, 0.8, 0.1], [1.0, 0, 0]])
    seen = colours(draw_curves(probabilities, labels, ("a", "b", "c"), [Interval(0.5, 0.4, 0.6)] * 3))
    assert {rgb(colour) for colour in COLOURS[:2]} <= seen
    assert rgb(COLOURS[2]) not in seen


def test_confusion_is_darker_where_there_is_more():
    picture = pixels(draw_confusion([[9, 1], [0, 10]], ("a", "b"), "")).mean(2)
    top, bottom = np.array_split(picture, 2)
    dark = [[(side < 120).mean() for side in np.array_split(half, 2, axis=1)] for half in (top, bottom)]
    assert min(dark[0][0], dark[1][1]) > 3 * max(dark[0][1], dark[1][0])


def panels(figure: Figure) -> dict[str, list[str]]:
    """The labels along the axis of each panel, by its title."""
    return {ax.get_title("left"): [tick.get_text() for tick in ax.get_xticklabels()] for ax in figure.axes}


def test_gates_stand_in_panels_by_branch(drawn):
    entry = {"mean": 0.5, "sd": 0.1, "classes": {"a": {"mean": 0.4, "sd": 0.1}}}
    draw_gates(dict.fromkeys(["seg_level1", "clf_level1", "seg_level3", "clf_level3"], entry))
    levels = ["level 1", "level 3"]
    assert list(panels(drawn[0]).values()) == [levels, levels]
    draw_gates(dict.fromkeys(["image", "tumor"], entry))
    assert panels(drawn[1]) == {"": ["image", "tumor"]}


def test_displacement_of_one_level():
    entry = {"level2": {"mean": 0.4, "sd": 0.1}}
    seen = colours(draw_displacement({"seg_to_clf": entry, "clf_to_seg": entry}))
    assert {rgb(colour) for colour in COLOURS[:2]} <= seen


def test_nothing_is_left_to_pyplot():
    draw_confusion([[1, 0], [0, 1]], ("a", "b"), "")
    assert plt.get_fignums() == []


def test_names_of_classes_are_text_and_in_the_legend(drawn):
    names = ("_cyst", "a_b", "\x1b[31m\n")
    labels = np.array([0, 1, 2, 0, 1, 2])
    probabilities = np.eye(3)[labels] * 0.8 + 0.1
    draw_curves(probabilities, labels, names, [Interval(0.5, 0.4, 0.6)] * 3)
    draw_confusion(np.eye(3, dtype=int).tolist(), names, "")
    legend = [text.get_text() for text in drawn[0].axes[1].get_legend().get_texts()]
    ticks = [text.get_text() for text in drawn[1].axes[0].get_xticklabels()]
    assert legend == ticks == ["\u200c_cyst", "a_b", r"\x1b[31m\n"]
