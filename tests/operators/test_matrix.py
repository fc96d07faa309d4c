"""Every operator on the CPU backends, compared with the reference in float64: see tests/harness/matrix.py."""

from harness.matrix import EmptyBatch, InMemory, OnCPU, OperatorMatrix, Results
from harness.operators import CAUSAL_CONV1D, DIRECTIONAL_SCAN, OPERATORS, SELECTIVE_SCAN, SS2D


class TestCompiled(OnCPU, InMemory, OperatorMatrix):
    operators, backends = OPERATORS, ("cpu",)


class TestPlain(Results):
    operators, backends = (SS2D, SELECTIVE_SCAN, DIRECTIONAL_SCAN, CAUSAL_CONV1D), ("torch",)


class TestEmptyBatch(EmptyBatch):
    operators, backends = OPERATORS, ("torch", "reference")
