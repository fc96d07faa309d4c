"""The folder of an evaluation for each task: metrics, table, plots, report; the selected images; rejected input."""

import base64
import errno
import io
import json
import math
import os
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtlkit.cli import main
from mtlkit.data import DataError
from mtlkit.errors import OccupiedError
from mtlkit.evaluation import evaluate
from mtlkit.metrics import ClassificationMetrics, failure_detection
from mtlkit.training import load_run, train

FEW = {"samples": 20}


def number(text: str) -> float:
    return float(text) if text else math.nan


@pytest.fixture(scope="module")
def trained(tmp_path_factory, lesion_config, ultrasound):
    """A run with one epoch and one gate epoch, and its evaluation folder."""
    folder = tmp_path_factory.mktemp("trained")
    stage = {"loss": {"gates": 1.0}, "stopping": {"epochs": 1, "monitor": "val/loss", "mode": "min"}}
    config = lesion_config.change({"stopping": {"epochs": 2}, "second_stage": stage})
    train(config, ultrasound, folder / "run", progress=False)
    metrics = evaluate(folder / "run", None, folder / "out", tsne=True, **FEW)
    return load_run(folder / "run"), folder / "out", metrics


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_training(trained):
    run, _, metrics = trained
    names = ("iou", "dice", "sensitivity", "precision", "accuracy", "f1_macro", "f1_weighted")
    for name in names:
        figure, expected = metrics["figures"][name], run.figures[f"test/{name}"]
        if math.isnan(expected):
            assert figure["value"] is None
        else:
            assert figure["value"] == pytest.approx(expected, abs=1e-5), name
            assert figure["low"] <= figure["value"] <= figure["high"]
    assert metrics["counts"]["empty"] == run.figures["test/empty"]
    for name, entry in metrics["gates"].items():
        assert entry["mean"] == pytest.approx(run.figures[f"test/gate_{name}"], abs=1e-5)


def test_metrics_file_is_what_is_returned(trained):
    _, out, metrics = trained
    text = (out / "metrics.json").read_text(encoding="utf-8")
    assert json.loads(text) == metrics
    run = load_run(metrics["run"])
    assert (metrics["model"], metrics["task"], metrics["data"]) == ("btinet", "lesion", str(run.data))
    assert metrics["bootstrap"] == {"samples": 20, "seed": 0, "percentiles": [2.5, 97.5]}
    assert "NaN" not in text


def test_table_of_images(trained, tables):
    run, out, metrics = trained
    rows = tables(out / "images.csv")
    assert [row["key"] for row in rows] == list(run.split.test)
    assert all(row["image"].endswith(f"{row['key']}.png") for row in rows)
    for row in rows:
        shares = {name: float(row[f"class_p_{name}"]) for name in run.classes}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert row["class_predicted"] == max(shares, key=shares.get)
        assert row["class_failed"] == str(int(row["class_true"] != row["class_predicted"]))
        assert row["class_true"] == row["key"].partition("/")[0]
        if row["class_true"] == "normal":
            assert (row["iou"], row["mask_failed"], row["lesion_share"]) == ("", "", "0")
        else:
            assert row["mask_failed"] == str(int(float(row["iou"]) < 0.5))
    iou = [number(row["iou"]) for row in rows]
    assert np.nanmean(iou) == pytest.approx(metrics["figures"]["iou"]["value"], abs=1e-5)
    order = sorted((row for row in rows if row["iou"]), key=lambda row: -float(row["iou"]))
    thirds = dict(zip(("easy", "medium", "hard"), np.array_split(np.array(order), 3), strict=True))
    for difficulty, third in thirds.items():
        entry = metrics["displacement_by_difficulty"][difficulty]["seg_to_clf"]["level4"]
        expected = np.mean([float(row["displacement_seg_to_clf_level4"]) for row in third])
        assert entry["mean"] == pytest.approx(expected, abs=1e-4), difficulty
    for direction in ("seg_to_clf", "clf_to_seg"):
        for level in ("level1", "level4"):
            column = [float(row[f"displacement_{direction}_{level}"]) for row in rows]
            entry = metrics["displacement"][direction][level]
            assert (np.mean(column), np.std(column)) == pytest.approx((entry["mean"], entry["sd"]), abs=1e-4)
    benign = [float(row["gate_clf_level4"]) for row in rows if row["class_true"] == "benign"]
    entry = metrics["gates"]["clf_level4"]["classes"]["benign"]
    assert (np.mean(benign), np.std(benign)) == pytest.approx((entry["mean"], entry["sd"]), abs=1e-5)


