"""MBDI, a network that segments and classifies, with interaction of both tasks at every level of the decoder.

Residual blocks refine five features of the encoder to E_0 .. E_4 at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image.
Decoder level l = 1 .. 4, from the coarsest up:

    x     = ConvT3x3(D^_(l-1))                                  D^_0 = E_4
    D_l   = Dropout(Residual([x; AttentionGate(E_(4-l), x)]))
    f_l   = ReLU(W GAP(E_(5-l)) + b)
    D^_l, f^_l = UPA(D_l, TIM(D_l, f_l), f_l)                   mtlkit.nn.InteractionLevel

The mask comes from D^_4, the class from [GAP(E_1) .. GAP(E_4); f^_1 .. f^_4].

Source: "Multi-Level Bidirectional Decoder Interaction for Uncertainty-Aware Breast Ultrasound Analysis"
(arXiv 2603.01295), section 2, and its published code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit._check import check_choice, check_probability, check_shape
from mtlkit._factory import Factory
from mtlkit._keras import BATCH_NORM, init_as_keras
from mtlkit.models._common import check_at_least_one, check_images, pad_to_multiple
from mtlkit.models.encoders import STRIDE, Encoder, check_encoder, check_strides
from mtlkit.models.network import ClassMap, last_linear
from mtlkit.models.pretrained import Pretrained
from mtlkit.models.registry import register
from mtlkit.nn import (
    AttentionGate,
    ConvUpsample,
    InteractionLevel,
    ResidualBlock,
    TaskInteraction,
    UncertaintyProxyAttention,
)
from mtlkit.operators.interaction.types import DIRECTIONS, AlignmentSignals, InteractionOutput, check_directions

LEVELS = 4
# signals of each form of UPA
SIGNALS: dict[str, tuple[str, ...]] = {
    "variance": ("seg_variance", "clf_variance"),
    "alignment": AlignmentSignals._fields,
}


@dataclass(frozen=True)
class InteractionOptions:
    """Options that MBDI and BTI-Net share.

    Attributes:
        num_classes: number of classes.
        in_chans: channels of the images, 1 or 3.
        encoder: one of `list_encoders()`, or a network of timm whose features have strides 2, 4, 8, 16 and 32; with or
            without a tag for its weights.
        pretrained: whether the encoder starts from ImageNet weights.
        freeze_until: last module of the encoder that is frozen; "blocks.1.1.bn2" in the publication.
        decoder_dims: channels of the four decoder levels; the mask's head has 1/2 and 1/3 of the last.
        clf_dim: size of the vectors f.
        hmsf: whether residual blocks contain the multi-scale fusion.
        tim: whether the tasks interact; otherwise D^ = D and f^ = f.
        upa: whether UPA weights the interaction; otherwise D^ = D~ and f^ = f~. It requires `tim`.
        levels: the decoder levels that interact, from 1 (coarsest) to 4.
        directions: directions of TIM, "seg_to_clf", "clf_to_seg", or both in this order.
        pooling: pooling in TIM, "mean" as in the published code or "attention" as in the paper's text.
        tau: largest amplification in TIM minus 1.
        dropout: probability after each decoder level and in the classifier.

    Example:
        >>> import mtlkit
        >>> mtlkit.models.InteractionOptions(levels=(1, 2)).upa
        True
    """

    num_classes: int = 3
    in_chans: int = 3
    encoder: str = "tf_efficientnet_b4.aa_in1k"
    pretrained: bool = False
    freeze_until: str | None = None
    decoder_dims: tuple[int, ...] = (384, 192, 96, 48)
    clf_dim: int = 256
    hmsf: bool = True
    tim: bool = True
    upa: bool = True
    levels: tuple[int, ...] = (1, 2, 3, 4)
    directions: tuple[str, ...] = DIRECTIONS
    pooling: Literal["mean", "attention"] = "mean"
    tau: float = 0.7
    dropout: float = 0.3

    def __post_init__(self) -> None:
        check_at_least_one(num_classes=self.num_classes, clf_dim=self.clf_dim)
        check_encoder(self.encoder)
        check_directions(self.directions)
        check_choice("pooling", self.pooling, ("mean", "attention"))
        check_probability(dropout=self.dropout)
        if len(self.decoder_dims) != LEVELS or min(self.decoder_dims) < 8:
            raise ValueError(f"decoder_dims: expected {LEVELS} numbers of at least 8, got {self.decoder_dims}")
        if set(self.levels) - set(range(1, LEVELS + 1)) or list(self.levels) != sorted(set(self.levels)):
            raise ValueError(f"levels: expected some of 1, 2, 3, 4 in this order, got {self.levels}")
        if self.upa and not self.tim:
            raise ValueError("upa: expected False without tim, which it needs, got True")


@dataclass(frozen=True)
class MBDIOptions(InteractionOptions):
    """Options of MBDI: those of InteractionOptions, and one more.

    Attributes:
        normaliser: normaliser of UPA's signals in eval mode: "batch", as published, for which the output for an image
            depends on the others in its batch, or "running", for which it does not.

    Example:
        >>> from mtlkit.models import MBDIOptions
        >>> MBDIOptions(normaliser="running").encoder
        'tf_efficientnet_b4.aa_in1k'
    """

    normaliser: Literal["batch", "running"] = "batch"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("normaliser", self.normaliser, ("batch", "running"))


class InteractionNetOutput(NamedTuple):
    """The output of MBDI and BTI-Net.

    Example:
        >>> import torch
        >>> from mtlkit.models import InteractionNetOutput
        >>> InteractionNetOutput(torch.zeros(1, 1, 8, 8), torch.zeros(1, 3), None).cls_logits.argmax(1)
        tensor([0])
    """

    seg_logits: Tensor  # (B, 1, H, W)
    cls_logits: Tensor  # (B, num_classes)
    gates: Tensor | None  # (B, levels, 2): w_seg and w_clf of UPA at each level that interacts; None without UPA


class InspectedOutput(NamedTuple):
    """The output of `inspect` of MBDI and BTI-Net: the normal output, and the signals that determine the gates.

    Example:
        >>> import torch, mtlkit
        >>> options = mtlkit.models.BTINetOptions(encoder="resnet18", decoder_dims=(32, 24, 16, 12), levels=(1, 4))
        >>> model = mtlkit.models.BTINet(options).eval()
        >>> model.inspect(torch.rand(2, 3, 64, 64), gates={"seg_level1": 0.0}).signals.shape
        torch.Size([2, 2, 3])
        >>> model.signal_names[:3]
        ('alignment_level1', 'energy_level1', 'spread_level1')
    """

    seg_logits: Tensor  # (B, 1, H, W)
    cls_logits: Tensor  # (B, num_classes)
    gates: Tensor | None  # (B, levels, 2), including given ones; None without UPA
    signals: Tensor | None  # (B, levels, signals), named by `signal_names`; None without UPA


@register("mbdi", MBDIOptions())
class MBDI(Pretrained):
    """MBDI: images to the logits of a mask and of a class, and the weights of UPA.

    Images whose size is not a multiple of 32 are padded with zeros at the bottom and on the right, and the mask is
    cropped back.

    Args:
        options: options of the network.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-first images (B, in_chans, H, W) in, H and W at least 32; InteractionNetOutput out.

    Raises:
        ImportError: timm is not installed.
        ValueError: an option is out of range, the images have another shape or are too small, or there are no such
            gates.
        TypeError: the images are not a floating-point tensor.

    Source: arXiv 2603.01295.

    Example:
        >>> import torch, mtlkit
        >>> options = mtlkit.models.MBDIOptions(encoder="resnet18", decoder_dims=(32, 24, 16, 12))
        >>> out = mtlkit.models.MBDI(options).eval()(torch.rand(2, 3, 64, 70))
        >>> out.seg_logits.shape, out.cls_logits.shape, out.gates.shape
        (torch.Size([2, 1, 64, 70]), torch.Size([2, 3]), torch.Size([2, 4, 2]))
    """

    signals: ClassVar[Literal["variance", "alignment"]] = "variance"  # of UPA
    defaults: ClassVar[InteractionOptions] = MBDIOptions()

    def __init__(
        self,
        options: InteractionOptions | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.options = o = options or self.defaults
        factory = Factory(device=device, dtype=dtype)
        self.encoder = Encoder(o.encoder, o.pretrained, o.in_chans, o.freeze_until, **factory)
        check_strides(self.encoder)
        dims = self.encoder.channels  # of E_0 .. E_4
        self.refine = nn.ModuleList(ResidualBlock(dim, dim, True, o.hmsf, **factory) for dim in dims)
        self.vectors = nn.ModuleList(nn.Linear(dim, o.clf_dim, **factory) for dim in dims[:0:-1])
        self.decoder = nn.ModuleList()
        below = dims[-1]
        for level, (dim, skip) in enumerate(zip(o.decoder_dims, dims[-2::-1], strict=True), 1):
            interaction = self._interaction(dim, factory) if o.tim and level in o.levels else None
            self.decoder.append(_Level(below, skip, dim, o.hmsf, o.dropout, interaction, factory))
            below = dim
        self.seg_head = nn.Sequential(
            ConvUpsample(below, below // 2, **factory),  # (B, C/2, H, W)
            nn.Conv2d(below // 2, below // 3, 3, padding=1, **factory),
            nn.ReLU(),
            nn.Conv2d(below // 3, 1, 1, **factory),
        )
        self.cls_head = nn.Sequential(
            nn.Linear(sum(dims[1:]) + LEVELS * o.clf_dim, o.clf_dim, **factory),
            nn.ReLU(),
            nn.BatchNorm1d(o.clf_dim, **BATCH_NORM, **factory),
            nn.Dropout(o.dropout),
            nn.Linear(o.clf_dim, o.num_classes, **factory),
        )
        for part in (self.vectors, self.seg_head, self.cls_head):
            part.apply(init_as_keras)

    def _interaction(self, dim: int, factory: Factory) -> nn.Module:
        o = self.options
        if not o.upa:
            return TaskInteraction(dim, o.clf_dim, o.tau, o.pooling, directions=o.directions, **factory)
        normaliser = o.normaliser if isinstance(o, MBDIOptions) else "batch"
        form = o.clf_dim, self.signals, normaliser, o.tau, o.pooling
        return InteractionLevel(dim, *form, directions=o.directions, **factory)

    @property
    def gate_names(self) -> tuple[str, ...]:
        """The gates of mask and class, level by level."""
        levels = self.interaction_levels if self.options.upa else ()
        return tuple(f"{branch}_level{level}" for level in levels for branch in ("seg", "clf"))

    @property
    def signal_names(self) -> tuple[str, ...]:
        """The signals of UPA's gates, level by level."""
        levels = self.interaction_levels if self.options.upa else ()
        return tuple(f"{signal}_level{level}" for level in levels for signal in SIGNALS[self.signals])

    @property
    def class_maps(self) -> tuple[ClassMap, ...]:
        """E_4, the coarsest of the encoder's refined features."""
        return (ClassMap(self.refine[-1], ("image",), multiple=STRIDE),)

    @property
    def interaction_levels(self) -> tuple[int, ...]:
        """The numbers of the decoder levels at which the tasks interact."""
        return tuple(self.options.levels) if self.options.tim else ()

    @property
    def depends_on_batch(self) -> bool:
        """Whether UPA divides its signals by their mean over the batch in eval mode too, as published."""
        gates = (module for module in self.modules() if isinstance(module, UncertaintyProxyAttention))
        return any(gate.signals == "variance" and gate.normaliser == "batch" for gate in gates)

    @property
    def last_layer(self) -> nn.Linear:
        """The last layer of the classifier."""
        return last_linear(self.cls_head)

    def forward(self, images: Tensor) -> InteractionNetOutput:
        """Logits and gates: (B, in_chans, H, W) to InteractionNetOutput."""
        seg_logits, cls_logits, levels = self._run(images, {})
        gates = torch.stack([level.gates for level in levels], 1) if levels else None
        return InteractionNetOutput(seg_logits, cls_logits, gates)

    def inspect(self, images: Tensor, *, gates: Mapping[str, float | Tensor] | None = None) -> InspectedOutput:
        """Logits, gates and their signals: (B, in_chans, H, W) to InspectedOutput.

        Args:
            images: images as for `forward`.
            gates: weights that replace UPA's, by the names in `gate_names`: 0 disables the interaction of that branch
                at that level, 1 applies it fully. A tensor (B,) gives each image its own weight, and NaN keeps UPA's.
        """
        seg_logits, cls_logits, levels = self._run(images, {} if gates is None else self._given(gates, images))
        if not levels:
            return InspectedOutput(seg_logits, cls_logits, None, None)
        signals = torch.stack([torch.stack(level.stats, 1) for level in levels], 1)
        return InspectedOutput(seg_logits, cls_logits, torch.stack([level.gates for level in levels], 1), signals)

    def _run(self, images: Tensor, given: Mapping[int, Tensor]) -> tuple[Tensor, Tensor, list[InteractionOutput]]:
        """Logits, and UPA's results at each level; `given` holds gates by level."""
        check_images(images, self.options.in_chans, STRIDE)
        height, width = images.shape[2:]
        taps = self.encoder(pad_to_multiple(images, STRIDE))
        features = [block(tap) for block, tap in zip(self.refine, taps, strict=True)]  # E: (B, C, H/2 .. H/32, ...)
        pooled = [e.mean((2, 3)) for e in features[1:]]  # (B, C) each, from E_1 to E_4

        seg = features[-1]
        vectors: list[Tensor] = []
        gated: list[InteractionOutput] = []
        for number, (level, project, skip, vector) in enumerate(
            zip(self.decoder, self.vectors, features[-2::-1], pooled[::-1], strict=True), 1
        ):
            seg, clf, out = level(seg, skip, F.relu(project(vector)), given.get(number))  # (B, C, h, w), (B, clf_dim)
            vectors.append(clf)
            gated += [] if out is None else [out]
        seg_logits = self.seg_head(seg)[:, :, :height, :width]
        return seg_logits, self.cls_head(torch.cat([*pooled, *vectors], 1)), gated

    def _given(self, gates: Mapping[str, float | Tensor], images: Tensor) -> dict[int, Tensor]:
        """Weights by level, (B, 2), NaN to keep UPA's."""
        names = self.gate_names
        if unknown := [name for name in gates if name not in names]:
            known = ", ".join(names) or "no names, because there are no gates"
            raise ValueError(f"gates: expected {known}, got {unknown[0]!r}")
        given = torch.full((images.shape[0], len(names)), float("nan"), device=images.device)
        for name, value in gates.items():
            if isinstance(value, Tensor):
                check_shape(f"gates[{name!r}]", value, "(B,)", images.shape[0])
            given[:, names.index(name)] = value
        return dict(zip(self.interaction_levels, given.unflatten(1, (-1, 2)).unbind(1), strict=True))


