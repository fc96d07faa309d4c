"""The fusion of several views of a patient."""

import torch
from torch import Tensor, nn

from mtlkit._check import check_positive, check_tensor
from mtlkit._factory import Factory


class GatedViewFusion(nn.Module):
    """Weights the features of each view and concatenates them.

        alpha = softmax(W2 ReLU(W1 [v_1; ..; v_V] + b1) + b2)
        fused = [alpha_1 v_1; ..; alpha_V v_V]

    A view that is missing according to `present` gets alpha = 0 (a logit of -inf); without `present` all views count,
    as published. Parameters: fc1 (W1), fc2 (W2).

    Args:
        dim: number of features of a view, D.
        views: number of views, V.
        hidden: units between W1 and W2.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Features (B, V, D) and optionally boolean `present` (B, V) in; fused (B, V D) and alpha (B, V) out. A row of
        `present` without any True gives NaN.

    Raises:
        ValueError: a size is not positive, or features or `present` have another shape.
        TypeError: the features are not a floating-point tensor, or `present` is not boolean.

    Source: "A Hybrid CNN-VSSM model for Multi-View, Multi-Task Mammography Analysis" (arXiv 2507.16955), equations 8
    to 10.

    Example:
        >>> import torch, mtlkit
        >>> fused, alpha = mtlkit.nn.GatedViewFusion(dim=16)(
        ...     torch.randn(1, 4, 16), torch.tensor([[True, True, False, False]])
        ... )
        >>> fused.shape, alpha[0, 2:].tolist()
        (torch.Size([1, 64]), [0.0, 0.0])
    """

    def __init__(
        self,
        dim: int,
        views: int = 4,
        hidden: int = 128,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, views=views, hidden=hidden)
        factory = Factory(device=device, dtype=dtype)
        self.dim, self.views = dim, views
        self.fc1 = nn.Linear(views * dim, hidden, **factory)
        self.fc2 = nn.Linear(hidden, views, **factory)

    def forward(self, features: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, V, D) to (B, V D) and alpha (B, V)."""
        check_tensor("features", features, 3)
        if features.shape[1:] != (self.views, self.dim):
            raise ValueError(f"features: expected shape (B, {self.views}, {self.dim}), got {tuple(features.shape)}")
        logits = self.fc2(self.fc1(features.flatten(1)).relu())  # (B, V)
        if present is not None:
            check_present(present, features.shape[0], self.views)
            logits = logits.masked_fill(~present, float("-inf"))  # (B, V)
        alpha = logits.softmax(1)  # (B, V)
        return (alpha[..., None] * features).flatten(1), alpha

    def extra_repr(self) -> str:
        """The options, for repr."""
        return f"dim={self.dim}, views={self.views}"


def check_present(present: Tensor, batch: int, views: int) -> None:
    """Raises unless `present` is boolean and (batch, views).

    Raises:
        TypeError: it is not a boolean tensor. ValueError: it has another shape.
    """
    if not isinstance(present, Tensor) or present.dtype != torch.bool:
        kind = present.dtype if isinstance(present, Tensor) else type(present).__name__
        raise TypeError(f"present: expected a boolean tensor, got {kind}")
    if present.shape != (batch, views):
        raise ValueError(f"present: expected shape (B, V) = {(batch, views)}, got {tuple(present.shape)}")
