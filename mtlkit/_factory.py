"""Device and dtype of a module's new parameters."""

from typing import TypedDict

import torch


class Factory(TypedDict):
    """Device and dtype of new parameters, as PyTorch's layers and functions take them: `nn.Linear(2, 3, **factory)`."""

    device: torch.device | str | None
    dtype: torch.dtype | None
