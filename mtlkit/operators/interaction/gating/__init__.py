"""gating: the part of task interaction between its two passes over the map, from sums to the channel factors.

The formulas are in the docstring of mtlkit/operators/interaction. It consists of many layers on small vectors, so that
in PyTorch most of the time is the overhead of calls. The kernels do many layers in one call; traced calls run in
PyTorch. Each backend has `MOST_IMAGES`, `forward` and `backward`.
"""

from mtlkit.operators.interaction.gating import cpu, cuda, triton
from mtlkit.operators.interaction.gating.reference import (
    alignment_of,
    gates_of,
    gating_torch,
    mix,
    tim_vectors,
    variance_of,
)
from mtlkit.operators.interaction.gating.signature import WEIGHTS, Call, Gated, Normalisation, Numbers, Results, Sizes

__all__ = [
    "BACKENDS",
    "WEIGHTS",
    "Call",
    "Gated",
    "Normalisation",
    "Numbers",
    "Results",
    "Sizes",
    "alignment_of",
    "gates_of",
    "gating_torch",
    "mix",
    "tim_vectors",
    "variance_of",
]

BACKENDS = {"cpu": cpu, "triton": triton, "cuda": cuda}
