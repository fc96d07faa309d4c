"""TIM, the task interaction module."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtlkit import ops
from mtlkit._check import check_channels_first, check_choice, check_positive, check_vectors
from mtlkit._distributed import group_of
from mtlkit._factory import Factory
from mtlkit._keras import BATCH_NORM, init_as_keras
from mtlkit.operators.interaction.types import DIRECTIONS, check_directions


class TaskInteraction(nn.Module):
    """TIM: a segmentation map and a classification vector enhance each other.

        c    = BN(ReLU(W_c mean(ReLU(Conv1x1(D): C -> C / 2)) + b_c))
        f~   = f + sigmoid(W_g c + b_g) c
        mu   = 1 + tau sigmoid(W_d mean(D) + b_d) sigmoid(W_s f + b_s)
        D~   = D mu                                            one factor per channel, between 1 and 1 + tau

    The official code pools the projected map by its mean; `pooling="attention"` is the learned attention described in
    the paper, sum_xy softmax_xy(a D) ReLU(Conv1x1(D)). A direction can be cut: without "seg_to_clf" f~ is f, without
    "clf_to_seg" D~ is D, and its layers do not exist. If UncertaintyProxyAttention follows, use InteractionLevel, which
    fuses the two and does not write D~.

    Parameters, with the letters above: s2c_conv (the 1 x 1 convolution), s2c_dense (W_c), s2c_bn, clf_gate (W_g),
    seg_gate (W_d), c2s_dense (W_s), s2c_attn (a, only with attention). Weights are initialised Glorot-uniform and
    biases to 0; the batch normalisation has eps 1e-3 and momentum 0.01, all as in Keras. Its running variance is
    PyTorch's, B / (B - 1) times that of Keras, and training needs at least two images. After
    torch.nn.SyncBatchNorm.convert_sync_batchnorm, statistics are computed over all processes, on GPUs and CPUs.

    Args:
        dim: channels of the map, C; at least 2.
        clf_dim: size of the vector.
        tau: the largest amplification minus 1.
        pooling: "mean" or "attention".
        device: device of the parameters.
        dtype: dtype of the parameters.
        directions: "seg_to_clf", "clf_to_seg", or both in this order.

    Shape:
        Channels-first map (B, C, H, W) and vector (B, clf_dim) in; TIMOutput with `seg` and `clf` of the same shapes
        and the factors `mu` (B, C) out.

    Raises:
        ValueError: an option is out of range, or an input has another shape.
        TypeError: an input is not a floating-point tensor.

    Source: "Multi-Level Bidirectional Decoder Interaction for Uncertainty-Aware Breast Ultrasound Analysis"
    (arXiv 2603.01295), equations 1 to 5.

    Example:
        >>> import torch, mtlkit
        >>> tim = mtlkit.nn.TaskInteraction(dim=48).eval()
        >>> out = tim(torch.randn(2, 48, 14, 14), torch.randn(2, 256))
        >>> out.seg.shape, out.clf.shape
        (torch.Size([2, 48, 14, 14]), torch.Size([2, 256]))
    """

    def __init__(
        self,
        dim: int,
        clf_dim: int = 256,
        tau: float = 0.7,
        pooling: Literal["mean", "attention"] = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        directions: tuple[str, ...] = DIRECTIONS,
    ) -> None:
        super().__init__()
        if dim < 2:
            raise ValueError(f"dim: expected at least 2 channels, got {dim}")
        check_positive(clf_dim=clf_dim)
        if not tau >= 0:
            raise ValueError(f"tau: expected a number that is at least 0, got {tau!r}")
        check_choice("pooling", pooling, ("mean", "attention"))
        check_directions(directions)
        factory = Factory(device=device, dtype=dtype)
        self.dim, self.clf_dim, self.tau, self.pooling = dim, clf_dim, tau, pooling
        self.directions = tuple(directions)
        if "seg_to_clf" in directions:
            self.s2c_conv = nn.Conv2d(dim, dim // 2, 1, **factory)
            if pooling == "attention":
                self.s2c_attn = nn.Conv2d(dim, 1, 1, bias=False, **factory)  # a bias would cancel in the softmax
            self.s2c_dense = nn.Linear(dim // 2, clf_dim, **factory)
            self.s2c_bn = nn.BatchNorm1d(clf_dim, **BATCH_NORM, **factory)
            self.clf_gate = nn.Linear(clf_dim, clf_dim, **factory)
        if "clf_to_seg" in directions:
            self.c2s_dense = nn.Linear(clf_dim, dim, **factory)
            self.seg_gate = nn.Linear(dim, dim, **factory)
        self.apply(init_as_keras)

    def operands(self) -> ops.TIMParameters:
        """The parameters in the form that mtlkit.ops takes."""
        there, back = ("seg_to_clf" in self.directions), ("clf_to_seg" in self.directions)
        layers = (self.s2c_conv, self.s2c_dense, self.clf_gate) if there else (None, None, None)
        layers += (self.c2s_dense, self.seg_gate) if back else (None, None)
        layers += (self.s2c_bn,) if there else (None,)
        pairs = (None if layer is None else getattr(layer, name) for layer in layers for name in ("weight", "bias"))
        running = (self.s2c_bn.running_mean, self.s2c_bn.running_var) if there else (None, None)
        attention = self.s2c_attn.weight if there and self.pooling == "attention" else None
        return ops.TIMParameters(*pairs, *running, attention)  # pyright: ignore[reportCallIssue] - a pair from each of six layers

    def step(self) -> dict[str, Any]:
        """The settings of the batch normalisation for mtlkit.ops; in training it also counts the batch."""
        if "seg_to_clf" not in self.directions:
            return {"training": self.training}
        norm, group = self.s2c_bn, None
        if self.training:
            norm.num_batches_tracked.add_(1)  # pyright: ignore[reportOptionalMemberAccess] - it tracks running statistics
            group = group_of(norm)
        return {"training": self.training, "momentum": norm.momentum, "eps": norm.eps, "group": group}

    def forward(self, seg: Tensor, clf: Tensor) -> ops.TIMOutput:
        """Enhances both: (B, C, H, W) and (B, clf_dim) to the same shapes."""
        check_channels_first("seg", seg, self.dim)
        check_vectors("clf", clf, self.clf_dim, seg.shape[0])
        return ops.tim(seg, clf, self.operands(), tau=self.tau, **self.step())

    def extra_repr(self) -> str:
        """The options, for repr."""
        shown = f"dim={self.dim}, clf_dim={self.clf_dim}, tau={self.tau}, pooling={self.pooling!r}"
        return shown if self.directions == DIRECTIONS else f"{shown}, directions={self.directions}"
