"""Predictions: equal to the evaluation's, masks in the sizes of the images, the table, exams, and rejected input."""

import csv
import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.data import get_testdata_file
from torchvision.transforms.v2 import functional as TF

from mtlkit._files import csv_value
from mtlkit.cli import main
from mtlkit.data import DataError, Record, dicom_pixels, open_dataset, read_image
from mtlkit.inference import draw_overlay, predict
from mtlkit.models import create_model
from mtlkit.models.network import Network
from mtlkit.training import SavedRun, load_run, train

CINE = get_testdata_file("examples_ybr_color.dcm", download=False)  # 30 frames of 240 x 320


def table(out):
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def phantoms(draw_phantoms):
    return draw_phantoms("ultrasound", 9)


# --- as in the evaluation ---------------------------------------------------------------------------------------------


def test_predictions_are_those_of_the_evaluation(lesion, phantoms, tmp_path):
    """The same probabilities as in the evaluation of a run, and masks computed from the same maps."""
    records = open_dataset(phantoms, classes=lesion.classes).records
    expected = {}
    for batch in lesion.loader(records, 4):
        found = lesion.predict(batch)
        for i, key in enumerate(batch["key"]):
            expected[key] = {name: value[i] for name, value in found.items()}
    rows = predict(lesion, phantoms, tmp_path / "out", batch_size=4).rows
    assert {row["key"] for row in rows} == set(expected)
    for row in rows:
        one = expected[row["key"]]
        p = [row[f"class_p_{name}"] for name in lesion.classes]
        torch.testing.assert_close(torch.tensor(p), one["class"], rtol=1e-5, atol=1e-6)
        assert row["class_predicted"] == lesion.classes[int(one["class"].argmax())]
        gates = [row[f"gate_{branch}_level{level}"] for level in (1, 2, 3, 4) for branch in ("seg", "clf")]
        torch.testing.assert_close(torch.tensor(gates), one["gates"].flatten(), rtol=1e-5, atol=1e-6)
        size = list(read_image(phantoms / f"{row['key']}.png").shape[:2])
        mask = pixels(tmp_path / "out" / row["mask"])
        assert list(mask.shape) == size
        borderline = (TF.resize(one["mask"], size, antialias=True)[0] - 0.5).abs() < 1e-4
        wanted = TF.resize(one["mask"], size, antialias=True)[0] >= 0.5
        assert ((torch.from_numpy(mask > 0) == wanted) | borderline).all()
        assert row["area_pixels"] == (mask > 0).sum()


def test_an_image_does_not_depend_on_its_batch(lesion, phantoms, tmp_path):
    together = predict(lesion, phantoms, tmp_path / "a", batch_size=9).rows
    alone = predict(lesion, phantoms, tmp_path / "b", batch_size=1).rows
    for one, other in zip(together, alone, strict=True):
        assert one["key"] == other["key"]
        assert one["class_p_benign"] == pytest.approx(other["class_p_benign"], abs=1e-5)


# --- the folder -------------------------------------------------------------------------------------------------------


def test_folder(lesion, image, tmp_path):
    image("scans/a.png", 40, 52)
    image("scans/more/b.jpg", 33, 21, seed=1)
    (tmp_path / "scans/notes.txt").write_text("x")
    told = []
    found = predict(lesion, tmp_path / "scans", tmp_path / "out", progress=lambda *of: told.append(of))
    out = tmp_path / "out"
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    drawings = {f"{what}/{name}.png" for what in ("masks", "overlays") for name in ("a", "more/b")}
    assert names == {".mtlkit-files", "predictions.csv", "predictions.json", *drawings}
    for name, size in (("a", (40, 52)), ("more/b", (33, 21))):
        assert pixels(out / f"masks/{name}.png").shape == size
        assert set(np.unique(pixels(out / f"masks/{name}.png"))) <= {0, 255}
        assert pixels(out / f"overlays/{name}.png").shape == (*size, 3)
    mask = pixels(out / "masks/a.png") > 0
    assert (pixels(out / "overlays/a.png") == draw_overlay(read_image(tmp_path / "scans/a.png"), mask)).all()
    rows = table(out)
    assert [row["key"] for row in rows] == ["a", "more/b"]
    for row, given in zip(rows, found.rows, strict=True):
        assert sum(float(row[f"class_p_{name}"]) for name in lesion.classes) == pytest.approx(1, abs=1e-5)
        assert float(row["class_p_normal"]) == pytest.approx(given["class_p_normal"], rel=1e-5)
        assert (row["frame"], row["area_mm2"]) == ("", "")
        assert (out / row["mask"]).is_file()
        assert (out / row["overlay"]).is_file()
    about = json.loads((out / "predictions.json").read_text())
    assert (about["network"], about["predicted"], about["skipped"]) == ("btinet", 2, [])
    assert about["classes"] == {"class": list(lesion.classes)}
    assert told[-1] == (2, 2)


