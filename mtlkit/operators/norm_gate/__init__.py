r"""norm_gate: LayerNorm over the channels, times SiLU of a gate, in one pass.

D channels in the last dimension, any dimensions before it.

    n = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias     mean and biased variance over D
    y = n SiLU(z),   SiLU(z) = z / (1 + exp(-z));   y = n without a gate

Every SS2D layer has it between the scan and the output projection.

Source: Ba et al., "Layer Normalization" (2016); Liu et al., "VMamba: Visual State Space Model" (2024), figure 3.
"""

from torch import Tensor

from mtlkit.operators._operator import Operator
from mtlkit.operators.norm_gate import cpu, cuda, triton
from mtlkit.operators.norm_gate.reference import norm_gate_reference, norm_gate_torch
from mtlkit.operators.norm_gate.signature import Inputs, Options, check, check_parameters, new_output

__all__ = [
    "OPERATOR",
    "Inputs",
    "Options",
    "check_parameters",
    "norm_gate",
    "norm_gate_reference",
    "norm_gate_torch",
]

OPERATOR = Operator(
    "norm_gate",
    inputs=Inputs,
    options=Options,
    check=check,
    new_outputs=lambda inputs, options: (new_output(inputs.x),),
    reference=norm_gate_reference,
    torch_form=norm_gate_torch,
    backends={"cpu": cpu, "cuda": cuda, "triton": triton},
)


def norm_gate(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    z: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """LayerNorm over the last dimension, times SiLU(z) if a gate z is given.

    Inputs may be float32, float64, bfloat16 or float16, in any combination, with any strides; rows with contiguous
    channels are read without a copy. Mean, variance and sums are float32 (float64 if x or z is). First-order gradients
    flow to every tensor; the backward pass recomputes mean and variance. Results are bitwise reproducible on the same
    machine with the same number of threads.

    Speed-up over F.layer_norm times F.silu with 2 threads on a 2-core AVX-512 machine: at 56 x 56 with D = 96 it is 1.4
    times as fast forward and 1.1 times with the backward pass in float32, 2.9 and 2.2 times in bfloat16. At 7 x 7 with
    D = 768 it is slower, 0.7 times in float32, because a call costs 8 microseconds. A complete SS2D layer in float32
    takes the same time forward at 56 x 56, within 1 %, and 4 % more at 7 x 7.

    Args:
        x: input, (..., D), up to 8 dimensions.
        weight: scale of each channel, (D,); ones if None.
        bias: added to each channel, (D,); zeros if None.
        z: gate before SiLU, in the shape of x.
        eps: added to the variance.

    Returns:
        The output, contiguous, in the shape and dtype of x.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices do not fit together, or the requested backend cannot run this call.

    Example:
        >>> import torch, mtlkit
        >>> x, z = torch.randn(1, 7, 5, 8), torch.randn(1, 7, 5, 8)
        >>> mtlkit.ops.norm_gate(x, torch.ones(8), torch.zeros(8), z).shape
        torch.Size([1, 7, 5, 8])
    """
    return OPERATOR(Inputs(x, weight, bias, z), Options(eps))[0]
