"""Small phantoms, and run folders on them that look like those of a training."""

import csv
from pathlib import Path

import pytest

from mtlkit._files import write_json
from mtlkit.data import Split, make_split, open_dataset
from mtlkit.training import Config, SavedRun, create_module, load_config, load_run
from mtlkit.training.saved_run import DATA, MARK, RESULT, SPLIT, data_values

INTERACTING = {
    "encoder": "resnet18",
    "decoder_dims": [16, 16, 12, 8],
    "num_classes": 3,
    "clf_dim": 16,
    "hmsf": False,
}


def make_run(folder: Path, config: Config, data: Path, split: Split | None = None) -> Path:
    """Makes what training leaves, with the initial weights."""
    mammograms = config.task == "mammography"
    options = {"birads": config.data.birads} if mammograms else {"classes": config.data.classes}
    catalogue = open_dataset(data, **options)
    split = split or make_split(catalogue, config.data.fractions, config.data.split_seed)
    folder.mkdir(parents=True)
    config.save(folder / "config.yaml")
    split.save(folder / SPLIT)
    write_json(folder / DATA, data_values(catalogue, split))
    create_module(config, catalogue, split).model.save_pretrained(folder / "model")
    write_json(folder / RESULT, {"test/accuracy": 0.5})
    (folder / MARK).touch()
    return folder


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def write_run():
    """Makes a run folder, as write_run(folder, config, data, split), and returns it."""
    return make_run


@pytest.fixture(scope="session")
def tables():
    """Reads a CSV file as dictionaries."""
    return read_table


@pytest.fixture(scope="session")
def ultrasound(draw_phantoms) -> Path:
    return draw_phantoms("ultrasound", 40)


@pytest.fixture(scope="session")
def mammograms(draw_phantoms) -> Path:
    return draw_phantoms("mammography", 20)


@pytest.fixture(scope="session")
def lesion_config() -> Config:
    """A BTI-Net, small because it has only two levels of interaction."""
    changes = {
        "model": {"options": INTERACTING | {"levels": [1, 4]}},
        "data": {"size": 32, "batch_size": 8, "cache": False, "fractions": [0.5, 0.1, 0.4]},
        "second_stage": None,
    }
    return load_config("demo").change(changes)


@pytest.fixture(scope="session")
def lesion(tmp_path_factory, lesion_config, ultrasound) -> SavedRun:
    return load_run(make_run(tmp_path_factory.mktemp("lesion") / "run", lesion_config, ultrasound))


@pytest.fixture(scope="session")
def plain(tmp_path_factory, lesion_config, ultrasound) -> SavedRun:
    """A U-Net, which has no gates."""
    options = {"encoder": "resnet18", "dim": 4, "num_classes": 3}
    config = lesion_config.change({"model": {"name": "unet", "options": options}})
    return load_run(make_run(tmp_path_factory.mktemp("plain") / "run", config, ultrasound))


@pytest.fixture(scope="session")
def views(tmp_path_factory, ultrasound) -> SavedRun:
    changes = {
        "model": {"options": {"pretrained": False, "num_classes": 2}},
        "data": {"size": 32, "batch_size": 8, "workers": 0, "fractions": [0.5, 0.1, 0.4]},
    }
    config = load_config("csa_moe").change(changes)
    return load_run(make_run(tmp_path_factory.mktemp("views") / "run", config, ultrasound))


@pytest.fixture(scope="session")
def mammography(tmp_path_factory, mammograms) -> SavedRun:
    options = {"backbone": "vssm", "depths": [1], "dims": [16], "d_state": 1, "birads_classes": 5}
    changes = {
        "model": {"options": options},
        "data": {"size": 32, "batch_size": 4, "workers": 0, "fractions": [0.5, 0.5, 0.0]},
        "loss": {"class_weights": False},
    }
    config = load_config("hybrid_vssm").change(changes)
    return load_run(make_run(tmp_path_factory.mktemp("mammography") / "run", config, mammograms))


@pytest.fixture
def undrawn(monkeypatch):
    """Skips plots, which take most of the time."""
    monkeypatch.setattr("mtlkit.evaluation.runner.draw_all", lambda *_, **__: {})
    monkeypatch.setattr("mtlkit.evaluation.runner.draw_attribution", lambda *_: {})
