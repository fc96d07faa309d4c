"""The gate that weights the experts of CSA-MoE-Net."""

import torch
from torch import Tensor, nn

from mtlkit._check import check_positive, check_probability, check_tensor
from mtlkit._factory import Factory


class AdaptiveGate(nn.Module):
    """Weights the features of several experts, separately for every sample.

        w     = softmax(W2 Dropout(ReLU(BN(W1 [F_1; ..; F_E] + b1))) + b2)
        fused = sum_e w_e F_e

    Parameters: fc1 (W1), bn, fc2 (W2).

    Args:
        dim: number of features of each expert, C.
        experts: number of experts, E.
        hidden: units between W1 and W2.
        dropout: probability before W2.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Features (B, E, C) in; fused (B, C) and weights (B, E) out. In training B is at least 2, for BatchNorm.

    Raises:
        ValueError: an option is out of range, or the features have another shape.
        TypeError: the features are not a floating-point tensor.

    Source: "Cross-Stage Attention Multi-Expert Network for Radiologist-Inspired Breast Ultrasound Diagnosis"
    (arXiv 2605.25518), equations 10 and 11.

    Example:
        >>> import torch, mtlkit
        >>> fused, weights = mtlkit.nn.AdaptiveGate(dim=16).eval()(torch.randn(2, 3, 16))
        >>> fused.shape, torch.allclose(weights.sum(1), torch.ones(2))
        (torch.Size([2, 16]), True)
    """

    def __init__(
        self,
        dim: int = 512,
        experts: int = 3,
        hidden: int = 64,
        dropout: float = 0.2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, experts=experts, hidden=hidden)
        check_probability(dropout=dropout)
        factory = Factory(device=device, dtype=dtype)
        self.dim, self.experts = dim, experts
        self.fc1 = nn.Linear(experts * dim, hidden, **factory)
        self.bn = nn.BatchNorm1d(hidden, **factory)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, experts, **factory)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, E, C) to the weighted sum (B, C) and the weights (B, E)."""
        check_tensor("features", features, 3)
        if features.shape[1:] != (self.experts, self.dim):
            raise ValueError(f"features: expected shape (B, {self.experts}, {self.dim}), got {tuple(features.shape)}")
        hidden = self.bn(self.fc1(features.flatten(1))).relu()  # (B, hidden)
        weights = self.fc2(self.dropout(hidden)).softmax(1)  # (B, E)
        return (weights[..., None] * features).sum(1), weights

    def extra_repr(self) -> str:
        """The options, for repr."""
        return f"dim={self.dim}, experts={self.experts}"
