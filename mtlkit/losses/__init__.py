"""Losses of the four networks: logits in, float32 inside (also under autocast; float64 stays), a scalar out.

B images of H x W pixels; z logits, p = sigmoid(z) clipped to [1e-7, 1 - 1e-7], g the mask in [0, 1].

    tversky index    T = (TP + s) / (TP + a FP + b FN + s);  TP = sum p g, FP = sum p (1 - g), FN = sum (1 - p) g
    focal tversky    max(1 - T, 1e-7)^gamma
    boundary         mean |K * g - K * p|, K the curvature kernel (x^2 - y^2) exp(-(x^2 + y^2) / (2 s^2)) / sum |.|
    texture          |std(S * g) - std(S * p)|, S the horizontal Sobel kernel
    focal CE         (1 - p_y)^gamma (-log p_y), p = softmax
    gates            mean over levels of BCE(t, w), t = 1 - minmax(quality) over the batch

With a `group`, everything that is computed over a batch (means over images, a Tversky index over the batch, weights of
labelled images, minmax) is computed over the batches of all its processes, so that the gradients averaged by DDP equal
those of one process with all images. Without one, each process uses only its own batch, as in the published code. The
two agree only if the loss is the plain mean over images that are all labelled; they differ with the preset "abraham",
class weights, images without label or mask, and the difficulties, which compare the images of a batch.

Sources: Abraham and Khan, "A Novel Focal Tversky Loss Function with Improved Attention U-Net for Lesion Segmentation"
(2019); "Multi-Level Bidirectional Decoder Interaction for Uncertainty-Aware Breast Ultrasound Analysis" (MBDI,
arXiv 2603.01295), section 2.4, equations 11 and 12; "Bidirectional Decoder-Level Task Interaction via
Uncertainty-Aware Gating" (BTI-Net, arXiv 2606.29102), second stage of training.
"""

from mtlkit.losses.classification import class_weights, focal_cross_entropy, weighted_cross_entropy
from mtlkit.losses.gates import classification_difficulty, gate_loss, segmentation_difficulty
from mtlkit.losses.segmentation import (
    TVERSKY_PRESETS,
    SegmentationLoss,
    TverskyOptions,
    boundary_loss,
    curvature_kernel,
    focal_tversky_loss,
    texture_loss,
    tversky_index,
)

__all__ = [
    "TVERSKY_PRESETS",
    "SegmentationLoss",
    "TverskyOptions",
    "boundary_loss",
    "class_weights",
    "classification_difficulty",
    "curvature_kernel",
    "focal_cross_entropy",
    "focal_tversky_loss",
    "gate_loss",
    "segmentation_difficulty",
    "texture_loss",
    "tversky_index",
    "weighted_cross_entropy",
]
