"""Shared by tests and benchmarks; pyproject.toml puts tests/ on pytest's path.

calls: inputs of every operator by shape and dtype, running them, and the policy for their results.
layouts: the same values in other memory layouts.
operators, matrix: descriptions of the operators, and the tests that all of them must pass.
extremes: tests of functions at extreme values.
gating: tests of the computations of task interaction between its passes.
cuda_on_host, interpreter: GPU kernels run on the CPU.
poison: fills uninitialised memory with NaN.
fence: memory next to an inaccessible page.
processes: fresh Python processes, one or two joined by torch.distributed.
third_party_models: networks of other codebases, restated.
"""

import pytest

WITH_ASSERTIONS = ("calls", "extremes", "gating", "matrix", "operators", "processes")

pytest.register_assert_rewrite(*(f"{__name__}.{name}" for name in WITH_ASSERTIONS))
