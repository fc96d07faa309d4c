"""The hybrid CNN-VSSM, a classifier of four-view mammograms, and the networks that its publication compares.

A backbone, one for all views or one per projection, turns every view into a vector; a gate weights and concatenates the
four vectors (mtlkit.nn.GatedViewFusion); linear heads classify each breast as benign or malignant and by BI-RADS.

| backbone | what it is |
|---|---|
| hybrid | ResNet-18 up to its second stage, 1/8 of the size, then stages of SS-Conv-SSM |
| vssm | patches of 4 x 4 and stages of SS-Conv-SSM, as in MedMamba |
| resnet18, resnet50 | the complete network |

The publication does not say where ResNet-18 is cut, how many channels there are and what a block is: these are choices
of this implementation.

Source: "A Hybrid CNN-VSSM model for Multi-View, Multi-Task Mammography Analysis" (arXiv 2507.16955).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mtlkit._check import check_choice, check_probability, check_tensor
from mtlkit._factory import Factory
from mtlkit.models._common import (
    check_at_least_one,
    check_images,
    check_stages,
    init_linear_and_norm,
    init_ss_conv_ssm,
    ss_conv_ssm_stages,
)
from mtlkit.models.encoders import Encoder, check_encoder
from mtlkit.models.network import ClassMap, last_linear
from mtlkit.models.pretrained import Pretrained
from mtlkit.models.registry import register
from mtlkit.nn import GatedViewFusion, PatchEmbed
from mtlkit.nn.gated_view_fusion import check_present

VIEWS = ("l_cc", "l_mlo", "r_cc", "r_mlo")
SIDES = ("left", "right")
TASKS = ("label", "birads")
BACKBONES = ("hybrid", "vssm", "resnet18", "resnet50")
SMALLEST = 32


@dataclass(frozen=True)
class HybridVSSMOptions:
    """Options of the four-view networks; the defaults are those of the hybrid with a shared backbone.

    Attributes:
        backbone: "hybrid", "vssm", "resnet18" or "resnet50".
        in_chans: channels of a view, 1 or 3; as published, grey images are repeated to 3.
        pretrained: whether the ResNet, complete or cut, starts from ImageNet weights.
        weights: timm's tag of these weights; the default is torchvision's.
        freeze_until: last module of the ResNet that is frozen.
        shared: whether all views share one backbone; False makes one for the two CC views and one for the two MLO
            views.
        tasks: some of "label" (benign or malignant) and "birads", in this order.
        label_classes: number of classes of each side's label.
        birads_classes: number of BI-RADS classes of each side; published are 2, 3 and 5.
        depths: SS-Conv-SSM blocks of each stage; ignored for a ResNet.
        dims: channels of each stage, each twice the previous one; the first is 128 in the hybrid.
        d_state: states of each channel of the scans.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        fusion_hidden: hidden units of the fusion's gate.
        dropout: probability before the heads.
        mask_missing: whether missing views get no weight. Otherwise, as published, they are images of zeros.

    Example:
        >>> from mtlkit.models import HybridVSSMOptions
        >>> HybridVSSMOptions(tasks=("label",)).dims
        (128, 256)
    """

    backbone: Literal["hybrid", "vssm", "resnet18", "resnet50"] = "hybrid"
    in_chans: int = 3
    pretrained: bool = False
    weights: str = "tv_in1k"
    freeze_until: str | None = None
    shared: bool = True
    tasks: tuple[str, ...] = TASKS
    label_classes: int = 2
    birads_classes: int = 5
    depths: tuple[int, ...] = (1, 1)
    dims: tuple[int, ...] = (128, 256)
    d_state: int = 16
    drop_path_rate: float = 0.1
    fusion_hidden: int = 128
    dropout: float = 0.5
    mask_missing: bool = False

    def __post_init__(self) -> None:
        check_choice("backbone", self.backbone, BACKBONES)
        check_at_least_one(label_classes=self.label_classes, birads_classes=self.birads_classes)
        check_probability(dropout=self.dropout)
        if self.resnet is not None:
            check_encoder(self.resnet)
        if not self.backbone.startswith("resnet"):
            check_stages(self.depths, self.dims, 1, self.in_chans)
        if self.backbone == "hybrid" and self.dims[0] != 128:
            raise ValueError(f"dims: expected 128, the channels of ResNet-18, then 256 and so on, got {self.dims}")
        if self.backbone == "vssm" and (self.pretrained or self.freeze_until):
            raise ValueError(
                "pretrained, freeze_until: expected False and None with backbone 'vssm', which has no ResNet"
            )
        if not self.tasks or tuple(t for t in TASKS if t in self.tasks) != tuple(self.tasks):
            raise ValueError(f"tasks: expected some of {', '.join(TASKS)} in this order, got {self.tasks}")

    @property
    def resnet(self) -> str | None:
        """The name of the ResNet with the tag of its weights; None without a ResNet."""
        name = {"hybrid": "resnet18", "vssm": None}.get(self.backbone, self.backbone)
        return name and f"{name}.{self.weights}"


class HybridVSSMOutput(NamedTuple):
    """The output of the four-view networks.

    Example:
        >>> import torch
        >>> from mtlkit.models import HybridVSSMOutput
        >>> HybridVSSMOutput(torch.zeros(1, 2, 2), None, torch.ones(1, 4) / 4).label_logits[:, 0].shape  # left
        torch.Size([1, 2])
    """

    label_logits: Tensor | None  # (B, 2, label_classes), left and right; None without this task
    birads_logits: Tensor | None  # (B, 2, birads_classes), left and right; None without this task
    gates: Tensor  # (B, 4): the weight of each view, in the order of VIEWS


@register("hybrid_vssm", HybridVSSMOptions())
@register("mammo_vssm", HybridVSSMOptions("vssm", depths=(1, 1, 1, 1), dims=(96, 192, 384, 768)))
@register("mammo_resnet18", HybridVSSMOptions("resnet18"))
@register("mammo_resnet50", HybridVSSMOptions("resnet50"))
class HybridVSSM(Pretrained):
    """Four-view mammograms to logits of both breasts, and the weights of the views.

    The views are L-CC, L-MLO, R-CC and R-MLO. Images of right breasts must be flipped horizontally by the data
    pipeline. If the stages do not divide a size evenly, the last rows and columns are dropped.

    Args:
        options: options of the network.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Views (B, 4, in_chans, H, W) with H and W at least 32, and optionally boolean `present` (B, 4): missing views
        count as zeros, whatever their values. Or a dictionary of views (B, in_chans, H, W) with some of the keys
        "l_cc", "l_mlo", "r_cc" and "r_mlo"; the other views are missing. HybridVSSMOutput out.

    Raises:
        ImportError: timm is not installed.
        ValueError: an option is out of range, views or `present` have another shape, or a patient has no view (not
            checked in compiled code).
        TypeError: the views are not floating-point tensors, or `present` is not boolean.

    Source: arXiv 2507.16955.

    Example:
        >>> import torch, mtlkit
        >>> model = mtlkit.models.create_model("hybrid_vssm").eval()
        >>> out = model({"l_cc": torch.rand(2, 3, 64, 64), "l_mlo": torch.rand(2, 3, 64, 64)})
        >>> out.label_logits.shape, out.birads_logits.shape, out.gates.shape
        (torch.Size([2, 2, 2]), torch.Size([2, 2, 5]), torch.Size([2, 4]))
    """

    def __init__(
        self,
        options: HybridVSSMOptions | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.options = o = options or HybridVSSMOptions()
        factory = Factory(device=device, dtype=dtype)
        backbones = {name: _Backbone(o, factory) for name in (["all"] if o.shared else ["cc", "mlo"])}
        self.backbones = nn.ModuleDict(backbones)
        dim = next(iter(backbones.values())).dim
        self.fusion = GatedViewFusion(dim, len(VIEWS), o.fusion_hidden, **factory)
        self.dropout = nn.Dropout(o.dropout)
        classes = {"label": o.label_classes, "birads": o.birads_classes}
        self.heads = nn.ModuleDict(
            {f"{task}_{side}": nn.Linear(4 * dim, classes[task], **factory) for task in o.tasks for side in SIDES}
        )
        for part in (self.fusion, self.heads):
            part.apply(init_linear_and_norm)

    @property
    def returns(self) -> tuple[str, ...]:
        """The logits of the network's tasks, and the gates."""
        return (*(f"{task}_logits" for task in self.options.tasks), "gates")

    @property
    def gate_names(self) -> tuple[str, ...]:
        """The views."""
        return VIEWS

    @property
    def last_layer(self) -> nn.Linear:
        """The last layer of the right breast's classifier."""
        return last_linear(self.heads)

    @property
    def class_maps(self) -> tuple[ClassMap, ...]:
        """The last map of each view."""
        o, names = self.options, {"all": VIEWS, "cc": VIEWS[::2], "mlo": VIEWS[1::2]}
        whole = o.backbone.startswith("resnet")
        last = "stem" if whole else f"stages.{len(o.depths) - 1}"
        return tuple(
            ClassMap(backbone.get_submodule(last), names[name], channels_last=not whole)
            for name, backbone in self.backbones.items()
        )

    def forward(self, views: Tensor | Mapping[str, Tensor], present: Tensor | None = None) -> HybridVSSMOutput:
        """Logits and gates: (B, 4, in_chans, H, W), or a dictionary of (B, in_chans, H, W), to HybridVSSMOutput."""
        if isinstance(views, Mapping):
            views, present = _stack(views, present)
        self._check(views, present)
        if present is not None:
            views = torch.where(present[:, :, None, None, None], views, 0)  # (B, 4, C, H, W)
        features = self._features(views)  # (B, 4, D)
        fused, gates = self.fusion(features, present if self.options.mask_missing else None)  # (B, 4 D), (B, 4)
        fused = self.dropout(fused)
        logits = {
            task: torch.stack([self.heads[f"{task}_{side}"](fused) for side in SIDES], 1)  # (B, 2, K)
            for task in self.options.tasks
        }
        return HybridVSSMOutput(logits.get("label"), logits.get("birads"), gates)

    def _features(self, views: Tensor) -> Tensor:
        """(B, 4, C, H, W) to (B, 4, D)."""
        if self.options.shared:
            return self.backbones["all"](views.flatten(0, 1)).unflatten(0, (-1, 4))
        cc, mlo = (
            self.backbones[name](views[:, i::2].flatten(0, 1)).unflatten(0, (-1, 2))  # (B, 2, D), left and right
            for i, name in enumerate(("cc", "mlo"))
        )
        return torch.stack((cc, mlo), 2).flatten(1, 2)  # (B, 4, D)

    def _check(self, views: Tensor, present: Tensor | None) -> None:
        check_tensor("views", views, 5)
        if views.shape[1] != len(VIEWS):
            raise ValueError(f"views: expected shape (B, 4, C, H, W), got {tuple(views.shape)}")
        check_images(views[:, 0], self.options.in_chans, SMALLEST)
        if present is None:
            return
        check_present(present, views.shape[0], len(VIEWS))
        if not torch.compiler.is_compiling() and not present.any(1).all():
            missing = (~present.any(1)).nonzero().flatten().tolist()
            raise ValueError(f"present: expected at least one view of each patient, got none in rows {missing}")


