r"""Under the names of mamba-ssm and VMamba, for code that imports those where they cannot be installed.

Nothing is registered at import: `install_mamba_ssm()` and `install_vmamba()` do it, `uninstall_*` undo it. The
functions themselves may be called directly as well.

Of Mamba's block, with B sequences, D channels, L tokens, N states, R rank of the time step, w taps:

    x, z           = split(xz)                                    (B, D, L) each
    x              = SiLU(causal_conv1d(x) + b)                   token t sees x_{t-w+1} .. x_t
    dts, B, C      = split(x W_x)                                 (B, L, R | N | N)
    out            = selective_scan(x, dts W_dt, A, B, C, D, z, delta_bias, softplus) W_out + b_out

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023), figure 3; Zhu et al.,
"Vision Mamba" (2024), algorithm 1, for the form without the output projection and the bidirectional one; Liu et al.,
"VMamba: Visual State Space Model" (2024).
"""

import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit._check import check_shape, check_tensor
from mtlkit.operators.selective_scan import selective_scan, selective_scan_reference

__all__ = [
    "bimamba_inner_fn",
    "install_mamba_ssm",
    "install_vmamba",
    "mamba_inner_fn",
    "mamba_inner_fn_no_out_proj",
    "mamba_inner_ref",
    "selective_scan_fn",
    "selective_scan_oflex",
    "selective_scan_ref",
    "uninstall_mamba_ssm",
    "uninstall_vmamba",
]

selective_scan_fn = selective_scan

# --- the functions of mamba-ssm ---------------------------------------------------------------------------------------


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`selective_scan_fn` token by token in plain PyTorch; arguments and result as there.

    Example:
        >>> import torch
        >>> from mtlkit.compat import selective_scan_fn, selective_scan_ref
        >>> u, delta, A = torch.randn(1, 4, 9), torch.rand(1, 4, 9), -torch.rand(4, 2)
        >>> B, C = torch.randn(1, 2, 9), torch.randn(1, 2, 9)
        >>> torch.allclose(selective_scan_fn(u, delta, A, B, C), selective_scan_ref(u, delta, A, B, C), atol=1e-5)
        True
    """
    out, last = selective_scan_reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return (out, last) if return_last_state else out


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Mamba's block between its input projection and its result, with the signature of mamba-ssm's `mamba_inner_fn`.

    Args:
        xz: what the input projection gives, (B, 2 D, L): x, then the gate z.
        conv1d_weight: causal depthwise convolution, (D, 1, w).
        conv1d_bias: its bias, (D,).
        x_proj_weight: projection to the time step, B and C, (R + 2 N, D); rows for B or C that are given are left out.
        delta_proj_weight: projection of the time step, (D, R).
        out_proj_weight: output projection, (C, D).
        out_proj_bias: its bias, (C,).
        A: real state matrix, (D, N), negative for a stable state.
        B: input matrix, (D, N) or (B, N, L); projected from x if None.
        C: output matrix, likewise.
        D: skip, (D,).
        delta_bias: added to the time step, (D,).
        B_proj_bias: added to a projected B, (N,).
        C_proj_bias: added to a projected C, (N,).
        delta_softplus: whether softplus is applied to the time step.
        checkpoint_lvl: accepted for compatibility; the backward pass has its own way of saving memory.
        b_rms_weight: where given, B is divided by its root mean square over the states, and multiplied by this, (N,).
        c_rms_weight: likewise for C.
        dt_rms_weight: likewise for the projected time step, over the channels, (D,).
        b_c_dt_rms_eps: added to those mean squares.

    Returns:
        The output, (B, L, C).

    Raises:
        TypeError: an argument is no floating-point tensor, or A is complex.
        ValueError: shapes or devices do not fit together.

    Example:
        >>> import torch
        >>> from mtlkit.compat import mamba_inner_fn
        >>> D, N, R, L = 8, 4, 2, 10
        >>> xz, conv, A = torch.randn(1, 2 * D, L), torch.randn(D, 1, 4), -torch.rand(D, N)
        >>> x_proj, dt_proj, out_proj = torch.randn(R + 2 * N, D), torch.randn(D, R), torch.randn(6, D)
        >>> mamba_inner_fn(xz, conv, None, x_proj, dt_proj, out_proj, None, A).shape
        torch.Size([1, 10, 6])
    """
    rms = (b_rms_weight, c_rms_weight, dt_rms_weight, b_c_dt_rms_eps)
    projected = _project(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias, rms
    )
    y = _scan(selective_scan, projected, A, D, delta_bias, delta_softplus)  # (B, D, L)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)  # (B, L, C)


def mamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`mamba_inner_fn` with the scan token by token in plain PyTorch; arguments and result as there.

    Example:
        >>> import torch
        >>> from mtlkit.compat import mamba_inner_ref
        >>> weights = torch.randn(3, 8), torch.randn(8, 1), torch.randn(8, 8), None
        >>> mamba_inner_ref(torch.randn(1, 16, 5), torch.randn(8, 1, 4), None, *weights, -torch.rand(8, 1)).shape
        torch.Size([1, 5, 8])
    """
    projected = _project(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias
    )
    y = _scan(selective_scan_ref, projected, A, D, delta_bias, delta_softplus)  # (B, D, L)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)  # (B, L, C)


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
) -> Tensor:
    """`mamba_inner_fn` without the output projection, as Vision Mamba calls it for each of its two directions.

    Returns:
        The gated output of the scan, (B, D, L); everything else as in `mamba_inner_fn`.

    Example:
        >>> import torch
        >>> from mtlkit.compat import mamba_inner_fn_no_out_proj
        >>> xz, conv = torch.randn(1, 16, 5), torch.randn(8, 1, 4)
        >>> mamba_inner_fn_no_out_proj(xz, conv, None, torch.randn(3, 8), torch.randn(8, 1), -torch.ones(8, 1)).shape
        torch.Size([1, 8, 5])
    """
    projected = _project(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias
    )
    return _scan(selective_scan, projected, A, D, delta_bias, delta_softplus)


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`mamba_inner_fn` in both directions, with one convolution and projection for both.

    A_b is the state matrix of the scan from the last token to the first, (D, N); everything else is as there.

    Example:
        >>> import torch
        >>> from mtlkit.compat import bimamba_inner_fn
        >>> weights, A = (torch.randn(3, 8), torch.randn(8, 1), torch.randn(8, 8), None), -torch.ones(8, 1)
        >>> bimamba_inner_fn(torch.randn(1, 16, 5), torch.randn(8, 1, 4), None, *weights, A, A).shape
        torch.Size([1, 5, 8])
    """
    projected = _project(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias
    )
    backwards = tuple(t if t.dim() == 2 else t.flip(-1) for t in projected)  # what is constant has no direction
    y = _scan(selective_scan, projected, A, D, delta_bias, delta_softplus)  # (B, D, L)
    y = y + _scan(selective_scan, backwards, A_b, D, delta_bias, delta_softplus).flip(-1)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)  # (B, L, C)


def _scan(scan, projected, A, D, delta_bias, delta_softplus) -> Tensor:
    x, delta, B, C, z = projected
    return scan(x, delta, A, B, C, D, z, delta_bias, delta_softplus)


