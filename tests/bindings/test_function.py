"""The functions of mtlkit._C: every argument has a name, which the error of an invalid call contains."""

import inspect

import pytest
import torch

from mtlkit import _native
from mtlkit.operators._launch import argument

pytestmark = pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")

DIRECTIONS = ("_forward", "_backward")


def functions() -> dict[str, object]:
    return {name: f for name, f in vars(_native.C).items() if inspect.isroutine(f)} if _native.C else {}


def call(x: torch.Tensor, y: torch.Tensor) -> dict[str, object]:
    """Arguments of norm_gate_forward: no weight, no bias, no gate."""
    return {
        "sizes": x.shape,
        "x": argument(x),
        "weight": None,
        "bias": None,
        "z": None,
        "eps": 0.0,
        "use_double": False,
        "threads": 1,
        "out": argument(y),
    }


def forward(**changes: object) -> torch.Tensor:
    x, y = torch.tensor([[1.0, 3.0]]), torch.empty(1, 2)
    assert _native.C.norm_gate_forward(**call(x, y) | changes) == 0
    return y


@pytest.mark.parametrize("name", functions())
def test_every_function_is_documented(name):
    assert functions()[name].__doc__


@pytest.mark.parametrize("name", [name for name in functions() if name.endswith(DIRECTIONS)])
def test_kernels_name_every_argument(name):
    parameters = inspect.signature(functions()[name]).parameters
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    documented = inspect.getdoc(functions()[name]).partition("Args:\n")[2].splitlines()
    assert [line.split()[0] for line in documented] == list(parameters)


def test_arguments_in_any_order():
    x, y = torch.tensor([[1.0, 3.0]]), torch.empty(1, 2)
    arguments = call(x, y)
    assert _native.C.norm_gate_forward(**dict(reversed(arguments.items()))) == 0
    assert torch.equal(y, forward())
    assert torch.equal(y, torch.tensor([[-1.0, 1.0]]))


def test_names_need_not_be_interned():
    assert torch.equal(forward(**{"".join(["e", "ps"]): 0.0}), torch.tensor([[-1.0, 1.0]]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": (1, 2, 3)}, r"sizes: expected tuple of ints \(\(rows, D\)\), got \(1, 2, 3\)"),
        ({"sizes": [1, 2]}, "sizes: expected tuple of ints"),
        ({"x": (0, 0, (1,))}, r"x: expected tensor \(.*\), got \(0, 0, \(1,\)\)"),
        ({"x": 0}, "x: expected tensor"),
        ({"eps": "small"}, r"eps: expected float \(.*\), got 'small'"),
        ({"threads": 1 << 40}, "threads: expected int"),
        ({"gamma": 1}, "expected no argument of the name gamma"),
    ],
)
def test_a_call_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(TypeError, match=f"norm_gate_forward: {message}"):
        forward(**changes)


def test_a_missing_argument_is_named():
    with pytest.raises(TypeError, match="norm_gate_forward: expected all arguments, got none for x, bias"):
        _native.C.norm_gate_forward(
            **{n: v for n, v in call(torch.ones(1, 2), torch.ones(1, 2)).items() if n not in ("x", "bias")}
        )


def test_positions_are_refused():
    with pytest.raises(TypeError, match="norm_gate_forward: expected keyword arguments alone"):
        _native.C.norm_gate_forward((1, 2))
