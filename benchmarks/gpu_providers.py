"""Implementations measured on a GPU: mtlkit's kernels and their peers, from the input of an SS2D to the merged output.

A scan is a function of u (B, D, H, W), x_proj_weight (4, R + 2 N, D), dt_weight (4, D, R), dt_bias (4, D),
A_logs (4 D, N) and Ds (4 D,). It includes the projections, because peers compute them from copies of u in four orders,
and mtlkit computes them from u itself.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module

import torch
import torch.nn.functional as F
from providers import compiled, missing
from torch import Tensor

import mtlkit
from mtlkit import operators
from mtlkit.operators.ss2d import ss2d_torch

Scan = Callable[..., Tensor]


@dataclass(frozen=True)
class GpuProvider:
    """One implementation."""

    name: str
    label: str
    scan: Scan
    why_absent: Callable[[], str | None]
    context: Callable[[], AbstractContextManager] = nullcontext
    own: bool = False  # mtlkit's: must meet the policy of mtlkit.testing; also measured without projections
    memory_format: torch.memory_format = torch.contiguous_format  # the fastest one for this implementation
    one_size: bool = False  # measured only at a batch of 32


# --- mtlkit -----------------------------------------------------------------------------------------------------------


def projections(u: Tensor, x_proj_weight: Tensor) -> Tensor:
    """The projections of all directions, as one product with u: (B, 4, R + 2 N, H, W)."""
    rows = F.linear(u.permute(0, 2, 3, 1), x_proj_weight.flatten(0, 1))  # (B, H, W, 4 (R + 2 N))
    return rows.unflatten(-1, x_proj_weight.shape[:2]).permute(0, 3, 4, 1, 2)


def mtlkit_scan(u: Tensor, x_proj_weight: Tensor, *parameters: Tensor) -> Tensor:
    return mtlkit.ops.ss2d(u, projections(u, x_proj_weight), *parameters)


def chunked_scan(u: Tensor, x_proj_weight: Tensor, *parameters: Tensor) -> Tensor:
    """The scan in PyTorch, in chunks of the sequence."""
    return ss2d_torch(u, projections(u, x_proj_weight), *parameters, u.dtype)


# --- MedMamba ---------------------------------------------------------------------------------------------------------


def medmamba_scan(
    u: Tensor, x_proj_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_logs: Tensor, Ds: Tensor
) -> Tensor:
    """MedMamba's published code: four copies of u, projections of each, mamba-ssm's scan in float32, three sums."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    channels, height, width = u.shape[1:]
    rank, states = dt_weight.shape[2], A_logs.shape[1]
    forwards = torch.stack((u.flatten(2), u.transpose(2, 3).flatten(2)), 1)  # (B, 2, D, L)
    xs = torch.cat((forwards, forwards.flip(-1)), 1)  # (B, 4, D, L)
    x_dbl = torch.einsum("bkdl,kcd->bkcl", xs, x_proj_weight)
    dts, Bs, Cs = x_dbl.split((rank, states, states), 2)
    dts = torch.einsum("bkrl,kdr->bkdl", dts, dt_weight.to(u.dtype))  # (B, 4, D, L)
    ys = selective_scan_fn(
        xs.float().flatten(1, 2),
        dts.contiguous().float().flatten(1, 2),
        -torch.exp(A_logs.float()),
        Bs.float(),
        Cs.float(),
        Ds.float(),
        None,
        dt_bias.float().flatten(),
        delta_softplus=True,
    ).unflatten(1, (4, channels))  # (B, 4, D, L)
    backwards = ys[:, 2:].flip(-1)  # (B, 2, D, L)

    def of_columns(y: Tensor) -> Tensor:
        return y.unflatten(-1, (width, height)).transpose(2, 3).contiguous().flatten(2)  # (B, D, L)

    y = ys[:, 0] + backwards[:, 0] + of_columns(ys[:, 1]) + of_columns(backwards[:, 1])
    return y.unflatten(-1, (height, width)).to(u.dtype)


