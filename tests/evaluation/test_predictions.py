"""The stored predictions: probabilities, masks, gates, displacement, features; by image and by breast."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.data import get_testdata_file

from mtlkit.data import Exam, Record
from mtlkit.data.images import load_image
from mtlkit.data.items import MEAN, STD
from mtlkit.data.resizing import resize_map
from mtlkit.evaluation import predict_records
from mtlkit.evaluation.predictions import displacement, watched
from mtlkit.inference import IMAGE_FLIPS, slide
from mtlkit.inference.passes import count_windows
from mtlkit.metrics import SegmentationMetrics, boundary_scores
from mtlkit.models import create_model
from mtlkit.nn import InteractionLevel

SMALL = {"encoder": "resnet18", "decoder_dims": (16, 16, 12, 8), "clf_dim": 16, "hmsf": False}


@pytest.fixture(scope="module")
def records(lesion):
    return lesion.open_data().subset(lesion.split.test).records


def test_rows_are_the_answers_in_order(lesion, records):
    found = predict_records(lesion, records, batch_size=5)
    assert [record.key for record in found.records] == list(lesion.split.test)
    metrics = SegmentationMetrics()
    answers = []
    for batch in lesion.loader(records, 5):
        answer = lesion.predict(batch)
        metrics.update(answer["mask"], batch["mask"])
        answers.append(answer)
    for name, value in metrics.scores().items():
        assert np.array_equal(found.scores[name], value.double().numpy(), equal_nan=True)
    whole = {name: torch.cat([answer[name] for answer in answers]) for name in answers[0]}
    assert np.array_equal(found.probabilities["class"], whole["class"].double().numpy())
    assert np.array_equal(found.gates, whole["gates"].flatten(1).double().numpy())
    assert found.gate_names == ("seg_level1", "clf_level1", "seg_level4", "clf_level4")
    for row in (0, len(records) - 1):
        assert np.array_equal(found.mask(row), (whole["mask"][row, 0] >= 0.5).numpy())
    assert found.empty.tolist() == [record.label == 2 for record in records]
    assert np.isnan(found.scores["iou"][found.empty]).all()
    assert found.labels["class"].tolist() == [record.label for record in records]


def test_progress_is_told(lesion, records):
    told = []
    predict_records(lesion, records[:7], batch_size=3, progress=lambda done, total: told.append((done, total)))
    assert told == [(3, 7), (6, 7), (7, 7)]


def test_an_answer_that_is_no_number_is_named(lesion, records, monkeypatch):
    broken = {"class": torch.full((2, 3), float("nan"))}
    monkeypatch.setattr(type(lesion), "predict", lambda self, batch, **options: broken)
    keys = re.escape(f"{records[0].key}, {records[1].key}")
    with pytest.raises(FloatingPointError, match=f"output for the images {keys} is NaN or infinite"):
        predict_records(lesion, records[:2])


# --- displacement -----------------------------------------------------------------------------------------------------


def test_displacement_by_hand():
    before = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    after = torch.tensor([[3.0, 5.0], [1.0, 0.0]])
    found = displacement(before, after)
    assert found[0] == pytest.approx(0.2)
    assert found[1].isnan()


@pytest.mark.parametrize("name", ["mbdi", "btinet"])
def test_displacement_is_that_of_the_enhanced_features(name):
    """On request, the fused level returns D~ and f~: the lengths are the same."""
    torch.manual_seed(0)
    model = create_model(name, **SMALL, levels=(2, 3)).eval()
    images, expected = torch.rand(3, 3, 64, 64), []

    def keep(level, given, _):
        out = level(*given, return_enhanced=True)
        pairs = ((given[1], out.enhanced_clf), (given[0], out.enhanced_seg))
        lengths = [(b - a).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1) for a, b in pairs]
        expected.append(torch.stack(lengths, 1))

    busy = []

    def once(level, given, out):
        if not busy:  # the level runs a second time in here
            busy.append(True)
            keep(level, given, out)
            busy.clear()

    levels = [module for module in model.modules() if isinstance(module, InteractionLevel)]
    handles = [level.register_forward_hook(once) for level in levels]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    with torch.no_grad(), watched(model) as watch:
        model(images)
    found, _ = watch.take()
    assert found.shape == (3, 2, 2)
    torch.testing.assert_close(found, torch.stack(expected, 1), rtol=1e-4, atol=1e-6)


def test_displacement_without_upa_and_without_tim():
    images = torch.rand(2, 3, 64, 64)
    model = create_model("mbdi", **SMALL, upa=False).eval()
    with torch.no_grad(), watched(model) as watch:
        model(images)
    found, _ = watch.take()
    assert found.shape == (2, 4, 2)
    assert (found > 0).all()
    model = create_model("mbdi", **SMALL, upa=False, tim=False).eval()
    with torch.no_grad(), watched(model) as watch:
        model(images)
    assert watch.take() == (None, None)


def test_watching_leaves_the_network_as_it_was(lesion):
    before = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lesion.model.modules()]
    with watched(lesion.model, features=True):
        pass
    after = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lesion.model.modules()]
    assert before == after


# --- features ---------------------------------------------------------------------------------------------------------


def test_features_are_what_the_last_layer_takes(lesion, plain, views, mammography, records):
    for run in (lesion, plain, views):
        rows = [record for record in records if record.label < 2][:3]
        found = predict_records(run, rows, features=True)
        layer = run.model.last_layer
        logits = found.features @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        assert np.allclose(shares, found.probabilities["class"], atol=1e-5)
    exams = mammography.open_data().records[:3]
    found = predict_records(mammography, exams, features=True)
    assert found.features.shape[1] == mammography.model.last_layer.in_features
    assert predict_records(lesion, records[:2]).features is None


# --- breasts ----------------------------------------------------------------------------------------------------------


def test_a_row_for_each_breast_of_which_there_is_a_view(mammography):
    exams = mammography.open_data().records[:3]
    only_left = Exam("only left", (*exams[0].views[:2], None, None), (0, -1), (1, -1), "only left")
    one_view = Exam("one view", (None, None, None, exams[1].views[3]), (-1, 1), (-1, 4), "one view")
    both = exams[2]
    found = predict_records(mammography, [only_left, one_view, both])
    assert [(r.key, side) for r, side in zip(found.records, found.sides, strict=True)] == [
        ("only left", "left"),
        ("one view", "right"),
        (both.key, "left"),
        (both.key, "right"),
    ]
    assert found.labels["label"].tolist() == [0, 1, *both.labels]
    assert found.labels["birads"].tolist() == [1, 4, *both.birads]
    (batch,) = mammography.loader([only_left, one_view, both])
    answer = mammography.predict(batch)
    expected = answer["birads"][[0, 1, 2, 2], [0, 1, 0, 1]]
    assert np.allclose(found.probabilities["birads"], expected, atol=1e-6)
    assert np.allclose(found.gates, answer["gates"][[0, 1, 2, 2]], atol=1e-6)
    assert found.gate_names == ("l_cc", "l_mlo", "r_cc", "r_mlo")
    assert found.first_rows.tolist() == [0, 1, 2]


def test_paths_are_those_of_the_data(lesion, records, ultrasound):
    assert all(Path(record.image).is_relative_to(ultrasound) for record in predict_records(lesion, records[:2]).records)


# --- distances --------------------------------------------------------------------------------------------------------


def test_distances_are_in_pixels_and_where_the_file_says_it_in_mm(plain, tmp_path):
    pixels = np.zeros((128, 128), np.uint8)
    pixels[40:90, 30:80] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128), np.uint8)).save(tmp_path / "image.png")
    images = Path(get_testdata_file("CT_small.dcm")), tmp_path / "image.png"  # 0.661468 mm, and unknown
    records = [Record(str(i), path, 0, (tmp_path / "mask.png",), str(i)) for i, path in enumerate(images)]
    found = predict_records(plain, records, tolerance=5)
    batch = next(iter(plain.loader(records)))
    expected = boundary_scores(plain.predict(batch)["mask"], batch["mask"], tolerance=5)
    for name in ("hd95", "assd", "surface_dice"):
        np.testing.assert_allclose(found.scores[name], expected[name], rtol=1e-6)
    step = 0.661468 * 128 / plain.config.data.size
    np.testing.assert_allclose(found.scores["hd95_mm"], [step * expected["hd95"][0], np.nan], rtol=1e-5)
    assert "hd95_mm" not in predict_records(plain, records[1:]).scores


# --- several passes ---------------------------------------------------------------------------------------------------


def test_flips_are_averaged_and_what_is_watched_is_of_the_image_itself(lesion):
    records = lesion.open_data().records[:5]
    plain = predict_records(lesion, records, features=True, batch_size=5)
    found = predict_records(lesion, records, features=True, batch_size=5, tta=True)
    (batch,) = lesion.loader(records, 5)
    turned = [lesion.predict({**batch, "image": batch["image"].flip(axes)}) for axes in IMAGE_FLIPS]
    mean = torch.stack([one["class"] for one in turned]).mean(0)
    np.testing.assert_allclose(found.probabilities["class"], mean, atol=1e-6)
    masks = torch.stack([one["mask"].flip(axes) for one, axes in zip(turned, IMAGE_FLIPS, strict=True)]).mean(0)
    sure = ((masks - 0.5).abs() > 1e-5).numpy()
    drawn = np.stack([found.mask(row) for row in range(5)])[:, None]
    np.testing.assert_array_equal(drawn[sure], (masks >= 0.5).numpy()[sure])
    np.testing.assert_array_equal(found.features, plain.features)
    np.testing.assert_array_equal(found.displacement, plain.displacement)
    assert (found.cost["passes"], plain.cost) == (4, {})
    assert found.cost["seconds"] > 0


def test_windows_are_judged_at_the_resolution_of_training(lesion):
    """The phantoms are larger than the 32 pixels of the network's training."""
    records = lesion.open_data().records[:2]
    plain, found = predict_records(lesion, records), predict_records(lesion, records, sliding_window=True)
    np.testing.assert_array_equal(found.probabilities["class"], plain.probabilities["class"])
    windows = []

    def draw(images):
        return lesion.predict({"image": torch.from_numpy(images)})["mask"].numpy()

    for row, record in enumerate(records):
        pixels = load_image(record.image).pixels
        windows.append(count_windows(pixels.shape, 32))
        expected = resize_map(slide(draw, pixels, 32, mean=MEAN, std=STD), 32, 32)
        sure = np.abs(expected - 0.5) > 1e-4
        np.testing.assert_array_equal(found.mask(row)[sure], (expected >= 0.5)[sure])
    assert found.cost["passes"] == 1 + np.mean(windows) > 5
    assert all((found.mask(row) != plain.mask(row)).any() for row in range(2))


def test_flips_of_exams_and_windows_without_masks(mammography):
    exams = mammography.open_data().records[:2]
    assert predict_records(mammography, exams, tta=True).cost["passes"] == 2
    with pytest.raises(
        ValueError, match=r"^sliding_window: expected a network that predicts masks, which that of .*run does"
    ):
        predict_records(mammography, exams, sliding_window=True)
