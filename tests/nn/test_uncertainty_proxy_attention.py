"""UncertaintyProxyAttention: golden values and counts; test_interaction_level.py has the other tests."""

import pytest
import torch
from torch import nn

from mtlkit.nn import UncertaintyProxyAttention

TOLERANCE = 1e-5


def count(layer: nn.Module) -> int:
    """Counts like Keras, which includes the running statistics of batch normalisation."""
    kept = ("num_batches_tracked", "running_signals")
    return sum(t.numel() for name, t in layer.state_dict().items() if not name.endswith(kept))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    ("name", "signals", "stats"),
    [("upa_v1", "variance", ("u_seg", "u_clf")), ("upa_v2", "alignment", ("align", "seg_energy", "clf_energy"))],
)
def test_golden_upa(keras_golden, backend, dtype, name, signals, stats, memory_format):
    upa, given, wanted = keras_golden(name, UncertaintyProxyAttention(4, 6, signals), dtype)
    maps = (given[key].contiguous(memory_format=memory_format) for key in ("seg", "seg_enh"))
    out = upa(*maps, given["clf"], given["clf_enh"])
    assert (out.seg - wanted["seg_final"]).abs().max() <= TOLERANCE
    assert (out.clf - wanted["clf_final"]).abs().max() <= TOLERANCE
    for got, key in zip(out.stats, stats, strict=True):
        assert (got - wanted[key][:, 0]).abs().max() <= TOLERANCE
    if signals == "alignment":
        assert (out.gates - torch.stack((wanted["w_seg"], wanted["w_clf"]), 1)).abs().max() <= TOLERANCE


@pytest.mark.parametrize(("dim", "expected"), [(384, 41_154), (192, 28_866), (96, 22_722), (48, 19_650)])
def test_parameter_counts_of_upa(dim, expected):
    assert count(UncertaintyProxyAttention(dim, signals="alignment", device="meta")) == expected
    assert count(UncertaintyProxyAttention(dim, device="meta")) == 162
