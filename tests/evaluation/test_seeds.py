"""The evaluation folder of several seeds: means, deviations, the runs, and rejected input."""

import json
import re
import shutil

import numpy as np
import pytest

from mtlkit.cli import main
from mtlkit.data import DataError, make_folds, open_dataset
from mtlkit.evaluation import evaluate, evaluate_repeats
from mtlkit.training import load_run

SEEDS = ("seed-9", "seed-10", "seed-11")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, lesion_config, ultrasound, write_run):
    folder = tmp_path_factory.mktemp("repeats") / "runs"
    for seed in SEEDS:
        write_run(folder / seed, lesion_config.change({"seed": int(seed.removeprefix("seed-"))}), ultrasound)
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory, runs):
    """The folder, the return value, and the messages."""
    out, told = tmp_path_factory.mktemp("evaluation") / "out", []
    metrics = evaluate_repeats(runs, None, out, samples=0, examples=0, progress=lambda *pair: told.append(pair))
    return out, metrics, told


def close(pair, values, tolerance=1e-12):
    values = np.array(values, dtype=float)
    expected = {"mean": values.mean(), "sd": values.std(ddof=1)}
    for name, value in expected.items():
        assert (pair[name] is None) == np.isnan(value)
        if pair[name] is not None:
            assert pair[name] == pytest.approx(value, abs=tolerance)


def test_every_figure_is_the_mean_over_the_runs(done):
    out, metrics, _ = done
    single = [json.loads((out / seed / "metrics.json").read_text()) for seed in SEEDS]
    assert metrics["runs"] == list(SEEDS)  # sorted by number: 9 before 10
    assert len({one["figures"]["iou"]["value"] for one in single}) > 1
    for name, pair in metrics["figures"].items():
        close(pair, [one["figures"][name]["value"] for one in single])
        assert pair["runs"] == {seed: one["figures"][name]["value"] for seed, one in zip(SEEDS, single, strict=True)}
    for name, entry in metrics["classes"]["class"].items():
        assert entry["images"] == single[0]["classes"]["class"][name]["images"]
        for figure in ("sensitivity", "specificity", "precision", "f1", "auc"):
            close(entry[figure], [one["classes"]["class"][name][figure]["value"] for one in single])
    for score, entry in metrics["failure_detection"]["mask"]["scores"].items():
        close(entry["auroc"], [one["failure_detection"]["mask"]["scores"][score]["auroc"]["value"] for one in single])
    for name, pair in metrics["gates"].items():
        close(pair, [one["gates"][name]["mean"] for one in single])
    for level, pair in metrics["displacement"]["seg_to_clf"].items():
        close(pair, [one["displacement"]["seg_to_clf"][level]["mean"] for one in single])
    for difficulty, of in metrics["displacement_by_difficulty"].items():
        means = [one["displacement_by_difficulty"][difficulty]["clf_to_seg"]["level1"]["mean"] for one in single]
        close(of["clf_to_seg"]["level1"], means)
    for name, count in metrics["counts"].items():
        counts = [one["counts"][name] for one in single]
        if name in ("lesion_not_found", "empty_with_prediction"):
            close(count, counts)
        else:
            assert {count} == set(counts)
    assert metrics == json.loads((out / "metrics.json").read_text())


@pytest.mark.usefixtures("undrawn")
def test_each_run_is_judged_as_by_itself(done, runs, tmp_path):
    own = evaluate(runs / "seed-10", None, tmp_path / "out", samples=0, examples=0)
    assert json.loads((done[0] / "seed-10/metrics.json").read_text()) == own


def test_table(done, tables):
    out, metrics, _ = done
    rows = {row["figure"]: row for row in tables(out / "metrics.csv")}
    assert list(next(iter(rows.values()))) == ["figure", "mean", "sd", *SEEDS]
    for name, pair in metrics["figures"].items():
        row = rows[f"figures/{name}"]
        for key, value in {"mean": pair["mean"], "sd": pair["sd"], **pair["runs"]}.items():
            assert (row[key] == "") == (value is None)
            assert value is None or float(row[key]) == pytest.approx(value)
    assert {"classes/class/benign/f1", "gates/seg_level1", "displacement/clf_to_seg/level4"} <= set(rows)
    assert "failure_detection/class/scores/1 - confidence/auroc" in rows


def test_report(done):
    out, metrics, _ = done
    text = (out / "report.html").read_text(encoding="utf-8")
    iou = metrics["figures"]["iou"]
    assert f"{iou['mean']:.3f} ± {iou['sd']:.3f}" in text
    links = re.findall(r'href="([^"]*)"', text)
    assert links == [f"{seed}/report.html" for seed in SEEDS]
    assert all((out / link).is_file() for link in links)
    assert "These are phantoms" in text
    assert "mean ± standard deviation, 3 runs" in text
    gate = metrics["gates"]["clf_level4"]
    assert f"{gate['mean']:.3f} ± {gate['sd']:.3f}" in text


