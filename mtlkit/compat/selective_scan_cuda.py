"""mamba-ssm's extension `selective_scan_cuda`, and the variants of it in VMamba and the projects based on VMamba.

All have functions `fwd` and `bwd`, with these differences:

    selective_scan_cuda           a gate z; B and C may be constant
    selective_scan_cuda_core      no gate, B and C (B, G, N, L); also used by selective_scan_vmamba[_pt202]
    selective_scan_cuda_nrow      the same
    selective_scan_cuda_ndstate   the same for one state, whose dimension is omitted
    selective_scan_cuda_oflex     the output is optionally float32; delta may be shared by neighbouring channels

`fwd` returns the output and a tensor (B, D, 1, 2 N) with the last state at its odd indices, where callers read it.
`bwd` recomputes the forward pass, and uses neither that tensor nor the output.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from mtlkit._check import check_tensor
from mtlkit.operators.selective_scan import selective_scan

__all__ = ["MODULES", "selective_scan_oflex"]


def _scanned(u: Tensor, delta: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Returns the output without a gate, and the states as `fwd` returns them."""
    with torch.no_grad():
        A, B, C, D, delta_bias, softplus = rest
        out, last = selective_scan(u, delta, A, B, C, D, None, delta_bias, softplus, return_last_state=True)
    return out, torch.stack((torch.zeros_like(last), last), -1).flatten(-2).unsqueeze(2)


def _gradients(function: Any, tensors: Sequence[Tensor | None], dout: Tensor) -> list[Tensor | None]:
    """Returns the gradient of each tensor, and None for None."""
    leaves: list[Any] = [None if t is None else t.detach().requires_grad_() for t in tensors]
    with torch.enable_grad():
        out = function(*leaves)
    present = iter(torch.autograd.grad(out, [t for t in leaves if t is not None], dout.to(out.dtype)))
    return [None if t is None else next(present) for t in leaves]


# --- mamba-ssm's ------------------------------------------------------------------------------------------------------


def _fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    """Returns the output before the gate, the states and, with a gate, the output after it."""
    out, states = _scanned(u, delta, A, B, C, D, delta_bias, delta_softplus)
    return [out, states] if z is None else [out, states, out * silu(z)]


def _bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    out: Tensor | None,
    dz: Tensor | None,
    delta_softplus: bool,
    recompute_out_z: bool,
) -> list[Tensor | None]:
    """Returns the gradients of u, delta, A, B, C, D, delta_bias and z (written to `dz`), then the gated output."""
    kept: list[Tensor] = []

    def scan(*tensors: Any) -> Tensor:
        kept.append(selective_scan(*tensors, delta_softplus=delta_softplus))
        return kept[0]

    *found, found_z, dbias = _gradients(scan, (u, delta, A, B, C, D, z, delta_bias), dout)
    if found_z is not None and dz is not None:
        found_z = dz.copy_(found_z)
    gated = [kept[0].detach()] if recompute_out_z and z is not None else []
    return [*found, dbias, *([] if z is None else [found_z]), *gated]


# --- VMamba's ---------------------------------------------------------------------------------------------------------


def selective_scan_oflex(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    oflex: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Selective scan with the signature of VMamba's `selective_scan_fn`: no gate, optionally with float32 output.

    Args:
        u: input, (B, D, L).
        delta: time step, (B, D, L), or (B, M, L) if D / M neighbouring channels share each.
        A: real state matrix, (D, N).
        B: input matrix, (B, G, N, L) for G groups of channels, or (B, N, L).
        C: output matrix, as B.
        D: skip, (D,).
        delta_bias: added to delta, (D,) or (M,).
        delta_softplus: whether softplus is applied to delta.
        oflex: whether a 16-bit u gives a float32 output, which cannot overflow; otherwise it has the dtype of u.
        backend: accepted for compatibility; `mtlkit.use_backend` chooses.

    Returns:
        The output, (B, D, L).

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices do not fit together.

    Source: Liu et al., "VMamba: Visual State Space Model" (2024).

    Example:
        >>> import torch
        >>> from mtlkit.compat import selective_scan_oflex
        >>> u, delta = torch.randn(1, 8, 9).half(), torch.rand(1, 8, 9).half()
        >>> rows = torch.randn(1, 4, 2, 9).half()
        >>> selective_scan_oflex(u, delta, -torch.rand(8, 2), rows, rows).dtype
        torch.float32
    """
    u, delta, delta_bias = _widened(u, delta, delta_bias, oflex)
    return selective_scan(u, delta, A, B, C, D, None, delta_bias, delta_softplus)


def _widened(u: Tensor, delta: Tensor, delta_bias: Tensor | None, oflex: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns u in the dtype of the output, and a time step and its bias for each channel."""
    check_tensor("u", u, 3)
    check_tensor("delta", delta, 3)
    if delta.shape[1] and delta.shape[1] != u.shape[1] and u.shape[1] % delta.shape[1] == 0:
        each = u.shape[1] // delta.shape[1]
        delta = delta.repeat_interleave(each, 1)
        delta_bias = None if delta_bias is None else delta_bias.repeat_interleave(each)
    return u.to(torch.promote_types(u.dtype, torch.float32)) if oflex else u, delta, delta_bias


def _oflex_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
    out_float: bool = True,
) -> list[Tensor]:
    u, delta, delta_bias = _widened(u, delta, delta_bias, out_float)
    return list(_scanned(u, delta, A, B, C, D, delta_bias, delta_softplus))


def _oflex_bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor,
    delta_softplus: bool,
    nrows: int = 1,
) -> list[Tensor | None]:
    wide = dout.dtype != u.dtype
    return _gradients(
        lambda *tensors: selective_scan_oflex(*tensors, delta_softplus=delta_softplus, oflex=wide),
        (u, delta, A, B, C, D, delta_bias),
        dout,
    )


def _core_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
) -> list[Tensor]:
    return _oflex_fwd(u, delta, A, B, C, D, delta_bias, delta_softplus, nrows, False)


def _ndstate_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
) -> list[Tensor]:
    """Takes A (D,), B and C (B, G, L)."""
    return _core_fwd(u, delta, A[:, None], B[:, :, None], C[:, :, None], D, delta_bias, delta_softplus, nrows)


def _ndstate_bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor,
    delta_softplus: bool,
    nrows: int = 1,
) -> list[Tensor | None]:
    return _gradients(
        lambda u, delta, A, B, C, *rest: selective_scan_oflex(
            u, delta, A[:, None], B[:, :, None], C[:, :, None], *rest, delta_softplus=delta_softplus, oflex=False
        ),
        (u, delta, A, B, C, D, delta_bias),
        dout,
    )


_CORE = {"fwd": _core_fwd, "bwd": _oflex_bwd}
MODULES: dict[str, dict[str, Any]] = {
    "selective_scan_cuda": {"fwd": _fwd, "bwd": _bwd},
    "selective_scan_cuda_core": _CORE,
    "selective_scan_cuda_nrow": _CORE,
    "selective_scan_cuda_ndstate": {"fwd": _ndstate_fwd, "bwd": _ndstate_bwd},
    "selective_scan_cuda_oflex": {"fwd": _oflex_fwd, "bwd": _oflex_bwd},
    "selective_scan_vmamba.selective_scan_cuda_core": _CORE,
    "selective_scan_vmamba_pt202.selective_scan_cuda_core": _CORE,
}
