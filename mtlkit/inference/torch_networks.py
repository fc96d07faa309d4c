"""Networks of runs, which PyTorch computes."""

import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mtlkit._fields import Fields
from mtlkit.deploy import optimize
from mtlkit.inference.networks import Facts, OpenNetwork
from mtlkit.training import SavedRun, load_run

__all__ = ["RunNetwork"]


def digest_of_weights(network: nn.Module) -> str:
    """Tells the parameters and buffers of a network from others."""
    value = 0
    for name, tensor in network.state_dict().items():
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        value = zlib.crc32(content.tobytes(), zlib.crc32(name.encode(), value))
    return f"{value:08x}"


class RunNetwork(OpenNetwork):
    """The network of a run."""

    engine = "torch"

    def __init__(self, run: SavedRun) -> None:
        self.source = run.folder
        self.facts = Facts.read(Fields(run.folder, run.facts()))
        self.device = next(run.model.parameters()).device.type
        self.weights = digest_of_weights(run.model)
        self.run = _optimized(run) if self.device == "cpu" else run

    @classmethod
    def open(cls, run: SavedRun | str | Path, device: torch.device | str | None = None) -> "RunNetwork":
        """Of a run, or its folder."""
        run = run if isinstance(run, SavedRun) else load_run(run)
        if device is not None:
            run.model.to(device)
        return cls(run)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As `OpenNetwork` has it."""
        items = self.run.task.inputs
        found = self.run.predict({items[name]: torch.from_numpy(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in found.items()}


def _optimized(run: SavedRun) -> SavedRun:
    """With a copy of its network that runs faster on a CPU; as it is where that cannot be made."""
    try:
        return replace(run, model=optimize(run.model))
    except ValueError:
        return run
