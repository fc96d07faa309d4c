"""What stands in every SS2D layer: the scan, then norm_gate over its channels.

The CUDA kernels of the scan leave two maps whose sum is its output. Where no gradient is wanted, norm_gate adds them as
it reads them, and the output itself is never written.
"""

import torch
from torch import Tensor

from mtlkit.ops._native_call import traced, wants_grad
from mtlkit.ops.norm_gate import backend_of_norm_gate, cuda_norm_gate_of_sum, norm_gate
from mtlkit.ops.ss2d import backend_of_ss2d, cuda_ss2d_maps, ss2d


def ss2d_norm_gate(
    u: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """ss2d, its output with the channels last, and norm_gate; z and the result are (B, H, W, D)."""
    inputs, parameters = (u, x_dbl, dt_weight, dt_bias, A_logs, Ds), (weight, bias, z)
    if not wants_grad(*inputs, *parameters) and not traced(*inputs, *parameters) and u.shape[0] > 0:
        backends = backend_of_ss2d(*inputs, out_dtype), backend_of_norm_gate(u.permute(0, 2, 3, 1), *parameters, eps)
        if backends == ("cuda", "cuda"):
            maps = (t.permute(0, 2, 3, 1) for t in cuda_ss2d_maps(None, *inputs))
            return cuda_norm_gate_of_sum(*maps, *parameters, eps, out_dtype or u.dtype)
    y = ss2d(*inputs, out_dtype=out_dtype)  # (B, D, H, W)
    return norm_gate(y.permute(0, 2, 3, 1), weight, bias, z, eps)