def test_failure_detection_is_that_of_the_metrics(trained, tables):
    _, out, metrics = trained
    rows = tables(out / "images.csv")
    for what, branch in (("mask", "seg"), ("class", "clf")):
        known = [row for row in rows if row[f"{what}_failed"]]
        failed = torch.tensor([row[f"{what}_failed"] == "1" for row in known])
        found = metrics["failure_detection"][what]
        assert (found["images"], found["failures"]) == (len(known), int(failed.sum()))
        signals = [f"{name}, level {level}" for level in (1, 4) for name in ("low alignment", "energy", "low spread")]
        assert list(found["scores"]) == ["level 1", "level 4", *signals, "1 - confidence", "entropy"]
        sure = [1 - max(float(v) for k, v in row.items() if k.startswith("class_p_")) for row in known]
        scores = {f"level {level}": [float(row[f"gate_{branch}_level{level}"]) for row in known] for level in (1, 4)}
        for name, values in (scores | {"1 - confidence": sure}).items():
            expected = failure_detection(torch.tensor(values), failed)
            for key in ("auroc", "average_precision"):
                value = found["scores"][name][key]["value"]
                if math.isnan(float(expected[key])):
                    assert value is None
                else:
                    assert value == pytest.approx(float(expected[key]), abs=1e-2)  # rounding to six digits makes ties


def test_confusion_and_classes(trained, tables):
    run, out, metrics = trained
    rows = tables(out / "images.csv")
    for i, true in enumerate(run.classes):
        for j, told in enumerate(run.classes):
            count = sum(row["class_true"] == true and row["class_predicted"] == told for row in rows)
            assert metrics["confusion"]["class"][i][j] == count
        entry = metrics["classes"]["class"][true]
        assert entry["images"] == sum(row["class_true"] == true for row in rows)
        hits = metrics["confusion"]["class"][i][i]
        assert entry["sensitivity"]["value"] == pytest.approx(hits / entry["images"])


@pytest.mark.usefixtures("undrawn")
def test_the_same_seed_gives_the_same_intervals(trained, tmp_path):
    run, _, metrics = trained
    assert evaluate(run, None, tmp_path / "a", **FEW)["figures"] == metrics["figures"]
    other = evaluate(run, None, tmp_path / "b", seed=1, **FEW)["figures"]
    assert other["iou"]["value"] == metrics["figures"]["iou"]["value"]
    assert other["iou"]["low"] != metrics["figures"]["iou"]["low"]
    none = evaluate(run, None, tmp_path / "c", samples=0)["figures"]["iou"]
    assert (none["low"], none["high"]) == (None, None)


# --- report and plots -------------------------------------------------------------------------------------------------

PLOTS = {"iou", "worst", "best", "confusion", "curves", "calibration", "gates", "gates_by_epoch", "displacement"}
PLOTS |= {"displacement_by_difficulty"}


