"""`mtlkit.accelerate`: replaces layers of any model by mtlkit's, which hold the same Parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar, overload

from torch import nn

from mtlkit._accelerate import _cores, _depthwise, _levels, _mamba, _ss2d
from mtlkit._accelerate._compare import Match, compare
from mtlkit._accelerate._share import NotRecognised, Plan, Shared, kind, require, share
from mtlkit.nn import SS2D, InteractionLevel, Mamba, TaskInteraction

_Model = TypeVar("_Model", bound=nn.Module)

# --- report -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replaced:
    """A replaced layer.

    Attributes:
        name: path of the layer in the model.
        kind: class of the original layer.
        form: description of the recognised layer.
        error: relative difference of the two layers' outputs on random input; None if they were not compared.
        formula: whether the new layer was compared with the published formula, because the original needs a GPU.
    """

    name: str
    kind: str
    form: str
    error: float | None
    formula: bool = False


@dataclass(frozen=True)
class Left:
    """A layer that resembles one that mtlkit replaces, but was not replaced.

    Attributes:
        name: path of the layer in the model.
        kind: class of the layer.
        reason: why it was not replaced.
    """

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The result of `accelerate`; `print` shows it as a table.

    Attributes:
        replaced: the replaced layers.
        left: similar layers that were not replaced, each with the reason.
        already: paths of layers that were mtlkit's before the call.
    """

    replaced: tuple[Replaced, ...]
    left: tuple[Left, ...]
    already: tuple[str, ...]

    def __str__(self) -> str:
        head = f"mtlkit.accelerate: {len(self.replaced)} replaced, {len(self.left)} left alone"
        if self.already:
            head += f", {len(self.already)} mtlkit's already"
        if not (self.replaced or self.left or self.already):
            return f"{head}: the model has no layer that mtlkit replaces"
        rows = [("replaced", r.name, r.kind, _with_error(r)) for r in self.replaced]
        rows += [("left", entry.name, entry.kind, entry.reason) for entry in self.left]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        lines = ("  ".join([*map(str.ljust, row[:3], widths), row[3]]) for row in rows)
        return "\n".join([head, *(f"  {line}" for line in lines)])


def _with_error(entry: Replaced) -> str:
    if entry.error is None:
        return f"{entry.form}; not compared"
    what = " from the formula, as its own code needs a GPU," if entry.formula else ""
    return f"{entry.form}; differs{what} by {entry.error:.0e}"


# --- public -----------------------------------------------------------------------------------------------------------


@overload
def accelerate(model: nn.Module, *, strict: bool = ..., report: Literal[True] = ..., check: bool = ...) -> Report: ...
@overload
def accelerate(model: _Model, *, strict: bool = ..., report: Literal[False], check: bool = ...) -> _Model: ...
@overload
def accelerate(
    model: nn.Module, *, strict: bool = ..., report: bool = ..., check: bool = ...
) -> Report | nn.Module: ...
def accelerate(
    model: nn.Module, *, strict: bool = False, report: bool = True, check: bool = True
) -> Report | nn.Module:
    """Replaces the scans of a model, and every level of task interaction, by mtlkit's, in place.

    By parameters and shapes it recognises the SS2D layers of MedMamba, VM-UNet, VMamba and networks derived from them,
    in any published scan order; the blocks of Mamba, Vim and similar networks; and the scans of SegMAN, MambaIRv2,
    MSVMamba and Sigma. By the names of their parts, which mtlkit.nn.InteractionLevel uses too, it recognises TIM, and
    TIM with UPA. On a CPU it also replaces depthwise convolutions of 3 x 3, 5 x 5 and 7 x 7, most of which train
    several times slower in PyTorch; the new ones keep the memory format of their input.

    The new layers hold the same Parameter objects under the same names and in the same order, so that optimizers, state
    dicts, exponential averages, and tied and frozen weights keep working. They also keep the hooks, training mode,
    device and dtype of the original layers. Nothing else in the model changes, and a second call does nothing.

    Call it before torch.compile, FSDP and TorchScript, which capture the model.

    Args:
        model: any module. A module that is itself an SS2D is not replaced, because it has no parent.
        strict: whether to raise an error, with the model unchanged, if nothing is found or a similar layer cannot be
            replaced.
        report: whether to return the report; otherwise the model is returned.
        check: whether to compare each layer with its replacement on a small random image, and to keep the original if
            the two disagree or the original does not run. If False, only the structure decides.

    Returns:
        The report, or the model with `report=False`.

    Raises:
        TypeError: `model` is not a module.
        ValueError: with `strict`, nothing was found, or a similar layer was not replaced.

    Example:
        >>> import mtlkit
        >>> model = mtlkit.models.create_model("medmamba_t", depths=(1,), dims=(16,))
        >>> print(mtlkit.accelerate(model))  # a model of mtlkit's own has nothing to replace
        mtlkit.accelerate: 0 replaced, 0 left alone, 1 mtlkit's already
    """
    _check_model(model)
    replacements: dict[nn.Module, Shared] = {}
    replaced, left, already, done = list[Replaced](), list[Left](), list[str](), list[str]()
    for name, module in model.named_modules():
        if name.startswith(tuple(done)):
            continue  # part of a layer that has been handled
        recogniser = next((r for r in (_cores, _ss2d, _mamba, _levels, _depthwise) if r.resembles(module)), None)
        if recogniser is _depthwise and name.startswith(tuple(f"{entry.name}." for entry in left)):
            continue  # parts of a layer that is not replaced are not replaced either
        if isinstance(module, SS2D | Mamba | InteractionLevel | TaskInteraction | Shared):
            already.append(name)
            done.append(f"{name}.")
        elif recogniser is not None:
            try:
                require(name != "", "it is the model itself and has no parent: pass the module that contains it")
                sharded = any(kind(parameter) == "DTensor" for parameter in module.parameters())
                require(not sharded, "it is sharded; accelerate the model before sharding it")
                match = _replacement(module, recogniser.plan(module), check)
            except NotRecognised as reason:
                left.append(Left(name, kind(module), str(reason)))
            else:
                replacements[module] = match.ours
                replaced.append(Replaced(name, kind(module), match.ours.form, match.error, match.formula))
                done.append(f"{name}.")
    result = Report(tuple(replaced), tuple(left), tuple(already))
    if strict and (left or not (replaced or already)):
        raise ValueError(f"model: with strict=True, nothing was replaced\n{result}")
    _swap(model, replacements)
    return result if report else model


def restore(model: nn.Module) -> list[str]:
    """Undoes `accelerate`: restores the original layers, with the current Parameters, hooks and mode.

    Args:
        model: any module.

    Returns:
        The paths of the restored layers.

    Raises:
        TypeError: `model` is not a module.

    Example:
        >>> import torch, mtlkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> _ = mtlkit.accelerate(model)
        >>> mtlkit.restore(model)  # nothing had been replaced
        []
    """
    _check_model(model)
    names, originals = list[str](), dict[nn.Module, nn.Module]()
    for name, module in model.named_modules():
        if isinstance(module, Shared) and name:
            original = originals[module] = module.original
            share(module, original)
            original.train(module.training)
            names.append(name)
    _swap(model, originals)
    return names


def _replacement(module: nn.Module, plan: Plan, check: bool) -> Match:
    if check:
        return compare(module, plan)
    _, makers = plan.attempts[0]
    return Match(makers[0](), None)


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")


def _swap(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Puts each replacement wherever its module is registered."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
