r"""SS2D, the layer around the four-direction selective scan.

B images, C channels of the layer, D = ssm_ratio C channels of the scan, H x W pixels, K = 4 directions, N states, R
rank of the time step, M = R + 2 N.

    x, z  = split(X W_in)                                  no z without a gate
    u     = SiLU(DWConv(x))
    y     = ss2d(u, u W_x, ...)                            mtlkit.ops.ss2d
    out   = (act(LayerNorm(y)) gate(z)) W_out              act is none or GELU; gate is SiLU, the identity or none

Source: Liu et al., "VMamba: Visual State Space Model" (2024), figure 3; Yue and Li, "MedMamba" (2024).
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit import ops
from mtlkit._as_made import as_made
from mtlkit._check import check_channels_last, check_choice, check_positive, check_probability
from mtlkit._factory import Factory
from mtlkit.nn._marked import Marked
from mtlkit.operators import ss2d_layer
from mtlkit.operators.pixel_linear import PixelLinear, pixel_linear, pixel_linear_halves

DIRECTIONS = 4
SMALLEST_STEP = 1e-4
SCAN_PARAMETERS = ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds")


class SS2D(Marked):
    """Four-direction 2-D selective scan layer of VMamba, MedMamba and VM-UNet.

    The defaults give the layer of MedMamba, VM-UNet and the first VMamba. For VMamba's second version, use
    `d_state=1, ssm_ratio=1.0 or 2.0, conv_bias=False, gate=None`. Parameters have the original names and shapes, so
    that checkpoints load unchanged: in_proj, conv2d, x_proj_weight (4, M, D), dt_projs_weight (4, D, R),
    dt_projs_bias (4, D), A_logs (4 D, N), Ds (4 D), out_norm, out_proj. A_logs and Ds have the attribute
    `_no_weight_decay = True` and are created in at least float32.

    In eval mode, in float32 on a CPU and without gradients, the complete layer is a single call of the kernels.
    Submodules that have hooks or were replaced are still called.

    Args:
        d_model: input and output channels, C.
        d_state: states of each channel, N.
        ssm_ratio: ratio of the scan's channels to the layer's, D / C.
        dt_rank: rank of the time step, R; "auto" is C / 16, rounded up.
        d_conv: rows and columns of the depthwise convolution, odd; 1 or less for no convolution.
        conv_bias: whether that convolution has a bias.
        gate: "silu" multiplies by SiLU(z), "linear" by z; None drops z and half of the input projection.
        norm: "layer" normalises the merged scan over its channels; None does not.
        out_act: whether to apply GELU after the norm ("_oact" in VMamba).
        dropout: probability after the output projection.
        bias: whether the two projections have a bias.
        init: initialisation of the scan. "v0": A = -1..-N, steps log-uniform in [dt_min, dt_max]; "v1": A_logs normal,
            time step 0.1 normal; "v2": A_logs 0, time step 0.1 uniform.
        dt_min: smallest initial time step, with "v0".
        dt_max: largest initial time step, with "v0".
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-last as in the originals: (B, H, W, C) in and out. B may be 0.

    Raises:
        ValueError: an option is out of range, or the input has another shape.
        TypeError: an input is not a floating-point tensor.

    Source: Liu et al., "VMamba: Visual State Space Model" (2024), figure 3; Yue and Li, "MedMamba" (2024).

    Example:
        >>> import torch, mtlkit
        >>> layer = mtlkit.nn.SS2D(d_model=32)
        >>> layer(torch.randn(2, 7, 5, 32)).shape
        torch.Size([2, 7, 5, 32])
        >>> second = mtlkit.nn.SS2D(d_model=32, d_state=1, ssm_ratio=1.0, conv_bias=False, gate=None)
        >>> second(torch.randn(2, 7, 5, 32)).shape
        torch.Size([2, 7, 5, 32])
    """

    _projection: type[nn.Linear] = PixelLinear  # bias of in_proj and out_proj

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        dt_rank: int | Literal["auto"] = "auto",
        d_conv: int = 3,
        conv_bias: bool = True,
        gate: Literal["silu", "linear"] | None = "silu",
        norm: Literal["layer"] | None = "layer",
        out_act: bool = False,
        dropout: float = 0.0,
        bias: bool = False,
        init: Literal["v0", "v1", "v2"] = "v0",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        inner = int(ssm_ratio * d_model)
        check_positive(d_model=d_model, d_state=d_state, dt_rank=rank, dt_min=dt_min)
        if dt_max < dt_min:
            raise ValueError(f"dt_max: expected at least dt_min = {dt_min}, got {dt_max}")
        if inner < 1:
            raise ValueError(f"ssm_ratio: expected at least one channel for the scan, got {ssm_ratio} of {d_model}")
        check_probability(dropout=dropout)
        check_choice("gate", gate, ("silu", "linear", None))
        check_choice("norm", norm, ("layer", None))
        check_choice("init", init, ("v0", "v1", "v2"))
        if d_conv > 1 and d_conv % 2 == 0:
            raise ValueError(f"d_conv: expected an odd number, or at most 1 for no convolution, got {d_conv}")
        self.d_model, self.d_inner, self.d_state, self.dt_rank = d_model, inner, d_state, rank
        self.d_conv, self.gate, self.out_act, self.init = d_conv, gate, out_act, init
        self.dt_min, self.dt_max = dt_min, dt_max

        factory = Factory(device=device, dtype=dtype)
        wide = Factory(device=device, dtype=torch.promote_types(dtype or torch.get_default_dtype(), torch.float32))
        self.in_proj = PixelLinear(d_model, inner if gate is None else 2 * inner, bias=bias, **factory)
        if d_conv > 1:
            self.conv2d = nn.Conv2d(inner, inner, d_conv, padding=d_conv // 2, groups=inner, bias=conv_bias, **factory)
        self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, rank + 2 * d_state, inner, **factory))
        self.dt_projs_weight = nn.Parameter(torch.empty(DIRECTIONS, inner, rank, **factory))
        self.dt_projs_bias = nn.Parameter(torch.empty(DIRECTIONS, inner, **factory))
        self.A_logs = nn.Parameter(torch.empty(DIRECTIONS * inner, d_state, **wide))
        self.Ds = nn.Parameter(torch.empty(DIRECTIONS * inner, **wide))
        self._mark()
        self.out_norm = nn.LayerNorm(inner, **factory) if norm else nn.Identity()
        self.out_proj = PixelLinear(inner, d_model, bias=bias, **factory)
        self.dropout = nn.Dropout(dropout)
        self.reset_scan_parameters()

    @torch.no_grad()
    def reset_scan_parameters(self) -> None:
        """Initialises the parameters of the scan: x_proj_weight, dt_projs_*, A_logs and Ds."""
        self.x_proj_weight.uniform_(-(self.d_inner**-0.5), self.d_inner**-0.5)
        self.Ds.fill_(1)
        if self.init == "v0":
            self.dt_projs_weight.uniform_(-(self.dt_rank**-0.5), self.dt_rank**-0.5)
            step = torch.empty_like(self.dt_projs_bias, dtype=self.Ds.dtype)  # (4, D)
            step.uniform_(math.log(self.dt_min), math.log(self.dt_max)).exp_().clamp_(min=SMALLEST_STEP)
            self.dt_projs_bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
            self.A_logs.copy_(torch.arange(1, self.d_state + 1, dtype=torch.float64).log())
        elif self.init == "v1":
            self.dt_projs_weight.normal_(std=0.1)
            self.dt_projs_bias.normal_(std=0.1)
            self.A_logs.normal_()
        else:
            self.dt_projs_weight.uniform_(0, 0.1)
            self.dt_projs_bias.uniform_(0, 0.1)
            self.A_logs.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Scans the image in four directions: (B, H, W, C) to (B, H, W, C)."""
        check_channels_last("x", x, self.d_model)
        if not self.training and (whole := self._whole()) is not None and ss2d_layer.can_run(x, *whole):
            return self.dropout(ss2d_layer.ss2d_layer(x, *whole))
        x, z = self._project(x)
        u = self._conv_silu(x.permute(0, 3, 1, 2))  # (B, D, H, W)
        rows = pixel_linear(u.permute(0, 2, 3, 1), self.x_proj_weight.flatten(0, 1))  # (B, H, W, 4 M)
        y = self._scan_norm(
            z,
            u,
            rows.unflatten(-1, self.x_proj_weight.shape[:2]).permute(0, 3, 4, 1, 2),  # (B, 4, M, H, W)
            self.dt_projs_weight,
            self.dt_projs_bias,
            self.A_logs,
            self.Ds,
        )  # (B, H, W, D)
        return self.dropout(self.out_proj(y.to(u.dtype)))  # (B, H, W, C)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """From (B, H, W, C) to the scan's half and the gate, (B, H, W, D) each."""
        projection = self.in_proj
        if self.gate is None:
            return projection(x), None
        if as_made(projection, self._projection):
            weight, bias = _matrix_and_bias(projection)
            if weight is not None:
                return pixel_linear_halves(x, weight, bias)
        x, z = projection(x).chunk(2, -1)
        return x, z

    def _whole(self) -> tuple[ss2d_layer.Weights, ss2d_layer.Options] | None:
        """The arguments of `ss2d_layer`; None if it does not support this layer, or a submodule must be called."""
        parts = self._modules
        into, norm, out = parts["in_proj"], parts["out_norm"], parts["out_proj"]
        normed = type(norm) is nn.LayerNorm
        if (
            self.out_act
            or (self.d_conv > 1 and not self._same_conv())
            or not as_made(into, self._projection)
            or not as_made(out, self._projection)
            or not as_made(norm, nn.LayerNorm if normed else nn.Identity)
        ):
            return None
        conv = _registered(self.conv2d) if self.d_conv > 1 else (None, None)
        affine = _registered(norm) if normed else (None, None)
        scan = (self._parameters.get(name) for name in SCAN_PARAMETERS)
        weights = (*_matrix_and_bias(into), *conv, *scan, *affine, *_matrix_and_bias(out))
        kernel = self.d_conv if self.d_conv > 1 else 0
        options = ss2d_layer.Options(self.gate, kernel, normed, norm.eps if normed else 0.0)
        return ss2d_layer.Weights._make(weights), options

    def _same_conv(self) -> bool:
        """Whether the convolution still has the type and settings that the layer gave it."""
        conv, size = self.conv2d, self.d_conv
        return (
            as_made(conv, nn.Conv2d)
            and conv.kernel_size == (size, size)
            and conv.padding == (size // 2, size // 2)
            and conv.stride == conv.dilation == (1, 1)
            and conv.padding_mode == "zeros"
        )

    def _conv_silu(self, x: Tensor) -> Tensor:
        """(B, D, H, W) in and out."""
        if self.d_conv == 3 and self._same_conv():
            return ops.dwconv_silu(x, self.conv2d.weight, self.conv2d.bias)
        return F.silu(self.conv2d(x) if self.d_conv > 1 else x)

    def _scan_norm(self, z: Tensor | None, u: Tensor, *others: Tensor) -> Tensor:
        """From the arguments of ss2d and the gate (B, H, W, D) to the input of the output projection, (B, H, W, D)."""
        wide = torch.float32 if u.dtype == torch.float16 else None  # the sum of four may exceed float16's range
        norm = self.out_norm
        if as_made(norm, nn.LayerNorm):
            fused = z if self.gate == "silu" and not self.out_act else None
            y = ops.ss2d_norm_gate(
                u, *others, weight=norm.weight, bias=norm.bias, z=fused, eps=norm.eps, out_dtype=wide
            )
            if fused is not None:
                return y
        else:
            bare = isinstance(norm, nn.Identity)
            y = norm(ops.ss2d(u, *others, out_dtype=wide if bare else None).permute(0, 2, 3, 1))
        if self.out_act:
            y = F.gelu(y)
        if z is None:
            return y
        return y * (F.silu(z) if self.gate == "silu" else z)

    def _mark(self) -> None:
        """Marks A_logs and Ds so that training code excludes them from weight decay."""
        for parameter in (self.A_logs, self.Ds):
            parameter._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue] - read by training code

    def extra_repr(self) -> str:
        """The options, for repr."""
        return (
            f"d_model={self.d_model}, d_inner={self.d_inner}, d_state={self.d_state}, dt_rank={self.dt_rank}, "
            f"d_conv={self.d_conv}, gate={self.gate!r}, out_act={self.out_act}, init={self.init!r}"
        )


def _registered(module: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias."""
    return module._parameters.get("weight"), module._parameters.get("bias")


def _matrix_and_bias(projection: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of a linear layer or of a 1 x 1 convolution."""
    weight, bias = _registered(projection)
    return (weight if weight is None or weight.dim() == 2 else weight.flatten(1)), bias
