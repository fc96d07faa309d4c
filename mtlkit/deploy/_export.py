"""`mtlkit.export`: traces a network, translates it to ONNX, rewrites the graph, and compares it with PyTorch."""

import copy
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from mtlkit import __version__, ops
from mtlkit._extras import check_installed
from mtlkit._files import check_new, json_text, written_whole
from mtlkit.deploy import _direct, _modules, _nodes
from mtlkit.deploy._calibration import Calibration
from mtlkit.deploy._example import example_of, input_names, named_outputs
from mtlkit.deploy._library import FACTS, FORMAT, VERSION, library_path, open_session
from mtlkit.testing import relative_error

if TYPE_CHECKING:
    import onnx_ir
    from torch.export import ExportedProgram

LIMIT = 1e-4  # on the relative error of each output in the 2-norm
STEPS = 32, 64  # how much larger the images of the second comparison are
LAST_DIMENSIONS = "height", "width"
IR_VERSION = 9  # the latest that ONNX Runtime 1.17 reads


@dataclass(frozen=True)
class Exported:
    """The file that `export` wrote.

    Args:
        path: path of the file.
        inputs: shape of each input by name: an int for a fixed size, a name for one that may differ between calls.
        outputs: shape of each output by name, in the order of the outputs; sizes as in `inputs`.
        nodes: number of nodes in the graph.
        error: largest relative error of an output against PyTorch, in the 2-norm.
        calibration: images that calibrated a file in 8 bits; None for a file in float32.

    Example:
        >>> import mtlkit
        >>> mtlkit.deploy.Exported("net.onnx", {"images": ("batch", 3, "height", "width")}, {}, 380, 2e-7).nodes
        380
    """

    path: Path
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]
    nodes: int
    error: float
    calibration: Calibration | None = None