def _stack(views: Mapping[str, Tensor], present: Tensor | None) -> tuple[Tensor, Tensor]:
    """A dictionary of views as one tensor (B, 4, C, H, W), and which views are present, (B, 4)."""
    if present is not None:
        raise ValueError("present: expected None with a dictionary of views, whose keys say which views are present")
    unknown = [key for key in views if key not in VIEWS]
    if unknown or not views:
        raise ValueError(f"views: expected some of the keys {', '.join(VIEWS)}, got {list(views)}")
    first_name, first = next(iter(views.items()))
    for name, view in views.items():
        check_tensor(f"views[{name!r}]", view, 4)
        if view.shape != first.shape:
            expected = f"{tuple(first.shape)} as in {first_name}"
            raise ValueError(f"views[{name!r}]: expected shape {expected}, got {tuple(view.shape)}")
    empty = torch.zeros_like(first)
    stacked = torch.stack([views.get(name, empty) for name in VIEWS], 1)  # (B, 4, C, H, W)
    there = torch.tensor([name in views for name in VIEWS], device=first.device)  # (4)
    return stacked, there.expand(len(first), -1)


class _Backbone(nn.Module):
    """A view to a vector: (B, in_chans, H, W) to (B, D)."""

    def __init__(self, o: HybridVSSMOptions, factory: Factory) -> None:
        super().__init__()
        self.dim = o.dims[-1]
        if o.resnet is None:
            self.stem = PatchEmbed(o.in_chans, o.dims[0], **factory)
            self.stem.apply(init_ss_conv_ssm)
        else:
            tap = "layer2" if o.backbone == "hybrid" else "layer4"
            self.stem = encoder = Encoder(o.resnet, o.pretrained, o.in_chans, o.freeze_until, (tap,), **factory)
            if o.backbone.startswith("resnet"):
                self.dim = encoder.channels[0]
        if o.backbone.startswith("resnet"):
            self.stages = nn.ModuleList()
        else:
            self.stages = ss_conv_ssm_stages(o.depths, o.dims, o.d_state, 2.0, 0.0, o.drop_path_rate, **factory)
            self.stages.apply(init_ss_conv_ssm)

    def forward(self, view: Tensor) -> Tensor:
        x = self.stem(view)
        if isinstance(self.stem, Encoder):
            x = x[0].permute(0, 2, 3, 1)  # (B, H', W', C)
        for stage in self.stages:
            x = stage(x)  # (B, H', W', C), ..., (B, H' / 2^i, W' / 2^i, 2^i C)
        return x.mean((1, 2))  # (B, D)
