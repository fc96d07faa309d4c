"""MTAN: a shared ResNet with attention on the features of its stages for each task.

Stage s of the ResNet gives u_s before its last block and p_s after it; a task's features are

    a_s = sigmoid(BN W_2 ReLU(BN W_1 [u_s; R_(s-1) a_(s-1)])) p_s

where R_s, a bottleneck that the tasks share, brings them to the size of the next stage.

Source: Liu et al., "End-to-End Multi-Task Learning with Attention" (arXiv 1803.10704); ResNet: timm, ASPP: torchvision.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit.models.baselines._base import Baseline, EncoderOptions
from mtlkit.models.encoders import check_family, make_network
from mtlkit.models.registry import register

TASKS = ("segmentation", "classification")


@dataclass(frozen=True)
class MTANOptions(EncoderOptions):
    """Options of MTAN: those of EncoderOptions.

    Attributes:
        encoder: a ResNet of timm, with or without a tag for its weights.
        pretrained: whether it starts from ImageNet weights.

    Example:
        >>> from mtlkit.models.baselines import MTANOptions
        >>> MTANOptions().encoder
        'resnet50.tv_in1k'
    """

    encoder: str = "resnet50.tv_in1k"


@register("mtan", MTANOptions())
class MTAN(Baseline):
    """MTAN on a dilated ResNet-50: images to the logits of a mask and of a class.

    The parts are those of the official code for ResNets, with the same numbers of parameters: 23,508,032 in the ResNet,
    4,175,936 in the attention of each task, 7,931,392 shared by the tasks and 16,125,697 in DeepLab's head. Difference:
    a linear layer on the mean of its task's last features gives the class; the publication has only dense tasks.

    Args:
        options: options of the network.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-first images (B, in_chans, H, W) in, H and W at least 32; BaselineOutput out. Training needs batches of
        at least 2 images, for BatchNorm on pooled features of the head.

    Raises:
        ImportError: timm is not installed.
        OSError: the pretrained weights cannot be downloaded or read.
        ValueError: an option is out of range, or the images have another shape or are too small.
        TypeError: the images are not a floating-point tensor.

    Source: arXiv 1803.10704; official code: lorenmt/mtan.

    Example:
        >>> import torch, mtlkit
        >>> model = mtlkit.models.create_model("mtan", encoder="resnet18").eval()
        >>> model(torch.rand(1, 3, 64, 70)).seg_logits.shape
        torch.Size([1, 1, 64, 70])
    """

    defaults = MTANOptions()

    def build(self) -> None:
        """Builds the ResNet with strides up to 8, the attention of the tasks and the heads."""
        from torchvision.models.segmentation.deeplabv3 import DeepLabHead

        o = self.options
        check_family(o.encoder, "resnet", "a ResNet")
        self.resnet = resnet = make_network(o.encoder, o.pretrained, in_chans=o.in_chans, output_stride=8)
        del resnet.fc
        dims = [info["num_chs"] for info in resnet.feature_info[1:]]
        self.tasks = TASKS if o.classifier else TASKS[:1]
        inputs = [dims[0], *(2 * dim for dim in dims[1:])]
        self.attention = nn.ModuleDict()
        for task in self.tasks:
            for i, (in_dim, dim) in enumerate(zip(inputs, dims, strict=True)):
                self.attention[f"{task}_{i + 1}"] = _attention(in_dim, dim)
        self.refine = nn.ModuleList(_bottleneck(dim, above) for dim, above in pairwise(dims))
        self.seg_head: nn.Module = DeepLabHead(dims[-1], 1, (12, 24, 36))
        self.cls_head = self.pooled_classifier(dims[-1])

    def run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Stage by stage: shared features, then those of each task."""
        net = self.resnet
        x = net.maxpool(net.act1(net.bn1(net.conv1(images))))  # (B, 64, H/4, W/4)
        below: dict[str, Tensor] = {}
        found: dict[str, Tensor] = {}
        for i, stage in enumerate((net.layer1, net.layer2, net.layer3, net.layer4)):
            *first, last = stage
            for block in first:
                x = block(x)
            u, x = x, last(x)  # (B, C, H/4, W/4), then (B, C, H/8, W/8)
            for task in self.tasks:
                joined = torch.cat([u, below[task]], 1) if below else u
                found[task] = self.attention[f"{task}_{i + 1}"](joined) * x
            if i < len(self.refine):
                below = {task: self.refine[i](features) for task, features in found.items()}
            if i == 0:
                below = {task: F.max_pool2d(features, 2) for task, features in below.items()}
        mask = self.seg_head(found["segmentation"])  # (B, 1, H/8, W/8)
        mask = F.interpolate(mask, images.shape[2:], mode="bilinear", align_corners=True)
        return mask, None if self.cls_head is None else self.cls_head(found["classification"])


def _attention(in_dim: int, dim: int) -> nn.Sequential:
    inner = dim // 4
    return nn.Sequential(
        nn.Conv2d(in_dim, inner, 1),
        nn.BatchNorm2d(inner),
        nn.ReLU(),
        nn.Conv2d(inner, dim, 1),
        nn.BatchNorm2d(dim),
        nn.Sigmoid(),
    )


def _bottleneck(dim: int, above: int) -> Any:
    from timm.models.resnet import Bottleneck

    shortcut = nn.Sequential(nn.Conv2d(dim, above, 1, bias=False), nn.BatchNorm2d(above))
    return Bottleneck(dim, above // 4, downsample=shortcut)
