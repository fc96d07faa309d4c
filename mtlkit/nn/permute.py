"""A permutation of dimensions as a layer."""

from torch import Tensor, nn


class Permute(nn.Module):
    """Permutes dimensions, for example between channels-first and channels-last layers in a Sequential.

    Args:
        *dims: the new order.

    Example:
        >>> import torch, mtlkit
        >>> mtlkit.nn.Permute(0, 2, 3, 1)(torch.zeros(1, 3, 8, 4)).shape
        torch.Size([1, 8, 4, 3])
    """

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """A view of `x` in the new order."""
        return x.permute(self.dims)

    def extra_repr(self) -> str:
        """The options, for repr."""
        return ", ".join(map(str, self.dims))
