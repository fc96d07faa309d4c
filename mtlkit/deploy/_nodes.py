"""Translates mtlkit's operators to nodes of the domain "mtlkit" (csrc/inference/operators.cpp defines each node).

These nodes take and return channels-last images, so each translation adds a transposition before and after; _graph.py
removes pairs that cancel.
"""

# pyright: basic
# torch.onnx would read type annotations of the translations as schemas, so they have none

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from mtlkit.deploy import _modules  # declares operators that are translated here

DOMAIN, VERSION = "mtlkit", 1
CHANNELS_LAST, CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)

# node: its inputs (optional ones in brackets), number of outputs, attributes
SCAN = "u x_dbl dt_weight dt_bias A_logs Ds"
INTEGERS = {"order", "seq_idx"}  # inputs that are int32
NODES: dict[str, tuple[str, int, dict[str, type]]] = {
    "SS2D": (f"{SCAN} [norm_weight] [norm_bias] [z]", 1, {"norm": int, "eps": float, "z_offset": int}),
    "DirectionalScan": (f"{SCAN} order [seq_idx] [initial_state]", 2, {}),
    "DirectionalScans": (f"{SCAN} order [seq_idx] [initial_state]", 2, {}),
    "CausalConv1d": ("x weight [bias] [seq_idx] [initial_states]", 2, {"silu": int, "offset": int}),
    "SelectiveScan": ("u delta A B C [D] [z] [delta_bias]", 2, {"delta_softplus": int}),
    "DwconvSilu": ("x weight [bias]", 1, {"offset": int}),
    "NormGate": ("x [weight] [bias] [z]", 1, {"eps": float}),
    "GatedResidual": (" ".join([*_modules.MIXED, *(f"[{name}]" for name in _modules.GATES)]), 1, {}),
    "Interleave": ("phase_00 phase_01 phase_10 phase_11", 1, {"crop_rows": int, "crop_columns": int}),
    "Shuffle": ("left right", 1, {}),
    "InteractionReduce": ("x [weight] [bias] [attn]", 4, {}),
    "TaskInteraction": (
        " ".join([*_modules.REQUIRED, *(f"[{name}]" for name in _modules.OPTIONAL)]),
        6,
        {"tau": float, "eps": float},
    ),
}


@cache
def node(name: str) -> Any:
    """Returns a node that translations call with inputs by position and attributes by name."""
    import onnx
    from onnxscript import values

    inputs, outputs, attributes = NODES[name]
    schema = onnx.defs.OpSchema
    kinds = {int: schema.AttrType.INT, float: schema.AttrType.FLOAT}
    option = schema.FormalParameterOption
    return values.Op(
        values.Opset(DOMAIN, VERSION),
        name,
        schema(
            name,
            DOMAIN,
            VERSION,
            inputs=[
                schema.FormalParameter(
                    one.strip("[]"),
                    "I" if one.strip("[]") in INTEGERS else "T",
                    param_option=option.Optional if one.startswith("[") else option.Single,
                )
                for one in inputs.split()
            ],
            outputs=[schema.FormalParameter(f"y{i}", "T") for i in range(outputs)],
            type_constraints=[("T", ["tensor(float)"], ""), ("I", ["tensor(int32)"], "")],
            attributes=[schema.Attribute(one, kinds[kind], required=False) for one, kind in attributes.items()],
        ),
    )


# --- translations -----------------------------------------------------------------------------------------------------


