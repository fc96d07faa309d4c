"""Networks of training runs, run by PyTorch."""

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
    """Returns a checksum of the parameters and buffers of a network."""
    value = 0
    for name, tensor in network.state_dict().items():
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        value = zlib.crc32(content.tobytes(), zlib.crc32(name.encode(), value))
    return f"{value:08x}"


class RunNetwork(OpenNetwork):
    """The network of one training run."""

    engine = "torch"

    def __init__(self, run: SavedRun) -> None:
        self.source = run.folder
        self.facts = Facts.read(Fields(run.folder, run.facts()))
        self.device = next(run.model.parameters()).device.type
        self.weights = digest_of_weights(run.model)
        self.run = _optimized(run) if self.device == "cpu" else run
        self.shapes: list[torch.Size] = []  # input shapes of the last batch

    @classmethod
    def open(cls, run: SavedRun | str | Path, device: torch.device | str | None = None) -> "RunNetwork":
        """Opens the network of a run, given as such or by its folder."""
        run = run if isinstance(run, SavedRun) else load_run(run)
        if device is not None:
            run.model.to(device)
        return cls(run)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Predicts a batch, see `OpenNetwork`."""
        items = self.run.task.inputs
        batch = {items[name]: torch.from_numpy(value) for name, value in inputs.items()}
        shapes = [tensor.shape for tensor in batch.values()]
        if self.device == "cpu" and shapes != self.shapes:
            # The second call of a size packs the weights, which changes rounding. Results must not depend on earlier
            # batches, so the first call of a size is repeated.
            self.run.predict(batch)
            self.shapes = shapes
        found = self.run.predict(batch)
        return {name: value.numpy() for name, value in found.items()}

    def uncalibrated(self) -> "RunNetwork":
        """Returns the network without calibration of its probabilities."""
        other = copy.copy(self)
        other.run = self.run.uncalibrated()
        other.facts = Facts.read(Fields(self.source, other.run.facts()))
        return other


class Ensemble(OpenNetwork):
    """The mean prediction of several runs of one recipe, such as the folds of a cross-validation.

    Args:
        source: the folder that contains the runs.
        networks: the networks of the runs.

    Raises:
        DataError: the runs differ in more than weights and calibration, for example in classes or preparation.
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
        """Predicts a batch, see `OpenNetwork`."""
        answers = [network(inputs) for network in self.networks]
        return {name: np.mean([answer[name] for answer in answers], axis=0) for name in answers[0]}

    def uncalibrated(self) -> "Ensemble":
        """Returns the networks without calibration of their probabilities."""
        return Ensemble(self.source, [network.uncalibrated() for network in self.networks])


def open_run(run: SavedRun | str | Path, device: torch.device | str | None = None) -> OpenNetwork:
    """Opens the network of a run, given as such or by its folder; for a folder of several runs, their ensemble."""
    if not isinstance(run, SavedRun) and (runs := runs_within(run)):
        return Ensemble(Path(run), [RunNetwork.open(one, device) for one in runs])
    return RunNetwork.open(run, device)


def _optimized(run: SavedRun) -> SavedRun:
    """Returns the run with its network optimized for a CPU, or unchanged if `optimize` fails."""
    try:
        return replace(run, model=optimize(run.model))
    except ValueError:
        return run
