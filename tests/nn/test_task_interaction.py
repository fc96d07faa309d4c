"""TaskInteraction: golden values and counts; test_interaction_level.py has the other tests."""

import pytest
import torch
from torch import nn

from mtlkit.nn import TaskInteraction

TOLERANCE = 1e-5


def count(layer: nn.Module) -> int:
    """Counts like Keras, which includes the running statistics of batch normalisation."""
    kept = ("num_batches_tracked", "running_signals")
    return sum(t.numel() for name, t in layer.state_dict().items() if not name.endswith(kept))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_golden_tim(keras_golden, backend, dtype, memory_format):
    tim, given, wanted = keras_golden("tim", TaskInteraction(4, 6), dtype)
    out = tim(given["seg"].contiguous(memory_format=memory_format), given["clf"])
    assert (out.seg - wanted["seg_enh"]).abs().max() <= TOLERANCE
    assert (out.clf - wanted["clf_enh"]).abs().max() <= TOLERANCE


@pytest.mark.parametrize(("dim", "expected"), [(384, 436_672), (192, 196_576), (96, 118_000), (48, 89_080)])
def test_parameter_counts_of_tim(dim, expected):
    assert count(TaskInteraction(dim, device="meta")) == expected
    assert count(TaskInteraction(dim, pooling="attention", device="meta")) == expected + dim
