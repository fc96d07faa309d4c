"""Published checkpoints of MedMamba, VMamba and VM-UNet, read as tensors alone and mapped onto mtlkit's networks."""

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
    """What `load_published` took from a file; `print` shows it.

    Attributes:
        file: where from.
        entry: the entry of the file that held the parameters, such as "model_ema"; "" if they lie in it directly.
        used: the network's tensors that were loaded.
        missing: those that the file does not have, or has for another number of classes; they keep their values.
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
    """Loads a published checkpoint into a network: MedMamba's, VMamba's or VM-UNet's, or one of mtlkit's own state.

    What training code saves around the parameters is recognised: entries such as "model", "state_dict" and
    "model_ema" (averages first), and prefixes of names such as DataParallel's "module." and Lightning's "model.". The
    names of publications become the network's own. A head for another number of classes stays as it is, and VMamba's
    first version loads into both halves of a VM-UNet, as its authors start from it; a warning names what is fresh.

    Only tensors and plain values are read: nothing in the file can run code.

    Args:
        model: the network, in the sizes of the file.
        file: of torch.save (.pth, .pt, .ckpt), or of safetensors.

    Returns:
        Which tensors were used, which are missing and which are unexpected; `print` shows it.

    Raises:
        TypeError: `model` is not a network of mtlkit.
        CheckpointError: there is no such file, it is damaged, it holds more than tensors and plain values, or nothing
            in it is of this network; the network is unchanged.

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
                "network in the sizes of the file",
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
    """What a file holds; nothing in it is run.

    Raises:
        ValueError: it is missing, is damaged, or holds more than tensors and plain values.
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
            f"it holds {found[1]} among its tensors, and is not opened, as that could run code; if you trust the file, "
            "save its parameters alone: "
            "torch.save(torch.load(file, weights_only=False)['model'], 'parameters.pth')"
        ) from None
