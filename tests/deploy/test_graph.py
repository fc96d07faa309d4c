"""Each rewrite of a graph keeps its results, and produces the expected nodes."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from harness.onnx_nodes import model_of, session_of
from mtlkit.deploy import _graph
from mtlkit.testing import relative_error

RANDOM = np.random.default_rng(0)


def constant(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(RANDOM.standard_normal(shape).astype(np.float32), name)


def rewritten(nodes, inputs, outputs, constants, shapes=None) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A model, and the result of the rewrites; `shapes` lists known shapes of values."""
    before = model_of(nodes, inputs, outputs, constants)
    for name, shape in (shapes or {}).items():
        before.graph.value_info.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    model = ir.from_proto(before)
    _graph.rewrite(model)
    return before, ir.to_proto(model)


def kinds(model: onnx.ModelProto) -> Counter:
    return Counter(node.op_type for node in model.graph.node)


def assert_same(before: onnx.ModelProto, after: onnx.ModelProto, **inputs: Tensor) -> None:
    given = {name: t.numpy() for name, t in inputs.items()}
    for old, new in zip(session_of(before).run(None, given), session_of(after).run(None, given), strict=True):
        assert old.shape == new.shape
        assert relative_error(torch.from_numpy(new), torch.from_numpy(old)) < 1e-6


def transposed(source: str, target: str, order: tuple[int, ...]):
    return helper.make_node("Transpose", [source], [target], perm=order)


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias):
    nodes = [
        transposed("x", "first", (0, 3, 1, 2)),
        helper.make_node("Conv", ["first", "w", *(["b"] if bias else [])], ["conv"], group=1),
        transposed("conv", "y", (0, 2, 3, 1)),
    ]
    before, after = rewritten(nodes, {"x": 4}, ["y"], [constant("w", 5, 3, 1, 1), constant("b", 5)])
    assert kinds(after) == Counter({"MatMul": 1, "Add": 1} if bias else {"MatMul": 1})
    assert_same(before, after, x=torch.randn(2, 4, 7, 3))


