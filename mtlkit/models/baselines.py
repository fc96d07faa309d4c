"""What MBDI is compared with: U-Net and Attention U-Net, each with a classifier on its coarsest features.

The decoders stand on the same encoders as MBDI's. Each of the four levels upsamples, takes the skip connection, through
an attention gate or as it is, and applies two convolutions.

Source: Ronneberger et al., "U-Net" (2015); Oktay et al., "Attention U-Net" (2018).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtlkit._check import check_probability
from mtlkit.models._common import check_at_least_one, check_images, pad_to_multiple
from mtlkit.models.encoders import STRIDE, Encoder, check_encoder, check_strides
from mtlkit.models.network import last_linear
from mtlkit.models.pretrained import Pretrained
from mtlkit.models.registry import register


@dataclass(frozen=True)
class UNetOptions:
    """Options of U-Net with a classifier.

    Attributes:
        num_classes: logits of the classifier.
        in_chans: channels of the images, 1 or 3.
        encoder: one of `list_encoders()`, or a network of timm whose features have strides 2, 4, 8, 16 and 32.
        pretrained: whether the encoder starts from ImageNet weights.
        freeze_until: last module of the encoder that is frozen.
        decoder_dims: channels of the four decoder levels, coarsest first.
        attention: whether attention gates stand on the skip connections.
        dropout: probability before the classifier.

    Example:
        >>> import mtlkit
        >>> mtlkit.models.UNetOptions(attention=True).decoder_dims
        (384, 192, 96, 48)
    """

    num_classes: int = 3
    in_chans: int = 3
    encoder: str = "tf_efficientnet_b4"
    pretrained: bool = False
    freeze_until: str | None = None
    decoder_dims: tuple[int, ...] = (384, 192, 96, 48)
    attention: bool = False
    dropout: float = 0.3

    def __post_init__(self) -> None:
        check_at_least_one(num_classes=self.num_classes)
        check_encoder(self.encoder)
        check_probability(dropout=self.dropout)
        if len(self.decoder_dims) != 4 or min(self.decoder_dims) < 2:
            raise ValueError(f"decoder_dims: expected 4 numbers of at least 2, got {self.decoder_dims}")


class UNetOutput(NamedTuple):
    """What U-Net returns.

    Example:
        >>> import torch
        >>> from mtlkit.models import UNetOutput
        >>> UNetOutput(torch.zeros(1, 1, 8, 8), torch.zeros(1, 3)).seg_logits.sigmoid().max()
        tensor(0.5000)
    """

    seg_logits: Tensor  # (B, 1, H, W)
    cls_logits: Tensor  # (B, num_classes)


@register("unet", UNetOptions())
@register("attention_unet", UNetOptions(attention=True))
class UNet(Pretrained):
    """U-Net with a classifier: images to the logits of a mask and of a class.

    Sizes that 32 does not divide are filled up with zeros at the bottom and on the right, and the mask is cropped back.

    Args:
        options: sizes, parts and rates.
        device: where the parameters are made.
        dtype: of the parameters.

    Shape:
        Channels-first images (B, in_chans, H, W) in, H and W at least 32; UNetOutput out.

    Raises:
        ImportError: timm is not installed.
        ValueError: options out of their range; images of another shape or too small.
        TypeError: images that are no floating-point tensor.

    Source: Ronneberger et al. (2015); Oktay et al. (2018).

    Example:
        >>> import torch, mtlkit
        >>> options = mtlkit.models.UNetOptions(encoder="resnet18", decoder_dims=(64, 32, 16, 8), attention=True)
        >>> out = mtlkit.models.UNet(options).eval()(torch.rand(2, 3, 64, 70))
        >>> out.seg_logits.shape, out.cls_logits.shape
        (torch.Size([2, 1, 64, 70]), torch.Size([2, 3]))
    """

    def __init__(
        self,
        options: UNetOptions | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.options = o = options or UNetOptions()
        factory = {"device": device, "dtype": dtype}
        self.encoder = Encoder(o.encoder, o.pretrained, o.in_chans, o.freeze_until, **factory)
        check_strides(self.encoder)
        *skips, below = self.encoder.channels
        self.cls_head = nn.Sequential(nn.Dropout(o.dropout), nn.Linear(below, o.num_classes, **factory))
        self.decoder = nn.ModuleList()
        for dim, skip in zip(o.decoder_dims, skips[::-1], strict=True):
            self.decoder.append(_Level(below, skip, dim, o.attention, factory))
            below = dim
        self.seg_head = nn.Sequential(
            nn.ConvTranspose2d(below, below, 2, 2, **factory),  # (B, C, H, W)
            nn.Conv2d(below, 1, 1, **factory),
        )

    @property
    def last_layer(self) -> nn.Linear:
        """The layer that classifies."""
        return last_linear(self.cls_head)

    def forward(self, images: Tensor) -> UNetOutput:
        """Logits: (B, in_chans, H, W) to UNetOutput."""
        check_images(images, self.options.in_chans, STRIDE)
        height, width = images.shape[2:]
        *skips, x = self.encoder(pad_to_multiple(images, STRIDE))
        cls_logits = self.cls_head(x.mean((2, 3)))  # (B, num_classes)
        for level, skip in zip(self.decoder, skips[::-1], strict=True):
            x = level(x, skip)  # (B, C, H/16, W/16), ..., (B, C, H/2, W/2)
        return UNetOutput(self.seg_head(x)[:, :, :height, :width], cls_logits)


class _Level(nn.Module):
    """A decoder level: (B, C', H/2, W/2) and the skip connection (B, C_skip, H, W) to (B, C, H, W)."""

    def __init__(self, below: int, skip: int, dim: int, attention: bool, factory: dict[str, Any]) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(below, dim, 2, 2, **factory)
        self.gate = _Gate(skip, dim, factory) if attention else None
        self.convs = nn.Sequential(*_conv_bn_relu(dim + skip, dim, factory), *_conv_bn_relu(dim, dim, factory))

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        x = self.up(below)  # (B, C, H, W)
        skip = skip if self.gate is None else self.gate(skip, x)
        return self.convs(torch.cat([x, skip], 1))


class _Gate(nn.Module):
    """Oktay's additive gate, skip sigmoid(w ReLU(W_x skip + W_g g)), for maps of equal size."""

    def __init__(self, skip: int, dim: int, factory: dict[str, Any]) -> None:
        super().__init__()
        self.x_proj = nn.Conv2d(skip, dim // 2, 1, bias=False, **factory)
        self.g_proj = nn.Conv2d(dim, dim // 2, 1, **factory)
        self.psi = nn.Conv2d(dim // 2, 1, 1, **factory)

    def forward(self, skip: Tensor, g: Tensor) -> Tensor:
        return skip * self.psi((self.x_proj(skip) + self.g_proj(g)).relu()).sigmoid()  # (B, C_skip, H, W)


def _conv_bn_relu(in_dim: int, dim: int, factory: dict[str, Any]) -> list[nn.Module]:
    return [nn.Conv2d(in_dim, dim, 3, padding=1, bias=False, **factory), nn.BatchNorm2d(dim, **factory), nn.ReLU()]
