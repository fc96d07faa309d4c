"""directional_scan by the CUDA kernels of selective_scan, run on the host, against the reference in float64."""

import pytest
import torch

from harness.calls import assert_same
from harness.directions import CASES, B, assert_sequences_apart, check, inputs_of, random_order, results
from mtlkit.ops import orders


@pytest.mark.parametrize("case", list(CASES))
def test_output_and_gradients(on_host, poisoned, case):
    inputs, options = CASES[case]()
    check(inputs, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (16, 16), (33, 4), (18, 40)], ids=str)
def test_channels_and_states(on_host, shape, dtype):
    """Rows copied 16 bytes, 4 bytes or one element at a time; blocks that are only partly filled."""
    D, N = shape
    inputs = {name: t.to(dtype) for name, t in inputs_of(2, 21, D=D, N=N).items()}
    seq_idx = torch.arange(21).expand(B, -1) // 6
    check(inputs, dtype, order=random_order(2, 21), seq_idx=seq_idx)
    check({name: t.contiguous() for name, t in inputs.items()}, dtype, order=random_order(2, 21), seq_idx=seq_idx)


@pytest.mark.parametrize("N", [1, 16])
def test_sequences_and_chunks(on_host, N):
    """Sequences that end within a chunk, at its border and beyond it, along tables and backwards."""
    on_host(40)
    tokens = 450
    seq_idx = torch.stack(((torch.arange(tokens) > 200).int() + (torch.arange(tokens) > 202), torch.zeros(tokens)))
    inputs = inputs_of(2, tokens, N=N)
    check(inputs, order=orders.both(tokens), seq_idx=seq_idx.int())
    check(inputs, order=random_order(2, tokens)[:, :440])


@pytest.mark.parametrize("multiprocessors", [1, 40])
def test_nothing_passes_from_one_sequence_to_the_next(on_host, multiprocessors):
    on_host(multiprocessors)
    assert_sequences_apart(400, 250)


def test_repeats_bit_by_bit_in_any_order(on_host, kernels):
    inputs, found = inputs_of(3, 130, D=40, N=16), []
    for seed in range(3):
        kernels.seed(seed)
        found.append(results(inputs, torch.float32, order=random_order(3, 130)))
    for other in found[1:]:
        assert_same(other, found[0])
