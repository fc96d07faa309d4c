"""Complete networks on a real ultrasound frame, inference and a training step."""

import functools
from collections.abc import Callable

import pytest
from memory import peak_of_training
from networks import (
    GRADIENT_BOUND,
    LOGITS_BOUND,
    NETWORKS,
    assert_agrees,
    exact_logits,
    exact_step,
    given,
    gradients,
    images_of,
    infer,
    key,
    network,
    optimizer_of,
    plain,
    train,
)
from profiling import profile
from torch import Tensor

import mtlkit
from mtlkit.testing import relative_error

BACKENDS = {"mtlkit": "auto", "torch": "torch"}


@pytest.mark.row(key=functools.partial(key, direction="inference"))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_inference(name: str, backend: str, measure: Callable) -> None:
    with mtlkit.use_backend(BACKENDS[backend]):
        model, inputs = network(name).eval(), given(name, False)
        extra = {}
        if backend == "mtlkit":
            infer(model, *inputs)
            extra["profile"] = profile(lambda: infer(model, *inputs))
        expected = exact_logits(name)
        measure(
            lambda: infer(model, *inputs),
            lambda logits: assert_agrees("logits", logits, expected, LOGITS_BOUND),
            unit=images_of(inputs),
            **extra,
        )


@pytest.mark.row(key=functools.partial(key, direction="training_step"))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_training(name: str, backend: str, measure: Callable) -> None:
    expected, expected_gradients = exact_step(name)
    peak = peak_of_training(name) if NETWORKS[name].memory and backend == "mtlkit" else None
    with mtlkit.use_backend(BACKENDS[backend]):
        model, inputs = network(name).train(), given(name, True)
        beside = [relative_error(*pair) for pair in zip(plain(name), exact_step(name), strict=True)]
        optimizer = optimizer_of(model)

        def check(logits: Tensor) -> tuple[float, float]:
            assert_agrees("logits", logits, expected, LOGITS_BOUND + 2 * beside[0])
            return assert_agrees("gradients", gradients(model), expected_gradients, GRADIENT_BOUND + 2 * beside[1])

        measure(
            lambda: train(model, optimizer, *inputs),
            check,
            unit=images_of(inputs),
            **({} if peak is None else {"peak_bytes": peak}),
        )
