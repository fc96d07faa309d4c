"""TransUNet: a vision transformer on the features of a ResNet, and a decoder with skip connections to the ResNet.

    x_1, x_2, x_3, x_4 = ResNetV2(image)         1/2, 1/4, 1/8, 1/16; the stem and three stages
    z = Transformer(W x_4 + positions)           one token per pixel of x_4
    y = decoder(z; x_3, x_2, x_1)                four times: bilinear upsampling, two convolutions

Source: Chen et al., "TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation" (arXiv 2102.04306);
ResNet and transformer: timm.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit.models._common import check_at_least_one
from mtlkit.models.baselines._base import Baseline, EncoderOptions, call, conv_bn_relu
from mtlkit.models.encoders import make_network
from mtlkit.models.registry import register


@dataclass(frozen=True)
class TransUNetOptions(EncoderOptions):
    """Options of TransUNet: those of EncoderOptions, and two more.

    Attributes:
        encoder: a hybrid network of timm whose ResNet has three stages, with or without a tag for its weights.
        pretrained: whether the encoder starts from the weights of ImageNet-21k.
        depth: blocks of the transformer.
        image_size: height and width for which positions are learned; for other sizes they are interpolated.

    Example:
        >>> from mtlkit.models.baselines import TransUNetOptions
        >>> TransUNetOptions().encoder
        'vit_base_r50_s16_224.orig_in21k'
    """

    encoder: str = "vit_base_r50_s16_224.orig_in21k"
    depth: int = 12
    image_size: int = 224

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(depth=self.depth)
        if self.image_size < 32 or self.image_size % 16:
            raise ValueError(f"image_size: expected a multiple of 16 of at least 32, got {self.image_size}")


@register("transunet", TransUNetOptions())
class TransUNet(Baseline):
    """TransUNet, R50-ViT-B/16: images to the logits of a mask and of a class.

    It has the layers and the number of parameters of the official code, 105,277,081 with 9 classes of pixels at 224 x
    224; convolutions are padded as in the code of its pretrained weights. The classifier is an addition: a linear
    layer on the mean of the transformer's tokens.

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

    Source: arXiv 2102.04306; official code: Beckschen/TransUNet.

    Example:
        >>> import torch, mtlkit
        >>> model = mtlkit.models.create_model("transunet", depth=1).eval()
        >>> model(torch.rand(1, 3, 64, 70)).seg_logits.shape
        torch.Size([1, 1, 64, 70])
    """

    defaults = TransUNetOptions()
    stride = 16

    def build(self) -> None:
        """Builds the encoder from timm's hybrid network, and the decoder."""
        o = self.options
        depth = {} if o.pretrained else {"depth": o.depth}  # the weights are for all blocks
        net = make_network(o.encoder, o.pretrained, in_chans=o.in_chans, img_size=o.image_size, **depth)
        self.resnet, self.proj = net.patch_embed.backbone, net.patch_embed.proj
        grid = o.image_size // self.stride
        positions = net.pos_embed.detach()[:, net.num_prefix_tokens :]  # (1, L, C), without the class token
        self.positions = nn.Parameter(positions.transpose(1, 2).unflatten(2, (grid, grid)).contiguous())
        self.blocks, self.norm = net.blocks[: o.depth], net.norm
        self.project = conv_bn_relu(net.embed_dim, 512)
        self.decoder = nn.ModuleList()
        below = 512
        for dim, skip in zip((256, 128, 64, 16), (512, 256, 64, 0), strict=True):
            self.decoder.append(nn.Sequential(conv_bn_relu(below + skip, dim), conv_bn_relu(dim, dim)))
            below = dim
        self.seg_head = nn.Conv2d(below, 1, 3, padding=1)
        self.cls_head = self.pooled_classifier(net.embed_dim)

    def run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """ResNet, transformer, decoder."""
        stem = self.resnet.stem
        x = stem.norm(stem.conv(images))  # (B, 64, H/2, W/2)
        skips, x = [x], stem.pool(x)
        for stage in self.resnet.stages:
            x = stage(x)  # (B, 256, H/4, W/4), ..., (B, 1024, H/16, W/16)
            skips.append(x)
        x = self.proj(skips.pop())  # (B, C, H/16, W/16)
        size = x.shape[2:]
        x = x + F.interpolate(self.positions, size, mode="bilinear")
        tokens = self.norm(self.blocks(x.flatten(2).transpose(1, 2)))  # (B, L, C)
        x = features = tokens.transpose(1, 2).unflatten(2, size)  # (B, C, H/16, W/16)
        x = self.project(x)
        for level in self.decoder:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = level(torch.cat([x, skips.pop()], 1) if skips else x)  # (B, 256, H/8, W/8), ..., (B, 16, H, W)
        return self.seg_head(x), call(self.cls_head, features)
