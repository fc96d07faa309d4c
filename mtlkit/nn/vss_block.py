"""The block of VMamba."""

from typing import Literal

import torch
from torch import Tensor, nn

from mtlkit._check import check_channels_last
from mtlkit._factory import Factory
from mtlkit.nn.drop_path import DropPath
from mtlkit.nn.mlp import Mlp
from mtlkit.nn.ss2d import SS2D


class VSSBlock(nn.Module):
    """SS2D and a perceptron, each after a LayerNorm and with a residual connection.

        x   = X + DropPath(SS2D(LayerNorm(X)))
        out = x + DropPath(Mlp(LayerNorm(x)))                  this line only if mlp_ratio > 0

    The defaults are those of VMamba's second version; the first has `d_state=16, gate="silu", conv_bias=True,
    mlp_ratio=0`. Parameters are named as in VMamba: norm, op, norm2, mlp.

    Args:
        dim: input and output channels, C.
        d_state: states of each channel of the scan.
        ssm_ratio: ratio of the scan's channels to the block's.
        dt_rank: rank of the time step; "auto" is C / 16, rounded up.
        d_conv: rows and columns of the depthwise convolution.
        conv_bias: whether that convolution has a bias.
        gate: gate of SS2D: "silu", "linear" or None.
        init: initialisation of the scan: "v0", "v1" or "v2".
        mlp_ratio: ratio of the perceptron's hidden channels to the block's; 0 for no perceptron.
        dropout: probability after the output projection of SS2D and in the perceptron.
        drop_path: probability that a sample's branch is dropped.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-last: (B, H, W, C) in and out.

    Raises:
        ValueError: an option is out of its range, or the input has another shape.

    Source: Liu et al., "VMamba: Visual State Space Model" (2024), figure 3.

    Example:
        >>> import torch, mtlkit
        >>> mtlkit.nn.VSSBlock(32)(torch.randn(2, 7, 5, 32)).shape
        torch.Size([2, 7, 5, 32])
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 1,
        ssm_ratio: float = 2.0,
        dt_rank: int | Literal["auto"] = "auto",
        d_conv: int = 3,
        conv_bias: bool = False,
        gate: Literal["silu", "linear"] | None = None,
        init: Literal["v0", "v1", "v2"] = "v0",
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if mlp_ratio < 0:
            raise ValueError(f"mlp_ratio: expected a number that is at least 0, got {mlp_ratio!r}")
        factory = Factory(device=device, dtype=dtype)
        self.dim = dim
        self.mlp_ratio = mlp_ratio
        self.norm = nn.LayerNorm(dim, **factory)
        self.op = SS2D(
            dim, d_state, ssm_ratio, dt_rank, d_conv, conv_bias, gate=gate, dropout=dropout, init=init, **factory
        )
        self.drop_path = DropPath(drop_path)
        if mlp_ratio > 0:
            self.norm2 = nn.LayerNorm(dim, **factory)
            self.mlp = Mlp(dim, int(mlp_ratio * dim), dropout, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes pixels, then channels: (B, H, W, C) to (B, H, W, C)."""
        check_channels_last("x", x, self.dim)
        x = x + self.drop_path(self.op(self.norm(x)))  # (B, H, W, C)
        if self.mlp_ratio > 0:
            x = x + self.drop_path(self.mlp(self.norm2(x)))  # (B, H, W, C)
        return x

    def extra_repr(self) -> str:
        """The options, for repr."""
        return f"dim={self.dim}, mlp_ratio={self.mlp_ratio}"