def test_frames_and_real_ultrasound(lesion, tmp_path):
    rows = predict(lesion, CINE, tmp_path / "out", batch_size=10).rows
    assert [row["key"] for row in rows] == [f"examples_ybr_color_frame{i:02d}" for i in range(1, 31)]
    assert [row["frame"] for row in rows] == list(range(1, 31))
    overlay, mask = (pixels(tmp_path / "out" / rows[6][what]) for what in ("overlay", "mask"))
    assert (overlay == draw_overlay(read_image(CINE, 6), mask > 0)).all()
    assert (read_image(CINE, 6) != read_image(CINE, 7)).any()


def test_area_in_square_millimetres(lesion, tmp_path):
    file = pydicom.dcmread(get_testdata_file("examples_rgb_color.dcm", download=False))
    file.PixelSpacing = [0.5, 0.25]
    file.save_as(tmp_path / "a.dcm")
    (row,) = predict(lesion, tmp_path / "a.dcm", tmp_path / "out").rows
    assert row["area_pixels"] > 0
    assert row["area_mm2"] == pytest.approx(row["area_pixels"] / 8)
    file.ImagerPixelSpacing = [0.25, 0.25]
    file.save_as(tmp_path / "b.dcm")
    with pytest.warns(
        UserWarning, match=r"area_mm2: .*b\.dcm: PixelSpacing, 0.5 x 0.25 mm, which is used, contradicts"
    ):
        predict(lesion, tmp_path / "b.dcm", tmp_path / "doubtful")


def test_the_pixels_of_a_file_are_read_once(lesion, tmp_path, monkeypatch):
    (tmp_path / "a.dcm").write_bytes(Path(get_testdata_file("examples_rgb_color.dcm", download=False)).read_bytes())
    reads, whole = [], dicom_pixels.open_dicom
    monkeypatch.setattr(
        dicom_pixels, "open_dicom", lambda path, **options: reads.append(options["pixels"]) or whole(path, **options)
    )
    predict(lesion, tmp_path / "a.dcm", tmp_path / "out")
    assert reads == [True]


def test_no_lesion_is_no_outline(lesion, image, tmp_path):
    path = image("a.png")
    silent = SavedRun(**{**vars(lesion), "model": _Silent(lesion.model)})
    (row,) = predict(silent, path, tmp_path / "out").rows
    assert row["area_pixels"] == 0
    assert (pixels(tmp_path / "out" / row["overlay"]) == read_image(path)).all()


class _Silent(Network):
    """A network that never finds a lesion."""

    def __init__(self, model):
        super().__init__()
        self.model, self.options = model, model.options

    returns = property(lambda self: self.model.returns)
    gate_names = property(lambda self: self.model.gate_names)

    def forward(self, images):
        out = self.model(images)
        return out._replace(seg_logits=torch.full_like(out.seg_logits, -9.0))


def test_a_network_that_is_given_masks(views, lesion, image, tmp_path):
    image("scans/a.png", 40, 52)
    image("scans/b.png", 40, 52, seed=1)
    predict(lesion, tmp_path / "scans", tmp_path / "first")
    found = predict(views, tmp_path / "scans", tmp_path / "out", masks=tmp_path / "first/masks")
    mask = pixels(tmp_path / "first/masks/b.png") > 0
    assert found.rows[1]["area_pixels"] == mask.sum()
    assert (pixels(tmp_path / "out/overlays/b.png") == draw_overlay(read_image(tmp_path / "scans/b.png"), mask)).all()
    assert not (tmp_path / "out/masks").exists()
    assert sum(found.rows[0][f"gate_{name}"] for name in ("image", "tumor", "boundary")) == pytest.approx(1, abs=1e-5)
    record = Record("b", tmp_path / "scans/b.png", -1, (tmp_path / "first/masks/b.png",), "b")
    item = views.dataset([record])[0]
    expected = views.predict({k: v[None] for k, v in item.items() if isinstance(v, torch.Tensor)})["class"][0]
    assert found.rows[1]["class_p_malignant"] == pytest.approx(float(expected[1]), abs=1e-5)

    (tmp_path / "first/masks/a.png").unlink()
    with pytest.raises(DataError, match=r"scans/a.png: there is no mask a.png of it in .*first/masks"):
        predict(views, tmp_path / "scans", tmp_path / "out2", masks=tmp_path / "first/masks")
    found = predict(views, tmp_path / "scans", tmp_path / "out2", masks=tmp_path / "first/masks", skip_bad=True)
    assert [row["key"] for row in found.rows] == ["b"]
    alone = SavedRun(**{**vars(views), "model": create_model("csa_moe", experts=("image",)).eval()})
    predict(alone, tmp_path / "scans", tmp_path / "out3", masks=tmp_path / "first/masks")
    assert [(row["key"], row["area_pixels"]) for row in table(tmp_path / "out3")] == [("a", ""), ("b", str(mask.sum()))]
    with pytest.raises(DataError, match=r"needs a folder with masks of the lesions$"):
        predict(views, tmp_path / "scans", tmp_path / "out4")
    with pytest.raises(DataError, match="does not take masks"):
        predict(lesion, tmp_path / "scans", tmp_path / "out4", masks=tmp_path / "first/masks")


