"""Calls of the operators that have GPU kernels, and the comparison of their results with the CPU's in float64."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import mtlkit
from mtlkit.ops import TIMParameters, UPAParameters
from mtlkit.testing import InteractionShape, SelectiveScanShape, SS2DShape, assert_accurate

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CHANNELS_LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format


class Call(NamedTuple):
    """A function of tensors, and its arguments by name, on the CPU."""

    function: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: dict[str, Tensor]

    def leaves(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The arguments elsewhere, each wanting its gradient."""
        return {
            n: t.detach().to(device=device, dtype=dtype or t.dtype).requires_grad_() for n, t in self.inputs.items()
        }

    def results(self, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        """Outputs and every gradient by name, of a loss whose weights are the same numbers everywhere."""
        outputs = self.function(**leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        gradients = torch.autograd.grad(outputs, list(leaves.values()), self.weights(outputs))
        named = {f"out{i}": t.detach() for i, t in enumerate(outputs)}
        return named | {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}

    def weights(self, outputs: tuple[Tensor, ...]) -> list[Tensor]:
        """Random weights of the outputs, of numbers that the first argument's dtype has."""
        dtype, generator = next(iter(self.inputs.values())).dtype, torch.Generator().manual_seed(7)
        return [torch.randn(t.shape, generator=generator).to(dtype).to(t) for t in outputs]

    def run(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """`results`, on a device."""
        return self.results(self.leaves(device, dtype))

    def check(
        self, device: torch.device, exact_backend: str = "reference", outputs: int | None = None
    ) -> dict[str, Tensor]:
        """Asserts that results on the device meet the policy of mtlkit.testing, and gives them.

        Args:
            device: where the results under test are made, by the backend that is asked for now.
            exact_backend: what gives the exact results in float64: "auto" where the reference takes too long.
            outputs: how many outputs are held to the bounds of outputs, the others to those of gradients; None is all.
        """
        got = self.run(device)
        with mtlkit.use_backend(exact_backend):
            exact = self.run(dtype=torch.float64)
        narrow = any(t.dtype in DTYPES[1:] for t in got.values())
        with mtlkit.use_backend("torch"):
            plain = self.run() if narrow else exact
        for name, value in got.items():
            assert value.device == device, f"{name}: expected it on {device}, got {value.device}"
            late = outputs is not None and name in [f"out{i}" for i in range(outputs, len(got))]
            assert_accurate(name, value.cpu(), exact[name], plain[name], gradient=late or name.startswith("d"))
        return got


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Bit by bit."""
    differing = [name for name in wanted if not torch.equal(got[name], wanted[name])]
    assert not differing, f"{', '.join(differing)}: other bits"


# --- the operators ----------------------------------------------------------------------------------------------------


def ss2d_call(
    shape: SS2DShape,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = CHANNELS_LAST,
    seed: int = 0,
) -> Call:
    return Call(mtlkit.ops.ss2d, shape.inputs(dtype, memory_format=memory_format, seed=seed))


def scan_call(
    shape: SelectiveScanShape,
    dtype: torch.dtype = torch.float32,
    *,
    without: tuple[str, ...] = (),
    constant: tuple[str, ...] = (),
    softplus: bool = True,
    seed: int = 0,
) -> Call:
    """With the last state; `constant` names those of B and C that are the same for every token."""
    inputs = shape.inputs(dtype, seed=seed)
    fixed = SelectiveScanShape(shape.B, shape.D, shape.L, shape.N, G=0).inputs(dtype, seed=seed + 1)
    inputs = {name: t for name, t in inputs.items() if name not in without} | {name: fixed[name] for name in constant}
    if not softplus:  # time steps are positive
        inputs["delta"] = 0.1 * inputs["delta"].abs()
        inputs |= {name: 0.01 * inputs[name].abs() for name in ("delta_bias",) if name in inputs}

    def function(**tensors: Tensor) -> tuple[Tensor, Tensor]:
        return mtlkit.ops.selective_scan(**tensors, delta_softplus=softplus, return_last_state=True)

    return Call(function, inputs)


def norm_call(
    rows: int,
    channels: int,
    dtype: torch.dtype = torch.float32,
    *,
    gate_dtype: torch.dtype | None = None,
    without: tuple[str, ...] = (),
    seed: int = 0,
) -> Call:
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    inputs = {
        "x": (3 * normal(rows, channels) + 1).to(dtype),
        "weight": normal(channels),
        "bias": normal(channels),
        "z": normal(rows, channels).to(gate_dtype or dtype),
    }
    return Call(mtlkit.ops.norm_gate, {name: t for name, t in inputs.items() if name not in without})


def conv_call(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = CHANNELS_LAST,
    *,
    bias: bool = True,
    seed: int = 0,
) -> Call:
    generator = torch.Generator().manual_seed(seed)

    def function(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return mtlkit.ops.dwconv_silu(x, weight, bias)

    inputs = {
        "x": torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=memory_format),
        "weight": torch.randn(shape[1], 1, 3, 3, generator=generator) / 2,
    }
    return Call(function, inputs | ({"bias": torch.randn(shape[1], generator=generator)} if bias else {}))


def level_call(
    shape: InteractionShape,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = CONTIGUOUS,
    *,
    training: bool = False,
    seed: int = 7,
) -> Call:
    """A level of task interaction: map, vector, gates, signals and enhanced map."""
    inputs = shape.inputs(dtype, memory_format=memory_format, seed=seed)

    def function(x: Tensor, f: Tensor, **learnt: Tensor) -> tuple[Tensor, ...]:
        running = {name: getattr(inputs.tim, name).to(x, copy=True) for name in ("norm_mean", "norm_var")}
        tim, upa = (
            kind(**{name: t for name, t in (learnt | running).items() if name in kind._fields})
            for kind in (TIMParameters, UPAParameters)
        )
        options = {"signals": shape.signals, "training": training, "return_enhanced": True}
        out = mtlkit.ops.task_interaction(x, f, tim, upa, **options)
        return out.seg, out.clf, out.enhanced_seg, out.gates, *out.stats

    return Call(function, inputs.named_tensors())


def one_of_each(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Call]:
    """A small call of every operator, and of each scan one that is split into chunks of its sequence."""
    return {
        "ss2d": ss2d_call(SS2DShape(2, 33, 5, 7, 16, 4), dtype, seed=seed),
        "ss2d, channels first": ss2d_call(SS2DShape(1, 10, 6, 11, 17, 24), dtype, CONTIGUOUS, seed=seed),
        "ss2d, split": ss2d_call(SS2DShape(1, 9, 33, 37, 4, 2), dtype, seed=seed),
        "selective_scan": scan_call(SelectiveScanShape(2, 34, 35, 16, G=2), dtype, seed=seed),
        "selective_scan, constant": scan_call(SelectiveScanShape(1, 5, 10, 20, G=0), dtype, seed=seed),
        "selective_scan, split": scan_call(SelectiveScanShape(1, 9, 1221, 4), dtype, seed=seed),
        "norm_gate": norm_call(35, 132, dtype, seed=seed),
        "norm_gate, ragged": norm_call(9, 37, dtype, seed=seed),
        "dwconv_silu": conv_call((2, 36, 9, 13), dtype, seed=seed),
        "dwconv_silu, channels first": conv_call((1, 5, 6, 11), dtype, CONTIGUOUS, seed=seed),
    }


NAMES = tuple(one_of_each())
