r"""SS2D, the four-direction 2-D selective scan of VMamba, MedMamba and VM-UNet, fused.

B images, D channels, H x W pixels, L = H W, K = 4 directions, N states, R rank of the time step, M = R + 2 N.

    k = 0  row-major      i = h W + w ascending
    k = 1  column-major   w outer, h inner
    k = 2  the reverse of k = 0
    k = 3  the reverse of k = 1

With u_k the pixels in the order of direction k, and the rows of x_dbl[k] split into dts (R), B (N) and C (N):

    dt  = softplus(dt_weight[k] dts + dt_bias[k])
    h_t = exp(-dt_t exp(A_logs[k])) h_{t-1} + dt_t u_t B_t,   h_{-1} = 0
    y_t = sum_n h_t[n] C_t[n] + Ds[k] u_t

and y is the sum of the four, each put back into image order. A 1 x 1 projection commutes with the order of pixels, so
x_dbl of all four directions is one matrix product on the image as it is.

Source: Liu et al., "VMamba: Visual State Space Model" (2024), section 4.2; Yue and Li, "MedMamba" (2024).
"""

from functools import cache

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit._check import check_device, check_float_dtype, check_shape, check_tensor
from mtlkit.ops._backend import choose
from mtlkit.ops._native_call import (
    CHECKPOINT_TOKENS,
    MAX_STATES,
    address,
    aligned,
    argument,
    as_float,
    check,
    check_cuda,
    compute_dtype,
    first_order_only,
    fresh,
    gpu,
    launching,
    like,
    single_precision_only,
    traced,
    wants_grad,
)
from mtlkit.ops.selective_scan import selective_scan_reference, selective_scan_torch

SERVED = ("cpu", "cuda", "triton", "torch", "reference")
DIRECTIONS = 4

# --- scan orders ------------------------------------------------------------------------------------------------------


def cross_scan(x: Tensor) -> Tensor:
    """The pixels of each direction in its order: (B, 4, C, H, W), or (B, C, H, W) for all alike, to (B, 4, C, L).

    Example:
        >>> import torch, mtlkit
        >>> mtlkit.ops.cross_scan(torch.arange(6).view(1, 1, 2, 3))[0, :, 0]
        tensor([[0, 1, 2, 3, 4, 5],
                [0, 3, 1, 4, 2, 5],
                [5, 4, 3, 2, 1, 0],
                [5, 2, 4, 1, 3, 0]])
    """
    if x.dim() == 4:
        x = x[:, None].expand(-1, DIRECTIONS, -1, -1, -1)
    rows = x.flatten(-2)  # (B, 4, C, L)
    columns = x.transpose(-1, -2).flatten(-2)  # (B, 4, C, L)
    return torch.stack((rows[:, 0], columns[:, 1], rows[:, 2].flip(-1), columns[:, 3].flip(-1)), 1)


def cross_merge(ys: Tensor, height: int, width: int) -> Tensor:
    """The way back, summed over the directions: (B, 4, C, L) to (B, C, H, W).

    Example:
        >>> import torch, mtlkit
        >>> x = torch.arange(6).view(1, 1, 2, 3)
        >>> torch.equal(mtlkit.ops.cross_merge(mtlkit.ops.cross_scan(x), 2, 3), 4 * x)
        True
    """
    rows = ys[:, 0] + ys[:, 2].flip(-1)  # (B, C, L)
    columns = ys[:, 1] + ys[:, 3].flip(-1)  # (B, C, L)
    return rows.unflatten(-1, (height, width)) + columns.unflatten(-1, (width, height)).transpose(-1, -2)


# --- reference, and vectorised PyTorch --------------------------------------------------------------------------------


def ss2d_reference(u, x_dbl, dt_weight, dt_bias, A_logs, Ds, out_dtype: torch.dtype) -> Tensor:
    """The formula, token by token."""
    return _composed(selective_scan_reference, u, x_dbl, dt_weight, dt_bias, A_logs, Ds, out_dtype)


