"""Modules whose parameters may be used without calling them."""

from typing import TypeGuard, TypeVar

from torch import nn
from torch.nn.modules import module as _global

M = TypeVar("M", bound=nn.Module)


def as_made(module: nn.Module | None, kind: type[M]) -> TypeGuard[M]:
    """Whether calling a module does what its class does, and nothing else, as far as its parameters tell.

    It is exactly of that class (a subclass may do more, as adapters do), it has no hooks and no `forward` of its own,
    and no hooks of all modules are set. A fused layer may then read its parameters; else the module is to be called.
    """
    return (
        module is not None
        and type(module) is kind
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
        and "forward" not in module.__dict__
        and not hooked_globally()
    )


def hooked_globally() -> bool:
    """Whether hooks of all modules are set."""
    return bool(
        _global._global_forward_hooks
        or _global._global_forward_pre_hooks
        or _global._global_backward_hooks
        or _global._global_backward_pre_hooks
    )
