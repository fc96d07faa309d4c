"""`mtlkit.optimize`: a copy of a network for inference in PyTorch, with fewer and faster layers."""

import copy
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mtlkit.deploy._example import example_of, named_outputs
from mtlkit.deploy._flow import Flow, is_hooked
from mtlkit.deploy._packed import DTYPES, Packed, PackedConv2d, PackedLinear, PhasedConvTranspose2d, fused_name
from mtlkit.nn import SS2D, ConvUpsample
from mtlkit.operators.pixel_conv2d import PixelConv2d
from mtlkit.operators.pixel_linear import PixelLinear
from mtlkit.testing import relative_error

LIMIT = 1e-4  # on the relative error of each output in the 2-norm, in float32
HALF_LIMIT = 0.05  # the same in bfloat16: roundings of 2^-9 in about ten layers add up to one per cent

_Model = TypeVar("_Model", bound=nn.Module)


@dataclass(frozen=True)
class Optimized:
    """What `optimize` did; `print` shows it in one line.

    Attributes:
        folded: names of the batch norms that were folded into a convolution.
        fused: names of the activations that were fused with a convolution.
        packed: names of the convolutions and linear layers whose weights are packed for oneDNN.
        phased: names of the transposed convolutions that run as one convolution per phase.
        error: largest relative error of an output against the model, in the 2-norm.

    Example:
        >>> from mtlkit.deploy import Optimized
        >>> print(Optimized(("bn1",), (), ("conv1",), (), 2e-7))
        mtlkit.optimize: 1 batch norm folded, 0 activations fused, 1 layer packed, 0 in phases; differs by 2e-07
    """

    folded: tuple[str, ...]
    fused: tuple[str, ...]
    packed: tuple[str, ...]
    phased: tuple[str, ...]
    error: float

    def __str__(self) -> str:
        parts = (
            f"{_count(self.folded, 'batch norm')} folded",
            f"{_count(self.fused, 'activation')} fused",
            f"{_count(self.packed, 'layer')} packed",
            f"{len(self.phased)} in phases",
        )
        return f"mtlkit.optimize: {', '.join(parts)}; differs by {self.error:.0e}"


def _count(names: tuple[str, ...], what: str) -> str:
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}"


