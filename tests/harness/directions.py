"""Calls of directional_scan that a GPU kernel must support, and the comparison with the reference in float64."""

import torch
from torch import Tensor

import mtlkit
from mtlkit.ops import directional_scan, orders
from mtlkit.testing import assert_accurate

INF = float("inf")
B, R = 2, 1


def random_order(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(shape, generator=generator).argsort(-1)


def inputs_of(
    K: int, L: int, *, D: int = 3, N: int = 2, own: bool = False, initial: bool = True, seed: int = 0
) -> dict[str, Tensor]:
    """Channels-last inputs; with `own`, a separate input per direction."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    found = {
        "u": normal(B, *([K] if own else []), L, D).transpose(-1, -2),
        "x_dbl": normal(B, L, K, R + 2 * N).permute(0, 2, 3, 1),
        "dt_weight": normal(K, D, R),
        "dt_bias": normal(K, D) - 1,
        "A_logs": normal(K * D, N) / 2,
        "Ds": normal(K * D),
    }
    return found | ({"initial_state": normal(B, K, D, N)} if initial else {})


def results(inputs: dict[str, Tensor], dtype: torch.dtype, **options) -> dict[str, Tensor]:
    """Outputs and every gradient by name."""
    leaves = {name: t.to(dtype).requires_grad_() for name, t in inputs.items()}
    outputs = directional_scan(**leaves, return_last_state=True, **options)
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(t.shape, generator=generator).to(t) for t in outputs]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), weights)
    named = dict(zip(("out", "last"), outputs, strict=True))
    named |= {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {name: t.detach() for name, t in named.items()}


def check(inputs: dict[str, Tensor], dtype: torch.dtype = torch.float32, **options) -> dict[str, Tensor]:
    """Checks that the results of the current backend meet the policy."""
    got = results(inputs, dtype, **options)
    with mtlkit.use_backend("reference"):
        wanted = results(inputs, torch.float64, **options)
    with mtlkit.use_backend("torch"):
        plain = wanted if dtype == torch.float32 else results(inputs, dtype, **options)
    for name, value in got.items():
        assert value.dtype == (torch.float32 if name == "last" else dtype), name
        assert_accurate(name, value, wanted[name], plain[name], gradient=name not in ("out", "last"))
    return got


# (inputs, options) by name
CASES = {
    "rows and columns": lambda: (inputs_of(4, 9, initial=False), {"order": orders.cross(3, 3)}),
    "permutations": lambda: (inputs_of(2, 17), {"order": random_order(2, 17), "merge": False}),
    "own inputs": lambda: (inputs_of(2, 9, own=True), {"order": random_order(2, 9)}),
    "own inputs, apart": lambda: (inputs_of(2, 9, own=True), {"order": random_order(2, 9), "merge": False}),
    "an order for each sample": lambda: (inputs_of(2, 9), {"order": random_order(B, 2, 9)}),
    "a part of the tokens": lambda: (inputs_of(3, 19), {"order": random_order(3, 19)[:, :7]}),
    "a part of the tokens, apart": lambda: (inputs_of(1, 19), {"order": random_order(1, 19)[:, :5], "merge": False}),
    "as they come": lambda: (inputs_of(1, 10), {"order": orders.forward(10)}),
}


def assert_sequences_apart(tokens: int, first: int) -> None:
    """Neither an infinity in the first sequence, whose length is given, nor a gradient reaches the second sequence.

    In one channel, states do not decay.
    """
    seq_idx = (torch.arange(tokens) >= first).int().expand(B, -1)
    whole = inputs_of(1, tokens, initial=False)
    whole["A_logs"] = whole["A_logs"].index_fill(0, torch.tensor([0]), -INF)  # A = 0
    spoilt = {name: t.clone() for name, t in whole.items()}
    spoilt["u"][..., 3] = INF
    spoilt["x_dbl"][:, :, 0, 5] = INF
    part = slice(first, None)
    found = []
    for inputs in (spoilt, whole):
        leaf = inputs["u"].clone().requires_grad_()
        arguments = inputs | {"u": leaf, "order": orders.forward(tokens), "seq_idx": seq_idx}
        y, last = directional_scan(**arguments, return_last_state=True)
        gradient = torch.autograd.grad(y[..., part].sum(), leaf)[0]
        found.append((y.detach()[..., part], last.detach(), gradient[..., part]))
    for got, wanted in zip(*found, strict=True):
        assert wanted.isfinite().all()
        assert torch.equal(got, wanted)
