"""SS2D layers of other codebases: how they are recognised, and the layer that stands in for one.

A layer is recognised by its parameters and their shapes, not by where it was imported from: C channels of the layer,
D of the scan, K = 4 directions, N states, R rank of the time step,

    x_proj_weight (4, R + 2 N, D)   dt_projs_weight (4, D, R)   dt_projs_bias (4, D)   A_logs (4 D, N)   Ds (4 D)
    in_proj C -> D or 2 D           conv2d depthwise            out_norm over D        out_proj D -> C

as MedMamba, VM-UNet and both versions of VMamba have them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtlkit._accelerate._share import Plan, Shared, check_parameters, check_part, kind, require
from mtlkit._check import check_tensor
from mtlkit._pixel_linear import PixelLinear, pixel_linear
from mtlkit.nn.ss2d import DIRECTIONS, SS2D

SCAN_PARAMETERS = ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds")
SIZE = (2, 6, 8)  # images, rows, columns of the comparison; even, for layers that halve their maps
PARTS = ("in_proj", "conv2d", "out_norm", "out_proj")
WITHOUT_PARAMETERS = {"act": nn.SiLU, "out_act": nn.Module, "dropout": nn.Module}

# --- the layer that stands in -----------------------------------------------------------------------------------------


class _Projection(PixelLinear):
    """A linear layer over channels-last pixels; its weight may be that of a 1 x 1 convolution, (out, in, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return pixel_linear(x, self.weight.flatten(1), self.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if isinstance(weight, Tensor) and weight.shape[2:] in ((), (1, 1)):  # published checkpoints have either
            state_dict[f"{prefix}weight"] = weight.reshape(weight.shape[:2] + self.weight.shape[2:])
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class SharedSS2D(Shared, SS2D):
    """mtlkit's SS2D in the place of another one, whose Parameters it holds; `accelerate` makes it.

    Args:
        original: the layer that it stands in for, which `restore` puts back.
        form: what was recognised of it.

    Shape:
        As the original: (B, H, W, C) in and out, or (B, C, H, W) where that one is channels-first.

    Raises:
        TypeError: the input is no floating-point tensor.
        ValueError: the input has another shape.
    """

    marked = False

    def __init__(self, original: Any, form: "Form") -> None:
        super().__init__(
            form.d_model,
            form.d_state,
            (form.d_inner + 0.5) / form.d_model,  # rounded down, as SS2D does it, this gives d_inner
            form.dt_rank,
            form.d_conv,
            gate=form.gate,
            norm="layer" if isinstance(original.out_norm, nn.LayerNorm) else None,
            out_act=form.out_act,
            dropout=form.dropout,
            device="meta",
        )
        self.channels_first = form.channels_first
        self.form = str(form)
        self.in_proj = _Projection(1, 1, device="meta")
        self.out_proj = _Projection(1, 1, device="meta")
        for projection, sizes in ((self.in_proj, original.in_proj), (self.out_proj, original.out_proj)):
            projection.out_features, projection.in_features = sizes.weight.shape[:2]
        if isinstance(self.out_norm, nn.LayerNorm):
            self.out_norm.eps = original.out_norm.eps
            self.out_norm.elementwise_affine = original.out_norm.elementwise_affine
        self.marked = getattr(original.A_logs, "_no_weight_decay", False)
        self._stand_in_for(original)

    def forward(self, x: Tensor) -> Tensor:
        """Scans the image in four directions, in the layout of the original."""
        if not self.channels_first:
            return super().forward(x).contiguous()
        check_tensor("x", x, 4)
        if x.shape[1] != self.d_model:
            raise ValueError(f"x: expected shape (B, {self.d_model}, H, W), got {tuple(x.shape)}; channels come first")
        y = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, C, H, W), channels-last in memory
        # as the original: its norm permutes, so that channels come last in memory, however they came
        normed = isinstance(self.out_norm, nn.LayerNorm)
        return y if normed or x.is_contiguous(memory_format=torch.channels_last) else y.contiguous()

    def _mark(self) -> None:
        if self.marked:
            super()._mark()

    def extra_repr(self) -> str:
        """The options, for repr."""
        return f"{super().extra_repr()}, channels_first={self.channels_first}, for={type(self.original).__name__}"


# --- recognition ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """What a layer is, as far as its parameters and parts tell; letters as above."""

    d_model: int
    d_inner: int
    d_state: int
    dt_rank: int
    d_conv: int
    gate: Literal["silu", "linear"] | None
    out_act: bool
    dropout: float
    channels_first: bool

    def __str__(self) -> str:
        gate = "no gate" if self.gate is None else f"{self.gate} gate"
        layout = "channels-first" if self.channels_first else "channels-last"
        return f"C={self.d_model}, D={self.d_inner}, N={self.d_state}, R={self.dt_rank}, {gate}, {layout}"


def resembles(module: nn.Module) -> bool:
    """Whether a layer has most of what the scan of an SS2D needs, so that it deserves a line in the report."""
    held = {**module._parameters, **dict.fromkeys(getattr(module, "parametrizations", ()), True)}
    return sum(name in held for name in SCAN_PARAMETERS) >= 3


def plan(module: Any) -> Plan:
    """How the layer can be replaced.

    Raises:
        NotRecognised: it is no SS2D, or one that cannot share its parameters.
    """
    forms = _recognise(module)
    attempts = [
        (
            (_random_image(forms[0].d_model, first),),
            [partial(SharedSS2D, module, form) for form in forms if form.channels_first == first],
        )
        for first in dict.fromkeys(form.channels_first for form in forms)
    ]
    return Plan(_random_parameters(module, forms[0]), attempts)


def _recognise(module: Any) -> list[Form]:
    """The forms that a layer may have by its parameters, likeliest first.

    Raises:
        NotRecognised: it is no SS2D, or one that cannot share its parameters.
    """
    require(not isinstance(module, torch.jit.ScriptModule), "it is TorchScript; accelerate the model before scripting")
    _check_parts(module)
    x_proj, dt, bias, A_logs, Ds = (module._parameters[name] for name in SCAN_PARAMETERS)
    require(x_proj.dim() == dt.dim() == 3, f"x_proj_weight and dt_projs_weight are {x_proj.dim()}- and {dt.dim()}-D")
    directions, inner, rank = dt.shape
    require(directions == DIRECTIONS, f"it scans in {directions} directions, and SS2D in {DIRECTIONS}")
    states = A_logs.shape[-1]
    for name, parameter, shape in (
        ("x_proj_weight", x_proj, (DIRECTIONS, rank + 2 * states, inner)),
        ("dt_projs_bias", bias, (DIRECTIONS, inner)),
        ("A_logs", A_logs, (DIRECTIONS * inner, states)),
        ("Ds", Ds, (DIRECTIONS * inner,)),
    ):
        require(parameter.shape == shape, f"{name} has shape {tuple(parameter.shape)}, and SS2D {shape}")

    wide, channels = _projection_sizes("in_proj", module.in_proj)
    require(wide in (inner, 2 * inner), f"in_proj gives {wide} channels, and SS2D {inner} or {2 * inner}")
    sizes = _projection_sizes("out_proj", module.out_proj)
    require(sizes == (channels, inner), f"out_proj maps {sizes[1]} to {sizes[0]} channels, not {inner} to {channels}")
    _check_norm(module.out_norm, inner)

    form = Form(
        d_model=channels,
        d_inner=inner,
        d_state=states,
        dt_rank=rank,
        d_conv=_conv_size(getattr(module, "conv2d", None), inner),
        gate=None,
        out_act=_is_gelu(getattr(module, "out_act", None)),
        dropout=_dropout(getattr(module, "dropout", None)),
        channels_first=False,
    )
    gates = (None,)
    if wide == 2 * inner:
        gates = ("linear", "silu") if getattr(module, "disable_z_act", False) is True else ("silu", "linear")
    return [replace(form, gate=gate, channels_first=first) for first in _layouts(module) for gate in gates]


def _check_parts(module: nn.Module) -> None:
    """Raises unless the layer consists of the parts of an SS2D, all of which can be shared."""
    for name in ("in_proj", "out_proj", "out_norm"):
        require(isinstance(getattr(module, name, None), nn.Module), f"it has no {name}")
    for name, child in module.named_children():
        idle = isinstance(child, WITHOUT_PARAMETERS.get(name, nn.Identity))
        require(name in PARTS or idle, f"it has a part that SS2D has not: {name} ({kind(child)})")
        check_part(name, child)
    require(next(module.buffers(), None) is None, "it has buffers, and SS2D has none")
    parts = {f"{name}.{tensor}" for name in PARTS for tensor in ("weight", "bias")}
    needed = {*SCAN_PARAMETERS, "in_proj.weight", "out_proj.weight"}
    check_parameters(module, needed | parts, needed, "SS2D")


def _projection_sizes(name: str, layer: Any) -> tuple[int, int]:
    """Channels out and in."""
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
    """Rows of the depthwise convolution; 1 for none."""
    if layer is None or isinstance(layer, nn.Identity):
        return 1
    require(isinstance(layer, nn.Conv2d), f"conv2d is no convolution ({kind(layer)})")
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


def _check_norm(layer: Any, inner: int) -> None:
    if not isinstance(layer, nn.Identity):
        require(isinstance(layer, nn.LayerNorm), f"out_norm is no LayerNorm ({kind(layer)})")
        shape = tuple(layer.normalized_shape)
        require(shape == (inner,), f"out_norm normalises {shape}, and SS2D {(inner,)}")


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
    """Whether channels come first: what the layer says of itself, else what its input projection takes."""
    said = getattr(module, "channel_first", None)
    if isinstance(said, bool):
        return (said,)
    if isinstance(module.in_proj, nn.Conv2d):
        return (True,)
    overridden = type(module.in_proj).forward not in (nn.Linear.forward, PixelLinear.forward)
    return (True, False) if overridden else (False,)


# --- comparison ------------------------------------------------------------------------------------------------------


def _random_image(channels: int, channels_first: bool) -> Tensor:
    batch, height, width = SIZE
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, height, width, channels, generator=generator, dtype=torch.float32)
    return x.permute(0, 3, 1, 2).contiguous() if channels_first else x


def _random_parameters(original: nn.Module, form: Form) -> dict[str, Tensor]:
    """Values with which every parameter shows in the output, by name."""
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
    values = {}
    for name, parameter in original.named_parameters(remove_duplicate=False):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        values[name] = centres[name](noise) if name in centres else 0.1 * noise
    return values
