"""Shared by all replacements: why a layer is not replaced, and how Parameters and hooks are shared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtlkit._check import FLOATS

HOOKS = (
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


class NotRecognised(Exception):  # noqa: N818 - not an error: the reason why a layer is kept
    """The reason why a layer cannot be replaced."""


def require(condition: bool, reason: str) -> None:
    """Raises NotRecognised unless the condition holds."""
    if not condition:
        raise NotRecognised(reason)


def kind(module: object) -> str:
    """Returns the name of the class, for messages."""
    return type(module).__name__


@dataclass(frozen=True)
class Plan:
    """How a layer can be replaced.

    Attributes:
        values: random parameters and buffers by name, such that every one of them affects the output.
        attempts: random inputs, the first a tensor, and the replacements that take such inputs; most likely first.
        outputs: number of tensors that the layer returns; several are returned as a tuple.
        published: whether the names of its parts determine what it computes. If the original then needs a GPU, the
            first replacement may be compared with the published formula.
    """

    values: dict[str, Tensor]
    attempts: Sequence[tuple[tuple[Any, ...], Sequence[Callable[[], "Shared"]]]]
    outputs: int = 1
    published: bool = False


class Shared(nn.Module):
    """A layer that replaces another one and holds its Parameters."""

    form: str  # description of the recognised layer
    _original: nn.Module

    @property
    def original(self) -> nn.Module:
        """The layer that this one replaces."""
        return self._original

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(
            "torch.jit.script cannot compile a layer of mtlkit: call mtlkit.restore(model) first, or torch.jit.trace "
            "the model under torch.no_grad()"
        )

    def _stand_in_for(self, original: nn.Module) -> None:
        share(original, self)
        _order(original, self)
        for hooks in HOOKS:
            setattr(self, hooks, getattr(original, hooks))  # shared, so that the handles of hooks still work
        theirs = set(original.modules())
        for part in self.modules():
            if part not in theirs:  # parts that both hold keep their modes
                part.training = original.training
        self.__dict__["_original"] = original  # not registered: absent from state dicts and parameters()


def check_parameters(module: nn.Module, expected: set[str], needed: set[str], what: str) -> None:
    """Raises NotRecognised unless all needed and only expected parameters exist, plain ones on one device."""
    found = dict(module.named_parameters(remove_duplicate=False))
    further = sorted(found.keys() - expected)
    require(not further, f"it has parameters that {what} has not: {', '.join(further)}")
    missing = sorted(needed - found.keys())
    require(not missing, f"it lacks parameters, or computes them: {', '.join(missing)}")
    for name, parameter in found.items():
        plain = type(parameter) is nn.Parameter and parameter.layout == torch.strided and parameter.dtype in FLOATS
        shown = f"{kind(parameter)} of {parameter.dtype}"
        require(plain, f"{name} is a {shown}, not a plain floating-point Parameter")
    devices = sorted({str(parameter.device) for parameter in found.values()})
    require(len(devices) == 1, f"its parameters are on several devices: {', '.join(devices)}")


def check_part(name: str, part: nn.Module) -> None:
    """Raises NotRecognised if a part has something that a fused layer would ignore."""
    quantised = "quantized" in type(part).__module__
    require(not quantised, f"{name} is quantised ({type(part).__module__}.{kind(part)})")
    require(not any(part.children()), f"{name} has parts of its own ({kind(part)})")
    require(not any(getattr(part, hooks) for hooks in HOOKS), f"{name} has hooks, which would no longer be called")


def share(source: nn.Module, target: nn.Module) -> None:
    """Gives `target` and its children the Parameters of `source`."""
    for name, child in source.named_children():
        if (part := target._modules.get(name)) is not None:
            share(child, part)
    target._parameters.update(source._parameters)


def _order(source: nn.Module, target: nn.Module) -> None:
    """Sorts parameters and parts of `target` as in `source`, because optimizers identify parameters by position."""

    def reorder(held: dict[str, Any], by: dict[str, Any]) -> None:
        for name in [*(name for name in by if name in held), *(name for name in held if name not in by)]:
            held[name] = held.pop(name)

    reorder(target._parameters, source._parameters)
    reorder(target._modules, source._modules)
    for name, part in target.named_children():
        if (twin := source._modules.get(name)) is not None:
            _order(twin, part)
