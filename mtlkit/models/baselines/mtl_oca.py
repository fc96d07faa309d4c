"""MTL-OCA: a U-Net whose pixels attend to lesion and background, and a classifier guided by a first mask.

Object-contextual attention, from features x_i of the pixels and a first mask's logits m_k of the two regions k:

    f_k = sum_i softmax_i(m_k)_i x_i                                  features of a region
    w_i = softmax_k(q(x_i)^T k(f_k) / sqrt(C))                        relation of a pixel to each region
    z_i = g([x_i; r(sum_k w_ik v(f_k))])                              features of the second mask, the output

The classifier uses the mean of the encoder's last features inside the first mask and over the image.

Source: Lu et al., "Automatic joint segmentation and classification of breast ultrasound images via multi-task learning
with object contextual attention", Frontiers in Oncology 15 (2025); the attention: Yuan et al., "Object-Contextual
Representations for Semantic Segmentation" (arXiv 1909.11065).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit.models.baselines._base import Baseline, EncoderOptions, conv_bn_relu
from mtlkit.models.encoders import Encoder, check_strides
from mtlkit.models.registry import register


@dataclass(frozen=True)
class MTLOCAOptions(EncoderOptions):
    """Options of MTL-OCA: those of EncoderOptions, and one more.

    Attributes:
        encoder: a network of timm whose features have strides 2, 4, 8, 16 and 32, with or without a tag for its
            weights.
        pretrained: whether it starts from ImageNet weights.
        decoder_dims: channels of the four decoder levels, coarsest first.

    Example:
        >>> from mtlkit.models.baselines import MTLOCAOptions
        >>> MTLOCAOptions().encoder
        'resnet50.tv_in1k'
    """

    encoder: str = "resnet50.tv_in1k"
    decoder_dims: tuple[int, ...] = (256, 128, 64, 64)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.decoder_dims) != 4 or min(self.decoder_dims) < 2:
            raise ValueError(f"decoder_dims: expected 4 numbers of at least 2, got {self.decoder_dims}")


@register("mtl_oca", MTLOCAOptions())
class MTLOCA(Baseline):
    """MTL-OCA: images to the logits of a mask and of a class.

    Neither code nor the number of parameters is published. This implementation chooses a ResNet-50 encoder, a U-Net
    decoder, and attention at half of the image's size.

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

    Source: Frontiers in Oncology 15 (2025), 1567577.

    Example:
        >>> import torch, mtlkit
        >>> model = mtlkit.models.create_model("mtl_oca", encoder="resnet18", decoder_dims=(16, 16, 8, 8)).eval()
        >>> model(torch.rand(1, 3, 64, 70)).seg_logits.shape
        torch.Size([1, 1, 64, 70])
    """

    defaults = MTLOCAOptions()

    def build(self) -> None:
        """Encoder, decoder, first mask, attention, heads."""
        o = self.options
        self.encoder = Encoder(o.encoder, o.pretrained, o.in_chans)
        check_strides(self.encoder)
        *skips, coarsest = self.encoder.channels
        self.decoder, below = nn.ModuleList(), coarsest
        for dim, skip in zip(o.decoder_dims, skips[::-1], strict=True):
            self.decoder.append(nn.Sequential(conv_bn_relu(below + skip, dim), conv_bn_relu(dim, dim)))
            below = dim
        self.first_mask = nn.Conv2d(below, 2, 1)  # background and lesion
        self.context = ObjectContext(below)
        self.seg_head = nn.Conv2d(below, 1, 1)
        self.cls_head = (
            nn.Sequential(nn.Dropout(o.dropout), nn.Linear(2 * coarsest, o.num_classes)) if o.classifier else None
        )

    def run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encoder, decoder, first mask, attention and classifier."""
        *skips, coarsest = self.encoder(images)
        x = coarsest
        for level in self.decoder:
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
            x = level(torch.cat([x, skips.pop()], 1))  # (B, C, H/16, W/16), ..., (B, C, H/2, W/2)
        first = self.first_mask(x)  # (B, 2, H/2, W/2)
        mask = F.interpolate(self.seg_head(self.context(x, first)), scale_factor=2, mode="bilinear")
        if self.cls_head is None:
            return mask, None
        lesion = F.avg_pool2d(first.softmax(1)[:, 1:], 16)  # (B, 1, H/32, W/32)
        within = (lesion * coarsest).sum((2, 3)) / (lesion.sum((2, 3)) + 1e-6)  # (B, C)
        return mask, self.cls_head(torch.cat([within, coarsest.mean((2, 3))], 1))


class ObjectContext(nn.Module):
    """Object-contextual attention: features (B, C, H, W) and logits of K regions (B, K, H, W), to features.

    Args:
        dim: channels.

    Example:
        >>> import torch
        >>> from mtlkit.models.baselines.mtl_oca import ObjectContext
        >>> ObjectContext(8).eval()(torch.rand(1, 8, 6, 5), torch.rand(1, 2, 6, 5)).shape
        torch.Size([1, 8, 6, 5])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Sequential(conv_bn_relu(dim, dim, 1), conv_bn_relu(dim, dim, 1))
        self.key = nn.Sequential(conv_bn_relu(dim, dim, 1), conv_bn_relu(dim, dim, 1))
        self.value, self.rise, self.join = (conv_bn_relu(d, dim, 1) for d in (dim, dim, 2 * dim))

    def forward(self, x: Tensor, regions: Tensor) -> Tensor:
        """Regions, relations, and the features of both."""
        weights = regions.flatten(2).softmax(2)  # (B, K, H W)
        objects = (weights @ x.flatten(2).transpose(1, 2)).transpose(1, 2)[..., None]  # (B, C, K, 1)
        q, k, v = (part.flatten(2).transpose(1, 2) for part in (self.query(x), self.key(objects), self.value(objects)))
        context = F.scaled_dot_product_attention(q, k, v)  # (B, H W, C)
        context = self.rise(context.transpose(1, 2).unflatten(2, x.shape[2:]))
        return self.join(torch.cat([x, context], 1))
