"""Which images the plot shows, and the contents of its panels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure, SubFigure

from mtlkit.data import Record
from mtlkit.evaluation import GradCam, Predictions, grad_cam, predict_records
from mtlkit.evaluation.attribution_plots import chosen_rows, draw_attribution, look, veiled


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that would be saved as PNG, in order; nothing is written."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def rows(figure: Figure) -> list[SubFigure]:
    return list(figure.subfigs)[:-1]  # the last one is the scale


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.5, 0.1, 0.9, 0.6, np.nan, 0.8], {"worst": 1, "median": 3, "best": 2}),
        ([0.5, 0.1, 0.9, 0.6], {"worst": 1, "median": 0, "best": 2}),
        ([0.5, 0.1], {"worst": 1, "best": 0}),
        ([np.nan, 0.4], {"worst": 1}),
    ],
)
def test_worst_median_and_best(scores, expected):
    records = tuple(Record(str(i), Path(f"{i}.png"), 0, (), str(i)) for i in range(len(scores)))
    labels, shares = {"class": np.zeros(len(scores), int)}, {"class": np.ones((len(scores), 1))}
    assert chosen_rows(Predictions(None, records, (), labels, shares, {"iou": np.array(scores)})) == expected


def test_lesions_with_outlines_and_the_gates_of_each_level(lesion, drawn):
    records = lesion.open_data().records[:5]
    predictions = predict_records(lesion, records)
    (name, (_, title, caption)) = next(iter(draw_attribution(predictions).items()))
    assert (name, title) == ("attribution", "Where the network looks for the class")
    assert "Orange" in caption
    lines = rows(drawn[0])
    for part, (what, row) in zip(lines, chosen_rows(predictions).items(), strict=True):
        image, heat, gates = part.axes
        assert image.get_title() == f"image, IoU {predictions.scores['iou'][row]:.2f}"
        assert (heat.get_title(), gates.get_title()) == ("Grad-CAM", "gates")
        taken = lesion.classes[predictions.predicted("class")[row]]
        assert part._suptitle.get_text().startswith(f"{what.capitalize()}: predicted {taken}, ")
        assert image.get_xlabel() == predictions.records[row].key
        assert sorted(bar.get_width() for bar in gates.patches) == pytest.approx(sorted(predictions.gates[row]))
        assert [tick.get_text() for tick in gates.get_yticklabels()] == ["level 1", "level 4"]


def test_maps_are_those_of_the_class_the_image_was_taken_for(lesion):
    records = lesion.open_data().records[:2]
    predictions = predict_records(lesion, records)
    found = look(predictions, 1, "best")
    item = lesion.dataset(records)[1]
    expected = grad_cam(lesion.model, item["image"][None], target=int(predictions.predicted("class")[1]))
    heat = expected.maps["image"][0].numpy()
    np.testing.assert_allclose(found.panels[1].heat, heat / max(heat.max(), 1e-30), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(found.panels[0].outlines[0], item["mask"][0] > 0.5)
    np.testing.assert_array_equal(found.panels[0].outlines[1], predictions.mask(1))


def test_experts_are_drawn_on_what_they_see(views, drawn, monkeypatch):
    """Their maps have one common scale."""
    maps = {name: torch.full((1, 32, 32), value) for name, value in (("image", 0.2), ("tumor", 0.4), ("boundary", 0.0))}
    given = []
    monkeypatch.setattr(
        "mtlkit.evaluation.attribution_plots.grad_cam",
        lambda network, *inputs, **options: given.append(options) or GradCam(maps, None, None),
    )
    records = views.open_data().records[:3]
    predictions = predict_records(views, records)
    found = look(predictions, 0, "worst")
    assert [panel.title for panel in found.panels] == ["image", "expert: image", "expert: tumor", "expert: boundary"]
    image, mask = (torch.from_numpy(x) for x in (found.panels[0].image, found.panels[0].outlines[0]))
    seen = views.model.views(image.permute(2, 0, 1)[None].float(), mask[None, None].float())
    for panel, view in zip(found.panels[1:], seen, strict=True):
        np.testing.assert_allclose(panel.image, view[0].permute(1, 2, 0), atol=1e-6)
    assert [panel.heat.max() for panel in found.panels[1:]] == pytest.approx([0.5, 1.0, 0.0])
    assert given == [{"target": int(predictions.predicted("class")[0]), "output": "cls_logits", "side": None}]
    assert list(found.gates) == ["image", "tumor", "boundary"]
    caption = draw_attribution(predictions)["attribution"][2]
    assert "Green" in caption
    assert "Orange" not in caption


def test_views_of_the_breast_are_bold_and_lie_as_in_their_files(mammography, drawn):
    exams = list(mammography.open_data().records[:2])
    exams[0] = replace(exams[0], views=(exams[0].views[0], None, *exams[0].views[2:]))
    predictions = predict_records(mammography, exams)
    row = predictions.sides.index("right")
    found = look(predictions, row, "worst")
    assert found.title == "worst, right breast"
    assert [panel.title for panel in found.panels] == ["L-CC", "L-MLO", "R-CC", "R-MLO"]
    assert [panel.weight for panel in found.panels] == ["normal", "normal", "bold", "bold"]
    assert found.panels[1].image is None
    item = mammography.task.items(exams, mammography.config.change({"data": {"normalize": False}}).data)[0]
    for i, turn in ((0, 1), (2, -1)):
        np.testing.assert_allclose(
            found.panels[i].image, item["views"][i].permute(1, 2, 0)[:, ::1].numpy()[:, ::turn], atol=1e-5
        )
    draw_attribution(predictions)
    texts = [text.get_text() for part in rows(drawn[0]) for ax in part.axes for text in ax.texts]
    assert "no such view" in texts


def test_networks_without_maps_have_no_figure(plain):
    assert draw_attribution(predict_records(plain, plain.open_data().records[:2])) == {}


def test_the_veil_is_as_dense_as_the_map_is_high():
    image, heat = np.full((1, 3, 3), 0.5), np.array([[0.0, 0.4, 1.0]])
    found = veiled(image, heat)
    np.testing.assert_array_equal(found[0, 0], image[0, 0])
    moved = np.abs(found - image).max(-1)[0]
    assert moved[0] < moved[1] < moved[2]