# --- mammography ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exams(draw_phantoms):
    return draw_phantoms("mammography", 5)


def test_exams_are_as_in_the_evaluation(mammography, exams, tmp_path):
    catalogue = open_dataset(exams, birads=(1, 2, 3, 4, 5))
    known = {record.key: record for record in catalogue.records}
    expected = {}
    for batch in mammography.loader(catalogue.records, 2):
        found = mammography.predict(batch)
        for i, key in enumerate(batch["key"]):
            expected[key] = {name: value[i] for name, value in found.items()}
    rows = predict(mammography, exams / "CMMD", tmp_path / "out", batch_size=2).rows
    assert {row["key"] for row in rows} == set(expected)
    for row in rows:
        one = expected[row["key"]]
        for side, name in enumerate(("left", "right")):
            seen = any(known[row["key"]].views[2 * side : 2 * side + 2])
            if not seen:
                assert row[f"{name}_label_predicted"] == ""
                continue
            assert row[f"{name}_label_p_malignant"] == pytest.approx(float(one["label"][side, 1]), abs=1e-5)
            assert row[f"{name}_birads_p_BI-RADS 5"] == pytest.approx(float(one["birads"][side, 1]), abs=1e-5)
        assert sum(row[f"gate_{view}"] for view in ("l_cc", "l_mlo", "r_cc", "r_mlo")) == pytest.approx(1, abs=1e-5)
    assert not (tmp_path / "out/masks").exists()


def test_an_exam_by_names_with_missing_views(mammography, image, tmp_path):
    paths = [image(f"exam 7/{name}", seed=i) for i, name in enumerate(("L_CC.png", "left-MLO.png", "rcc.png"))]
    found = predict(mammography, tmp_path / "exam 7", tmp_path / "out")
    (row,) = found.rows
    assert [row[name] for name in ("L-CC", "L-MLO", "R-CC", "R-MLO")] == [*map(str, paths), ""]
    assert found.remarks == ["exam 7: there is no view R-MLO"]
    assert row["right_label_predicted"]
    paths[2].unlink()
    found = predict(mammography, tmp_path / "exam 7", tmp_path / "out", force=True)
    assert found.remarks == ["exam 7: there is no view R-CC, R-MLO"]
    assert (found.rows[0]["right_label_predicted"], found.rows[0]["right_label_p_malignant"]) == ("", "")
    assert found.rows[0]["left_label_predicted"]


# --- bad input --------------------------------------------------------------------------------------------------------


