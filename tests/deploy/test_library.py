"""The library, sessions that load it, and files that it cannot run."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from harness.onnx_nodes import model_of
from mtlkit import deploy
from mtlkit.deploy import _library
from mtlkit.errors import DataError


@pytest.fixture
def file(tmp_path):
    """Writes a file with one NormGate node: file(metadata)."""

    def write(facts: object = None):
        node = helper.make_node("NormGate", ["x"], ["y"], domain="mtlkit")
        model = model_of([node], {"x": 2}, ["y"])
        model.metadata_props.add(key=_library.FACTS, value=facts if isinstance(facts, str) else json.dumps(facts or {}))
        path = tmp_path / "net.onnx"
        onnx.save(model, path)
        return path

    return write


def test_session(file):
    session = deploy.open_session(file(facts={"operators": 1, "size": 224}), threads=1)
    assert deploy.facts_of(session) == {"operators": 1, "size": 224}
    (y,) = session.run(None, {"x": np.array([[1, 3]], dtype=np.float32)})
    np.testing.assert_allclose(y, [[-1, 1]], atol=1e-4)


def test_an_own_session_with_the_path(file):
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(deploy.library_path())
    onnxruntime.InferenceSession(file(), options)


def test_no_library(monkeypatch, tmp_path, file):
    monkeypatch.setattr(_library, "_FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"mtlkit\.deploy\.library_path\(\) found nothing there"):
        deploy.open_session(file())
    with pytest.raises(FileNotFoundError, match=r"include: mtlkit\.deploy\.include_path\(\) found nothing there"):
        deploy.include_path()


def test_kinds():
    with pytest.raises(ValueError, match="kind: expected one of 'onnxruntime', 'c', got 'rust'"):
        deploy.library_path("rust")
    assert deploy.library_path("c") != deploy.library_path("onnxruntime") == deploy.library_path()


@pytest.mark.parametrize(
    ("break_", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "cannot be opened by ONNX Runtime"),
        (lambda path: path.write_bytes(b""), "cannot be opened by ONNX Runtime"),
        (lambda path: path.unlink(), "there is no such file"),
    ],
)
def test_damaged_files(file, break_, words):
    path = file()
    break_(path)
    with pytest.raises(DataError, match=words):
        deploy.open_session(path)


def test_files_of_later_versions(file):
    with pytest.raises(DataError, match="a later mtlkit"):
        deploy.open_session(file(facts={"operators": 2}))


@pytest.mark.parametrize("facts", ["[1]", "{", '"text"'])
def test_damaged_metadata(file, facts):
    with pytest.raises(DataError, match="metadata: expected a JSON object"):
        deploy.open_session(file(facts=facts))
