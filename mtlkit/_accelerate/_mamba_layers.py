"""The replacements of Mamba blocks over tokens: all forms of Mamba, MambaVision, LocalVim and PlainMamba.

Letters as in mtlkit.nn.mamba. Each replacement holds the parts of the original, and thus the same Parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit import ops
from mtlkit._accelerate._share import Shared
from mtlkit._check import check_tensor
from mtlkit.nn.mamba import Direction, Mamba, conv_silu, gate, scan_tokens
from mtlkit.operators.pixel_linear import PixelLinear, pixel_linear


@dataclass(frozen=True)
class Form:
    """The form of a Mamba block, as known from its parameters and attributes."""

    d_model: int
    d_inner: int
    d_state: int
    dt_rank: int
    d_conv: int
    bimamba_type: Literal["v1", "v2", "v3"] | None
    nslices: int
    if_divide_out: bool

    def __str__(self) -> str:
        sizes = f"C={self.d_model}, D={self.d_inner}, N={self.d_state}, R={self.dt_rank}"
        words = {
            None: "one direction",
            "v1": "two directions with shared weights",
            "v2": "two directions",
            "v3": f"three directions, {self.nslices} slices",
        }
        return f"Mamba, {sizes}, {words[self.bimamba_type]}{', their mean' if self.if_divide_out else ''}"


class SharedMamba(Shared, Mamba):
    """mtlkit's Mamba with the Parameters of the block that it replaces.

    Args:
        original: the replaced block.
        form: its recognised form.

    Shape:
        (B, L, C) in and out.
    """

    def __init__(self, original: Any, form: Form) -> None:
        scale = getattr(original, "init_layer_scale", 1.0) if "gamma" in original._parameters else None
        super().__init__(
            form.d_model,
            form.d_state,
            form.d_conv,
            math.nextafter(form.d_inner / form.d_model, math.inf),  # rounded up: times d_model, it is at least d_inner
            form.dt_rank,
            conv_bias=original.conv1d.bias is not None,
            bias=original.in_proj.bias is not None,
            layer_idx=getattr(original, "layer_idx", None),
            device="meta",
            bimamba_type=form.bimamba_type,
            nslices=form.nslices,
            if_divide_out=form.if_divide_out,
            init_layer_scale=scale,
        )
        self.expand = getattr(original, "expand", form.d_inner / form.d_model)
        self.form = str(form)
        self.marked = getattr(original.A_log, "_no_weight_decay", False)
        self._stand_in_for(original)

    def forward(self, hidden_states: Tensor, inference_params: Any = None, T: int = 1) -> Tensor:
        """Mixes the tokens; T is accepted and ignored, as in VideoMamba's block."""
        return super().forward(hidden_states, inference_params)

    def _mark(self) -> None:
        if getattr(self, "marked", True):
            super()._mark()

    def extra_repr(self) -> str:
        """Returns the options, for repr."""
        return f"{super().extra_repr()}, for={type(self.original).__name__}"


class _SharedParts(Shared):
    """A layer that uses the parts of the original unchanged, except for its projections."""

    in_proj: PixelLinear
    out_proj: PixelLinear

    def __init__(self, original: Any, form: str) -> None:
        super().__init__()
        for name, part in original.named_children():
            self.add_module(name, _projection(part) if name in ("in_proj", "out_proj") else part)
        self.form = form
        self.d_model, self.d_inner = original.in_proj.weight.shape[1], original.out_proj.weight.shape[1]
        self._stand_in_for(original)

    def extra_repr(self) -> str:
        """Returns the form, for repr."""
        return f"{self.form}, for={type(self.original).__name__}"


def _projection(layer: nn.Linear) -> PixelLinear:
    out, into = layer.weight.shape
    return PixelLinear(into, out, layer.bias is not None, "meta")


