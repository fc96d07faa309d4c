"""VM-UNet, a network that segments medical images.

The encoder has patches of 4 x 4 and four stages of VSS blocks with patch merging between them. The decoder has four
stages: each adds the input of the encoder's stage of its size, expands each pixel to 2 x 2, and applies VSS blocks. A
last expansion to 4 x 4 and a 1 x 1 convolution give the mask. Published checkpoints load unchanged.

Source: Ruan, Li and Xiang, "VM-UNet: Vision Mamba UNet for Medical Image Segmentation" (2024).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtlkit._factory import Factory
from mtlkit.models._common import check_images, check_stages, drop_path_rates, init_linear_and_norm, pad_to_multiple
from mtlkit.models.pretrained import Pretrained, renamed, translate
from mtlkit.models.registry import register
from mtlkit.nn import PatchEmbed, PatchMerging, VSSBlock

PATCH = 4


@dataclass(frozen=True)
class VMUNetOptions:
    """Options of VM-UNet; the defaults are the published ones.

    Attributes:
        num_classes: number of masks.
        in_chans: channels of the images.
        depths: blocks of each stage of the encoder.
        decoder_depths: blocks of each stage of the decoder, coarsest first.
        dims: channels of each stage of the encoder, each twice the one before.
        d_state: states of each channel of the scans.
        ssm_ratio: ratio of a scan's channels to its block's.
        dropout: probability after each SS2D.
        drop_path_rate: stochastic depth at the bottom; it grows linearly from 0 in the encoder and decreases in the
            decoder.

    Example:
        >>> from mtlkit.models import VMUNet, VMUNetOptions
        >>> network = VMUNet(VMUNetOptions(depths=(1, 1), decoder_depths=(1, 1), dims=(16, 32)))
        >>> network.options.dims
        (16, 32)
    """

    num_classes: int = 1
    in_chans: int = 3
    depths: tuple[int, ...] = (2, 2, 2, 2)
    decoder_depths: tuple[int, ...] = (2, 2, 2, 1)
    dims: tuple[int, ...] = (96, 192, 384, 768)
    d_state: int = 16
    ssm_ratio: float = 2.0
    dropout: float = 0.0
    drop_path_rate: float = 0.2

    def __post_init__(self) -> None:
        check_stages(self.depths, self.dims, self.num_classes, self.in_chans)
        if len(self.decoder_depths) != len(self.dims) or min(self.decoder_depths) < 1:
            raise ValueError(
                f"decoder_depths: expected {len(self.dims)} numbers of blocks, one for each of dims, "
                f"got {self.decoder_depths}"
            )
        if self.dims[0] % PATCH:
            raise ValueError(f"dims: expected multiples of {PATCH}, got {self.dims}")


class VMUNetOutput(NamedTuple):
    """The output of VM-UNet.

    Example:
        >>> import torch
        >>> from mtlkit.models import VMUNetOutput
        >>> VMUNetOutput(torch.zeros(1, 1, 8, 8)).seg_logits.sigmoid().max()
        tensor(0.5000)
    """

    seg_logits: Tensor  # (B, num_classes, H, W)


@register("vm_unet", VMUNetOptions())
class VMUNet(Pretrained):
    """VM-UNet: images to the logits of masks.

    The published code applies a sigmoid to a single mask; here all masks are logits. Images whose size is not a
    multiple of 32 are padded with zeros at the bottom and on the right, and the masks are cropped back.

    `mtlkit.models.load_published` loads checkpoints of VM-UNet, and those of the first VMamba into both halves, as in
    the published code.

    Args:
        options: options of the network.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-first images (B, in_chans, H, W) in, H and W at least 32 (with four stages); VMUNetOutput out.

    Raises:
        ValueError: the options do not fit together, or the images have another shape or are too small.
        TypeError: the images are not a floating-point tensor.

    Example:
        >>> import torch, mtlkit
        >>> options = mtlkit.models.VMUNetOptions(depths=(1, 1), decoder_depths=(1, 1), dims=(16, 32))
        >>> model = mtlkit.models.VMUNet(options).eval()
        >>> model(torch.rand(1, 3, 32, 45)).seg_logits.shape
        torch.Size([1, 1, 32, 45])
    """

    def __init__(
        self,
        options: VMUNetOptions | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.options = o = options or VMUNetOptions()
        factory = Factory(device=device, dtype=dtype)
        self.patch_embed = PatchEmbed(o.in_chans, o.dims[0], PATCH, **factory)
        self.layers, self.layers_up = nn.ModuleList(), nn.ModuleList()
        for dim, rates in zip(o.dims, drop_path_rates(o.depths, o.drop_path_rate), strict=True):
            down = None if dim == o.dims[-1] else PatchMerging(dim, "crop", **factory)
            self.layers.append(_stage(o, dim, rates, factory, downsample=down))
        finest_first = drop_path_rates(o.decoder_depths[::-1], o.drop_path_rate)
        for dim, rates in zip(o.dims[::-1], finest_first[::-1], strict=True):
            up = None if dim == o.dims[-1] else _PatchExpand(2 * dim, 2, factory)
            self.layers_up.append(_stage(o, dim, rates[::-1], factory, upsample=up))
        self.final_up = _PatchExpand(o.dims[0], PATCH, factory)
        self.final_conv = nn.Conv2d(o.dims[0] // PATCH, o.num_classes, 1, **factory)
        self.apply(init_linear_and_norm)
        self.register_load_state_dict_pre_hook(translate)

    def forward(self, images: Tensor) -> VMUNetOutput:
        """Logits: (B, in_chans, H, W) to VMUNetOutput."""
        o = self.options
        stride = PATCH * 2 ** (len(o.dims) - 1)
        check_images(images, o.in_chans, stride)
        height, width = images.shape[2:]
        x = self.patch_embed(pad_to_multiple(images, stride))  # (B, H/4, W/4, C)
        given: list[Tensor] = []
        for stage in self.layers:
            given.append(x)
            x = stage(x)  # (B, H/8, W/8, 2 C), ..., (B, H/32, W/32, 8 C)
        for i, stage in enumerate(self.layers_up):
            x = stage(x if i == 0 else x + given[-i])  # (B, H/32, W/32, 8 C), ..., (B, H/4, W/4, C)
        x = self.final_up(x).permute(0, 3, 1, 2)  # (B, C/4, H, W)
        return VMUNetOutput(self.final_conv(x)[:, :, :height, :width])  # (B, num_classes, H, W)

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`state` with today's names, from VM-UNet or from the first VMamba, whose stages go into both halves."""
        found = renamed(state, _PUBLISHED_NAMES)
        if any(name.startswith("layers_up.") for name in found):
            return found
        own = self.state_dict()
        for i in range(len(self.layers)):
            down, up = f"layers.{i}.", f"layers_up.{len(self.layers) - 1 - i}."
            twins = {name: up + name.removeprefix(down) for name in found if name.startswith(down)}
            found |= {twin: found[name] for name, twin in twins.items() if twin in own}
        return found


