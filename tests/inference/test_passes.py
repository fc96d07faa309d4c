"""Flips are undone before averaging; windows blend into one mask, with weights that sum to 1 everywhere."""

import json

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from PIL import Image

from mtlkit.cli import main
from mtlkit.data.items import to_range
from mtlkit.errors import DataError
from mtlkit.inference import EXAM_FLIPS, IMAGE_FLIPS, flip_average, open_network, predict, slide
from mtlkit.inference.passes import blending_weights, count_windows, window_starts


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


# --- flips ------------------------------------------------------------------------------------------------------------


def test_of_a_flip_equivariant_network_it_is_the_plain_answer():
    def network(inputs):
        images = inputs["images"]
        around = sum(np.roll(images, step, axis) for step in (-1, 1) for axis in (2, 3))
        return {"mask": images + around, "class": images.max((2, 3)), "gates": images.min((2, 3))}

    inputs = {"images": np.random.default_rng(0).random((2, 1, 6, 8), np.float32)}
    found, plain = flip_average(network, inputs), network(inputs)
    np.testing.assert_allclose(found["mask"], plain["mask"], rtol=1e-6)
    np.testing.assert_array_equal(found["class"], plain["class"])
    assert found["mask"].dtype == np.float32


def test_is_the_mean_of_flips_that_are_undone():
    """Input masks are flipped with the image; outputs without rows and columns are not flipped."""
    ramp = np.arange(12, dtype=np.float32).reshape(3, 4)
    seen = []

    def network(inputs):
        seen.append(inputs)
        return {"mask": inputs["images"] * ramp, "class": (inputs["images"] * ramp).sum((2, 3))}

    generator = np.random.default_rng(0)
    images, masks = (generator.random((2, 1, 3, 4), np.float32) for _ in range(2))
    present = np.array([[True, False]] * 2)
    found = flip_average(network, {"images": images, "masks": masks, "present": present})
    turned = [np.flip(ramp, axes) for axes in ((), (0,), (1,), (0, 1))]
    np.testing.assert_allclose(found["mask"], images * np.mean(turned, 0), rtol=1e-5)
    np.testing.assert_allclose(found["class"], (images * np.mean(turned, 0)).sum((2, 3)), rtol=1e-5)
    assert len(seen) == 4
    for inputs, axes in zip(seen, IMAGE_FLIPS, strict=True):
        np.testing.assert_array_equal(inputs["masks"], np.flip(masks, axes))
        assert inputs["present"] is present