@pytest.mark.parametrize("options", [{"strides": (2, 2)}, {"pads": (1, 1, 1, 1)}, {"group": 3}])
def test_other_convolutions_stay(options):
    nodes = [
        transposed("x", "first", (0, 3, 1, 2)),
        helper.make_node("Conv", ["first", "w"], ["conv"], **{"group": 1, **options}),
        transposed("conv", "y", (0, 2, 3, 1)),
    ]
    group = options.get("group", 1)
    before, after = rewritten(nodes, {"x": 4}, ["y"], [constant("w", 6, 3 // group, 1, 1)])
    assert kinds(after) == kinds(before)


@pytest.mark.parametrize(
    ("kernel", "padding", "extra"), [(2, 0, 0), (3, 0, 0), (3, 1, 1), (4, 1, 0), (5, 2, 1), (5, 1, 0)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_upsampling(kernel, padding, extra, bias):
    layer = nn.ConvTranspose2d(3, 5, kernel, 2, padding, extra, bias=bias)
    names, constants = ["x", "w"], [numpy_helper.from_array(layer.weight.detach().numpy(), "w")]
    if layer.bias is not None:
        names, constants = [*names, "b"], [*constants, numpy_helper.from_array(layer.bias.detach().numpy(), "b")]
    options = {"strides": (2, 2), "pads": (padding,) * 4, "output_padding": (extra,) * 2, "group": 1}
    node = helper.make_node("ConvTranspose", names, ["y"], **options)
    before, after = rewritten([node], {"x": 4}, ["y"], constants)
    assert "ConvTranspose" not in kinds(after)
    assert kinds(after) == Counter({"Conv": 4, "Interleave": 1})
    x = torch.randn(2, 3, 4, 6)
    assert_same(before, after, x=x)
    with torch.no_grad():
        found = torch.from_numpy(session_of(after).run(None, {"x": x.numpy()})[0])
        assert relative_error(found, layer(x)) < 1e-6


@pytest.mark.parametrize(
    "options", [{"strides": (1, 1)}, {"strides": (2, 2), "group": 3}, {"strides": (2, 2), "dilations": (2, 2)}]
)
def test_other_upsampling_stays(options):
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], **{"group": 1, **options})
    before, after = rewritten([node], {"x": 4}, ["y"], [constant("w", 3, 2, 3, 3)])
    assert kinds(after) == kinds(before)


def test_batch_norm_in_front_of_a_convolution():
    norm = helper.make_node("BatchNormalization", ["x", "a", "b", "m", "v"], ["n"], epsilon=1e-3)
    variance = numpy_helper.from_array(np.array([0.5, 1.0, 2.0], dtype=np.float32), "v")
    constants = [constant("a", 3), constant("b", 3), constant("m", 3), variance, constant("w", 4, 3, 3, 3)]
    for pads, left in ((0, {}), (1, {"BatchNormalization": 1})):
        conv = helper.make_node("Conv", ["n", "w"], ["y"], group=1, pads=(pads,) * 4)
        before, after = rewritten([norm, conv], {"x": 4}, ["y"], constants)
        assert kinds(after) == Counter({"Conv": 1, **left})
        assert_same(before, after, x=torch.randn(2, 3, 5, 6))


@pytest.mark.parametrize(("rows", "kind"), [("b", "Shuffle"), ("other", "Reshape")])
def test_shuffle(rows, kind):
    nodes = [
        helper.make_node("Neg", ["x"], ["l"]),
        helper.make_node("Unsqueeze", ["l", "end"], ["left"]),
        helper.make_node("Unsqueeze", ["x", "end"], ["right"]),
        helper.make_node("Concat", ["left", "right"], ["stack"], axis=-1),
        helper.make_node("Reshape", ["stack", "shape"], ["view"]),
        helper.make_node("Neg", ["view"], ["y"]),
    ]
    constants = [numpy_helper.from_array(np.array(v), name) for name, v in (("end", [-1]), ("shape", [0, 0, 10]))]
    shapes = {"l": ["a", "b", 5], "view": ["a", rows, 10]}
    before, after = rewritten(nodes, {"x": 3}, ["y"], constants, shapes)
    assert kinds(after)[kind] == 1
    assert_same(before, after, x=torch.randn(2, 3, 5))


@pytest.mark.parametrize(("ends", "left"), [((-1, -1), 0), ((-1, -2), 1), ((7, -1), 2)])
def test_upsampling_that_is_cropped(ends, left):
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["t"], strides=(2, 2), group=1)]
    constants = [constant("w", 3, 5, 3, 3)]
    for axis, (source, target, end) in enumerate((("t", "r", ends[0]), ("r", "y", ends[1])), 2):
        names = [f"{target}_{part}" for part in ("start", "end", "axis", "step")]
        nodes.append(helper.make_node("Slice", [source, *names], [target]))
        values = zip(names, (0, end, axis, 1), strict=True)
        constants += [numpy_helper.from_array(np.array([value]), name) for name, value in values]
    before, after = rewritten(nodes, {"x": 4}, ["y"], constants)
    assert kinds(after) == Counter({"Conv": 4, "Interleave": 1} | ({"Slice": left} if left else {}))
    assert_same(before, after, x=torch.randn(2, 3, 4, 6))


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize(
    ("axes", "kind"), [([2, 3], "GlobalAveragePool"), ([-1, -2], "GlobalAveragePool"), ([1], "ReduceMean")]
)
def test_means_over_all_pixels(axes, kind, keepdims):
    node = helper.make_node("ReduceMean", ["n", "axes"], ["y"], keepdims=keepdims)
    nodes = [helper.make_node("Neg", ["x"], ["n"]), node]
    constants = [numpy_helper.from_array(np.array(axes), "axes")]
    before, after = rewritten(nodes, {"x": 4}, ["y"], constants, {"n": ["a", "b", "c", "d"]})
    assert kind in kinds(after)
    assert_same(before, after, x=torch.randn(2, 3, 5, 6))


def test_transpositions_that_meet():
    nodes = [
        transposed("x", "a", (0, 3, 1, 2)),
        transposed("a", "b", (0, 2, 3, 1)),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    before, after = rewritten(nodes, {"x": 4}, ["y"], [])
    assert kinds(after) == Counter({"Neg": 1})
    nodes[1] = transposed("a", "b", (0, 3, 1, 2))
    before, after = rewritten(nodes, {"x": 4}, ["y"], [])
    assert kinds(after) == kinds(before)


def test_channels_are_read_where_they_are():
    D, N, R = 6, 2, 1
    split = helper.make_node("Split", ["x"], ["u", "z"], axis=-1, num_outputs=2)
    conv = helper.make_node("DwconvSilu", ["u", "w"], ["c"], domain="mtlkit")
    rows = helper.make_node("Reshape", ["flat", "shape"], ["rows"])
    scan = helper.make_node("SS2D", ["c", "rows", "dw", "db", "A", "D", "", "", "z"], ["y"], domain="mtlkit", norm=1)
    parameters = [constant("w", D, 1, 3, 3), constant("dw", 4, D, R), constant("db", 4, D)]
    parameters += [constant("A", 4 * D, N), constant("D", 4 * D)]
    parameters.append(numpy_helper.from_array(np.array([2, 3, 5, 4, R + 2 * N]), "shape"))
    known = {name: ["a", "b", "c", D] for name in ("u", "z")}
    known["rows"] = ["a", "b", "c", 4, R + 2 * N]
    model = model_of([split, conv, rows, scan], {"x": 4, "flat": 4}, ["y"], parameters)
    model.graph.input[1].CopyFrom(
        helper.make_tensor_value_info("flat", onnx.TensorProto.FLOAT, ["a", "b", "c", 4 * (R + 2 * N)])
    )
    for name, shape in known.items():
        model.graph.value_info.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    changed = ir.from_proto(model)
    _graph.rewrite(changed)
    after = ir.to_proto(changed)
    assert kinds(after) == Counter({"DwconvSilu": 1, "SS2D": 1})
    assert_same(model, after, x=torch.randn(2, 3, 5, 2 * D), flat=torch.randn(2, 3, 5, 4 * (R + 2 * N)))
