"""Encoders with ImageNet weights: networks of timm that return features at several scales.

Any network of timm can be an encoder, and returns the features that timm lists for it. The encoders of the publications
keep timm's parameter names and return the features that the publications use. For EfficientNets, as in MBDI and
BTI-Net, these are the expanded, normalised and activated features of the first block of stages 2, 3, 4 and 6, at the
resolution before that block's stride, and the features after the last convolution.

They also use the weights of the publications: a name without a tag means Keras' plain ImageNet weights for an
EfficientNet (`aa_in1k`) and torchvision's for the others (`tv_in1k`); timm's own defaults come from later training.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mtlkit._text import did_you_mean
from mtlkit.models._common import check_images, install_hint

STRIDES = (2, 4, 8, 16, 32)
STRIDE = STRIDES[-1]

_Network = TypeVar("_Network")

# Names of the modules whose outputs have these strides; None: those that timm lists. timm's `features_only` returns #
# neither the expansions of an EfficientNet before their stride nor the poolings of a VGG, and it renames the modules of
# # VGG and DenseNet. torch.fx (timm's FeatureGraphNet) returns them, but replaces blocks by untyped modules. Each of #
# these networks is a sequence of modules, so it is enough to call one after another.
_EFFICIENTNET_TAPS = (*(f"blocks.{i}.0.bn1" for i in (1, 2, 3, 5)), "bn2")
_TAPS: dict[str, tuple[str, ...] | None] = {f"tf_efficientnet_b{i}": _EFFICIENTNET_TAPS for i in range(8)} | {
    "resnet18": None,
    "resnet50": None,
    "vgg16": tuple(f"features.{i}" for i in (4, 9, 16, 23, 30)),
    "densenet121": None,
}
# Further encoders, for the networks for comparison.
_DEFAULTS = (
    "hrnet_w18_small_v2.ms_in1k",
    "pvt_v2_b2.in1k",
    "resnet101.tv_in1k",
    "swin_tiny_patch4_window7_224.ms_in1k",
    "vit_base_r50_s16_224.orig_in21k",
)
_TAGS = {name: "aa_in1k" if name.startswith("tf_efficientnet") else "tv_in1k" for name in _TAPS}


def list_encoders() -> list[str]:
    """The encoders of the publications, sorted; `Encoder` also takes any other network of timm.

    Example:
        >>> import mtlkit
        >>> "tf_efficientnet_b4" in mtlkit.models.list_encoders()
        True
    """
    return sorted(_TAPS)


def check_encoder(name: str) -> None:
    """Raises a ValueError unless timm has a network of that name, and weights for its tag if there is one."""
    network, _, tag = name.partition(".")
    if name in _DEFAULTS or (network in _TAPS and tag in ("", _TAGS[network])):
        return  # without importing timm, which takes a second
    timm = _timm()
    if tag and timm.is_model(network):
        weights = timm.list_pretrained(f"{network}.*")
        if name not in weights:
            raise ValueError(f"encoder: there are no weights {name!r}; there are: {', '.join(weights)}")
    elif not timm.is_model(network):
        guess = did_you_mean(name, _TAPS) or did_you_mean(name, timm.list_models())
        known = f"{', '.join(list_encoders())}, and all of timm.list_models()"
        raise ValueError(f"encoder: there is no encoder {name!r}{guess}; there are: {known}")


def check_family(name: str, family: str, title: str) -> None:
    """Raises a ValueError unless the network is in timm's module `family`; `title` names the family in the message."""
    if not _timm().models.is_model_in_modules(name.partition(".")[0], {family}):
        raise ValueError(f"encoder: expected {title} of timm, got {name!r}")


