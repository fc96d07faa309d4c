"""Swin-Unet: a U-Net with the stages of a Swin transformer, patch merging in the encoder, expansion in the decoder.

Source: Cao et al., "Swin-Unet: Unet-like Pure Transformer for Medical Image Segmentation" (arXiv 2105.05537);
blocks and merging: timm.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtlkit._check import check_probability
from mtlkit.models._common import init_linear_and_norm
from mtlkit.models.baselines._base import Baseline, EncoderOptions, PatchExpand, call
from mtlkit.models.encoders import make_network
from mtlkit.models.registry import register


@dataclass(frozen=True)
class SwinUNetOptions(EncoderOptions):
    """Options of Swin-Unet: those of EncoderOptions, and two more.

    Attributes:
        encoder: a Swin transformer of timm with four stages, with or without a tag for its weights.
        pretrained: whether encoder and decoder start from its ImageNet weights.
        depths: blocks of each stage; the decoder mirrors all but the last stage.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.

    Example:
        >>> from mtlkit.models.baselines import SwinUNetOptions
        >>> SwinUNetOptions().encoder
        'swin_tiny_patch4_window7_224.ms_in1k'
    """

    encoder: str = "swin_tiny_patch4_window7_224.ms_in1k"
    depths: tuple[int, ...] = (2, 2, 2, 2)
    drop_path_rate: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_probability(drop_path_rate=self.drop_path_rate)
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise ValueError(f"depths: expected 4 numbers of blocks, got {self.depths}")


@register("swin_unet", SwinUNetOptions())
class SwinUNet(Baseline):
    """Swin-Unet: images to the logits of a mask and of a class.

    It has the layers and the number of parameters of the official code, 27,168,900 with 9 classes of pixels. As there,
    the decoder's blocks are initialised as copies of the encoder's. The classifier is an addition: a linear layer on
    the mean of the encoder's last features.

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

    Source: arXiv 2105.05537; official code: HuCaoFighting/Swin-Unet.

    Example:
        >>> import torch, mtlkit
        >>> model = mtlkit.models.create_model("swin_unet", depths=(1, 1, 1, 1)).eval()
        >>> model(torch.rand(1, 3, 64, 70)).seg_logits.shape
        torch.Size([1, 1, 64, 70])
    """

    defaults = SwinUNetOptions()

    def build(self) -> None:
        """Builds the encoder from timm's Swin transformer, and the decoder as its mirror."""
        o = self.options
        depths = {} if o.pretrained else {"depths": o.depths}  # the weights are for all blocks
        options = {"in_chans": o.in_chans, "strict_img_size": False, "drop_path_rate": o.drop_path_rate, **depths}
        net = make_network(o.encoder, o.pretrained, **options)
        self.patch_embed, self.layers, self.norm = net.patch_embed, net.layers, net.norm
        for layer, depth in zip(self.layers, o.depths, strict=True):
            layer.blocks = layer.blocks[:depth]
        *dims, below = (info["num_chs"] for info in net.feature_info)
        self.cls_head = self.pooled_classifier(below)
        self.expands, self.fuses, self.decoder = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for dim, layer in zip(dims[::-1], self.layers[-2::-1], strict=True):
            self.expands.append(PatchExpand(below, 2, dim))
            self.fuses.append(nn.Linear(2 * dim, dim))
            self.decoder.append(copy.deepcopy(layer.blocks))
            below = dim
        self.norm_up, self.final_expand = nn.LayerNorm(below), PatchExpand(below, 4, below)
        self.seg_head = nn.Conv2d(below, 1, 1, bias=False)
        for part in (self.expands, self.fuses, self.final_expand):
            part.apply(init_linear_and_norm)

    def run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encoder and decoder; channels-last."""
        x = self.patch_embed(images)
        skips: list[Tensor] = []
        for layer in self.layers:
            x = layer.downsample(x)  # (B, H/4, W/4, C), ..., (B, H/32, W/32, 8C)
            skips.append(x)
            x = layer.blocks(x)
        skips.pop()
        x = features = self.norm(x)
        for expand, fuse, blocks in zip(self.expands, self.fuses, self.decoder, strict=True):
            x = blocks(fuse(torch.cat([expand(x), skips.pop()], 3)))  # (B, H/16, W/16, 4C), ..., (B, H/4, W/4, C)
        x = self.final_expand(self.norm_up(x)).permute(0, 3, 1, 2)  # (B, C, H, W)
        return self.seg_head(x), call(self.cls_head, features.permute(0, 3, 1, 2))
