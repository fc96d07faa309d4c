import torch

from mtlkit.operators import shapes
from mtlkit.testing import SS2DShape


def test_inputs_are_equal_numbers_for_every_dtype():
    shape = SS2DShape(B=1, D=4, H=3, W=5, N=2, R=1)
    single, double = (shape.inputs(dtype) for dtype in (torch.float32, torch.float64))
    for name, value in double.items():
        assert torch.equal(value.float(), single[name]), name
    assert shape.updates == 4 * 4 * 15 * 2


def test_inputs_of_sizes_are_equal_numbers_for_every_dtype():
    for make in (
        lambda dtype: shapes.norm_gate_inputs((2, 3, 5), dtype),
        lambda dtype: shapes.depthwise_inputs((2, 3, 4, 5), 5, dtype),
        lambda dtype: shapes.causal_conv1d_inputs((2, 3, 5), 3, dtype),
    ):
        single, double = make(torch.float32), make(torch.float64)
        assert all(torch.equal(double[name].float(), t) for name, t in single.items())


def test_parameters_may_have_another_dtype():
    found = shapes.norm_gate_inputs((2, 5), torch.float32, parameters=torch.float16, gate=torch.bfloat16)
    assert [t.dtype for t in found.values()] == [torch.float32, torch.float16, torch.float16, torch.bfloat16]
