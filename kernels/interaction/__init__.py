r"""Task interaction in Triton, forward and backward: formulas and letters as in mtlkit/operators/interaction.

`reduce_forward` gathers what one reading pass over a map can: moments, gradient energy and the pooled projection. A
program takes a tile of pixels of one image through all channels; the projected map is an accumulator that is summed
over the tile's pixels and never written. Each program leaves partial sums, and `interaction_combine_kernel` adds them
up in a fixed order: no atomics, results repeat bit by bit. Moments are taken about each channel's first pixel, the
tiles' means and sums of squares about them combined as Chan et al. do.

`reduce_backward` forms the projected map again where registers hold all channels of a tile and the whole projection
(`is_small`), so that one reading of the map gives all gradients. Else the gradients of the map and of the weights need
the projected map's signs alone, one bit each: the forward pass keeps them, but with attention, which needs two numbers
a pixel beside, a pass of its own finds them. Products run in the dtype of the map, on factors that are signs or
normalised, so that float16 does not underflow.
"""

from mtlkit.kernels.interaction import gating
from mtlkit.kernels.interaction.reduce import reduce_backward, reduce_forward, room_for_signs
from mtlkit.kernels.interaction.scale import scale_backward, scale_forward

__all__ = ["gating", "reduce_backward", "reduce_forward", "room_for_signs", "scale_backward", "scale_forward"]