def ss2d_torch(u, x_dbl, dt_weight, dt_bias, A_logs, Ds, out_dtype: torch.dtype) -> Tensor:
    """As the reference, with the vectorised scan."""
    return _composed(selective_scan_torch, u, x_dbl, dt_weight, dt_bias, A_logs, Ds, out_dtype)


def _composed(scan, u, x_dbl, dt_weight, dt_bias, A_logs, Ds, out_dtype: torch.dtype) -> Tensor:
    dtype = compute_dtype(u, x_dbl)
    height, width = u.shape[2:]
    rank, states = dt_weight.shape[2], A_logs.shape[1]
    us = cross_scan(u.to(dtype))  # (B, 4, D, L)
    dts, Bs, Cs = cross_scan(x_dbl.to(dtype)).split((rank, states, states), 2)  # (B, 4, R | N | N, L)
    delta = torch.einsum("bkrl,kdr->bkdl", dts, dt_weight.to(dtype))  # (B, 4, D, L)
    ys, _ = scan(
        us.flatten(1, 2),  # (B, 4 D, L)
        delta.flatten(1, 2),
        -torch.exp(A_logs.to(dtype)),  # (4 D, N)
        Bs,  # (B, 4, N, L)
        Cs,
        Ds.to(dtype),
        None,
        dt_bias.to(dtype).flatten(),
        True,
    )
    y = cross_merge(ys.unflatten(1, (DIRECTIONS, -1)), height, width)  # (B, D, H, W)
    return _like_layout(y, u).to(out_dtype)


def _like_layout(y: Tensor, u: Tensor) -> Tensor:
    channels_last = u.is_contiguous(memory_format=torch.channels_last) and not u.is_contiguous()
    return y.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


# --- shape rule -------------------------------------------------------------------------------------------------------


def _check(u, x_dbl, dt_weight, dt_bias, A_logs, Ds, out_dtype) -> None:
    check_tensor("u", u, 4)
    check_tensor("x_dbl", x_dbl, 5)
    check_tensor("dt_weight", dt_weight, 3)
    check_tensor("dt_bias", dt_bias, 2)
    check_tensor("A_logs", A_logs, 2)
    check_tensor("Ds", Ds, 1)
    batch, channels, height, width = u.shape
    if channels < 1 or height < 1 or width < 1:
        raise ValueError(f"u: expected shape (B, D, H, W) with D, H and W at least 1, got {tuple(u.shape)}")
    rank, states = dt_weight.shape[2], A_logs.shape[1]
    if rank < 1:
        raise ValueError(f"dt_weight: expected shape (4, D, R) with R at least 1, got {tuple(dt_weight.shape)}")
    if states < 1:
        raise ValueError(f"A_logs: expected shape (4 D, N) with N at least 1, got {tuple(A_logs.shape)}")
    check_shape("dt_weight", dt_weight, "(4, D, R)", DIRECTIONS, channels, rank)
    check_shape("dt_bias", dt_bias, "(4, D)", DIRECTIONS, channels)
    check_shape("A_logs", A_logs, "(4 D, N)", DIRECTIONS * channels, states)
    check_shape("Ds", Ds, "(4 D,)", DIRECTIONS * channels)
    check_shape("x_dbl", x_dbl, "(B, 4, R + 2 N, H, W)", batch, DIRECTIONS, rank + 2 * states, height, width)
    check_device(u=u, x_dbl=x_dbl, dt_weight=dt_weight, dt_bias=dt_bias, A_logs=A_logs, Ds=Ds)
    if out_dtype is not None:
        check_float_dtype("out_dtype", out_dtype)


# --- launch: cpu ------------------------------------------------------------------------------------------------------


def _sizes(u: Tensor, dt_weight: Tensor, A_logs: Tensor) -> tuple[int, ...]:
    return *u.shape, A_logs.shape[1], dt_weight.shape[2]


def _rows(x_dbl: Tensor) -> Tensor:
    """x_dbl with a pixel's values side by side, (B, H, W, 4, M), as the kernels read it; no copy where it is so."""
    return x_dbl.permute(0, 3, 4, 1, 2).contiguous()


