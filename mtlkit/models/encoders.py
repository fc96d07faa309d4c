"""Encoders with ImageNet weights: timm's networks, cut where the features of five scales can be tapped.

The EfficientNets are tapped as MBDI and BTI-Net do: at the expanded, normalised and activated features of the first
block of stages 2, 3, 4 and 6, still at the resolution before that block's stride, and after the last convolution.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtlkit.models._common import check_images, install_hint

STRIDE = 32  # of the last tap


class _Plan(NamedTuple):
    order: Callable[[nn.Module], Iterable[str]]  # names of the modules that make the features, one after the other
    taps: tuple[str, ...]  # those whose outputs have strides 2, 4, 8, 16 and 32


def _efficientnet(net: nn.Module) -> Iterator[str]:
    yield from ("conv_stem", "bn1")
    for i, stage in enumerate(net.blocks):
        for j, block in enumerate(stage):
            if j == 0 and i in (1, 2, 3, 5):  # a stride and no shortcut: its parts are a plain sequence
                yield from (f"blocks.{i}.0.{part}" for part, _ in block.named_children() if part != "drop_path")
            else:
                yield f"blocks.{i}.{j}"
    yield from ("conv_head", "bn2")


def _resnet(net: nn.Module) -> Iterable[str]:
    return ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4")


def _features(net: nn.Module) -> Iterator[str]:
    return (f"features.{part}" for part, _ in net.features.named_children())


_EFFICIENTNET_TAPS = (*(f"blocks.{i}.0.bn1" for i in (1, 2, 3, 5)), "bn2")
_RESNET_TAPS = ("act1", "layer1", "layer2", "layer3", "layer4")
_DENSENET_TAPS = tuple(f"features.{part}" for part in ("norm0", "denseblock1", "denseblock2", "denseblock3", "norm5"))
_PLANS = {f"tf_efficientnet_b{i}": _Plan(_efficientnet, _EFFICIENTNET_TAPS) for i in range(8)} | {
    "resnet18": _Plan(_resnet, _RESNET_TAPS),
    "resnet50": _Plan(_resnet, _RESNET_TAPS),
    "vgg16": _Plan(_features, tuple(f"features.{i}" for i in (4, 9, 16, 23, 30))),
    "densenet121": _Plan(_features, _DENSENET_TAPS),
}


def list_encoders() -> list[str]:
    """The names that `Encoder` knows, sorted.

    Example:
        >>> import mtlkit
        >>> "tf_efficientnet_b4" in mtlkit.models.list_encoders()
        True
    """
    return sorted(_PLANS)


def check_encoder(name: str) -> None:
    """Raises a ValueError that lists the known encoders unless `name` is one of them."""
    if name.partition(".")[0] not in _PLANS:
        close = get_close_matches(name, _PLANS, 1)
        guess = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"encoder: there is no encoder {name!r}{guess}; there are: {', '.join(list_encoders())}")


class Encoder(nn.Module):
    """Images to features of several scales, from a network of timm.

    The modules keep timm's names, and those behind the last tap are left out. Pretrained weights expect images of
    `mean` and `std`, per channel of images in [0, 1].

    Args:
        name: one of `list_encoders()`, or one with timm's tag of its weights, as "tf_efficientnet_b4.aa_in1k".
        pretrained: whether timm loads ImageNet weights, which it downloads once.
        in_chans: channels of the images, 1 or 3; with 1, pretrained weights are summed over the three.
        freeze_until: name of a module; it and all before it get no gradient, and their BatchNorm stays in inference
            mode. None freezes nothing.
        taps: names of the modules whose outputs are returned, in order; default: five, of strides 2, 4, 8, 16 and 32.
        device: where the parameters are made.
        dtype: of the parameters.

    Attributes:
        channels: of each feature map.
        strides: pixels of the image for a pixel of each feature map.
        mean: of the images that the pretrained weights were made with.
        std: their standard deviation.

    Shape:
        Channels-first: (B, in_chans, H, W) with H and W at least 32, to a tuple of (B, channels[i], H / strides[i],
        W / strides[i]), rounded as the network does: up, but down in vgg16.

    Raises:
        ImportError: timm is not installed.
        OSError: the pretrained weights cannot be downloaded or read.
        ValueError: no such encoder or module; images of another shape.
        TypeError: images that are no floating-point tensor.

    Source: the taps of EfficientNet: "Multi-Level Bidirectional Decoder Interaction for Uncertainty-Aware Breast
    Ultrasound Analysis" (2026), published code; networks and weights: timm.

    Example:
        >>> import torch, mtlkit
        >>> encoder = mtlkit.models.Encoder("resnet18", in_chans=1)
        >>> [tuple(f.shape[1:]) for f in encoder(torch.rand(1, 1, 64, 64))]
        [(64, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        in_chans: int = 3,
        freeze_until: str | None = None,
        taps: tuple[str, ...] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_encoder(name)
        if in_chans not in (1, 3):
            raise ValueError(f"in_chans: expected 1 or 3, got {in_chans!r}")
        plan = _PLANS[name.partition(".")[0]]
        self.name, self.in_chans, self.freeze_until = name, in_chans, freeze_until
        self._taps = taps or plan.taps
        with nullcontext() if device is None else torch.device(device):
            net = _network(name, pretrained, in_chans)
        self.mean, self.std = (tuple(net.pretrained_cfg[key]) for key in ("mean", "std"))
        self._order = self._adopt(net, list(plan.order(net)))
        self.to(dtype=dtype)
        self._frozen = self._freeze()
        sizes = self._sizes()
        self.channels = tuple(size[0] for size in sizes)
        self.strides = tuple(STRIDE // size[1] for size in sizes)

    def _adopt(self, net: nn.Module, order: list[str]) -> list[str]:
        """Takes what leads to the last tap over from `net`, under its names; returns these in order."""
        for tap in self._taps:
            if tap not in order:
                raise ValueError(f"taps: {self.name} has no {tap!r}; it has: {', '.join(order)}")
        end = 1 + max(order.index(tap) for tap in self._taps)
        for path in order[end:]:
            parent, _, child = path.rpartition(".")
            delattr(net.get_submodule(parent), child)
        used = {path.partition(".")[0] for path in order[:end]}
        for child, module in net.named_children():
            if child in used:
                self.add_module(child, module)
        return order[:end]

    def _freeze(self) -> list[str]:
        """Stops the gradients; returns the names of the frozen modules."""
        if self.freeze_until is None:
            return []
        names = [name for name, _ in self.named_modules() if name]
        within = [i for i, name in enumerate(names) if f"{name}.".startswith(f"{self.freeze_until}.")]
        if not within:
            raise ValueError(f"freeze_until: {self.name} has no module {self.freeze_until!r}; it has: {names[0]}, ...")
        ahead = names[: within[-1] + 1]
        # an outer module that reaches beyond the last one is not frozen itself
        frozen = [name for name in ahead if not any(other.startswith(f"{name}.") for other in names[len(ahead) :])]
        for name in frozen:
            self.get_submodule(name).requires_grad_(False)
        return frozen

    @torch.no_grad()
    def _sizes(self) -> list[tuple[int, int]]:
        """Channels and rows of what each tap makes of an image of 32 x 32 pixels."""
        first = next(self.parameters())
        self.eval()
        maps = self(torch.zeros(1, self.in_chans, STRIDE, STRIDE, device=first.device, dtype=first.dtype))
        self.train()
        return [tuple(features.shape[1:3]) for features in maps]

    def train(self, mode: bool = True) -> "Encoder":
        """As nn.Module.train; what is frozen stays in inference mode."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).training = False
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """One feature map for each tap: (B, in_chans, H, W) to (B, C, H / stride, W / stride) each."""
        check_images(images, self.in_chans, STRIDE)
        x, found = images, {}
        for name in self._order:
            x = self.get_submodule(name)(x)  # (B, C, H / stride, W / stride)
            if name in self._taps:
                found[name] = x
        return tuple(found[name] for name in self._taps)

    def extra_repr(self) -> str:
        """The options, for repr."""
        return f"{self.name!r}, in_chans={self.in_chans}, freeze_until={self.freeze_until!r}, channels={self.channels}"


def _network(name: str, pretrained: bool, in_chans: int) -> nn.Module:
    """A network of timm; says what to do where its weights are out of reach."""
    make = partial(_timm().create_model, name, in_chans=in_chans)
    if not pretrained:
        return make(pretrained=False)
    try:
        return make(pretrained=True)
    except (OSError, RuntimeError) as error:  # of the network, the Hub, or a file of weights
        words = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        raise OSError(
            f"pretrained: the weights of {name} cannot be had ({words}); pretrained=False begins without them"
        ) from error


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError(install_hint("timm", "encoders")) from error
    return timm
