"""Calls of task interaction's computations between its passes, to test the kernels for them."""

from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from mtlkit.operators.interaction import gating
from mtlkit.operators.interaction.gating import Call, Gated, Normalisation, Numbers, Results, Sizes
from mtlkit.operators.interaction.reduce import Reduced
from mtlkit.operators.interaction.types import AlignmentSignals, VarianceSignals
from mtlkit.ops import TIMParameters, UPAParameters
from mtlkit.testing import InteractionShape, assert_accurate


class VectorCase(NamedTuple):
    """Sizes and options of a call."""

    B: int
    C: int
    F: int
    signals: str = "variance"
    training: bool = False
    normaliser: bool = False

    def __str__(self) -> str:
        words = [f"{self.B}x{self.C}x{self.F}", self.signals]
        return "-".join(words + [name for name in ("training", "normaliser") if getattr(self, name)])


# one image and one entry, sizes equal and next to complete vectors and blocks, more images than a block
VECTOR_CASES = (
    VectorCase(1, 1, 1),
    VectorCase(1, 2, 3, "alignment"),
    VectorCase(2, 37, 19),
    VectorCase(5, 48, 33, "alignment", training=True),
    VectorCase(4, 16, 64, training=True, normaliser=True),
    VectorCase(19, 70, 24, training=True),
    VectorCase(18, 33, 40, "alignment", normaliser=False),
    VectorCase(3, 96, 17, normaliser=True),
)
FIELDS = ("x", "f", *TIMParameters._fields, *UPAParameters._fields)


class _ByKernels(torch.autograd.Function):
    """Gating by the kernels of one backend; returns factors, final vector, mu, enhanced, gates, signals."""

    @staticmethod
    def forward(ctx, backend, call, normaliser, running, *tensors):
        sums, f, weights = Reduced._make(tensors[:4]), tensors[4], tensors[5:]
        factors, clf, results = backend.forward(call, sums, f, normaliser, running, weights)
        ctx.backend, ctx.call = backend, call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(normaliser, *tensors, *results)
        return factors, clf, *(t for t in results[:6] if t is not None)

    @staticmethod
    def backward(ctx, dfactors, dclf, dmu, denhanced, dgates, *dsignals):
        normaliser, *saved = ctx.saved_tensors
        tensors, results = saved[: -len(Results._fields)], Results._make(saved[-len(Results._fields) :])
        room = [
            torch.empty_like(t) if want else None for t, want in zip(tensors, ctx.needs_input_grad[4:], strict=True)
        ]
        grads = [dfactors, dmu, dclf, denhanced, dgates, *dsignals, *[None] * (3 - len(dsignals))]
        arguments = ctx.call, Reduced._make(tensors[:4]), tensors[4], normaliser, tensors[5:], results
        ctx.backend.backward(*arguments, [None if g is None else g.contiguous() for g in grads], room[:5], room[5:])
        return None, None, None, None, *room


def by_kernels(
    backend: str,
    sums: Reduced,
    f: Tensor,
    tim: TIMParameters,
    upa: UPAParameters,
    tau: float,
    normaliser: Tensor | None,
    norm: Normalisation,
) -> Gated:
    """Computes by the kernels what `gating_torch` computes."""
    three = upa.seg_proj is not None
    queries = upa.seg_proj.shape[0] if three else 0
    sizes = Sizes(*sums.mean.shape, sums.pooled.shape[1], f.shape[1], upa.fc1_bias.shape[0], queries)
    numbers = Numbers(tau, norm.momentum, norm.eps)
    call = Call(sizes, numbers, three, norm.training, f.dtype == torch.float64)
    used = sums.mean, None if three else sums.variance, sums.energy, sums.pooled
    running = [tim.norm_mean, tim.norm_var]
    tensors = (*used, f, *tim[2:12], *upa)
    factors, clf, mu, enhanced, gates, *signals = _ByKernels.apply(
        gating.BACKENDS[backend], call, normaliser, running, *tensors
    )
    return Gated(factors, mu, clf, enhanced, gates, (AlignmentSignals if three else VarianceSignals)(*signals))


class VectorCall:
    """A call with its tensors; `run` returns its results and all gradients by name."""

    def __init__(self, case: VectorCase, seed: int = 0) -> None:
        self.case = case
        shape = InteractionShape(case.B, case.C, 1, 1, F=case.F, signals=case.signals)
        inputs = shape.inputs(torch.float64, seed=seed)
        self.tim, self.upa, self.f = inputs.tim, inputs.upa, inputs.f
        generator = torch.Generator().manual_seed(seed)
        positive = torch.rand(case.B, case.C, generator=generator, dtype=torch.float64) + 0.1
        energy = torch.rand(case.B, generator=generator, dtype=torch.float64)
        pooled = torch.rand(case.B, shape.projected, generator=generator, dtype=torch.float64)
        three = case.signals == "alignment"
        self.sums = Reduced(inputs.x[..., 0, 0], positive, energy if three else None, pooled)
        self.normaliser = torch.tensor([0.8, 1.3], dtype=torch.float64) if case.normaliser else None

    def run(
        self, backend: str, dtype: torch.dtype, frozen: tuple[str, ...] = (), device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Uses `gating_torch` if the backend is "torch"; frozen tensors get no gradient."""

        def leaf(name: str, t: Tensor | None) -> Tensor | None:
            if t is None:
                return None
            return (
                t.detach().to(device, dtype, copy=True).requires_grad_(name not in (*frozen, "norm_mean", "norm_var"))
            )

        def leaves(given: NamedTuple) -> NamedTuple:
            return type(given)(**{name: leaf(name, t) for name, t in given._asdict().items()})

        sums, tim, upa, f = leaves(self.sums), leaves(self.tim), leaves(self.upa), leaf("f", self.f)
        norm = Normalisation(self.case.training, 0.2, 1e-3)
        normaliser = None if self.normaliser is None else self.normaliser.to(device, dtype)
        arguments = (sums, f, tim, upa, 0.7, normaliser, norm)
        found = gating.gating_torch(*arguments) if backend == "torch" else by_kernels(backend, *arguments)
        results = found._asdict()
        results |= {f"stats_{name}": value for name, value in results.pop("signals")._asdict().items()}
        running = {"norm_mean": tim.norm_mean, "norm_var": tim.norm_var}
        seeds = count()
        loss = 0
        for value in results.values():
            noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(next(seeds)), dtype=torch.float64)
            # with pure noise, the sums behind the gates would almost cancel
            loss = loss + (value * noise.to(value)).sum() + value.square().sum() / 2
        tensors = {**sums._asdict(), "f": f, **tim._asdict(), **upa._asdict()}
        wanted = {name: t for name, t in tensors.items() if t is not None and t.requires_grad}
        gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        given = {f"d{name}": g for name, g in zip(wanted, gradients, strict=True) if g is not None}
        return {name: value.detach() for name, value in (results | running | given).items()}


def assert_same(got: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """Compares each result and gradient by name; where PyTorch has no gradient, a kernel may return zeros."""
    assert exact.keys() <= got.keys()
    for name, value in got.items():
        if name in exact:
            assert_accurate(name, value, exact[name], gradient=True)
        else:
            assert not value.any(), name