class Page(HTMLParser):
    """The text of a page; checks that every opened element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.pictures, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_report_stands_alone(trained):
    _, out, metrics = trained
    text = (out / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    files = {path.stem: path.read_bytes() for path in out.glob("*.png")}
    assert set(files) >= PLOTS | {"tsne"}
    head = "data:image/png;base64,"
    assert all(source.startswith(head) for source in page.pictures)
    inlined = [base64.b64decode(source.removeprefix(head), validate=True) for source in page.pictures]
    assert sorted(inlined) == sorted(files.values())
    assert "http" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed"}
    assert not any("href" in attributes for _, attributes in page.tags)
    words = " ".join(page.text)
    assert f"{metrics['figures']['iou']['value']:.3f}" in words
    assert "These are phantoms, not patients" in words


def test_plots_are_pictures_with_something_on_them(trained):
    _, out, _ = trained
    for path in out.glob("*.png"):
        pixels = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("L"))
        assert min(pixels.shape) > 100, path.name
        assert pixels.std() > 5, path.name


def test_worst_images_are_listed_first(trained, tables):
    _, out, _ = trained
    rows = [row for row in tables(out / "images.csv") if row["iou"]]
    worst = min(rows, key=lambda row: float(row["iou"]))
    text = (out / "report.html").read_text(encoding="utf-8")
    cells = text[text.index("Look at these first") :]
    assert cells.index(f">{worst['key']}<") < cells.index("</tr>", cells.index("<tbody>"))


def test_names_are_taken_as_they_are(lesion, ultrasound, tmp_path, tables, recwarn):
    """Folders and images may have any name: it cannot inject HTML, formulas or control characters."""
    data, names = tmp_path / "<script>alert(1)<", ["<b>&.png", "a$_{b$^.png", "肿瘤.png", "a,b'c\"d.png"]
    for kind, mask in (("images", ""), ("masks", "_mask")):
        (data / kind / "benign").mkdir(parents=True)
        for i, name in enumerate(names, 1):
            shutil.copy(ultrasound / f"benign/benign ({i}){mask}.png", data / kind / "benign" / name)
    evaluate(lesion, data, tmp_path / "out", tsne=True, **FEW)
    text = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    words = "".join(Page(text).text)
    keys = [f"benign/{name.removesuffix('.png')}" for name in names]
    assert all(key in words for key in keys)
    assert {row["key"] for row in tables(tmp_path / "out/images.csv")} == set(keys)
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


# --- the other tasks --------------------------------------------------------------------------------------------------


def test_views(views, tmp_path, tables):
    metrics = evaluate(views, None, tmp_path / "out", tsne=True, **FEW)
    scores = {f"{name}_{of}" for name in ("precision", "recall", "f1") for of in ("macro", "positive")}
    assert set(metrics["figures"]) == scores | {"accuracy", "f1_weighted", "auc", "calibration_error", "brier"}
    assert sum(entry["mean"] for entry in metrics["gates"].values()) == pytest.approx(1)
    assert list(metrics["gates"]) == ["image", "tumor", "boundary"]
    assert metrics["displacement"] == metrics["displacement_by_difficulty"] == {}
    assert list(metrics["stages"]) == [f"{name}_stage{i}" for name in metrics["gates"] for i in (1, 2, 3, 4)]
    for expert in metrics["gates"]:
        assert sum(metrics["stages"][f"{expert}_stage{i}"]["mean"] for i in (1, 2, 3, 4)) == pytest.approx(1)
    rows = tables(tmp_path / "out/images.csv")
    assert {"gate_image", "gate_tumor", "gate_boundary", "class_p_malignant"} <= set(rows[0])
    assert "iou" not in rows[0]
    plots = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert plots == {"confusion", "curves", "calibration", "gates", "stages", "tsne", "attribution"}
    Page((tmp_path / "out/report.html").read_text(encoding="utf-8"))


def test_mammography(mammography, tmp_path, tables):
    """The recipe has no test part; the validation part is used instead, and a message says so."""
    metrics = evaluate(mammography, None, tmp_path / "out", tsne=True, **FEW)
    assert metrics["part"] == "val"
    assert any("best epoch was chosen on these" in remark for remark in metrics["remarks"])
    rows = tables(tmp_path / "out/images.csv")
    assert metrics["counts"]["exams"] == len(mammography.split.val)
    assert metrics["counts"]["breasts"] == len(rows)
    assert {row["key"] for row in rows} == set(mammography.split.val)
    assert all(row["side"] in ("left", "right") and (row["cc"] or row["mlo"]) for row in rows)
    for task, names in mammography.tasks.items():
        judged = ClassificationMetrics(len(names))
        known = [row for row in rows if row[f"{task}_true"]]
        shares = torch.tensor([[float(row[f"{task}_p_{name}"]) for name in names] for row in known])
        judged.update(shares.clamp(0, 1), torch.tensor([names.index(row[f"{task}_true"]) for row in known]))
        for name, value in judged.compute().items():
            if name != "images" and not value.isnan():
                assert metrics["figures"][f"{task}_{name}"]["value"] == pytest.approx(float(value), abs=0.02), name
    assert list(metrics["gates"]) == ["l_cc", "l_mlo", "r_cc", "r_mlo"]
    assert set(metrics["failure_detection"]) == {"label", "birads"}
    Page((tmp_path / "out/report.html").read_text(encoding="utf-8"))


def test_network_without_gates(plain, tmp_path):
    metrics = evaluate(plain, None, tmp_path / "out", **FEW)
    assert metrics["gates"] == metrics["displacement"] == {}
    assert list(metrics["failure_detection"]["mask"]["scores"]) == ["1 - confidence", "entropy"]
    plots = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert plots == {"iou", "worst", "best", "confusion", "curves", "calibration"}


def test_mbdi_says_what_its_gates_depend_on(tmp_path, lesion_config, ultrasound, write_run):
    config = lesion_config.change({"model": {"name": "mbdi"}})
    run = load_run(write_run(tmp_path / "run", config, ultrasound))
    metrics = evaluate(run, None, tmp_path / "out", **FEW)
    assert "As published, the gates of MBDI depend on which images share a batch." in metrics["remarks"]
    for level in (1, 4):
        both = [metrics["gates"][f"{branch}_level{level}"]["mean"] for branch in ("seg", "clf")]
        assert sum(both) == pytest.approx(1)
    assert (tmp_path / "out/failure.png").is_file()


def test_interaction_without_gates(tmp_path, lesion_config, ultrasound, write_run):
    options = dict(lesion_config.model.options) | {"upa": False}
    config = lesion_config.change({"model": {"name": "mbdi", "options": options}})
    run = load_run(write_run(tmp_path / "run", config, ultrasound))
    metrics = evaluate(run, None, tmp_path / "out", **FEW)
    assert metrics["gates"] == {}
    assert all(entry["mean"] > 0 for levels in metrics["displacement"].values() for entry in levels.values())
    plots = {path.stem for path in (tmp_path / "out").glob("*.png")}
    inside = {"displacement", "displacement_by_difficulty", "attribution"}
    assert plots == {"iou", "worst", "best", "confusion", "curves", "calibration"} | inside


def test_absent_class_and_images_without_lesion_alone(lesion, ultrasound, tmp_path):
    data = tmp_path / "data/images/normal"
    data.mkdir(parents=True)
    for i in (1, 2, 3):
        shutil.copy(ultrasound / f"normal/normal ({i}).png", data / f"{i}.png")
    (tmp_path / "data/masks/normal").mkdir(parents=True)
    metrics = evaluate(lesion, tmp_path / "data", tmp_path / "out", tsne=True, **FEW)
    assert metrics["figures"]["iou"]["value"] is None
    assert metrics["figures"]["auc"]["value"] is None
    assert metrics["counts"]["empty"] == metrics["counts"]["images"] == 3
    assert "There is no image of the class benign, malignant." in metrics["remarks"]
    text = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    Page(text)
    assert "not defined" in text


# --- which images -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_doubtful_sizes_of_pixels_are_told_before_images_are_read(lesion, tmp_path, monkeypatch):
    monkeypatch.setattr("mtlkit.evaluation.runner.spacing_conflicts", lambda records: f"{len(records)} are odd")
    with pytest.warns(UserWarning, match="distances in mm are doubtful: .* are odd"):
        metrics = evaluate(lesion, None, tmp_path / "out", examples=0, samples=0)
    assert any(remark.startswith("Distances in mm are doubtful: ") for remark in metrics["remarks"])


def test_parts(lesion, tmp_path, tables):
    for part in ("train", "val", "test"):
        metrics = evaluate(lesion, None, tmp_path / part, part=part, examples=0, samples=0)
        keys = [row["key"] for row in tables(tmp_path / part / "images.csv")]
        assert keys == list(lesion.split.parts()[part])
        assert metrics["part"] == part
    metrics = evaluate(lesion, None, tmp_path / "all", part="all", samples=0)
    assert metrics["counts"]["images"] == 40
    learnt = len(lesion.split.train) + len(lesion.split.val)
    words = f"{learnt} of these images were used to train the network or to choose its best epoch."
    assert words in metrics["remarks"]


@pytest.mark.usefixtures("undrawn")
def test_another_data_set_is_taken_whole(lesion, ultrasound, tmp_path):
    """The names are equal but the content differs: the split does not apply."""
    other = shutil.copytree(ultrasound, tmp_path / "other")
    for path in other.rglob("*.png"):
        image = Image.open(path).convert("L" if "_mask" in path.stem else "RGB")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((72, 72), Image.Resampling.NEAREST).save(path)
    metrics = evaluate(lesion, other, tmp_path / "out", samples=0)
    assert (metrics["part"], metrics["counts"]["images"]) == ("all", 40)
    assert not any("were used to train" in remark for remark in metrics["remarks"])
    with pytest.raises(DataError, match=r"is not the data set of .*, so its split does not apply"):
        evaluate(lesion, other, tmp_path / "out2", part="test")


@pytest.mark.usefixtures("undrawn")
def test_moved_data_are_known(lesion, ultrasound, tmp_path):
    moved = shutil.copytree(ultrasound, tmp_path / "moved")
    metrics = evaluate(lesion, moved, tmp_path / "out", samples=0)
    assert (metrics["part"], metrics["counts"]["images"]) == ("test", len(lesion.split.test))


@pytest.mark.usefixtures("undrawn")
def test_run_that_has_lost_its_split(lesion, tmp_path):
    run = replace(lesion, split=None)
    with pytest.raises(DataError, match=r"its split, split.json, is missing; part 'all' takes every image"):
        evaluate(run, None, tmp_path / "out", part="test")
    metrics = evaluate(run, None, tmp_path / "out", samples=0)
    assert (metrics["part"], metrics["counts"]["images"]) == ("all", 40)
    assert "The run's split is missing: the network may have been trained on these images." in metrics["remarks"]


@pytest.mark.usefixtures("undrawn")
def test_views_without_masks(views, ultrasound, tmp_path):
    (tmp_path / "data/images/benign").mkdir(parents=True)
    shutil.copy(ultrasound / "benign/benign (1).png", tmp_path / "data/images/benign/a.png")
    metrics = evaluate(views, tmp_path / "data", tmp_path / "out", samples=0)
    assert "The masks of 1 images are unknown, and the network treated them as empty." in metrics["remarks"]


@pytest.mark.usefixtures("undrawn")
def test_changed_images_are_named_or_left_out(lesion, ultrasound, tmp_path):
    data = shutil.copytree(ultrasound, tmp_path / "data")
    key = lesion.split.test[0]
    (data / f"{key}.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"is missing or has changed since .*$") as error:
        evaluate(lesion, data, tmp_path / "out")
    assert f"{key!r} of the part test" in str(error.value)
    assert not (tmp_path / "out").exists()
    metrics = evaluate(lesion, data, tmp_path / "out", skip_bad=True, samples=0)
    assert metrics["counts"]["images"] == len(lesion.split.test) - 1
    assert "1 of the images of this part are missing or have changed, and are left out." in metrics["remarks"]


@pytest.mark.usefixtures("undrawn")
def test_broken_image_of_other_data_is_named_or_skipped(lesion, ultrasound, tmp_path):
    for i, name in ((1, "benign"), (2, "malignant")):
        for kind in ("images", "masks"):
            (tmp_path / "data" / kind / name).mkdir(parents=True)
        shutil.copy(ultrasound / f"{name}/{name} ({i}).png", tmp_path / f"data/images/{name}/a.png")
        shutil.copy(ultrasound / f"{name}/{name} ({i})_mask.png", tmp_path / f"data/masks/{name}/a.png")
    (tmp_path / "data/images/benign/a.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"benign/a.png: cannot be read as an image"):
        evaluate(lesion, tmp_path / "data", tmp_path / "out")
    metrics = evaluate(lesion, tmp_path / "data", tmp_path / "out", skip_bad=True, samples=0)
    assert metrics["counts"]["images"] == 1


# --- rejected input ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_nothing_is_overwritten_without_force(lesion, tmp_path):
    out = tmp_path / "out"
    evaluate(lesion, None, out, samples=0)
    before = (out / "metrics.json").stat().st_mtime_ns
    with pytest.raises(DataError, match=r"exists already$"):
        evaluate(lesion, None, out)
    assert (out / "metrics.json").stat().st_mtime_ns == before
    (out / "stale.png").write_bytes(b"")
    evaluate(lesion, None, out, samples=0, force=True)
    assert (out / "stale.png").exists()  # the user's file
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("x")
    for folder in (thesis, lesion.folder):
        with pytest.raises(OccupiedError, match="no list says that mtlkit wrote what is in it"):
            evaluate(lesion, None, folder, force=True)
    assert (thesis / "thesis.tex").read_text() == "x"


def test_refusals_come_before_any_work(lesion, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x").write_text("x")
    monkeypatch.setattr("mtlkit.evaluation.runner.predict_records", lambda *_, **__: pytest.fail("has worked"))
    with pytest.raises(DataError, match="exists already"):
        evaluate(lesion, None, tmp_path / "out")


@pytest.mark.usefixtures("undrawn")
def test_full_disk_leaves_nothing(lesion, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DataError, match=r"out/images.csv: cannot be written \(No space left on device\)"):
        evaluate(lesion, None, tmp_path / "out", samples=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"part": "text"}, "part: expected one of test, val, train, all, got 'text'"),
        ({"samples": -1}, "samples: expected at least 0, got -1"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"examples": -2}, "examples: expected at least 0, got -2"),
        ({"rivals": -1}, "rivals: expected at least 0, got -1"),
        ({"batch_size": -1}, "batch_size: expected at least 1, got -1"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"layout": "x"}, "layout: expected 'auto' or one of"),
    ],
)
def test_bad_options(lesion, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        evaluate(lesion, None, tmp_path / "out", **options)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def failing(capsys):
    def run(*arguments: object) -> str:
        assert main(["evaluate", *map(str, arguments)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        return captured.err.removeprefix("mtlkit: ").strip()

    return run


def test_command(lesion, tmp_path, capsys):
    assert main(["evaluate", str(lesion.folder), "--out", str(tmp_path / "out"), "--samples", "10"]) == 0
    captured = capsys.readouterr()
    figures = json.loads((tmp_path / "out/metrics.json").read_text())["figures"]
    line = next(line for line in captured.out.splitlines() if "Dice" in line)
    assert f"{figures['dice']['value']:.3f}" in line
    assert f"{figures['dice']['low']:.3f} to {figures['dice']['high']:.3f}" in line
    assert "These are phantoms" in captured.out
    assert captured.out.endswith(f"{tmp_path}/out/report.html: the report\n")
    assert captured.err == ""


def test_command_with_flips_and_windows(lesion, tmp_path, capsys, undrawn):
    """The report, the metrics and the command state their cost."""
    out = tmp_path / "out"
    options = ["--samples", "0", "--part", "val", "--tta", "--sliding-window"]
    assert main(["evaluate", str(lesion.folder), "--out", str(out), *options]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    passes = metrics["cost"]["passes"]
    assert (metrics["tta"], metrics["sliding_window"]) == (True, True)
    assert passes >= 4 * (1 + 9)
    words = f"flips averaged and windows blended: {passes:.0f}"[:-1]
    assert words in capsys.readouterr().out
    assert words in (out / "report.html").read_text(encoding="utf-8")
    for way in ("tta", "sliding_window"):
        with pytest.raises(ValueError, match=r"^oracle: expected False with sliding_window or tta"):
            evaluate(lesion, None, tmp_path / "other", oracle=True, **{way: True})


def test_command_with_bad_input(failing, lesion, tmp_path):
    out = tmp_path / "out"
    assert failing(tmp_path / "none", "--out", out).endswith("none: there is no such folder")
    (tmp_path / "empty").mkdir()
    assert failing(tmp_path / "empty", "--out", out).endswith("empty: the folder is empty")
    assert failing(lesion.folder, "--out", out, "--data", tmp_path / "empty").endswith("empty: the folder is empty")
    assert "part: expected one of test" in failing(lesion.folder, "--out", out, "--part", "x")
    assert "--device abacus: torch cannot use it" in failing(lesion.folder, "--out", out, "--device", "abacus")
    copy = shutil.copytree(lesion.folder, tmp_path / "copy")
    (copy / "model/model.safetensors").write_text("x")
    assert "model: the network cannot be loaded" in failing(copy, "--out", out)
    assert not out.exists()


def test_broken_image_in_a_worker_is_one_sentence(failing, lesion, ultrasound, tmp_path):
    """Worker processes pass on their complete traceback."""
    copy = shutil.copytree(lesion.folder, tmp_path / "copy")
    text = (copy / "config.yaml").read_text()
    assert "workers: 0" in text
    (copy / "config.yaml").write_text(text.replace("workers: 0", "workers: 1"))
    (tmp_path / "data/images/benign").mkdir(parents=True)
    (tmp_path / "data/images/benign/a.png").write_bytes(b"broken")
    words = failing(copy, "--out", tmp_path / "out", "--data", tmp_path / "data")
    assert words.startswith(f"{tmp_path}/data/images/benign/a.png: cannot be read as an image")


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as status:
        main(["evaluate", "--help"])
    assert status.value.code == 0
    text = capsys.readouterr().out
    assert all(
        word in text
        for word in ("examples:", "exit status:", "report.html", "--part", "--tsne", "--oracle", "--rivals", "--force")
    )
    assert max(map(len, text.splitlines())) <= 120
