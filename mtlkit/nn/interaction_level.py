"""A decoder level of task interaction: TIM, then UPA."""

from typing import Literal

import torch
from torch import Tensor, nn

from mtlkit import ops
from mtlkit._check import check_channels_first, check_vectors
from mtlkit._factory import Factory
from mtlkit.nn.task_interaction import TaskInteraction
from mtlkit.nn.uncertainty_proxy_attention import UncertaintyProxyAttention
from mtlkit.operators.interaction.types import DIRECTIONS


class InteractionLevel(nn.Module):
    """TIM and UPA of one decoder level, fused: one pass reads the map and one writes it.

        (D~, f~) = TIM(D, f)
        (D^, f^) = UPA(D, D~, f, f~)

    It computes TaskInteraction followed by UncertaintyProxyAttention, with their parameters under the names tim and
    upa. The enhanced map D~ is computed only if requested. If TIM's batch normalisation is synchronised between
    processes (see TaskInteraction), then in training so are the means that UPA's two signals are divided by.

    Args:
        dim: channels of the map, C; at least 2.
        clf_dim: size of the vector.
        signals: "variance" is UPA as in MBDI, "alignment" as in BTI-Net.
        normaliser: normaliser of UPA's two signals in eval mode, "batch" or "running".
        tau: largest amplification in TIM minus 1.
        pooling: pooling in TIM, "mean" or "attention".
        momentum: weight of a new batch in UPA's running average of its signals.
        device: device of the parameters.
        dtype: dtype of the parameters.
        directions: directions of TIM, "seg_to_clf", "clf_to_seg", or both in this order. If one is cut, the alignment
            is 0.

    Shape:
        Channels-first map (B, C, H, W) and vector (B, clf_dim) in; InteractionOutput with `seg` and `clf` of the same
        shapes, `gates` (B, 2), the signals `stats`, `enhanced_clf`, and if requested `enhanced_seg`, out.

    Raises:
        ValueError: an option is out of range, or an input has another shape.
        TypeError: an input is not a floating-point tensor.

    Source: "Multi-Level Bidirectional Decoder Interaction for Uncertainty-Aware Breast Ultrasound Analysis"
    (arXiv 2603.01295), equations 1 to 8; "Bidirectional Decoder-Level Task Interaction via Uncertainty-Aware Gating"
    (arXiv 2606.29102).

    Example:
        >>> import torch, mtlkit
        >>> level = mtlkit.nn.InteractionLevel(dim=48, signals="alignment").eval()
        >>> out = level(torch.randn(2, 48, 14, 14), torch.randn(2, 256))
        >>> out.seg.shape, out.clf.shape, out.gates.shape
        (torch.Size([2, 48, 14, 14]), torch.Size([2, 256]), torch.Size([2, 2]))
    """

    def __init__(
        self,
        dim: int,
        clf_dim: int = 256,
        signals: Literal["variance", "alignment"] = "variance",
        normaliser: Literal["batch", "running"] = "batch",
        tau: float = 0.7,
        pooling: Literal["mean", "attention"] = "mean",
        momentum: float = 0.01,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        directions: tuple[str, ...] = DIRECTIONS,
    ) -> None:
        super().__init__()
        factory = Factory(device=device, dtype=dtype)
        self.dim, self.clf_dim = dim, clf_dim
        self.tim = TaskInteraction(dim, clf_dim, tau, pooling, **factory, directions=directions)
        self.upa = UncertaintyProxyAttention(dim, clf_dim, signals, normaliser, momentum, **factory)

    def forward(
        self, seg: Tensor, clf: Tensor, return_enhanced: bool = False, gates: Tensor | None = None
    ) -> ops.InteractionOutput:
        """Runs one level: (B, C, H, W) and (B, clf_dim) to the same shapes.

        Args:
            seg: the decoder's map D.
            clf: the vector f of this level.
            return_enhanced: whether to return `enhanced_seg`, the map after TIM, too.
            gates: weights (B, 2) that replace UPA's; NaN keeps UPA's.
        """
        check_channels_first("seg", seg, self.dim)
        check_vectors("clf", clf, self.clf_dim, seg.shape[0])
        step = self.tim.step()
        out = ops.task_interaction(
            seg,
            clf,
            self.tim.operands(),
            self.upa.operands(),
            signals=self.upa.signals,
            tau=self.tim.tau,
            normaliser=self.upa.means(),
            return_enhanced=return_enhanced,
            gates=gates,
            **step,
        )
        self.upa.track(out.stats, step.get("group"))
        return out
