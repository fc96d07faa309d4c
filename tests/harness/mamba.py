"""The functions of mamba-ssm and VMamba, restated in float64, and arguments for them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit.testing import assert_accurate


def restated_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False) -> tuple[Tensor, Tensor]:
    """Token by token: the output (B, D, L) and the last state (B, D, N)."""
    dt = delta if delta_bias is None else delta + delta_bias[:, None]
    dt = F.softplus(dt) if delta_softplus else dt

    def at(rows: Tensor, t: int) -> Tensor:  # the factor of each channel's states at token t
        if rows.dim() == 2:
            return rows  # (D, N)
        row = rows[..., t]  # (B, N) or (B, G, N)
        return row[:, None] if row.dim() == 2 else row.repeat_interleave(u.shape[1] // row.shape[1], 1)  # (B, D, N)

    h, ys = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        step = dt[:, :, t, None]  # (B, D, 1)
        h = torch.exp(step * A) * h + step * u[:, :, t, None] * at(B, t)  # (B, D, N)
        ys.append((h * at(C, t)).sum(-1))  # (B, D)
    y = torch.stack(ys, -1)
    y = y if D is None else y + D[:, None] * u
    return (y if z is None else y * F.silu(z)), h


def restated_inner(xz, conv, conv_bias, x_proj, dt_proj, A, B, C, D, delta_bias, B_bias, C_bias, softplus, A_b=None):
    """Mamba's block up to the output projection: (B, D, L)."""
    x, z = xz.chunk(2, 1)
    taps, length = conv.shape[-1], x.shape[-1]
    padded = torch.cat((x.new_zeros(*x.shape[:2], taps - 1), x), -1)
    x = sum(conv[:, 0, i, None] * padded[..., i : i + length] for i in range(taps))
    x = F.silu(x if conv_bias is None else x + conv_bias[:, None])  # (B, D, L)
    values = torch.einsum("md,bdl->bml", x_proj, x)
    rank, states = dt_proj.shape[1], A.shape[1]
    delta = torch.einsum("dr,brl->bdl", dt_proj, values[:, :rank])
    if B is None:
        B = values[:, rank : rank + states] + (0 if B_bias is None else B_bias[:, None])
    if C is None:
        C = values[:, -states:] + (0 if C_bias is None else C_bias[:, None])
    y, _ = restated_scan(x, delta, A, B, C, D, z, delta_bias, softplus)
    if A_b is not None:
        x, delta, B, C, z = (t if t.dim() == 2 else t.flip(-1) for t in (x, delta, B, C, z))
        y = y + restated_scan(x, delta, A_b, B, C, D, z, delta_bias, softplus)[0].flip(-1)
    return y


def inputs(batch, groups, width, length, states, kinds, given_parts, dtype, lowest=0.0) -> dict[str, Tensor]:
    """Arguments by name, with time steps of at least `lowest`; values representable in `dtype`, in float64."""
    channels = groups * width
    shapes = {"constant": (channels, states), "variable": (batch, states, length)}
    shapes["grouped"] = (batch, groups, states, length)
    arguments = {
        "u": torch.randn(batch, channels, length),
        "delta": torch.rand(batch, channels, length) + lowest,
        "A": -torch.rand(channels, states) - 0.05,
        "B": torch.randn(shapes[kinds[0]]),
        "C": torch.randn(shapes[kinds[1]]),
    }
    optional = {"D": (channels,), "z": (batch, channels, length), "delta_bias": (channels,)}
    arguments |= {name: torch.randn(optional[name]) for name in given_parts}
    if "delta_bias" in arguments:
        arguments["delta_bias"] = 0.3 * arguments["delta_bias"].abs()
    return {name: t.to(dtype).double() for name, t in arguments.items()}


def assert_same_with_gradients(function, exact_function, arguments: dict) -> None:
    results = []
    for call in (function, exact_function):
        leaves = {n: None if v is None else v.clone().requires_grad_() for n, v in arguments.items()}
        y = call(leaves)
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype))
        results.append({"out": y} | {n: v.grad for n, v in leaves.items() if v is not None})
    for name, exact in results[1].items():
        assert_accurate(name, results[0][name], exact, gradient=name != "out")
