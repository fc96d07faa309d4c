"""Runs compared on the same images: output, reported differences, and runs that cannot be compared."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

from mtlkit.cli import main
from mtlkit.data import DataError
from mtlkit.evaluation import compare, predict_records
from mtlkit.evaluation.comparison import judge_pairs, name_runs
from mtlkit.evaluation.significance import mcnemar, wilcoxon

EPOCHS = "epoch,val/loss,train/loss,val/accuracy,train/accuracy,val/gate_seg_level1,train/gate_seg_level1\n"


@pytest.fixture(scope="module")
def done(tmp_path_factory, lesion, plain):
    """A BTI-Net with a table of epochs, and a U-Net without one."""
    folder = tmp_path_factory.mktemp("comparison")
    shutil.copytree(lesion.folder, folder / "bti")
    shutil.copytree(plain.folder, folder / "unet")
    (folder / "bti/stage1").mkdir()
    (folder / "bti/stage1/metrics.csv").write_text(EPOCHS + "0,1,1.2,0.4,0.5,0.3,0.3\n1,0.8,0.9,0.6,0.7,0.4,0.5\n")
    out = folder / "out"
    return out, compare([folder / "bti", folder / "unet"], None, out, samples=50, tsne=True, device="cpu")


def test_what_is_written(done):
    out, found = done
    assert found == json.loads((out / "comparison.json").read_text())
    assert list(found["runs"]) == ["bti", "unet"]
    for name in ("curves", "gates", "masks", "features"):
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 200, name
    with (out / "comparison.csv").open(newline="") as file:
        rows = {(row["figure"], row["run"]): row for row in csv.DictReader(file)}
    assert float(rows["iou", "unet"]["difference value"]) == pytest.approx(
        float(rows["iou", "unet"]["value"]) - float(rows["iou", "bti"]["value"])
    )
    lines = (out / "comparison.md").read_text().splitlines()
    assert any(line.startswith("| accuracy | unet |") and "McNemar" in line for line in lines)


def test_differences_and_tests(lesion, plain):
    records = lesion.open_data().subset(lesion.split.test).records
    a, b = (predict_records(run, records) for run in (lesion, plain))
    found = judge_pairs({"a": a, "b": b, "c": a}, samples=50)
    labels = a.labels["class"]
    p_iou = wilcoxon(b.scores["iou"], a.scores["iou"])
    p_accuracy = mcnemar(b.predicted("class") == labels, a.predicted("class") == labels)
    assert found["iou"]["b"]["p"] == p_iou
    assert found["accuracy"]["b"]["p"] == p_accuracy
    assert found["iou"]["b"]["p_adjusted"] == pytest.approx(min(1, 2 * p_iou))
    for figure, runs in found.items():
        assert runs["c"]["difference"].value == 0 or math.isnan(runs["a"]["value"].value), figure
    assert {runs["b"]["test"] for runs in found.values()} == {"Wilcoxon", "McNemar", None}
    assert np.isnan(found["f1_macro"]["b"]["p"])


def test_the_folder_of_a_table_stands_for_its_runs(tmp_path, lesion, plain):
    for row, run in (("plain", plain), ("whole", lesion)):
        shutil.copytree(run.folder, tmp_path / f"table/{row}/seed-42")
    assert name_runs([tmp_path / "table"]) == {
        f"{row}/seed-42": tmp_path / f"table/{row}/seed-42" for row in ("plain", "whole")
    }
    shutil.copytree(plain.folder, tmp_path / "table/plain/seed-43")
    assert list(name_runs([tmp_path / "table/plain"])) == ["seed-42", "seed-43"]


def test_command(tmp_path, capsys, lesion, plain):
    runs = [str(shutil.copytree(run.folder, tmp_path / name)) for run, name in ((lesion, "x"), (plain, "y"))]
    arguments = ["compare", *runs, "--out", str(tmp_path / "out"), "--samples", "0", "--examples", "0"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "2 runs on 16 images of the part test" in text
    assert "Wilcoxon" in text
    assert not list((tmp_path / "out").glob("*.png"))
    assert main(arguments) == 2
    assert "exists already; --force replaces it" in capsys.readouterr().err


# --- bad input --------------------------------------------------------------------------------------------------------


def test_runs_that_do_not_go_together(tmp_path, lesion, lesion_config, ultrasound, views, write_run):
    run = shutil.copytree(lesion.folder, tmp_path / "run")
    cases = [
        ([run], ValueError, "runs: expected at least two, got"),
        ([run, run], DataError, "expected different runs, but this one is given twice"),
        ([run, tmp_path / "none"], DataError, "none: there is no such folder"),
        ([run, views.folder], DataError, "expected runs of the same tasks, but .* has lesion, .* views"),
    ]
    other = write_run(tmp_path / "other", lesion_config.change({"data": {"split_seed": 7}}), ultrasound)
    words = "expected runs over the same images, but run and other have different ones: only run has"
    cases.append(([run, other], DataError, words))
    order = lesion_config.change({"data": {"classes": ["malignant", "benign", "normal"]}})
    turned = write_run(tmp_path / "turned", order, ultrasound)
    cases.append(([run, turned], DataError, "expected runs of the same classes, but run has .*, turned"))
    for runs, kind, words in cases:
        with pytest.raises(kind, match=words):
            compare(runs, None, tmp_path / "out", samples=0, device="cpu")
        assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="samples: expected at least 0, got -1"):
        compare([run, other], None, tmp_path / "out", samples=-1)
