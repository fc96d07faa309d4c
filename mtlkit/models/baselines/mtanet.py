"""MTANet: a pyramid transformer whose decoder attends to uncertain regions of a coarse mask, with a classifier.

Receptive-field blocks on the three coarser scales and their aggregation give a coarse mask G_4. Then, from scale to
finer scale (reverse addition attention), with features x_s of the encoder and D_4 = x_4:

    D_s = two convolutions(x_s + conv(upsampled D_(s+1)))
    G_s = conv((1 - sigmoid(G_(s+1))) D_s) + G_(s+1)                        G_(s+1) resized to D_s

Each convolution is followed by ReLU, then BatchNorm, as in the official code.

Source: Ling et al., "MTANet: Multi-Task Attention Network for Automatic Medical Image Segmentation and Classification",
IEEE Transactions on Medical Imaging 43 (2024); encoder: timm.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit.models._common import check_at_least_one
from mtlkit.models.baselines._base import Baseline, EncoderOptions, call
from mtlkit.models.encoders import Encoder
from mtlkit.models.registry import register


@dataclass(frozen=True)
class MTANetOptions(EncoderOptions):
    """Options of MTANet: those of EncoderOptions, and one more.

    Attributes:
        encoder: a network of timm whose last four features have strides 4, 8, 16 and 32; with or without a tag for its
            weights.
        pretrained: whether it starts from ImageNet weights.
        dim: channels of the receptive-field blocks.

    Example:
        >>> from mtlkit.models.baselines import MTANetOptions
        >>> MTANetOptions().encoder
        'pvt_v2_b2.in1k'
    """

    encoder: str = "pvt_v2_b2.in1k"
    dim: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(dim=self.dim)


@register("mtanet", MTANetOptions())
class MTANet(Baseline):
    """MTANet on PVTv2-B2: images to the logits of a mask and of a class.

    Encoder and decoder are those of the official code, 29,705,959 of its 29,727,347 parameters. Difference: the
    official classifier combines image features with eight clinical values of a patient by an attention bottleneck; here
    it is a linear layer on the mean of the encoder's coarsest features. The mask is that of the finest scale; the masks
    of coarser scales, for which the official code has separate losses, are not returned.

    Args:
        options: options of the network.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-first images (B, in_chans, H, W) in, H and W at least 32; BaselineOutput out.

    Raises:
        ImportError: timm is not installed.
        OSError: the pretrained weights cannot be downloaded or read.
        ValueError: an option is out of range, or the images have another shape or are too small.
        TypeError: the images are not a floating-point tensor.

    Source: IEEE TMI 43 (2024), 674-685; official code: yatingling/MTANet.

    Example:
        >>> import torch, mtlkit
        >>> model = mtlkit.models.create_model("mtanet", encoder="pvt_v2_b0", dim=8).eval()
        >>> model(torch.rand(1, 3, 64, 70)).seg_logits.shape
        torch.Size([1, 1, 64, 70])
    """

    defaults = MTANetOptions()

    def build(self) -> None:
        """Encoder, coarse mask, reverse addition attention, classifier."""
        o = self.options
        self.encoder = Encoder(o.encoder, o.pretrained, o.in_chans)
        if self.encoder.strides[-4:] != (4, 8, 16, 32):
            strides = self.encoder.strides
            raise ValueError(f"encoder: expected strides of 4, 8, 16, 32, got those of {o.encoder}: {strides}")
        dims = self.encoder.channels[-4:]
        self.fields = nn.ModuleList(_ReceptiveField(dim, o.dim) for dim in dims[1:])
        self.aggregate = _Aggregation(o.dim)
        self.levels = nn.ModuleList(_Level(below, dim) for below, dim in zip(dims[:0:-1], dims[-2::-1], strict=True))
        self.cls_head = self.pooled_classifier(dims[-1])

    def run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encoder, coarse mask, and the decoder's refined masks."""
        scales = self.encoder(images)[-4:]  # (B, C_s, H/4, W/4), ..., (B, C_s, H/32, W/32)
        fields = [field(x) for field, x in zip(self.fields, scales[1:], strict=True)]
        mask, x = self.aggregate(*fields[::-1]), scales[-1]  # (B, 1, H/8, W/8)
        for level, skip in zip(self.levels, scales[-2::-1], strict=True):
            x, mask = level(x, skip, mask)  # (B, C_s, H/16, W/16), ..., (B, C_s, H/4, W/4)
        return F.interpolate(mask, scale_factor=4, mode="bilinear"), call(self.cls_head, scales[-1])


def _conv(in_dim: int, dim: int, kernel: int | tuple[int, int] = 3, dilation: int = 1) -> nn.Sequential:
    """A convolution that keeps the size, ReLU, BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(in_dim, dim, kernel, padding="same", dilation=dilation, bias=False), nn.ReLU(), nn.BatchNorm2d(dim)
    )


class _ReceptiveField(nn.Module):
    """Four concatenated branches with growing kernels and dilations, and a residual connection."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([_conv(in_dim, dim, 1)])
        for size in (3, 5, 7):
            lines = _conv(dim, dim, (1, size)), _conv(dim, dim, (size, 1))
            self.branches.append(nn.Sequential(_conv(in_dim, dim, 1), *lines, _conv(dim, dim, 3, size)))
        self.join, self.shortcut = _conv(4 * dim, dim), _conv(in_dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.join(torch.cat([branch(x) for branch in self.branches], 1)) + self.shortcut(x))


class _Aggregation(nn.Module):
    """Partial decoder: maps at 1/32, 1/16 and 1/8 to a coarse mask (B, 1, H/8, W/8)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up = nn.ModuleList(_conv(dim, dim) for _ in range(4))
        self.up5 = _conv(2 * dim, 2 * dim)
        self.concat2, self.concat3 = _conv(2 * dim, 2 * dim), _conv(3 * dim, 3 * dim)
        self.last, self.head = _conv(3 * dim, 3 * dim), nn.Conv2d(3 * dim, 1, 1)

    def forward(self, x1: Tensor, x2: Tensor, x3: Tensor) -> Tensor:
        twice = _twice(x1)
        y2 = self.up[0](twice) * x2
        y3 = self.up[1](_twice(twice)) * self.up[2](_twice(x2)) * x3
        y2 = self.concat2(torch.cat([y2, self.up[3](twice)], 1))
        y3 = self.concat3(torch.cat([y3, self.up5(_twice(y2))], 1))
        return self.head(self.last(y3))


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class _Level(nn.Module):
    """Reverse addition attention at one scale: refines the coarser features and mask by the encoder's features."""

    def __init__(self, below: int, dim: int) -> None:
        super().__init__()
        self.up, self.head = _conv(below, dim), _conv(dim, 1)
        self.convs = nn.Sequential(_conv(dim, dim), _conv(dim, dim))

    def forward(self, below: Tensor, skip: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.convs(self.up(F.interpolate(below, scale_factor=2, mode="bilinear")) + skip)
        mask = F.interpolate(mask, x.shape[2:], mode="bilinear")
        return x, self.head((1 - mask.sigmoid()) * x) + mask
