"""The formula one token after another, and its vectorised form in chunks."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit.operators._launch import compute_dtype
from mtlkit.operators.selective_scan.signature import groups_of


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
    """The formula, one token after another, in float32 (float64 if any input is): (out, last state)."""
    return _with(scan_sequential, u, delta, A, B, C, D, z, delta_bias, delta_softplus)


def scan_sequential(
    dt: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence, one token after another: (y, last state).

    Args:
        dt: time step, (B, G, D/G, L).
        x: input to the state, time step times u, (B, G, D/G, L).
        A: (G, D/G, N).
        B: (B, G, 1 or D/G, N, L).
        C: as B.
        initial: the state before the first token, (B, G, D/G, N); zeros if None.
        starts: the tokens before which the state is reset to zero, (B, G, L); none if None.
    """
    h = x.new_zeros(*x.shape[:3], A.shape[-1]) if initial is None else initial  # (B, G, D/G, N)
    ys = []
    for t in range(x.shape[-1]):
        if starts is not None:
            h = h.masked_fill(starts[..., t, None, None], 0)
        h = torch.exp(dt[..., t, None] * A) * h + x[..., t, None] * B[..., t]  # (B, G, D/G, N)
        ys.append((h * C[..., t]).sum(-1))  # (B, G, D/G)
    return torch.stack(ys, -1), h


def _with(
    scan: Callable[..., tuple[Tensor, Tensor]],
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Everything around the recurrence, for any scan(dt, x, A, B, C) -> (y, last state) over groups of channels."""
    dtype = compute_dtype(u, delta, A, B, C)
    groups = groups_of(B, C)
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


def selective_scan_torch(
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
    """The reference with about 2 sqrt(L) steps instead of L: (out, last state)."""
    return _with(scan_chunked, u, delta, A, B, C, D, z, delta_bias, delta_softplus)


def scan_chunked(
    dt: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`scan_sequential` for all chunks of T tokens at once: first for their last states, which are chained, then for y.

    Only products of decays occur, never their inverses, so that nothing overflows for any decay.
    """
    length = x.shape[-1]
    T = max(1, round(length**0.5))
    chunks = -(-length // T)

    def split(v: Tensor) -> Tensor:  # (..., L) -> (T, ..., chunks); padding tokens do not change the state
        return F.pad(v, (0, chunks * T - length)).unflatten(-1, (chunks, T)).movedim(-1, 0).contiguous()

    dt, x = split(dt).unsqueeze(-1), split(x).unsqueeze(-1)  # (T, B, G, D/G, chunks, 1)
    B, C = (split(v).transpose(-1, -2).contiguous() for v in (B, C))  # (T, B, G, 1 or D/G, chunks, N)
    A = A.unsqueeze(-2)  # (G, D/G, 1, N)
    if starts is not None:
        starts = split(starts)[:, :, :, None, :, None]  # (T, B, G, 1, chunks, 1)

    def step(h: Tensor, t: int) -> Tensor:
        if starts is not None:
            h = h.masked_fill(starts[t], 0)
        return torch.addcmul(x[t] * B[t], torch.exp(dt[t] * A), h)  # (B, G, D/G, chunks, N)

    h = x.new_zeros(*x.shape[1:-1], A.shape[-1])
    for t in range(T):
        h = step(h, t)
    decay = torch.exp(dt.sum(0) * A)  # (B, G, D/G, chunks, N)
    cut = None if starts is None else starts.any(0)  # (B, G, 1, chunks, 1)
    befores = [torch.zeros_like(h[..., 0, :]) if initial is None else initial]
    for i in range(chunks):
        before = befores[-1] if cut is None else befores[-1].masked_fill(cut[..., i, :], 0)
        befores.append(torch.addcmul(h[..., i, :], decay[..., i, :], before))
    h = torch.stack(befores[:-1], -2)
    ys = []
    for t in range(T):
        h = step(h, t)
        ys.append((h * C[t]).sum(-1))  # (B, G, D/G, chunks)
    return torch.stack(ys, -1).flatten(-2)[..., :length], befores[-1]
