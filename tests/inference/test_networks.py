"""Which engine a network needs, and what is rejected before loading it."""

import re

import pytest

from mtlkit.data import DataError
from mtlkit.inference import open_network, predict
from mtlkit.inference.networks import engine_of


def test_engine_follows_from_the_network(small_lesion, tmp_path):
    run, file = small_lesion
    (tmp_path / "run.onnx").mkdir()
    assert engine_of(file) == engine_of(str(file)) == engine_of("A.ONNX", "onnxruntime") == "onnxruntime"
    assert engine_of(run) == engine_of("runs/mbdi") == engine_of(tmp_path / "run.onnx", "torch") == "torch"
    network = open_network(file)
    assert open_network(network) is network
    assert engine_of(network, "onnxruntime") == "onnxruntime"


@pytest.mark.parametrize(
    ("run", "options", "words"),
    [
        ("a.onnx", {"engine": "torch"}, "engine: expected 'onnxruntime' for a.onnx, a file of ONNX, got 'torch'"),
        (
            "runs/a",
            {"engine": "onnxruntime"},
            "engine: expected 'torch' for runs/a, a run, got 'onnxruntime'; `",
        ),
        ("runs/a", {"engine": "tvm"}, "engine: expected one of torch, onnxruntime, got 'tvm'"),
        ("a.onnx", {"device": "cuda"}, "device: expected 'cpu' or None for a file of ONNX, got 'cuda'"),
        ("a.onnx", {}, "a.onnx: there is no such file"),
    ],
)
def test_what_does_not_fit(image, tmp_path, run, options, words):
    path = image("a.png")
    with pytest.raises(ValueError, match=re.escape(words)):
        predict(run, path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_facts_of_another_type_are_named(small_lesion):
    from mtlkit._fields import Fields
    from mtlkit.inference import Facts

    values = small_lesion.run.facts()
    assert Facts.read(Fields(small_lesion.file, values)).size == 32
    with pytest.raises(DataError, match=r"net.onnx: .*\(size: expected an integer, got 'large'\)"):
        Facts.read(Fields(small_lesion.file, values | {"size": "large"}))
    with pytest.raises(DataError, match=r"\(logits.class is missing\)"):
        Facts.read(Fields(small_lesion.file, values | {"logits": {}}))
    values.pop("temperatures")  # as in files of earlier versions
    assert Facts.read(Fields(small_lesion.file, values)).temperatures == {"class": 1.0}
    with pytest.raises(DataError, match=r"\(temperatures: expected names and values, got \[1.0\]\)"):
        Facts.read(Fields(small_lesion.file, values | {"temperatures": [1.0]}))
