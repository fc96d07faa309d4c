"""Data that does not fit is reported before training or evaluating anything, and leaves no files behind."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtlkit.errors import DataError, UnusableError
from mtlkit.training import Config, SavedRun, train

CLASSES = ("benign", "malignant")


@pytest.fixture
def config(small) -> Config:
    return small.change({"data": {"classes": list(CLASSES)}})


@pytest.fixture
def own(tmp_path) -> Path:
    root, rows, rng = tmp_path / "data", ["image,group"], np.random.default_rng(0)
    for name in CLASSES:
        for part in ("images", "masks"):
            (root / part / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 255, (40, 40), np.uint8)).save(root / "images" / name / f"{i}.png")
            Image.fromarray(np.eye(40, dtype=np.uint8) * 255).save(root / "masks" / name / f"{i}.png")
            rows.append(f"{name}/{i}.png,patient {name} {i // 2}")
    (root / "groups.csv").write_text("\n".join(rows))
    return root


def misspell(root: Path) -> None:
    table = root / "groups.csv"
    table.write_text(table.read_text().replace("benign/1.png", "benign/11.png"))


def hide(root: Path) -> None:
    (root / "groups.csv").rename(root / "group.csv")


def pipe(root: Path) -> None:
    (root / "images/benign/1.png").unlink()
    os.mkfifo(root / "images/benign/1.png")


def twin(root: Path) -> None:
    (root / "images/benign/1.bmp").write_bytes(b"x")


def bytes_in_name(root: Path) -> None:
    for part in ("images", "masks"):
        name = root / part / "benign/1.png"
        name.rename(name.with_name(os.fsdecode(b"\xe9.png")))
    (root / "groups.csv").unlink()


CHANGES: dict[Callable[[Path], None], str] = {
    misspell: "lists 'benign/11.png', for which there is no image, and does not list 'benign/1'",
    hide: "expected one table of groups with the name groups.csv, got group.csv",
    pipe: "found a device or a pipe",
    twin: "has the same name, except for suffix or spelling",
    bytes_in_name: "its name is not text in UTF-8",
}


@pytest.mark.parametrize("change", CHANGES)
def test_training_and_evaluation_do_not_begin(own, tmp_path, config, change):
    run = SavedRun(tmp_path, config, None, CLASSES, (), None, {}, own, {})
    assert len(run.open_data()) == 8
    change(own)
    for begin in (lambda: train(config, own, tmp_path / "run", progress=False), run.open_data):
        with pytest.raises(DataError, match=CHANGES[change]) as error:
            begin()
        assert change is hide or isinstance(error.value, UnusableError)
    assert not (tmp_path / "run").exists()


def test_a_split_that_does_not_fit_ends_before_the_training(own, tmp_path, config):
    split = tmp_path / "split.json"
    split.write_text('{"train": ["benign/0", "benign/1"], "val": ["malignant/0"], "test": ["malignant/11"]}')
    with pytest.raises(
        DataError, match=r"lists 'malignant/11', which is not in .*, and does not list 'benign/2' \(and"
    ):
        train(config, own, tmp_path / "run", split=split, progress=False)
    assert not (tmp_path / "run").exists()
