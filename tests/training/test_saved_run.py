"""Opening runs: the network, its classes, its data (possibly moved), and folders that are not runs."""

import csv
import json
import shutil
from dataclasses import replace

import pytest
import torch

from mtlkit.data import DataError, Record
from mtlkit.data.splits import read_split
from mtlkit.metrics import ClassificationMetrics, SegmentationMetrics
from mtlkit.models import from_pretrained
from mtlkit.training import SavedRun, load_config, load_run, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ultrasound, small):
    """A run with one epoch."""
    out = tmp_path_factory.mktemp("saved") / "run"
    train(small.change({"stopping": {"epochs": 1}}), ultrasound, out, progress=False)
    return out


@pytest.fixture(scope="module")
def run(folder) -> SavedRun:
    return load_run(folder)


@pytest.fixture(scope="module")
def mammo(tmp_path_factory, mammograms) -> SavedRun:
    """A run on the BI-RADS categories 1 and 5 of phantoms."""
    options = {"backbone": "vssm", "depths": [1], "dims": [16], "d_state": 1, "birads_classes": 2}
    changes = {
        "model": {"options": options},
        "data": {"birads": [1, 5], "size": 32, "batch_size": 4, "workers": 0, "fractions": [0.6, 0.4, 0.0]},
        "stopping": {"epochs": 1},
        "loss": {"class_weights": False},
    }
    out = tmp_path_factory.mktemp("mammo") / "run"
    train(load_config("hybrid_vssm").change(changes), mammograms, out, progress=False)
    return load_run(out)


def test_what_is_known(run, folder, ultrasound):
    assert run.classes == ("benign", "malignant", "normal")
    assert run.birads == ()
    assert run.tasks == {"class": run.classes}
    assert run.config == load_config(folder / "config.yaml")
    assert run.data == ultrasound
    assert run.split.test
    assert not run.model.training
    twin = from_pretrained(folder / "model").state_dict()
    assert all(torch.equal(value, twin[key]) for key, value in run.model.state_dict().items())


def test_predictions_give_the_figures_of_the_run(run):
    """The same images, prepared and batched alike, give the same metrics."""
    masks, classes = SegmentationMetrics(), ClassificationMetrics(3)
    for batch in run.loader(run.open_data().subset(run.split.test).records):
        found = run.uncalibrated().predict(batch)  # as in the metrics during training
        masks.update(found["mask"], batch["mask"])
        classes.update(found["class"], batch["label"])
        assert found["gates"].shape == (len(batch["key"]), 4, 2)
    for name, value in {**masks.compute(), **classes.compute()}.items():
        if f"test/{name}" in run.figures:
            assert float(value) == pytest.approx(run.figures[f"test/{name}"], abs=1e-5, nan_ok=True), name