def _cpu_arguments(u, dt_weight, dt_bias, A_logs, Ds, rows, checkpoints, dtype) -> tuple:
    """What the kernels of both directions take first."""
    return (
        _sizes(u, dt_weight, A_logs),
        tuple(argument(t) for t in (u, dt_weight, dt_bias, A_logs, Ds)),
        address(rows),
        address(checkpoints),
        dtype == torch.float64,
        torch.get_num_threads(),
    )


def _cpu_checkpoints(u, x_dbl, dt_weight, A_logs) -> tuple[tuple[int, ...], torch.dtype]:
    chunks = (u.shape[2] * u.shape[3] + CHECKPOINT_TOKENS - 1) // CHECKPOINT_TOKENS
    return (u.shape[0], DIRECTIONS, chunks, A_logs.shape[1], u.shape[1]), compute_dtype(u, x_dbl)


def _cpu_forward(out_dtype, checkpoints, u, x_dbl, dt_weight, dt_bias, A_logs, Ds) -> Tensor:
    dtype = compute_dtype(u, x_dbl)
    y = torch.empty_like(u, dtype=out_dtype)
    rows = _rows(x_dbl.to(dtype))
    for new in (y, checkpoints):
        fresh(new)
    arguments = _cpu_arguments(u, dt_weight, dt_bias, A_logs, Ds, rows, checkpoints, dtype)
    check(_native.C.ss2d_forward(*arguments, argument(y)))
    return y


def _cpu_backward(dy, u, x_dbl, dt_weight, dt_bias, A_logs, Ds, checkpoints) -> list[Tensor]:
    dtype = compute_dtype(u, x_dbl)
    rows = _rows(x_dbl.to(dtype))
    du, drows = (fresh(torch.empty_like(t)) for t in (u, rows))
    parameters = [torch.empty(t.shape, dtype=dtype) for t in (dt_weight, dt_bias, A_logs, Ds)]
    status = _native.C.ss2d_backward(
        *_cpu_arguments(u, dt_weight, dt_bias, A_logs, Ds, rows, checkpoints, dtype),
        argument(dy),
        argument(du),
        *(address(t) for t in (drows, *parameters)),
    )
    check(status)
    return [du, drows.permute(0, 3, 4, 1, 2), *parameters]


# --- launch: cuda -----------------------------------------------------------------------------------------------------


@cache
def _cuda_tiling(states: int, rank: int, of_gpu: tuple[int, int]) -> tuple[int, int]:
    """Padded states and tokens per tile: (0, 0) where no kernel fits the GPU's shared memory."""
    return _native.C.cuda_ss2d_tiling(states, rank, of_gpu)


def _cuda_plan(u: Tensor, dt_weight: Tensor, A_logs: Tensor, backward: bool) -> tuple[int, ...]:
    """SS2DPlan of ss2d.h."""
    return _native.C.cuda_ss2d_plan(_sizes(u, dt_weight, A_logs), gpu(u.device), backward)


def _cuda_arguments(u, x_dbl, dt_weight, dt_bias, A_logs, Ds, checkpoints, plan) -> tuple[tuple, list[Tensor]]:
    """What the kernels of both directions take first, and the tensors that must live until they are launched."""
    batch, channels = u.shape[:2]
    padded, chunks, pairs = plan[1], plan[5], plan[-1]
    rows = aligned(_rows(x_dbl))
    many = batch * 2 * pairs * (chunks - 1) * channels
    ends = torch.empty(many, padded, dtype=torch.float32, device=u.device)
    steps = torch.empty(many, dtype=torch.float32, device=u.device)
    buffers = [*(as_float(t) for t in (dt_weight, dt_bias, A_logs, Ds)), checkpoints, ends, steps]
    arguments = (
        _sizes(u, dt_weight, A_logs),
        plan,
        (argument(u), argument(rows)),
        [address(t) for t in buffers],
    )
    return arguments, [rows, *buffers]


def _cuda_checkpoints(u, x_dbl, dt_weight, A_logs) -> tuple[tuple[int, ...], torch.dtype]:
    padded, tokens = _cuda_tiling(int(A_logs.shape[1]), int(dt_weight.shape[2]), gpu(u.device))
    tiles = (u.shape[2] * u.shape[3] + tokens - 1) // tokens
    return (u.shape[0], DIRECTIONS, tiles - 1, u.shape[1], padded), torch.float32


