"""Int8 files: which nodes compute in int8, that files are complete, and what cannot be calibrated."""

import collections
import logging

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import mtlkit
from mtlkit import deploy
from mtlkit.deploy import _export, _int8
from mtlkit.errors import ExistsError


class Small(nn.Module):
    """Convolutions, a norm that is not folded, a gate of channels, a scan, a mask and a class."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.mix, self.gate = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1)
        self.scan, self.after = mtlkit.nn.SS2D(16, 4), nn.Conv2d(16, 16, 3, padding=1)
        self.head, self.classes = nn.Conv2d(16, 1, 1), nn.Linear(32, 3)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(F.relu(self.stem(images)))
        x = F.silu(self.mix(x))
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        x = x + self.scan(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = F.relu(self.after(x))
        return self.head(y), self.classes(torch.cat((x.mean((2, 3)), y.mean((2, 3))), 1))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    found = Small().eval()
    found.norm.running_mean.uniform_(0, 0.5)
    found.norm.running_var.uniform_(0.5, 1.5)
    return found


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    return list(torch.rand(3, 2, 3, 24, 32, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def exported(model, batches, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "net.onnx"
    seen: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = seen.append
    logging.root.addHandler(handler)
    try:
        found = mtlkit.export(model, path, example=batches[0], int8=iter(batches))
    finally:
        logging.root.removeHandler(handler)
    assert not seen
    return found


def test_what_is_in_8_bits(exported):
    file = onnx.load(exported.path)
    kinds = collections.Counter(node.op_type for node in file.graph.node)
    assert kinds["SS2D"] == 1
    assert kinds["BatchNormalization"] == kinds["ReduceMean"] == 0
    makers = {name: node for node in file.graph.node for name in node.output}
    products = [node for node in file.graph.node if node.op_type in ("Conv", "MatMul")]
    in_float = [node for node in products if makers.get(node.input[1]) is None]
    assert len(products) == 9  # with the norm, and three within the scan's layer
    assert [node.op_type for node in in_float] == ["Conv", "Conv"]  # the gate, and the head
    (joined,) = (node for node in file.graph.node if node.op_type == "Concat")  # vectors
    assert not any(joined.output[0] in node.input for node in file.graph.node if node.op_type == "QuantizeLinear")
    scan = next(node for node in file.graph.node if node.op_type == "SS2D")
    assert not any(makers[name].op_type == "QuantizeLinear" for name in scan.input if name in makers)


def test_answers(model, exported, batches):
    assert exported.calibration.images == 6
    assert 1e-4 < exported.error < 0.1
    session = deploy.open_session(exported.path, threads=1)
    facts = deploy.facts_of(session)
    assert facts["int8"] == {"images": 6, "sha256": exported.calibration.sha256}
    x = torch.rand(1, 3, 40, 24, generator=torch.Generator().manual_seed(2))  # another size
    with torch.no_grad():
        expected = model(x)
    for got, exact in zip(session.run(None, {"images": x.numpy()}), expected, strict=True):
        assert np.linalg.norm(got - exact.numpy()) < 0.1 * exact.norm().item()


def test_the_same_batches_are_the_same_file(model, exported, batches, tmp_path):
    paths = [tmp_path / name for name in ("int8.onnx", "both.onnx", "alone.onnx")]
    again = mtlkit.export(model, paths[0], example=batches[0], int8=batches, float32=paths[1])
    assert again.calibration == exported.calibration
    assert paths[0].read_bytes() == exported.path.read_bytes()
    mtlkit.export(model, paths[2], example=batches[0])
    assert paths[1].read_bytes() == paths[2].read_bytes()


@pytest.mark.parametrize(("int8", "name"), [(None, "float32.onnx"), ([], "net.onnx")])
def test_the_file_in_float32_needs_int8_and_its_own_name(model, tmp_path, int8, name):
    with pytest.raises(ValueError, match="float32: expected int8 and another path"):
        mtlkit.export(model, tmp_path / "net.onnx", int8=int8, float32=tmp_path / name)
    (tmp_path / "float32.onnx").touch()
    with pytest.raises(ExistsError, match="float32"):
        mtlkit.export(model, tmp_path / "net.onnx", int8=[], float32=tmp_path / "float32.onnx")


@pytest.mark.parametrize(
    ("int8", "kind", "words"),
    [
        ([], ValueError, "int8: expected at least one batch"),
        ([(torch.rand(1, 3, 8, 8), torch.rand(1))], TypeError, "int8: expected batches of tensors for images, got"),
        ([torch.rand(1, 4, 24, 32)], ValueError, "int8: expected batches that the network takes"),
        (["scan.png"], TypeError, "int8: expected batches of tensors"),
    ],
)
def test_what_cannot_be_calibrated(model, batches, tmp_path, monkeypatch, int8, kind, words):
    monkeypatch.setattr(_export, "_compare", lambda *_: 0.0)
    with pytest.raises(kind, match=words):
        mtlkit.export(model, tmp_path / "net.onnx", example=batches[0], int8=int8, float32=tmp_path / "float32.onnx")
    assert not list(tmp_path.iterdir())


def test_no_numbers(model, batches, tmp_path, monkeypatch):
    errors = iter((0.0, float("inf")))
    monkeypatch.setattr(_export, "_compare", lambda *_: next(errors))
    with pytest.raises(ValueError, match="expected an 8-bit network with finite outputs"):
        mtlkit.export(model, tmp_path / "net.onnx", example=batches[0], int8=batches)
    assert not list(tmp_path.iterdir())


def test_preparing_changes_no_result():
    """Means with and without kept dimensions, a norm of a map, and a norm of vectors, which is not rewritten."""
    random = np.random.default_rng(0)
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    numbers = [numpy_helper.from_array(random.uniform(0.5, 1.5, 4).astype(np.float32), name) for name in "wbmv"]
    nodes = [
        helper.make_node("BatchNormalization", ["x", *"wbmv"], ["y"], epsilon=1e-3),
        helper.make_node("ReduceMean", ["y", "axes"], ["kept"]),
        helper.make_node("ReduceMean", ["y", "axes"], ["dropped"], keepdims=0),
        helper.make_node("BatchNormalization", ["dropped", *"wbmv"], ["vectors"], epsilon=1e-3),
    ]
    shapes = {"x": (2, 4, 5, 3), "y": (2, 4, 5, 3), "kept": (2, 4, 1, 1), "dropped": (2, 4), "vectors": (2, 4)}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    outputs = [values[name] for name in ("kept", "dropped", "vectors")]
    graph = helper.make_graph(nodes, "g", [values["x"]], outputs, [axes, *numbers], value_info=[values["y"]])
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    model = ir.from_proto(file)
    _int8.prepare(model)
    kinds = [node.op_type for node in model.graph]
    assert kinds == ["Conv", "GlobalAveragePool", "GlobalAveragePool", "Flatten", "BatchNormalization"]
    x = {"x": random.standard_normal(shapes["x"]).astype(np.float32)}
    sessions = (onnxruntime.InferenceSession(one.SerializeToString()) for one in (file, ir.to_proto(model)))
    before, after = (session.run(None, x) for session in sessions)
    for got, exact in zip(after, before, strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-6)
