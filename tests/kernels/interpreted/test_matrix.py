"""Every operator by its Triton kernels, interpreted, at the smallest shapes: see tests/harness/matrix.py.

It runs only those tests of compiled kernels that depend on the kernels and take seconds.
"""

import torch

from harness.matrix import Fenced, OperatorMatrix, Results
from harness.operators import INTERPRETED_OPERATORS


class TestTriton(Fenced, Results):
    operators, backends, dtypes = INTERPRETED_OPERATORS, ("triton",), (torch.float32,)

    test_mixed_dtypes = OperatorMatrix.test_mixed_dtypes
    test_gradient_of_each_output_alone = OperatorMatrix.test_gradient_of_each_output_alone
    test_opcheck = OperatorMatrix.test_opcheck
