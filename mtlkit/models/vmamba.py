"""VMamba, a classifier of natural images, in its first ("vanilla") and second version.

A stem of stride 4, four stages of VSS blocks with downsampling between them, then LayerNorm, the mean over pixels and
a linear head. Parameters have the original names, so that published checkpoints load unchanged.

Source: Liu et al., "VMamba: Visual State Space Model" (2024).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mtlkit._check import check_choice
from mtlkit._factory import Factory
from mtlkit.models._common import check_images, check_stages, drop_path_rates, init_linear_and_norm
from mtlkit.models.pretrained import Pretrained, renamed, translate
from mtlkit.models.registry import register
from mtlkit.nn import ConvDownsample, ConvStem, PatchMerging, Permute, VSSBlock


@dataclass(frozen=True)
class VMambaOptions:
    """Options of VMamba; the defaults are those of the tiny version with ssm_ratio 1, "vmamba_t_s1l8".

    Attributes:
        num_classes: number of classes.
        in_chans: channels of the images.
        depths: blocks of each stage.
        dims: channels of each stage, each twice the previous one.
        stem: "conv", two strided 3 x 3 convolutions, or "patch", one of 4 x 4.
        downsample: "conv", a strided 3 x 3 convolution, or "merge", patch merging that pads odd sizes.
        d_state: states of each channel of the scans.
        ssm_ratio: ratio of a scan's channels to its block's.
        conv_bias: whether the depthwise convolutions have a bias.
        gate: gate of SS2D: "silu", "linear" or None.
        init: initialisation of the scans: "v0", "v1" or "v2".
        mlp_ratio: ratio of the perceptrons' hidden channels to the block's; 0 for no perceptrons.
        dropout: probability after each SS2D and in the perceptrons.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.

    Example:
        >>> from mtlkit.models import VMamba, VMambaOptions
        >>> network = VMamba(VMambaOptions(num_classes=2, depths=(1, 1), dims=(16, 32)))
        >>> network.options.dims
        (16, 32)
    """

    num_classes: int = 1000
    in_chans: int = 3
    depths: tuple[int, ...] = (2, 2, 8, 2)
    dims: tuple[int, ...] = (96, 192, 384, 768)
    stem: Literal["conv", "patch"] = "conv"
    downsample: Literal["conv", "merge"] = "conv"
    d_state: int = 1
    ssm_ratio: float = 1.0
    conv_bias: bool = False
    gate: Literal["silu", "linear"] | None = None
    init: Literal["v0", "v1", "v2"] = "v0"
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    drop_path_rate: float = 0.2

    def __post_init__(self) -> None:
        check_stages(self.depths, self.dims, self.num_classes, self.in_chans)
        check_choice("stem", self.stem, ("conv", "patch"))
        check_choice("downsample", self.downsample, ("conv", "merge"))


_BASE_DIMS = (128, 256, 512, 1024)


@register("vmamba_t_s1l8", VMambaOptions())
@register("vmamba_t_s2l5", VMambaOptions(depths=(2, 2, 5, 2), ssm_ratio=2.0))
@register("vmamba_s_s2l15", VMambaOptions(depths=(2, 2, 15, 2), ssm_ratio=2.0, drop_path_rate=0.3))
@register("vmamba_s_s1l20", VMambaOptions(depths=(2, 2, 20, 2), drop_path_rate=0.3))
@register("vmamba_b_s2l15", VMambaOptions(depths=(2, 2, 15, 2), dims=_BASE_DIMS, ssm_ratio=2.0, drop_path_rate=0.6))
@register(
    "vmamba_t_v0",
    VMambaOptions(
        depths=(2, 2, 9, 2),
        stem="patch",
        downsample="merge",
        d_state=16,
        ssm_ratio=2.0,
        conv_bias=True,
        gate="silu",
        mlp_ratio=0.0,
    ),
)
class VMamba(Pretrained):
    """VMamba: images to logits.

    Images may have any size: convolutions and patch merging pad with zeros. Only the 4 x 4 patches of the first version
    crop the rest at the bottom and on the right, and need at least 4 x 4 pixels.

    Checkpoints of all published versions load: the names of the first version (patch_embed.proj, ln_1, self_attention,
    norm, head) are translated, and 1 x 1 convolutions become linear layers.

    Args:
        options: options of the network.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-first images (B, in_chans, H, W) in; logits (B, num_classes) out.

    Raises:
        ValueError: the options do not fit together, or the images have another shape or are too small.
        TypeError: the images are not a floating-point tensor.

    Example:
        >>> import torch, mtlkit
        >>> options = mtlkit.models.VMambaOptions(num_classes=2, depths=(1, 1), dims=(16, 32))
        >>> model = mtlkit.models.VMamba(options).eval()
        >>> model(torch.rand(1, 3, 30, 42)).shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        options: VMambaOptions | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.options = o = options or VMambaOptions()
        factory = Factory(device=device, dtype=dtype)
        self.patch_embed = _patch_stem(o, factory) if o.stem == "patch" else ConvStem(o.in_chans, o.dims[0], **factory)
        rates = drop_path_rates(o.depths, o.drop_path_rate)
        self.layers = nn.ModuleList(_stage(o, i, rates[i], factory) for i in range(len(o.dims)))
        self.classifier = nn.ModuleDict(
            {
                "norm": nn.LayerNorm(o.dims[-1], **factory),
                "head": nn.Linear(o.dims[-1], o.num_classes, **factory),
            }
        )
        self.apply(init_linear_and_norm)
        self.register_load_state_dict_pre_hook(translate)

    def forward_features(self, images: Tensor) -> Tensor:
        """The normalised output of the last stage: (B, in_chans, H, W) to (B, H/32, W/32, C)."""
        check_images(images, self.options.in_chans, 4 if self.options.stem == "patch" else 1)
        x = self.patch_embed(images)  # (B, H/4, W/4, C)
        for stage in self.layers:
            x = stage(x)  # (B, H/8, W/8, 2 C), ..., (B, H/32, W/32, 8 C)
        return self.classifier["norm"](x)

    def forward(self, images: Tensor) -> Tensor:
        """Logits: (B, in_chans, H, W) to (B, num_classes)."""
        x = self.forward_features(images)  # (B, H/32, W/32, C)
        return self.classifier["head"](x.mean((1, 2)))  # (B, num_classes)

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`state` with today's names and shapes, if it comes from an older version."""
        linear = {f"{name}.weight" for name, module in self.named_modules() if isinstance(module, nn.Linear)}
        found = renamed(state, _FIRST_NAMES)
        return {k: v.flatten(1) if k in linear and v.shape[2:] == (1, 1) else v for k, v in found.items()}


