"""The parameters within what training code saves around them."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from mtlkit.models.pretrained import Pretrained

# Of timm and VMamba (the average first, which is what they evaluate), Lightning, VM-UNet and others.
ENTRIES = (
    "state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model", "network", "net", "module"
)  # fmt: skip
# Of DataParallel, torch.compile, Lightning modules, VM-UNet, and VMamba as a backbone of detectors.
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.", "vmunet.", "backbone.")
COUNTERS = ("total_ops", "total_params")  # thop counts operations in buffers, which end up in checkpoints


class Unwrapped(NamedTuple):
    """Parameters as a network may load them.

    Attributes:
        tensors: by name, in the network's own names as far as it knows the published ones.
        entry: what they were within, such as "model_ema"; "" for nothing.
        others: names of tensors that were beside them.
    """

    tensors: dict[str, Tensor]
    entry: str
    others: tuple[str, ...]


def unwrapped(content: Any, model: "Pretrained") -> Unwrapped:
    """The parameters in a file's content, however wrapped: an entry of a dictionary, and prefixes of names.

    Prefixes are taken off as far as the network then knows more names; without the network nothing tells `module.` of
    DataParallel from a part of that name.

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
    """The state as it is, then without each sequence of prefixes that names in it have."""
    yield state
    for prefix in PREFIXES:
        inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if inner:
            yield from _stripped(inner)