def test_gates_are_logged_by_level(run, folder):
    """The mean over the validation images, in the table of epochs and among the metrics."""
    records = run.open_data().subset(run.split.val).records
    gates = torch.cat([run.predict(batch)["gates"] for batch in run.loader(records)])  # (N, 4, 2)
    with (folder / "stage1/metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    for level in range(4):
        for i, branch in enumerate(("seg", "clf")):
            name = f"val/gate_{branch}_level{level + 1}"
            assert float(row[name]) == pytest.approx(gates[:, level, i].mean().item(), abs=1e-5)
            assert run.figures[name] == pytest.approx(float(row[name]), abs=1e-6)


def test_an_image_by_itself(run, ultrasound):
    path = ultrasound / "benign/benign (1).png"
    (batch,) = run.loader([Record("mine", path, -1, (), "mine", segmented=False)])
    assert run.predict(batch)["mask"].shape == (1, 1, 32, 32)


def test_mammograms(mammo):
    assert (mammo.birads, mammo.tasks["birads"]) == ((1, 5), ("BI-RADS 1", "BI-RADS 5"))
    assert len(mammo.tasks["label"]) == 2
    catalogue = mammo.open_data()
    assert catalogue.birads == (1, 5)
    assert mammo.recognise(catalogue) == set(mammo.split.train + mammo.split.val)
    found = mammo.predict(next(iter(mammo.loader(catalogue.records))))
    assert found["label"].shape == found["birads"].shape == (4, 2, 2)
    torch.testing.assert_close(found["birads"].sum(2), torch.ones(4, 2))
    assert found["gates"].shape == (4, 4)
    assert "mask" not in found
    means = [mammo.figures[f"val/gate_{view}"] for view in ("l_cc", "l_mlo", "r_cc", "r_mlo")]
    assert sum(means) == pytest.approx(1, abs=1e-5)


# --- data -------------------------------------------------------------------------------------------------------------


def test_own_records_are_known_wherever_they_lie(run, ultrasound, tmp_path):
    whole = {key for keys in run.split.parts().values() for key in keys}
    assert run.recognise(run.open_data()) == whole
    moved = shutil.copytree(ultrasound, tmp_path / "elsewhere")
    shutil.copy(moved / "benign/benign (1).png", moved / "benign/benign (99).png")
    shutil.copy(moved / "benign/benign (1)_mask.png", moved / "benign/benign (99)_mask.png")
    assert run.recognise(run.open_data(moved)) == whole
    (moved / "normal/normal (1).png").unlink()
    shutil.copy(moved / "benign/benign (3)_mask.png", moved / "benign/benign (2)_mask.png")
    assert run.recognise(run.open_data(moved)) == whole - {"normal/normal (1)", "benign/benign (2)"}


def test_other_records_of_the_same_names_are_not(run, mammo, draw_phantoms):
    assert run.recognise(run.open_data(draw_phantoms("ultrasound", 24, seed=5))) == set()
    # files of equal size
    assert mammo.recognise(mammo.open_data(draw_phantoms("mammography", 15, seed=5))) == set()


def test_other_data_take_the_labels_of_the_run(run, ultrasound, tmp_path):
    root = tmp_path / "own"
    for name in ("malignant", "cyst"):
        (root / "images" / name).mkdir(parents=True)
        shutil.copy(ultrasound / "malignant/malignant (1).png", root / "images" / name / "1.png")
    catalogue = run.open_data(root)
    assert [(record.key, record.label) for record in catalogue.records] == [("malignant/1", 1)]
    assert catalogue.classes == run.classes
    shutil.rmtree(root / "images/malignant")
    with pytest.raises(DataError, match="has the classes cyst, but the network knows only benign, malignant, normal"):
        run.open_data(root)


def test_data_of_another_kind(run, mammo, ultrasound, mammograms):
    with pytest.raises(DataError, match=r"holds four-view mammograms, which the network of .* does not take"):
        run.open_data(mammograms)
    with pytest.raises(DataError, match=r"holds single images, which the network of .* does not take"):
        mammo.open_data(ultrasound)
    with pytest.raises(DataError, match="there is no such folder"):
        run.open_data("/no/such/folder")
    with pytest.raises(DataError, match=r"gone: the data set of .* is no longer there; pass its current folder"):
        replace(run, data=ultrasound / "gone").open_data()


def test_broken_images_are_skipped_on_request(run, ultrasound, tmp_path):
    data = shutil.copytree(ultrasound, tmp_path / "data")
    (data / "benign/benign (2).png").write_bytes(b"broken")
    assert len(run.open_data(data)) == 24
    assert len(run.open_data(data, skip_bad=True)) == 23
    (data / "benign/benign (3)_mask.png").unlink()
    with pytest.raises(DataError, match="there is no mask of this image"):
        run.open_data(data)


# --- folders that are not runs, and damaged ones ----------------------------------------------------------------------


def test_wrong_folders(tmp_path, folder):
    with pytest.raises(DataError, match="there is no such folder"):
        load_run(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="expected a folder, found a file"):
        load_run(tmp_path / "file")
    with pytest.raises(DataError, match="is not the folder of a run; `mtlkit train` makes one"):
        load_run(tmp_path)
    for seed in (42, 43):
        shutil.copytree(folder, tmp_path / f"runs/seed-{seed}")
    with pytest.raises(DataError, match="contains several runs; name one of them: seed-42, seed-43"):
        load_run(tmp_path / "runs")
    (tmp_path / "runs").rename(tmp_path / "row")
    (tmp_path / "table").mkdir()
    (tmp_path / "row").rename(tmp_path / "table/row")
    with pytest.raises(DataError, match="contains folders of runs; name one run in them: row"):
        load_run(tmp_path / "table")


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        ("result.json", None, "this run has not finished"),
        ("model", None, "it contains no network, the folder model is missing"),
        ("data.json", None, "data.json: cannot be read"),
        ("data.json", "{", "data.json: is not valid JSON"),
        ("data.json", "[]", "data.json: is not as a run writes it"),
        ("data.json", '{"classes": 3}', "data.json: is not as a run writes it"),
        ("result.json", "{", "result.json: is not valid JSON"),
        ("config.yaml", "a: [", "config.yaml: is not valid YAML"),
        ("split.json", "{}", "split.json: is not a list of the parts"),
        ("model/config.json", "{", "model: the network cannot be loaded"),
        ("model/config.json", '{"model": "MBDI", "options": {"depth": 3}}', "depth: MBDI has no such option"),
        ("model/model.safetensors", "xyz", "model: the network cannot be loaded"),
        ("model/model.safetensors", None, "model: the network cannot be loaded"),
    ],
)
def test_damaged_runs(folder, tmp_path, path, content, words):
    damaged = shutil.copytree(folder, tmp_path / "run")
    if content is not None:
        (damaged / path).write_text(content)
    elif (damaged / path).is_dir():
        shutil.rmtree(damaged / path)
    else:
        (damaged / path).unlink()
    with pytest.raises(DataError, match=words) as error:
        load_run(damaged)
    assert str(damaged) in str(error.value)
    assert "\n" not in str(error.value)


def test_without_split(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "run")
    (copy / "split.json").unlink()
    run = load_run(copy)
    assert run.split is None
    assert len(run.recognise(run.open_data())) == 24


def test_what_training_writes(folder, ultrasound):
    values = json.loads((folder / "data.json").read_text())
    assert (values["root"], values["layout"]) == (str(ultrasound), "busi")
    assert values["classes"] == ["benign", "malignant", "normal"]
    assert read_split(folder / "split.json") == load_run(folder).split
