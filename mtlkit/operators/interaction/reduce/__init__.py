"""reduce: all sums over a map that both modules of task interaction need, in one reading pass.

    mean_c = GAP(D)_c,   variance_c = Var_hw(D_c)
    energy = (sum |D(y+1,x) - D(y,x)| + sum |D(y,x+1) - D(y,x)|) / (C H W)    if requested
    pooled = GAP(relu(W D + b)), or under attention sum_l softmax_l(a D) relu(W D + b)_l    with a projection

The projected map is never written to memory. The backward pass needs one bit for the sign of each of its elements, or
with attention the largest logit and the sum of the softmax.

Source: as in mtlkit/operators/interaction.
"""

from mtlkit.operators._operator import Operator
from mtlkit.operators.interaction.reduce import cpu, cuda, triton
from mtlkit.operators.interaction.reduce.reference import gradient_energy, reduce_reference, reduce_torch
from mtlkit.operators.interaction.reduce.signature import Inputs, Options, Reduced, check, new_outputs

__all__ = [
    "OPERATOR",
    "Inputs",
    "Options",
    "Reduced",
    "gradient_energy",
    "reduce_reference",
    "reduce_torch",
]

OPERATOR = Operator(
    "interaction_reduce",
    function="task_interaction",
    inputs=Inputs,
    options=Options,
    check=check,
    new_outputs=new_outputs,
    outputs=4,
    kept=2,
    saved_outputs=(Reduced._fields.index("mean"), Reduced._fields.index("pooled")),
    reference=reduce_reference,
    torch_form=reduce_torch,
    backends={"cpu": cpu, "triton": triton, "cuda": cuda},
)