_PUBLISHED_NAMES = (
    ("vmunet.", ""),
    ("patch_embed.0.", "patch_embed.proj."),
    ("patch_embed.2.", "patch_embed.norm."),
    (".ln_1.", ".norm."),
    (".self_attention.", ".op."),
)


class _PatchExpand(nn.Module):
    """Each pixel becomes f x f with 1/f of its channels: (B, H, W, C) to (B, f H, f W, C / f)."""

    def __init__(self, dim: int, factor: int, factory: Factory) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(dim, factor * dim, bias=False, **factory)
        self.norm = nn.LayerNorm(dim // factor, **factory)

    def forward(self, x: Tensor) -> Tensor:
        f = self.factor
        x = self.expand(x).unflatten(3, (f, f, -1))  # (B, H, W, f, f, C / f)
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, f H, f W, C / f)
        return self.norm(x)


def _stage(
    o: VMUNetOptions,
    dim: int,
    rates: list[float],
    factory: Factory,
    upsample: nn.Module | None = None,
    downsample: nn.Module | None = None,
) -> nn.Sequential:
    blocks = [
        VSSBlock(
            dim,
            o.d_state,
            o.ssm_ratio,
            conv_bias=True,
            gate="silu",
            mlp_ratio=0,
            dropout=o.dropout,
            drop_path=rate,
            **factory,
        )
        for rate in rates
    ]
    stage = nn.Sequential()
    if upsample is not None:
        stage.add_module("upsample", upsample)  # (B, H, W, C), from half the rows and columns
    stage.add_module("blocks", nn.Sequential(*blocks))  # (B, H, W, C)
    if downsample is not None:
        stage.add_module("downsample", downsample)  # (B, H/2, W/2, 2 C)
    return stage
