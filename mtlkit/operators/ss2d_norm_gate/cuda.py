"""ss2d_norm_gate by the CUDA kernels, which never write the scan's output if no gradient is needed."""

from torch import Tensor

from mtlkit.operators import norm_gate, ss2d
from mtlkit.operators.ss2d_norm_gate.composed import Composed
from mtlkit.operators.ss2d_norm_gate.signature import Inputs, Options, norm_part, scan_part


class Cuda(Composed):
    """Like the two parts, except in inference, where norm_gate adds the two maps that the scan writes."""

    def forward(self, inputs: Inputs, options: Options, save: bool) -> tuple[Tensor, ...]:
        """The output, the scan's output, and what the scan saves."""
        if save:
            return super().forward(inputs, options, save)
        first, second = ss2d.cuda.forward_maps(scan_part(inputs, options)[0])
        rows, norm_options = norm_part(first, inputs, options)
        addend = second.permute(0, 2, 3, 1)
        return (norm_gate.cuda.forward_of_sum(rows, addend, norm_options, options.out_dtype),)
