"""Mamba blocks over tokens in other codebases, recognised by their parameters; letters as in mtlkit.nn.mamba.

    Mamba           in_proj C -> 2 D, conv1d, x_proj, dt_proj, A_log, D, out_proj; with two directions also A_b_log, and
                    conv1d_b, x_proj_b, dt_proj_b, D_b if they do not share weights; with three also the same with _s
    MambaVision     in_proj C -> D, conv1d_x and conv1d_z of D / 2, the rest as in Mamba with D / 2
    LocalVim        conv1d_k, x_proj_k, dt_proj_k, A_log_k, D_k for direction k, multi_scan with their names, attn
    PlainMamba      conv2d instead of conv1d, and direction_Bs (5, N)

Source: Gu and Dao, "Mamba" (2023); Zhu et al., "Vision Mamba" (2024); Xing et al., "SegMamba" (2024); Hatamizadeh and
Kautz, "MambaVision" (2024); Huang et al., "LocalMamba" (2024); Yang et al., "PlainMamba" (2024).
"""

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtlkit._accelerate._mamba_layers import (
    Form,
    SharedMamba,
    SharedMultiMamba,
    SharedPlainMamba2D,
    SharedVisionMixer,
)
from mtlkit._accelerate._share import Plan, check_parameters, check_part, kind, require
from mtlkit.ops import orders

A_LOG = re.compile(r"A(_[bs])?_log(_\d+)?")
DIRECTION = ("conv1d", "x_proj", "dt_proj")
SHAPES = {"h": orders.rows, "v": orders.columns}  # LocalVim's names; "w7" has windows of 7
IDLE = (nn.SiLU, nn.Identity)
SIZE = (2, 12)  # sequences and tokens of the comparison
HW = (5, 4)  # rows and columns


def resembles(module: nn.Module) -> bool:
    """Returns whether a layer has the state matrix of a one-dimensional scan, so that the report must mention it."""
    held = {**module._parameters, **dict.fromkeys(getattr(module, "parametrizations", ()), True)}
    return any(A_LOG.fullmatch(name) for name in held)


def plan(module: Any) -> Plan:
    """Returns how the layer can be replaced.

    Raises:
        NotRecognised: it is none of these blocks, or cannot share its parameters.
    """
    require(not isinstance(module, torch.jit.ScriptModule), "it is TorchScript; accelerate the model before scripting")
    parts = module._modules
    if "multi_scan" in parts:
        return _plan_of_multi_mamba(module)
    if "conv1d_x" in parts:
        return _plan_of_vision_mixer(module)
    if "direction_Bs" in module._parameters:
        return _plan_of_plain_mamba(module)
    require(
        "x_proj" in parts or "dt_bias" not in module._parameters,
        "a block of Mamba-2, whose scan mtlkit does not have: it has one decay for a head of channels",
    )
    return _plan_of_mamba(module)


# --- Mamba's block ----------------------------------------------------------------------------------------------------