class SharedVisionMixer(_SharedParts):
    """MambaVision's mixer: half of the channels scanned, the other half convolved, and both projected.

    As published, its convolutions are centred, and the bias of the time step is added twice.

    Shape:
        (B, L, C) in and out.
    """

    conv1d_x: nn.Conv1d
    conv1d_z: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    A_log: Tensor
    D: Tensor

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Mixes the tokens."""
        x, z = self.conv1d_x, self.conv1d_z
        weight = torch.cat((x.weight, z.weight))  # (D, 1, w)
        bias = None if x.bias is None or z.bias is None else torch.cat((x.bias, z.bias))
        ahead = weight.shape[-1] // 2
        if self.in_proj.bias is None:
            xz = self.in_proj(F.pad(hidden_states, (0, 0, 0, ahead)))  # (B, L + ahead, D), narrower before it
        else:
            xz = F.pad(self.in_proj(hidden_states), (0, 0, 0, ahead))
        u, z = conv_silu(xz, weight, bias)[:, ahead:].chunk(2, -1)  # (B, L, D / 2) each
        dt = self.dt_proj
        y = scan_tokens(u, Direction(None, None, self.x_proj.weight, dt.weight, 2 * dt.bias, self.A_log, self.D))
        return self.out_proj(torch.cat((y, z), -1))


class SharedMultiMamba(_SharedParts):
    """LocalVim's block: directions by rows, columns and windows, each with its own weights and channel attention.

    A direction and its reverse share one reordering of the tokens.

    Args:
        original: the replaced block.
        form: description of the recognised block.
        order: tokens in the order of each direction, (K, L).

    Shape:
        (B, L, C) in and out.
    """

    order: Tensor
    back: Tensor

    def __init__(self, original: Any, form: str, order: Tensor) -> None:
        super().__init__(original, form)
        layouts: list[Tensor] = [torch.arange(order.shape[1], device=order.device)]  # the first needs no copy
        self.along: list[list[tuple[int, bool]]] = [[]]  # for each layout its directions, and whether they are reversed
        for k, tokens in enumerate(order):
            known = [i for i, layout in enumerate(layouts) if any(map(tokens.equal, (layout, layout.flip(0))))]
            if not known:
                layouts.append(tokens)
                self.along.append([])
            i = known[0] if known else -1
            self.along[i].append((k, not layouts[i].equal(tokens)))
        self.register_buffer("order", torch.stack(layouts), persistent=False)
        self.register_buffer("back", self.order.argsort(-1), persistent=False)

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        """Mixes the tokens."""
        _check_tokens("hidden_states", hidden_states, self.order.shape[1], self.d_model)
        x, z = self.in_proj(hidden_states).chunk(2, -1)  # (B, L, D) each
        z = F.silu(z.contiguous())
        total = torch.zeros_like(z)
        for i, directions in enumerate(self.along):
            if not directions:
                continue
            there = (x, z) if i == 0 else (x.index_select(1, self.order[i]), z.index_select(1, self.order[i]))
            if i == 0:
                total = self._add(total, *there, directions)
            else:
                total = total + self._add(torch.zeros_like(z), *there, directions).index_select(1, self.back[i])
        return self.out_proj(total)

    def _add(self, total: Tensor, x: Tensor, z: Tensor, directions: list[tuple[int, bool]]) -> Tensor:
        """Returns `total` plus the outputs of directions along the same tokens, (B, L, D)."""
        for k, backwards in directions:
            names = ("conv1d", "x_proj", "dt_proj", "A_log", "D")
            conv, x_proj, dt, A_log, D = (getattr(self, f"{name}_{k}") for name in names)
            direction = Direction(conv.weight, conv.bias, x_proj.weight, dt.weight, dt.bias, A_log, D)
            y = scan_tokens(x, direction, backwards)
            y = y * z if y.requires_grad or z.requires_grad else y.mul_(z)
            total = torch.addcmul(total, y, self._channels(y))
        return total

    def _channels(self, y: Tensor) -> Tensor:
        """Returns the attention weight of each channel of a direction: (B, L, D) to (B, 1, D)."""
        attention: Any = self.attn
        mean = attention.norm(y).mean(1, keepdim=True)  # (B, 1, D)
        return attention.gate_fn(attention.channel_select(attention.act_fn(attention.global_reduce(mean))))


class SharedPlainMamba2D(_SharedParts):
    """PlainMamba's layer: four snake orders over an image with the same weights; each step adds a vector to B.

    The vector depends on the direction of the step. As published, the t-th pixel of a snake uses the projections of the
    t-th pixel of the image, and the bias of the time step is added twice.

    Shape:
        Pixels (B, H W, C) in and out, with (H, W).
    """

    conv2d: nn.Conv2d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    A_log: Tensor
    D: Tensor

    def forward(self, x: Tensor, hw_shape: Sequence[int]) -> Tensor:
        """Mixes the pixels."""
        height, width = (int(size) for size in hw_shape)
        _check_tokens("x", x, height * width, self.d_model)
        order = ops.orders.snake(height, width)
        table = order.table(x.device).long()  # (4, L)
        back = table.argsort(-1)
        x, z = self.in_proj(x).chunk(2, -1)  # (B, L, D) each
        u = self.conv2d(x.unflatten(1, (height, width)).permute(0, 3, 1, 2))
        u = F.silu(u).permute(0, 2, 3, 1).flatten(1, 2)  # (B, L, D)
        rows = pixel_linear(u, self.x_proj.weight)[:, back]  # (B, 4, L, R + 2 N), row t at step t's pixel
        rank, states = self.dt_proj.weight.shape[1], self.A_log.shape[1]
        added: Any = self._parameters["direction_Bs"]
        moves = added[_moves(table, width).gather(-1, back)]  # (4, L, N)
        rows = rows + F.pad(moves, (rank, states)).to(rows.dtype)
        y = ops.directional_scan(
            u.transpose(1, 2),
            rows.transpose(2, 3),
            self.dt_proj.weight.expand(4, -1, -1),
            (2 * self.dt_proj.bias).expand(4, -1),
            self.A_log.repeat(4, 1),
            self.D.repeat(4),
            order,
        ).transpose(1, 2)  # (B, L, D)
        out = self.out_proj(gate(y, z))
        return out * self._parameters["gamma"] if "gamma" in self._parameters else out


def _check_tokens(name: str, x: Tensor, length: int, channels: int) -> None:
    check_tensor(name, x, 3)
    if x.shape[1:] != (length, channels):
        raise ValueError(f"{name}: expected shape (B, {length}, {channels}), got {tuple(x.shape)}")


def _moves(table: Tensor, width: int) -> Tensor:
    """Returns the row of direction_Bs for each step of a snake: 0 for the first, 1 to 4 for right, left, up, down."""
    step = table.diff(dim=-1)  # (4, L - 1), 1, -1, -W or W
    along = torch.where(step > 0, 1, 2) if width > 1 else torch.where(step > 0, 4, 3)
    return F.pad(torch.where(step.abs() > 1, torch.where(step > 0, 4, 3), along), (1, 0))
