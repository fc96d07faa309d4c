"""MISSFormer: a U-Net of transformers with a bridge between the tokens of all scales.

A block is attention whose keys are reduced by r x r, and a feed-forward part with a convolution in it,

    x = x + Attention(LN(x))
    x = x + W_2 GELU(LN(DWConv(W_1 LN(x)) + W_1 LN(x)))

The bridge cuts the channels of every scale into tokens of C, lets all tokens attend to those of all scales, reduced to
the coarsest size, and applies the feed-forward part of each scale.

Source: Huang et al., "MISSFormer: An Effective Medical Image Segmentation Transformer" (arXiv 2109.07162).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit.models._common import check_at_least_one, init_linear_and_norm
from mtlkit.models.baselines._base import Baseline, BaselineOptions, PatchExpand, call
from mtlkit.models.registry import register

FACTORS = (1, 2, 5, 8)  # channels of the four scales, in C, and heads of their attention
REDUCTIONS = (8, 4, 2, 1)


@dataclass(frozen=True)
class MISSFormerOptions(BaselineOptions):
    """Options of MISSFormer: those of BaselineOptions, and two more.

    Attributes:
        dim: channels C of the finest scale; the others have 2, 5 and 8 C.
        bridge_depth: layers of the bridge.

    Example:
        >>> from mtlkit.models.baselines import MISSFormerOptions
        >>> MISSFormerOptions().dim
        64
    """

    dim: int = 64
    bridge_depth: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(bridge_depth=self.bridge_depth)
        if self.dim < 2 or self.dim % 2:
            raise ValueError(f"dim: expected an even number of at least 2, got {self.dim}")


@register("missformer", MISSFormerOptions())
class MISSFormer(Baseline):
    """MISSFormer: images to the logits of a mask and of a class.

    It computes the same as the official code, which also has unused layers: a decoder stage at the coarsest scale and
    two norms of each feed-forward part, 7,009,792 of its 42,462,537 parameters with 9 classes of pixels. The classifier
    is an addition: a linear layer on the mean of the encoder's coarsest features. There are no ImageNet weights for
    this encoder.

    Args:
        options: options of the network.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-first images (B, in_chans, H, W) in, H and W at least 32; BaselineOutput out.

    Raises:
        ValueError: an option is out of range, or the images have another shape or are too small.
        TypeError: the images are not a floating-point tensor.

    Source: arXiv 2109.07162; official code: ZhifangDeng/MISSFormer.

    Example:
        >>> import torch, mtlkit
        >>> model = mtlkit.models.create_model("missformer", dim=4, bridge_depth=1).eval()
        >>> model(torch.rand(1, 3, 64, 70)).seg_logits.shape
        torch.Size([1, 1, 64, 70])
    """

    defaults = MISSFormerOptions()

    def build(self) -> None:
        """Encoder, bridge, decoder."""
        o = self.options
        dims = [factor * o.dim for factor in FACTORS]
        self.embeds = nn.ModuleList([nn.Conv2d(o.in_chans, dims[0], 7, 4, 3)])
        self.embeds.extend(nn.Conv2d(below, dim, 3, 2, 1) for below, dim in pairwise(dims))
        self.embed_norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        self.stages = nn.ModuleList(_blocks(i, dim) for i, dim in enumerate(dims))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        self.bridge = nn.ModuleList(_BridgeLayer(o.dim) for _ in range(o.bridge_depth))
        self.expands, self.fuses, self.decoder = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        below = dims[-1]
        for i, dim in reversed(list(enumerate(dims[:-1]))):
            self.expands.append(PatchExpand(below, 2, below // 2))
            self.fuses.append(nn.Linear(below // 2 + dim, dim))
            self.decoder.append(_blocks(i, dim))
            below = dim
        self.final_expand = PatchExpand(below, 4, below)
        self.seg_head = nn.Conv2d(below, 1, 1)
        self.cls_head = self.pooled_classifier(dims[-1])
        self.apply(init_linear_and_norm)

    def run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encoder, bridge and decoder; channels-last."""
        x = images
        maps: list[Tensor] = []
        for embed, embed_norm, blocks, norm in zip(self.embeds, self.embed_norms, self.stages, self.norms, strict=True):
            x = norm(blocks(embed_norm(embed(x).permute(0, 2, 3, 1))))  # (B, H/4, W/4, C), ..., (B, H/32, W/32, 8C)
            maps.append(x)
            x = x.permute(0, 3, 1, 2)
        cls_logits = call(self.cls_head, x)
        for layer in self.bridge:
            maps = layer(maps)
        x = maps.pop()
        for expand, fuse, blocks in zip(self.expands, self.fuses, self.decoder, strict=True):
            x = blocks(fuse(torch.cat([expand(x), maps.pop()], 3)))  # (B, H/16, W/16, 5C), ..., (B, H/4, W/4, C)
        return self.seg_head(self.final_expand(x).permute(0, 3, 1, 2)), cls_logits


