"""Static quantisation by ONNX Runtime's own tools: convolutions and what lies between them in 8 bits.

Activations are unsigned, with the range that calibration found; weights are signed, with a scale for each output
channel, and 7 bits wide, as CPUs without VNNI add pairs of products in 16 bits. Scans, levels of task interaction,
vectors (what follows a mean over all pixels) and the last convolution of an output stay in float.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
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
    """Rewrites a graph so that more of it can be in 8 bits, with the same result: needs the shapes of values."""
    r = Rewriting(model, "mtlkit_int8")
    for node in list(model.graph):
        if node.op_type == "ReduceMean":
            _pool(r, node)
        elif node.op_type == "BatchNormalization":
            _scale_by_convolution(r, node)
    r.clean()
    for i, node in enumerate(model.graph):  # the tools know nodes by name
        node.name = f"{node.op_type}_{i}"


def _pool(r: Rewriting, node: ir.Node) -> None:
    """A mean over the pixels, by the node that does it in 8 bits."""
    axes = _array(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None or tuple(axes.flatten()) not in PIXELS or _rank(node.inputs[0]) != 4:
        return
    y = r.insert(node, "GlobalAveragePool", [node.inputs[0]])
    keep = node.attributes.get("keepdims")
    if keep is not None and not keep.as_int():
        y = r.insert(node, "Flatten", [y], axis=1)
    r.replace(node.outputs[0], y)


def _scale_by_convolution(r: Rewriting, node: ir.Node) -> None:
    """A batch norm of a map, by a 1 x 1 convolution for each channel."""
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
    """A prepared file in 8 bits.

    Args:
        file: in float32.
        inputs: their names.
        batches: what the network takes, a tensor or several, once for each batch.

    Raises:
        TypeError: a batch that is not made of tensors.
        ValueError: no batch, or one that the network does not take.
    """
    import onnx
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "float.onnx"
        inferred = onnx.shape_inference.infer_shapes(file)
        add_pre_process_metadata(inferred)  # so that the tools do not ask for what has been done
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
    """The least and the greatest number of each tensor, over all batches."""
    import onnxruntime
    from onnxruntime.quantization import MinMaxCalibrater

    class Calibrater(MinMaxCalibrater):
        def create_inference_session(self) -> None:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
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
    except Exception as error:  # of ONNX Runtime's own kinds
        words = " ".join(str(error).split()).rpartition(" : ")[2][:200]
        raise ValueError(f"int8: expected batches that the network takes, but one does not run ({words})") from error
    return calibrater.compute_data()


def _in_float(file: "onnx.ModelProto") -> list[str]:
    """The names of nodes that compute vectors, and of the last convolution of each output."""
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
            vectors.update(node.output)  # of features whose ranges differ: one scale would round the small ones away
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
    """The tools log advice for those who call them."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
