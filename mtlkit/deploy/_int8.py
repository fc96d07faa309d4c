"""Static quantisation with ONNX Runtime's tools: convolutions and the operators between them run in 8 bits.

Activations are unsigned, with the range that calibration found. Weights are signed, with one scale per output channel,
and use only 7 bits, because CPUs without VNNI add pairs of products in 16 bits. Scans, levels of task interaction,
vectors (everything after a mean over all pixels) and the last convolution before an output stay in float32.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from mtlkit.deploy._calibration import Calibration, Reader
from mtlkit.deploy._graph import Rewriting, _affine, _array
from mtlkit.deploy._library import library_path

if TYPE_CHECKING:
    import onnx

KINDS = "Conv", "MatMul", "Add", "Mul", "Sigmoid", "Relu", "Clip", "Concat", "DepthToSpace", "Slice", "Resize"
KINDS += "MaxPool", "AveragePool", "GlobalAveragePool"
POOLS = "GlobalAveragePool", "ReduceMean"
PIXELS = (2, 3), (-2, -1), (-1, -2)
VECTORWISE = "Conv", "Sigmoid", "Relu", "Mul", "Add", "Clip", "Flatten", "HardSigmoid"


def prepare(model: ir.Model) -> None:
    """Rewrites a graph, with the same result, so that more of it can run in 8 bits. Needs the shapes of values."""
    r = Rewriting(model, "mtlkit_int8")
    for node in list(model.graph):
        if node.op_type == "ReduceMean":
            _pool(r, node)
        elif node.op_type == "BatchNormalization":
            _scale_by_convolution(r, node)
    r.clean()
    for i, node in enumerate(model.graph):  # the tools identify nodes by name
        node.name = f"{node.op_type}_{i}"


def _pool(r: Rewriting, node: ir.Node) -> None:
    """Replaces a mean over the pixels by GlobalAveragePool, which can run in 8 bits."""
    axes = _array(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None or tuple(axes.flatten()) not in PIXELS or _rank(node.inputs[0]) != 4:
        return
    y = r.insert(node, "GlobalAveragePool", [node.inputs[0]])
    keep = node.attributes.get("keepdims")
    if keep is not None and not keep.as_int():
        y = r.insert(node, "Flatten", [y], axis=1)
    r.replace(node.outputs[0], y)


def _scale_by_convolution(r: Rewriting, node: ir.Node) -> None:
    """Replaces a batch norm of a map by a depthwise 1 x 1 convolution."""
    if _rank(node.inputs[0]) != 4 or any(_array(value) is None for value in node.inputs[1:5]):
        return
    scale, shift = _affine(node)
    weight, bias = scale.astype(np.float32)[:, None, None, None], shift.astype(np.float32)
    given = node.inputs[0], r.constant(weight), r.constant(bias)
    r.replace(node.outputs[0], r.insert(node, "Conv", given, group=len(scale), kernel_shape=(1, 1)))


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


# --- quantisation -----------------------------------------------------------------------------------------------------


def quantize(
    file: "onnx.ModelProto", inputs: Sequence[str], batches: Iterable[Tensor | Sequence[Tensor]]
) -> tuple["onnx.ModelProto", Calibration]:
    """Returns a file in 8 bits and its calibration.

    Args:
        file: a file in float32, after `prepare`.
        inputs: names of its inputs.
        batches: inputs of the network, one tensor or several per batch.

    Raises:
        TypeError: a batch contains something other than tensors.
        ValueError: there is no batch, or one that the network does not accept.
    """
    import onnx
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "float.onnx"
        inferred = onnx.shape_inference.infer_shapes(file)
        add_pre_process_metadata(inferred)  # so that the tools do not warn of missing preprocessing
        onnx.save(inferred, path)
        reader = Reader(inputs, batches)
        ranges = _ranges(path, reader)
        quantizer = QDQQuantizer(
            inferred,
            per_channel=True,
            reduce_range=True,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=_in_float(inferred),
            op_types_to_quantize=list(KINDS),
            extra_options={},
        )
        quantizer.quantize_model()
        found = quantizer.model.model
    for entry in [one for one in found.metadata_props if one.key.startswith("onnx.")]:
        found.metadata_props.remove(entry)
    return found, reader.calibration()


def _ranges(path: Path, reader: Any) -> Any:
    """Returns the minimum and maximum of each tensor over all batches."""
    import onnxruntime
    from onnxruntime.quantization import MinMaxCalibrater

    class Calibrater(MinMaxCalibrater):
        def create_inference_session(self) -> None:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = torch.get_num_threads()
            options.register_custom_ops_library(library_path())
            self.infer_session = onnxruntime.InferenceSession(
                self.augmented_model_path, options, providers=["CPUExecutionProvider"]
            )

    calibrater = Calibrater(path, list(KINDS), augmented_model_path=str(path.with_name("augmented.onnx")))
    calibrater.augment_graph()
    calibrater.create_inference_session()
    try:
        calibrater.collect_data(reader)
    except (TypeError, ValueError):
        raise
    except Exception as error:  # ONNX Runtime's errors derive directly from Exception
        words = " ".join(str(error).split()).rpartition(" : ")[2][:200]
        raise ValueError(f"int8: expected batches that the network takes, but one does not run ({words})") from error
    return calibrater.compute_data()


def _in_float(file: "onnx.ModelProto") -> list[str]:
    """Returns the names of the nodes that compute vectors, and of those from the last convolution to each output."""
    constants = {one.name for one in file.graph.initializer} | {""}
    makers = {name: node for node in file.graph.node for name in node.output}
    vectors, found = set(), []
    for node in file.graph.node:
        if node.op_type in POOLS:
            vectors.update(node.output)
        elif node.op_type in VECTORWISE and all(one in vectors or one in constants for one in node.input):
            vectors.update(node.output)
            found.append(node.name)
        elif node.op_type == "Concat" and any(one in vectors for one in node.input):
            vectors.update(node.output)  # features differ in range: one scale would round the small ones to zero
            found.append(node.name)
    for output in file.graph.output:
        node = makers.get(output.name)
        while node is not None and node.op_type not in ("Conv", *POOLS) and len(given := _given(node, constants)) == 1:
            found.append(node.name)
            node = makers.get(given[0])
        if node is not None and node.op_type == "Conv":
            found.append(node.name)
    return list(dict.fromkeys(found))


def _given(node: Any, constants: set[str]) -> list[str]:
    return [name for name in node.input if name not in constants]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the tools' log messages."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