def export(
    model: nn.Module,
    path: str | Path,
    *,
    example: Tensor | Sequence[Tensor] | None = None,
    plain: bool = False,
    int8: Iterable[Tensor | Sequence[Tensor]] | None = None,
    float32: str | Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Exported:
    """Writes a network as an ONNX file, for inference in float32 on a CPU without PyTorch.

    Scans, their convolutions and norms, and levels of task interaction become nodes of the domain "mtlkit". To run
    them, ONNX Runtime loads the library of `mtlkit.deploy.library_path()`. Batch, height and width may differ between
    calls wherever the network allows it. Before the file gets its name, ONNX Runtime runs it at two sizes, and its
    outputs must agree with PyTorch's. The model does not change: a copy in eval mode is exported.

    Args:
        model: a network of mtlkit, or one whose layers `accelerate` replaced.
        path: the file to write.
        example: input of the model, one tensor or several; may be None for networks of mtlkit. Its values do not
            matter; the network must accept its sizes.
        plain: whether to write only standard operators, for engines that cannot load mtlkit's library. Such a file is
            slower and larger, and accepts only the height and width of the example.
        int8: batches that calibrate a file in 8 bits, each one tensor or several, from images like those of later use.
            Scans, task interaction, vectors and the last convolutions stay in float32. The outputs differ from
            PyTorch's by a few per cent, so evaluate the file on other images.
        float32: with `int8`, where to write the network in float32 as well, which takes half the time of two exports.
        metadata: more entries for the metadata of the file; values that JSON can hold.
        force: whether to replace an existing file.

    Returns:
        The shapes and number of nodes of the file, and its error.

    Raises:
        TypeError: the model is not a module, or the example or a batch contains something other than tensors.
        ValueError: `int8` has no batch, or one that the model does not accept; `float32` is given without `int8`; a
            parameter is not float32; the example is missing and the model is not a network of mtlkit; the model cannot
            be traced, has an operator without a node, or gives other results in ONNX Runtime.
        ExistsError: a file exists, and `force` is False.
        DataError: the file cannot be written.
        FileNotFoundError: mtlkit was installed without its native part.
        ImportError: onnx, onnxscript or onnxruntime is not installed.

    Example:
        >>> import tempfile, mtlkit
        >>> network = mtlkit.models.create_model("medmamba_t", num_classes=2, depths=(1,), dims=(16,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = mtlkit.export(network, f"{folder}/net.onnx")
        >>> found.inputs["images"], found.error < 1e-5
        (('batch', 3, 'height', 'width'), True)
    """
    check_installed("mtlkit.export", "deploy")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    check_new(path, force=force)
    if float32 is not None:
        if int8 is None or Path(float32).absolute() == Path(path).absolute():
            raise ValueError("float32: expected int8 and another path; without int8, path is the file in float32")
        check_new(float32, force=force)
    if not plain:
        library_path()  # raises if it is not installed
    _check_dtypes(model)
    twin = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    given = example_of(twin, example)
    facts = {
        **(metadata or {}),
        "mtlkit": __version__,
        "format": FORMAT,
        "network": type(model).__name__,
        "operators": 0 if plain else VERSION,
        "weights": _hash_of(twin),
    }
    with torch.no_grad():
        exact = [named_outputs(twin(*given))]
        program = _traced(twin, given, plain)
        file = _translated(program, input_names(twin)[: len(given)], list(exact[0]), plain)
        file.producer_name, file.producer_version = "mtlkit", __version__
        file.metadata_props[FACTS] = json_text(facts)

        def write(draft: Path, name: str | Path) -> float:
            draft.write_bytes(_bytes_of(file))
            error = _compare(twin, given, exact, file, draft, plain)
            if not error <= LIMIT:
                raise ValueError(
                    f"{name}: expected ONNX Runtime to give what PyTorch gives, got a relative error of {error:.1e}; "
                    "nothing was written"
                )
            return error

        with ExitStack() as drafts:
            draft = drafts.enter_context(written_whole(path, force=force))
            if float32 is not None:
                write(drafts.enter_context(written_whole(float32, force=force)), float32)
            if int8 is not None:
                from mtlkit.deploy import _int8

                _int8.prepare(file)
            error = write(draft, path)
            nodes, calibration = len(file.graph), None
            if int8 is not None:
                nodes, calibration = _quantize(file, draft, int8, facts)
                error = _compare(twin, given, exact, file, draft, plain)
                if not math.isfinite(error):
                    raise ValueError(
                        f"{path}: expected an 8-bit network with finite outputs, got NaN or inf; nothing was written"
                    )
    graph = file.graph
    return Exported(Path(path), _shapes(graph.inputs), _shapes(graph.outputs), nodes, error, calibration)


def _quantize(
    file: "onnx_ir.Model", draft: Path, batches: Iterable[Tensor | Sequence[Tensor]], facts: Mapping[str, Any]
) -> tuple[int, Calibration]:
    """Rewrites the draft in 8 bits; returns the number of its nodes and the calibration."""
    import onnx

    from mtlkit.deploy import _int8

    proto, calibration = _int8.quantize(onnx.load(draft), [str(value.name) for value in file.graph.inputs], batches)
    facts = {**facts, "int8": {"images": calibration.images, "sha256": calibration.sha256}}
    for entry in proto.metadata_props:
        if entry.key == FACTS:
            entry.value = json_text(facts)
    draft.write_bytes(proto.SerializeToString())
    return len(proto.graph.node), calibration


def _check_dtypes(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(f"model: expected float32, got {tensor.dtype} in {name}; model.float() converts it")


def _hash_of(model: nn.Module) -> str:
    """Returns the SHA-256 of the names and values of the state dict."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


# --- tracing ----------------------------------------------------------------------------------------------------------


def _traced(model: nn.Module, given: tuple[Tensor, ...], plain: bool) -> "ExportedProgram":
    sizes = tuple(dict.fromkeys(range(1 if plain else one.dim()), Dim.AUTO) for one in given)
    if not plain:
        model = copy.deepcopy(model)
        _modules.make_whole(model)
    names = iter(input_names(model))
    # dynamic shapes by name: torch.export cannot match them by position if forward takes *arguments
    with ops.use_backend("torch" if plain else "cpu"):
        try:
            program = torch.export.export(model, given, dynamic_shapes=dict(zip(names, sizes, strict=False)))
        except Exception as error:
            raise ValueError(f"model: cannot be traced by torch.export ({_first_line(error)})") from error
    served = {} if plain else _nodes.translations()
    targets = {node.target for node in program.graph.nodes if getattr(node.target, "namespace", None) == "mtlkit"}
    if missing := sorted(str(target).removesuffix(".default") for target in targets - set(served)):
        raise ValueError(
            f"model: expected operators that have a node, got {', '.join(missing)}; plain=True writes them as standard "
            "operators"
        )
    return program


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _translated(program: "ExportedProgram", inputs: list[str], outputs: list[str], plain: bool) -> "onnx_ir.Model":
    from mtlkit.deploy import _graph

    try:
        found = _onnx_program(program, {} if plain else _nodes.translations(), inputs, outputs)
        with _graph.kept_from_rounding(found.model):
            found.optimize()
    except Exception as error:
        raise ValueError(f"model: cannot be written as ONNX ({_first_line(error.__cause__ or error)})") from error
    file: Any = found.model
    if not plain:
        _graph.rewrite(file)
    _name_dimensions(file)
    file.ir_version = min(file.ir_version, IR_VERSION)
    return file


def _onnx_program(program: "ExportedProgram", own: dict[Any, Any], inputs: list[str], outputs: list[str]) -> Any:
    """Translates a program as it is if that is possible, else after a decomposition, which takes most of the time."""

    def translate(program: Any, table: dict[Any, Any]) -> Any:
        names = {"input_names": inputs, "output_names": outputs}
        options = {"dynamo": True, "verbose": False, "optimize": False, "custom_translation_table": table}
        return torch.onnx.export(program, **names, **options)

    with _direct.prepared(program, set(own)) as direct, suppress(torch.onnx.errors.OnnxExporterError):
        if direct:  # raises if an operator has no translation
            whole = copy.copy(program)
            whole.run_decompositions = lambda *_, **__: whole  # type: ignore[method-assign]
            return translate(whole, own | _direct.translations())
    return translate(program, own)


def _name_dimensions(file: Any) -> None:
    """Names the dynamic dimensions (batch, height, width)."""
    import onnx_ir as ir

    names: dict[str | None, str] = {}
    for value in file.graph.inputs:
        # torch writes sizes that its tracer found to be constant as names such as "3"
        value.shape = ir.Shape(
            [d if isinstance(d, int) or not d.value.isdigit() else int(d.value) for d in value.shape]
        )
        free = [d.value for d in value.shape if not isinstance(d, int)]
        sides = [d for i, d in enumerate(value.shape) if i > 0 and not isinstance(d, int)]
        for i, symbol in enumerate(free):
            side = i - (len(free) - len(sides))
            name = "batch" if side < 0 else LAST_DIMENSIONS[side] if len(sides) == 2 else f"{value.name}_{side}"
            names.setdefault(symbol, name)
    for value in (*file.graph.inputs, *file.graph.outputs):
        named = [d if isinstance(d, int) else names.get(d.value) for d in value.shape]
        value.shape = ir.Shape([f"{value.name}_{i}" if d is None else d for i, d in enumerate(named)])


def _shapes(values: Any) -> dict[str, tuple[int | str, ...]]:
    return {v.name: tuple(d if isinstance(d, int) else d.value for d in v.shape) for v in values}


def _bytes_of(file: Any) -> bytes:
    """Returns the content of a file without inner shapes, which ONNX Runtime infers."""
    import onnx_ir as ir

    inner = [value for node in file.graph for value in node.outputs if not value.is_graph_output()]
    shapes = [value.shape for value in inner]
    for value in inner:
        value.shape = None
    try:
        proto = ir.to_proto(file)
        for value, shape in zip(inner, shapes, strict=True):
            value.shape = shape
        return proto.SerializeToString()
    except ValueError as error:  # of protobuf
        raise ValueError(f"model: expected less than 2 GB, which a file of ONNX holds ({_first_line(error)})") from None


# --- comparison -------------------------------------------------------------------------------------------------------


def _compare(
    model: nn.Module, given: tuple[Tensor, ...], exact: list[dict[str, Tensor]], file: Any, path: Path, plain: bool
) -> float:
    """Returns the largest relative error of an output, for the example and for a larger one if sizes are dynamic.

    `exact` has PyTorch's outputs for the example; those for the other one are appended once known.
    """
    session: Any = _plain_session(path) if plain else open_session(path, threads=torch.get_num_threads())
    error = 0.0
    for i, inputs in enumerate((given, _other(given, file.graph.inputs))):
        named = {v.name: one.numpy() for v, one in zip(file.graph.inputs, inputs, strict=True)}
        try:
            found: list[Any] = session.run(None, named)
        except Exception as failed:  # ONNX Runtime's errors derive directly from Exception
            sizes = ", ".join(str(tuple(one.shape)) for one in inputs)
            raise ValueError(f"model: ONNX Runtime cannot run it for {sizes} ({_first_line(failed)})") from failed
        if i == len(exact):
            exact.append(named_outputs(model(*inputs)))
        for got, other in zip(found, exact[i].values(), strict=True):
            one = relative_error(torch.from_numpy(got), other) if got.shape == other.shape else math.inf
            error = max(error, math.inf if math.isnan(one) else one)
    return error


def _plain_session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _other(given: tuple[Tensor, ...], inputs: Any) -> tuple[Tensor, ...]:
    """Returns the example as one image, tiled to a larger size in the dynamic dimensions."""
    found = []
    for one, value in zip(given, inputs, strict=True):
        for i, dimension in enumerate(value.shape):
            if not isinstance(dimension, int):
                steps = dict(zip(LAST_DIMENSIONS, STEPS, strict=True))
                size = 1 if dimension.value == "batch" else one.shape[i] + steps.get(dimension.value, STEPS[0])
                one = one.index_select(i, torch.arange(size) % one.shape[i])
        found.append(one)
    return tuple(found)
