"""causal_conv1d over sequences and padding, by GPU kernels, compared with the reference in float64."""

import torch
from torch import Tensor

from harness.calls import Call, assert_same
from harness.layouts import Place
from mtlkit.ops import causal_conv1d

# sequences of one token, shorter than the filter, across a run of tokens; an index that occurs again later; padding
SEQUENCES = torch.tensor([[0] * 1 + [1] * 2 + [0] * 3 + [-1] * 2 + [4] * 12, [-2] * 4 + [3] * 9 + [5] * 7])


def sequence_call(channels: int, width: int, dtype: torch.dtype, place: Place, activation: str | None = "silu") -> Call:
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    inputs = {"x": normal(2, channels, SEQUENCES.shape[1]), "weight": normal(channels, width), "bias": normal(channels)}

    def function(**tensors: Tensor) -> dict[str, Tensor]:
        return {"y": causal_conv1d(**tensors, seq_idx=SEQUENCES, activation=activation)}

    return Call(function, {name: t.to(dtype) for name, t in inputs.items()}).placed(x=place)


def assert_sequences_apart(call: Call) -> None:
    """Values of one sequence do not affect the results or gradients of others, even if they are not finite."""
    own = SEQUENCES[0] == 4
    spoilt = call.inputs["x"].clone()
    spoilt[0, :, ~own] = float("nan")
    results = []
    for x in (call.inputs["x"], spoilt):
        leaves = call._replace(inputs=call.inputs | {"x": x}).leaves()
        y = call.function(**leaves)["y"][0][:, own]
        results.append({"y": y.detach(), "dx": torch.autograd.grad(y.sum(), leaves["x"])[0][0][:, own]})
    assert_same(results[1], results[0])


def check_sequences(channels: int, width: int, dtype: torch.dtype, place: Place, activation: str | None) -> None:
    call = sequence_call(channels, width, dtype, place, activation)
    call.check()
    assert_sequences_apart(call)
