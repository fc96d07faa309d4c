"""Example inputs of a network, and its outputs."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mtlkit.deploy._example import example_of, input_names, named_outputs
from mtlkit.models import create_model


class Pair(NamedTuple):
    mask: Tensor
    others: list[Tensor]


def test_outputs_are_named_by_their_places():
    a, b, c = (torch.full((1,), float(i)) for i in range(3))
    assert list(named_outputs(Pair(a, [b, c]))) == ["mask", "others_0", "others_1"]
    assert list(named_outputs({"x": a, "none": None})) == ["x"]
    assert list(named_outputs((a, {"y": b}))) == ["output_0", "output_1_y"]
    assert named_outputs(a) == {"output": a}
    assert named_outputs("text") == {}


def test_the_example_of_a_network_is_always_the_same():
    model = create_model("medmamba_t", depths=(1,), dims=(8,))
    state = torch.get_rng_state()
    first, second = example_of(model, None), example_of(model, None)
    assert torch.equal(first[0], second[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert first[0].shape == (2, 3, 96, 64)
    assert input_names(model) == ["images"]


def test_one_image_is_given_twice():
    (given,) = example_of(nn.Identity(), torch.ones(1, 3, 4, 4, dtype=torch.float64))
    assert given.shape == (2, 3, 4, 4)
    assert given.dtype == torch.float32


@pytest.mark.parametrize(("example", "kind"), [(None, ValueError), ((), ValueError), (["a"], TypeError)])
def test_what_is_no_example(example, kind):
    with pytest.raises(kind, match="example: expected"):
        example_of(nn.Identity(), example)
