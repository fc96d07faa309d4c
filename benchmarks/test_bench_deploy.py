"""Networks as files of ONNX: mtlkit's, and plain ones in ONNX Runtime and OpenVINO, one image on two threads.

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
ROWS = [
    *((name, "busi_224", provider) for name in ("mbdi", "btinet") for provider in ("mtlkit-onnx", *PEERS)),
    *((name, NETWORKS[name].inference_shape, "mtlkit-onnx") for name in ("medmamba_t", "vmamba_t_s1l8", "hybrid_vssm")),
    *(("medmamba_t", SMALL, provider) for provider in ("mtlkit-onnx", *PEERS)),
]
LOGITS_BOUND = 2e-5  # other sums in another order than PyTorch's, through some hundred convolutions
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
def file_of(name: str, shape: str, plain: bool) -> Path:
    path = Path(FOLDER.name) / f"{name}-{shape}{'-plain' if plain else ''}.onnx"
    mtlkit.export(network(name).eval(), path, example=inputs_of(name, shape), plain=plain)
    return path


def runner(name: str, shape: str, provider: str) -> Callable[..., list[Any]]:
    """What runs a network on arrays by the names of its inputs, and gives its outputs as the file has them."""
    path = file_of(name, shape, provider in PEERS)
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
    arrays = dict(zip(mtlkit.models.network.takes(network(name)), (t.numpy() for t in inputs), strict=False))
    wanted = expected(name, shape).flatten()
    measure(
        lambda: run(arrays),
        lambda outputs: assert_agrees("logits", logits_of(outputs), wanted, LOGITS_BOUND),
        unit=("images", len(inputs[0].flatten(0, -4))),
    )
