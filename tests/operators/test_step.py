"""The shared machinery of decoding steps."""

import pytest
import torch

import mtlkit
from mtlkit import _native
from mtlkit.ops import causal_conv1d_update

pytestmark = pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")

BACKENDS = ["cpu", "torch"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest):
    with mtlkit.use_backend(request.param):
        yield request.param


def tensors() -> dict:
    return {"x": torch.randn(2, 5), "conv_state": torch.randn(2, 5, 3), "weight": torch.randn(5, 4)}


def copies(given: dict) -> dict:
    return {name: t.clone() for name, t in given.items()}


def test_no_gradient_flows(backend):
    given = tensors()
    given["weight"].requires_grad_()
    assert not causal_conv1d_update(**given).requires_grad
    assert not given["conv_state"].requires_grad


def test_compiles_whole_and_writes_the_state(backend):
    """Between reads of the state, which see the new values."""

    def steps(x, conv_state, weight):
        first = causal_conv1d_update(x, conv_state, weight)
        between = conv_state.sum()
        return first, between, causal_conv1d_update(first, conv_state, weight)

    torch._dynamo.reset()
    given = tensors()
    given["weight"].requires_grad_()
    eager, compiled = copies(given), copies(given)
    wanted = steps(**eager)
    got = torch.compile(steps, backend="inductor" if backend == "cpu" else "aot_eager", fullgraph=True)(**compiled)
    torch.testing.assert_close(got, wanted)
    assert torch.equal(compiled["conv_state"], eager["conv_state"])


def test_opcheck(backend):
    given = tensors()
    state, dt, A, rows = torch.randn(2, 5, 4), torch.rand(2, 5), -torch.rand(5, 4), torch.randn(2, 4)
    calls = {
        "mtlkit::causal_conv1d_update": (*given.values(), *[None] * 3, True),
        "mtlkit::selective_state_update": (given["x"], state, dt, A, rows, rows, *[None] * 4, True),
    }
    steps = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("mtlkit::")]
    steps = [name for name in steps if getattr(torch.ops.mtlkit, name[8:]).default._schema.is_mutable]
    assert sorted(steps) == sorted(calls)
    for name, arguments in calls.items():
        torch.library.opcheck(getattr(torch.ops.mtlkit, name[8:]).default, (backend, *arguments))


def test_vmap_raises(backend):
    given = tensors()
    with pytest.raises(RuntimeError, match="vmap"):
        torch.vmap(lambda x: causal_conv1d_update(x, given["conv_state"], given["weight"]))(given["x"][None])


def test_a_batch_without_a_sequence(backend):
    got = causal_conv1d_update(torch.ones(0, 5), torch.ones(0, 5, 3), torch.ones(5, 4))
    assert got.shape == (0, 5)


def test_meta_tensors():
    given = {name: t.to("meta") for name, t in tensors().items()}
    assert causal_conv1d_update(**given).shape == (2, 5)


def test_a_state_that_negates_what_is_in_memory(backend):
    given = tensors()
    view = torch.complex(torch.zeros(2, 5, 3), -given["conv_state"]).conj().imag
    assert view.is_neg()
    wanted = causal_conv1d_update(**given)
    assert torch.equal(causal_conv1d_update(given["x"], view, given["weight"]), wanted)
    assert torch.equal(view, given["conv_state"])
