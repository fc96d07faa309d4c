"""ss2d_norm_gate as ss2d followed by norm_gate: in plain PyTorch, and for any backend that has both."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtlkit.operators import norm_gate, ss2d
from mtlkit.operators.ss2d_norm_gate.signature import Inputs, Options, norm_part, scan_part


def ss2d_norm_gate_reference(
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
    out_dtype: torch.dtype,
) -> Tensor:
    """The two formulas."""
    y = ss2d.ss2d_reference(u, x_dbl, dt_weight, dt_bias, A_logs, Ds, out_dtype)  # (B, D, H, W)
    return norm_gate.norm_gate_reference(y.permute(0, 2, 3, 1), weight, bias, z, eps)


def ss2d_norm_gate_torch(
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
    out_dtype: torch.dtype,
) -> Tensor:
    """The reference with the vectorised forms."""
    y = ss2d.ss2d_torch(u, x_dbl, dt_weight, dt_bias, A_logs, Ds, out_dtype)  # (B, D, H, W)
    return norm_gate.norm_gate_torch(y.permute(0, 2, 3, 1), weight, bias, z, eps)


def in_parts(backend: str, inputs: Inputs, options: Options) -> tuple[Tensor, ...]:
    """The output by both operators: backward frees the scan's output and the output's gradient before the scan."""
    (y,) = ss2d.OPERATOR.run(backend, *scan_part(inputs, options), "ss2d_norm_gate")
    return norm_gate.OPERATOR.run(backend, *norm_part(y, inputs, options), "ss2d_norm_gate")


class Composed:
    """A backend of ss2d_norm_gate made of a backend of ss2d and one of norm_gate."""

    def __init__(self, scan: Any, norm: Any) -> None:
        self.scan = scan
        self.norm = norm

    def supports(self, inputs: Inputs, options: Options) -> str | None:
        """Calls that both parts can run."""
        return self.scan.supports(inputs, options) or self.norm.limit(inputs.u.shape[1], inputs)

    def room(self, inputs: Inputs, options: Options) -> tuple[Tensor, ...]:
        """The scan's output, and what the scan saves."""
        part = scan_part(inputs, options)
        return *ss2d.new_outputs(*part), *self.scan.room(*part)

    def forward(self, inputs: Inputs, options: Options, save: bool) -> tuple[Tensor, ...]:
        """The output, the scan's output, and what the scan saves."""
        kept = self.scan.forward(*scan_part(inputs, options), save)
        (out,) = self.norm.forward(*norm_part(kept[0], inputs, options), save)
        return (out, *kept) if save else (out,)

    def backward(
        self, inputs: Inputs, options: Options, kept: Sequence[Tensor], grads: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """The gradients of the inputs in their order."""
        y, *kept = kept
        rows, *others = self.norm.backward(*norm_part(y, inputs, options), (), grads, (True, *wanted[6:]))
        dy = rows.to(y.dtype).permute(0, 3, 1, 2)  # (B, D, H, W)
        return *self.scan.backward(*scan_part(inputs, options), kept, (dy,), wanted[:6]), *others
