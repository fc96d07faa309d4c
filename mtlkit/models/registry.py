"""The registry of models by name."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import nn

from mtlkit._text import did_you_mean


@dataclass(frozen=True)
class _Entry:
    make: type[nn.Module]
    options: Any


_MODELS: dict[str, _Entry] = {}

_Class = TypeVar("_Class", bound=type[nn.Module])


def register(name: str, options: Any) -> Callable[[_Class], _Class]:
    """Class decorator that registers a network under `name`, with `options` as its defaults.

    Args:
        name: lower case, unique.
        options: a frozen dataclass, the first argument of the class.

    Raises:
        ValueError: the name is taken.

    Example:
        >>> from dataclasses import dataclass
        >>> import torch, mtlkit
        >>> @dataclass(frozen=True)
        ... class LinearOptions:
        ...     num_classes: int = 2
        >>> @mtlkit.models.register("doc_linear", LinearOptions())
        ... class Linear(torch.nn.Linear):
        ...     def __init__(self, options, device=None, dtype=None):
        ...         super().__init__(4, options.num_classes, device=device, dtype=dtype)
        >>> mtlkit.models.create_model("doc_linear", num_classes=7).out_features
        7
        >>> mtlkit.models.unregister("doc_linear")
    """
    if name in _MODELS:
        raise ValueError(f"name: {name!r} is registered already")

    def add(network: _Class) -> _Class:
        _MODELS[name] = _Entry(network, options)
        return network

    return add


def unregister(name: str) -> None:
    """Removes a model from the registry.

    Raises:
        ValueError: there is no such model.

    Example:
        >>> from mtlkit.models import MedMamba, MedMambaOptions, list_models, register, unregister
        >>> _ = register("my_medmamba", MedMambaOptions(num_classes=2))(MedMamba)
        >>> unregister("my_medmamba")
        >>> "my_medmamba" in list_models()
        False
    """
    _entry(name)
    del _MODELS[name]


def list_models() -> list[str]:
    """The names of all registered models, sorted.

    Example:
        >>> import mtlkit
        >>> "medmamba_t" in mtlkit.models.list_models()
        True
    """
    return sorted(_MODELS)


def create_model(
    name: str,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Module:
    """Creates a network with newly initialised parameters.

    Args:
        name: one of `list_models()`.
        device: device of the parameters.
        dtype: dtype of the parameters.
        **options: options of the network that differ from the defaults of `name`.

    Raises:
        ValueError: there is no such model or option; the message lists the available ones.

    Example:
        >>> import torch, mtlkit
        >>> model = mtlkit.models.create_model("medmamba_t", num_classes=2).eval()
        >>> model(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 2])
    """
    entry, known = _entry(name), option_names(name)
    for option in options:
        if option not in known:
            raise ValueError(
                f"{option}: {name} has no such option{did_you_mean(option, known)}; it has: {', '.join(known)}"
            )
    return entry.make(replace(entry.options, **options), device=device, dtype=dtype)


def default_options(name: str) -> Any:
    """The default options of the network of that name, a dataclass.

    Raises:
        ValueError: there is no such model.
    """
    return _entry(name).options


def option_names(name: str) -> list[str]:
    """The names of the options of the network of that name.

    Raises:
        ValueError: there is no such model.
    """
    return [field.name for field in fields(default_options(name))]


def network_named(name: str) -> type[nn.Module]:
    """The network class of that name.

    Raises:
        ValueError: no registered network has this class.
    """
    classes = {entry.make.__name__: entry.make for entry in _MODELS.values()}
    if name not in classes:
        raise ValueError(
            f"model: there is no network {name!r}{did_you_mean(name, classes)}; there are: {', '.join(classes)}"
        )
    return classes[name]


def options_type(network: type[nn.Module]) -> type[Any]:
    """The dataclass of a network's options.

    Raises:
        ValueError: the network is not registered.
    """
    for entry in _MODELS.values():
        if entry.make is network:
            return type(entry.options)
    raise ValueError(f"model: {network.__name__} is not registered; register it with mtlkit.models.register")


def _entry(name: str) -> _Entry:
    if name not in _MODELS:
        known = list_models()
        raise ValueError(f"name: there is no model {name!r}{did_you_mean(name, known)}; there are: {', '.join(known)}")
    return _MODELS[name]
