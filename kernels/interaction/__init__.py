r"""Task interaction in Triton, forward and backward: formulas and letters as in mtlkit/operators/interaction.

`reduce_forward` computes in one reading pass over a map: moments, gradient energy and the pooled projection. A
program takes a tile of pixels of one image through all channels; the projected map is an accumulator that is summed
over the tile's pixels and never written. Each program writes partial sums, and `interaction_combine_kernel` adds them
up in a fixed order: no atomics, bitwise reproducible results. Moments are taken about each channel's first pixel, the
tiles' means and sums of squares about them combined as Chan et al. do.

`reduce_backward` recomputes the projected map if registers can hold all channels of a tile and the complete projection
(`is_small`), so that one reading of the map gives all gradients. Otherwise the gradients of the map and of the weights
need only the projected map's signs, one bit each. The forward pass saves them; with attention, which also needs two
numbers per pixel, a separate pass computes them. Products run in the dtype of the map, on factors that are signs or
normalised, so that float16 does not underflow.
"""

from mtlkit.kernels.interaction import gating
from mtlkit.kernels.interaction.reduce import reduce_backward, reduce_forward, room_for_signs
from mtlkit.kernels.interaction.scale import scale_backward, scale_forward

__all__ = ["gating", "reduce_backward", "reduce_forward", "room_for_signs", "scale_backward", "scale_forward"]
