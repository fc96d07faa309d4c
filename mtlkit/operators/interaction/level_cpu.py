"""A level of task interaction by the C++ kernels in one call, where no gradient is wanted."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators._launch import address, argument, check, fresh
from mtlkit.operators.interaction.gating import Call
from mtlkit.operators.interaction.maps import new_map, rows_argument, rows_of
from mtlkit.operators.interaction.reduce import Inputs


def forward(
    call: Call,
    inputs: Inputs,
    f: Tensor,
    normaliser: Tensor | None,
    running: Sequence[Tensor],
    weights: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    """Final map and vector, mu, enhanced vector, gates and signals; in training it also updates the statistics."""
    x, weight, bias, attn = inputs
    B, C, P, F, H, Q = call.sizes
    y, rows = fresh(new_map(x)), x if x.is_contiguous() else rows_of(x)
    clf, mu, enhanced, gates = f.new_empty(B, F), f.new_empty(B, C), f.new_empty(B, F), f.new_empty(B, 2)
    signals = [f.new_empty(B) for _ in range(3 if call.alignment else 2)]
    status = _native.C.interaction_level_forward(
        sizes=(B, C, x.shape[2], x.shape[3], P),
        vector_sizes=(F, H, Q),
        x=rows_argument(rows),
        weight=argument(weight),
        bias=argument(bias),
        attn=argument(attn),
        tau=call.numbers.tau,
        momentum=call.numbers.momentum,
        eps=call.numbers.eps,
        alignment=call.alignment,
        training=call.training,
        f=f.data_ptr(),
        normaliser=address(normaliser),
        norm_mean=running[0].data_ptr(),
        norm_var=running[1].data_ptr(),
        weights=tuple([0 if t is None else t.data_ptr() for t in weights]),
        mu=mu.data_ptr(),
        clf=clf.data_ptr(),
        enhanced=enhanced.data_ptr(),
        gates=gates.data_ptr(),
        signals=(signals[0].data_ptr(), signals[1].data_ptr(), signals[2].data_ptr() if call.alignment else 0),
        y=rows_argument(y),
        use_double=call.use_double,
        threads=torch.get_num_threads(),
    )
    check(status)
    return y, clf, mu, enhanced, gates, *signals