@overload
def optimize(
    model: _Model,
    *,
    example: Tensor | Sequence[Tensor] | None = ...,
    dtype: torch.dtype | None = ...,
    report: Literal[False] = ...,
) -> _Model: ...
@overload
def optimize(
    model: _Model,
    *,
    example: Tensor | Sequence[Tensor] | None = ...,
    dtype: torch.dtype | None = ...,
    report: Literal[True],
) -> tuple[_Model, Optimized]: ...
def optimize(
    model: _Model,
    *,
    example: Tensor | Sequence[Tensor] | None = None,
    dtype: torch.dtype | None = None,
    report: bool = False,
) -> _Model | tuple[_Model, Optimized]:
    """Returns a copy of a network for inference in PyTorch that gives the same outputs and is faster on a CPU.

    A batch norm or activation is fused with the convolution before it if nothing else reads the values in between.
    Convolutions and linear layers keep their weights packed for oneDNN, run channels-last, and avoid PyTorch's slow
    path for small inputs. A transposed convolution of stride 2 runs as four convolutions, one for each phase. Other
    layers, and layers with hooks, do not change. Neither does the model itself. The copy is in eval mode, and its
    parameters require no gradients; for inputs that require gradients it runs as plain PyTorch. Its state dict differs
    from the model's, so save the model's.

    The first forward pass of the example finds out which layer reads which output; a second one compares the copy with
    the model.

    Args:
        model: any module, in any mode.
        example: input of the model, one tensor or several; may be None for networks of mtlkit. Its values do not
            matter, and the copy also accepts other sizes.
        dtype: torch.bfloat16 makes the copy compute in bfloat16; inputs and outputs keep the model's dtype. This is
            faster on CPUs with AVX512-BF16 or AMX, and slower on others; many times slower, with a warning, where
            oneDNN cannot run it (x86 CPUs with AVX2 alone). Outputs differ by about one per cent. None keeps the
            model's dtype.
        report: whether to return a report as well.

    Returns:
        The copy; with `report`, the copy and the report.

    Raises:
        TypeError: the model is not a module, or the example contains something other than tensors.
        ValueError: `dtype` is neither None nor torch.bfloat16; the example is missing and the model is not a network of
            mtlkit; the model does not accept the example or returns no tensor; or an output of the copy differs from
            the model's by more than 1e-4 (bfloat16: 0.05), relative in the 2-norm.

    Example:
        >>> import torch, mtlkit
        >>> model = mtlkit.models.create_model("medmamba_t", num_classes=2, depths=(1,), dims=(16,))
        >>> fast, done = mtlkit.optimize(model, report=True)
        >>> print(done.folded[0], done.error < 1e-5)
        layers.0.blocks.0.conv33conv33conv11.2 True
        >>> images = torch.rand(2, 3, 64, 64)
        >>> torch.allclose(fast(images), model.eval()(images), atol=1e-5)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if dtype not in (None, torch.bfloat16):
        raise ValueError(f"dtype: expected torch.bfloat16 or None, got {dtype}")
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    weights = next(twin.parameters(), torch.empty(0))
    if dtype is not None and dtype not in DTYPES and weights.device.type == "cpu":
        warnings.warn(f"dtype: oneDNN cannot run {dtype} on this CPU, and PyTorch's own code is slow", stacklevel=2)
    given = tuple(
        one.to(weights.device, weights.dtype if one.is_floating_point() else one.dtype)
        for one in example_of(twin, example)
    )
    with torch.no_grad():
        flow = Flow(twin, _is_known)
        try:
            expected = named_outputs(flow.run(given))
        except Exception as error:
            words = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
            raise ValueError(f"example: expected what the model takes, but it does not run ({words})") from error
        if not expected:
            raise ValueError("model: expected tensors as output, alone or in tuples and mappings; got none")
        twin, done = _Rewriting(twin, flow).run()
        if dtype is not None and dtype != weights.dtype:
            _compute_in(twin, dtype, weights.dtype)
        error = _difference(named_outputs(twin(*given)), expected)
    limit = HALF_LIMIT if dtype is not None else LIMIT if weights.dtype in (torch.float32, torch.float64) else math.inf
    if not error <= limit:
        raise ValueError(f"model: expected a copy that gives the same, got a relative error of {error:.1e}")
    return (twin, Optimized(**done, error=error)) if report else twin


def _compute_in(model: nn.Module, dtype: torch.dtype, outer: torch.dtype) -> None:
    """Converts a model to `dtype`, with hooks so that its inputs and outputs stay in `outer`."""
    model.to(dtype)
    model.register_forward_pre_hook(_Cast(dtype, outer).inputs, with_kwargs=True)
    model.register_forward_hook(_Cast(dtype, outer).outputs)


@dataclass(frozen=True)
class _Cast:
    """Hooks that convert dtypes; a class, so that they can be copied and pickled."""

    inner: torch.dtype
    outer: torch.dtype

    def inputs(self, _module: nn.Module, given: Any, named: Any) -> Any:
        return tree_map(lambda one: _in_dtype(one, self.inner), (given, named))

    def outputs(self, _module: nn.Module, _given: Any, output: Any) -> Any:
        return tree_map(lambda one: _in_dtype(one, self.outer), output)


def _in_dtype(one: Any, dtype: torch.dtype) -> Any:
    return one.to(dtype) if isinstance(one, Tensor) and one.is_floating_point() else one


def _difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    pairs = zip(found.values(), expected.values(), strict=True)
    errors = [relative_error(got, exact) if got.shape == exact.shape else math.inf for got, exact in pairs]
    return max(math.inf if math.isnan(one) else one for one in errors)


# --- kinds of layers --------------------------------------------------------------------------------------------------


def _timm(name: str) -> Any:
    """Returns a layer class of timm if timm is loaded, else a class without instances."""
    return getattr(sys.modules.get("timm.layers"), name, _Nothing)


class _Nothing:
    pass


def _is_conv(layer: nn.Module) -> bool:
    known = type(layer) in (nn.Conv2d, PixelConv2d, _timm("Conv2dSame"))
    return known and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _is_transposed(layer: nn.Module) -> bool:
    return type(layer) in (nn.ConvTranspose2d, ConvUpsample)


def _is_linear(layer: nn.Module) -> bool:
    return type(layer) in (nn.Linear, PixelLinear)


def _is_norm(layer: nn.Module) -> bool:
    known = type(layer) in (nn.BatchNorm2d, _timm("BatchNormAct2d"))
    return known and layer.running_mean is not None and isinstance(getattr(layer, "drop", nn.Identity()), nn.Identity)


def _is_activation(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith("torch.nn.") and fused_name(layer) is not None


def _is_known(layer: nn.Module) -> bool:
    """Returns whether to watch a layer; SS2D is watched as a whole, because it runs in one call."""
    kinds = _is_conv, _is_transposed, _is_linear, _is_norm, _is_activation
    return isinstance(layer, SS2D) or any(is_one(layer) for is_one in kinds)


# --- rewriting --------------------------------------------------------------------------------------------------------


class _Rewriting:
    """A copy that is being rewritten."""

    def __init__(self, model: nn.Module, flow: Flow) -> None:
        self.model, self.flow = model, flow
        self.names = {module: name for name, module in model.named_modules()}
        self.new: dict[nn.Module, nn.Module] = {}
        self.done: dict[str, list[str]] = {"folded": [], "fused": [], "packed": [], "phased": []}

    def run(self) -> tuple[Any, dict[str, tuple[str, ...]]]:
        """Returns the rewritten model, and the names of its layers by what was done to them."""
        packs = torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
        for layer in list(self.flow.calls):
            if _is_conv(layer) or _is_transposed(layer):
                self._convolution(layer, packs)
            elif _is_linear(layer) and packs and _on_cpu(layer):
                self._take("packed", layer, PackedLinear(layer))
        found = self.new.get(self.model, self.model)
        places = [(parent, name, child) for parent in found.modules() for name, child in parent._modules.items()]
        for parent, name, child in places:
            if child is not None and child in self.new:
                parent.register_module(name, self.new[child])
        return found, {key: tuple(names) for key, names in self.done.items()}

    def _convolution(self, layer: Any, packs: bool) -> None:
        following = self.flow.next_of(layer)
        norm = following if following is not None and _is_norm(following) else None
        if norm is not None:
            _fold(layer, norm)
        activation, rest = self._activation(layer, norm)
        new: Packed | None = None
        if packs and _on_cpu(layer):
            if _is_conv(layer):
                new = PackedConv2d(layer, same=type(layer) is _timm("Conv2dSame"))
                self._take("packed", layer, new)
            elif PhasedConvTranspose2d.can_serve(layer):
                new = PhasedConvTranspose2d(layer, crop=int(type(layer) is ConvUpsample))
                self._take("phased", layer, new)
        if new is not None and activation is not None:
            new.fuse(activation)
            self.done["fused"].append(self.names[activation])
            if rest is not None and rest is not norm:
                self.new[rest] = _identity()
        if norm is not None:
            alone = getattr(norm, "act", _identity())
            self._take("folded", norm, _identity() if new is not None and rest is norm else alone)

    def _activation(self, layer: nn.Module, norm: nn.Module | None) -> tuple[nn.Module | None, nn.Module | None]:
        """Returns the activation after a convolution, and the layer that applies it: itself or the batch norm."""
        own = getattr(norm, "act", None)
        if own is not None and not isinstance(own, nn.Identity):
            return (own, norm) if _is_activation(own) and not is_hooked(own) else (None, None)
        following = self.flow.next_of(layer if norm is None else norm)
        return (following, following) if following is not None and _is_activation(following) else (None, None)

    def _take(self, what: str, layer: nn.Module, new: nn.Module) -> None:
        self.new[layer] = new
        self.done[what].append(self.names[layer])


def _identity() -> nn.Module:
    return nn.Identity().eval()


def _on_cpu(layer: Any) -> bool:
    return layer.weight.device.type == "cpu"


def _fold(layer: Any, norm: Any) -> None:
    """Folds a batch norm into the weight and bias of the convolution before it."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = (0 if layer.bias is None else layer.bias.double()) - norm.running_mean.double()
    shift = shift * scale + (0 if norm.bias is None else norm.bias.double())
    weight = layer.weight.double()
    if isinstance(layer, nn.ConvTranspose2d):  # (I, O / groups, k, k)
        weight = weight.unflatten(0, (layer.groups, -1)) * scale.view(layer.groups, 1, -1, 1, 1)
        weight = weight.flatten(0, 1)
    else:
        weight = weight * scale.view(-1, 1, 1, 1)
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
    layer.bias = nn.Parameter(shift.to(layer.weight.dtype), requires_grad=False)
