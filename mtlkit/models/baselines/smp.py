"""Networks of segmentation-models-pytorch for comparison, each with its classifier on the encoder's last features.

U-Net, Attention U-Net, U-Net++, DeepLabV3+, FPN, MAnet, SegFormer and UPerNet, optionally with ImageNet weights.
"""

import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtlkit.models._common import install_hint
from mtlkit.models.baselines._base import Baseline, BaselineOptions
from mtlkit.models.encoders import check_encoder, freeze_modules, with_tag, with_weights
from mtlkit.models.registry import register


class _Plan(NamedTuple):
    name: str  # in segmentation_models_pytorch
    dim: int  # by default
    dim_factor: int

    def sizes(self, dim: int) -> dict[str, Any]:
        """The library's options for a decoder of that width."""
        if self.name in ("Unet", "UnetPlusPlus", "MAnet"):
            return {"decoder_channels": [factor * dim for factor in (16, 8, 4, 2, 1)]}
        if self.name == "FPN":
            return {"decoder_pyramid_channels": dim, "decoder_segmentation_channels": dim // 2}
        return {"decoder_segmentation_channels" if self.name == "Segformer" else "decoder_channels": dim}


_PLANS = {
    "unet": _Plan("Unet", 16, 1),
    "attention_unet": _Plan("Unet", 16, 1),
    "unet_plus_plus": _Plan("UnetPlusPlus", 16, 1),
    "manet": _Plan("MAnet", 16, 1),
    "deeplabv3_plus": _Plan("DeepLabV3Plus", 256, 1),
    "fpn": _Plan("FPN", 256, 128),  # GroupNorm with half as many channels in 32 groups
    "segformer": _Plan("Segformer", 256, 1),
    "upernet": _Plan("UPerNet", 256, 1),
}
_MIX_TRANSFORMERS = tuple(f"mit_b{i}" for i in range(6))  # SegFormer's encoders, which timm does not have


@dataclass(frozen=True)
class SMPBaselineOptions(BaselineOptions):
    """Options of a network of segmentation-models-pytorch: those of BaselineOptions, and five more.

    Attributes:
        net: "unet", "attention_unet", "unet_plus_plus", "manet", "deeplabv3_plus", "fpn", "segformer" or "upernet".
        encoder: a network of timm, with or without a tag for its weights, or "mit_b0" to "mit_b5".
        pretrained: whether the encoder starts from ImageNet weights.
        freeze_until: last module of the encoder that is frozen.
        dim: channels of the decoder: in the first four networks those of the finest of five levels, 16 by default; in
            the others those of all levels, 256 by default, and a multiple of 128 in "fpn".

    Example:
        >>> import mtlkit
        >>> mtlkit.models.SMPBaselineOptions(net="fpn").encoder
        'tf_efficientnet_b4.aa_in1k'
    """

    net: str = "unet"
    encoder: str = "tf_efficientnet_b4.aa_in1k"
    pretrained: bool = False
    freeze_until: str | None = None
    dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.net not in _PLANS:
            raise ValueError(f"net: expected one of {', '.join(map(repr, _PLANS))}, got {self.net!r}")
        if self.encoder not in _MIX_TRANSFORMERS:
            check_encoder(self.encoder)
        factor = _PLANS[self.net].dim_factor
        if self.dim is not None and (self.dim < 1 or self.dim % factor):
            raise ValueError(f"dim: expected a multiple of {factor} for {self.net}, got {self.dim}")


@register("unet", SMPBaselineOptions(net="unet"))
@register("attention_unet", SMPBaselineOptions(net="attention_unet"))
@register("unet_plus_plus", SMPBaselineOptions(net="unet_plus_plus"))
@register("manet", SMPBaselineOptions(net="manet"))
@register("deeplabv3_plus", SMPBaselineOptions(net="deeplabv3_plus"))
@register("fpn", SMPBaselineOptions(net="fpn"))
@register("segformer", SMPBaselineOptions(net="segformer", encoder="mit_b2"))
@register("upernet", SMPBaselineOptions(net="upernet"))
class SMPBaseline(Baseline):
    """A network of segmentation-models-pytorch with its classifier: images to the logits of a mask and of a class.

    `net` is the library's network, with its `aux_params`. Attention U-Net, which the library does not have, is its
    U-Net with the publication's additive gate on each skip connection. Images whose size is not a multiple of 32 are
    padded with zeros at the bottom and on the right, and the mask is cropped back.

    Args:
        options: the network, its encoder and its sizes.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Attributes:
        tag: tag of timm's weights that `pretrained` loads; None for a mix transformer.

    Shape:
        Channels-first images (B, in_chans, H, W) in, H and W at least 32; BaselineOutput out. To train DeepLabV3+ and
        UPerNet, batches need at least 2 images, for BatchNorm on pooled features.

    Raises:
        ImportError: segmentation-models-pytorch is not installed.
        OSError: the pretrained weights cannot be downloaded or read.
        ValueError: an option is out of range, or the images have another shape or are too small.
        TypeError: the images are not a floating-point tensor.

    Source: Ronneberger et al., "U-Net" (2015); Oktay et al., "Attention U-Net" (2018); Zhou et al., "UNet++" (2018);
    Fan et al., "MA-Net" (2020); Chen et al., "DeepLabv3+" (2018); Kirillov et al., "Panoptic Feature Pyramid Networks"
    (2019); Xie et al., "SegFormer" (2021); Xiao et al., "UPerNet" (2018).

    Example:
        >>> import torch, mtlkit
        >>> model = mtlkit.models.create_model("unet", encoder="resnet18", dim=4, num_classes=2).eval()
        >>> out = model(torch.rand(2, 3, 64, 70))
        >>> out.seg_logits.shape, out.cls_logits.shape
        (torch.Size([2, 1, 64, 70]), torch.Size([2, 2]))
    """

    defaults = SMPBaselineOptions()

    def build(self) -> None:
        """Builds the library's network."""
        o, plan = self.options, _PLANS[self.options.net]
        timm = o.encoder not in _MIX_TRANSFORMERS
        make = getattr(_library(), plan.name)
        options = plan.sizes(o.dim or plan.dim) | {
            "encoder_name": f"tu-{with_tag(o.encoder)}" if timm else o.encoder,
            "encoder_weights": (True if timm else "imagenet") if o.pretrained else None,
            "in_channels": o.in_chans,
            "classes": 1,
            "aux_params": {"classes": o.num_classes, "dropout": o.dropout} if o.classifier else None,
        }
        # mix transformers read tensor values while they are built, which the meta device does not have
        with nullcontext() if timm else torch.device("cpu"):
            self.net = net = with_weights(o.encoder, o.pretrained, lambda: make(**options))
        self.tag: str | None = net.encoder.model.pretrained_cfg["tag"] if timm else None
        if o.net == "attention_unet":
            skips = net.encoder.out_channels[-2:0:-1]
            for block, skip in zip(net.decoder.blocks, skips, strict=False):  # the last has no skip connection
                block.attention1 = _AdditiveGate(block.conv1[0].in_channels - skip, skip)
        prefix = "net.encoder.model." if timm else "net.encoder."
        self._frozen = freeze_modules(self, o.freeze_until, prefix, o.encoder)

    @property
    def cls_head(self) -> nn.Module | None:  # pyright: ignore[reportIncompatibleVariableOverride] - which is read alone
        """The library's classifier."""
        return self.net.classification_head

    def train(self, mode: bool = True) -> "SMPBaseline":
        """nn.Module.train, except that frozen modules stay in inference mode."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).training = False
        return self

    def run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The library's two outputs."""
        return self.net(images) if self.options.classifier else (self.net(images), None)


class _AdditiveGate(nn.Module):
    """Oktay's gate on the second part of [g; skip]: skip sigmoid(w ReLU(W_x skip + W_g g)), for maps of equal size."""

    def __init__(self, dim: int, skip: int) -> None:
        super().__init__()
        self.dim, inner = dim, max(1, skip // 2)
        self.x_proj = nn.Conv2d(skip, inner, 1, bias=False)
        self.g_proj = nn.Conv2d(dim, inner, 1)
        self.psi = nn.Conv2d(inner, 1, 1)

    def forward(self, joined: Tensor) -> Tensor:
        g, skip = joined[:, : self.dim], joined[:, self.dim :]  # (B, dim, H, W), (B, skip, H, W)
        weight = self.psi((self.x_proj(skip) + self.g_proj(g)).relu()).sigmoid()  # (B, 1, H, W)
        return torch.cat([g, skip * weight], 1)


def _library() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # raised by imports of the library
            import segmentation_models_pytorch
    except ImportError as error:
        what = "networks of segmentation-models-pytorch"
        raise ImportError(install_hint(error.name or "segmentation_models_pytorch", what, "baselines")) from error
    return segmentation_models_pytorch
