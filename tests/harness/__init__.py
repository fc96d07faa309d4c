"""What tests and benchmarks share; pyproject.toml puts tests/ on pytest's path.

calls: the inputs of every operator by shape and dtype, their runs, and the policy that results are held to.
layouts: the same numbers elsewhere in memory.
operators, matrix: what the tests of every operator are, and the tests.
extremes: tests of the ends of their functions.
gating: the same for what task interaction computes between its passes.
cuda_on_host, interpreter: kernels for a GPU, run on the CPU.
poison: memory that is allocated unset holds NaN.
fence: memory next to a page that is not accessible.
processes: fresh Python processes, alone or two that torch.distributed joins.
third_party_models: networks of other codebases, restated.
"""

import pytest

WITH_ASSERTIONS = ("calls", "extremes", "gating", "matrix", "operators", "processes")

pytest.register_assert_rewrite(*(f"{__name__}.{name}" for name in WITH_ASSERTIONS))
