"""Writes cases for the runner: operator calls with the reference's results. Usage: python cases.py FILE."""

import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import mtlkit
from mtlkit.testing import (
    FORWARD_BOUND,
    GRADIENT_BOUND,
    DirectionalScanShape,
    InteractionShape,
    SelectiveScanShape,
    SS2DShape,
)

PARAMETERS = ("dt_weight", "dt_bias", "A_logs", "Ds")
FORWARD, GRADIENT = FORWARD_BOUND[torch.float32], GRADIENT_BOUND[torch.float32]
Tensors = Mapping[str, Tensor | None]


class Case(NamedTuple):
    """A call: inputs are exact in float32, expected values are float64; gradients are named after inputs, with a d."""

    name: str
    kind: str
    numbers: Mapping[str, float]
    inputs: Tensors
    expected: Tensors


def of_channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def case(
    name: str,
    kind: str,
    function: Callable[..., Mapping[str, Tensor]],
    inputs: Tensors,
    *,
    upstream: Mapping[str, str] | None = None,
    constant: tuple[str, ...] = (),
    **numbers: float,
) -> Case:
    """A call of `function`, whose arguments are those of the C interface; with gradients if `upstream` names them.

    `upstream` maps outputs to the names of their gradients; `constant` inputs get none.
    """
    given = {key: t for key, t in inputs.items() if t is not None}
    leaves = {key: t.double().requires_grad_(key not in constant) for key, t in given.items()}
    with mtlkit.use_backend("reference"):
        outputs = function(**leaves)
    expected = {key: t.detach() for key, t in outputs.items()}
    if upstream:
        generator = torch.Generator().manual_seed(1)
        seeds = {new: torch.randn(outputs[key].shape, generator=generator) for key, new in upstream.items()}
        wanted = [key for key in leaves if key not in constant]
        found = torch.autograd.grad(
            [outputs[key] for key in upstream], [leaves[key] for key in wanted], [t.double() for t in seeds.values()]
        )
        given |= seeds
        expected |= {f"d{key}": gradient for key, gradient in zip(wanted, found, strict=True)}
    return Case(f"{kind} {name}", kind, numbers, given, expected)


# --- the operators ----------------------------------------------------------------------------------------------------


def ss2d(u: Tensor, x_dbl: Tensor, **others: Tensor) -> dict[str, Tensor]:
    return {"y": channels_last(mtlkit.ops.ss2d(of_channels_last(u), x_dbl.permute(0, 3, 4, 1, 2), **others))}


def ss2d_cases() -> Iterator[Case]:
    # batches of 0 and 5, one token, different heights and widths, states from 1 to 64, partly filled vectors
    for shape in (
        SS2DShape(2, 8, 5, 7, 4, 2),
        SS2DShape(1, 19, 1, 1, 1, 1),
        SS2DShape(5, 33, 3, 11, 16, 3),
        SS2DShape(0, 8, 4, 4, 4, 2),
        SS2DShape(1, 5, 9, 2, 64, 5),
    ):
        inputs = shape.inputs()
        inputs["u"], inputs["x_dbl"] = channels_last(inputs["u"]), inputs["x_dbl"].permute(0, 3, 4, 1, 2)
        yield case(str(shape), "ss2d", ss2d, inputs, upstream={"y": "dy"} if shape.B else None)

        generator = torch.Generator().manual_seed(2)
        sizes = {"norm_weight": (shape.D,), "norm_bias": (shape.D,), "z": (*inputs["u"].shape[:3], 2 * shape.D + 3)}
        norm = {key: torch.randn(size, generator=generator) for key, size in sizes.items()}
        numbers = {"norm": 1, "eps": 1e-3, "z_offset": shape.D + 3}

        def with_norm(norm_weight, norm_bias, z, *, offset=shape.D + 3, **others):
            y = ss2d(**others)["y"]
            return {"y": mtlkit.ops.norm_gate(y, norm_weight, norm_bias, z[..., offset:], eps=1e-3)}

        yield case(f"{shape} with norm and gate", "ss2d", with_norm, inputs | norm, **numbers)


