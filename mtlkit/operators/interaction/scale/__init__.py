"""scale: a map times a factor for each channel of each image, in the dtype of the map.

    y[b, c] = factors[b, c] x[b, c]

Source: as in mtlkit/operators/interaction.
"""

from typing import NamedTuple

from torch import Tensor

from mtlkit._check import check_tensor
from mtlkit.operators._operator import NoOptions, Operator
from mtlkit.operators.interaction.maps import new_map
from mtlkit.operators.interaction.scale import cpu, cuda, triton
from mtlkit.operators.interaction.types import check_map


class Inputs(NamedTuple):
    """A map, and its factors in the dtype of the computation."""

    x: Tensor  # (B, C, H, W)
    factors: Tensor  # (B, C)


def _check(inputs: Inputs, _: NoOptions) -> None:
    check_map("x", inputs.x)
    check_tensor("factors", inputs.factors, 2)


def scale_torch(x: Tensor, factors: Tensor) -> Tensor:
    """The formula."""
    return (x * factors[:, :, None, None]).to(x.dtype)


OPERATOR = Operator(
    "interaction_scale",
    function="task_interaction",
    inputs=Inputs,
    check=_check,
    new_outputs=lambda inputs, options: (new_map(inputs.x),),
    reference=scale_torch,
    torch_form=scale_torch,
    backends={"cpu": cpu, "triton": triton, "cuda": cuda},
)
