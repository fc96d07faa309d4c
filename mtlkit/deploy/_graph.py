"""Rewrites of an exported graph that give the same result with fewer or faster nodes.

linear          a 1 x 1 convolution between two transpositions (mtlkit's linear layers over pixels) becomes MatMul
splits          nodes of mtlkit read their half of the channels in place, without Split
batch norms     are folded into the following convolution if it has no padding
shuffles        stacking and flattening two halves of the channels becomes Shuffle
upsampling      a transposed convolution of stride 2 becomes one convolution for each of its four phases and Interleave
means           over all pixels become GlobalAveragePool, which reads ONNX Runtime's blocked layout
transpositions  followed by their inverse are removed
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mtlkit.deploy._library import DOMAIN

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


class Rewriting:
    """A graph that is being rewritten; names of new values begin with the prefix."""

    def __init__(self, model: ir.Model, prefix: str = "mtlkit") -> None:
        self.model, self.graph, self.prefix = model, model.graph, prefix
        self._count = 0

    def constant(self, array: np.ndarray) -> ir.Value:
        """Adds an initializer and returns its value."""
        self._count += 1
        name = f"{self.prefix}_constant_{self._count}"
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
        self.graph.register_initializer(value)
        return value

    def insert(
        self, before: ir.Node, kind: str, inputs: Iterable[Any], domain: str = "", **attributes: Any
    ) -> ir.Value:
        """Inserts a node before another one and returns its output."""
        given = [ir.convenience.convert_attribute(name, value) for name, value in attributes.items()]
        node = ir.Node(domain, kind, list(inputs), given)
        self._count += 1
        node.outputs[0].name = f"{self.prefix}_value_{self._count}"
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Replaces all uses of one value by another; an output of the graph keeps its name."""
        new.type, new.shape = old.type, old.shape
        given_out = old.is_graph_output()
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        if given_out:
            old.name, new.name = None, old.name

    def clean(self) -> None:
        """Removes nodes whose outputs nothing reads."""
        RemoveUnusedNodesPass()(self.model)


# --- matching ---------------------------------------------------------------------------------------------------------


def _node(value: ir.Value | None, kind: str, domain: str = "") -> Any:
    """Returns the node that makes a value if it has this operator type, else None."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind and node.domain == domain else None


def _array(value: ir.Value | None) -> Any:
    """Returns a constant as an array; None if the value is not a constant."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _ints(node: ir.Node, name: str, missing: Any = None) -> Any:
    found = node.attributes.get(name)
    return missing if found is None else tuple(found.as_ints())


def _transposed(value: ir.Value | None, order: tuple[int, ...]) -> ir.Value | None:
    """Returns the input of the Transpose with this permutation that makes the value, else None."""
    node = _node(value, "Transpose")
    return node.inputs[0] if node is not None and _ints(node, "perm") == order else None


def _only_use(value: ir.Value) -> ir.Node | None:
    uses = value.uses()
    return next(iter(uses)).node if len(uses) == 1 and not value.is_graph_output() else None


# --- constants --------------------------------------------------------------------------------------------------------

NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}
NEAR = 1e-4
EXACT = "mtlkit.exact"  # a domain that the optimiser does not know, so that it leaves its nodes unchanged


@contextmanager
def kept_from_rounding(model: ir.Model) -> Iterator[None]:
    """Keeps PyTorch's optimiser from removing additions of 1e-8 or products with 1.00001 as neutral."""
    found = [node for node in model.graph if any(_nearly_neutral(node.op_type, value) for value in node.inputs)]
    for node in found:
        node.domain = EXACT
    yield
    for node in model.graph:
        if node.domain == EXACT:
            node.domain = ""


def _nearly_neutral(kind: str, value: ir.Value | None) -> bool:
    tensor = ir.convenience.get_const_tensor(value) if kind in NEUTRAL and value is not None else None
    return tensor is not None and tensor.size == 1 and 0 < abs(float(tensor.numpy().item()) - NEUTRAL[kind]) < NEAR


# --- rewrites ---------------------------------------------------------------------------------------------------------


def _cancel_transpositions(r: Rewriting, node: ir.Node) -> None:
    if node.op_type != "Transpose" or (before := _node(node.inputs[0], "Transpose")) is None:
        return
    first, second = _ints(before, "perm"), _ints(node, "perm")
    if [first[i] for i in second] == list(range(len(first))):
        r.replace(node.outputs[0], before.inputs[0])


def _make_linear(r: Rewriting, node: ir.Node) -> None:
    """Replaces Transpose, 1 x 1 Conv, Transpose by MatMul and Add."""
    conv = _node(node.inputs[0], "Conv") if node.op_type == "Transpose" and _ints(node, "perm") == LAST else None
    if conv is None or (x := _transposed(conv.inputs[0], FIRST)) is None or not _is_pointwise(conv):
        return
    y = r.insert(node, "MatMul", [x, r.constant(np.ascontiguousarray(_array(conv.inputs[1])[:, :, 0, 0].T))])
    if len(conv.inputs) > 2 and conv.inputs[2] is not None:
        y = r.insert(node, "Add", [y, conv.inputs[2]])
    r.replace(node.outputs[0], y)


