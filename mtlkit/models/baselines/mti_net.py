"""MTI-Net: the tasks of a high-resolution network exchange their features at each of its four scales.

From the coarsest scale up, with the features F_t of each task t:

    F_t = two residual blocks([backbone; upsampled P_t of the scale below])
    S   = softmax(f([F_1; F_2])) [F_1; F_2], reduced to one map              feature propagation to the scale above
    P_t = F_t + SE_t(S)
    D_t = F_t + sigmoid(V F_u) (W F_u)                                       distillation from the other task u

The heads concatenate D_t of all scales.

Source: Vandenhende et al., "MTI-Net: Multi-Scale Task Interaction Networks for Multi-Task Learning" (arXiv 2001.06902);
backbone and residual blocks: timm, squeeze and excitation: torchvision.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit.models.baselines._base import Baseline, EncoderOptions
from mtlkit.models.encoders import check_family, make_network
from mtlkit.models.registry import register

TASKS = ("segmentation", "classification")


@dataclass(frozen=True)
class MTINetOptions(EncoderOptions):
    """Options of MTI-Net: those of EncoderOptions. The classifier is required.

    Attributes:
        encoder: an HRNet of timm, with or without a tag for its weights.
        pretrained: whether it starts from ImageNet weights.

    Example:
        >>> from mtlkit.models.baselines import MTINetOptions
        >>> MTINetOptions().encoder
        'hrnet_w18_small_v2.ms_in1k'
    """

    encoder: str = "hrnet_w18_small_v2.ms_in1k"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.classifier:
            raise ValueError("classifier: expected True for mti_net, whose two tasks interact, got False")


@register("mti_net", MTINetOptions())
class MTINet(Baseline):
    """MTI-Net on HRNet-W18-Small-v2: images to the logits of a mask and of a class.

    It computes the same as the official code for two tasks and has the same number of parameters, 8,558,014 for three
    classes, except 1,096 for predictions at each scale that only separate losses use. Differences: timm's HRNet repeats
    pixels where the official backbone interpolates, and the class logits are the mean of a map of logits.

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

    Source: arXiv 2001.06902; official code: SimonVandenhende/Multi-Task-Learning-PyTorch.

    Example:
        >>> import torch, mtlkit
        >>> model = mtlkit.models.create_model("mti_net", encoder="hrnet_w18_small").eval()
        >>> model(torch.rand(1, 3, 64, 70)).seg_logits.shape
        torch.Size([1, 1, 64, 70])
    """

    defaults = MTINetOptions()

    def build(self) -> None:
        """Builds HRNet without its classifier, and the three kinds of modules at each scale."""
        o = self.options
        check_family(o.encoder, "hrnet", "an HRNet")
        self.hrnet = net = make_network(o.encoder, o.pretrained, in_chans=o.in_chans)
        dims = tuple(net.stage4_cfg["num_channels"])
        for part in ("incre_modules", "downsamp_modules", "final_layer", "classifier"):
            delattr(net, part)
        self.refine, self.distil = nn.ModuleDict(), nn.ModuleDict()
        for i, (dim, below) in enumerate(zip(dims, (*dims[1:], 0), strict=True)):
            for task in TASKS:
                self.refine[f"{task}_{i}"] = nn.Sequential(_residual(dim + below, dim), _residual(dim, dim))
                self.distil[f"{task}_{i}"] = _SelfAttention(dim)
        self.propagate = nn.ModuleList(_Propagation(dim) for dim in dims[1:])
        self.heads = nn.ModuleDict()
        width = sum(dims)
        for task in TASKS:
            self.heads[task] = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.seg_head = nn.Conv2d(width, 1, 1)
        self.cls_head = self.pooled_classifier(width)

    def run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Backbone, features from the coarsest scale up, distillation, heads."""
        net = self.hrnet
        x = net.act2(net.bn2(net.conv2(net.act1(net.bn1(net.conv1(images))))))
        scales = net.stages(x)  # (B, C, H/4, W/4), ..., (B, 8C, H/32, W/32)
        below: dict[str, Tensor] | None = None
        distilled: dict[str, list[Tensor]] = {task: [] for task in TASKS}
        for i in (3, 2, 1, 0):
            found: dict[str, Tensor] = {}
            for task in TASKS:
                x = scales[i]
                if below is not None:
                    x = torch.cat([x, F.interpolate(below[task], scale_factor=2, mode="bilinear")], 1)
                found[task] = self.refine[f"{task}_{i}"](x)
            if i > 0:
                below = self.propagate[i - 1](found)
            for task, other in (TASKS, TASKS[::-1]):
                distilled[task].insert(0, found[task] + self.distil[f"{task}_{i}"](found[other]))
        features = {}
        for task in TASKS:
            finest, *coarser = distilled[task]
            maps = [finest, *(F.interpolate(x, finest.shape[2:], mode="bilinear") for x in coarser)]
            features[task] = self.heads[task](torch.cat(maps, 1))  # (B, 15C, H/4, W/4)
        mask = F.interpolate(self.seg_head(features["segmentation"]), images.shape[2:], mode="bilinear")
        assert self.cls_head is not None  # by the options
        return mask, self.cls_head(features["classification"])


class _Propagation(nn.Module):
    """Feature propagation: maps (B, C, H, W) of the tasks to the same number of maps."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        from torchvision.ops import SqueezeExcitation

        shared = len(TASKS) * dim
        inner = shared // 4
        self.weigh = nn.Sequential(_residual(shared, inner), _residual(inner, inner), nn.Conv2d(inner, shared, 1))
        self.reduce = _residual(shared, dim)
        self.excite = nn.ModuleDict({task: SqueezeExcitation(dim, dim // 16) for task in TASKS})

    def forward(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        joined = torch.cat([found[task] for task in TASKS], 1)  # (B, 2C, H, W)
        # as in the official code: the softmax is over neighbouring channels, not over the same channel of each task
        weights = self.weigh(joined).unflatten(1, (-1, len(TASKS))).softmax(2).flatten(1, 2)
        shared = self.reduce(weights * joined)  # (B, C, H, W)
        return {task: found[task] + self.excite[task](shared) for task in TASKS}


class _SelfAttention(nn.Module):
    """What a task takes from the other's features: sigmoid(V x) (W x), with 3 x 3 convolutions V and W."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.attention(x).sigmoid()


def _residual(in_dim: int, dim: int) -> Any:
    from timm.models.resnet import BasicBlock

    shortcut = nn.Sequential(nn.Conv2d(in_dim, dim, 1, bias=False), nn.BatchNorm2d(dim))
    return BasicBlock(in_dim, dim, downsample=None if in_dim == dim else shortcut)
