"""MedMamba, a classifier of medical images.

Patches of 4 x 4, then four stages of SS-Conv-SSM blocks with patch merging between them, then the mean over pixels and
a linear head. Parameters have the original names, so that published checkpoints load unchanged.

Source: Yue and Li, "MedMamba: Vision Mamba for Medical Image Classification" (2024).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtlkit._factory import Factory
from mtlkit.models._common import check_images, check_stages, init_ss_conv_ssm, ss_conv_ssm_stages
from mtlkit.models.pretrained import Pretrained
from mtlkit.models.registry import register
from mtlkit.nn import PatchEmbed


@dataclass(frozen=True)
class MedMambaOptions:
    """Options of MedMamba; the defaults are those of the tiny version.

    Attributes:
        num_classes: number of classes.
        in_chans: channels of the images.
        depths: blocks of each stage.
        dims: channels of each stage, each twice the previous one.
        patch_size: rows and columns of a patch.
        d_state: states of each channel of the scans.
        ssm_ratio: ratio of a scan's channels to those of its half of the block.
        dropout: probability after each SS2D.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.

    Example:
        >>> from mtlkit.models import MedMamba, MedMambaOptions
        >>> network = MedMamba(MedMambaOptions(num_classes=2, depths=(1, 1), dims=(16, 32)))
        >>> network.options.dims
        (16, 32)
    """

    num_classes: int = 1000
    in_chans: int = 3
    depths: tuple[int, ...] = (2, 2, 4, 2)
    dims: tuple[int, ...] = (96, 192, 384, 768)
    patch_size: int = 4
    d_state: int = 16
    ssm_ratio: float = 2.0
    dropout: float = 0.0
    drop_path_rate: float = 0.1

    def __post_init__(self) -> None:
        check_stages(self.depths, self.dims, self.num_classes, self.in_chans)


@register("medmamba_t", MedMambaOptions())
@register("medmamba_s", MedMambaOptions(depths=(2, 2, 8, 2)))
@register("medmamba_b", MedMambaOptions(depths=(2, 2, 12, 2), dims=(128, 256, 512, 1024)))
class MedMamba(Pretrained):
    """MedMamba: images to logits.

    If patches and merging do not divide a size evenly, the last rows and columns are dropped, as in the original: with
    four stages, 255 x 230 pixels become 7 x 7.

    Args:
        options: options of the network.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-first images (B, in_chans, H, W) in, H and W at least 32 (with four stages); logits (B, num_classes)
        out.

    Raises:
        ValueError: the options do not fit together, or the images have another shape or are too small.
        TypeError: the images are not a floating-point tensor.

    Example:
        >>> import torch, mtlkit
        >>> options = mtlkit.models.MedMambaOptions(num_classes=2, depths=(1, 1), dims=(16, 32))
        >>> model = mtlkit.models.MedMamba(options).eval()
        >>> model(torch.rand(1, 3, 32, 48)).shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        options: MedMambaOptions | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.options = o = options or MedMambaOptions()
        factory = Factory(device=device, dtype=dtype)
        self.patch_embed = PatchEmbed(o.in_chans, o.dims[0], o.patch_size, **factory)
        self.layers = ss_conv_ssm_stages(
            o.depths, o.dims, o.d_state, o.ssm_ratio, o.dropout, o.drop_path_rate, **factory
        )
        self.head = nn.Linear(o.dims[-1], o.num_classes, **factory)
        self.apply(init_ss_conv_ssm)

    def forward_features(self, images: Tensor) -> Tensor:
        """The output of the last stage: (B, in_chans, H, W) to (B, H/32, W/32, C), channels-last."""
        o = self.options
        check_images(images, o.in_chans, o.patch_size * 2 ** (len(o.dims) - 1))
        x = self.patch_embed(images)  # (B, H/4, W/4, C)
        for stage in self.layers:
            x = stage(x)  # (B, H/8, W/8, 2 C), ..., (B, H/32, W/32, 8 C)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Logits: (B, in_chans, H, W) to (B, num_classes)."""
        x = self.forward_features(images)  # (B, H/32, W/32, C)
        return self.head(x.mean((1, 2)))  # (B, num_classes)
