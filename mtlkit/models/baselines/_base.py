"""Shared by the networks for comparison: options, output, padding, and a classifier for those without one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mtlkit._check import check_probability
from mtlkit.models._common import check_at_least_one, check_images, pad_to_multiple
from mtlkit.models.encoders import check_encoder
from mtlkit.models.network import last_linear
from mtlkit.models.pretrained import Pretrained


@dataclass(frozen=True)
class BaselineOptions:
    """Options that all networks for comparison have.

    Attributes:
        num_classes: number of classes.
        in_chans: channels of the images.
        classifier: whether the network has a classifier; otherwise `cls_logits` is None.
        dropout: probability before the classifier.

    Example:
        >>> from mtlkit.models.baselines import TransUNetOptions
        >>> TransUNetOptions(classifier=False).num_classes
        3
    """

    num_classes: int = 3
    in_chans: int = 3
    classifier: bool = True
    dropout: float = 0.3

    def __post_init__(self) -> None:
        check_at_least_one(num_classes=self.num_classes, in_chans=self.in_chans)
        check_probability(dropout=self.dropout)


@dataclass(frozen=True)
class EncoderOptions(BaselineOptions):
    """Options of the networks with an encoder from timm.

    Attributes:
        encoder: name of the encoder, with or without a tag for its weights. pretrained: whether the encoder starts from
        these weights.
    """

    encoder: str = "resnet50.tv_in1k"
    pretrained: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_encoder(self.encoder)


class BaselineOutput(NamedTuple):
    """The output of the networks for comparison.

    Example:
        >>> import torch
        >>> from mtlkit.models.baselines import BaselineOutput
        >>> BaselineOutput(torch.zeros(1, 1, 8, 8), torch.zeros(1, 3)).cls_logits.softmax(1).sum()
        tensor(1.)
    """

    seg_logits: Tensor  # (B, 1, H, W)
    cls_logits: Tensor | None  # (B, num_classes); None without a classifier


class Baseline(Pretrained):
    """Base of the networks for comparison: images to the logits of a mask and of a class.

    Images whose size is not a multiple of `stride` are padded with zeros at the bottom and on the right, and the mask
    is cropped back. Subclasses define `build`, which makes the layers, and `run`.

    Args:
        options: options of the network.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Attributes:
        stride: H and W are padded to a multiple of it.
        smallest: smallest H and W.

    Shape:
        Channels-first images (B, in_chans, H, W) in; BaselineOutput out.

    Raises:
        ImportError: the library that provides the network is not installed.
        ValueError: an option is out of range, or the images have another shape or are too small.
        TypeError: the images are not a floating-point tensor.
    """

    defaults: ClassVar[Any]
    stride: int = 32
    smallest: int = 32
    cls_head: nn.Module | None

    def __init__(
        self, options: Any = None, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.options = options or self.defaults
        target = torch.get_default_device() if device is None else device
        with torch.device(target):
            self.build()
        self.to(target, dtype)

    def build(self) -> None:
        """Makes the layers from `options`."""
        raise NotImplementedError

    def run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (B, in_chans, H, W), multiples of `stride`, to logits (B, 1, H, W) and (B, num_classes) or None."""
        raise NotImplementedError

    def pooled_classifier(self, dim: int) -> nn.Module | None:
        """A linear layer on the mean of a map (B, dim, H, W), after dropout; None if the options disable it."""
        o = self.options
        if not o.classifier:
            return None
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(o.dropout), nn.Linear(dim, o.num_classes)
        )

    @property
    def returns(self) -> tuple[str, ...]:
        """The mask, and the class if there is a classifier."""
        return ("seg_logits", "cls_logits") if self.options.classifier else ("seg_logits",)

    @property
    def last_layer(self) -> nn.Linear | None:
        """The classifier's last layer; None without a classifier."""
        return None if self.cls_head is None else last_linear(self.cls_head)

    def forward(self, images: Tensor) -> BaselineOutput:
        """Logits: (B, in_chans, H, W) to BaselineOutput."""
        check_images(images, self.options.in_chans, self.smallest)
        height, width = images.shape[2:]
        mask, cls_logits = self.run(pad_to_multiple(images, self.stride))
        return BaselineOutput(mask[:, :, :height, :width], cls_logits)


def call(head: Callable[[Tensor], Tensor] | None, x: Tensor) -> Tensor | None:
    """The output of `head` for `x`; None without a head."""
    return None if head is None else head(x)


def conv_bn_relu(in_dim: int, dim: int, kernel: int = 3) -> nn.Sequential:
    """A convolution without bias, BatchNorm and ReLU: (B, in_dim, H, W) to (B, dim, H, W)."""
    convolution = nn.Conv2d(in_dim, dim, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(dim), nn.ReLU())


class PatchExpand(nn.Module):
    """The reverse of patch merging: each token becomes `scale` x `scale` tokens, (B, H, W, C) to (B, sH, sW, C')."""

    def __init__(self, dim: int, scale: int, out_dim: int) -> None:
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(dim, scale**2 * out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Linear, rearranged row by row, and normalised."""
        x = self.expand(x).unflatten(3, (self.scale, self.scale, -1))  # (B, H, W, s, s, C')
        return self.norm(x.transpose(2, 3).flatten(3, 4).flatten(1, 2))
