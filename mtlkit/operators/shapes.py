"""Sizes of operator calls and random arguments for them, shared by tests, benchmarks and checks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mtlkit.operators.interaction.types import TIMParameters, UPAParameters


def _normal(seed: int) -> Callable[..., Tensor]:
    """Draws normal numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)


def _parameters(normal: Callable[..., Tensor], K: int, D: int, N: int, R: int) -> dict[str, Tensor]:
    """Parameters of a scan in K directions, with decays like those of a trained layer."""
    steps = torch.arange(1, N + 1, dtype=torch.float64)
    return {
        "dt_weight": normal(K, D, R) * R**-0.5,
        "dt_bias": normal(K, D) - 3,
        "A_logs": torch.log(steps).expand(K * D, -1) + 0.1 * normal(K * D, N),
        "Ds": normal(K * D),
    }


@dataclass(frozen=True)
class SS2DShape:
    """The sizes of one call of `ss2d`, with the letters of mtlkit.ops.ss2d.

    Example:
        >>> import mtlkit
        >>> shape = mtlkit.testing.SS2DShape(B=1, D=8, H=7, W=5, N=4, R=2)
        >>> mtlkit.ops.ss2d(**shape.inputs()).shape, shape.updates
        (torch.Size([1, 8, 7, 5]), 4480)
    """

    B: int
    D: int
    H: int
    W: int
    N: int
    R: int

    @property
    def updates(self) -> int:
        """State updates of a forward pass, 4 B D L N: the unit of the speed tables."""
        return 4 * self.B * self.D * self.H * self.W * self.N

    def inputs(
        self,
        dtype: torch.dtype = torch.float32,
        *,
        memory_format: torch.memory_format = torch.channels_last,
        requires_grad: bool = False,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> dict[str, Tensor]:
        """Random arguments of `ss2d` by name, distributed as in a trained network; the same values for every dtype."""
        normal = _normal(seed)
        rows = normal(self.B, self.H, self.W, 4, self.R + 2 * self.N)
        arguments = {
            "u": normal(self.B, self.D, self.H, self.W).contiguous(memory_format=memory_format),
            "x_dbl": rows.permute(0, 3, 4, 1, 2),
            **_parameters(normal, 4, self.D, self.N, self.R),
        }
        return {name: t.to(device, dtype).requires_grad_(requires_grad) for name, t in arguments.items()}


@dataclass(frozen=True)
class SelectiveScanShape:
    """The sizes of one call of `selective_scan`, with its letters; with G = 0, B and C are constant.

    Example:
        >>> import mtlkit
        >>> shape = mtlkit.testing.SelectiveScanShape(B=2, D=8, L=20, N=4)
        >>> mtlkit.ops.selective_scan(**shape.inputs()).shape, shape.updates
        (torch.Size([2, 8, 20]), 1280)
    """

    B: int
    D: int
    L: int
    N: int
    G: int = 1

    @property
    def updates(self) -> int:
        """State updates of a forward pass, B D L N."""
        return self.B * self.D * self.L * self.N

    def inputs(
        self,
        dtype: torch.dtype = torch.float32,
        *,
        requires_grad: bool = False,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> dict[str, Tensor]:
        """Random tensor arguments of `selective_scan` by name; the same values for every dtype."""
        normal = _normal(seed)
        rows = (self.B, self.G, self.N, self.L) if self.G > 1 else (self.B, self.N, self.L)
        rows = rows if self.G > 0 else (self.D, self.N)
        steps = torch.arange(1, self.N + 1, dtype=torch.float64)
        arguments = {
            "u": normal(self.B, self.D, self.L),
            "delta": 0.5 * normal(self.B, self.D, self.L),
            "A": -steps * torch.exp(0.1 * normal(self.D, self.N)),
            "B": normal(*rows),
            "C": normal(*rows),
            "D": normal(self.D),
            "z": normal(self.B, self.D, self.L),
            "delta_bias": normal(self.D) - 3,
        }
        return {name: t.to(device, dtype).requires_grad_(requires_grad) for name, t in arguments.items()}


@dataclass(frozen=True)
class DirectionalScanShape:
    """The sizes of one call of `directional_scan`, with its letters.

    With `own` each direction has its own u; with `state` there is an initial state.

    Example:
        >>> import mtlkit
        >>> shape = mtlkit.testing.DirectionalScanShape(B=1, K=2, D=8, L=20, N=4, R=2)
        >>> mtlkit.ops.directional_scan(**shape.inputs(), order=mtlkit.ops.orders.both(20)).shape
        torch.Size([1, 8, 20])
    """

    B: int
    K: int
    D: int
    L: int
    N: int
    R: int
    own: bool = False
    state: bool = False

    @property
    def updates(self) -> int:
        """State updates of a forward pass in which every direction visits every token, K B D L N."""
        return self.K * self.B * self.D * self.L * self.N

    def inputs(
        self,
        dtype: torch.dtype = torch.float32,
        *,
        requires_grad: bool = False,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> dict[str, Tensor]:
        """Random tensor arguments of `directional_scan` by name, channels last; the same values for every dtype."""
        normal = _normal(seed)
        directions = (self.K,) if self.own else ()
        arguments = {
            "u": normal(self.B, *directions, self.L, self.D).transpose(-1, -2),
            "x_dbl": normal(self.B, self.L, self.K, self.R + 2 * self.N).permute(0, 2, 3, 1),
            **_parameters(normal, self.K, self.D, self.N, self.R),
        }
        if self.state:
            arguments["initial_state"] = normal(self.B, self.K, self.D, self.N)
        return {name: t.to(device, dtype).requires_grad_(requires_grad) for name, t in arguments.items()}


class InteractionInputs(NamedTuple):
    """The arguments of `task_interaction`.

    Example:
        >>> import mtlkit
        >>> inputs = mtlkit.testing.InteractionShape(B=2, C=8, H=7, W=5, F=16).inputs()
        >>> sorted(inputs.named_tensors())[:4]
        ['clf_gate_bias', 'clf_gate_weight', 'context_bias', 'context_weight']
    """

    x: Tensor
    f: Tensor
    tim: TIMParameters
    upa: UPAParameters

    def named_tensors(self) -> dict[str, Tensor]:
        """Every tensor that gets a gradient, by name."""
        fields = {"x": self.x, "f": self.f, **self.tim._asdict(), **self.upa._asdict()}
        return {name: t for name, t in fields.items() if t is not None and name not in ("norm_mean", "norm_var")}


@dataclass(frozen=True)
class InteractionShape:
    """The sizes of one call of `task_interaction`, with its letters.

    Example:
        >>> import mtlkit
        >>> inputs = mtlkit.testing.InteractionShape(B=2, C=8, H=7, W=5, F=16).inputs()
        >>> mtlkit.ops.task_interaction(*inputs).seg.shape
        torch.Size([2, 8, 7, 5])
    """

    B: int
    C: int
    H: int
    W: int
    F: int = 256
    signals: str = "variance"
    attention: bool = False

    @property
    def projected(self) -> int:
        """P, the channels of the projected map: half of C, as in the networks."""
        return max(1, self.C // 2)

    def inputs(
        self,
        dtype: torch.dtype = torch.float32,
        *,
        memory_format: torch.memory_format = torch.contiguous_format,
        requires_grad: bool = False,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> InteractionInputs:
        """Random arguments with gates that are neither fully open nor closed; the same values for every dtype."""
        normal = _normal(seed)

        def linear(rows: int, columns: int) -> tuple[Tensor, Tensor]:
            return normal(rows, columns) * columns**-0.5, 0.1 * normal(rows)

        def finish(t: Tensor, grad: bool = True) -> Tensor:
            return t.to(device, dtype).requires_grad_(requires_grad and grad)

        B, C, F, P, three = self.B, self.C, self.F, self.projected, self.signals == "alignment"
        x = normal(B, C, self.H, self.W) * (0.5 + normal(B, C, 1, 1).abs()) + normal(B, C, 1, 1)
        pairs = [*linear(P, C), *linear(F, P), *linear(F, F), *linear(C, F), *linear(C, C)]
        norm = [1 + 0.1 * normal(F), 0.1 * normal(F), 0.1 * normal(F), 0.5 + normal(F).square()]
        attn = normal(C) * C**-0.5
        upa = [*linear(32, 3 if three else 2), *linear(2, 32)]
        projections = [linear(64, C)[0], linear(64, F)[0]]
        tim = [*map(finish, [*pairs, *norm[:2]]), *(finish(t, False) for t in norm[2:])]
        return InteractionInputs(
            finish(x.contiguous(memory_format=memory_format)),
            finish(normal(B, F)),
            TIMParameters._make([*tim, finish(attn) if self.attention else None]),
            UPAParameters._make([*map(finish, upa), *(map(finish, projections) if three else (None, None))]),
        )


# --- arguments of operators whose sizes are a tuple -------------------------------------------------------------------


def norm_gate_inputs(
    size: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    parameters: torch.dtype | None = None,
    gate: torch.dtype | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Random arguments of `norm_gate` by name; `parameters` and `gate` are dtypes, by default that of x."""
    normal = _normal(seed)
    return {
        "x": (3 * normal(*size) + 1).to(dtype),
        "weight": normal(size[-1]).to(parameters or dtype),
        "bias": normal(size[-1]).to(parameters or dtype),
        "z": normal(*size).to(gate or dtype),
    }


def depthwise_inputs(
    size: tuple[int, int, int, int],
    kernel: int = 3,
    dtype: torch.dtype = torch.float32,
    *,
    parameters: torch.dtype | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Random arguments of `depthwise_conv2d`, `dwconv_silu` by name; `parameters` is a dtype, by default that of x."""
    normal = _normal(seed)
    return {
        "x": normal(*size).to(dtype),
        "weight": normal(size[1], 1, kernel, kernel).to(parameters or dtype) / 2,
        "bias": normal(size[1]).to(parameters or dtype),
    }


def causal_conv1d_inputs(
    size: tuple[int, int, int],
    width: int = 4,
    dtype: torch.dtype = torch.float32,
    *,
    parameters: torch.dtype | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Random arguments of `causal_conv1d` by name; `parameters` is a dtype, by default that of x."""
    normal, (batch, channels, _) = _normal(seed), size
    return {
        "x": normal(*size).to(dtype),
        "weight": normal(channels, width).to(parameters or dtype) / 2,
        "bias": normal(channels).to(parameters or dtype),
        "initial_states": normal(batch, channels, width - 1).to(dtype),
    }
