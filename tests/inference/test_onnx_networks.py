"""Networks of files: the same predictions as those of the runs that they were exported from."""

import csv
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from mtlkit import deploy
from mtlkit.inference import open_network, predict


def drawings(folder: Path) -> dict[str, np.ndarray]:
    return {path.relative_to(folder).as_posix(): np.asarray(Image.open(path)) for path in folder.rglob("*.png")}


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_same(one: Path, other: Path) -> None:
    """Two folders of predictions, of networks that differ by rounding alone."""
    for row, expected in zip(table(one), table(other), strict=True):
        assert row.keys() == expected.keys()
        for name, value in row.items():
            if "_p_" in name or name.startswith("gate_"):
                assert value == expected[name] or float(value) == pytest.approx(float(expected[name]), abs=2e-6)
            elif name.startswith("area_pixels") and value:
                assert int(value) == pytest.approx(int(expected[name]), abs=2)
            elif not name.startswith("area_mm2"):
                assert value == expected[name]
    names = drawings(other)
    assert drawings(one).keys() == names.keys()
    for name, pixels in drawings(one).items():
        if name.startswith("masks/"):
            assert (pixels != names[name]).sum() <= 2, name  # at the threshold


def test_what_both_engines_say(small_lesion, small_views, small_mammography):
    for run, file in (small_lesion, small_views, small_mammography):
        by_torch, by_onnx = open_network(run), open_network(file)
        assert by_torch.facts == by_onnx.facts
        assert (by_torch.engine, by_onnx.engine) == ("torch", "onnxruntime")
        inputs = dict(zip(run.task.inputs, (tensor.numpy() for tensor in run.example()), strict=True))
        expected, found = by_torch(inputs), by_onnx(inputs)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert value.dtype == np.float32
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)


def test_images(small_lesion, image, tmp_path):
    """PNG, JPEG, frames of DICOM, and a DICOM file that says how large its pixels are."""
    image("scans/a.png", 40, 52)
    image("scans/more/b.jpg", 133, 121, seed=1)
    dicom = pydicom.dcmread(get_testdata_file("examples_rgb_color.dcm", download=False))
    dicom.PixelSpacing = [0.5, 0.25]
    dicom.save_as(tmp_path / "scans/c.dcm")
    (tmp_path / "scans/d.png").write_bytes(b"broken")
    folders = [tmp_path / "torch", tmp_path / "onnx"]
    for network, out in zip(small_lesion, folders, strict=True):
        found = predict(network, tmp_path / "scans", out, skip_bad=True)
        assert [row["key"] for row in found.rows] == ["a", "c", "more/b"]
        assert len(found.skipped) == 1
    assert_same(*folders)
    assert float(table(folders[1])[1]["area_mm2"]) > 0
    about = json.loads((folders[1] / "predictions.json").read_text())
    assert (about["run"], about["engine"], about["device"]) == (str(small_lesion.file), "onnxruntime", "cpu")
    assert about["weights"] == deploy.facts_of(deploy.open_session(small_lesion.file))["weights"]


def test_masks(small_views, image, tmp_path):
    for name in "ab":
        image(f"scans/{name}.png", 40, 52)
        mask = np.zeros((40, 52), np.uint8)
        mask[5:20, 10:30] = 255
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / f"masks/{name}.png")
    folders = [tmp_path / "torch", tmp_path / "onnx"]
    for network, out in zip(small_views, folders, strict=True):
        predict(network, tmp_path / "scans", out, masks=tmp_path / "masks")
    assert_same(*folders)


def test_exams(small_mammography, draw_phantoms, tmp_path):
    exams = draw_phantoms("mammography", 5)
    folders = [tmp_path / "torch", tmp_path / "onnx"]
    remarks = [
        predict(network, exams / "CMMD", out).remarks for network, out in zip(small_mammography, folders, strict=True)
    ]
    assert remarks[0] == remarks[1]
    assert_same(*folders)
