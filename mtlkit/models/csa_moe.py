"""CSA-MoE-Net, a classifier of breast ultrasound modelled on how a radiologist examines a lesion.

Three experts, each with its own encoder, see the image, the tumor's core and the band around its boundary
(mtlkit.nn.LesionViews). In each, attention over the encoder's stages scales the channels of the last one
(mtlkit.nn.CrossStageAttention); a gate weights the experts (mtlkit.nn.AdaptiveGate), and a linear layer classifies.

Source: "Cross-Stage Attention Multi-Expert Network for Radiologist-Inspired Breast Ultrasound Diagnosis"
(arXiv 2605.25518), section II.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mtlkit._check import check_choice, check_probability
from mtlkit._factory import Factory
from mtlkit.models._common import check_at_least_one, check_images
from mtlkit.models.encoders import STRIDE, Encoder, check_encoder
from mtlkit.models.network import ClassMap, last_linear
from mtlkit.models.pretrained import Pretrained
from mtlkit.models.registry import register
from mtlkit.nn import AdaptiveGate, CrossStageAttention, LesionViews

EXPERTS = ("image", "tumor", "boundary")
# The published parameter count for VGG-16 implies stages with 1024 channels in total, without saying which.
_VGG16_STAGES = ("features.6", "features.9", "features.16", "features.30")


@dataclass(frozen=True)
class CSAMoEOptions:
    """Options of CSA-MoE-Net; the defaults are those of the publication's text.

    Attributes:
        num_classes: number of classes.
        in_chans: channels of the images, 1 or 3.
        encoder: encoder of each expert, any network of timm, with or without a tag for its weights; the paper uses
            resnet18, vgg16 and densenet121 with torchvision's weights.
        pretrained: whether the encoders start from ImageNet weights.
        freeze_until: last module of each encoder that is frozen.
        experts: some of "image", "tumor" and "boundary", in this order. A single expert needs no gate: with
            `csa=False`, ("image",) is the plain encoder with a linear classifier.
        csa: whether to use cross-stage attention.
        head: "linear", as in the paper's text, or "mlp" with 512 and 128 hidden units, which gives the published
            parameter count.
        unused_classifiers: whether each VGG-16 keeps its unused ImageNet classifier of 123.6 M parameters, which the
            published counts include.
        iterations: iterations of erosion and dilation for the views.
        dropout: probability in the gate.

    Example:
        >>> import mtlkit
        >>> mtlkit.models.CSAMoEOptions(experts=("image", "boundary")).encoder
        'resnet18.tv_in1k'
    """

    num_classes: int = 2
    in_chans: int = 3
    encoder: str = "resnet18.tv_in1k"
    pretrained: bool = False
    freeze_until: str | None = None
    experts: tuple[str, ...] = EXPERTS
    csa: bool = True
    head: Literal["linear", "mlp"] = "linear"
    unused_classifiers: bool = False
    iterations: int = 5
    dropout: float = 0.2

    def __post_init__(self) -> None:
        check_at_least_one(num_classes=self.num_classes)
        check_encoder(self.encoder)
        check_choice("head", self.head, ("linear", "mlp"))
        check_probability(dropout=self.dropout)
        if self.unused_classifiers and not self.encoder.startswith("vgg16"):
            raise ValueError(f"unused_classifiers: expected False unless the encoder is vgg16, got {self.encoder}")
        if not self.experts or tuple(e for e in EXPERTS if e in self.experts) != tuple(self.experts):
            raise ValueError(f"experts: expected some of {', '.join(EXPERTS)} in this order, got {self.experts}")


class CSAMoEOutput(NamedTuple):
    """The output of CSA-MoE-Net.

    Example:
        >>> import torch
        >>> from mtlkit.models import CSAMoEOutput
        >>> CSAMoEOutput(torch.zeros(1, 2), torch.ones(1, 3) / 3, None).cls_logits.softmax(1)
        tensor([[0.5000, 0.5000]])
    """

    cls_logits: Tensor  # (B, num_classes)
    gates: Tensor  # (B, experts): the weight of each expert
    stages: Tensor | None  # (B, experts, stages): alpha of cross-stage attention; None without


@register("csa_moe", CSAMoEOptions())
@register("csa_moe_vgg16", CSAMoEOptions(encoder="vgg16.tv_in1k"))
@register("csa_moe_densenet121", CSAMoEOptions(encoder="densenet121.tv_in1k"))
class CSAMoE(Pretrained):
    """CSA-MoE-Net: images and masks of lesions to logits, and the weights of experts and stages.

    Images may have any size from 32 x 32. Training needs batches of at least 2 images, for the gate's BatchNorm.

    Args:
        options: options of the network.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-first images (B, in_chans, H, W) and masks (B, 1, H, W) of any real or boolean dtype, lesion where
        above 0.5, in; CSAMoEOutput out. Masks are not needed if "image" is the only expert.

    Raises:
        ImportError: timm is not installed.
        ValueError: an option is out of range, images or masks have another shape or are too small, or masks are
            missing.
        TypeError: the images are not a floating-point tensor.

    Source: arXiv 2605.25518.

    Example:
        >>> import torch, mtlkit
        >>> model = mtlkit.models.create_model("csa_moe").eval()
        >>> masks = torch.zeros(2, 1, 64, 64)
        >>> masks[:, :, 20:50, 20:50] = 1
        >>> out = model(torch.rand(2, 3, 64, 64), masks)
        >>> out.cls_logits.shape, out.gates.shape, out.stages.shape
        (torch.Size([2, 2]), torch.Size([2, 3]), torch.Size([2, 3, 4]))
    """

    def __init__(
        self,
        options: CSAMoEOptions | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.options = o = options or CSAMoEOptions()
        factory = Factory(device=device, dtype=dtype)
        self.views = LesionViews(o.iterations)
        experts = {name: _Expert(o, factory) for name in o.experts}
        self.experts = nn.ModuleDict(experts)
        self._stages = len(experts[o.experts[0]].encoder.channels[-4:]) if o.csa else 0
        dim, count = experts[o.experts[0]].dim, len(o.experts)
        self.gate = AdaptiveGate(dim, count, dropout=o.dropout, **factory) if count > 1 else None
        if o.head == "linear":
            self.head = nn.Linear(dim, o.num_classes, **factory)
        else:
            self.head = nn.Sequential(
                nn.Linear(dim, 512, **factory),
                nn.BatchNorm1d(512, **factory),
                nn.ReLU(),
                nn.Linear(512, 128, **factory),
                nn.ReLU(),
                nn.Linear(128, o.num_classes, **factory),
            )

    @property
    def gate_names(self) -> tuple[str, ...]:
        """The experts."""
        return tuple(self.options.experts)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages of each expert's encoder."""
        return tuple(f"{name}_stage{i}" for name in self.options.experts for i in range(1, self._stages + 1))

    @property
    def needs_masks(self) -> bool:
        """Whether an expert needs the mask of the lesion."""
        return set(self.options.experts) != {"image"}

    @property
    def last_layer(self) -> nn.Linear:
        """The last layer of the classifier."""
        return last_linear(self.head)

    @property
    def class_maps(self) -> tuple[ClassMap, ...]:
        """The last stage of each expert's encoder."""
        return tuple(ClassMap(expert.get_submodule("encoder"), (name,)) for name, expert in self.experts.items())

    def forward(self, images: Tensor, masks: Tensor | None = None) -> CSAMoEOutput:
        """Logits and weights: (B, in_chans, H, W) and (B, 1, H, W) to CSAMoEOutput."""
        check_images(images, self.options.in_chans, STRIDE)
        experts = self.options.experts
        if masks is None and self.needs_masks:
            raise ValueError(f"masks: expected the lesion masks for the experts {', '.join(experts)}, got None")
        views = {"image": images} if masks is None else self.views(images, masks)._asdict()
        found = [self.experts[name](views[name]) for name in experts]
        features = torch.stack([feature for feature, _ in found], 1)  # (B, E, C)
        if self.gate is None:
            fused, gates = features[:, 0], features.new_ones(images.shape[0], 1)
        else:
            fused, gates = self.gate(features)  # (B, C), (B, E)
        stages = torch.stack([alpha for _, alpha in found], 1) if self.options.csa else None  # (B, E, S)
        return CSAMoEOutput(self.head(fused), gates, stages)


class _Expert(nn.Module):
    """An encoder and its cross-stage attention: (B, in_chans, H, W) to (B, C) and, with attention, alpha (B, S)."""

    def __init__(self, o: CSAMoEOptions, factory: Factory) -> None:
        super().__init__()
        taps = _VGG16_STAGES if o.encoder.startswith("vgg16") else None
        self.encoder = Encoder(o.encoder, o.pretrained, o.in_chans, o.freeze_until, taps, **factory)
        if o.unused_classifiers:
            widths = pairwise((512 * 7 * 7, 4096, 4096, 1000))
            self.unused = nn.ModuleList(nn.Linear(wide, narrow, **factory) for wide, narrow in widths)
        channels = self.encoder.channels[-4:]  # without the stem if there are five
        self.dim = channels[-1]
        self.csa = CrossStageAttention(channels, **factory) if o.csa else None

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor | None]:
        stages = self.encoder(view)[-4:]  # (B, C_k, H_k, W_k) each
        last, alpha = (stages[-1], None) if self.csa is None else self.csa(stages)
        return last.mean((2, 3)), alpha  # (B, C), (B, S)
