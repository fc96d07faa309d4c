"""What the networks of this package share."""

from itertools import pairwise

from torch import Tensor, nn

from mtlkit.ops._check import check_tensor


def check_images(images: Tensor, in_chans: int, smallest: int) -> None:
    """Raises unless `images` is (B, in_chans, H, W) with H and W at least `smallest`.

    Raises:
        TypeError: no floating-point tensor.
        ValueError: another shape, or an image too small for the stages to come.
    """
    check_tensor("images", images, 4)
    _, channels, height, width = images.shape
    if channels != in_chans or min(height, width) < smallest:
        raise ValueError(
            f"images: expected shape (B, {in_chans}, H, W) with H and W at least {smallest}, got {tuple(images.shape)}"
        )


def check_stages(depths: tuple[int, ...], dims: tuple[int, ...], num_classes: int, in_chans: int) -> None:
    """Raises a ValueError unless the sizes describe a network of stages that each double the channels."""
    if len(depths) != len(dims) or min(depths, default=0) < 1:
        raise ValueError(f"depths: expected {len(dims)} numbers of blocks, one for each of dims, got {depths}")
    if any(wide != 2 * narrow for narrow, wide in pairwise(dims)):
        raise ValueError(f"dims: expected each to be twice the one before, got {dims}")
    for name, value in (("num_classes", num_classes), ("in_chans", in_chans)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")


def drop_path_rates(depths: tuple[int, ...], last: float) -> list[list[float]]:
    """From 0 at the first block to `last` at the last one, by stage."""
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
