"""Grad-CAM: which regions of an image determine the class.

With y the logit of a class and A (C, h, w) a feature map that the classifier uses,

    alpha_k = 1/(h w) sum_ij dy / dA_kij
    map     = ReLU(sum_k alpha_k A_k), resized bilinearly to the image

Source: Selvaraju et al., "Grad-CAM: Visual explanations from deep networks via gradient-based localization"
(arXiv 1610.02391), equations 1 and 2.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit.models.network import ClassMap

__all__ = ["GradCam", "grad_cam"]


class GradCam(NamedTuple):
    """The result of `grad_cam`.

    Example:
        >>> import torch
        >>> from mtlkit.evaluation import GradCam
        >>> GradCam({"image": torch.zeros(1, 8, 8)}, torch.tensor([2]), torch.tensor([0.7])).classes.tolist()
        [2]
    """

    maps: dict[str, Tensor]  # (B, H, W) each, float32, at least 0: by expert, view, or "image"
    classes: Tensor  # (B,), int64: the class that each row was asked about
    logits: Tensor  # (B,), float32: of that class


def grad_cam(
    network: nn.Module,
    *inputs: Any,
    target: int | Tensor | None = None,
    output: str | None = None,
    side: int | None = None,
    maps: Sequence[ClassMap] | None = None,
) -> GradCam:
    """The regions of an image that increase the logit of a class (Grad-CAM).

    CSA-MoE-Net has a map for each expert, the four-view networks one for each view, MBDI and BTI-Net one. The maps of
    an image have the same unit and can be compared: an expert with a low gate has a faint map. The network runs in eval
    mode; its parameters, gradients, running statistics and modes do not change, and its parameters need not require
    gradients.

    Args:
        network: a network of `mtlkit.models`, or any other with `maps`.
        inputs: arguments of its forward; the first has the images, (B, C, H, W) or (B, views, C, H, W).
        target: the class, or one per row, (B,); by default the one with the largest logit.
        output: name of the logits in the network's output, (B, K) or (B, 2, K); by default the first of "cls_logits",
            "label_logits" and "birads_logits" that exists; None if the network returns a single tensor.
        side: for logits (B, 2, K), 0 for the left breast and 1 for the right one.
        maps: the feature maps; by default the network's `class_maps`.

    Returns:
        The maps in the size of the images, the class of each row, and its logit.

    Raises:
        ValueError: there are no such logits, class, side or maps, or the class does not depend on a map.
        FloatingPointError: a map is NaN or infinite.

    Source: arXiv 1610.02391.

    Example:
        >>> import torch, mtlkit
        >>> from mtlkit.evaluation import grad_cam
        >>> network = mtlkit.models.create_model("csa_moe").eval()
        >>> images, masks = torch.rand(2, 3, 64, 64), torch.zeros(2, 1, 64, 64)
        >>> masks[:, :, 20:50, 20:50] = 1
        >>> found = grad_cam(network, images, masks, target=1)
        >>> {name: tuple(one.shape) for name, one in found.maps.items()}
        {'image': (2, 64, 64), 'tumor': (2, 64, 64), 'boundary': (2, 64, 64)}
    """
    layers = tuple(getattr(network, "class_maps", ()) if maps is None else maps)
    if not layers:
        words = f"as {type(network).__name__} does not declare class_maps"
        raise ValueError(f"maps: expected at least one ClassMap, {words}")
    if any(parameter.is_inference() for parameter in network.parameters()):
        raise ValueError("network: expected parameters created outside torch.inference_mode(), which has no gradients")
    with torch.inference_mode(False), torch.enable_grad(), _at_rest(network), _watched(layers) as seen:
        logits = _logits(network(*map(_usable, inputs)), output, side)  # (B, K)
        classes = _classes(target, logits)  # (B,)
        chosen = logits.gather(1, classes[:, None])[:, 0]  # (B,)
        if missing := [one for one in layers if one.module not in seen]:
            raise ValueError(
                f"maps: expected modules that the network runs, got the unused one of {', '.join(missing[0].names)}"
            )
        features = [seen[one.module] for one in layers]
        gradients = _gradients(chosen, features, apart=getattr(network, "depends_on_batch", False))
    size, found = _size(inputs[0]), dict[str, Tensor]()
    for one, feature, gradient in zip(layers, features, gradients, strict=True):
        if gradient is None:
            raise ValueError(
                f"maps: expected maps that the class depends on, which is not so for {', '.join(one.names)}"
            )
        found |= zip(one.names, _maps(one, feature, gradient, len(chosen), size), strict=True)
    if not all(value.isfinite().all() for value in found.values()):
        raise FloatingPointError("the network's output, or its gradient, is NaN or infinite")
    return GradCam(found, classes.detach(), chosen.detach().float())


@contextmanager
def _at_rest(network: nn.Module) -> Iterator[None]:
    """Puts the network in eval mode without parameters that require gradients, inside the block."""
    modes = [(module, module.training) for module in network.modules()]
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for module, _ in modes:
            module.training = False
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in learning:
            parameter.requires_grad_()


@contextmanager
def _watched(layers: Sequence[ClassMap]) -> Iterator[dict[nn.Module, Tensor]]:
    """Collects the maps of the network's modules, with gradients, inside the block."""
    seen: dict[nn.Module, Tensor] = {}

    def see(module: nn.Module, given: Any, made: Any) -> Any:
        several = isinstance(made, tuple | list)
        last: Any = made[-1] if several and made else made
        if not isinstance(last, Tensor) or last.dim() != 4:
            shape = f"shape {tuple(last.shape)}" if isinstance(last, Tensor) else type(last).__name__
            raise ValueError(f"maps: expected a module that returns a map (B, C, h, w), got {shape}")
        if module in seen:
            raise ValueError("maps: expected modules that run once per batch, got one that runs several times")
        seen[module] = last if last.requires_grad else last.detach().requires_grad_()
        used = seen[module].clone()  # later layers may write to it in place
        return (*made[:-1], used) if several else used

    handles = [module.register_forward_hook(see) for module in dict.fromkeys(one.module for one in layers)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _usable(given: Any) -> Any:
    """An input that can be saved for gradients; tensors made in inference mode cannot."""
    if isinstance(given, Mapping):
        return {name: _usable(value) for name, value in given.items()}
    return given.clone() if isinstance(given, Tensor) and given.is_inference() else given


def _size(images: Any) -> tuple[int, int]:
    """(H, W) of images or views."""
    first = next(iter(images.values())) if isinstance(images, Mapping) else images
    return first.shape[-2], first.shape[-1]


def _logits(found: Any, name: str | None, side: int | None) -> Tensor:
    """The logits (B, K) in a network's output."""
    if isinstance(found, Tensor):
        if name is not None:
            raise ValueError(f"output: expected None for a network that returns one tensor, got {name!r}")
        logits = found
    else:
        fields = [field for field in getattr(found, "_fields", ()) if field.endswith("_logits") and field[:3] != "seg"]
        known = [field for field in fields if getattr(found, field) is not None]
        if not known or (name is not None and name not in known):
            expected = ", ".join(known) or "a network that returns logits of classes"
            raise ValueError(f"output: expected {expected}, got {type(found).__name__ if name is None else repr(name)}")
        logits = getattr(found, name or known[0])
    if logits.dim() == 3:
        if side not in range(logits.shape[1]):
            raise ValueError(f"side: expected 0 for the left or 1 for the right breast, got {side}")
        return logits[:, side]
    if side is not None:
        raise ValueError(f"side: expected None, as there is one prediction per image, got {side}")
    if logits.dim() != 2:
        raise ValueError(f"output: expected logits (B, K), got shape {tuple(logits.shape)}")
    return logits


def _classes(target: int | Tensor | None, logits: Tensor) -> Tensor:
    """The class of each row, (B,)."""
    rows, count = logits.shape
    if target is None:
        return logits.argmax(1)
    classes = torch.as_tensor(target, device=logits.device)
    if classes.dtype.is_floating_point or classes.dtype == torch.bool or classes.shape not in ((), (rows,)):
        raise ValueError(f"target: expected a class, or one for each of {rows} rows, got {target}")
    if not all(0 <= one < count for one in classes.flatten().tolist()):
        raise ValueError(f"target: expected classes from 0 to {count - 1}, got {target}")
    return classes.long().expand(rows)


def _gradients(chosen: Tensor, features: Sequence[Tensor], *, apart: bool) -> Sequence[Tensor | None]:
    """The gradient of each row's logit by its own features; `apart` if rows of a batch depend on each other."""
    if not chosen.requires_grad:
        return [None] * len(features)
    if not apart or len(chosen) < 2:
        return torch.autograd.grad(chosen.sum(), features, allow_unused=True)
    found: list[list[Tensor | None]] = [[] for _ in features]
    for row in range(len(chosen)):
        each = torch.autograd.grad(chosen[row], features, allow_unused=True, retain_graph=True)
        for rows, gradient in zip(found, each, strict=True):
            rows.append(None if gradient is None else gradient.unflatten(0, (len(chosen), -1))[row])
    return [
        None if any(row is None for row in rows) else torch.cat([r for r in rows if r is not None]) for rows in found
    ]


def _maps(one: ClassMap, feature: Tensor, gradient: Tensor, rows: int, size: tuple[int, int]) -> Iterator[Tensor]:
    """The maps of a module, (B, H, W) each, by its names."""
    values, slopes = (
        x.detach().float().movedim(-1, 1) if one.channels_last else x.detach().float() for x in (feature, gradient)
    )
    raw = (slopes.mean((2, 3), keepdim=True) * values).sum(1, keepdim=True).relu()  # (B n, 1, h, w)
    whole = [-(-pixels // one.multiple) * one.multiple for pixels in size]
    large = F.interpolate(raw, whole, mode="bilinear", align_corners=False)[:, 0, : size[0], : size[1]]
    return iter(large.unflatten(0, (rows, len(one.names))).unbind(1))
