"""Translates a traced network to ONNX as it is, without tracing it again.

`torch.onnx.export` first decomposes a program, which traces all of it a second time with symbolic sizes: over half of
the time of an export. Most programs need this only for a few operators without a translation, or because they write in
place. `prepared` replaces those operators in the graph, and TRANSLATIONS has the rest; what is left passes through the
decomposition unchanged anyway.
"""

# pyright: basic
# torch.onnx would read type annotations of the translations as schemas, so they have none

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from mtlkit.deploy import _modules  # noqa: F401 (declares an operator of FRESH)

aten = torch.ops.aten

# views that have a translation and are not composed of other operators; all other views are decomposed
VIEWS = {
    aten.expand.default,
    aten.permute.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.squeeze.dim,
    aten.transpose.int,
    aten.unbind.int,
    aten.unsqueeze.default,
    aten.view.default,
}
# operators whose result is never their input, and may be overwritten
FRESH = {
    aten.add.Tensor,
    aten.batch_norm.default,
    aten.conv2d.default,
    aten.conv_transpose2d.input,
    aten.linear.default,
    aten.mul.Tensor,
    torch.ops.mtlkit_deploy.conv2d_same.default,
}
IN_PLACE = {
    aten.add_.Tensor: aten.add.Tensor,
    aten.hardswish_.default: aten.hardswish.default,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.leaky_relu_.default: aten.leaky_relu.default,
    aten.mul_.Tensor: aten.mul.Tensor,
    aten.relu_.default: aten.relu.default,
    aten.sigmoid_.default: aten.sigmoid.default,
    aten.silu_.default: aten.silu.default,
}
NUMBERS = {operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg}
CHECKED = aten._assert_tensor_metadata.default  # torch.onnx.export removes it


@contextmanager
def prepared(program: ExportedProgram, own: set[Any]) -> Iterator[bool]:
    """Replaces operators that write in place or have no translation, with the same result; undoes it at the end.

    Args:
        program: a traced network.
        own: operators of mtlkit with a translation.

    Yields:
        Whether the program can be translated as it is, with TRANSLATIONS; an operator without any translation, which
        torch.onnx.export reports, is not found here.
    """
    before = [(node, node.target, node.args) for node in program.graph.nodes]
    try:
        for node in program.graph.nodes:
            if node.target in IN_PLACE and _may_overwrite(node):
                node.target = IN_PLACE[node.target]
            elif node.target is aten.reshape.default:
                node.target = aten.view.default  # ONNX has no strides
            elif node.target is aten.square.default:
                node.target, node.args = aten.pow.Tensor_Scalar, (*node.args, 2)
        yield all(_is_direct(node, own) for node in program.graph.nodes)
    finally:
        for node, target, args in before:
            node.target, node.args = target, args


def _may_overwrite(node: fx.Node) -> bool:
    """Returns whether nothing else reads what the node overwrites, and the result has its dtype in any case."""
    given: Any = node.args[0]
    fresh = isinstance(given, fx.Node) and (given.target in FRESH or given.target in IN_PLACE.values())
    dtypes = {_value(one).dtype for one in node.all_input_nodes if isinstance(_value(one), Tensor)}
    return fresh and list(given.users) == [node] and dtypes == {_value(node).dtype}


def _is_direct(node: fx.Node, own: set[Any]) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    target: Any = node.target
    if node.op != "call_function" or target in NUMBERS or target in own or target is CHECKED:
        return node.op == "call_function"
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if target in CONDITIONS:
        return bool(CONDITIONS[target](*node.args, **node.kwargs))
    aliases = any(one.alias_info is not None for one in (*target._schema.arguments, *target._schema.returns))
    return target in VIEWS or not aliases


def _value(node: Any) -> Any:
    return node.meta.get("val") if isinstance(node, fx.Node) else node


# --- operators without a translation in torch -------------------------------------------------------------------------


