"""DenseMTL: one decoder per task; the decoders exchange features by cross-task attention.

From task u to task t (multi-task exchange block), with x_u = ReLU(conv F_u):

    C   = softmax(q(F_t) k(x_u)^T / sqrt(C)) v(x_u)          spatial attention across tasks, at a quarter of the size
    S   = sigmoid(V x_u) (W x_u)                             self-attention
    F_t = F_t + post(proj([S; alpha C]))

Source: Lopes et al., "Cross-task Attention Mechanism for Dense Multi-task Learning" (arXiv 2206.08927);
encoder: timm, ASPP: torchvision.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit.models.baselines._base import Baseline, EncoderOptions, conv_bn_relu
from mtlkit.models.encoders import check_family, make_network
from mtlkit.models.registry import register

TASKS = ("segmentation", "classification")


@dataclass(frozen=True)
class DenseMTLOptions(EncoderOptions):
    """Options of DenseMTL: those of EncoderOptions, and one more.

    Attributes:
        encoder: a ResNet of timm, with or without a tag for its weights.
        pretrained: whether it starts from ImageNet weights.
        decoder_dims: channels of the decoders' five levels, coarsest first.

    Example:
        >>> from mtlkit.models.baselines import DenseMTLOptions
        >>> DenseMTLOptions().encoder
        'resnet101.tv_in1k'
    """

    encoder: str = "resnet101.tv_in1k"
    decoder_dims: tuple[int, ...] = (256, 256, 128, 128, 64)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.classifier:
            raise ValueError("classifier: expected True for densemtl, whose two tasks interact, got False")
        if len(self.decoder_dims) != 5 or min(self.decoder_dims) < 2:
            raise ValueError(f"decoder_dims: expected 5 numbers of at least 2, got {self.decoder_dims}")


@register("densemtl", DenseMTLOptions())
class DenseMTL(Baseline):
    """DenseMTL on ResNet-101: images to the logits of a mask and of a class.

    The parts are those of the official code for two tasks, with the same numbers of parameters: 42,500,160 in the
    ResNet with a dilated last stage, 21,950,720 in a decoder up to half of the image's size, 386,560 in the exchange
    from one task to the other and 110,720 in the mask's last level. Difference: a linear layer on the mean of its
    task's exchanged features gives the class, so that this decoder ends there. The mask at half of the size, for which
    the official code has a separate loss, is left out.

    Args:
        options: options of the network.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-first images (B, in_chans, H, W) in, H and W at least 32; BaselineOutput out. Training needs batches of
        at least 2 images, for BatchNorm on pooled features of the decoders.

    Raises:
        ImportError: timm is not installed.
        OSError: the pretrained weights cannot be downloaded or read.
        ValueError: an option is out of range, or the images have another shape or are too small.
        TypeError: the images are not a floating-point tensor.

    Source: arXiv 2206.08927; official code: astra-vision/DenseMTL.

    Example:
        >>> import torch, mtlkit
        >>> model = mtlkit.models.create_model("densemtl", encoder="resnet18", decoder_dims=(8, 8, 8, 8, 8)).eval()
        >>> model(torch.rand(1, 3, 64, 70)).seg_logits.shape
        torch.Size([1, 1, 64, 70])
    """

    defaults = DenseMTLOptions()

    def build(self) -> None:
        """Builds the ResNet with strides up to 16, the decoders up to 1/2, the exchange and the heads."""
        o = self.options
        check_family(o.encoder, "resnet", "a ResNet")
        self.resnet = resnet = make_network(o.encoder, o.pretrained, in_chans=o.in_chans, output_stride=16)
        del resnet.fc
        dims = [info["num_chs"] for info in resnet.feature_info]
        *coarse, shared, finest = o.decoder_dims
        self.decoders = nn.ModuleDict({task: _Decoder(dims, (*coarse, shared)) for task in TASKS})
        self.exchange = nn.ModuleDict({task: _Exchange(shared) for task in TASKS})
        self.last = nn.ModuleList([_conv_elu(shared, finest), _conv_elu(finest, finest)])
        self.seg_head = nn.Conv2d(finest, 1, 1)
        self.cls_head = self.pooled_classifier(shared)

    def run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encoder, decoders, exchange, and the mask's last level."""
        net = self.resnet
        x = net.act1(net.bn1(net.conv1(images)))  # (B, 64, H/2, W/2)
        maps, x = [x], net.maxpool(x)
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = stage(x)  # (B, C, H/4, W/4), ..., (B, 8C, H/16, W/16)
            maps.append(x)
        found = [self.decoders[task](maps) for task in TASKS]  # (B, C, H/2, W/2) each
        seg, cls = (self.exchange[task](*pair) for task, pair in zip(TASKS, (found, found[::-1]), strict=True))
        seg = self.last[1](F.interpolate(self.last[0](seg), scale_factor=2))  # (B, C, H, W)
        assert self.cls_head is not None  # by the options
        return self.seg_head(seg), self.cls_head(cls)


class _Decoder(nn.Module):
    """Four levels, from the encoder's five maps, at 1/2 to 1/16 twice, to features (B, C, H/2, W/2)."""

    def __init__(self, dims: list[int], decoder_dims: tuple[int, ...]) -> None:
        super().__init__()
        from torchvision.models.segmentation.deeplabv3 import ASPP

        self.first, self.second = nn.ModuleList(), nn.ModuleList()
        below = dims[-1]
        for dim, skip in zip(decoder_dims, dims[-2::-1], strict=True):
            self.first.append(_conv_elu(below, dim) if len(self.first) else ASPP(below, [6, 12, 18], dim))
            self.second.append(_conv_elu(dim + skip, dim))
            below = dim

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = maps[-1]
        for i, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            x = first(x)
            x = (
                F.interpolate(x, scale_factor=2) if i else x
            )  # the first level already has the size of its skip connection
            x = second(torch.cat([x, maps[-2 - i]], 1))
        return x


class _Exchange(nn.Module):
    """Adds features of the other task: maps (B, C, H, W) of both tasks to the enriched map of the first."""

    def __init__(self, dim: int, scale: int = 4) -> None:
        super().__init__()
        self.scale = scale
        self.extract = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.ReLU())
        self.query, self.key, self.value = (conv_bn_relu(dim, dim, 1) for _ in range(3))
        self.alpha = nn.Parameter(torch.zeros(dim, 1, 1))
        self.attention = nn.Conv2d(dim, dim // 2, 3, padding=1, bias=False)
        self.conv = nn.Conv2d(dim, dim // 2, 3, padding=1, bias=False)
        self.proj, self.post = conv_bn_relu(dim // 2 + dim, dim, 1), conv_bn_relu(dim, dim, 1)

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        source = self.extract(source)
        small = target[:, :, :: self.scale, :: self.scale]  # (B, C, h, w)
        q = self.query(small).flatten(2).transpose(1, 2)  # (B, h w, C)
        pooled = F.max_pool2d(source, self.scale)
        k, v = (part(pooled).flatten(2).transpose(1, 2) for part in (self.key, self.value))
        cross = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(2, small.shape[2:])
        cross = self.alpha * F.interpolate(cross, scale_factor=self.scale)
        own = self.conv(source) * self.attention(source).sigmoid()
        return target + self.post(self.proj(torch.cat([own, cross], 1)))


def _conv_elu(in_dim: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_dim, dim, 3, padding=1, padding_mode="reflect"), nn.ELU())