def _plan_of_mamba(module: Any) -> Plan:
    names = {*module._parameters, *module._modules}
    kinds = {"v3": {"A_s_log", "conv1d_s"}, "v2": {"conv1d_b"}, "v1": {"A_b_log"}}
    type_ = next((t for t, having in kinds.items() if having <= names), None)
    suffixes = {"v3": ("", "_b", "_s"), "v2": ("", "_b")}.get(type_ or "", ("",))
    logs = [f"A{suffix}_log" for suffix in suffixes] + ["A_b_log"] * (type_ == "v1")
    linear = [f"{name}{suffix}" for suffix in suffixes for name in ("x_proj", "dt_proj")]
    convs = [f"conv1d{suffix}" for suffix in suffixes]
    _check_parts(
        module, "Mamba", ["in_proj", "out_proj", *linear], convs, [*logs, *(f"D{s}" for s in suffixes)], {"gamma"}
    )
    inner, states = module.A_log.shape
    rank = module.dt_proj.weight.shape[1]
    channels, taps = module.in_proj.weight.shape[1], module.conv1d.kernel_size[0]
    _check_shapes(
        module,
        {"in_proj": (2 * inner, channels), "out_proj": (channels, inner)}
        | {f"x_proj{s}": (rank + 2 * states, inner) for s in suffixes}
        | {f"dt_proj{s}": (inner, rank) for s in suffixes},
        dict.fromkeys(logs, (inner, states)) | {f"D{s}": (inner,) for s in suffixes} | {"gamma": (channels,)},
    )
    biases = {getattr(module, name).bias is None for name in convs}
    require(len(biases) == 1, "some of its convolutions have a bias, and some none")
    for name in convs:
        _check_conv(name, getattr(module, name), inner, taps)
    require(all(getattr(module, name).bias is not None for name in linear if "dt" in name), "dt_proj has no bias")
    require((module.in_proj.bias is None) == (module.out_proj.bias is None), "one of its projections has a bias alone")
    _check_call(module, {"inference_params", "T"})
    slices: Any = getattr(module, "nslices", None)
    require(type_ != "v3" or (isinstance(slices, int) and slices > 0), "it does not say how many slices it has")
    slices = slices if type_ == "v3" else 1
    mean = any(getattr(module, name, False) for name in ("if_divide_out", "if_devide_out"))
    forms = [
        Form(channels, inner, states, rank, taps, type_, slices, divided)  # pyright: ignore[reportArgumentType] - "v1" …
        for divided in ((mean, not mean) if type_ in ("v2", "v3") else (False,))
    ]
    tokens = _noise(0, SIZE[0], 3 * slices if type_ == "v3" else SIZE[1], channels)
    makers = [partial(SharedMamba, module, form) for form in forms]
    return Plan(_random_parameters(module), [((tokens,), makers)], published=True)


# --- MambaVision's mixer ----------------------------------------------------------------------------------------------


def _plan_of_vision_mixer(module: Any) -> Plan:
    linear = ["in_proj", "out_proj", "x_proj", "dt_proj"]
    _check_parts(module, "MambaVisionMixer", linear, ["conv1d_x", "conv1d_z"], ["A_log", "D"])
    half, states = module.A_log.shape
    rank, channels = module.dt_proj.weight.shape[1], module.in_proj.weight.shape[1]
    _check_shapes(
        module,
        {
            "in_proj": (2 * half, channels),
            "out_proj": (channels, 2 * half),
            "x_proj": (rank + 2 * states, half),
            "dt_proj": (half, rank),
        },
        {"A_log": (half, states), "D": (half,)},
    )
    for name in ("conv1d_x", "conv1d_z"):
        _check_conv(name, getattr(module, name), half, module.conv1d_x.kernel_size[0])
    biases = [module.conv1d_x.bias is None, module.conv1d_z.bias is None]
    require(biases[0] == biases[1], "one of its convolutions has a bias alone")
    require(module.dt_proj.bias is not None, "dt_proj has no bias")
    _check_call(module, set())
    form = f"MambaVisionMixer, C={channels}, D={half}, N={states}, R={rank}"
    make = partial(SharedVisionMixer, module, form)
    return Plan(_random_parameters(module), [((_noise(0, *SIZE, channels),), [make])], published=True)


# --- LocalVim's block -------------------------------------------------------------------------------------------------


