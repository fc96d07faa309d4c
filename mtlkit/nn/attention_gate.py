"""The attention gate on a skip connection."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit._check import check_channels_first, check_positive
from mtlkit._factory import Factory
from mtlkit._keras import init_as_keras
from mtlkit.nn.separable_conv import SeparableConv


class AttentionGate(nn.Module):
    """Scales every pixel of a skip connection by a factor computed with the decoder's feature map.

        q   = ReLU(W_x skip + b_x + W_g g + b_g)               1 x 1 convolutions
        q   = Sep3x3,dilation 2 (Sep3x3,dilation 1 (q))        no activation between
        out = skip sigmoid(w q + b)

    If `g` and `skip` differ in size, the term of `g` is resized bilinearly to that of `skip`, with half-pixel centres.
    The original by Oktay et al. has neither the separable convolutions nor this resizing. Parameters: x_proj, g_proj,
    ctx1, ctx2, psi.

    Args:
        dim: channels of the skip connection, input and output.
        gate_dim: channels of the decoder's feature map.
        inter_dim: channels of q.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-first: skip (B, dim, H, W) and g (B, gate_dim, H', W') in, (B, dim, H, W) out.

    Raises:
        ValueError: a size is not above 0, or an input has another shape.
        TypeError: an input is not a floating-point tensor.

    Source: Oktay et al., "Attention U-Net" (2018), in the form of arXiv 2603.01295.

    Example:
        >>> import torch, mtlkit
        >>> gate = mtlkit.nn.AttentionGate(dim=8, gate_dim=6, inter_dim=3)
        >>> gate(torch.randn(2, 8, 7, 5), torch.randn(2, 6, 7, 5)).shape
        torch.Size([2, 8, 7, 5])
    """

    def __init__(
        self,
        dim: int,
        gate_dim: int,
        inter_dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, gate_dim=gate_dim, inter_dim=inter_dim)
        factory = Factory(device=device, dtype=dtype)
        self.dim, self.gate_dim, self.inter_dim = dim, gate_dim, inter_dim
        self.x_proj = nn.Conv2d(dim, inter_dim, 1, **factory)
        self.g_proj = nn.Conv2d(gate_dim, inter_dim, 1, **factory)
        self.ctx1 = SeparableConv(inter_dim, inter_dim, 1, **factory)
        self.ctx2 = SeparableConv(inter_dim, inter_dim, 2, **factory)
        self.psi = nn.Conv2d(inter_dim, 1, 1, **factory)
        self.apply(init_as_keras)

    def forward(self, skip: Tensor, g: Tensor) -> Tensor:
        """Scales the pixels of `skip`: (B, dim, H, W) to (B, dim, H, W)."""
        check_channels_first("skip", skip, self.dim)
        check_channels_first("g", g, self.gate_dim)
        if g.shape[0] != skip.shape[0]:
            raise ValueError(f"g: expected a batch of {skip.shape[0]} as in skip, got {g.shape[0]}")
        gate = self.g_proj(g)  # (B, inter, H', W')
        if gate.shape[2:] != skip.shape[2:]:
            gate = F.interpolate(gate, skip.shape[2:], mode="bilinear", align_corners=False)  # (B, inter, H, W)
        q = F.relu(self.x_proj(skip) + gate)  # (B, inter, H, W)
        return skip * self.psi(self.ctx2(self.ctx1(q))).sigmoid()  # (B, dim, H, W)

    def extra_repr(self) -> str:
        """The options, for repr."""
        return f"dim={self.dim}, gate_dim={self.gate_dim}, inter_dim={self.inter_dim}"
