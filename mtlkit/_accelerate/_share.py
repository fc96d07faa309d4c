"""What every kind of replaced layer needs: why one is left alone, and how Parameters and hooks are shared."""

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


class NotRecognised(Exception):  # noqa: N818 - no error: the layer is left alone for this reason
    """Why a layer cannot be replaced."""


def require(condition: bool, reason: str) -> None:
    """Raises NotRecognised unless the condition holds."""
    if not condition:
        raise NotRecognised(reason)


def kind(module: object) -> str:
    """Its class, for messages."""
    return type(module).__name__


@dataclass(frozen=True)
class Plan:
    """How a layer can be replaced.

    Attributes:
        values: random parameters and buffers, by name, with which every one of them shows in the output.
        attempts: random inputs, the first a tensor, and the replacements that take such inputs; likeliest first.
        outputs: tensors that the layer returns; more than one come as a tuple.
        published: whether its names alone tell what it computes, so that, where the original needs a GPU, the first
            replacement may be compared with its formula.
    """

    values: dict[str, Tensor]
    attempts: Sequence[tuple[tuple[Any, ...], Sequence[Callable[[], "Shared"]]]]
    outputs: int = 1
    published: bool = False


class Shared(nn.Module):
    """A layer in the place of another one, whose Parameters it holds."""

    form: str  # what was recognised, in words
    _original: nn.Module

    @property
    def original(self) -> nn.Module:
        """The layer that this one stands in for."""
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
            setattr(self, hooks, getattr(original, hooks))  # the very same, so that their handles can still remove them
        theirs = set(original.modules())
        for part in self.modules():
            if part not in theirs:  # parts that both hold keep their modes
                part.training = original.training
        self.__dict__["_original"] = original  # beside the registered modules: no part of state dicts or parameters()


def check_parameters(module: nn.Module, expected: set[str], needed: set[str], what: str) -> None:
    """Raises NotRecognised unless the parameters are plain ones on one device, all needed and no unexpected ones."""
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
    """Raises NotRecognised unless a part has nothing that a fused layer would pass over."""
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
    """Puts parameters and parts of `target` in the order of `source`, in which optimizers count them."""

    def reorder(held: dict[str, Any], by: dict[str, Any]) -> None:
        for name in [*(name for name in by if name in held), *(name for name in held if name not in by)]:
            held[name] = held.pop(name)

    reorder(target._parameters, source._parameters)
    reorder(target._modules, source._modules)
    for name, part in target.named_children():
        if (twin := source._modules.get(name)) is not None:
            _order(twin, part)
