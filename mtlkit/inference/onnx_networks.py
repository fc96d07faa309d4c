"""Networks of exported files, run by ONNX Runtime without importing PyTorch."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mtlkit._fields import Fields
from mtlkit._probabilities import sigmoid, softmax
from mtlkit.deploy import facts_of, open_session
from mtlkit.errors import DataError
from mtlkit.inference.networks import Facts, OpenNetwork

__all__ = ["FileNetwork"]


class FileNetwork(OpenNetwork):
    """The network of a file that `mtlkit export RUN` wrote."""

    engine, device = "onnxruntime", "cpu"

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        self.source = path
        self.session = open_session(path, threads=threads)
        values = facts_of(self.session)
        if not values:
            words = "has no metadata of mtlkit, so that it is not known what its network takes and gives"
            raise DataError(f"{words}; `mtlkit export` writes a file that has it", path=path)
        if "recipe" not in values:
            words = "was exported from a bare network, and does not say how images are prepared and what classes mean"
            raise DataError(f"{words}; export the run instead", path=path)
        facts = Fields(path, values, "its metadata are not as mtlkit writes them")
        self.facts, self.weights = Facts.read(facts), facts.text("weights")
        self.shapes = {one.name: tuple(one.shape) for one in self.session.get_inputs()}
        self.outputs = [one.name for one in self.session.get_outputs()]
        missing = [name for name in self.facts.logits.values() if name not in self.outputs]
        if missing or not set(self.shapes) <= set(self.facts.inputs):
            names = f"{', '.join(self.shapes)} to {', '.join(self.outputs)}"
            raise DataError(f"its metadata are of another network than that from {names}", path=path)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Predicts a batch, see `OpenNetwork`; raises a ValueError if an input does not have the shape of the file."""
        for name, shape in self.shapes.items():
            got = inputs[name].shape
            if len(got) != len(shape) or any(isinstance(d, int) and d != n for d, n in zip(shape, got, strict=True)):
                expected = ", ".join(map(str, shape))
                raise ValueError(f"{self.source}: {name}: expected shape ({expected}), got {got}")
        values = self.session.run(None, {name: inputs[name] for name in self.shapes})
        output = {name: np.asarray(value) for name, value in zip(self.outputs, values, strict=True)}
        found = {task: softmax(output[name], self.facts.temperatures[task]) for task, name in self.facts.logits.items()}
        if "seg_logits" in output:
            found["mask"] = sigmoid(output["seg_logits"])
        if "gates" in output:
            found["gates"] = output["gates"]
        return found
