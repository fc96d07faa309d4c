"""Small ONNX files, and sessions of ONNX Runtime with mtlkit's library."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor

from mtlkit.deploy import library_path


def session_of(model: onnx.ModelProto, threads: int = 2) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are reported twice otherwise
    options.enable_cpu_mem_arena = False  # separate allocations let a sanitizer find their ends
    options.register_custom_ops_library(library_path())
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def model_of(
    nodes: Sequence[Any], inputs: Mapping[str, int], outputs: Sequence[str], constants=(), integers: Sequence[str] = ()
) -> onnx.ModelProto:
    """A file with these nodes; each input is given by its number of dimensions, all dynamic."""
    given = [
        helper.make_tensor_value_info(
            name, TensorProto.INT32 if name in integers else TensorProto.FLOAT, [f"{name}{i}" for i in range(rank)]
        )
        for name, rank in inputs.items()
    ]
    found = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(list(nodes), "test", given, found, list(constants))
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("mtlkit", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def node_session(kind: str, inputs: Sequence[Tensor | None], outputs: int, threads: int = 2, **attributes: Any):
    """A session for one node of mtlkit; None for omitted inputs."""
    names = ["" if t is None else f"x{i}" for i, t in enumerate(inputs)]
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(kind, names, results, domain="mtlkit", **attributes)
    ranks = {name: t.dim() for name, t in zip(names, inputs, strict=True) if t is not None}
    integers = [name for name, t in zip(names, inputs, strict=True) if t is not None and t.dtype == torch.int32]
    return session_of(model_of([node], ranks, results, integers=integers), threads)


def run(session: onnxruntime.InferenceSession, inputs: Sequence[Tensor | None]) -> list[Tensor]:
    given = {f"x{i}": np.ascontiguousarray(t.numpy()) for i, t in enumerate(inputs) if t is not None}
    return [torch.from_numpy(y) for y in session.run(None, given)]


def run_node(kind: str, inputs: Sequence[Tensor | None], outputs: int = 1, threads: int = 2, **attributes: Any):
    return run(node_session(kind, inputs, outputs, threads, **attributes), inputs)
