r"""The 1-D selective scan, with the semantics of mamba-ssm's `selective_scan_fn`.

B sequences, D channels, L tokens, N states, G groups of channels that share B and C.

    dt_t = softplus(delta_t + delta_bias)          the softplus only if asked
    h_t  = exp(dt_t A) h_{t-1} + dt_t u_t B_t      (D, N), h_{-1} = 0
    y_t  = sum_n h_t[n] C_t[n] + D u_t             (D)
    out  = y SiLU(z)                               the gate only if given

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023), equation 2 with the
zero-order hold for A and Euler's rule for B, as every published implementation has it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit import _native
from mtlkit._check import check_device, check_shape, check_tensor
from mtlkit.ops._backend import choose
from mtlkit.ops._native_call import (
    CHECKPOINT_TOKENS,
    MAX_STATES,
    address,
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

SERVED = ("cpu", "cuda", "triton", "torch", "reference")

# --- reference --------------------------------------------------------------------------------------------------------


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """The formula, token by token, in float32 (float64 where any input is): (out, last state)."""
    return _with(_scan_sequential, u, delta, A, B, C, D, z, delta_bias, delta_softplus)


def _scan_sequential(dt: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    h = x.new_zeros(*x.shape[:3], A.shape[-1])  # (B, G, D/G, N)
    ys = []
    for t in range(x.shape[-1]):
        h = torch.exp(dt[..., t, None] * A) * h + x[..., t, None] * B[..., t]  # (B, G, D/G, N)
        ys.append((h * C[..., t]).sum(-1))  # (B, G, D/G)
    return torch.stack(ys, -1), h


def _with(scan, u, delta, A, B, C, D, z, delta_bias, delta_softplus) -> tuple[Tensor, Tensor]:
    """Everything around the recurrence, for any scan(dt, x, A, B, C) -> (y, last state) over groups of channels."""
    dtype = compute_dtype(u, delta, A, B, C)
    groups = _groups(B, C)
    batch, _, length = u.shape
    wide = u.to(dtype)  # (B, D, L)
    dt = delta.to(dtype)  # (B, D, L)
    if delta_bias is not None:
        dt = dt + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        dt = F.softplus(dt)

    def grouped(v: Tensor) -> Tensor:
        return v.unflatten(1, (groups, -1))  # (B, G, D/G, L)

    def per_token(v: Tensor) -> Tensor:
        v = v.to(dtype)
        if v.dim() == 2:
            return v.unflatten(0, (groups, -1))[None, ..., None].expand(batch, -1, -1, -1, length)  # (B, G, D/G, N, L)
        return (v if v.dim() == 4 else v[:, None])[:, :, None].expand(-1, groups, -1, -1, -1)  # (B, G, 1, N, L)

    y, last = scan(grouped(dt), grouped(dt * wide), A.to(dtype).unflatten(0, (groups, -1)), per_token(B), per_token(C))
    y = y.flatten(1, 2)  # (B, D, L)
    if D is not None:
        y = y + wide * D.to(dtype)[:, None]
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype), last.flatten(1, 2)


def _groups(B: Tensor, C: Tensor) -> int:
    return B.shape[1] if B.dim() == 4 else C.shape[1] if C.dim() == 4 else 1


# --- vectorised PyTorch -----------------------------------------------------------------------------------------------


def selective_scan_torch(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """As the reference, with about 2 sqrt(L) steps instead of L: (out, last state)."""
    return _with(_scan_chunked, u, delta, A, B, C, D, z, delta_bias, delta_softplus)


def _scan_chunked(dt: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """All chunks of T tokens advance together: once for their last states, which are then chained, once for y.

    Only products of decays occur, never their inverses, so that nothing overflows however strong the decay is.
    """
    length = x.shape[-1]
    T = max(1, round(length**0.5))
    chunks = -(-length // T)

    def split(v: Tensor) -> Tensor:  # (..., L) -> (T, ..., chunks); tokens added behind leave the state as it is
        return F.pad(v, (0, chunks * T - length)).unflatten(-1, (chunks, T)).movedim(-1, 0).contiguous()

    dt, x = split(dt).unsqueeze(-1), split(x).unsqueeze(-1)  # (T, B, G, D/G, chunks, 1)
    B, C = (split(v).transpose(-1, -2).contiguous() for v in (B, C))  # (T, B, G, 1 or D/G, chunks, N)
    A = A.unsqueeze(-2)  # (G, D/G, 1, N)

    def step(h: Tensor, t: int) -> Tensor:
        return torch.addcmul(x[t] * B[t], torch.exp(dt[t] * A), h)  # (B, G, D/G, chunks, N)

    h = x.new_zeros(*x.shape[1:-1], A.shape[-1])
    for t in range(T):
        h = step(h, t)
    decay = torch.exp(dt.sum(0) * A)  # (B, G, D/G, chunks, N)
    starts = [torch.zeros_like(h[..., 0, :])]
    for i in range(chunks):
        starts.append(torch.addcmul(h[..., i, :], decay[..., i, :], starts[-1]))
    h = torch.stack(starts[:-1], -2)
    ys = []
    for t in range(T):
        h = step(h, t)
        ys.append((h * C[t]).sum(-1))  # (B, G, D/G, chunks)
    return torch.stack(ys, -1).flatten(-2)[..., :length], starts[-1]


# --- shape rule -------------------------------------------------------------------------------------------------------


def _check(u, delta, A, B, C, D, z, delta_bias) -> None:
    check_tensor("u", u, 3)
    check_tensor("delta", delta, 3)
    if isinstance(A, Tensor) and A.is_complex():
        raise TypeError(f"A: expected a real tensor, got {A.dtype}; complex state spaces are not served")
    check_tensor("A", A, 2)
    batch, channels, length = u.shape
    states = A.shape[1]
    if channels < 1 or length < 1:
        raise ValueError(f"u: expected shape (B, D, L) with D and L at least 1, got {tuple(u.shape)}")
    if states < 1:
        raise ValueError(f"A: expected shape (D, N) with N at least 1, got {tuple(A.shape)}")
    check_shape("delta", delta, "(B, D, L)", *u.shape)
    check_shape("A", A, "(D, N)", channels, states)
    for name, value in (("B", B), ("C", C)):
        check_tensor(name, value, (2, 3, 4))
        if value.dim() == 2:
            check_shape(name, value, "(D, N)", channels, states)
        elif value.dim() == 3:
            check_shape(name, value, "(B, N, L)", batch, states, length)
        else:
            groups = value.shape[1]
            check_shape(name, value, "(B, G, N, L)", batch, groups, states, length)
            if groups < 1 or channels % groups:
                raise ValueError(f"{name}: expected groups G that divide D = {channels}, got G = {groups}")
    if B.dim() >= 3 and C.dim() >= 3:
        groups_B, groups_C = _groups(B, B), _groups(C, C)
        if groups_B != groups_C:
            raise ValueError(f"C: expected as many groups as B has, {groups_B}, got {groups_C}")
    for name, value, letters, shape in (
        ("D", D, "(D,)", (channels,)),
        ("z", z, "(B, D, L)", tuple(u.shape)),
        ("delta_bias", delta_bias, "(D,)", (channels,)),
    ):
        if value is not None:
            check_tensor(name, value, len(shape))
            check_shape(name, value, letters, *shape)
    check_device(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)


# --- launch: cpu ------------------------------------------------------------------------------------------------------


def _sizes(u: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[int, int, int, int, int]:
    return u.shape[0], u.shape[1], u.shape[2], A.shape[1], _groups(B, C)


def _rows(v: Tensor) -> tuple:
    """B or C as the kernels take it: with four strides, of which constant ones use two."""
    return argument(v[:, :, None, None] if v.dim() == 2 else v[:, None] if v.dim() == 3 else v)


def _cpu_arguments(u, delta, A, B, C, D, z, delta_bias, delta_softplus, checkpoints, dtype) -> tuple:
    """What the kernels of both directions take first."""
    return (
        _sizes(u, A, B, C),
        (argument(u), argument(delta), argument(A), _rows(B), _rows(C), argument(D), argument(z), argument(delta_bias)),
        delta_softplus,
        B.dim() > 2,
        C.dim() > 2,
        address(checkpoints),
        dtype == torch.float64,
        torch.get_num_threads(),
    )


def _cpu_kept(u, delta, A, B, C, z) -> tuple:
    batch, channels, length = u.shape
    chunks = (length + CHECKPOINT_TOKENS - 1) // CHECKPOINT_TOKENS
    return (batch, chunks, A.shape[1], channels), (0,), compute_dtype(u, delta, A, B, C)


def _cpu_forward(out, last, checkpoints, _ungated, u, delta, A, B, C, D, z, delta_bias, delta_softplus) -> None:
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    for new in (out, checkpoints):
        fresh(new)
    arguments = _cpu_arguments(*inputs, delta_softplus, checkpoints, last.dtype)
    check(_native.C.selective_scan_forward(*arguments, argument(out), address(last)))


def _cpu_backward(
    dout, dlast, u, delta, A, B, C, D, z, delta_bias, checkpoints, _ungated, delta_softplus
) -> list[Tensor | None]:
    dtype = compute_dtype(u, delta, A, B, C)
    batch, channels, length = u.shape
    states, groups = A.shape[1], _groups(B, C)
    du, ddelta, dz = (None if t is None else fresh(torch.empty_like(t)) for t in (u, delta, z))

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=u.device)

    dA, dD, dbias = zeros(channels, states), zeros(channels), zeros(channels)
    dB, dC = (zeros(*((batch, groups, length, states) if v.dim() > 2 else (channels, states))) for v in (B, C))
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    status = _native.C.selective_scan_backward(
        *_cpu_arguments(*inputs, delta_softplus, checkpoints, dtype),
        argument(dout),
        argument(dlast),
        argument(du),
        argument(ddelta),
        argument(dz),
        *(address(t) for t in (dA, dB, dC, dD, dbias)),
    )
    check(status)
    return [du, ddelta, dA, _token_last(dB, B), _token_last(dC, C), dD, dz, dbias]


def _token_last(gradient: Tensor, tensor: Tensor) -> Tensor:
    """The gradient of B or C, (B, G, L, N) where they vary, in the dimensions of the tensor."""
    if tensor.dim() == 2:
        return gradient
    gradient = gradient.transpose(2, 3)  # (B, G, N, L)
    return gradient[:, 0] if tensor.dim() == 3 else gradient


# --- launch: cuda -----------------------------------------------------------------------------------------------------


def _cuda_plan(u, A, B, C) -> tuple[int, ...]:
    """Layout, padded states, tokens per tile, group blocks, tiles per chunk, chunks: csrc/cuda/selective_scan.h."""
    return _native.C.cuda_selective_scan_plan(_sizes(u, A, B, C), B.dim() == 2 or C.dim() == 2, gpu(u.device))


def _cuda_arguments(u, delta, A, B, C, D, delta_bias, delta_softplus, checkpoints, plan) -> tuple[tuple, list]:
    """What the kernels of both directions take first, and the tensors that must live until they are launched."""
    _, padded, _, _, _, chunks = plan
    many = u.shape[0] * chunks * u.shape[1] if chunks > 1 else 0
    ends = torch.empty(many, padded, dtype=torch.float32, device=u.device)
    steps = torch.empty(many, dtype=torch.float32, device=u.device)
    parameters = [None if t is None else as_float(t) for t in (A, D, delta_bias)]
    buffers = [*parameters, checkpoints, ends, steps]
    arguments = (
        _sizes(u, A, B, C),
        plan,
        (argument(u), argument(delta), _rows(B), _rows(C)),
        (B.dim() > 2, C.dim() > 2, delta_softplus),
        [address(t) for t in buffers],
    )
    return arguments, buffers


def _cuda_kept(u, delta, A, B, C, z) -> tuple:
    batch, channels, length = u.shape
    constant = B.dim() == 2 or C.dim() == 2
    _, padded, tokens, *_ = _native.C.cuda_selective_scan_plan((1, 1, 1, int(A.shape[1]), 1), constant, gpu(u.device))
    tiles = (length + tokens - 1) // tokens
    return (batch, tiles, channels, padded), (0,) if z is None else (batch, channels, length), torch.float32


def _cuda_forward(out, last, checkpoints, ungated, u, delta, A, B, C, D, z, delta_bias, delta_softplus) -> None:
    plan = _cuda_plan(u, A, B, C)
    with launching(u) as stream:
        inputs = (u, delta, A, B, C, D, delta_bias)
        arguments, _kept = _cuda_arguments(*inputs, delta_softplus, checkpoints, plan)
        outputs = (argument(z), argument(out), address(ungated), address(last))
        check_cuda(_native.C.cuda_selective_scan_forward(*arguments, *outputs, stream))


def _cuda_backward(
    dout, dlast, u, delta, A, B, C, D, z, delta_bias, checkpoints, ungated, delta_softplus
) -> list[Tensor | None]:
    plan = _cuda_plan(u, A, B, C)
    _, _, _, blocks, _, chunks = plan
    batch, channels, length = u.shape
    states, groups = A.shape[1], _groups(B, C)
    varies = B.dim() > 2 or C.dim() > 2
    du, ddelta = torch.empty_like(u), torch.empty_like(delta)
    dz = None if z is None else torch.empty_like(z)
    drows = torch.empty(
        blocks if varies else 0, batch, groups, length, 2 * states, dtype=torch.float32, device=u.device
    )
    dparameters = drows.new_empty(batch * chunks, channels, 3 * states + 2)
    with launching(u) as stream:
        inputs = (u, delta, A, B, C, D, delta_bias)
        arguments, _kept = _cuda_arguments(*inputs, delta_softplus, checkpoints, plan)
        status = _native.C.cuda_selective_scan_backward(
            *arguments,
            (argument(dout), argument(z), argument(dlast), argument(du), argument(ddelta), argument(dz)),
            [address(t) for t in (ungated, drows, dparameters)],
            stream,
        )
        check_cuda(status)
    # in a fixed order, as all of torch's sums over a dimension
    dB, dC = drows.sum(0).split(states, -1) if varies else (None, None)
    dA, constant_B, constant_C, dD, dbias = dparameters.sum(0).split((states, states, states, 1, 1), -1)
    dB = _token_last(dB, B) if B.dim() > 2 else constant_B
    dC = _token_last(dC, C) if C.dim() > 2 else constant_C
    return [du, ddelta, dA, dB, dC, dD[:, 0], dz, dbias[:, 0]]


# --- launch: triton ---------------------------------------------------------------------------------------------------


def _triton_kept(u, delta, A, B, C, z) -> tuple:
    from mtlkit.kernels import selective_scan as kernels

    return kernels.checkpoint_shape(u, A), (0,), torch.float32


def _triton_backward(
    dout, dlast, u, delta, A, B, C, D, z, delta_bias, checkpoints, _ungated, delta_softplus
) -> tuple[Tensor | None, ...]:
    from mtlkit.kernels import selective_scan as kernels

    return kernels.backward(dout, dlast, u, delta, A, B, C, D, z, delta_bias, checkpoints, delta_softplus)


# --- forward and backward ---------------------------------------------------------------------------------------------

# shapes of the kept states and of the output before the gate, and the dtype of both and of the last state
_KEPT = {"cpu": _cpu_kept, "cuda": _cuda_kept, "triton": _triton_kept}
_FORWARD = {"cpu": _cpu_forward, "cuda": _cuda_forward}
_BACKWARD = {"cpu": _cpu_backward, "cuda": _cuda_backward, "triton": _triton_backward}

_Outputs = tuple[Tensor, Tensor, Tensor, Tensor]  # out, last state, states kept for backward, output before the gate


def _new_outputs(backend: str, u, delta, A, B, C, z, save: bool) -> _Outputs:
    kept, ungated, dtype = _KEPT[backend](u, delta, A, B, C, z)
    kept, ungated = (kept, ungated) if save else ((kept[0], 0, *kept[2:]), (0,))

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=u.device)

    return torch.empty_like(u), new(u.shape[0], u.shape[1], A.shape[1]), new(*kept), new(*ungated)


def _forward(backend, u, delta, A, B, C, D, z, delta_bias, delta_softplus, save) -> _Outputs:
    """The kernel; what backward needs is kept only with `save`."""
    if backend == "triton":
        from mtlkit.kernels import selective_scan as kernels

        outputs = kernels.forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, save)
        return *outputs, u.new_empty(0, dtype=torch.float32)
    outputs = _new_outputs(backend, u, delta, A, B, C, z, save)
    if u.shape[0] > 0:
        _FORWARD[backend](*outputs, u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return outputs


def _new_gradients(u, delta, A, B, C, D, z, delta_bias) -> list[Tensor | None]:
    return [None if t is None else torch.empty_like(t) for t in (u, delta, A, B, C, D, z, delta_bias)]


def _backward(
    backend, dout, dlast, u, delta, A, B, C, D, z, delta_bias, checkpoints, ungated, delta_softplus
) -> list[Tensor | None]:
    """The kernel: the gradient of each input, None for those that were not given."""
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    if u.shape[0] == 0:
        return [None if t is None else torch.zeros_like(t) for t in inputs]
    gradients = _BACKWARD[backend](dout, dlast, *inputs, checkpoints, ungated, delta_softplus)
    return [None if t is None else like(g, t) for g, t in zip(gradients, inputs, strict=True)]


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, backend, delta_softplus, save, *inputs):
        out, last, *kept = _forward(backend, *inputs, delta_softplus, save)
        ctx.backend, ctx.delta_softplus = backend, delta_softplus
        ctx.set_materialize_grads(False)
        if save:
            ctx.save_for_backward(*inputs, *kept)
        return out, last

    @staticmethod
    def backward(ctx, dout, dlast):
        saved = ctx.saved_tensors
        inputs = saved[:-2]
        dout = torch.zeros_like(inputs[0]) if dout is None else dout
        gradients = _backward(ctx.backend, dout, dlast, *saved, ctx.delta_softplus)
        return None, None, None, *first_order_only("selective_scan", gradients, (dout, dlast, *inputs))


# --- for the dispatcher: torch.compile, torch.export ------------------------------------------------------------------


@torch.library.custom_op("mtlkit::selective_scan", mutates_args=())
def _op(
    backend: str,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _forward(backend, u, delta, A, B, C, D, z, delta_bias, delta_softplus, save)


@_op.register_fake
def _(backend, u, delta, A, B, C, D, z, delta_bias, delta_softplus, save):
    return _new_outputs(backend, u, delta, A, B, C, z, save)


@torch.library.custom_op("mtlkit::selective_scan_backward", mutates_args=())
def _op_backward(
    backend: str,
    dout: Tensor,
    dlast: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    checkpoints: Tensor,
    ungated: Tensor,
    delta_softplus: bool,
) -> list[Tensor]:
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    gradients = _backward(backend, dout, dlast, *inputs, checkpoints, ungated, delta_softplus)
    return [g for g in gradients if g is not None]


@_op_backward.register_fake
def _(backend, dout, dlast, u, delta, A, B, C, D, z, delta_bias, checkpoints, ungated, delta_softplus):
    return [g for g in _new_gradients(u, delta, A, B, C, D, z, delta_bias) if g is not None]


def _op_setup(ctx, inputs, output) -> None:
    ctx.backend, *tensors, ctx.delta_softplus, save = inputs
    if not save:
        raise RuntimeError("mtlkit::selective_scan: save=False was passed for a call that needs gradients")
    ctx.save_for_backward(*tensors, *output[2:])


def _op_grad(ctx, dout, dlast, *_kept):
    saved = ctx.saved_tensors
    present = iter(_op_backward(ctx.backend, dout, dlast, *saved, ctx.delta_softplus))
    return None, *(None if t is None else next(present) for t in saved[:-2]), None, None


_op.register_autograd(_op_grad, setup_context=_op_setup)


# --- public -----------------------------------------------------------------------------------------------------------


def selective_scan(
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
    """Selective scan over sequences, with the signature and semantics of mamba-ssm's `selective_scan_fn`.

    Inputs may be float32, float64, bfloat16 or float16, mixed as they come, of any strides. State and sums are float32
    (float64 where u, delta, A, B or C is). First-order gradients flow to every tensor. Results repeat bit by bit on the
    same machine and thread count.

    Args:
        u: input, (B, D, L).
        delta: time step before bias and softplus, (B, D, L).
        A: real state matrix, (D, N), negative for a stable state.
        B: input matrix: (D, N) constant, (B, N, L), or (B, G, N, L) for G groups of channels.
        C: output matrix: as B; constant and varying may be mixed.
        D: skip, (D,).
        z: gate, (B, D, L); the output is multiplied by SiLU(z).
        delta_bias: added to delta, (D,).
        delta_softplus: whether softplus is applied to delta.
        return_last_state: whether the state behind the last token is returned too.

    Returns:
        The output, (B, D, L) in the dtype and layout of u; with `return_last_state` also the last state, (B, D, N) in
        the type of computation.

    Raises:
        TypeError: an argument is no floating-point tensor, or A is complex.
        ValueError: shapes or devices do not fit together, or the backend that was asked for cannot serve.

    Example:
        >>> import torch, mtlkit
        >>> u, delta = torch.randn(2, 8, 100), torch.rand(2, 8, 100)
        >>> A, B, C = -torch.rand(8, 16), torch.randn(2, 16, 100), torch.randn(2, 16, 100)
        >>> mtlkit.ops.selective_scan(u, delta, A, B, C, delta_softplus=True).shape
        torch.Size([2, 8, 100])
    """
    _check(u, delta, A, B, C, D, z, delta_bias)
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    limits = dict.fromkeys(("cpu", "cuda", "triton"), f"it keeps at most {MAX_STATES} states, got {A.shape[1]}")
    limits = limits if A.shape[1] > MAX_STATES else single_precision_only(*inputs)
    backend = choose("selective_scan", SERVED, u.device, limits)
    if backend == "reference":
        out, last = selective_scan_reference(*inputs, delta_softplus)
    elif backend == "torch":
        out, last = selective_scan_torch(*inputs, delta_softplus)
    elif traced(*inputs):
        out, last, *_ = _op(backend, *inputs, bool(delta_softplus), wants_grad(*inputs))
    else:
        out, last = _SelectiveScan.apply(backend, bool(delta_softplus), wants_grad(*inputs), *inputs)
    return (out, last) if return_last_state else out