class _Level(nn.Module):
    """A decoder level: upsampling, the gated skip connection, a residual block, and the interaction if there is one."""

    def __init__(
        self,
        below: int,
        skip: int,
        dim: int,
        hmsf: bool,
        dropout: float,
        interaction: nn.Module | None,
        factory: Factory,
    ) -> None:
        super().__init__()
        self.up = ConvUpsample(below, dim, **factory)
        self.gate = AttentionGate(skip, dim, dim // 2, **factory)
        self.block = ResidualBlock(dim + skip, dim, False, hmsf, **factory)
        self.dropout = nn.Dropout(dropout)
        self.interaction = interaction

    def forward(
        self, below: Tensor, skip: Tensor, clf: Tensor, gates: Tensor | None
    ) -> tuple[Tensor, Tensor, InteractionOutput | None]:
        """(B, C', H/2, W/2), (B, C_skip, H, W) and (B, clf_dim) to (B, C, H, W), (B, clf_dim) and UPA's results."""
        x = self.up(below)  # (B, C, H, W)
        seg = self.dropout(self.block(torch.cat([x, self.gate(skip, x)], 1)))  # (B, C, H, W)
        if self.interaction is None:
            return seg, clf, None
        if not isinstance(self.interaction, InteractionLevel):
            return *self.interaction(seg, clf)[:2], None
        out = self.interaction(seg, clf, gates=gates)
        return out.seg, out.clf, out
