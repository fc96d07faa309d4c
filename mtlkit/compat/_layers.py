"""mamba-ssm's layers: its block with the keywords of all published editions, and norms that add a residual."""

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtlkit.nn
from mtlkit import ops

_KEYWORDS = (*list(signature(mtlkit.nn.Mamba).parameters), "bimamba", "if_devide_out")


class Mamba(mtlkit.nn.Mamba):
    """`mtlkit.nn.Mamba` with the additional keywords of other editions.

    Args:
        arguments: as in `mtlkit.nn.Mamba`.
        bimamba: VideoMamba's name for `bimamba_type="v2"`.
        if_devide_out: LocalMamba's name for `if_divide_out`.
        options: as in `mtlkit.nn.Mamba`.

    Raises:
        TypeError: no edition has one of the keywords.
    """

    def __init__(self, *arguments: Any, bimamba: bool = False, if_devide_out: bool = False, **options: Any) -> None:
        for name in options:
            if name not in _KEYWORDS:
                raise TypeError(f"Mamba: expected keywords among {', '.join(_KEYWORDS)}, got {name!r}")
        if bimamba:
            options["bimamba_type"] = "v2"
        if if_devide_out:
            options["if_divide_out"] = True
        super().__init__(*arguments, **options)


class Block(nn.Module):
    """A norm and a mixer; `residual` carries the sum of the outputs of all blocks before.

    Args:
        dim: channels, C.
        mixer_cls: called with C, returns the mixer.
        norm_cls: called with C, returns the norm.
        fused_add_norm: whether one call computes sum and norm; the residual then keeps its dtype.
        residual_in_fp32: whether the residual is float32.
    """

    def __init__(
        self,
        dim: int,
        mixer_cls: Callable[[int], nn.Module],
        norm_cls: Callable[[int], nn.Module] = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__()
        self.residual_in_fp32, self.fused_add_norm = residual_in_fp32, fused_add_norm
        self.mixer, self.norm = mixer_cls(dim), norm_cls(dim)
        if fused_add_norm and not isinstance(self.norm, (nn.LayerNorm, RMSNorm)):
            raise TypeError(
                f"norm_cls: expected LayerNorm or RMSNorm with fused_add_norm, got {type(self.norm).__name__}"
            )

    def forward(
        self, hidden_states: Tensor, residual: Tensor | None = None, inference_params: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Returns mixer(norm(sum)) and the sum of `hidden_states` and `residual`, (B, L, C) each."""
        norm: Any = self.norm
        total: Any
        if self.fused_add_norm:
            function = ops.rms_norm if isinstance(norm, RMSNorm) else ops.layer_norm
            normed, total = function(
                hidden_states,
                norm.weight,
                norm.bias,
                residual,
                eps=norm.eps,
                prenorm=True,
                residual_in_fp32=self.residual_in_fp32,
            )
        else:
            total = hidden_states if residual is None else hidden_states + residual
            normed = norm(total.to(norm.weight.dtype))
            total = total.float() if self.residual_in_fp32 else total
        return self.mixer(normed, inference_params=inference_params), total

    def allocate_inference_cache(self, batch_size: int, max_seqlen: int, dtype: Any = None, **options: Any) -> Any:
        """Returns the cache of the mixer."""
        return self.mixer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **options)  # pyright: ignore


# --- norms ------------------------------------------------------------------------------------------------------------


def layer_norm_fn_1(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Any:
    """`layer_norm_fn` of mamba-ssm 1.x."""
    norm = ops.rms_norm if is_rms_norm else ops.layer_norm
    return norm(x, weight, bias, residual, eps=eps, prenorm=prenorm, residual_in_fp32=residual_in_fp32)


def rms_norm_fn_1(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Any:
    """`rms_norm_fn` of mamba-ssm 1.x."""
    return layer_norm_fn_1(x, weight, bias, residual, eps, prenorm, residual_in_fp32, True)


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Any:
    """`layer_norm_fn` of later versions; takes dropout and rowscale, but no parallel norms or dropout masks."""
    for name, value in (("x1", x1), ("weight1", weight1), ("bias1", bias1)):
        if value is not None:
            raise ValueError(f"{name}: expected None, since parallel norms are not served, got a tensor")
    if return_dropout_mask:
        raise ValueError("return_dropout_mask: expected False, since the mask is not served, got True")
    if rowscale is not None:
        x = x * rowscale[..., None]
    return layer_norm_fn_1(F.dropout(x, dropout_p), weight, bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm)


rms_norm_fn = partial(layer_norm_fn, is_rms_norm=True)


class RMSNorm(nn.Module):
    """RMS norm: divides by the root of the mean square and multiplies by a weight for each channel.

    Args:
        hidden_size: channels, C.
        eps: added to the mean square.
        dropout_p: probability of dropout before the residual is added.
        device: device of the weight.
        dtype: dtype of the weight.
    """

    bias: Tensor | None

    def __init__(
        self, hidden_size: int, eps: float = 1e-5, dropout_p: float = 0.0, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.eps, self.dropout_p = eps, dropout_p
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Any:
        """Normalises x + residual, (..., C) in and out; with `prenorm` returns the sum as well."""
        x = F.dropout(x, self.dropout_p, self.training)
        return rms_norm_fn_1(x, self.weight, None, residual, prenorm, residual_in_fp32, self.eps)
