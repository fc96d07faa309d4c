"""Networks outside of PyTorch, one image on two threads: as files of ONNX, mtlkit's in float32 and in 8 bits, and plain
ones in ONNX Runtime and OpenVINO; and what `mtlkit.optimize` makes of a network that stays, beside torch.compile.

MedMamba-T's scans are unrolled in a plain file, which takes minutes to write: its peers are measured at 64 x 64.
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import pytest
import torch
import torch.nn.functional as F
from measuring import Key
from test_bench_models import NETWORKS, assert_agrees, exact, frame, given, infer, network
from torch import Tensor

import mtlkit
from mtlkit import deploy

SMALL = "busi_64"
PEERS = ("onnxruntime", "openvino")
INT8 = "mtlkit-onnx-int8"
ROWS = [
    *((name, "busi_224", provider) for name in ("mbdi", "btinet") for provider in ("mtlkit-onnx", *PEERS)),
    ("mbdi", "busi_224", INT8),
    *((name, NETWORKS[name].inference_shape, "mtlkit-onnx") for name in ("medmamba_t", "vmamba_t_s1l8", "hybrid_vssm")),
    *(("medmamba_t", SMALL, provider) for provider in ("mtlkit-onnx", *PEERS)),
]
LOGITS_BOUND = 2e-5  # other sums in another order than PyTorch's, through some hundred convolutions
INT8_BOUND = 0.2  # of a network with random weights, which no training has made robust
FOLDER = tempfile.TemporaryDirectory(prefix="mtlkit-bench-")


def inputs_of(name: str, shape: str) -> tuple[Tensor, ...]:
    if shape != SMALL:
        return given(name, False)
    return (F.interpolate(frame(), (64, 64), mode="bilinear", antialias=True, align_corners=False),)


@functools.cache
def expected(name: str, shape: str) -> Tensor:
    if shape != SMALL:
        return exact(name, False)[0]
    with mtlkit.use_backend("torch"):
        return infer(network(name).double().eval(), *(t.double() for t in inputs_of(name, shape)))


@functools.cache
def names_of(name: str) -> tuple[str, ...]:
    """Of what a network takes."""
    return tuple(mtlkit.models.network.takes(network(name)))


@functools.cache
def file_of(name: str, shape: str, kind: str = "") -> Path:
    """Kind "plain", "int8" or ""."""
    path, example = Path(FOLDER.name) / f"{name}-{shape}-{kind}.onnx", inputs_of(name, shape)
    options = {"plain": kind == "plain", "int8": [example] if kind == "int8" else None}
    mtlkit.export(network(name).eval(), path, example=example, **options)
    return path


def runner(name: str, shape: str, provider: str) -> Callable[..., list[Any]]:
    """What runs a network on arrays by the names of its inputs, and gives its outputs as the file has them."""
    path = file_of(name, shape, "plain" if provider in PEERS else "int8" if provider == INT8 else "")
    if provider == "openvino":
        openvino = pytest.importorskip("openvino")
        options = {"INFERENCE_NUM_THREADS": machine.THREADS, "PERFORMANCE_HINT": "LATENCY"}
        # else it computes in bfloat16 where the processor can
        compiled = openvino.Core().compile_model(path, "CPU", options | {"INFERENCE_PRECISION_HINT": "f32"})
        names = [one.get_any_name() for one in compiled.outputs]
        return lambda arrays: dict(zip(names, compiled(arrays).values(), strict=True))
    if provider == "onnxruntime":
        onnxruntime = pytest.importorskip("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = machine.THREADS
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    else:
        session = deploy.open_session(path, threads=machine.THREADS)
    names = [one.name for one in session.get_outputs()]
    return lambda arrays: dict(zip(names, session.run(None, arrays), strict=True))


def logits_of(outputs: dict[str, Any]) -> Tensor:
    """As test_bench_models joins them."""
    named = outputs if len(outputs) == 1 else {name: y for name, y in outputs.items() if name.endswith("logits")}
    return torch.cat([torch.from_numpy(y).flatten() for y in named.values()])


@pytest.mark.row(key=lambda name, shape, provider: Key(name, shape, "inference", provider))
@pytest.mark.parametrize(("name", "shape", "provider"), ROWS)
def test_deploy(name: str, shape: str, provider: str, measure: Callable) -> None:
    run, inputs = runner(name, shape, provider), inputs_of(name, shape)
    arrays = dict(zip(names_of(name), (t.numpy() for t in inputs), strict=False))
    wanted, bound = expected(name, shape).flatten(), INT8_BOUND if provider == INT8 else LOGITS_BOUND
    measure(
        lambda: run(arrays),
        lambda outputs: assert_agrees("logits", logits_of(outputs), wanted, bound),
        unit=("images", len(inputs[0].flatten(0, -4))),
    )


@pytest.mark.row(key=functools.partial(Key, "mbdi", "busi_224", "inference"))
@pytest.mark.parametrize("provider", ["mtlkit-optimized", "torch-compile-frozen"])
def test_in_pytorch(provider: str, measure: Callable) -> None:
    model, inputs = network("mbdi").eval(), given("mbdi", False)
    if provider == "mtlkit-optimized":
        model, backend = mtlkit.optimize(model, example=inputs), "auto"
    else:
        model, backend = model.to(memory_format=torch.channels_last), "torch"
        inputs = tuple(t.contiguous(memory_format=torch.channels_last) for t in inputs)
        model = torch.compile(model, options={"freezing": True})
    with mtlkit.use_backend(backend):
        measure(
            lambda: infer(model, *inputs),
            lambda logits: assert_agrees("logits", logits, expected("mbdi", "busi_224"), LOGITS_BOUND),
            unit=("images", 1),
            compiles=provider == "torch-compile-frozen",
        )
