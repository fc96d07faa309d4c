"""Networks of MONAI for comparison: Swin UNETR, UNETR and SegResNet, each with a classifier.

The networks are MONAI's, with MONAI's parameter names. They run here layer by layer, so that one pass gives both the
mask and the encoder's coarsest features for the classifier.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtlkit.models._common import install_hint
from mtlkit.models.baselines._base import Baseline, BaselineOptions, call
from mtlkit.models.registry import register


@dataclass(frozen=True)
class MonaiBaselineOptions(BaselineOptions):
    """Options of a network of MONAI with a classifier: those of BaselineOptions, and three more.

    Attributes:
        net: "swin_unetr", "unetr" or "segresnet".
        dim: channels of the finest level, a multiple of 12, 1 and 8 for the three networks; None means 48, 16 and 32.
            UNETR's tokens have 48 `dim` channels.
        image_size: height and width of the images of UNETR, which learns a vector for each position; a multiple of 16.
            The other networks take any size.

    Example:
        >>> import mtlkit
        >>> mtlkit.models.MonaiBaselineOptions(net="swin_unetr", num_classes=2).image_size
        224
    """

    net: str = "swin_unetr"
    dim: int | None = None
    image_size: int = 224

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.net not in _PLANS:
            raise ValueError(f"net: expected one of {', '.join(map(repr, _PLANS))}, got {self.net!r}")
        factor = _PLANS[self.net].dim_factor
        if self.dim is not None and (self.dim < 1 or self.dim % factor):
            raise ValueError(f"dim: expected a multiple of {factor} for {self.net}, got {self.dim}")
        if self.image_size < 32 or self.image_size % 16:
            raise ValueError(f"image_size: expected a multiple of 16 of at least 32, got {self.image_size}")


# --- MONAI's networks -------------------------------------------------------------------------------------------------


def _make_swin_unetr(nets: Any, o: MonaiBaselineOptions, dim: int) -> nn.Module:
    return nets.SwinUNETR(in_channels=o.in_chans, out_channels=1, feature_size=dim, spatial_dims=2)


def _run_swin_unetr(net: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    *stages, last = net.swinViT(images, net.normalize)  # (B, dim, H/2, W/2), ..., (B, 16 dim, H/32, W/32)
    skips = [net.encoder1(images), net.encoder2(stages[0]), net.encoder3(stages[1]), net.encoder4(stages[2]), stages[3]]
    x = coarsest = net.encoder10(last)
    for level in (5, 4, 3, 2, 1):
        x = getattr(net, f"decoder{level}")(x, skips.pop())
    return net.out(x), coarsest


def _make_unetr(nets: Any, o: MonaiBaselineOptions, dim: int) -> nn.Module:
    sizes = {"img_size": o.image_size, "feature_size": dim, "hidden_size": 48 * dim, "mlp_dim": 192 * dim}
    net = nets.UNETR(in_channels=o.in_chans, out_channels=1, spatial_dims=2, **sizes)
    for block in net.vit.blocks:
        block.norm_cross_attn.requires_grad_(False)  # unused: for cross-attention
    return net


def _run_unetr(net: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    tokens, layers = net.vit(images)  # (B, H/16 W/16, 48 dim)
    skips = [net.encoder1(images)]
    for encoder, layer in ((net.encoder2, 3), (net.encoder3, 6), (net.encoder4, 9)):
        skips.append(encoder(net.proj_feat(layers[layer])))
    x = coarsest = net.proj_feat(tokens)  # (B, 48 dim, H/16, W/16)
    for level in (5, 4, 3, 2):
        x = getattr(net, f"decoder{level}")(x, skips.pop())
    return net.out(x), coarsest


def _make_segresnet(nets: Any, o: MonaiBaselineOptions, dim: int) -> nn.Module:
    return nets.SegResNet(spatial_dims=2, init_filters=dim, in_channels=o.in_chans, out_channels=1)


def _run_segresnet(net: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    coarsest, levels = net.encode(images)
    return net.decode(coarsest, levels[::-1]), coarsest


class _Plan(NamedTuple):
    make: Callable[[Any, MonaiBaselineOptions, int], nn.Module]  # monai.networks.nets, options and dim to the network
    run: Callable[[Any, Tensor], tuple[Tensor, Tensor]]  # to the mask's logits and the coarsest features
    stride: int  # H and W are padded to a multiple of it
    smallest: int  # H and W, so that normalisation does not erase a coarsest map of a single pixel
    dim: int  # by default
    dim_factor: int
    width: int  # channels of the coarsest features, in dim


_PLANS = {
    "swin_unetr": _Plan(_make_swin_unetr, _run_swin_unetr, 32, 64, 48, 12, 16),
    "unetr": _Plan(_make_unetr, _run_unetr, 16, 32, 16, 1, 48),
    "segresnet": _Plan(_make_segresnet, _run_segresnet, 8, 16, 32, 8, 8),
}


# --- the network ------------------------------------------------------------------------------------------------------


@register("swin_unetr", MonaiBaselineOptions(net="swin_unetr"))
@register("unetr", MonaiBaselineOptions(net="unetr"))
@register("segresnet", MonaiBaselineOptions(net="segresnet"))
class MonaiBaseline(Baseline):
    """A segmentation network of MONAI with a classifier: images to the logits of a mask and of a class.

    The classifier is a linear layer on the mean of the encoder's coarsest features. Sizes that the stride (32 for Swin
    UNETR, 16 for UNETR, 8 for SegResNet) does not divide are padded with zeros at the bottom and on the right, and
    the mask is cropped back. `net` is MONAI's module.

    Args:
        options: the network, and its sizes.
        device: device to which the parameters are moved; they are created on the CPU.
        dtype: dtype of the parameters.

    Shape:
        Channels-first images (B, in_chans, H, W) in, H and W at least 64 (UNETR 32, SegResNet 16; UNETR's are
        `image_size` once filled up); BaselineOutput out.

    Raises:
        ImportError: monai or einops is not installed.
        ValueError: an option is out of range, or the images have another shape or are too small.
        TypeError: the images are not a floating-point tensor.

    Source: Hatamizadeh et al., "Swin UNETR" (2022) and "UNETR" (2022); Myronenko, "3D MRI Brain Tumor Segmentation
    Using Autoencoder Regularization" (2018); code: MONAI.

    Example:
        >>> import torch, mtlkit
        >>> model = mtlkit.models.create_model("segresnet", dim=8, num_classes=2).eval()
        >>> out = model(torch.rand(2, 3, 64, 70))
        >>> out.seg_logits.shape, out.cls_logits.shape
        (torch.Size([2, 1, 64, 70]), torch.Size([2, 2]))
    """

    defaults = MonaiBaselineOptions()

    def build(self) -> None:
        """Builds MONAI's network and the classifier."""
        o, plan = self.options, _PLANS[self.options.net]
        dim = o.dim or plan.dim
        self.stride, self.smallest = plan.stride, plan.smallest
        with torch.device("cpu"):  # MONAI reads tensor values while it builds, which the meta device does not have
            self.net = plan.make(_monai_nets(), o, dim)
            self.cls_head = self.pooled_classifier(plan.width * dim)

    def run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits of the mask and of the class."""
        o = self.options
        if o.net == "unetr" and images.shape[2:] != (o.image_size, o.image_size):
            raise ValueError(
                f"images: expected H and W of {o.image_size}, the image_size of this unetr, got {tuple(images.shape)}"
            )
        mask, coarsest = _PLANS[o.net].run(self.net, images)  # (B, 1, H, W), (B, C, H/stride, W/stride)
        return mask, call(self.cls_head, coarsest)


def _monai_nets() -> Any:
    try:
        import einops  # noqa: F401  # pyright: ignore[reportUnusedImport] - an optional dependency of MONAI that its transformers need
        from monai.networks import nets
    except ImportError as error:
        raise ImportError(install_hint(error.name or "monai", "networks of MONAI", "baselines")) from error
    return nets
