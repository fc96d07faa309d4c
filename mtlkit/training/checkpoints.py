"""Checkpoints of a run: only tensors and plain values, so that reading them cannot run code."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from mtlkit._memory import out_of_memory
from mtlkit._output import OutputFolder
from mtlkit.errors import CheckpointError

__all__ = ["RunCheckpoints", "plain_state", "read_checkpoint"]

PARTS = ("state_dict", "loops", "callbacks", "optimizer_states", "epoch", "global_step")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint without running code in it.

    Raises:
        CheckpointError: it is missing or damaged, or contains more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: the checkpoint is missing")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        raise CheckpointError(f"{path}: the checkpoint is damaged") from None
    if not isinstance(found, dict) or any(part not in found for part in PARTS):
        raise CheckpointError(f"{path}: the checkpoint is damaged")
    return found


def plain_state(value: Any, where: str = "checkpoint") -> Any:
    """The state with only types that `read_checkpoint` accepts: dictionaries, lists, tuples, tensors and plain values.

    Raises:
        TypeError: it contains another type.

    Example:
        >>> from mtlkit.training.checkpoints import plain_state
        >>> plain_state({"rows": [{"loss": 0.5}], "size": (2, 3)})
        {'rows': [{'loss': 0.5}], 'size': (2, 3)}
    """
    if value is None or type(value) in (bool, int, float, str, Tensor):
        return value
    if isinstance(value, Tensor):
        return value.detach().as_subclass(Tensor)
    if isinstance(value, Mapping):
        return {plain_state(key, where): plain_state(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain_state(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str):  # a subclass, such as members of an enumeration
        return str.__str__(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{where}: expected tensors and plain values, got {type(value).__name__}")


def _moved(state: Any, folder: Path) -> Any:
    """The state of a callback with the current folder of its checkpoints."""
    old = state.get("dirpath") if isinstance(state, dict) else None
    return state if not isinstance(old, str) else _replaced(state, old, str(folder))


def _replaced(value: Any, old: str, new: str) -> Any:
    """A value with the prefix `old` of its strings replaced by `new`."""
    if isinstance(value, dict):
        return {_replaced(key, old, new): _replaced(item, old, new) for key, item in value.items()}
    return new + value.removeprefix(old) if isinstance(value, str) and value.startswith(old) else value


def unwritten(folder: Path) -> str:
    """Why a library could not write to a folder, if its own error does not say."""
    return "No space left on device" if shutil.disk_usage(folder).free < 2**20 else "the file is incomplete"


class RunCheckpoints(CheckpointIO):
    """Lightning's input and output of checkpoints for the folder of a run."""

    def __init__(self, place: OutputFolder) -> None:
        self.place = place

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint atomically."""
        with self.place.file(self._name(path)) as draft:
            try:
                torch.save(plain_state(checkpoint), draft)
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                raise OSError(unwritten(draft.parent)) from None
        self.place.resumable = True

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint without running code in it.

        File paths in its callbacks are changed to its current folder: otherwise Lightning would forget the best epoch
        of a run that was moved.
        """
        found = read_checkpoint(Path(path))
        if isinstance(found["callbacks"], dict):
            moved = {name: _moved(state, Path(path).parent) for name, state in found["callbacks"].items()}
            found = found | {"callbacks": moved}
        return found

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint that the run wrote."""
        self.place.remove(self._name(path))

    def _name(self, path: str | Path) -> str:
        return Path(path).relative_to(self.place.path).as_posix()
