"""VMamba and VM-UNet restated in plain PyTorch, with the parameter names and shapes of the published checkpoints."""

from collections import OrderedDict

import plain_medmamba
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.third_party_models import LayerNorm2d, Linear2d, VMambaSS2D, VSSBlock

DIMS = (16, 32)
CLASSES = 3


class Transposed(nn.Module):
    """Moves the channels of an image to the end or back."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


def pooled_head(dim: int, norm: nn.Module, before: nn.Module) -> nn.Sequential:
    pool = nn.AdaptiveAvgPool2d(1)
    parts = {
        "norm": norm,
        "permute": before,
        "avgpool": pool,
        "flatten": nn.Flatten(1),
        "head": nn.Linear(dim, CLASSES),
    }
    return nn.Sequential(OrderedDict(parts))


# --- VMamba's second version, channels first --------------------------------------------------------------------------


class VMambaBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim)
        self.op = VMambaSS2D(dim, channel_first=True, ssm_ratio=1.0)
        self.norm2 = LayerNorm2d(dim)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=Linear2d(dim, 4 * dim), act=nn.GELU(), fc2=Linear2d(4 * dim, dim), drop=nn.Dropout(0.0))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.op(self.norm(x))
        return x + self.mlp(self.norm2(x))


def vmamba() -> nn.Module:
    """Two stages with one block each."""
    dim, wide = DIMS
    stem = nn.Sequential(
        nn.Conv2d(3, dim // 2, 3, 2, 1),
        nn.Identity(),
        LayerNorm2d(dim // 2),
        nn.Identity(),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, 3, 2, 1),
        nn.Identity(),
        LayerNorm2d(dim),
    )
    down = nn.Sequential(nn.Identity(), nn.Conv2d(dim, wide, 3, 2, 1), nn.Identity(), LayerNorm2d(wide))
    stages = [
        nn.Sequential(OrderedDict(blocks=nn.Sequential(VMambaBlock(d)), downsample=after))
        for d, after in ((dim, down), (wide, nn.Identity()))
    ]
    head = pooled_head(wide, LayerNorm2d(wide), nn.Identity())
    return nn.Sequential(OrderedDict(patch_embed=stem, layers=nn.Sequential(*stages), classifier=head))


# --- the first version, and VM-UNet -----------------------------------------------------------------------------------


def patches(dim: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(proj=nn.Conv2d(3, dim, 4, 4), permute=Transposed(0, 2, 3, 1), norm=nn.LayerNorm(dim))
    )


class Stage(nn.Module):
    """VSS blocks, after an expansion or before a merging, if there is one."""

    def __init__(self, dim: int, upsample: nn.Module | None = None, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([VSSBlock(dim, 4)])
        if upsample is not None:
            self.upsample = upsample
        if downsample is not None:
            self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        x = self.upsample(x) if hasattr(self, "upsample") else x
        for block in self.blocks:
            x = block(x)
        return self.downsample(x) if hasattr(self, "downsample") else x


def stages_down() -> nn.ModuleList:
    dim, wide = DIMS
    return nn.ModuleList([Stage(dim, downsample=plain_medmamba.PatchMerging2D(dim)), Stage(wide)])


class FirstVMamba(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = patches(DIMS[0])
        self.layers = stages_down()
        self.norm = nn.LayerNorm(DIMS[1])
        self.head = nn.Linear(DIMS[1], CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        for stage in self.layers:
            x = stage(x)
        return self.head(self.norm(x).mean((1, 2)))


class PatchExpand(nn.Module):
    def __init__(self, dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(dim, factor * dim, bias=False)
        self.norm = nn.LayerNorm(dim // factor)

    def forward(self, x: Tensor) -> Tensor:
        """The first C / f channels belong to the first row's first pixel, the next C / f to its second one."""
        f, x = self.factor, self.expand(x)
        parts = x.chunk(f * f, -1)
        rows = [torch.stack(parts[i : i + f], 3).flatten(2, 3) for i in range(0, f * f, f)]  # (B, H, f W, C / f) each
        return self.norm(torch.stack(rows, 2).flatten(1, 2))


class VMUNet(nn.Module):
    """The published class: a network in an attribute, and a sigmoid if there is only one map."""

    def __init__(self) -> None:
        super().__init__()
        dim, wide = DIMS
        self.vmunet = net = nn.Module()
        net.patch_embed = patches(dim)
        net.layers = stages_down()
        net.layers_up = nn.ModuleList([Stage(wide), Stage(dim, upsample=PatchExpand(wide, 2))])
        net.final_up = PatchExpand(dim, 4)
        net.final_conv = nn.Conv2d(dim // 4, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        net = self.vmunet
        x, skips = net.patch_embed(images), []
        for stage in net.layers:
            skips.append(x)
            x = stage(x)
        x = net.layers_up[0](x)
        x = net.layers_up[1](x + skips[1])
        return F.sigmoid(net.final_conv(net.final_up(x).permute(0, 3, 1, 2)))