def _is_pointwise(conv: ir.Node) -> bool:
    weight = _array(conv.inputs[1])
    plain = _ints(conv, "strides", (1, 1)) == (1, 1) and conv.attributes["group"].as_int() == 1 and not _pads(conv)
    return plain and weight is not None and weight.shape[2:] == (1, 1)


def _pads(conv: ir.Node) -> bool:
    auto = conv.attributes.get("auto_pad")
    return any(_ints(conv, "pads", (0,))) or (auto is not None and auto.as_string() not in ("NOTSET", "VALID"))


# node: the index of the input that it can read from an offset on, the attribute for that offset, and the channel axis
PARTS = {"DwconvSilu": (0, "offset", 3), "SS2D": (8, "z_offset", 3), "CausalConv1d": (0, "offset", 2)}


def _read_in_place(r: Rewriting, node: ir.Node) -> None:
    """Lets the nodes of PARTS read their half of a Split in place, and SS2D read its rows before their Reshape."""
    if node.domain != DOMAIN or node.op_type not in PARTS:
        return
    place, offset, axis = PARTS[node.op_type]
    value = node.inputs[place] if place < len(node.inputs) else None
    split = _node(value, "Split")
    if split is not None and value is not None and split.attributes["axis"].as_int() in (axis, -1):
        size = value.shape[axis] if value.shape is not None else None
        equal = len(split.outputs) == 2 and len(split.inputs) == 1
        if equal and isinstance(size, int):
            start = size * split.outputs.index(value)
            node.attributes[offset] = ir.AttrInt64(offset, start)
            node.replace_input_with(place, split.inputs[0])
    if node.op_type == "SS2D" and (reshape := _node(node.inputs[1], "Reshape")) is not None:
        flat, rows = (() if v is None or v.shape is None else v.shape[3:] for v in (reshape.inputs[0], node.inputs[1]))
        if len(flat) == 1 and len(rows) == 2 and rows[0] == 4 and isinstance(rows[1], int) and flat[0] == 4 * rows[1]:
            node.replace_input_with(1, reshape.inputs[0])


def _fold_batch_norm(r: Rewriting, node: ir.Node) -> None:
    """Folds a batch norm into the weight and bias of the convolution after it, if that has no padding."""
    conv = _only_use(node.outputs[0]) if node.op_type == "BatchNormalization" else None
    if conv is None or conv.op_type != "Conv" or _pads(conv) or conv.attributes["group"].as_int() != 1:
        return
    scale, shift = _affine(node)
    weight, bias = _array(conv.inputs[1]), _array(conv.inputs[2]) if len(conv.inputs) > 2 else 0
    if weight is None or bias is None:
        return
    new = [r.constant((weight * scale[:, None, None]).astype(np.float32))]
    new.append(r.constant(np.asarray(bias + np.einsum("oihw,i->o", weight, shift), dtype=np.float32)))
    given = [attribute.value for attribute in conv.attributes.values()]
    y = r.insert(conv, "Conv", [node.inputs[0], *new], **dict(zip(conv.attributes, given, strict=True)))
    r.replace(conv.outputs[0], y)


def _affine(norm: ir.Node) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale and shift of a batch norm in float64."""
    weight, bias, mean, var = (_array(value).astype(np.float64) for value in norm.inputs[1:5])
    scale = weight / np.sqrt(var + norm.attributes["epsilon"].as_float())
    return scale, bias - mean * scale


def _shuffle(r: Rewriting, node: ir.Node) -> None:
    """Replaces the interleaving of two tensors' channels (stack on a new last axis, then flatten) by Shuffle."""
    stack = _node(node.inputs[0], "Concat") if node.op_type == "Reshape" else None
    if stack is None or len(stack.inputs) != 2:
        return
    halves = [_node(value, "Unsqueeze") for value in stack.inputs]
    if None in halves or node.outputs[0].shape is None or halves[0].inputs[0].shape is None:
        return
    wide, half = tuple(node.outputs[0].shape), tuple(halves[0].inputs[0].shape)
    behind = (-1, len(half))
    axes = [_array(one.inputs[1]) for one in halves]
    if stack.attributes["axis"].as_int() not in behind or any(a is None or a.flatten()[0] not in behind for a in axes):
        return
    if wide[:-1] == half[:-1] and isinstance(half[-1], int) and wide[-1] == 2 * half[-1]:
        r.replace(node.outputs[0], r.insert(node, "Shuffle", [one.inputs[0] for one in halves], DOMAIN))


def _pool_globally(r: Rewriting, node: ir.Node) -> None:
    """Replaces ReduceMean over the last two of four dimensions by GlobalAveragePool."""
    if node.op_type != "ReduceMean" or len(node.inputs) < 2:
        return
    x = node.inputs[0]
    axes, shape = _array(node.inputs[1]), None if x is None else x.shape
    if axes is None or shape is None or len(shape) != 4 or sorted(int(a) % 4 for a in axes) != [2, 3]:
        return
    y = r.insert(node, "GlobalAveragePool", [x])
    if not node.attributes["keepdims"].as_int():
        y = r.insert(node, "Flatten", [y], axis=1)
    r.replace(node.outputs[0], y)


