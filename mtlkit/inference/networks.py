"""Trained networks for prediction: arrays in, arrays out, with either engine."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlkit._extras import check_installed
from mtlkit._fields import Fields
from mtlkit.data.files import check_folder

if TYPE_CHECKING:
    import torch

    from mtlkit.training import SavedRun

__all__ = ["ENGINES", "Facts", "OpenNetwork", "engine_of", "open_network"]

ENGINES = ("torch", "onnxruntime")
SUFFIX = ".onnx"


@dataclass(frozen=True)
class Facts:
    """Everything needed to prepare a network's input and to interpret its output.

    Args:
        network: name of the network in `mtlkit.models`.
        inputs: names of its inputs; see `mtlkit.models.network.Network`.
        classes: class names, by classifier.
        logits: name of the output, by classifier.
        temperatures: divisor of the logits, by classifier.
        gates: names of its gates.
        needs_masks: whether it needs masks.
        size: size of its images, pixels per side.
        mean: mean for normalisation; None keeps images in [0, 1].
        std: standard deviation for normalisation.
        batch_size: images per batch, as in training.
        max_pixels: maximal number of pixels in an image.
        workers: number of images to read in parallel.

    Example:
        >>> from mtlkit.inference import Facts
        >>> inputs, classes, logits = ("images",), {"class": ("benign", "malignant")}, {"class": "cls_logits"}
        >>> facts = Facts("mbdi", inputs, classes, logits, {"class": 1.0}, (), False, 224, None, None, 24, 10**8, 0)
        >>> facts.takes_exams
        False
    """

    network: str
    inputs: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]]
    logits: Mapping[str, str]
    temperatures: Mapping[str, float]
    gates: tuple[str, ...]
    needs_masks: bool
    size: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    batch_size: int
    max_pixels: int
    workers: int

    @classmethod
    def read(cls, facts: Fields) -> "Facts":
        """Reads the facts that `mtlkit export` writes into a file, and that `SavedRun.facts` returns.

        Raises:
            DataError: a value is missing or has another type.
        """
        recipe, classes, logits = (facts.fields(name) for name in ("recipe", "classes", "logits"))
        temperatures = facts.fields("temperatures", {})  # files of earlier versions have none
        data = recipe.fields("data")
        return cls(
            network=recipe.fields("model").text("name"),
            inputs=facts.texts("inputs"),
            classes={name: classes.texts(name) for name in classes.values},
            logits={name: logits.text(name) for name in classes.values},
            temperatures={name: temperatures.number(name, 1.0) for name in classes.values},
            gates=facts.texts("gates"),
            needs_masks=bool(facts.get("needs_masks")),
            size=facts.integer("size"),
            mean=facts.numbers("mean", None),
            std=facts.numbers("std", None),
            batch_size=data.integer("eval_batch_size", None) or data.integer("batch_size"),
            max_pixels=data.integer("max_pixels"),
            workers=data.integer("workers"),
        )

    @property
    def takes_exams(self) -> bool:
        """Whether its input is an exam of four views, not a single image."""
        return "views" in self.inputs


class OpenNetwork(ABC):
    """A trained network, ready to predict, opened by `open_network`.

    Attributes:
        source: the folder of a run, or a file.
        facts: preparation of its input and meaning of its output.
        engine: one of `ENGINES`.
        device: device of the network.
        weights: fingerprint of its parameters.
        remarks: remarks for the reader of its predictions.

    Example:
        >>> from mtlkit.inference import OpenNetwork, open_network
        >>> def predict(network: OpenNetwork, images):  # (B, 3, H, W), normalised with network.facts
        ...     return network({"images": images})["class"]
    """

    engine: str
    source: Path
    facts: Facts
    device: str
    weights: str
    remarks: tuple[str, ...] = ()

    @abstractmethod
    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The network's predictions for a batch.

        Args:
            inputs: by the names of `facts.inputs`: "images" (B, 3, H, W), "masks" (B, 1, H, W) and "views"
                (B, 4, 3, H, W), float32, "present" (B, 4), bool.

        Returns:
            Float32: the probabilities of the classes by classifier, (B, K), or (B, 2, K) for the left and the right
            breast; if the network has them, also "mask" (B, 1, H, W), probabilities, and "gates" (B, ...).
        """

    def uncalibrated(self) -> "OpenNetwork":
        """The network without calibration of its probabilities."""
        other = copy.copy(self)
        other.facts = replace(self.facts, temperatures=dict.fromkeys(self.facts.temperatures, 1.0))
        return other


def engine_of(run: Any, engine: str | None = None) -> str:
    """The engine for a network: "onnxruntime" for an ONNX file, otherwise "torch".

    Raises:
        ValueError: `engine` is another one.

    Example:
        >>> from mtlkit.inference.networks import engine_of
        >>> engine_of("mbdi.onnx"), engine_of("runs/mbdi")
        ('onnxruntime', 'torch')
    """
    if isinstance(run, OpenNetwork):
        found, what = run.engine, f"{run.source}, which is open"
    elif isinstance(run, str | Path) and Path(run).suffix.lower() == SUFFIX and not Path(run).is_dir():
        found, what = "onnxruntime", f"{run}, a file of ONNX"
    else:
        found, what = "torch", f"{run}, a run" if isinstance(run, str | Path) else "a run"
    if engine is not None:
        if engine not in ENGINES:
            raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
        if engine != found:
            more = "; `mtlkit export` writes a run as a file" if engine == "onnxruntime" else ""
            raise ValueError(f"engine: expected {found!r} for {what}, got {engine!r}{more}")
    return found


def check_network(run: Any, device: Any = None) -> None:
    """Raises early, before an engine is loaded, if a network cannot be opened."""
    if engine_of(run) == "onnxruntime":
        check_installed("prediction from a file", "predict")
        if device is not None and str(device) != "cpu":
            raise ValueError(f"device: expected 'cpu' or None for a file of ONNX, got {str(device)!r}")
    else:
        check_installed("prediction")
    if isinstance(run, str | Path) and engine_of(run) == "torch":
        check_folder(run)


def open_network(
    run: "OpenNetwork | SavedRun | str | Path",
    *,
    device: "torch.device | str | None" = None,
    threads: int | None = None,
) -> OpenNetwork:
    """Opens a trained network to predict with it.

    Args:
        run: the folder of a run, a run from `mtlkit.training.load_run`, or a file from `mtlkit export`. For a folder of
            several runs, such as the folds of a cross-validation, predictions are the mean of their networks.
        device: device for PyTorch; by default the run's current device, or the CPU if it was not loaded yet.
        threads: number of threads of ONNX Runtime; by default its own choice.

    Raises:
        DataError: there is no such folder or file, or it does not contain a trained network.
        ValueError: a device is given for an ONNX file.

    Example:
        >>> from mtlkit.inference import open_network
        >>> open_network("/no/such/net.onnx")
        Traceback (most recent call last):
        mtlkit.errors.DataError: /no/such/net.onnx: there is no such file
    """
    check_network(run, device)
    if isinstance(run, OpenNetwork):
        return run
    if engine_of(run) == "onnxruntime":
        from mtlkit.inference.onnx_networks import FileNetwork

        return FileNetwork(Path(run), threads=threads)  # pyright: ignore[reportArgumentType] - as engine_of found
    from mtlkit.inference.torch_networks import open_run

    return open_run(run, device)
