"""Batches in the form that ONNX Runtime's tools expect."""

import hashlib

import pytest
import torch

from mtlkit.deploy._calibration import Reader


def test_batches():
    a, b = torch.rand(2, 3), torch.rand(1, 3)
    reader = Reader(["x"], [a, (b,)])
    assert [list(one) for one in reader] == [["x"], ["x"]]
    assert reader.get_next() is None
    found = reader.calibration()
    assert found.images == 3
    assert found.sha256 == hashlib.sha256(a.numpy().tobytes() + b.numpy().tobytes()).hexdigest()


def test_what_is_no_batch():
    with pytest.raises(TypeError, match=r"int8: expected batches of tensors for x, y, got \(2,\)"):
        Reader(["x", "y"], [torch.rand(2)]).get_next()
    with pytest.raises(ValueError, match="int8: expected at least one batch"):
        Reader(["x"], []).get_next()
