"""UPA, uncertainty proxy attention."""

from typing import Literal

import torch
from torch import Tensor, nn

from mtlkit import ops
from mtlkit._check import check_channels_first, check_choice, check_positive, check_probability, check_vectors
from mtlkit._distributed import Group, mean_over
from mtlkit._factory import Factory
from mtlkit._keras import init_as_keras
from mtlkit.operators.interaction.types import signals_named

HIDDEN = 32
PROJECTED = 64


class UncertaintyProxyAttention(nn.Module):
    """UPA: decides per image how much of the enhanced map and vector to adopt.

        D^ = D + w_seg (D~ - D),   f^ = f + w_clf (f~ - f)     w = 0 keeps the base, w = 1 takes the enhanced one

    With `signals="variance"`, the form of MBDI, the weights depend on the variance of the activations:

        u = mean_c Var_hw(D~_c), Var_j(f~_j)                   each divided by (its normaliser + 1e-8)
        [w_seg, w_clf] = softmax(W2 ReLU(W1 u + b1) + b2)      32 hidden units; the two sum to 1

    In training the normaliser is the mean of u over the batch. The option `normaliser` selects it for eval mode.
    "batch" follows the official code: outputs depend on the other images of the batch, and for a batch of one the
    weights are constant, because u / mean(u) = 1 for any image. "running" is the running average from training in the
    buffer `running_signals`, so that the output for an image depends only on that image. Before the first training
    batch the buffer is 1. The option can be changed at any time: `upa.normaliser = "running"`.

    With `signals="alignment"`, the form of BTI-Net, the weights do not depend on the batch:

        a = cos(P_s mean_hw(D~ - D), P_c (f~ - f))             alignment of the tasks, in 64 dimensions
        e = (sum |D(y+1,x) - D(y,x)| + sum |D(y,x+1) - D(y,x)|) / (C H W)
        v = log(1 + Var_j(f~_j))
        [w_seg, w_clf] = sigmoid(W2 ReLU(W1 [a, e, v] + b1) + b2)

    The signals are statistics of activations, not estimates of predictive uncertainty; gradients flow through them.

    Parameters: fc1 (W1), fc2 (W2), and for three signals seg_proj (P_s) and clf_proj (P_c); weights are initialised
    Glorot-uniform, biases to 0.

    Args:
        dim: channels of the map, C.
        clf_dim: size of the vector.
        signals: "variance" or "alignment".
        normaliser: "batch" or "running"; ignored with three signals.
        momentum: weight of a new batch in `running_signals`; the first batches are averaged evenly.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-first maps (B, C, H, W), base and enhanced, and vectors (B, clf_dim), base and enhanced, in;
        InteractionOutput with `seg` and `clf` of the same shapes, `gates` (B, 2) and `stats` out.

    Raises:
        ValueError: an option is out of range, or an input has another shape.
        TypeError: an input is not a floating-point tensor.

    Source: arXiv 2603.01295, equations 6 to 8, for two signals; "Bidirectional Decoder-Level Task Interaction via
    Uncertainty-Aware Gating" (arXiv 2606.29102) for three.

    Example:
        >>> import torch, mtlkit
        >>> upa = mtlkit.nn.UncertaintyProxyAttention(dim=48)
        >>> seg, clf = torch.randn(2, 48, 14, 14), torch.randn(2, 256)
        >>> out = upa(seg, 1.5 * seg, clf, 2 * clf)
        >>> torch.allclose(out.gates.sum(1), torch.ones(2))
        True
    """

    signals: Literal["variance", "alignment"]
    running_signals: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        dim: int,
        clf_dim: int = 256,
        signals: Literal["variance", "alignment"] = "variance",
        normaliser: Literal["batch", "running"] = "batch",
        momentum: float = 0.01,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, clf_dim=clf_dim)
        signals = signals_named(signals)
        check_choice("signals", signals, ("variance", "alignment"))
        check_choice("normaliser", normaliser, ("batch", "running"))
        check_probability(momentum=momentum)
        factory = Factory(device=device, dtype=dtype)
        self.dim, self.clf_dim, self.signals = dim, clf_dim, signals
        self.normaliser, self.momentum = normaliser, momentum
        if signals == "alignment":
            self.seg_proj = nn.Linear(dim, PROJECTED, bias=False, **factory)
            self.clf_proj = nn.Linear(clf_dim, PROJECTED, bias=False, **factory)
        else:
            wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
            self.register_buffer(
                "running_signals", torch.ones(2, device=device, dtype=wide)
            )  # signals of map and vector
            self.register_buffer("num_batches_tracked", torch.tensor(0, device=device))
        self.fc1 = nn.Linear(3 if signals == "alignment" else 2, HIDDEN, **factory)
        self.fc2 = nn.Linear(HIDDEN, 2, **factory)
        self.apply(init_as_keras)

    def operands(self) -> ops.UPAParameters:
        """The parameters in the form that mtlkit.ops takes."""
        alignment = self.signals == "alignment"
        projections = (self.seg_proj.weight, self.clf_proj.weight) if alignment else (None, None)
        return ops.UPAParameters(self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, *projections)

    def means(self) -> Tensor | None:
        """The divisors of the signals in the next call, (2,); None for their mean over the batch."""
        check_choice("normaliser", self.normaliser, ("batch", "running"))
        running = self.signals == "variance" and self.normaliser == "running" and not self.training
        return self.running_signals if running else None

    @torch.no_grad()
    def track(self, signals: ops.VarianceSignals | ops.AlignmentSignals, group: Group | None = None) -> None:
        """Updates `running_signals` in training; with a group, by the batches of all its processes."""
        if not self.training or not isinstance(signals, ops.VarianceSignals):
            return
        if group is None and signals.seg.shape[0] == 0:
            return
        self.num_batches_tracked.add_(1)
        share = self.num_batches_tracked.to(self.running_signals.dtype).reciprocal().clamp(min=self.momentum)
        rows = torch.stack((signals.seg, signals.clf), 1)  # (B, 2)
        means = rows.mean(0) if group is None else mean_over(group, rows)[0]  # (2,)
        self.running_signals.lerp_(means.to(self.running_signals.dtype), share)

    def forward(self, seg: Tensor, seg_enhanced: Tensor, clf: Tensor, clf_enhanced: Tensor) -> ops.InteractionOutput:
        """Mixes base and enhanced: maps (B, C, H, W), vectors (B, clf_dim)."""
        check_channels_first("seg", seg, self.dim)
        check_channels_first("seg_enhanced", seg_enhanced, self.dim)
        check_vectors("clf", clf, self.clf_dim, seg.shape[0])
        check_vectors("clf_enhanced", clf_enhanced, self.clf_dim, seg.shape[0])
        out = ops.upa(
            seg, seg_enhanced, clf, clf_enhanced, self.operands(), signals=self.signals, normaliser=self.means()
        )
        self.track(out.stats)
        return out

    def extra_repr(self) -> str:
        """The options, for repr."""
        shown = f"dim={self.dim}, clf_dim={self.clf_dim}, signals={self.signals!r}"
        return shown if self.signals == "alignment" else f"{shown}, normaliser={self.normaliser!r}"