def _blocks(scale: int, dim: int) -> nn.Sequential:
    return nn.Sequential(*(_Block(dim, FACTORS[scale], REDUCTIONS[scale]) for _ in range(2)))


class _Block(nn.Module):
    """Attention and the feed-forward part, each with its residual: (B, H, W, C) to the same."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention, self.mlp = _Attention(dim, heads), _FeedForward(dim)
        self.reduce = nn.Conv2d(dim, dim, reduction, reduction) if reduction > 1 else None
        self.reduce_norm = nn.LayerNorm(dim) if reduction > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        normed = keys = self.norm1(x)
        if self.reduce is not None and self.reduce_norm is not None:
            keys = self.reduce_norm(self.reduce(normed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        x = x + self.attention(normed.flatten(1, 2), keys.flatten(1, 2)).view_as(x)
        return x + self.mlp(self.norm2(x))


class _Attention(nn.Module):
    """Multi-head attention of tokens (B, L, C) to others (B, L', C)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, others: Tensor) -> Tensor:
        q = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, L, C / heads)
        k, v = self.kv(others).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, L', C / heads)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    """The enhanced Mix-FFN: (B, H, W, C) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = 4 * dim
        self.fc1, self.fc2, self.norm = nn.Linear(dim, hidden), nn.Linear(hidden, dim), nn.LayerNorm(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)  # (B, H, W, 4C)
        mixed = self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(self.norm(mixed + x)))


class _BridgeLayer(nn.Module):
    """Attention over the tokens of all scales, and the feed-forward part of each."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.reduce_norm = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = _Attention(dim, 1)
        dims = [factor * dim for factor in FACTORS]
        self.reduces = nn.ModuleList(nn.Conv2d(d, d, r, r) for d, r in zip(dims, REDUCTIONS, strict=True) if r > 1)
        self.mlps = nn.ModuleList(_FeedForward(d) for d in dims)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        dim = self.norm1.normalized_shape[0]
        counts = [x.shape[1] * x.shape[2] * x.shape[3] // dim for x in maps]
        shapes = [x.shape[1:] for x in maps]

        def tokens_of(found: list[Tensor]) -> Tensor:
            return torch.cat([x.reshape(len(x), -1, dim) for x in found], 1)  # (B, L, C)

        def maps_of(tokens: Tensor) -> list[Tensor]:
            parts = tokens.split(counts, 1)
            return [part.reshape(len(part), *shape) for part, shape in zip(parts, shapes, strict=True)]

        tokens = tokens_of(maps)
        normed = self.norm1(tokens)
        *finer, coarsest = maps_of(normed)
        reduced = [
            # the official code splits the channels of a reduced map differently from those of a map: C rows of f h w
            # values
            reduce(x.permute(0, 3, 1, 2)).reshape(len(x), dim, -1).transpose(1, 2)
            for reduce, x in zip(self.reduces, finer, strict=True)
        ]
        keys = self.reduce_norm(torch.cat([*reduced, coarsest.reshape(len(coarsest), -1, dim)], 1))
        tokens = tokens + self.attention(normed, keys)
        mixed = [mlp(x) for mlp, x in zip(self.mlps, maps_of(self.norm2(tokens)), strict=True)]
        return maps_of(tokens + tokens_of(mixed))
