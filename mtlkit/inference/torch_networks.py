"""Networks of runs, which PyTorch computes."""

import copy
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mtlkit._fields import Fields
from mtlkit.deploy import optimize
from mtlkit.errors import DataError
from mtlkit.inference.networks import Facts, OpenNetwork
from mtlkit.training import SavedRun, load_run
from mtlkit.training.saved_run import runs_within

__all__ = ["Ensemble", "RunNetwork", "open_run"]


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
        self.shapes: list[torch.Size] = []  # of the last batch

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
        batch = {items[name]: torch.from_numpy(value) for name, value in inputs.items()}
        shapes = [tensor.shape for tensor in batch.values()]
        if self.device == "cpu" and shapes != self.shapes:  # the second call of a size packs weights, which round
            self.run.predict(batch)  # otherwise: what is said of a batch must not depend on those before it
            self.shapes = shapes
        found = self.run.predict(batch)
        return {name: value.numpy() for name, value in found.items()}

    def uncalibrated(self) -> "RunNetwork":
        """As `OpenNetwork` has it."""
        other = copy.copy(self)
        other.run = self.run.uncalibrated()
        other.facts = Facts.read(Fields(self.source, other.run.facts()))
        return other


class Ensemble(OpenNetwork):
    """The networks of several runs of one recipe, as the folds of a cross-validation: the mean of what they say.

    Args:
        source: the folder of the runs.
        networks: theirs.

    Raises:
        DataError: they do not all take and tell the same.
    """

    engine = "torch"

    def __init__(self, source: Path, networks: Sequence[RunNetwork]) -> None:
        first = networks[0]
        for other in networks[1:]:
            if replace(other.facts, temperatures={}) != replace(first.facts, temperatures={}):
                words = f"{first.source.name} and {other.source.name} have two"
                raise DataError(f"{source}: expected runs of one recipe, and {words}")
        self.source, self.networks = source, tuple(networks)
        self.facts, self.device = first.facts, first.device
        names = ", ".join(network.source.name for network in networks)
        self.remarks = (f"the mean of {len(networks)} networks: {names}",)
        self.weights = "+".join(network.weights for network in networks)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As `OpenNetwork` has it."""
        answers = [network(inputs) for network in self.networks]
        return {name: np.mean([answer[name] for answer in answers], axis=0) for name in answers[0]}

    def uncalibrated(self) -> "Ensemble":
        """As `OpenNetwork` has it."""
        return Ensemble(self.source, [network.uncalibrated() for network in self.networks])


def open_run(run: SavedRun | str | Path, device: torch.device | str | None = None) -> OpenNetwork:
    """The network of a run, or of its folder; of a folder of several runs, all of theirs."""
    if not isinstance(run, SavedRun) and (runs := runs_within(run)):
        return Ensemble(Path(run), [RunNetwork.open(one, device) for one in runs])
    return RunNetwork.open(run, device)


def _optimized(run: SavedRun) -> SavedRun:
    """With a copy of its network that runs faster on a CPU; as it is where that cannot be made."""
    try:
        return replace(run, model=optimize(run.model))
    except ValueError:
        return run
