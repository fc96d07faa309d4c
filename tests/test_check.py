"""Checks of arguments: accepted values, and the text of each error."""

import pytest
import torch

from mtlkit import _check

IDS = torch.arange(2)


@pytest.mark.parametrize(
    ("error", "words", "check"),
    [
        (TypeError, "x: expected a tensor, got list", lambda: _check.check_tensor("x", [1.0], 1)),
        (TypeError, "x: expected float32, .* got torch.int64", lambda: _check.check_tensor("x", IDS, 1)),
        (ValueError, "x: expected 2 or 3 dimensions, got 1", lambda: _check.check_tensor("x", torch.ones(2), (2, 3))),
        (ValueError, "x: expected a dense", lambda: _check.check_tensor("x", torch.ones(2, 2).to_sparse(), 2)),
        (ValueError, r"x: expected shape \(B, C\) = \(2, 3\)", lambda: _check.check_shape("x", IDS, "(B, C)", 2, 3)),
        (TypeError, "dtype: expected torch.float32", lambda: _check.check_float_dtype("dtype", torch.int8)),
        (ValueError, "channels are the last", lambda: _check.check_channels_last("x", torch.ones(1, 3, 4, 4), 3)),
        (ValueError, "channels are dimension 1", lambda: _check.check_channels_first("x", torch.ones(1, 4, 4, 3), 3)),
        (ValueError, r"f: expected shape \(B, C\)", lambda: _check.check_vectors("f", torch.ones(2, 3), 3, 4)),
        (ValueError, "dim: expected a number above 0, got 0", lambda: _check.check_positive(dim=0)),
        (ValueError, "rate: expected a probability", lambda: _check.check_probability(rate=1.0)),
        (ValueError, "form: expected one of 'a', 'b'", lambda: _check.check_choice("form", "c", ("a", "b"))),
    ],
)  # fmt: skip
def test_errors_name_the_argument(error, words, check):
    with pytest.raises(error, match=words):
        check()


def test_devices():
    here, elsewhere = torch.ones(1), torch.ones(1, device="meta")
    _check.check_device(u=here, z=None, D=here)
    with pytest.raises(ValueError, match="D: expected device cpu, where u is, got meta"):
        _check.check_device(u=here, z=None, D=elsewhere)


@pytest.mark.parametrize("dtype", _check.FLOATS)
def test_one_look_agrees_with_the_checks(dtype):
    x, here = torch.ones(2, 3, dtype=dtype), torch.device("cpu")
    assert _check.fits(x, (2, 3), here)
    assert _check.fits(torch.nn.Parameter(x), (2, 3), here)
    for other in (None, [1.0], IDS, x.to_sparse(), torch.nested.nested_tensor([x, x])):
        assert not _check.fits(other, (2, 3), here)
    assert not _check.fits(x, (3, 2), here)
    assert not _check.fits(x, (2, 3, 1), here)
    assert not _check.fits(x, (2, 3), torch.device("meta"))


@pytest.mark.parametrize("dtype", _check.FLOATS)
def test_what_fits_passes(dtype):
    x = torch.ones(2, 3, 4, 5, dtype=dtype)
    _check.check_tensor("x", x, 4)
    _check.check_channels_first("x", x, 3)
    _check.check_channels_last("x", x, 5)
    _check.check_vectors("f", x[:, :, 0, 0], 3, 2)
    _check.check_float_dtype("dtype", dtype)
    _check.check_probability(rate=0.0)
