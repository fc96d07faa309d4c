"""How mtlkit's operators become nodes of the domain "mtlkit" (csrc/inference/operators.cpp says what each computes).

Images have their channels last in these nodes, so that a translation transposes in front and behind; _graph.py takes
away what meets its reverse.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from mtlkit.deploy import _modules  # declares operators that are translated here

DOMAIN, VERSION = "mtlkit", 1
CHANNELS_LAST, CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)

# node -> its inputs, the optional ones in brackets; how many outputs; attributes
SCAN = "u x_dbl dt_weight dt_bias A_logs Ds"
NODES: dict[str, tuple[str, int, dict[str, type]]] = {
    "SS2D": (f"{SCAN} [norm_weight] [norm_bias] [z]", 1, {"norm": int, "eps": float, "z_offset": int}),
    "SelectiveScan": ("u delta A B C [D] [z] [delta_bias]", 2, {"delta_softplus": int}),
    "DwconvSilu": ("x weight [bias]", 1, {"offset": int}),
    "NormGate": ("x [weight] [bias] [z]", 1, {"eps": float}),
    "InteractionReduce": ("x [weight] [bias] [attn]", 4, {}),
    "TaskInteraction": (
        " ".join([*_modules.REQUIRED, *(f"[{name}]" for name in _modules.OPTIONAL)]),
        6,
        {"tau": float, "eps": float},
    ),
}


@cache
def node(name: str) -> Any:
    """The node as translations call it: tensors by place, attributes by name."""
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
                    one.strip("[]"), "T", param_option=option.Optional if one.startswith("[") else option.Single
                )
                for one in inputs.split()
            ],
            outputs=[schema.FormalParameter(f"y{i}", "T") for i in range(outputs)],
            type_constraints=[("T", ["tensor(float)"], "")],
            attributes=[schema.Attribute(one, kinds[kind], required=False) for one, kind in attributes.items()],
        ),
    )


# --- translations -----------------------------------------------------------------------------------------------------


@cache
def translations() -> dict[Any, Callable[..., Any]]:
    """By operator of torch, as `custom_translation_table` of torch.onnx.export takes it."""
    from onnxscript import opset18 as op

    def last(x):
        return op.Transpose(x, perm=CHANNELS_LAST)

    def first(y):
        return op.Transpose(y, perm=CHANNELS_FIRST)

    def rows(x_dbl):  # (B, 4, M, H, W)
        return op.Transpose(x_dbl, perm=(0, 3, 4, 1, 2))

    def ss2d(_backend, u, x_dbl, dt_weight, dt_bias, A_logs, Ds, out_dtype, save):
        y = first(node("SS2D")(last(u), rows(x_dbl), dt_weight, dt_bias, A_logs, Ds))
        return y, op.Identity(y)  # nothing reads what is kept for gradients

    def ss2d_norm_gate(
        _backend, u, x_dbl, dt_weight, dt_bias, A_logs, Ds, weight, bias, z, eps, out_dtype=None, save=False
    ):
        scan = last(u), rows(x_dbl), dt_weight, dt_bias, A_logs, Ds
        y = node("SS2D")(*scan, weight, bias, z, norm=1, eps=eps)
        return y, op.Identity(y), op.Identity(y)

    def selective_scan(_backend, u, delta, A, B, C, D, z, delta_bias, delta_softplus=False, save=False):
        out, last_state = node("SelectiveScan")(u, delta, A, B, C, D, z, delta_bias, delta_softplus=int(delta_softplus))
        return out, last_state, op.Identity(out)

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

    def conv2d_same(x, weight, bias, stride, dilation, groups):
        options = {"strides": stride, "dilations": dilation, "group": groups}
        return op.Conv(x, weight, bias, auto_pad="SAME_UPPER", **options)

    found = (ss2d, ss2d_norm_gate, selective_scan, dwconv_silu, norm_gate, interaction_reduce)
    table: dict[Any, Callable[..., Any]] = {getattr(torch.ops.mtlkit, f.__name__).default: f for f in found}
    own = torch.ops.mtlkit_deploy
    return table | {own.task_interaction.default: task_interaction, own.conv2d_same.default: conv2d_same}