def _by_phases(r: Rewriting, node: ir.Node) -> None:
    """Replaces a transposed convolution of stride 2 by the convolutions of its four phases and Interleave.

    With padding p, output pixel 2 m + a is the sum over j of x[m - j] times tap a + p + 2 j, where that tap exists.
    """
    if node.op_type != "ConvTranspose" or "output_shape" in node.attributes:
        return
    weight: Any = _array(node.inputs[1])  # (I, O, k, k)
    pads, extra = _ints(node, "pads", (0,) * 4), _ints(node, "output_padding", (0, 0))
    auto = node.attributes.get("auto_pad")
    plain = _ints(node, "strides") == (2, 2) and _ints(node, "dilations", (1, 1)) == (1, 1)
    plain = plain and node.attributes["group"].as_int() == 1 and (auto is None or auto.as_string() == "NOTSET")
    if not plain or weight is None or weight.ndim != 4:
        return
    bias = [node.inputs[2]] if len(node.inputs) > 2 and node.inputs[2] is not None else []
    axes: list[Any] = [_phases(weight.shape[2 + i], pads[i], pads[2 + i], extra[i]) for i in range(2)]
    if any(axis is None for axis in axes):
        return
    parts = []
    for rows in axes[0]:
        for columns in axes[1]:
            taps = weight[:, :, rows[0]][:, :, :, columns[0]]
            kernel = r.constant(np.ascontiguousarray(taps.transpose(1, 0, 2, 3)))
            options: dict[str, Any] = {
                "kernel_shape": taps.shape[2:],
                "pads": (rows[1], columns[1], rows[2], columns[2]),
            }
            parts.append(r.insert(node, "Conv", [node.inputs[0], kernel, *bias], **options, group=1))
    crop = {"crop_rows": axes[0][0][3], "crop_columns": axes[1][0][3]}
    r.replace(node.outputs[0], r.insert(node, "Interleave", parts, DOMAIN, **crop))


def _crop_phases(r: Rewriting, node: ir.Node) -> None:
    """Removes a Slice that drops the last row or column of an Interleave whose attribute crops one more.

    The convolutions of the phases then pad one row or column less, and do not compute what would be dropped.
    """
    phases = _node(node.inputs[0], "Interleave", DOMAIN) if node.op_type == "Slice" else None
    if phases is None or _only_use(phases.outputs[0]) is not node or len(node.inputs) < 4:
        return
    known = [_array(value) for value in node.inputs[1:]]
    if any(v is None or v.size != 1 for v in known):
        return
    start, end, axis, *steps = (v.item() for v in known)
    if (start, end) != (0, -1) or any(step != 1 for step in steps):
        return
    axis %= 4
    crop = {2: "crop_rows", 3: "crop_columns"}.get(axis, "")
    convs = [_node(value, "Conv") for value in phases.inputs]
    if not crop or phases.attributes[crop].as_int() != 1 or any(c is None or _ints(c, "pads")[axis] < 1 for c in convs):
        return
    for conv in convs:
        pads = list(_ints(conv, "pads"))
        pads[axis] -= 1
        conv.attributes["pads"] = ir.AttrInt64s("pads", pads)
    phases.attributes[crop] = ir.AttrInt64(crop, 0)
    r.replace(node.outputs[0], phases.outputs[0])
    node.replace_input_with(0, None)  # so that it no longer counts as a use when the other axis is cropped


def _phases(taps: int, before: int, after: int, extra: int) -> Any:
    """Splits one axis of a transposed convolution into its two phases.

    Returns for each phase the taps in the order of a convolution, the padding before and after, and how many pixels
    of the interleaved output to crop; None if a phase has no tap or would have to crop its input.
    """
    beyond = taps - before - after + extra  # the output has 2 (H - 1) + beyond pixels
    steps = (beyond + 1) // 2 - 1  # each phase has H + steps pixels
    found = []
    for phase in range(2):
        first = -((phase + before) // 2)  # the smallest j
        last = (taps - 1 - phase - before) // 2
        pad_before, pad_after = last, steps - first
        if last < first or pad_before < 0 or pad_after < 0:
            return None
        found.append(([phase + before + 2 * j for j in range(last, first - 1, -1)], pad_before, pad_after, beyond % 2))
    return found


REWRITES: tuple[Callable[[Rewriting, ir.Node], None], ...] = (
    _cancel_transpositions,
    _make_linear,
    _read_in_place,
    _fold_batch_norm,
    _shuffle,
    _by_phases,
    _crop_phases,
    _pool_globally,
)


def rewrite(model: ir.Model) -> None:
    """Applies all rules to a model, one after the other, in place."""
    r = Rewriting(model)
    for rule in (*REWRITES, _cancel_transpositions):
        for node in list(model.graph):
            rule(r, node)
        r.clean()