def _cuda_maps(u: Tensor, count: int) -> list[Tensor]:
    """Where the two pairs of opposite directions, or both together, leave their sums, (B, D, H, W), channels-last."""
    options = {"dtype": torch.float32, "memory_format": torch.channels_last}
    return [torch.empty_like(u, **options) for _ in range(count)]


def _sum_of_maps(maps: list[Tensor], u: Tensor, dtype: torch.dtype) -> Tensor:
    """In the memory format of u; where that and the dtype are the maps', in place of the first."""
    in_place = dtype == maps[0].dtype and u.stride() == maps[0].stride()
    total = maps[0] if in_place else torch.empty_like(u, dtype=dtype)
    if len(maps) == 2:
        return torch.add(*maps, out=total)
    return total if in_place else total.copy_(maps[0])


def cuda_ss2d_maps(checkpoints, u, x_dbl, dt_weight, dt_bias, A_logs, Ds) -> list[Tensor]:
    """Two maps whose sum is the output, (B, D, H, W) in float32, channels-last."""
    plan = _cuda_plan(u, dt_weight, A_logs, False)
    maps = _cuda_maps(u, 2)
    with launching(u) as stream:
        arguments, _kept = _cuda_arguments(u, x_dbl, dt_weight, dt_bias, A_logs, Ds, checkpoints, plan)
        check_cuda(_native.C.cuda_ss2d_forward(*arguments, [address(t) for t in maps], stream))
    return maps


def _cuda_forward(out_dtype, checkpoints, u, *others) -> Tensor:
    return _sum_of_maps(cuda_ss2d_maps(checkpoints, u, *others), u, out_dtype)


def _cuda_backward(dy, u, x_dbl, dt_weight, dt_bias, A_logs, Ds, checkpoints) -> list[Tensor]:
    plan = _cuda_plan(u, dt_weight, A_logs, True)
    batch, channels, height, width = u.shape
    states, rank = A_logs.shape[1], dt_weight.shape[2]
    _, padded, tiles, blocks, chunk_tiles, chunks, images, window_tiles, pixels, pairs = plan
    maps = _cuda_maps(u, pairs)
    drows = torch.empty(batch, height, width, *x_dbl.shape[1:3], dtype=x_dbl.dtype, device=u.device)
    stored = blocks - 1 if x_dbl.dtype == torch.float32 else blocks  # drows is the first part
    one_window = window_tiles >= max(chunk_tiles, tiles - (chunks - 1) * chunk_tiles)
    carries = maps[0].new_empty(0 if one_window else images, 2 * pairs, chunks, channels, padded)
    parts = maps[0].new_empty(stored, images, 2 * pairs, pixels, rank + 2 * states)
    sums = maps[0].new_empty(images * chunks - 1, 2 * pairs, channels, states + rank + 2)
    dweight, dbias, dA_logs, dDs = (maps[0].new_empty(t.shape) for t in (dt_weight, dt_bias, A_logs, Ds))
    with launching(u) as stream:
        arguments, kept = _cuda_arguments(u, x_dbl, dt_weight, dt_bias, A_logs, Ds, checkpoints, plan)
        outputs = (drows, maps[0], maps[-1], carries, parts, sums, dA_logs, dweight, dbias, dDs)
        check_cuda(_native.C.cuda_ss2d_backward(*arguments, argument(dy), [address(t) for t in outputs], stream))
    del carries, parts, sums, kept, outputs
    return [_sum_of_maps(maps, u, u.dtype), drows.permute(0, 3, 4, 1, 2), dweight, dbias, dA_logs, dDs]


# --- launch: triton ---------------------------------------------------------------------------------------------------


def _triton_checkpoints(u, x_dbl, dt_weight, A_logs) -> tuple[tuple[int, ...], torch.dtype]:
    from mtlkit.kernels import ss2d as kernels

    return kernels.checkpoint_shape(u, A_logs), torch.float32


