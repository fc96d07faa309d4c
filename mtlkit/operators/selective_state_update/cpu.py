"""selective_state_update by the C++ kernel."""

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators._launch import address, argument, check
from mtlkit.operators._step import check_rows
from mtlkit.operators.selective_state_update.reference import dtype_of
from mtlkit.operators.selective_state_update.signature import Inputs, Options, new_output, with_heads


def update(inputs: Inputs, options: Options) -> Tensor:
    """Y."""
    if inputs.state_batch_indices is not None:
        check_rows("state_batch_indices", inputs.state_batch_indices, inputs.state)
    y = new_output(inputs, options)
    x, state, dt, A, B, C, D, z, dt_bias, rows = with_heads(inputs)
    status = _native.C.selective_state_update(
        use_double=dtype_of(inputs) == torch.float64,
        threads=torch.get_num_threads(),
        sizes=(*x.shape, state.shape[3], B.shape[1]),
        state=argument(state),
        x=argument(x),
        dt=argument(dt),
        A=argument(A),
        B=argument(B),
        C=argument(C),
        D=argument(D),
        z=argument(z),
        dt_bias=argument(dt_bias),
        state_batch_indices=address(rows),
        dt_softplus=options.dt_softplus,
        y=argument(y.view(x.shape)),
    )
    check(status)
    return y
