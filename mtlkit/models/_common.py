"""Shared by the networks of this package."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit._check import check_tensor
from mtlkit._factory import Factory
from mtlkit.nn import PatchMerging, SSConvSSM


def check_images(images: Tensor, in_chans: int, smallest: int) -> None:
    """Raises unless `images` is (B, in_chans, H, W) with H and W at least `smallest`.

    Raises:
        TypeError: it is not a floating-point tensor. ValueError: it has another shape, or the images are too small for
        the network.
    """
    check_tensor("images", images, 4)
    _, channels, height, width = images.shape
    if channels != in_chans or min(height, width) < smallest:
        raise ValueError(
            f"images: expected shape (B, {in_chans}, H, W) with H and W at least {smallest}, got {tuple(images.shape)}"
        )


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Zeros at the bottom and on the right until `multiple` divides H and W: (B, C, H, W) to (B, C, H', W')."""
    height, width = images.shape[-2:]
    # not -height % multiple, which torch.compile cannot trace into code that depends on sizes, such as interpolation
    rows = (height + multiple - 1) // multiple * multiple - height
    columns = (width + multiple - 1) // multiple * multiple - width
    return F.pad(images, (0, columns, 0, rows)) if rows or columns else images


def install_hint(package: str, what: str, extra: str = "models") -> str:
    """The message for a missing optional package: what needs it, and how to install it."""
    return f'{package} is not installed, and {what} need it: pip install "mtlkit[{extra}]"'


def check_at_least_one(**values: int) -> None:
    """Raises a ValueError unless every value is at least 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")


def check_stages(depths: tuple[int, ...], dims: tuple[int, ...], num_classes: int, in_chans: int) -> None:
    """Raises a ValueError unless the sizes describe a network of stages that each double the channels."""
    if len(depths) != len(dims) or min(depths, default=0) < 1:
        raise ValueError(f"depths: expected {len(dims)} numbers of blocks, one for each of dims, got {depths}")
    if any(wide != 2 * narrow for narrow, wide in pairwise(dims)):
        raise ValueError(f"dims: expected each to be twice the previous one, got {dims}")
    check_at_least_one(num_classes=num_classes, in_chans=in_chans)


def drop_path_rates(depths: tuple[int, ...], last: float) -> list[list[float]]:
    """Rates that grow linearly from 0 at the first block to `last` at the last one, grouped by stage."""
    count = sum(depths)
    rates = iter(last * i / max(1, count - 1) for i in range(count))
    return [[next(rates) for _ in range(depth)] for depth in depths]


def init_linear_and_norm(module: nn.Module) -> None:
    """For `Module.apply`: linear layers trunc_normal(0.02) with bias 0, LayerNorm 1 and 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()


def init_ss_conv_ssm(module: nn.Module) -> None:
    """For `Module.apply`: `init_linear_and_norm`, and convolutions Kaiming normal over their outputs (MedMamba)."""
    init_linear_and_norm(module)
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class SSConvSSMStage(nn.Module):
    """Blocks of SS-Conv-SSM and, except in the last stage, patch merging: (B, H, W, C) to (B, H/2, W/2, 2 C)."""

    def __init__(self, blocks: list[SSConvSSM], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Blocks, then merging; channels-last."""
        for block in self.blocks:
            x = block(x)  # (B, H, W, C)
        return x if self.downsample is None else self.downsample(x)  # (B, H/2, W/2, 2 C)


def ss_conv_ssm_stages(
    depths: tuple[int, ...],
    dims: tuple[int, ...],
    d_state: int,
    ssm_ratio: float,
    dropout: float,
    drop_path_rate: float,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.ModuleList:
    """The stages of MedMamba, one for each of `dims`."""
    factory = Factory(device=device, dtype=dtype)
    rates = drop_path_rates(depths, drop_path_rate)
    stages = nn.ModuleList()
    for i, dim in enumerate(dims):
        blocks = [SSConvSSM(dim, d_state, ssm_ratio, dropout, rate, **factory) for rate in rates[i]]
        last = i == len(dims) - 1
        stages.append(SSConvSSMStage(blocks, None if last else PatchMerging(dim, "crop", **factory)))
    return stages
