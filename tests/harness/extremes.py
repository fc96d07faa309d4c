"""Tests beyond normal random values: extreme arguments, means much larger than deviations, and ties in rounding.

Results are compared element by element, because a norm hides errors of small elements. A folder's test_extremes.py
derives a class for its backend, like test_matrix.py.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mtlkit
from harness.calls import NARROW, norm_call

RELATIVE = {torch.float32: 5e-6, torch.float64: 1e-10}  # exp(-80) in float32


def everywhere(dtype: torch.dtype) -> Tensor:
    """From where exp almost vanishes to where adding 1 makes no difference, including 0 and its neighbours."""
    wide, near = torch.linspace(-80, 80, 161), torch.linspace(-2, 2, 18)
    return torch.cat([wide, near]).to(dtype)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), or x above 20, as in PyTorch."""
    return torch.where(x > 20, x, torch.logaddexp(x, torch.zeros_like(x)))


def assert_elements(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert got.dtype == dtype
    torch.testing.assert_close(got.detach().double().flatten(), wanted, rtol=RELATIVE[dtype], atol=0)


def narrow_numbers(dtype: torch.dtype, step: int) -> Tensor:
    """Every step-th number of a 16-bit dtype, and the largest, without 0 and non-finite numbers."""
    bits = torch.arange(0, 1 << 16, step, dtype=torch.int32)
    numbers = torch.cat([bits, torch.tensor([0x7F7F, 0x7BFF])]).to(torch.int16).view(dtype)
    return numbers[numbers.isfinite() & (numbers != 0)]


def around_ties(dtype: torch.dtype) -> Tensor:
    """float32 numbers halfway between neighbours in a 16-bit dtype, and the numbers next to them."""
    low = narrow_numbers(dtype, 45)  # even and odd
    high, below = ((low.view(torch.int16) + step).view(dtype).double() for step in (1, -1))
    half = torch.where(high.isfinite(), high - low.double(), low.double() - below) / 2
    tie = (low.double() + half).float()
    return torch.cat([tie, *(tie.nextafter(tie * factor) for factor in (0.0, 2.0))])


class Extremes:
    """The tests for one backend, which computes in `dtypes`."""

    dtypes: tuple[torch.dtype, ...] = (torch.float32,)

    def levels(self) -> Iterator[None]:
        """Yields once per variant of the kernels, which is active meanwhile."""
        yield

    def check(self, function: Callable[[Tensor], Tensor], wanted: Callable[[Tensor], Tensor]) -> None:
        """Checks values and derivatives of a function expressed by an operator, in every dtype."""
        for dtype in self.dtypes:
            exact = everywhere(dtype).double().requires_grad_()
            values = wanted(exact)
            (slopes,) = torch.autograd.grad(values.sum(), exact)
            for _ in self.levels():
                x = everywhere(dtype).requires_grad_()
                got = function(x)
                assert_elements(got, values.detach(), dtype)
                assert_elements(torch.autograd.grad(got.sum(), x)[0], slopes, dtype)

    def test_softplus_of_selective_scan(self):
        def scan(x: Tensor) -> Tensor:
            """With one token and one state: out = dt u B C."""
            one = torch.ones(1, len(x), 1, dtype=x.dtype)
            row = one[:, :1]
            return mtlkit.ops.selective_scan(one, x.view_as(one), -one[0], row, row, delta_softplus=True)

        self.check(scan, softplus)

    def test_softplus_of_ss2d(self):
        def scan(x: Tensor) -> Tensor:
            """With one pixel and one state: y = 4 dt u B C."""
            D = len(x)
            one, x_dbl = torch.ones(1, D, 1, 1, dtype=x.dtype), torch.ones(1, 4, 3, 1, 1, dtype=x.dtype)
            weight, parameters = torch.zeros(4, D, 1, dtype=x.dtype), torch.zeros(4 * D, 1, dtype=x.dtype)
            return mtlkit.ops.ss2d(one, x_dbl, weight, x.expand(4, D), parameters, parameters[:, 0])

        self.check(scan, lambda x: 4 * softplus(x))

    def test_gate_of_selective_scan(self):
        def scan(x: Tensor) -> Tensor:
            """With a state that stays 0: D u = 1, times the gate."""
            one = torch.ones(1, len(x), 1, dtype=x.dtype)
            row = torch.zeros_like(one[:, :1])
            return mtlkit.ops.selective_scan(one, one, -one[0], row, row, one[0, :, 0], x.view_as(one))

        self.check(scan, F.silu)

    def test_gate_of_norm_gate(self):
        def gate(x: Tensor) -> Tensor:
            weight = torch.zeros_like(x)
            return mtlkit.ops.norm_gate(weight[None], weight, weight + 1, x[None])

        self.check(gate, F.silu)

    def test_silu_of_dwconv_silu(self):
        def conv(x: Tensor) -> Tensor:
            weight = torch.zeros(len(x), 1, 3, 3, dtype=x.dtype)
            weight[:, :, 1, 1] = 1
            return mtlkit.ops.dwconv_silu(x.view(1, -1, 1, 1), weight)

        self.check(conv, F.silu)

    def test_silu_of_causal_conv1d(self):
        def conv(x: Tensor) -> Tensor:
            weight = torch.tensor([[0, 1]], dtype=x.dtype).repeat(len(x), 1)
            return mtlkit.ops.causal_conv1d(x.view(1, -1, 1), weight, activation="silu")

        self.check(conv, F.silu)

    @pytest.mark.parametrize("channels", [96, 97, 1028])
    def test_norm_gate_of_large_means(self, channels):
        """As exact as for small means: 1e5 times the standard deviation leaves 8 bits of a float32."""
        for mean in (1e3, -1e5, 1e6):
            call = norm_call((3, channels))
            call.inputs["x"] += mean
            for _ in self.levels():
                call.check()


class Rounding(Extremes):
    """For kernels with their own conversions; those of the interpreter are Triton's."""

    @pytest.mark.parametrize("dtype", NARROW, ids=str)
    def test_results_are_rounded_to_the_nearest_even(self, dtype):
        values = around_ties(dtype)
        x, none = torch.ones(1, len(values), dtype=dtype), torch.zeros(len(values))
        for _ in self.levels():
            got = mtlkit.ops.norm_gate(x, none, values)
            assert torch.equal(got[0], values.to(dtype))

    @pytest.mark.parametrize("dtype", NARROW, ids=str)
    def test_numbers_in_16_bits_pass_as_they_are(self, dtype):
        u = narrow_numbers(dtype, 13)
        u = torch.cat([u, u.new_ones(-len(u) % 10)]).view(1, -1, 10)
        steps, row = torch.ones_like(u), torch.zeros(1, 1, 10, dtype=dtype)
        A, D = -torch.ones(u.shape[1], 1), torch.ones(u.shape[1])
        for _ in self.levels():
            assert torch.equal(mtlkit.ops.selective_scan(u, steps, A, row, row, D), u)