class Encoder(nn.Module):
    """Images to features of several scales, from a network of timm.

    The encoders in `list_encoders()` keep timm's module names, without modules after the last tap; any other network of
    timm is the result of timm's `features_only`, under the name `net`. Pretrained weights expect images in [0, 1] that
    are normalised by `mean` and `std` per channel.

    Args:
        name: one of `list_encoders()`, or any network of timm. A tag selects the weights, as in
            "tf_efficientnet_b4.aa_in1k"; without one they are those of the publications or, for other networks, timm's
            default.
        pretrained: whether timm loads ImageNet weights, which it downloads once.
        in_chans: channels of the images, 1 or 3; with 1, pretrained weights are summed over the three channels.
        freeze_until: name of a module, without `net`. This module and all before it get no gradients, and their
            BatchNorm stays in inference mode. None freezes nothing.
        taps: names of the modules whose outputs are returned, in order; only for `list_encoders()`. The default is five
            modules with strides 2, 4, 8, 16 and 32. Other networks return at most the last five features that timm
            lists.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Attributes:
        channels: channels of each feature map.
        strides: stride of each feature map, in pixels of the image.
        tag: tag of timm's weights that `pretrained` loads.
        mean: mean of the images for the pretrained weights. std: standard deviation of these images.

    Shape:
        Channels-first: (B, in_chans, H, W) with H and W at least 32, to a tuple of (B, channels[i], H / strides[i],
        W / strides[i]), rounded as the network rounds: up, except down in vgg16. Some transformers accept only one
        size.

    Raises:
        ImportError: timm is not installed.
        OSError: the pretrained weights cannot be downloaded or read.
        ValueError: there is no such encoder or module, taps are given for an encoder that is not in `list_encoders()`,
            or the images have another shape.
        TypeError: the images are not a floating-point tensor.

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
        published = name.partition(".")[0] in _TAPS
        if taps and not published:
            raise ValueError(
                f"taps: expected None for {name}, which is not one of {', '.join(list_encoders())}; got {taps}"
            )
        self.name, self.in_chans, self.freeze_until = name, in_chans, freeze_until
        options = {} if published else {"features_only": True}
        with nullcontext() if device is None else torch.device(device):
            net = make_network(name, pretrained, in_chans=in_chans, **options)
        self.tag: str = net.pretrained_cfg["tag"]
        self.mean, self.std = (tuple(net.pretrained_cfg[key]) for key in ("mean", "std"))
        if published:
            self._adopt(net, taps)
        else:
            self.net, self._order = net, []
        self.to(dtype=dtype)
        self._frozen = freeze_modules(self, self.freeze_until, "" if published else "net.", name)
        if published:
            sizes = self._sizes()
            self.channels = tuple(size[0] for size in sizes)
            self.strides = tuple(STRIDE // size[1] for size in sizes)
        else:
            self.channels = tuple(net.feature_info.channels()[-len(STRIDES) :])
            self.strides = tuple(net.feature_info.reduction()[-len(STRIDES) :])
        self.train()

    def _adopt(self, net: Any, taps: tuple[str, ...] | None) -> None:
        """Adopts the modules of `net` up to the last tap, under their names."""
        default = _TAPS[self.name.partition(".")[0]] or tuple(entry["module"] for entry in net.feature_info)
        self._taps = taps or default
        sequence = list(_sequence(net, default))
        order = sequence[: 1 + sequence.index(default[-1])]
        for tap in self._taps:
            if tap not in order:
                raise ValueError(f"taps: {self.name} has no {tap!r}; it has: {', '.join(order)}")
        end = 1 + max(order.index(tap) for tap in self._taps)
        self._order = order[:end]
        for path in sequence[end:]:
            parent, _, child = path.rpartition(".")
            delattr(net.get_submodule(parent), child)
        used = {path.partition(".")[0] for path in self._order}
        for child, module in net.named_children():
            if child in used:
                self.add_module(child, module)

    @torch.no_grad()
    def _sizes(self) -> list[tuple[int, int]]:
        """Channels and rows of each tap's output for an image of 32 x 32 pixels."""
        first = next(self.parameters())
        self.eval()
        maps = self(torch.zeros(1, self.in_chans, STRIDE, STRIDE, device=first.device, dtype=first.dtype))
        return [tuple(features.shape[1:3]) for features in maps]

    def train(self, mode: bool = True) -> "Encoder":
        """nn.Module.train, except that frozen modules stay in inference mode."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).training = False
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """One feature map for each tap: (B, in_chans, H, W) to (B, C, H / stride, W / stride) each."""
        check_images(images, self.in_chans, STRIDE)
        if not self._order:
            channels_last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
            maps = self.net(images)[-len(STRIDES) :]
            return tuple(features.permute(0, 3, 1, 2) if channels_last else features for features in maps)
        x = images
        found: dict[str, Tensor] = {}
        for name in self._order:
            x = self.get_submodule(name)(x)  # (B, C, H / stride, W / stride)
            if name in self._taps:
                found[name] = x
        return tuple(found[name] for name in self._taps)

    def extra_repr(self) -> str:
        """The options, for repr."""
        return f"{self.name!r}, in_chans={self.in_chans}, freeze_until={self.freeze_until!r}, channels={self.channels}"


def check_strides(encoder: Encoder) -> None:
    """Raises a ValueError unless there is a feature map for each of STRIDES, for decoders with skip connections."""
    if encoder.strides != STRIDES:
        expected = ", ".join(map(str, STRIDES))
        raise ValueError(f"encoder: expected strides of {expected}, got those of {encoder.name}: {encoder.strides}")


def _sequence(module: nn.Module, taps: tuple[str, ...], prefix: str = "") -> Iterator[str]:
    """Names of the modules inside `module`, in order; a module is split into its parts only if it contains a tap."""
    for child, part in module.named_children():
        path = f"{prefix}{child}"
        if any(tap.startswith(f"{path}.") for tap in taps):
            yield from _sequence(part, taps, f"{path}.")
        else:
            yield path


def make_network(name: str, pretrained: bool, **options: Any) -> Any:
    """A network of timm, with the publications' weights if `name` has no tag.

    Args:
        name: name of the network, with or without a tag.
        pretrained: whether timm loads its weights.
        **options: further arguments of timm.create_model.

    Raises:
        ImportError: timm is not installed.
        OSError: the weights cannot be downloaded or read.
    """
    name, create = with_tag(name), _timm().create_model
    return with_weights(name, pretrained, lambda: create(name, pretrained=pretrained, **options))


def with_tag(name: str) -> str:
    """The name with the tag of the publications' weights, if it is one of their encoders and has no tag."""
    return f"{name}.{_TAGS[name]}" if name in _TAGS else name