def _triton_backward(*tensors: Tensor) -> tuple[Tensor, ...]:
    from mtlkit.kernels import ss2d as kernels

    return kernels.backward(*tensors)


# --- forward and backward ---------------------------------------------------------------------------------------------

_CHECKPOINTS = {"cpu": _cpu_checkpoints, "cuda": _cuda_checkpoints, "triton": _triton_checkpoints}
_FORWARD = {"cpu": _cpu_forward, "cuda": _cuda_forward}
_BACKWARD = {"cpu": _cpu_backward, "cuda": _cuda_backward, "triton": _triton_backward}


def _new_checkpoints(backend: str, u, x_dbl, dt_weight, A_logs, save: bool) -> Tensor:
    shape, dtype = _CHECKPOINTS[backend](u, x_dbl, dt_weight, A_logs)
    return torch.empty(shape if save else (*shape[:2], 0, *shape[3:]), dtype=dtype, device=u.device)


def _forward(backend, u, x_dbl, dt_weight, dt_bias, A_logs, Ds, out_dtype, save) -> tuple[Tensor, Tensor]:
    """The kernel: y, and the states kept for backward (none unless `save`)."""
    if backend == "triton":
        from mtlkit.kernels import ss2d as kernels

        return kernels.forward(u, x_dbl, dt_weight, dt_bias, A_logs, Ds, out_dtype, save)
    checkpoints = _new_checkpoints(backend, u, x_dbl, dt_weight, A_logs, save)
    if u.shape[0] == 0:
        return torch.empty_like(u, dtype=out_dtype), checkpoints
    return _FORWARD[backend](out_dtype, checkpoints, u, x_dbl, dt_weight, dt_bias, A_logs, Ds), checkpoints


def _backward(backend, dy, u, x_dbl, dt_weight, dt_bias, A_logs, Ds, checkpoints) -> list[Tensor]:
    """The kernel: the gradient of each input."""
    inputs = (u, x_dbl, dt_weight, dt_bias, A_logs, Ds)
    if u.shape[0] == 0:
        return [torch.zeros_like(t) for t in inputs]
    return [like(g, t) for g, t in zip(_BACKWARD[backend](dy, *inputs, checkpoints), inputs, strict=True)]


class _SS2D(torch.autograd.Function):
    @staticmethod
    def forward(ctx, backend, out_dtype, save, *inputs):
        y, checkpoints = _forward(backend, *inputs, out_dtype, save)
        ctx.backend = backend
        if save:
            ctx.save_for_backward(*inputs, checkpoints)
        return y

    @staticmethod
    def backward(ctx, dy):
        *inputs, checkpoints = ctx.saved_tensors
        gradients = _backward(ctx.backend, dy, *inputs, checkpoints)
        return None, None, None, *first_order_only("ss2d", gradients, (dy, *inputs))


def _limits(u, x_dbl, dt_weight, dt_bias, A_logs, Ds) -> dict[str, str] | None:
    """What keeps the kernels from serving a call, for `choose`."""
    states, rank = A_logs.shape[1], dt_weight.shape[2]
    if states > MAX_STATES:
        return dict.fromkeys(("cpu", "cuda", "triton"), f"it keeps at most {MAX_STATES} states, got {states}")
    limits = single_precision_only(u, x_dbl, dt_weight, dt_bias, A_logs, Ds)
    on_gpu = u.device.type == "cuda" and _native.C is not None and _native.C.cuda
    if limits is None and on_gpu and _cuda_tiling(int(states), int(rank), gpu(u.device)) == (0, 0):
        return {"cuda": f"{states} states with a time step of rank {rank} do not fit the GPU's shared memory"}
    return limits


def backend_of_ss2d(u, x_dbl, dt_weight, dt_bias, A_logs, Ds, out_dtype) -> str:
    """The backend that serves a call; raises where its arguments do not fit together."""
    _check(u, x_dbl, dt_weight, dt_bias, A_logs, Ds, out_dtype)
    return choose("ss2d", SERVED, u.device, _limits(u, x_dbl, dt_weight, dt_bias, A_logs, Ds))