def _normalises(x, weight, bias, mean, var, training, *_):
    return not training and not any(one is None for one in (weight, bias, mean, var))


def _splits_evenly(x, chunks, dim=0):
    size = _value(x).shape[dim]
    return isinstance(size, int) and size >= chunks and size % chunks == 0


def _keeps_dtype(x, dtype, *_):
    return _value(x).dtype == dtype


def _is_population_variance(x, dim=None, *, correction=None, keepdim=False):
    return dim is not None and correction == 0


def _has_dimensions(x, *_):
    return _value(x).dim() > 0


def _always(*_, **__):
    return True


# when the translation below holds
CONDITIONS: dict[Any, Callable[..., bool]] = {
    aten.batch_norm.default: _normalises,
    aten.chunk.default: _splits_evenly,
    aten.contiguous.default: _always,
    aten.conv_transpose2d.input: _always,
    aten.flatten.using_ints: _has_dimensions,
    aten.to.dtype: _keeps_dtype,
    aten.unflatten.int: _always,
    aten.var_mean.correction: _is_population_variance,
}


@cache
def translations() -> dict[Any, Callable[..., Any]]:
    """Returns the translations of the operators of CONDITIONS."""
    from onnxscript import opset18

    op: Any = opset18  # onnxscript declares types only for eager calls

    def numbers(*values):
        return op.Constant(value_ints=list(values))

    def batch_norm(x, weight, bias, mean, var, training, momentum, eps, cudnn_enabled):
        return op.BatchNormalization(x, weight, bias, mean, var, epsilon=eps)

    def chunk(x, chunks, dim=0):
        return op.Split(x, axis=dim, num_outputs=chunks)

    def same(x, *_, **__):
        return op.Identity(x)

    def conv_transpose2d(x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
        stride, padding, extra, dilation = (_both(one) for one in (stride, padding, output_padding, dilation))
        sizes = {"strides": stride, "pads": padding * 2, "output_padding": extra, "dilations": dilation}
        return op.ConvTranspose(x, weight, bias, group=groups, **sizes)

    def flatten(x, start_dim=0, end_dim=-1):
        rank = len(x.shape)
        start, end = start_dim % rank, end_dim % rank + 1
        if start + 1 == end:
            return op.Identity(x)
        sizes = list(x.shape[start:end])
        fixed = all(isinstance(one, int) for one in sizes)
        size = math.prod(sizes) if fixed else op.ReduceProd(op.Shape(x, start=start, end=end), keepdims=True)
        return with_sizes(x, start, end, [size])

    def unflatten(x, dim, sizes):
        dim %= len(x.shape)
        sizes = [one if isinstance(one, int) else op.Reshape(one, numbers(1)) for one in sizes]
        return with_sizes(x, dim, dim + 1, sizes)

    def with_sizes(x, start, end, sizes):
        """Replaces the dimensions from start to end by others: integers, or values of one element."""
        rest = [*sizes, *x.shape[end:]]
        if all(isinstance(one, int) for one in rest):
            return op.Reshape(x, numbers(*[0] * start, *rest))  # 0 copies a size
        middle = [numbers(one) if isinstance(one, int) else one for one in sizes]
        head = [op.Shape(x, start=0, end=start)] if start else []
        tail = [op.Shape(x, start=end)] if end < len(x.shape) else []
        return op.Reshape(x, op.Concat(*head, *middle, *tail, axis=0), allowzero=True)

    def var_mean(x, dim, correction=None, keepdim=False):
        axes = numbers(*dim)
        mean = op.ReduceMean(x, axes, keepdims=True)
        away = op.Sub(x, mean)
        var = op.ReduceMean(op.Mul(away, away), axes, keepdims=keepdim)
        return var, mean if keepdim else op.ReduceMean(x, axes, keepdims=False)

    found = batch_norm, chunk, same, conv_transpose2d, flatten, same, unflatten, var_mean
    return dict(zip(CONDITIONS, found, strict=True))


def _both(value):
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values