# --- VMamba -----------------------------------------------------------------------------------------------------------


class _Oflex(torch.autograd.Function):
    """VMamba's build of mamba-ssm's kernel, with 16-bit input and float32 output."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, delta_bias):
        kernels = import_module("selective_scan_cuda_oflex")
        out, states, *_ = kernels.fwd(u, delta, A, B, C, D, delta_bias, True, 1, True)
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, states)
        return out

    @staticmethod
    def backward(ctx, dout):
        kernels = import_module("selective_scan_cuda_oflex")
        *inputs, states = ctx.saved_tensors
        return tuple(kernels.bwd(*inputs, dout.contiguous(), states, True, 1)[:7])


def vmamba_scan(
    u: Tensor, x_proj_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_logs: Tensor, Ds: Tensor
) -> Tensor:
    """VMamba's published code: Triton kernels for the copies and the sum, projections as grouped convolutions."""
    copies = import_module("csm_triton")
    batch, channels, height, width = u.shape
    rank, states = dt_weight.shape[2], A_logs.shape[1]
    xs = copies.cross_scan_fn(u).flatten(1, 2)  # (B, 4 D, L)
    x_dbl = F.conv1d(xs, x_proj_weight.reshape(-1, channels, 1), groups=4).unflatten(1, (4, -1))
    dts, Bs, Cs = (t.contiguous() for t in x_dbl.split((rank, states, states), 2))
    dts = F.conv1d(dts.flatten(1, 2), dt_weight.to(u.dtype).reshape(-1, rank, 1), groups=4)  # (B, 4 D, L)
    A = -torch.exp(A_logs.float())
    ys = _Oflex.apply(xs, dts.contiguous(), A, Bs, Cs, Ds.float(), dt_bias.float().flatten())  # (B, 4 D, L)
    y = copies.cross_merge_fn(ys.view(batch, 4, channels, height, width))  # (B, D, L)
    return y.view(batch, channels, height, width).to(u.dtype)


# --- missing implementations ------------------------------------------------------------------------------------------


def why_no_backend(name: str, op: str = "ss2d") -> str | None:
    """Why a backend of mtlkit cannot run on the current GPU."""
    return operators.obstacle(name, torch.device("cuda", torch.cuda.current_device()))


def why_no_vmamba() -> str | None:
    reason = missing("selective_scan_cuda_oflex", "from VMamba's kernels/selective_scan")()
    if reason:
        return reason
    reason = missing("csm_triton", "nothing: put VMamba's classification/models on PYTHONPATH")()
    if reason:
        return reason
    names = ("cross_scan_fn", "cross_merge_fn")
    lacking = [name for name in names if not hasattr(import_module("csm_triton"), name)]
    return f"its csm_triton has no {' or '.join(lacking)}" if lacking else None


GPU_PROVIDERS = (
    *(
        GpuProvider(
            name=f"mtlkit-{backend}",
            label=f"mtlkit, {label}",
            scan=mtlkit_scan,
            why_absent=functools.partial(why_no_backend, backend),
            context=functools.partial(mtlkit.use_backend, backend),
            own=True,
            memory_format=torch.channels_last,
        )
        for backend, label in (("cuda", "CUDA"), ("triton", "Triton"))
    ),
    GpuProvider(
        name="medmamba",
        label="MedMamba on mamba-ssm",
        scan=medmamba_scan,
        why_absent=missing("mamba_ssm.ops.selective_scan_interface", "mamba-ssm; it needs nvcc"),
    ),
    GpuProvider(name="vmamba", label="VMamba: oflex, csm_triton", scan=vmamba_scan, why_absent=why_no_vmamba),
    GpuProvider(
        name="torch-compile",
        label="torch.compile, chunked",
        scan=lambda *tensors: compiled(chunked_scan)(*tensors),
        why_absent=lambda: None,
        memory_format=torch.channels_last,
        one_size=True,
    ),
)