def test_progress_is_that_of_all_runs(done, runs):
    count = len(load_run(runs / "seed-9").split.test)
    assert done[2][-1] == (3 * count, 3 * count)
    assert [told for told, _ in done[2]] == sorted(told for told, _ in done[2])


@pytest.mark.usefixtures("undrawn")
def test_command(done, runs, tmp_path, capsys):
    arguments = ["evaluate", str(runs), "--out", str(tmp_path / "out"), "--samples", "0", "--examples", "0"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    pair = done[1]["figures"]["dice"]
    line = next(line for line in text.splitlines() if "Dice" in line)
    assert f"{pair['mean']:.3f} ± {pair['sd']:.3f}" in line
    assert f"{min(pair['runs'].values()):.3f} to {max(pair['runs'].values()):.3f}" in line
    assert "3 runs" in text
    assert main(arguments) == 2
    assert "exists already; --force replaces" in capsys.readouterr().err


# --- rejected input ---------------------------------------------------------------------------------------------------


def test_other_folders(runs, lesion_config, ultrasound, write_run, tmp_path):
    mixed = shutil.copytree(runs, tmp_path / "mixed")
    write_run(mixed / "other", lesion_config.change({"optimizer": {"lr": 0.1}}), ultrasound)
    with pytest.raises(DataError, match="mixed: expected runs of one recipe, but those of other and seed-9 differ"):
        evaluate_repeats(mixed, None, tmp_path / "out")
    shutil.rmtree(mixed / "other")
    (mixed / "seed-10/result.json").unlink()
    with pytest.raises(DataError, match="seed-10: this run has not finished"):
        evaluate_repeats(mixed, None, tmp_path / "out")
    for folder in (ultrasound, runs / "seed-9"):
        with pytest.raises(DataError, match=r"contains no runs; `mtlkit.training.repeat` makes such folders"):
            evaluate_repeats(folder, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_fails_leaves_nothing(runs, tmp_path):
    broken = shutil.copytree(runs, tmp_path / "runs")
    (broken / "seed-11/model/model.safetensors").write_bytes(b"x")
    with pytest.raises(DataError, match="seed-11/model: the network cannot be loaded"):
        evaluate_repeats(broken, None, tmp_path / "out", samples=0, examples=0)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.usefixtures("undrawn")
def test_a_single_seed_has_no_deviation(runs, tmp_path):
    shutil.copytree(runs / "seed-9", tmp_path / "runs/seed-9")
    metrics = evaluate_repeats(tmp_path / "runs", None, tmp_path / "out", samples=0, examples=0)
    assert metrics["figures"]["accuracy"]["sd"] is None
    assert "±" not in re.sub(r"mean ± standard deviation", "", (tmp_path / "out/report.html").read_text())


# --- folds ------------------------------------------------------------------------------------------------------------


def test_folds_are_judged_together_too(tmp_path, lesion_config, ultrasound, write_run, tables, capsys):
    """Each image once, by the network that was not trained on it."""
    catalogue = open_dataset(ultrasound, classes=lesion_config.data.classes)
    for number, split in enumerate(make_folds(catalogue, 2), start=1):
        config = lesion_config.change({"seed": number})  # different weights, as folds have
        write_run(tmp_path / f"runs/fold-{number}", config, ultrasound, split)
    assert main(["evaluate", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--samples", "20"]) == 0
    assert "all folds together" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    single = [tables(tmp_path / f"out/fold-{number}/images.csv") for number in (1, 2)]
    rows = tables(tmp_path / "out/images.csv")
    assert [row.pop("run") for row in rows] == [f"fold-{number + 1}" for number in (0, 1) for _ in single[number]]
    assert rows == single[0] + single[1]
    assert len({row["key"] for row in rows}) == len(rows) == len(catalogue) == metrics["counts"]["images"]
    right = np.mean([row["class_true"] == row["class_predicted"] for row in rows])
    pooled = metrics["pooled"]["figures"]
    assert pooled["accuracy"]["value"] == pytest.approx(right)
    assert pooled["accuracy"]["low"] <= right <= pooled["accuracy"]["high"]
    known = [float(row["iou"]) for row in rows if row["iou"]]
    assert pooled["iou"]["value"] == pytest.approx(np.mean(known), abs=1e-5)
    close(metrics["figures"]["iou"], [np.mean([float(r["iou"]) for r in part if r["iou"]]) for part in single], 1e-5)
    for name, count in catalogue.counts().items():
        assert metrics["classes"]["class"][name]["images"] == count
    assert "All folds together" in (tmp_path / "out/report.html").read_text()


def test_seeds_are_not_pooled(done):
    out, metrics, _ = done
    assert "pooled" not in metrics
    assert not (out / "images.csv").exists()
    assert "All folds together" not in (out / "report.html").read_text()