def _plan_of_multi_mamba(module: Any) -> Plan:
    choices: Any = getattr(module.multi_scan, "choices", None)
    require(isinstance(choices, list | tuple) and len(choices) > 0, "its multi_scan does not name its directions")
    require(not getattr(module.multi_scan, "search", False), "it still searches for its directions")
    count = range(len(choices))
    linear = [f"{name}_{k}" for k in count for name in ("x_proj", "dt_proj")]
    convs, states = [f"conv1d_{k}" for k in count], [f"{name}_{k}" for k in count for name in ("A_log", "D")]
    _check_parts(module, "MultiMamba", ["in_proj", "out_proj", *linear], convs, states, composed={"attn", "multi_scan"})
    inner, N = module.A_log_0.shape
    rank, channels = module.dt_proj_0.weight.shape[1], module.in_proj.weight.shape[1]
    _check_shapes(
        module,
        {"in_proj": (2 * inner, channels), "out_proj": (channels, inner)}
        | {f"x_proj_{k}": (rank + 2 * N, inner) for k in count}
        | {f"dt_proj_{k}": (inner, rank) for k in count},
        {f"A_log_{k}": (inner, N) for k in count} | {f"D_{k}": (inner,) for k in count},
    )
    for name in convs:
        _check_conv(name, getattr(module, name), inner, module.conv1d_0.kernel_size[0])
    require(all(getattr(module, name).bias is not None for name in linear if "dt" in name), "dt_proj has no bias")
    attention = {name: kind(part) for name, part in module._modules["attn"].named_children()}
    needed = {"norm", "global_reduce", "act_fn", "channel_select", "gate_fn"}
    require(attention.keys() == needed, f"its attn has other parts than BiAttn: {', '.join(attention)}")
    _check_call(module, {"inference_params"})
    order = _table(module, choices)
    names = ", ".join(map(str, choices))
    form = f"MultiMamba, C={channels}, D={inner}, N={N}, R={rank}, {names}"
    make = partial(SharedMultiMamba, module, form, order.to(module.A_log_0.device))
    return Plan(_random_parameters(module), [((_noise(0, 2, order.shape[1], channels),), [make])], published=True)


def _table(module: Any, choices: Any) -> Tensor:
    """Returns the tokens in the order of each direction, (K, L); a class token is the middle one in every direction."""
    size: Any = getattr(module, "token_size", None)
    require(isinstance(size, list | tuple) and len(size) == 2, "it does not say how many tokens it has")
    height, width = size
    found: list[Tensor] = []
    for choice in choices:
        shape, _, flip = str(choice).partition("_")
        window = int(shape[1:]) if re.fullmatch(r"w\d+", shape) else 0
        require(shape in SHAPES or window > 0, f"it has a direction that LocalVim has not: {choice}")
        require(flip in ("", "flip"), f"it has a direction that LocalVim has not: {choice}")
        require(
            not window or height % window == width % window == 0,
            f"windows of {window} do not divide its {height} x {width} tokens, which are padded with zeros there",
        )
        order = orders.windows(height, width, window) if window else SHAPES[shape](height, width)
        tokens = order.table()[0].long()
        found.append(tokens.flip(0) if flip else tokens)
    table = torch.stack(found)
    if not getattr(module, "use_middle_cls_token", False):
        return table
    middle = height * width // 2
    table = table + (table >= middle)
    return torch.cat((table[:, :middle], torch.full((len(table), 1), middle), table[:, middle:]), 1)


# --- PlainMamba's layer -----------------------------------------------------------------------------------------------


