"""SS2D layers of other codebases: how they are recognised, and their replacements.

A layer is recognised by its parameters and their shapes, not by its class or module. With C channels of the layer, D of
the scan, K = 4 directions, N states and rank R of the time step, MedMamba, VM-UNet and both versions of VMamba have

    x_proj_weight (4, R + 2 N, D)   dt_projs_weight (4, D, R)   dt_projs_bias (4, D)   A_logs (4 D, N)   Ds (4 D)
    in_proj C -> D or 2 D           conv2d depthwise            out_norm over D        out_proj D -> C
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtlkit._accelerate._scans import CROSS, named_scans, usual_scans
from mtlkit._accelerate._share import Plan, check_parameters, check_part, kind, require
from mtlkit._accelerate._ss2d_layer import Form, SharedSS2D
from mtlkit.operators.pixel_linear import PixelLinear

SCAN_PARAMETERS = ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds")
SIZE = (2, 6, 8)  # images, rows, columns of the comparison; even, for layers that halve their maps
SQUARE = (1, 8, 8)  # LocalMamba's directions by columns need a square map
PARTS = ("in_proj", "conv2d", "out_norm", "out_proj")
WHOLE = ("out_norm", "multi_scan")  # parts that are used unchanged
WITHOUT_PARAMETERS = ("act", "out_act", "dropout")


def resembles(module: nn.Module) -> bool:
    """Returns whether a layer has most parameters of an SS2D's scan, so that the report must mention it."""
    held = {**module._parameters, **dict.fromkeys(getattr(module, "parametrizations", ()), True)}
    return sum(name in held for name in SCAN_PARAMETERS) >= 3


def plan(module: Any) -> Plan:
    """Returns how the layer can be replaced.

    Raises:
        NotRecognised: it is not an SS2D, or cannot share its parameters.
    """
    forms = _recognise(module)
    size = SQUARE if forms[0].attended else SIZE
    attempts = [
        (
            (_random_image(forms[0].d_model, first, size),),
            [partial(SharedSS2D, module, form) for form in forms if form.channels_first == first],
        )
        for first in dict.fromkeys(form.channels_first for form in forms)
    ]
    return Plan(_random_parameters(module, forms[0]), attempts, published=forms[0].attended or forms[0].scans == CROSS)


def _recognise(module: Any) -> list[Form]:
    """Returns the forms that fit the parameters of a layer, most likely first.

    Raises:
        NotRecognised: it is not an SS2D, or cannot share its parameters.
    """
    require(not isinstance(module, torch.jit.ScriptModule), "it is TorchScript; accelerate the model before scripting")
    _check_parts(module)
    x_proj, dt, bias, A_logs, Ds = (module._parameters[name] for name in SCAN_PARAMETERS)
    require(x_proj.dim() == dt.dim() == 3, f"x_proj_weight and dt_projs_weight are {x_proj.dim()}- and {dt.dim()}-D")
    directions, inner, rank = dt.shape
    attended = _is_attended(getattr(module, "multi_scan", None), directions)
    scans = [named_scans(module.multi_scan.choices)] if attended else usual_scans(directions)
    require(bool(scans), f"it scans in {directions} directions, of which no published order is known")
    states = A_logs.shape[-1]
    for name, parameter, shape in (
        ("x_proj_weight", x_proj, (directions, rank + 2 * states, inner)),
        ("dt_projs_bias", bias, (directions, inner)),
        ("A_logs", A_logs, (directions * inner, states)),
        ("Ds", Ds, (directions * inner,)),
    ):
        require(parameter.shape == shape, f"{name} has shape {tuple(parameter.shape)}, and SS2D {shape}")

    wide, channels = _projection_sizes("in_proj", module.in_proj)
    require(wide in (inner, 2 * inner), f"in_proj gives {wide} channels, and SS2D {inner} or {2 * inner}")
    sizes = _projection_sizes("out_proj", module.out_proj)
    require(sizes == (channels, inner), f"out_proj maps {sizes[1]} to {sizes[0]} channels, not {inner} to {channels}")
    norms = _norms(module.out_norm, inner)

    form = Form(
        d_model=channels,
        d_inner=inner,
        d_state=states,
        dt_rank=rank,
        d_conv=_conv_size(getattr(module, "conv2d", None), inner),
        gate=None,
        norm=None,
        out_act=_is_gelu(getattr(module, "out_act", None)),
        dropout=_dropout(getattr(module, "dropout", None)),
        channels_first=False,
    )
    gates = (None,)
    if wide == 2 * inner:
        acts = ("silu",) if isinstance(getattr(module, "act", None), nn.SiLU | None) else ("act", "silu")
        gates = ("linear", *acts) if getattr(module, "disable_z_act", False) is True else (*acts, "linear")
    return [
        replace(form, gate=gate, norm=norm, channels_first=first, scans=order, attended=attended)
        for order in scans
        for first in _layouts(module)
        for norm in norms
        for gate in gates
    ]


def _check_parts(module: Any) -> None:
    """Raises unless the layer consists of the parts of an SS2D, all of which can be shared."""
    for name in ("in_proj", "out_proj", "out_norm"):
        require(isinstance(getattr(module, name, None), nn.Module), f"it has no {name}")
    for name, child in module.named_children():
        idle = name in WITHOUT_PARAMETERS or isinstance(child, nn.Identity)
        known = name in PARTS or name == "multi_scan"
        require(known or idle, f"it has a part that SS2D has not: {name} ({kind(child)})")
        if name in WHOLE:
            continue
        check_part(name, child)
    require(next(module.buffers(), None) is None, "it has buffers, and SS2D has none")
    parts = {f"{name}.{tensor}" for name in PARTS for tensor in ("weight", "bias")}
    whole = [(name, getattr(module, name)) for name in WHOLE if hasattr(module, name)]
    parts |= {f"{name}.{tensor}" for name, part in whole for tensor, _ in part.named_parameters()}
    needed = {*SCAN_PARAMETERS, "in_proj.weight", "out_proj.weight"}
    check_parameters(module, needed | parts, needed, "SS2D")


