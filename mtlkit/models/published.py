"""Loads published checkpoints of MedMamba, VMamba and VM-UNet into mtlkit's networks, without running their code."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mtlkit.errors import CheckpointError
from mtlkit.models._common import install_hint
from mtlkit.models._state_dict import unwrapped
from mtlkit.models.pretrained import Pretrained, changed_by_classes, warn_of_fresh


@dataclass(frozen=True)
class LoadReport:
    """What `load_published` loaded from a file; `print` it to see the summary.

    Attributes:
        file: path of the file.
        entry: the entry of the file that held the parameters, such as "model_ema"; "" if they lie in it directly.
        used: the network's tensors that were loaded.
        missing: tensors that the file does not have, or has for another number of classes; they keep their values.
        unexpected: names in the file that the network does not have.

    Example:
        >>> from mtlkit.models import LoadReport
        >>> print(LoadReport("medmamba.pth", "model", ("head.weight",), ("head.bias",), ()))
        medmamba.pth, entry 'model': 1 tensor used, 1 missing, 0 unexpected
          missing     head.bias
    """

    file: str
    entry: str
    used: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        count = len(self.used)
        head = f"{self.file}{f', entry {self.entry!r}' if self.entry else ''}: {count} tensor{'s' * (count != 1)} used"
        lines = [f"{head}, {len(self.missing)} missing, {len(self.unexpected)} unexpected"]
        lines += [f"  missing     {name}" for name in self.missing]
        lines += [f"  unexpected  {name}" for name in self.unexpected]
        return "\n".join(lines)


def load_published(model: Pretrained, file: str | Path) -> LoadReport:
    """Loads a published checkpoint of MedMamba, VMamba or VM-UNet, or a state dict of mtlkit, into a network.

    It recognises entries of checkpoints such as "model", "state_dict" and "model_ema" (averages first), and name
    prefixes such as DataParallel's "module." and Lightning's "model.". Published names are translated. A head for
    another number of classes is not loaded, and VMamba's first version loads into both halves of a VM-UNet, as in the
    official code; a warning names the tensors that were not loaded.

    Only tensors and plain values are read: nothing in the file can run code.

    Args:
        model: the network, with the sizes of the file.
        file: a file of torch.save (.pth, .pt, .ckpt) or of safetensors.

    Returns:
        The tensors that were used, that are missing and that are unexpected.

    Raises:
        TypeError: `model` is not a network of mtlkit.
        CheckpointError: there is no such file, it is damaged, it contains more than tensors and plain values, or
            nothing in it belongs to this network. The network is unchanged then.

    Example:
        >>> import tempfile, torch, mtlkit
        >>> options = {"depths": (1, 1), "dims": (16, 32)}
        >>> model, other = (mtlkit.models.create_model("medmamba_t", num_classes=6, **options) for _ in range(2))
        >>> with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        ...     torch.save({"model": {f"module.{k}": v for k, v in other.state_dict().items()}}, file.name)
        ...     report = mtlkit.models.load_published(model, file.name)
        >>> report.entry, report.missing, torch.equal(model.head.weight, other.head.weight)
        ('model', (), True)
    """
    if not isinstance(model, Pretrained):
        raise TypeError(f"model: expected a network of mtlkit.models, got {type(model).__name__}")
    path, own = Path(file), model.state_dict()
    try:
        state, entry, others = unwrapped(_read(path), model)
    except ValueError as error:
        raise CheckpointError(str(error), path=path) from None
    fitting = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    name = type(model).__name__
    heads = changed_by_classes(type(model), model.options)
    for key, value in state.items():
        if key in own and key not in fitting and key not in heads:
            raise CheckpointError(
                f"{key}: expected shape {tuple(own[key].shape)} as in this {name}, got {tuple(value.shape)}; make the "
                "network with the sizes of the file",
                path=path,
            )
    if 2 * len(fitting) < min(len(own), len(state)):
        raise CheckpointError(
            f"expected parameters of {name}, such as {next(iter(own))!r}, got {next(iter(state))!r}: {len(fitting)} of "
            f"{len(state)} fit",
            path=path,
        )
    model.load_state_dict(fitting, strict=False)
    missing = tuple(key for key in own if key not in fitting)
    warn_of_fresh(model, missing)
    unexpected = (*(key for key in state if key not in own), *others)
    return LoadReport(str(file), entry, tuple(key for key in own if key in fitting), missing, unexpected)


def _read(path: Path) -> Any:
    """The content of a file; no code in it is run.

    Raises:
        ValueError: it is missing or damaged, or contains more than tensors and plain values.
    """
    if not path.is_file():
        raise ValueError("there is no such file")
    if path.suffix.lower() == ".safetensors":
        try:
            from safetensors import SafetensorError
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(install_hint("safetensors", "such files")) from error
        try:
            return load_file(path)
        except SafetensorError:
            raise ValueError("it is damaged, or not a file of safetensors") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise ValueError("it is damaged, or not a file of torch.save") from None
        raise ValueError(
            f"it contains {found[1]} besides tensors, which could run code, and is not opened; if you trust the file, "
            "save only its parameters: "
            "torch.save(torch.load(file, weights_only=False)['model'], 'parameters.pth')"
        ) from None