def selective_scan_cases() -> Iterator[Case]:
    for shape in (
        SelectiveScanShape(5, 6, 50, 16, 3),
        SelectiveScanShape(2, 8, 37, 4),
        SelectiveScanShape(1, 19, 1, 1),
        SelectiveScanShape(0, 4, 5, 2),
        SelectiveScanShape(2, 5, 9, 64, 0),
    ):

        def scan(**inputs: Tensor) -> dict[str, Tensor]:
            out, last = mtlkit.ops.selective_scan(**inputs, delta_softplus=True, return_last_state=True)
            return {"out": out, "last_state": last}

        found = case(
            *(str(shape), "selective_scan", scan, shape.inputs()),
            upstream={"out": "dy"} if shape.G > 1 else None,
            delta_softplus=1,
        )
        for name in ("dB", "dC"):  # their states are contiguous
            if name in found.expected:
                found.expected[name] = found.expected[name].transpose(-1, -2)
        yield found

        def plain(**inputs: Tensor) -> dict[str, Tensor]:
            return {"out": mtlkit.ops.selective_scan(**inputs)}

        inputs = shape.inputs()
        steps = {"delta": inputs["delta"].abs(), "D": None, "z": None, "delta_bias": None}
        yield case(f"{shape} plain", "selective_scan", plain, inputs | steps)


def directional_scan_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(5)
    for shape, steps, merge in (
        (DirectionalScanShape(2, 3, 19, 37, 4, 2), 37, True),
        (DirectionalScanShape(1, 2, 5, 11, 16, 1, own=True, state=True), 11, False),
        (DirectionalScanShape(5, 4, 8, 9, 1, 3, state=True), 6, True),
        (DirectionalScanShape(0, 2, 4, 5, 2, 1), 5, False),
    ):
        order = torch.stack([torch.randperm(shape.L, generator=generator)[:steps] for _ in range(shape.K)])

        def scan(u, x_dbl, order, merge=merge, **others):
            tensors = (u.transpose(-1, -2), x_dbl.permute(0, 2, 3, 1), *(others.pop(key) for key in PARAMETERS))
            options = {"merge": merge, "return_last_state": True}
            y, last = mtlkit.ops.directional_scan(*tensors, order.long(), **options, **others)
            return {"y": y.transpose(-1, -2), "last_state": last}

        inputs = shape.inputs()
        rows = inputs["x_dbl"].permute(0, 3, 1, 2)
        inputs |= {"u": inputs["u"].transpose(-1, -2), "x_dbl": rows, "order": order}
        name = f"{shape} {steps} steps{' merged' if merge else ''}"
        yield case(name, "directional_scan", scan, inputs, constant=("order",), merge=merge)


def causal_conv1d_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(6)
    for (B, D, L), width in (((2, 5, 37), 4), ((1, 19, 1), 3), ((5, 33, 6), 2), ((0, 4, 5), 4)):
        for whole in (True, False):

            def convolve(x, whole=whole, D=D, **others: Tensor) -> dict[str, Tensor]:
                options = {"activation": "silu" if whole else None, "return_final_states": True}
                y, last = mtlkit.ops.causal_conv1d(x[..., 2 : D + 2].transpose(1, 2), **others, **options)
                return {"y": y.transpose(1, 2), "last_states": last}

            sizes = {"x": (B, L, D + 3), "weight": (D, width)}
            sizes |= {"bias": (D,), "initial_states": (B, D, width - 1)} if whole else {}
            inputs = {key: torch.randn(size, generator=generator) for key, size in sizes.items()}
            name = f"{(B, D, L)} w{width}{'' if whole else ' alone'}"
            yield case(name, "causal_conv1d", convolve, inputs, silu=whole, offset=2)


def dwconv_silu_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(3)
    for B, D, H, W, offset in ((2, 8, 5, 7, 0), (1, 19, 1, 1, 4), (5, 3, 9, 2, 7), (0, 4, 3, 3, 0), (5, 33, 4, 6, 0)):
        for bias in (True, False):

            def convolve(x, weight, bias=None, offset=offset, D=D):
                image = of_channels_last(x[..., offset : offset + D])
                return {"y": channels_last(mtlkit.ops.dwconv_silu(image, weight, bias))}

            x = torch.randn(B, H, W, D + (offset + 2 if offset else 0), generator=generator)
            inputs = {"x": x, "weight": torch.randn(D, 1, 3, 3, generator=generator)}
            inputs["bias"] = torch.randn(D, generator=generator) if bias else None
            upstream = {"y": "dy"} if B and bias and not offset else None
            name = f"{(B, D, H, W)} at {offset}{'' if bias else ' without bias'}"
            yield case(name, "dwconv_silu", convolve, inputs, upstream=upstream, offset=offset)


