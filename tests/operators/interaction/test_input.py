"""Task interaction: errors name the invalid input."""

from collections.abc import Callable

import pytest
import torch

import mtlkit
from mtlkit import ops
from mtlkit.ops import TIMParameters, UPAParameters
from mtlkit.testing import InteractionShape


def bad(**change) -> Callable[[], object]:
    """A call of `task_interaction` with some fields or arguments replaced."""

    def call():
        signals = change.get("signals", "variance")
        inputs = InteractionShape(
            2, 4, 3, 3, F=12, signals="alignment" if signals == "alignment" else "variance"
        ).inputs()
        tim = inputs.tim._replace(**{n: v for n, v in change.items() if n in TIMParameters._fields})
        upa = inputs.upa._replace(**{n: v for n, v in change.items() if n in UPAParameters._fields})
        known = (*TIMParameters._fields, *UPAParameters._fields)
        arguments = {"x": inputs.x, "f": inputs.f, "tim": tim, "upa": upa}
        return ops.task_interaction(**arguments | {n: v for n, v in change.items() if n not in known})

    return call


BAD = {
    "x: expected a tensor, got NoneType": (bad(x=None), TypeError),
    "x: expected float32, .* got torch.int64": (bad(x=torch.ones(2, 4, 3, 3, dtype=torch.int64)), TypeError),
    "x: expected 4 dimensions, got 3": (bad(x=torch.ones(2, 4, 3)), ValueError),
    r"x: expected shape .* at least 1, got \(2, 4, 0, 3\)": (bad(x=torch.ones(2, 4, 0, 3)), ValueError),
    r"tim.proj_weight: expected shape \(P, C\) = \(2, 5\), got \(2, 4\)": (bad(x=torch.ones(2, 5, 3, 3)), ValueError),
    r"f: expected shape .* = \(2, 12\), got \(3, 12\)": (bad(f=torch.ones(3, 12)), ValueError),
    r"tim.context_weight: expected shape \(F, P\) = \(13, 2\), got \(12, 2\)": (bad(f=torch.ones(2, 13)), ValueError),
    r"tim.proj_bias: expected shape \(P,\) = \(2,\), got \(3,\)": (bad(proj_bias=torch.ones(3)), ValueError),
    r"tim.attn_weight: expected shape \(C,\) = \(4,\), got \(2,\)": (bad(attn_weight=torch.ones(2)), ValueError),
    "tim.norm_var: expected a tensor, got float": (bad(norm_var=1.0), TypeError),
    "tim.gain_bias: expected a tensor, got NoneType": (bad(gain_bias=None), TypeError),
    "tim.context_bias: expected a tensor, got NoneType": (bad(context_bias=None), TypeError),
    "tim.proj_weight: expected a tensor, got NoneType": (bad(proj_weight=None), TypeError),
    "tim.gain_weight: expected a tensor, got NoneType": (bad(**dict.fromkeys(TIMParameters._fields)), TypeError),
    "tim: expected TIMParameters, got dict": (bad(tim={}), TypeError),
    "upa: expected UPAParameters, got tuple": (bad(upa=()), TypeError),
    "tau: expected a number, got str": (bad(tau="0.7"), TypeError),
    "signals: expected one of 'variance', 'alignment', got 'both'": (bad(signals="both"), ValueError),
    r"upa.fc1_weight: expected .*'variance' = \(32, 2\), got \(32, 3\)": (
        bad(fc1_weight=torch.ones(32, 3)),
        ValueError,
    ),
    "upa.seg_proj: expected None with signals='variance', got Tensor": (bad(seg_proj=torch.ones(5, 4)), ValueError),
    r"upa.clf_proj: expected shape \(Q, F\) = \(64, 12\), got \(5, 12\)": (
        bad(signals="alignment", clf_proj=torch.ones(5, 12)),
        ValueError,
    ),
    r"normaliser: expected shape \(2,\) = \(2,\), got \(3,\)": (bad(normaliser=torch.ones(3)), ValueError),
    "normaliser: expected None with signals='alignment'": (
        bad(signals="alignment", normaliser=torch.ones(2)),
        ValueError,
    ),
    "upa.fc2_bias: expected device cpu, where x is, got meta": (
        bad(fc2_bias=torch.ones(2, device="meta")),
        ValueError,
    ),
    r"x_enhanced: expected shape .* = \(2, 4, 3, 3\), got \(2, 4, 3, 1\)": (
        lambda: ops.upa_stats(torch.ones(2, 4, 3, 3), torch.ones(2, 4, 3, 1), torch.ones(2, 5), torch.ones(2, 5)),
        ValueError,
    ),
    r"gain: expected shape \(B, C\) = \(2, 4\), got \(2, 1\)": (
        lambda: ops.tim_modulate(torch.ones(2, 4, 3, 3), torch.ones(2, 4), torch.ones(2, 1)),
        ValueError,
    ),
    r"weight: expected shape \(P, C, 1, 1\) = \(3, 4, 1, 1\), got \(3, 4, 3, 3\)": (
        lambda: ops.tim_pool(torch.ones(2, 4, 3, 3), torch.ones(3, 4, 3, 3), torch.ones(3)),
        ValueError,
    ),
    r"enhanced: expected shape .* = \(2, 3\), got \(2, 4\)": (
        lambda: ops.upa_gate(torch.ones(2, 3), torch.ones(2, 4), torch.ones(2)),
        ValueError,
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    call, error = BAD[message]
    with pytest.raises(error, match=message):
        call()


def test_the_earlier_name_of_the_signals_warns_and_works():
    level = InteractionShape(2, 6, 4, 5, 8, "alignment").inputs()
    with pytest.warns(DeprecationWarning, match="signals='three' is called 'alignment' now"):
        got = mtlkit.ops.task_interaction(*level, signals="three")
    assert torch.equal(got.gates, mtlkit.ops.task_interaction(*level, signals="alignment").gates)
    with pytest.warns(DeprecationWarning, match="signals='three' is called 'alignment' now"):
        assert mtlkit.nn.UncertaintyProxyAttention(6, signals="three").signals == "alignment"
    with pytest.warns(DeprecationWarning, match="ThreeSignals is called AlignmentSignals now"):
        assert mtlkit.ops.ThreeSignals is mtlkit.ops.AlignmentSignals
