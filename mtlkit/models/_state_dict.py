"""Finds the parameters in a checkpoint of other training code."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from mtlkit.models.pretrained import Pretrained

# Used by timm and VMamba (the average first, because they evaluate it), Lightning, VM-UNet and others.
ENTRIES = (
    "state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model", "network", "net", "module"
)  # fmt: skip
# Used by DataParallel, torch.compile, Lightning modules, VM-UNet, and VMamba as a backbone of detectors.
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.", "vmunet.", "backbone.")
COUNTERS = ("total_ops", "total_params")  # thop stores its counts in buffers, which end up in checkpoints


class Unwrapped(NamedTuple):
    """Parameters in the form that a network can load.

    Attributes:
        tensors: tensors by name; published names that the network knows are translated to its own.
        entry: entry of the checkpoint that held them, such as "model_ema"; "" for none.
        others: names of other tensors next to them.
    """

    tensors: dict[str, Tensor]
    entry: str
    others: tuple[str, ...]


def unwrapped(content: Any, model: "Pretrained") -> Unwrapped:
    """The parameters in the content of a file, without the entry and the name prefixes around them.

    A prefix is removed only if the network then knows more of the names: only the network can distinguish
    DataParallel's `module.` from a submodule of that name.

    Raises:
        ValueError: there are no parameters in it.
    """
    path: list[str] = []
    while len(path) < 8 and isinstance(content, Mapping) and not any(isinstance(v, Tensor) for v in content.values()):
        entry = next((name for name in ENTRIES if isinstance(content.get(name), Mapping)), None)
        if entry is None:
            break
        path.append(entry)
        content = content[entry]
    held = content.items() if isinstance(content, Mapping) else ()
    state = {
        name: value
        for name, value in held
        if isinstance(name, str) and isinstance(value, Tensor) and name.rpartition(".")[2] not in COUNTERS
    }
    if not state:
        raise ValueError("there are no parameters in it")
    known = model.state_dict().keys()
    stripped = max(_stripped(state), key=lambda names: len(known & model.from_published(names).keys()))
    taken = {id(value) for value in stripped.values()}
    others = tuple(name for name, value in state.items() if id(value) not in taken)
    return Unwrapped(model.from_published(stripped), ".".join(path), others)


def _stripped(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The state unchanged, then without each sequence of prefixes that occurs in its names."""
    yield state
    for prefix in PREFIXES:
        inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if inner:
            yield from _stripped(inner)