def _project(
    xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias, rms=None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the scan takes: x (B, D, L), the time step (B, D, L), B and C as given or (B, N, L), and z (B, D, L)."""
    check_tensor("xz", xz, 3)
    check_tensor("conv1d_weight", conv1d_weight, 3)
    check_tensor("x_proj_weight", x_proj_weight, 2)
    check_tensor("delta_proj_weight", delta_proj_weight, 2)
    if isinstance(A, Tensor) and A.is_complex():
        raise TypeError(f"A: expected a real tensor, got {A.dtype}; complex state spaces are not served")
    check_tensor("A", A, 2)
    channels, _, taps = conv1d_weight.shape
    rank, states = delta_proj_weight.shape[1], A.shape[1]
    check_shape("xz", xz, "(B, 2 D, L)", xz.shape[0], 2 * channels, xz.shape[2])
    rows = rank + states * ((B is None) + (C is None))
    check_shape("x_proj_weight", x_proj_weight, "(R + 2 N, D), without the rows of what is given,", rows, channels)
    x, z = xz.chunk(2, 1)  # (B, D, L) each
    x = F.silu(F.conv1d(F.pad(x, (taps - 1, 0)), conv1d_weight, conv1d_bias, groups=channels))  # (B, D, L)
    values = F.linear(x.transpose(1, 2), x_proj_weight)  # (B, L, R + 2 N)
    delta = F.linear(values[..., :rank], delta_proj_weight)  # (B, L, D)
    B = _rows(values[..., rank : rank + states], B_proj_bias) if B is None else B
    C = _rows(values[..., -states:], C_proj_bias) if C is None else C
    if rms is not None:
        *weights, eps = rms
        B = _root_mean_square("B", B, weights[0], eps)
        C = _root_mean_square("C", C, weights[1], eps)
        delta = delta if weights[2] is None else F.rms_norm(delta, delta.shape[-1:], weights[2], eps)
    return x, delta.transpose(1, 2), B, C, z


def _rows(values: Tensor, bias: Tensor | None) -> Tensor:
    """(B, L, N) to (B, N, L)."""
    return (values if bias is None else values + bias.to(values.dtype)).transpose(1, 2)


def _root_mean_square(name: str, rows: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Over the states of (B, N, L)."""
    if weight is None:
        return rows
    check_tensor(name, rows, 3)
    return F.rms_norm(rows.transpose(1, 2), rows.shape[1:2], weight, eps).transpose(1, 2)


# --- the functions of VMamba ------------------------------------------------------------------------------------------


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
    """Selective scan with the signature of VMamba's `selective_scan_fn`: no gate, and the output float32 if asked.

    Args:
        u: input, (B, D, L).
        delta: time step, (B, D, L).
        A: real state matrix, (D, N).
        B: input matrix, (B, G, N, L) for G groups of channels, or (B, N, L).
        C: output matrix, as B.
        D: skip, (D,).
        delta_bias: added to delta, (D,).
        delta_softplus: whether softplus is applied to delta.
        oflex: whether a 16-bit u gives a float32 output, which cannot overflow; otherwise it has the dtype of u.
        backend: accepted for compatibility; `mtlkit.use_backend` chooses.

    Returns:
        The output, (B, D, L).

    Raises:
        TypeError: an argument is no floating-point tensor.
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
    check_tensor("u", u, 3)
    u = u.to(torch.promote_types(u.dtype, torch.float32)) if oflex else u
    return selective_scan(u, delta, A, B, C, D, None, delta_bias, delta_softplus)


def _oflex_fwd(u, delta, A, B, C, D, delta_bias, delta_softplus, nrows=1, out_float=True) -> tuple[Tensor, Tensor]:
    """The output, and a tensor (B, D, 1, 2 N) that holds the last state in its odd places, as the extension's does."""
    with torch.no_grad():
        wide = torch.promote_types(u.dtype, torch.float32) if out_float else u.dtype
        out, last = selective_scan(
            u.to(wide), delta, A, B, C, D, None, delta_bias, delta_softplus, return_last_state=True
        )
    return out, torch.stack((torch.zeros_like(last), last), -1).flatten(-2).unsqueeze(2)


def _oflex_bwd(u, delta, A, B, C, D, delta_bias, dout, x, delta_softplus, nrows=1) -> tuple[Tensor | None, ...]:
    """The gradients of u, delta, A, B, C, D and delta_bias, None for what was not given; it scans forward again."""
    given: list[Any]
    given = [None if t is None else t.detach().requires_grad_() for t in (u, delta, A, B, C, D, delta_bias)]
    u, delta, A, B, C, D, delta_bias = given
    with torch.enable_grad():
        out = selective_scan(u.to(dout.dtype), delta, A, B, C, D, None, delta_bias, delta_softplus)
    present = iter(torch.autograd.grad(out, [t for t in given if t is not None], dout))
    return tuple(None if t is None else next(present) for t in given)


# --- registration -----------------------------------------------------------------------------------------------------

INTERFACE = "mamba_ssm.ops.selective_scan_interface"
OFLEX = "selective_scan_cuda_oflex"
_before: dict[str, ModuleType | None] = {}  # what each registered name stood for


def install_mamba_ssm(*, replace: bool = False) -> bool:
    """Makes `from mamba_ssm.ops.selective_scan_interface import ...` find mtlkit's functions.

    What can be imported: selective_scan_fn, selective_scan_ref, mamba_inner_fn, mamba_inner_ref, and of Vision Mamba's
    edition mamba_inner_fn_no_out_proj and bimamba_inner_fn. Call it before the code that imports them.

    Args:
        replace: whether to take the place of a mamba-ssm that is installed; code that imported its functions before
            keeps them. Without it an installed mamba-ssm is left alone.

    Returns:
        Whether mtlkit's functions are what is found now.

    Example:
        >>> import mtlkit
        >>> mtlkit.compat.install_mamba_ssm(replace=True)
        True
        >>> from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
        >>> selective_scan_fn is mtlkit.selective_scan_fn
        True
        >>> mtlkit.compat.uninstall_mamba_ssm()
    """
    if INTERFACE in _before:
        return True
    real = _installed("mamba_ssm")
    if real is not None and not replace:
        return False
    functions = {
        function.__name__: function
        for function in (mamba_inner_fn, mamba_inner_ref, mamba_inner_fn_no_out_proj, bimamba_inner_fn)
    }
    functions |= {"selective_scan_fn": selective_scan_fn, "selective_scan_ref": selective_scan_ref}
    roots = list(real.submodule_search_locations or []) if real is not None else []
    interface = _module(INTERFACE, functions)
    ops = _module("mamba_ssm.ops", {"selective_scan_interface": interface}, [str(Path(root, "ops")) for root in roots])
    package = {"ops": ops} | {name: functions[name] for name in ("selective_scan_fn", "mamba_inner_fn")}
    _register({"mamba_ssm": _module("mamba_ssm", package, roots), "mamba_ssm.ops": ops, INTERFACE: interface})
    return True


def uninstall_mamba_ssm() -> None:
    """Undoes `install_mamba_ssm`: the names stand for what they stood for before; without it nothing happens.

    Example:
        >>> import mtlkit
        >>> mtlkit.compat.uninstall_mamba_ssm()
    """
    _unregister(INTERFACE, "mamba_ssm.ops", "mamba_ssm")


def install_vmamba(*, replace: bool = False) -> bool:
    """Makes `import selective_scan_cuda_oflex`, VMamba's extension, find functions `fwd` and `bwd` of mtlkit's.

    Args:
        replace: whether to take the place of an extension that is installed.

    Returns:
        Whether mtlkit's functions are what is found now.

    Example:
        >>> import mtlkit
        >>> mtlkit.compat.install_vmamba(replace=True)
        True
        >>> import selective_scan_cuda_oflex
        >>> callable(selective_scan_cuda_oflex.fwd)
        True
        >>> mtlkit.compat.uninstall_vmamba()
    """
    if OFLEX in _before:
        return True
    if _installed(OFLEX) is not None and not replace:
        return False
    _register({OFLEX: _module(OFLEX, {"fwd": _oflex_fwd, "bwd": _oflex_bwd})})
    return True


def uninstall_vmamba() -> None:
    """Undoes `install_vmamba`; without it nothing happens.

    Example:
        >>> import mtlkit
        >>> mtlkit.compat.uninstall_vmamba()
    """
    _unregister(OFLEX)


def _installed(name: str) -> ModuleSpec | None:
    module = sys.modules.get(name)
    if module is not None:  # find_spec raises for a module without a specification
        return getattr(module, "__spec__", None) or ModuleSpec(name, None)
    return find_spec(name)


def _module(name: str, contents: Mapping[str, object], search: list[str] | None = None) -> ModuleType:
    """A module made of `contents`; with `search` a package that finds the rest of its modules there."""
    module = ModuleType(name, f"{name} as mtlkit serves it; see mtlkit.compat.")
    module.__spec__ = ModuleSpec(name, None, is_package=search is not None)
    if search is not None:
        module.__path__ = module.__spec__.submodule_search_locations = search
    module.__dict__.update(contents)
    return module


def _register(modules: dict[str, ModuleType]) -> None:
    for name, module in modules.items():
        _before[name] = sys.modules.get(name)
        sys.modules[name] = module


def _unregister(*names: str) -> None:
    for name in names:
        if name not in _before:
            continue
        before = _before.pop(name)
        if before is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = before