@cache
def translations() -> dict[Any, Callable[..., Any]]:
    """Returns the translations by operator of torch, for `custom_translation_table` of torch.onnx.export."""
    from onnxscript import opset18

    op: Any = opset18  # onnxscript declares types only for eager calls

    def last(x):
        return op.Transpose(x, perm=CHANNELS_LAST)

    def first(y):
        return op.Transpose(y, perm=CHANNELS_FIRST)

    def rows(x_dbl):  # (B, 4, M, H, W)
        return op.Transpose(x_dbl, perm=(0, 3, 4, 1, 2))

    def ss2d(_backend, u, x_dbl, dt_weight, dt_bias, A_logs, Ds, out_dtype, save):
        y = first(node("SS2D")(last(u), rows(x_dbl), dt_weight, dt_bias, A_logs, Ds))
        return y, op.Identity(y)  # a placeholder for what the backward would need

    def ss2d_norm_gate(
        _backend, u, x_dbl, dt_weight, dt_bias, A_logs, Ds, weight, bias, z, eps, out_dtype=None, save=False
    ):
        scan = last(u), rows(x_dbl), dt_weight, dt_bias, A_logs, Ds
        y = node("SS2D")(*scan, weight, bias, z, norm=1, eps=eps)
        return y, op.Identity(y), op.Identity(y)

    def selective_scan(_backend, u, delta, A, B, C, D, z, delta_bias, delta_softplus=False, save=False):
        out, last_state = node("SelectiveScan")(u, delta, A, B, C, D, z, delta_bias, delta_softplus=int(delta_softplus))
        return out, last_state, op.Identity(out)

    def order_of(walks, steps):
        """Returns the table (K, T) of an order that is given by start, run, inner and outer step of each direction."""
        step = op.Range(0, steps, 1)
        rows = []
        for i in range(0, len(walks), 4):
            start, run, inner, outer = walks[i : i + 4]
            row = op.Add(op.Add(start, op.Mul(op.Div(step, run), outer)), op.Mul(op.Mod(step, run), inner))
            rows.append(op.Unsqueeze(row, [0]))
        return op.Cast(op.Concat(*rows, axis=0), to=6)  # int32

    def tokens(x):
        """Moves the channels last: (B, C, L) or (B, K, C, L) to (B, L, C) or (B, K, L, C)."""
        return op.Transpose(x, perm=(0, 2, 1) if len(x.shape) == 3 else (0, 1, 3, 2))

    def directional_scan(
        _backend, u, x_dbl, dt_weight, dt_bias, A_logs, Ds, table, seq_idx, initial_state, merge, out_dtype, steps,
        walks, save=False,
    ):  # fmt: skip
        order = order_of(walks, steps) if table is None else table
        rows = op.Transpose(x_dbl, perm=(0, 3, 1, 2))  # (B, L, K, M)
        given = tokens(u), rows, dt_weight, dt_bias, A_logs, Ds, order, seq_idx, initial_state
        y, last_state = node("DirectionalScan" if merge else "DirectionalScans")(*given)
        y = op.Transpose(y, perm=(0, 2, 1) if merge else (0, 1, 3, 2))
        return y, last_state, op.Identity(last_state)

    def causal_conv1d(_backend, x, weight, bias, seq_idx, initial_states, silu, final_states):
        y, last = node("CausalConv1d")(tokens(x), weight, bias, seq_idx, initial_states, silu=int(silu))
        return op.Transpose(y, perm=(0, 2, 1)), last

    def dwconv_silu(_backend, x, weight, bias=None):
        return first(node("DwconvSilu")(last(x), weight, bias))

    def norm_gate(_backend, x, weight, bias, z, eps):
        return node("NormGate")(x, weight, bias, z, eps=eps)

    def interaction_reduce(_backend, x, weight, bias, attn, energy, dtype, save):
        found = node("InteractionReduce")(x, weight, bias, attn)
        return *found, op.Identity(found[0]), op.Identity(found[0])

    def task_interaction(x, f, *others):
        *tensors, tau, eps = others
        return node("TaskInteraction")(x, f, *tensors, tau=tau, eps=eps)

    def remainder(x, other):  # torch's own translation fails for dynamic sizes
        divisor = op.CastLike(other, x)
        if x.dtype.is_integer():
            return op.Mod(x, divisor)
        return op.Sub(x, op.Mul(op.Floor(op.Div(x, divisor)), divisor))

    def gated_residual(*tensors):
        return node("GatedResidual")(*tensors)

    def conv2d_same(x, weight, bias, stride, dilation, groups):
        options = {"strides": stride, "dilations": dilation, "group": groups}
        return op.Conv(x, weight, bias, auto_pad="SAME_UPPER", **options)

    found = (
        ss2d,
        ss2d_norm_gate,
        directional_scan,
        causal_conv1d,
        selective_scan,
        dwconv_silu,
        norm_gate,
        interaction_reduce,
    )
    table: dict[Any, Callable[..., Any]] = {getattr(torch.ops.mtlkit, f.__name__).default: f for f in found}
    table[torch.ops.aten.remainder.Scalar] = remainder
    own = torch.ops.mtlkit_deploy
    for f in (task_interaction, gated_residual, conv2d_same):
        table[getattr(own, f.__name__).default] = f
    return table
