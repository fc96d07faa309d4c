"""Device and dtype of a module's new parameters."""

from typing import TypedDict

import torch


class Factory(TypedDict):
    """Device and dtype of new parameters, to pass to PyTorch's layers and functions: `nn.Linear(2, 3, **factory)`."""

    device: torch.device | str | None
    dtype: torch.dtype | None