# --- for the dispatcher: torch.compile, torch.export ------------------------------------------------------------------


@torch.library.custom_op("mtlkit::ss2d", mutates_args=())
def _op(
    backend: str,
    u: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    out_dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor]:
    return _forward(backend, u, x_dbl, dt_weight, dt_bias, A_logs, Ds, out_dtype, save)


@_op.register_fake
def _(backend, u, x_dbl, dt_weight, dt_bias, A_logs, Ds, out_dtype, save):
    return torch.empty_like(u, dtype=out_dtype), _new_checkpoints(backend, u, x_dbl, dt_weight, A_logs, save)


@torch.library.custom_op("mtlkit::ss2d_backward", mutates_args=())
def _op_backward(
    backend: str,
    dy: Tensor,
    u: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    checkpoints: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return tuple(_backward(backend, dy, u, x_dbl, dt_weight, dt_bias, A_logs, Ds, checkpoints))


@_op_backward.register_fake
def _(backend, dy, *inputs_and_checkpoints):
    return tuple(torch.empty_like(t) for t in inputs_and_checkpoints[:-1])


def _op_setup(ctx, inputs, output) -> None:
    ctx.backend, *tensors, _out_dtype, save = inputs
    if not save:
        raise RuntimeError("mtlkit::ss2d: save=False was passed for a call that needs gradients")
    ctx.save_for_backward(*tensors, output[1])


def _op_grad(ctx, dy, _dcheckpoints):
    return None, *_op_backward(ctx.backend, dy, *ctx.saved_tensors), None, None


_op.register_autograd(_op_grad, setup_context=_op_setup)


# --- public -----------------------------------------------------------------------------------------------------------


def ss2d(
    u: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Four-direction 2-D selective scan, from the input and its projections to the merged output.

    Inputs may be float32, float64, bfloat16 or float16, mixed as they come, in any memory format and of any strides;
    channels-last is the fast one. State and sums are float32 (float64 where u or x_dbl is). First-order gradients flow
    to every tensor. Results repeat bit by bit on the same machine and thread count. The `cpu` backend keeps a state
    every 32 tokens for the backward pass; nothing of size (B, 4, D, L) is written.

    Args:
        u: input, (B, D, H, W).
        x_dbl: projections of u for the four directions, in image order, (B, 4, R + 2 N, H, W): R values for the time
            step, then B, then C. Fastest where a pixel's values lie side by side, as a linear layer leaves them.
        dt_weight: projection of the time step, (4, D, R).
        dt_bias: its bias, added before softplus, (4, D).
        A_logs: logarithm of -A, (4 D, N).
        Ds: skip, (4 D,).
        out_dtype: dtype of the output; that of u if None. Pass torch.float32 with float16 input where the output may
            pass float16's range.

    Returns:
        The output, (B, D, H, W) in the memory format of u.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes or devices do not fit together, or the backend that was asked for cannot serve.

    Example:
        >>> import torch, mtlkit
        >>> D, N, R = 8, 16, 2
        >>> u = torch.randn(1, D, 7, 5).to(memory_format=torch.channels_last)
        >>> x_dbl = torch.randn(1, 4, R + 2 * N, 7, 5)
        >>> dt_weight, dt_bias = torch.randn(4, D, R), torch.randn(4, D)
        >>> mtlkit.ops.ss2d(u, x_dbl, dt_weight, dt_bias, torch.zeros(4 * D, N), torch.ones(4 * D)).shape
        torch.Size([1, 8, 7, 5])
    """
    inputs = (u, x_dbl, dt_weight, dt_bias, A_logs, Ds)
    backend = backend_of_ss2d(*inputs, out_dtype)
    out_dtype = out_dtype or u.dtype
    if backend == "reference":
        return ss2d_reference(*inputs, out_dtype)
    if backend == "torch":
        return ss2d_torch(*inputs, out_dtype)
    save = wants_grad(*inputs)
    if traced(*inputs):
        return _op(backend, *inputs, out_dtype, save)[0]
    return _SS2D.apply(backend, out_dtype, save, *inputs)
