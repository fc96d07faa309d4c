"""Stochastic depth."""

from torch import Tensor, nn

from mtlkit._check import check_probability


class DropPath(nn.Module):
    """Drops the branch of a residual block for random samples and scales the other samples to keep the mean.

    It does nothing in eval mode and has no parameters.

    Args:
        p: probability that a sample's branch is dropped, in [0, 1).

    Shape:
        (B, ...) in and out.

    Raises:
        ValueError: `p` is not a probability below 1.

    Source: Huang et al., "Deep Networks with Stochastic Depth" (2016).

    Example:
        >>> import torch, mtlkit
        >>> branch = mtlkit.nn.DropPath(0.1).eval()
        >>> torch.equal(branch(torch.ones(2, 3)), torch.ones(2, 3))
        True
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        check_probability(p=p)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """The branch, with some samples zero: (B, ...)."""
        if self.p == 0 or not self.training:
            return x
        keep = x.new_empty(x.shape[:1] + (1,) * (x.dim() - 1)).bernoulli_(1 - self.p)  # (B, 1, ...)
        return x * (keep / (1 - self.p))

    def extra_repr(self) -> str:
        """The options, for repr."""
        return f"p={self.p}"
