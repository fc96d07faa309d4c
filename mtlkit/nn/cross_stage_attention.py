"""Cross-stage attention of CSA-MoE-Net."""

import torch
from torch import Tensor, nn

from mtlkit._check import check_positive, check_tensor
from mtlkit._factory import Factory


class CrossStageAttention(nn.Module):
    """Scales the channels of an encoder's last stage by attention over all its stages.

        z_k   = GAP(F_k)                                       k = 1 .. S
        alpha = softmax_k(q . W^K_k z_k / sqrt(dim))
        fused = sum_k alpha_k W^V_k z_k
        w     = sigmoid(W_up ReLU(W_down fused + b_down) + b_up)
        F^_S  = w F_S

    Parameters: query (dim), keys and values (W^K and W^V, no bias), down, up. The query is initialised from a normal
    distribution with a standard deviation of 0.02; the paper does not say how.

    Args:
        channels: channels of each stage, C_1 .. C_S.
        dim: size of keys, values and the query.
        hidden: units between W_down and W_up.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-first: a sequence of S feature maps (B, C_k, H_k, W_k) in; (B, C_S, H_S, W_S) and alpha (B, S) out.

    Raises:
        ValueError: a size is not positive, or the number of maps or a shape is wrong.
        TypeError: a map is not a floating-point tensor.

    Source: "Cross-Stage Attention Multi-Expert Network for Radiologist-Inspired Breast Ultrasound Diagnosis"
    (arXiv 2605.25518), equations 4 to 9.

    Example:
        >>> import torch, mtlkit
        >>> attention = mtlkit.nn.CrossStageAttention((8, 16))
        >>> last, alpha = attention([torch.randn(2, 8, 6, 6), torch.randn(2, 16, 3, 3)])
        >>> last.shape, alpha.shape
        (torch.Size([2, 16, 3, 3]), torch.Size([2, 2]))
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        dim: int = 128,
        hidden: int = 64,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(channels=min(channels, default=0), dim=dim, hidden=hidden)
        factory = Factory(device=device, dtype=dtype)
        self.channels, self.dim = tuple(channels), dim
        self.query = nn.Parameter(torch.empty(dim, **factory).normal_(std=0.02))
        self.keys = nn.ModuleList(nn.Linear(c, dim, bias=False, **factory) for c in channels)
        self.values = nn.ModuleList(nn.Linear(c, dim, bias=False, **factory) for c in channels)
        self.down = nn.Linear(dim, hidden, **factory)
        self.up = nn.Linear(hidden, channels[-1], **factory)

    def forward(self, features: list[Tensor] | tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The last map with its channels scaled, (B, C_S, H_S, W_S), and alpha, (B, S)."""
        if len(features) != len(self.channels):
            raise ValueError(f"features: expected {len(self.channels)} maps, got {len(features)}")
        for k, (feature, channels) in enumerate(zip(features, self.channels, strict=True)):
            check_tensor(f"features[{k}]", feature, 4)
            if feature.shape[:2] != (features[0].shape[0], channels):
                expected = f"({features[0].shape[0]}, {channels}, H, W)"
                raise ValueError(f"features[{k}]: expected shape {expected}, got {tuple(feature.shape)}")
        pooled = [feature.mean((2, 3)) for feature in features]  # (B, C_k) each
        keys = torch.stack([key(z) for key, z in zip(self.keys, pooled, strict=True)], 1)  # (B, S, dim)
        values = torch.stack([value(z) for value, z in zip(self.values, pooled, strict=True)], 1)  # (B, S, dim)
        alpha = (keys @ self.query * self.dim**-0.5).softmax(1)  # (B, S)
        fused = (alpha[..., None] * values).sum(1)  # (B, dim)
        weights = self.up(self.down(fused).relu()).sigmoid()  # (B, C_S)
        return weights[:, :, None, None] * features[-1], alpha

    def extra_repr(self) -> str:
        """The options, for repr."""
        return f"channels={self.channels}, dim={self.dim}"