def with_weights(name: str, pretrained: bool, make: Callable[[], _Network]) -> _Network:
    """Calls `make`.

    Raises:
        OSError: the weights cannot be downloaded or read; the message says what to do.
    """
    if not pretrained:
        return make()
    try:
        return make()
    except (OSError, RuntimeError) as error:  # from the connection, the Hub, or the weights file
        words = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        raise OSError(
            f"pretrained: cannot get the weights of {name} ({words}); pretrained=False starts without them"
        ) from error


def freeze_modules(module: nn.Module, last: str | None, prefix: str, owner: str) -> list[str]:
    """Freezes the first modules of a network.

    Args:
        module: module that contains the network.
        last: name of a module, without the prefix; this module and all before it are frozen. None freezes nothing.
        prefix: prefix of the network's module names in `module`.
        owner: name of the network in errors.

    Returns:
        Names of the frozen modules with prefix; keep them in inference mode.

    Raises:
        ValueError: the network has no module of that name.
    """
    if last is None:
        return []
    names = [name for name, _ in module.named_modules() if name.startswith(prefix) and name]
    within = [i for i, name in enumerate(names) if f"{name}.".startswith(f"{prefix}{last}.")]
    if not within:
        first = names[0].removeprefix(prefix)
        raise ValueError(f"freeze_until: {owner} has no module {last!r}; it has: {first}, ...")
    ahead = names[: within[-1] + 1]
    # an outer module that extends beyond the last one is not frozen itself
    frozen = [name for name in ahead if not any(other.startswith(f"{name}.") for other in names[len(ahead) :])]
    for name in frozen:
        module.get_submodule(name).requires_grad_(False)
    return frozen


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError(install_hint("timm", "encoders")) from error
    return timm
