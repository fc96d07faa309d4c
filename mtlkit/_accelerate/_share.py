"""What every kind of replaced layer needs: why one is left alone, and how Parameters and hooks are shared."""

from torch import nn

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


def share(source: nn.Module, target: nn.Module) -> None:
    """Gives `target` and its children the Parameters of `source`."""
    for name, child in source.named_children():
        if name in target._modules:
            share(child, target._modules[name])
    target._parameters.update(source._parameters)


def share_hooks(source: nn.Module, target: nn.Module) -> None:
    """Gives `target` the hooks of `source`, the very dictionaries, so that handles can still remove them."""
    for hooks in HOOKS:
        setattr(target, hooks, getattr(source, hooks))


def order(source: nn.Module, target: nn.Module) -> None:
    """Puts parameters and children of `target` in the order of `source`, in which optimizers count them."""
    for held, by in ((target._parameters, source._parameters), (target._modules, source._modules)):
        for name in [*(name for name in by if name in held), *(name for name in held if name not in by)]:
            held[name] = held.pop(name)