def _plan_of_plain_mamba(module: Any) -> Plan:
    linear = ["in_proj", "out_proj", "x_proj", "dt_proj"]
    _check_parts(module, "PlainMamba2D", linear, ["conv2d"], ["A_log", "D", "direction_Bs"], {"gamma"})
    inner, states = module.A_log.shape
    rank, channels = module.dt_proj.weight.shape[1], module.in_proj.weight.shape[1]
    _check_shapes(
        module,
        {
            "in_proj": (2 * inner, channels),
            "out_proj": (channels, inner),
            "x_proj": (rank + 2 * states, inner),
            "dt_proj": (inner, rank),
        },
        {"A_log": (inner, states), "D": (inner,), "direction_Bs": (5, states), "gamma": (channels,)},
    )
    require(isinstance(module.conv2d, nn.Conv2d), f"conv2d is not an nn.Conv2d ({kind(module.conv2d)})")
    require(module.dt_proj.bias is not None, "dt_proj has no bias")
    form = f"PlainMamba2D, C={channels}, D={inner}, N={states}, R={rank}"
    inputs = (_noise(0, 2, HW[0] * HW[1], channels), HW)
    make = partial(SharedPlainMamba2D, module, form)
    return Plan(_random_parameters(module), [(inputs, [make])], published=True)


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_parts(
    module: Any,
    what: str,
    linear: list[str],
    convs: list[str],
    states: list[str],
    optional: set[str] = frozenset(),  # pyright: ignore[reportArgumentType] - read only
    composed: set[str] = frozenset(),  # pyright: ignore[reportArgumentType] - read only
) -> None:
    """Raises unless the layer consists of these parts and parameters, all of which can be shared."""
    missing = [name for name in (*linear, *convs, *composed) if not isinstance(getattr(module, name, None), nn.Module)]
    require(not missing, f"it has no {', '.join(missing)}, which {what} has")
    for name, part in module.named_children():
        if name in composed:
            for inner, child in part.named_children():
                check_part(f"{name}.{inner}", child)
            continue
        known = name in linear or name in convs
        require(known or isinstance(part, IDLE), f"it has a part that {what} has not: {name} ({kind(part)})")
        check_part(name, part)
        require(name not in linear or isinstance(part, nn.Linear), f"{name} is no linear layer ({kind(part)})")
    require(next(module.buffers(), None) is None, f"it has buffers, and {what} has none")
    expected = {f"{part}.{tensor}" for part in (*linear, *convs) for tensor in ("weight", "bias")}
    expected |= {name for name, _ in module.named_parameters() if name.partition(".")[0] in composed}
    needed = {*states, *(f"{part}.weight" for part in (*linear, *convs))}
    check_parameters(module, expected | needed | optional, needed, what)


def _check_shapes(module: Any, weights: dict[str, tuple[int, ...]], states: dict[str, tuple[int, ...]]) -> None:
    found = {f"{name}.weight": (getattr(module, name).weight, shape) for name, shape in weights.items()}
    found |= {name: (module._parameters.get(name), shape) for name, shape in states.items()}
    for name, (parameter, shape) in found.items():
        if parameter is not None:
            require(parameter.shape == shape, f"{name} has shape {tuple(parameter.shape)}, not {shape}")


def _check_conv(name: str, layer: Any, inner: int, taps: int) -> None:
    require(isinstance(layer, nn.Conv1d), f"{name} is not an nn.Conv1d ({kind(layer)})")
    require(
        layer.in_channels == layer.out_channels == layer.groups == inner
        and layer.kernel_size == (taps,)
        and layer.stride == layer.dilation == (1,)
        and layer.padding_mode == "zeros",
        f"{name} is not depthwise over {inner} channels with {taps} taps, stride 1 and zero padding",
    )


def _check_call(module: nn.Module, known: set[str]) -> None:
    """Raises unless forward takes tokens, and only further arguments that the replacement takes too."""
    further = [name for name in list(inspect.signature(module.forward).parameters)[1:] if name not in known]
    require(not further, f"its forward takes arguments that mtlkit's does not: {', '.join(further)}")


# --- comparison -------------------------------------------------------------------------------------------------------


def _noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def _random_parameters(original: nn.Module) -> dict[str, Tensor]:
    """Returns random values by name, such that every parameter affects the output."""
    generator = torch.Generator().manual_seed(1)
    centres: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
        (r"A\w*", lambda noise: torch.arange(1, noise.shape[1] + 1).log() + 0.1 * noise),
        (r"dt_proj\w*\.bias", lambda noise: 0.5 * noise - 1),
        (r"D\w*|direction_Bs", lambda noise: 0.5 * noise),
        (r"gamma|.*norm\.weight", lambda noise: 1 + 0.1 * noise),
        (r".*\.weight", lambda noise: noise * noise[0].numel() ** -0.5),
    )
    values: dict[str, Tensor] = {}
    for name, parameter in original.named_parameters(remove_duplicate=False):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        centre = next((change for pattern, change in centres if re.fullmatch(pattern, name)), lambda noise: 0.1 * noise)
        values[name] = centre(noise)
    return values