def test_broken_images_are_named_or_left_out(lesion, image, tmp_path):
    image("scans/a.png")
    (tmp_path / "scans/b.png").write_bytes(b"broken")
    (tmp_path / "scans/c.dcm").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"c.dcm: cannot be read as DICOM"):
        predict(lesion, tmp_path / "scans", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "scans/c.dcm").unlink()
    with pytest.raises(DataError, match=r"b.png: cannot be read as an image"):
        predict(lesion, tmp_path / "scans", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found = predict(lesion, tmp_path / "scans", tmp_path / "out", skip_bad=True)
    assert [row["key"] for row in found.rows] == ["a"]
    assert [words.partition(": ")[0] for words in found.skipped] == [str(tmp_path / "scans/b.png")]
    assert json.loads((tmp_path / "out/predictions.json").read_text())["skipped"] == found.skipped
    (tmp_path / "c.dcm").write_bytes(b"broken")
    for path, words in ((tmp_path / "scans/b.png", "an image"), (tmp_path / "c.dcm", "DICOM")):
        reason = f"{path}: no input can be used; {path}: cannot be read as {words}"
        with pytest.raises(DataError, match=re.escape(reason)):
            predict(lesion, path, tmp_path / "none", skip_bad=True)
    assert not (tmp_path / "none").exists()


def test_an_answer_that_is_no_number(lesion, image, tmp_path):
    class Broken(_Silent):
        def forward(self, images):
            out = self.model(images)
            return out._replace(cls_logits=out.cls_logits * float("nan"))

    broken = SavedRun(**{**vars(lesion), "model": Broken(lesion.model)})
    with pytest.raises(FloatingPointError, match="the network's output for a is NaN or infinite"):
        predict(broken, image("a.png"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(lesion, image, tmp_path):
    path = image("a.png")
    predict(lesion, path, tmp_path / "out")
    before = (tmp_path / "out/predictions.csv").read_text()
    with pytest.raises(DataError, match=r"there is a prediction already$"):
        predict(lesion, path, tmp_path / "out")
    assert predict(lesion, path, tmp_path / "out", force=True).rows
    assert (tmp_path / "out/predictions.csv").read_text() == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("x")
    with pytest.raises(DataError, match="no list says that mtlkit wrote what is in it"):
        predict(lesion, path, tmp_path / "thesis", force=True)
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


def test_full_disk(lesion, image, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = image("scans/a.png")
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match=r"out/masks/a.png: cannot be written \(No space left on device\)"):
        predict(lesion, path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["scans"]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(lesion, draw_phantoms, tmp_path_factory):
    """A run with one epoch."""
    data, out = draw_phantoms("ultrasound", 24), tmp_path_factory.mktemp("run") / "run"
    train(lesion.config.change({"stopping": {"epochs": 1}, "second_stage": None}), data, out, progress=False)
    return out


def test_command(run_folder, phantoms, image, tmp_path, capsys):
    path = image("scan 7.png")
    out = tmp_path / "out"
    assert main(["predict", str(run_folder), str(phantoms), str(path), "--out", str(out), "--batch-size", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("scan 7" in line for line in lines)
    assert "9 files are masks of images beside them, and were left out" in lines
    assert lines[-1].startswith(f"{out}/predictions.csv: 10 predictions, ")
    rows = table(out)
    assert [row["key"] for row in rows][-1] == "scan 7"
    expected = predict(load_run(run_folder), path, tmp_path / "again").rows[0]
    assert float(rows[-1]["class_p_benign"]) == pytest.approx(expected["class_p_benign"], abs=1e-5)


def test_command_tells_what_it_left_out(run_folder, image, tmp_path, capsys):
    image("scans/a.png")
    (tmp_path / "scans/b.png").write_bytes(b"broken")
    arguments = ["predict", str(run_folder), str(tmp_path / "scans"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--skip-bad"]) == 0
    assert f"left out: {tmp_path}/scans/b.png: cannot be read as an image" in capsys.readouterr().out


def test_names_of_files_are_shown_and_written_as_text(run_folder, image, tmp_path, capfd):
    names = ["\x1b]0;t\x07", "\u202egnp", "[/red]", "=1+1", "@a", "a\nb", "a\rb", ":warning:", '"><b>', "<script>"]
    for number, name in enumerate(names):
        image(f"scans/{name}.png", seed=number)
    (tmp_path / "scans/\x1b[2J.png").write_bytes(b"broken")
    arguments = ["predict", str(run_folder), str(tmp_path / "scans"), "--out", str(tmp_path / "[/red]\x1bout")]
    assert main([*arguments, "--skip-bad"]) == 0
    shown = "".join(capfd.readouterr())
    assert shown.replace("\n", "").isprintable()
    for words in (
        r"\x1b]0;t\x07",
        r"\u202egnp",
        "[/red]",
        "=1+1",
        r"a\nb",
        r"a\rb",
        ":warning:",
        r"\x1b[2J.png: cannot",
    ):
        assert words in shown
    rows = table(tmp_path / "[/red]\x1bout")
    assert {csv_value(row["key"]) for row in rows} == set(names)
    assert not any(cell[:1] in ("=", "+", "@", "-", "\t", "\r") for row in rows for cell in row.values())
    for row in rows:
        assert (tmp_path / "[/red]\x1bout" / row["mask"]).is_file()
    assert main(arguments) == 2
    assert capfd.readouterr().err.replace("\n", "").isprintable()


def test_command_with_bad_input(run_folder, image, tmp_path, capsys):
    path, text = image("a.png"), tmp_path / "a.txt"
    text.write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("x")

    def failing(*arguments):
        assert main(["predict", *map(str, arguments), "--out", str(tmp_path / "out")]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return captured.err.removeprefix("mtlkit: ").strip()

    assert failing(tmp_path / "none", path) == f"{tmp_path}/none: there is no such folder"
    assert "is not the folder of a run" in failing(tmp_path / "texts", path)
    assert failing(run_folder, tmp_path / "x.png") == f"{tmp_path}/x.png: there is no such file or folder"
    assert "is not an image; expected PNG, JPEG, BMP, TIFF or DICOM" in failing(run_folder, text)
    assert failing(run_folder, tmp_path / "empty") == f"{tmp_path}/empty: the folder is empty"
    assert failing(run_folder, tmp_path / "texts") == f"{tmp_path}/texts: it contains no usable image"
    assert "batch_size: expected at least 1, got 0" in failing(run_folder, path, "--batch-size", "0")
    assert "--device abacus: torch cannot use it" in failing(run_folder, path, "--device", "abacus")