def norm_gate_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(4)
    for shape in ((2, 5, 7, 24), (1, 1), (5, 33), (0, 8), (7,)):
        for whole in (True, False):

            def norm(**inputs: Tensor) -> dict[str, Tensor]:
                return {"y": mtlkit.ops.norm_gate(**inputs, eps=1e-3)}

            sizes = {"x": shape, **({"weight": shape[-1:], "bias": shape[-1:], "z": shape} if whole else {})}
            inputs = {key: torch.randn(size, generator=generator) for key, size in sizes.items()}
            upstream = {"y": "dy"} if whole and shape == (5, 33) else None
            name = f"{shape}{'' if whole else ' alone'}"
            yield case(name, "norm_gate", norm, inputs, upstream=upstream, eps=1e-3)


def task_interaction_cases() -> Iterator[Case]:
    for shape in (
        InteractionShape(2, 8, 5, 7, 16),
        InteractionShape(5, 19, 3, 11, 9, "alignment"),
        InteractionShape(1, 2, 1, 1, 3, "alignment", attention=True),
        InteractionShape(3, 24, 9, 4, 32, attention=True),
        InteractionShape(0, 4, 3, 3, 8),
    ):
        level = shape.inputs()
        inputs = {"x": level.x, "f": level.f, **level.tim._asdict(), **level.upa._asdict()}

        def interact(x, f, level=level, signals=shape.signals, **others):
            tim, upa = (type(given)(*(others.get(key) for key in given._fields)) for given in (level.tim, level.upa))
            found = mtlkit.ops.task_interaction(x, f, tim, upa, signals=signals, tau=0.7, eps=1e-3)
            names, signals = ("seg", "clf", "gates"), torch.stack(list(found.stats), 1)
            return {**dict(zip(names, found, strict=False)), "signals": signals, "enhanced": found.enhanced_clf}

        # one pixel: its variances are 0, and so are most gradients
        upstream = {"seg": "dy", "clf": "dclf"} if shape.B and shape.H > 1 else None
        constant = ("norm_mean", "norm_var")
        yield case(
            *(str(shape), "task_interaction", interact, inputs),
            upstream=upstream,
            constant=constant,
            tau=0.7,
            eps=1e-3,
        )


# --- the file ---------------------------------------------------------------------------------------------------------


def words(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()


def arrays(given: Tensors, bound: Callable[[str], float]) -> bytes:
    parts = [struct.pack("<I", len(given))]
    for key, t in given.items():
        head = struct.pack(f"<dI{t.dim()}q", bound(key), t.dim(), *t.shape)
        parts += [words(key), head, t.detach().double().contiguous().numpy().tobytes()]
    return b"".join(parts)


def encoded(one: Case) -> bytes:
    numbers = b"".join(words(key) + struct.pack("<d", value) for key, value in one.numbers.items())
    outputs = ("y", "out", "last_state", "last_states", "seg", "clf")
    return b"".join(
        [
            *(words(one.name), words(one.kind), struct.pack("<I", len(one.numbers)), numbers),
            arrays(one.inputs, lambda key: 0),
            arrays(one.expected, lambda key: FORWARD if key in outputs else GRADIENT),
        ]
    )


def all_cases() -> list[Case]:
    scans = (ss2d_cases, selective_scan_cases, directional_scan_cases)
    groups = (*scans, causal_conv1d_cases, dwconv_silu_cases, norm_gate_cases, task_interaction_cases)
    return [one for group in groups for one in group()]


def write(path: str | Path) -> int:
    """Writes all cases, and returns their number."""
    cases = all_cases()
    Path(path).write_bytes(struct.pack("<I", len(cases)) + b"".join(map(encoded, cases)))
    return len(cases)


if __name__ == "__main__":
    print(write(sys.argv[1]))
