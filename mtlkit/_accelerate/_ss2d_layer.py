"""The replacement of an SS2D of another codebase: mtlkit's SS2D with the original's Parameters and special parts."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit import ops
from mtlkit._accelerate._scans import CROSS, Scan, says, scan_map
from mtlkit._accelerate._share import Shared, share
from mtlkit._as_made import as_made
from mtlkit._check import check_tensor
from mtlkit.nn.ss2d import SS2D
from mtlkit.operators.pixel_linear import PixelLinear, pixel_linear


@dataclass(frozen=True)
class Form:
    """The form of a layer, as known from its parameters and parts; letters as in _ss2d.py."""

    d_model: int
    d_inner: int
    d_state: int
    dt_rank: int
    d_conv: int
    gate: Literal["silu", "linear", "act"] | None  # "act" is the activation that follows the convolution
    norm: Literal["layer", "image", "tokens"] | None  # "image", "tokens": input of the layer's own module
    out_act: bool
    dropout: float
    channels_first: bool
    scans: tuple[Scan, ...] = CROSS
    attended: bool = False  # LocalMamba's attention over each direction before the sum

    def __str__(self) -> str:
        gate = {None: "no gate", "act": "activated gate"}.get(self.gate, f"{self.gate} gate")
        layout = "channels-first" if self.channels_first else "channels-last"
        scans = "" if self.scans == CROSS else f", {says(self.scans)}"
        return f"C={self.d_model}, D={self.d_inner}, N={self.d_state}, R={self.dt_rank}, {gate}, {layout}{scans}"


class _Projection(PixelLinear):
    """A linear layer over channels-last pixels; its weight may be that of a 1 x 1 convolution, (out, in, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return pixel_linear(x, self.weight.flatten(1), self.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if isinstance(weight, Tensor) and weight.shape[2:] in ((), (1, 1)):  # published checkpoints contain both
            state_dict[f"{prefix}weight"] = weight.reshape(weight.shape[:2] + self.weight.shape[2:])
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class SharedSS2D(Shared, SS2D):
    """mtlkit's SS2D with the Parameters of the layer that it replaces; `accelerate` makes it.

    Args:
        original: the replaced layer, which `restore` puts back.
        form: its recognised form.

    Shape:
        As the original: (B, H, W, C) in and out, or (B, C, H, W) if the original is channels-first.

    Raises:
        TypeError: the input is not a floating-point tensor.
        ValueError: the input has another shape.
    """

    marked = False
    _projection = _Projection

    def __init__(self, original: Any, form: Form) -> None:
        super().__init__(
            form.d_model,
            form.d_state,
            (form.d_inner + 0.5) / form.d_model,  # SS2D rounds the product with d_model down to d_inner
            form.dt_rank,
            form.d_conv,
            gate="linear" if form.gate == "act" else form.gate,
            norm="layer" if form.norm == "layer" else None,
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
        self.gate, self.norm, self.scans = form.gate, form.norm, form.scans
        self.act = nn.SiLU() if getattr(original, "act", None) is None else original.act
        if form.norm not in ("layer", None):
            self.out_norm = original.out_norm
        if form.attended:
            self.multi_scan = original.multi_scan
        if isinstance(self.out_norm, nn.LayerNorm):
            self.out_norm.eps = original.out_norm.eps
            self.out_norm.elementwise_affine = original.out_norm.elementwise_affine
        self.marked = getattr(original.A_logs, "_no_weight_decay", False)
        self._stand_in_for(original)

    def forward(self, x: Tensor) -> Tensor:
        """Scans the image in the directions and the layout of the original."""
        if hasattr(self, "multi_scan") and x.dim() == 4 and x.shape[1] != x.shape[2]:
            return self._as_original(x)
        if not self.channels_first:
            return super().forward(x).contiguous()
        check_tensor("x", x, 4)
        if x.shape[1] != self.d_model:
            raise ValueError(f"x: expected shape (B, {self.d_model}, H, W), got {tuple(x.shape)}; channels come first")
        y = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, C, H, W), channels-last in memory
        # as in the original, whose norm permutes: the output is channels-last in memory for any input
        normed = isinstance(self.out_norm, nn.LayerNorm)
        return y if normed or x.is_contiguous(memory_format=torch.channels_last) else y.contiguous()

    def _as_original(self, x: Tensor) -> Tensor:
        """Runs the original on a map that is not square, because LocalMamba's code mixes up its columns there."""
        share(self, self.original)
        self.original.train(self.training)
        return self.original.forward(x)

    def _whole(self) -> Any:
        plain = self.scans == CROSS and self.norm in ("layer", None) and self.gate != "act"
        return super()._whole() if plain and as_made(self.act, nn.SiLU) else None

    def _conv_silu(self, x: Tensor) -> Tensor:
        if isinstance(self.act, nn.SiLU):
            return super()._conv_silu(x)
        return self.act(self.conv2d(x) if self.d_conv > 1 else x)

    def _scan_norm(self, z: Tensor | None, u: Tensor, *others: Tensor) -> Tensor:
        fused = self.scans == CROSS and self.norm in ("layer", None)
        if fused and self.gate != "act":
            return super()._scan_norm(z, u, *others)
        y = super()._scan_norm(None, u, *others) if fused else self._scan(u, *others)  # (B, H, W, D)
        if self.norm == "layer" and not fused:
            norm, gated = self.out_norm, self.gate == "silu" and not self.out_act
            y = ops.norm_gate(y, norm.weight, norm.bias, z if gated else None, norm.eps)
            if gated:
                return y
        elif not fused and self.norm is not None:
            y = self._normalised(y)
        if self.out_act and not fused:
            y = F.gelu(y)
        if z is None:
            return y
        return y * (z if self.gate == "linear" else self.act(z) if self.gate == "act" else F.silu(z))

    def _scan(self, u: Tensor, x_dbl: Tensor, *others: Tensor) -> Tensor:
        """Returns the sum of the directions, (B, H, W, D)."""
        wide = torch.float32 if u.dtype == torch.float16 else None  # the sum may pass float16's range
        if self.scans == CROSS:
            return ops.ss2d(u, x_dbl, *others, out_dtype=wide).permute(0, 2, 3, 1)
        pixels, rows = u.permute(0, 2, 3, 1), x_dbl.permute(0, 3, 4, 1, 2)
        attended = hasattr(self, "multi_scan")
        y = scan_map(self.scans, pixels, rows, *others, merge=not attended, out_dtype=wide)
        if attended:  # (B, K, H, W, D)
            y = self.multi_scan.attn(y.flatten(0, 1).flatten(1, 2)).view(y.shape).sum(1)
        return y

    def _normalised(self, y: Tensor) -> Tensor:
        """Applies the original's own norm, in the layout that it takes: (B, H, W, D) in and out."""
        if self.norm == "tokens":
            return self.out_norm(y.flatten(1, 2)).view(y.shape)
        if self.channels_first:
            return self.out_norm(y.permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1)
        return self.out_norm(y)

    def _mark(self) -> None:
        if self.marked:
            super()._mark()

    def extra_repr(self) -> str:
        """Returns the options, for repr."""
        return f"{super().extra_repr()}, channels_first={self.channels_first}, for={type(self.original).__name__}"
