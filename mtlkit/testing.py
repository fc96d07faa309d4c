"""Shared by tests and benchmarks: inputs of named shapes, and one policy for the accuracy of results.

The policy compares with the reference in float64 by the relative error |got - exact| / |exact| in the 2-norm:

- float64 and float32 within fixed bounds;
- 16-bit within twice (output) or three times (gradients) the error that plain PyTorch makes in the same dtype, plus
  the dtype's own rounding;
- a gradient that is zero although the exact one is not always fails.
"""

from mtlkit._accuracy import FORWARD_BOUND, GRADIENT_BOUND, ROUNDING, assert_accurate, relative_error
from mtlkit.operators.shapes import (
    DirectionalScanShape,
    InteractionInputs,
    InteractionShape,
    SelectiveScanShape,
    SS2DShape,
)

__all__ = [
    "FORWARD_BOUND",
    "GRADIENT_BOUND",
    "INTERACTION_SHAPES",
    "ROUNDING",
    "SS2D_SHAPES",
    "DirectionalScanShape",
    "InteractionInputs",
    "InteractionShape",
    "SS2DShape",
    "SelectiveScanShape",
    "assert_accurate",
    "relative_error",
]

# Shapes of networks in use, one image unless the name says otherwise: MedMamba-T at 224 x 224, an exam of four
# mammograms at 512 x 512, VMamba-T (s1l8) with its single state.
SS2D_SHAPES = {
    "medmamba_t_stage1": SS2DShape(1, 96, 56, 56, 16, 3),
    "medmamba_t_stage2": SS2DShape(1, 192, 28, 28, 16, 6),
    "medmamba_t_stage3": SS2DShape(1, 384, 14, 14, 16, 12),
    "medmamba_t_stage4": SS2DShape(1, 768, 7, 7, 16, 24),
    "mammo_4view_64": SS2DShape(4, 192, 64, 64, 16, 6),
    "mammo_4view_128": SS2DShape(4, 96, 128, 128, 16, 3),
    "vmamba_t_stage1": SS2DShape(1, 96, 56, 56, 1, 6),
    "vmamba_t_stage2": SS2DShape(1, 192, 28, 28, 1, 12),
    "vmamba_t_stage3": SS2DShape(1, 384, 14, 14, 1, 24),
    "vmamba_t_stage4": SS2DShape(1, 768, 7, 7, 1, 48),
}

# The decoder levels of MBDI and BTI-Net, 1 the deepest, at inputs of 224 x 224 (an ultrasound frame) and 512 x 512.
INTERACTION_SHAPES = {
    f"busi_{size}_level{level}_batch{batch}": InteractionShape(
        batch, 768 >> level, size >> (5 - level), size >> (5 - level)
    )
    for size in (224, 512)
    for batch in (8, 24)
    for level in (1, 2, 3, 4)
}