def test_views_of_exams_are_flipped_within_themselves():
    views = noise(1, 4, 3, 5, 6)
    seen = []
    flip_average(lambda inputs: seen.append(inputs["views"]) or {}, {"views": views}, EXAM_FLIPS)
    assert len(seen) == 2
    np.testing.assert_array_equal(seen[1], views[..., ::-1])


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "window"), [(8, 8), (9, 8), (12, 8), (16, 8), (17, 8), (100, 32), (101, 7), (5, 1), (1, 1)]
)
def test_windows_cover_the_axis_and_their_weights_sum_to_one(length, window):
    starts, weights = window_starts(length, window), blending_weights(length, window)
    assert (starts[0], starts[-1]) == (0, length - window)
    gaps = np.diff(starts)
    assert len(gaps) == 0 or (gaps.max() <= max(1, window // 2) and gaps.max() - gaps.min() <= 1)
    assert starts == [length - window - start for start in starts][::-1]  # symmetric
    np.testing.assert_allclose(weights.sum(0), 1, rtol=1e-6)
    assert (weights >= 0).all()
    for start, row in zip(starts, weights, strict=True):
        assert not row[:start].any()
        assert not row[start + window :].any()
        assert (row[start : start + window] > 0).all()


def test_of_an_image_of_a_windows_size_it_is_the_plain_mask_to_the_last_bit():
    image = noise(16, 16, 3)
    answer = np.random.default_rng(1).random((1, 1, 16, 16), np.float32)
    given = []
    found = slide(lambda images: given.append(images) or answer, image, 16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    np.testing.assert_array_equal(found, answer[0, 0])
    expected = to_range(image.transpose(2, 0, 1), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    np.testing.assert_array_equal(given[0], expected[None])


@pytest.mark.parametrize("shape", [(16, 33), (40, 57), (100, 16), (7, 30), (50, 3), (17, 16)])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_sizes_that_windows_do_not_divide_and_sides_that_are_shorter(shape, batch_size):
    """For a network that looks at single pixels, the blended mask is that of the complete image."""
    image, counts = noise(*shape, 3), []

    def network(images):
        assert images.shape[2:] == (16, 16)
        counts.append(len(images))
        return images[:, 1:2] ** 2

    found = slide(network, image, 16, batch_size=batch_size)
    np.testing.assert_allclose(found, (image[..., 1] / 255.0) ** 2, atol=1e-6)
    assert sum(counts) == count_windows(shape, 16)
    assert max(counts) <= batch_size


def test_is_what_monai_makes_of_the_same_windows():
    """Sizes for which MONAI places windows like mtlkit; the network sees the position of a pixel in its window."""
    image = noise(65, 97, 3)
    place = np.random.default_rng(1).random((1, 33, 33), np.float32)
    found = slide(lambda images: images.mean(1, keepdims=True) * place, image, 33, batch_size=4)
    tensor = torch.from_numpy(image.transpose(2, 0, 1) / np.float32(255))[None]
    expected = sliding_window_inference(
        tensor, (33, 33), 4, lambda x: x.mean(1, keepdim=True) * torch.from_numpy(place), overlap=0.5, mode="gaussian"
    )
    inside = slice(8, -8), slice(8, -8)  # elsewhere MONAI raises most weights, to 1/1000 of the largest
    np.testing.assert_allclose(found[inside], expected[0, 0][inside], atol=0.01)


@pytest.mark.parametrize("name", ["window", "batch_size"])
def test_sizes_below_one(name):
    with pytest.raises(ValueError, match=rf"^{name}: expected at least 1, got 0$"):
        slide(lambda images: images, noise(4, 4, 3), **{"window": 2, "batch_size": 2, name: 0})


# --- prediction -------------------------------------------------------------------------------------------------------


def masks_of(folder, rows):
    return [np.asarray(Image.open(folder / row["mask"])) for row in rows]


@pytest.mark.parametrize("engine", ["run", "file"])
def test_predictions_with_windows(small_lesion, image, tmp_path, engine):
    """Class and gates come from the complete image; images up to the window's size are predicted without windows."""
    source = getattr(small_lesion, engine)
    files = [image("scans/a.png", 32, 32), image("scans/b.png", 20, 30), image("scans/c.png", 50, 70)]
    plain = predict(source, files, tmp_path / "plain", batch_size=2)
    found = predict(source, files, tmp_path / "windows", batch_size=2, sliding_window=True)
    for old, new in zip(plain.rows, found.rows, strict=True):
        same = {name for name in old if name.startswith(("class_", "gate_"))}
        assert {name: new[name] for name in same} == pytest.approx({name: old[name] for name in same}, abs=1e-6)
    assert [row["passes"] for row in found.rows] == [1, 1, 1 + 3 * 4]
    assert all(row["seconds"] >= 0 for row in found.rows)
    before, after = masks_of(tmp_path / "plain", plain.rows), masks_of(tmp_path / "windows", found.rows)
    for i in (0, 1):
        np.testing.assert_array_equal(after[i], before[i])
    network = open_network(source)
    pixels = np.asarray(Image.open(files[2]).convert("RGB"))
    facts = network.facts
    expected = slide(lambda images: network({"images": images})["mask"], pixels, 32, mean=facts.mean, std=facts.std)
    np.testing.assert_array_equal(after[2] > 0, expected >= 0.5)
    assert (after[2] != before[2]).any()
    (words,) = (remark for remark in found.remarks if "windows" in remark)
    assert words.startswith("windows blended: 5 passes of the network for each, ")
    about = json.loads((tmp_path / "windows/predictions.json").read_text())
    assert (about["sliding_window"], about["tta"], about["rows"][2]["passes"]) == (True, False, 13)
    assert "passes" not in plain.rows[0]


def test_predictions_with_flips(small_lesion, small_mammography, image, tmp_path):
    file = image("scan.png", 40, 52)
    rows = [predict(source, file, tmp_path / name, tta=True).rows[0] for name, source in small_lesion._asdict().items()]
    assert [row["passes"] for row in rows] == [4, 4]
    assert rows[0]["class_p_benign"] == pytest.approx(rows[1]["class_p_benign"], abs=1e-5)
    network = open_network(small_lesion.file)
    pixels = np.asarray(Image.open(file).convert("RGB").resize((32, 32))).transpose(2, 0, 1)
    images = to_range(pixels, network.facts.mean, network.facts.std)[None]
    mean = np.mean([network({"images": np.flip(images, axes).copy()})["class"] for axes in IMAGE_FLIPS], axis=0)
    assert rows[1]["class_p_benign"] == pytest.approx(mean[0, 0], abs=0.01)  # Pillow resizes slightly differently
    for name in ("L_CC", "L_MLO", "R_CC"):
        image(f"exams/one/{name}.png", 40, 30)
    found = predict(small_mammography.file, tmp_path / "exams", tmp_path / "birads", tta=True)
    assert found.rows[0]["passes"] == 2
    assert any(remark.startswith("flips averaged: 2 passes of the network for each, ") for remark in found.remarks)


def test_temperatures_divide_logits_before_the_mean(small_lesion, image, tmp_path):
    hot = small_lesion.run.uncalibrated()
    object.__setattr__(hot, "temperature", lambda task: 1e6)
    row = predict(hot, image("a.png"), tmp_path / "out", tta=True).rows[0]
    assert row["class_p_benign"] == pytest.approx(1 / 3, abs=1e-4)


def test_networks_without_masks_and_other_options_on_resuming(
    small_views, small_mammography, small_lesion, image, tmp_path
):
    scan = image("scan.png")
    for source, options in ((small_views.file, {"masks": tmp_path}), (small_mammography.file, {})):
        with pytest.raises(
            ValueError, match=r"^sliding_window: expected a network that predicts masks, which that of .*net.onnx"
        ):
            predict(source, scan, tmp_path / "out", sliding_window=True, **options)
    assert not (tmp_path / "out").exists()
    predict(small_lesion.file, scan, tmp_path / "out", tta=True)
    with pytest.raises(DataError, match=r"tta: expected True, of the prediction to be continued, got False"):
        predict(small_lesion.file, scan, tmp_path / "out", resume=True)
    assert predict(small_lesion.file, scan, tmp_path / "out", resume=True, tta=True).rows[0]["passes"] == 4


def test_the_command_says_what_they_cost(small_lesion, image, tmp_path, capsys):
    arguments = ["predict", str(small_lesion.file), str(image("scan.png", 40, 52)), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--tta", "--sliding-window"]) == 0
    assert "flips averaged and windows blended: 28 passes of the network for each, " in capsys.readouterr().out