def _is_attended(scan: Any, directions: int) -> bool:
    """Returns whether the directions are named and added up as in LocalMamba."""
    if scan is None:
        return False
    choices: Any = getattr(scan, "choices", None)
    require(isinstance(choices, list | tuple), "its multi_scan does not name its directions")
    require(isinstance(getattr(scan, "attn", None), nn.Module), "its multi_scan has no attn")
    require(not getattr(scan, "search", False), "it is still searching for its directions")
    require(len(choices) == directions, f"its multi_scan names {len(choices)} directions, and it has {directions}")
    return True


def _projection_sizes(name: str, layer: Any) -> tuple[int, int]:
    """Checks a projection and returns its output and input channels."""
    if isinstance(layer, nn.Conv2d):
        require(
            layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1 and layer.padding == (0, 0),
            f"{name} is a convolution that is not 1 x 1 with stride 1",
        )
    else:
        require(isinstance(layer, nn.Linear), f"{name} is no linear layer ({kind(layer)})")
    out, into = layer.weight.shape[:2]
    return out, into


def _conv_size(layer: Any, inner: int) -> int:
    """Returns the kernel size of the depthwise convolution; 1 if there is none."""
    if layer is None or isinstance(layer, nn.Identity):
        return 1
    require(isinstance(layer, nn.Conv2d), f"conv2d is not an nn.Conv2d ({kind(layer)})")
    size = layer.kernel_size[0]
    require(
        layer.in_channels == layer.out_channels == layer.groups == inner
        and layer.kernel_size == (size, size)
        and size % 2 == 1
        and layer.stride == layer.dilation == (1, 1)
        and layer.padding in ((size // 2, size // 2), "same")
        and layer.padding_mode == "zeros",
        f"conv2d is not depthwise over {inner} channels, odd, with stride 1 and zero padding that keeps the size",
    )
    return size


def _norms(layer: Any, inner: int) -> tuple[Any, ...]:
    """Returns the forms that the norm may have: LayerNorm over the channels, none, or the layer's own module."""
    if isinstance(layer, nn.Identity):
        return (None,)
    if not isinstance(layer, nn.LayerNorm):  # softmax, sigmoid, convolution: over images or over tokens
        return ("image", "tokens")
    check_part("out_norm", layer)
    shape = tuple(layer.normalized_shape)
    require(shape == (inner,), f"out_norm normalises {shape}, and SS2D {(inner,)}")
    return ("layer",)


def _is_gelu(layer: object) -> bool:
    if layer is None or isinstance(layer, nn.Identity):
        return False
    require(isinstance(layer, nn.GELU) and layer.approximate == "none", f"out_act is no plain GELU ({kind(layer)})")
    return True


def _dropout(layer: Any) -> float:
    if layer is None or isinstance(layer, nn.Identity):
        return 0.0
    require(isinstance(layer, nn.Dropout), f"dropout is no Dropout ({kind(layer)})")
    require(layer.p < 1, "dropout drops everything")
    return float(layer.p)


def _layouts(module: Any) -> tuple[bool, ...]:
    """Returns the possible values of channels-first: from the layer's attribute, else from its input projection."""
    said = getattr(module, "channel_first", None)
    if isinstance(said, bool):
        return (said,)
    if isinstance(module.in_proj, nn.Conv2d):
        return (True,)
    overridden = type(module.in_proj).forward not in (nn.Linear.forward, PixelLinear.forward)
    return (True, False) if overridden else (False,)


# --- comparison ------------------------------------------------------------------------------------------------------


def _random_image(channels: int, channels_first: bool, size: tuple[int, int, int]) -> Tensor:
    batch, height, width = size
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, height, width, channels, generator=generator, dtype=torch.float32)
    return x.permute(0, 3, 1, 2).contiguous() if channels_first else x


def _random_parameters(original: nn.Module, form: Form) -> dict[str, Tensor]:
    """Returns random values by name, such that every parameter affects the output."""
    generator = torch.Generator().manual_seed(1)
    states = torch.arange(1, form.d_state + 1, dtype=torch.float32).log()
    centres: dict[str, Callable[[Tensor], Tensor]] = {
        "A_logs": lambda noise: states + 0.1 * noise,
        "dt_projs_bias": lambda noise: 0.5 * noise - 1,
        "Ds": lambda noise: 0.5 * noise,
        "out_norm.weight": lambda noise: 1 + 0.1 * noise,
        "conv2d.weight": lambda noise: noise / form.d_conv,
        "x_proj_weight": lambda noise: noise * form.d_inner**-0.5,
        "dt_projs_weight": lambda noise: noise * form.dt_rank**-0.5,
        "in_proj.weight": lambda noise: noise * form.d_model**-0.5,
        "out_proj.weight": lambda noise: noise * form.d_inner**-0.5,
    }
    values: dict[str, Tensor] = {}
    for name, parameter in original.named_parameters(remove_duplicate=False):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        values[name] = centres[name](noise) if name in centres else 0.1 * noise
    return values
