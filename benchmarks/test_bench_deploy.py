"""Networks outside PyTorch, one image on two threads: ONNX files, mtlkit's in float32 and int8, and plain ones in ONNX
Runtime and OpenVINO; and models from `mtlkit.optimize`, which stay in PyTorch, compared with torch.compile.

All files of a network are timed in turns. In a plain file, MedMamba-T's scans are unrolled, which takes minutes to
write: its peers are measured at 64 x 64.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import machine
import pytest
import torch
from measuring import Key, in_turns
from networks import NETWORKS, assert_agrees, exact_logits, given, infer, network
from preparing import SMALL, Export, Frozen, file_of, frozen, inputs_of
from torch import Tensor

import mtlkit
from mtlkit import deploy

PEERS = ("onnxruntime", "openvino")
INT8 = "mtlkit-onnx-int8"
ROWS = [
    *(("mbdi", "busi_224", provider) for provider in ("mtlkit-onnx", INT8, *PEERS)),
    *(("btinet", "busi_224", provider) for provider in ("mtlkit-onnx", *PEERS)),
    *((name, NETWORKS[name].inference_shape, "mtlkit-onnx") for name in ("medmamba_t", "vmamba_t_s1l8", "hybrid_vssm")),
    *(("medmamba_t", SMALL, provider) for provider in ("mtlkit-onnx", *PEERS)),
]
LOGITS_BOUND = 2e-5  # through some hundred convolutions, sums are in another order than PyTorch's
INT8_BOUND = 0.2  # the weights are random; a trained network is more robust


@functools.cache
def expected(name: str, shape: str) -> Tensor:
    if shape != SMALL:
        return exact_logits(name)
    with mtlkit.use_backend("torch"):
        return infer(network(name).double().eval(), *(t.double() for t in inputs_of(name, shape)))


@functools.cache
def names_of(name: str) -> tuple[str, ...]:
    """Names of a network's inputs."""
    return tuple(mtlkit.models.network.takes(network(name)))


def file(name: str, shape: str, provider: str) -> Export:
    """The file that a row runs."""
    kind = "plain" if provider in PEERS else "int8" if provider == INT8 else ""
    return Export(name, shape if kind == "plain" else NETWORKS[name].inference_shape, kind)


def runner(name: str, shape: str, provider: str) -> Callable[..., dict[str, Any]]:
    """A function that runs a network on arrays by the names of its inputs, and returns the outputs of the file."""
    path = file_of(file(name, shape, provider))
    if provider == "openvino":
        import openvino

        options = {"INFERENCE_NUM_THREADS": machine.THREADS, "PERFORMANCE_HINT": "LATENCY"}
        # otherwise it computes in bfloat16 if the processor supports it
        compiled = openvino.Core().compile_model(path, "CPU", options | {"INFERENCE_PRECISION_HINT": "f32"})
        names = [one.get_any_name() for one in compiled.outputs]
        return lambda arrays: dict(zip(names, compiled(arrays).values(), strict=True))
    if provider == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = machine.THREADS
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    else:
        session = deploy.open_session(path, threads=machine.THREADS)
    names = [one.name for one in session.get_outputs()]
    return lambda arrays: dict(zip(names, session.run(None, arrays), strict=True))


@functools.lru_cache(maxsize=1)
def calls_of(name: str, shape: str) -> dict[str, Callable[[], dict[str, Any]]]:
    """The calls of all installed providers of a network, for one image."""
    arrays = dict(zip(names_of(name), (t.numpy() for t in inputs_of(name, shape)), strict=False))
    providers = [provider for *network_and_shape, provider in ROWS if network_and_shape == [name, shape]]
    installed = [provider for provider in providers if provider not in PEERS or importlib.util.find_spec(provider)]
    return {provider: functools.partial(runner(name, shape, provider), arrays) for provider in installed}


@functools.lru_cache(maxsize=1)
def times_of(name: str, shape: str) -> dict[str, list[float]]:
    return in_turns(calls_of(name, shape))


def logits_of(outputs: dict[str, Any]) -> Tensor:
    """Logits, joined as by networks.joined."""
    named = outputs if len(outputs) == 1 else {name: y for name, y in outputs.items() if name.endswith("logits")}
    return torch.cat([torch.from_numpy(y).flatten() for y in named.values()])


@pytest.mark.prepared(by=file)
@pytest.mark.row(key=lambda name, shape, provider: Key(name, shape, "inference", provider))
@pytest.mark.parametrize(("name", "shape", "provider"), ROWS)
def test_deploy(name: str, shape: str, provider: str, measure: Callable) -> None:
    if provider in PEERS:
        pytest.importorskip(provider)
    wanted, bound = expected(name, shape).flatten(), INT8_BOUND if provider == INT8 else LOGITS_BOUND
    calls = calls_of(name, shape)
    measure(
        calls[provider],
        lambda outputs: assert_agrees("logits", logits_of(outputs), wanted, bound),
        unit=("images", len(inputs_of(name, shape)[0].flatten(0, -4))),
        timed=(lambda: times_of(name, shape)[provider]) if len(calls) > 1 else None,
    )


@pytest.mark.prepared(by=lambda provider: None if provider.startswith("mtlkit") else Frozen("mbdi"))
@pytest.mark.row(key=functools.partial(Key, "mbdi", "busi_224", "inference"))
@pytest.mark.parametrize("provider", ["mtlkit-optimized", "torch-compile-frozen"])
def test_in_pytorch(provider: str, measure: Callable) -> None:
    if provider == "mtlkit-optimized":
        inputs = given("mbdi", False)
        model, backend = mtlkit.optimize(network("mbdi").eval(), example=inputs), "auto"
    else:
        (model, inputs), backend = frozen("mbdi"), "torch"
    with mtlkit.use_backend(backend):
        measure(
            lambda: infer(model, *inputs),
            lambda logits: assert_agrees("logits", logits, expected("mbdi", "busi_224"), LOGITS_BOUND),
            unit=("images", 1),
            compiles=provider == "torch-compile-frozen",
        )
