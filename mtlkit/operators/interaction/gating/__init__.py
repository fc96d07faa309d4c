"""gating: what task interaction does between its two passes over the map, from sums to the factors of the channels.

The formulas are in the docstring of mtlkit/operators/interaction. The vectors are small and the layers many, so that
most of the time of PyTorch's operations would go into calling them. Kernels take many at once; where calls are traced,
PyTorch computes. Each backend has `MOST_IMAGES`, `forward` and `backward`.
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
