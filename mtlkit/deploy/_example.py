"""Example inputs of a network, and the names of its inputs and outputs."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlkit.models.network import takes

SIDES = 96, 64  # height and width of the example images


def example_of(model: nn.Module, example: Tensor | Sequence[Tensor] | None) -> tuple[Tensor, ...]:
    """Returns the example, or one made for mtlkit's networks, on the CPU; a batch of 1 is doubled.

    torch.export would treat a batch of 1 as a constant.
    """
    given = _known_example(model) if example is None else (example,) if isinstance(example, Tensor) else tuple(example)
    for i, one in enumerate(given):
        if not isinstance(one, Tensor) or one.dim() < 1:
            got = tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__
            raise TypeError(f"example: expected tensors of a batch, got {got} as number {i + 1}")
    if not given:
        raise ValueError("example: expected at least one tensor, got none")
    given = tuple(one.detach().cpu().float() if one.is_floating_point() else one.detach().cpu() for one in given)
    return tuple(torch.cat([one, one]) for one in given) if given[0].shape[0] == 1 else given


def _known_example(model: nn.Module) -> tuple[Tensor, ...]:
    """Makes random inputs for a network of mtlkit, by the names of its arguments."""
    options: Any = getattr(model, "options", None)
    channels, side = getattr(options, "in_chans", None), getattr(options, "image_size", None)
    height, width = SIDES if side is None else (side, side)
    names = takes(model) if isinstance(channels, int) else ()
    if not names or not set(names) <= {"images", "masks", "views", "present"}:
        raise ValueError("example: expected a tensor, or several, as the model does not say what it takes; got None")
    masks = torch.zeros(2, 1, height, width)
    masks[:, :, height // 4 : height // 2, width // 4 : width // 2] = 1
    known = {"masks": masks, "present": torch.ones(2, 4, dtype=torch.bool)}
    generator = torch.Generator().manual_seed(0)
    known["views"] = torch.rand(2, 4, channels or 1, height, width, generator=generator)
    known["images"] = known["views"][:, 0]
    return tuple(known[name] for name in names)


def input_names(model: nn.Module) -> list[str]:
    """Returns the names of the arguments of forward."""
    return list(inspect.signature(model.forward).parameters)


def named_outputs(output: Any, name: str = "") -> dict[str, Tensor]:
    """Flattens an output into its tensors; a name joins the keys and indices that lead to the tensor."""
    if isinstance(output, Tensor):
        return {name or "output": output}
    if hasattr(output, "_asdict"):
        output = output._asdict()
    if isinstance(output, Mapping):
        parts = output.items()
    elif isinstance(output, list | tuple):
        parts = ((f"{i}" if name else f"output_{i}", part) for i, part in enumerate(output))
    else:
        return {}
    joined = ((f"{name}_{key}" if name else str(key), part) for key, part in parts)
    return {key: tensor for place, part in joined for key, tensor in named_outputs(part, place).items()}