def _patch_stem(o: VMambaOptions, factory: Factory) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(o.in_chans, o.dims[0], 4, 4, **factory),  # (B, C, H/4, W/4)
        Permute(0, 2, 3, 1),
        nn.LayerNorm(o.dims[0], **factory),  # (B, H/4, W/4, C)
    )


def _stage(o: VMambaOptions, i: int, rates: list[float], factory: Factory) -> nn.Sequential:
    dim = o.dims[i]
    blocks = [
        VSSBlock(
            dim,
            o.d_state,
            o.ssm_ratio,
            conv_bias=o.conv_bias,
            gate=o.gate,
            init=o.init,
            mlp_ratio=o.mlp_ratio,
            dropout=o.dropout,
            drop_path=rate,
            **factory,
        )
        for rate in rates
    ]
    stage = nn.Sequential()
    stage.add_module("blocks", nn.Sequential(*blocks))  # (B, H, W, C)
    if i < len(o.dims) - 1:
        merge = o.downsample == "merge"
        down = PatchMerging(dim, "pad", **factory) if merge else ConvDownsample(dim, o.dims[i + 1], **factory)
        stage.add_module("downsample", down)  # (B, H/2, W/2, 2 C)
    return stage


_FIRST_NAMES = (
    ("patch_embed.proj.", "patch_embed.0."),
    ("patch_embed.norm.", "patch_embed.2."),
    ("norm.", "classifier.norm."),
    ("head.", "classifier.head."),
    (".ln_1.", ".norm."),
    (".self_attention.", ".op."),
)
