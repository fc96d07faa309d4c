"""Modules whose parameters may be used without calling them."""

from typing import TypeGuard, TypeVar

from torch import nn
from torch.nn.modules import module as _global

M = TypeVar("M", bound=nn.Module)


def as_made(module: nn.Module | None, kind: type[M]) -> TypeGuard[M]:
    """Returns whether calling a module does exactly what its class does with its parameters.

    The module must be an instance of this class and not of a subclass (adapters subclass), without hooks or a patched
    `forward`, and there must be no global hooks. Only then may a fused layer read its parameters instead of calling it.
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
    """Returns whether global module hooks are set."""
    return bool(
        _global._global_forward_hooks
        or _global._global_forward_pre_hooks
        or _global._global_backward_hooks
        or _global._global_backward_pre_hooks
    )
