"""From a network to an ONNX file: traced, translated, rewritten, compared with PyTorch, and only then named."""

import copy
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from mtlkit import __version__, ops
from mtlkit._extras import check_installed
from mtlkit._files import check_new, json_text, written_whole
from mtlkit.deploy import _modules, _nodes
from mtlkit.deploy._calibration import Calibration
from mtlkit.deploy._example import example_of, input_names, named_outputs
from mtlkit.deploy._library import FACTS, FORMAT, VERSION, library_path, open_session
from mtlkit.testing import relative_error

if TYPE_CHECKING:
    import onnx_ir
    from torch.export import ExportedProgram

LIMIT = 1e-4  # of the relative error in the 2-norm of each output
STEPS = 32, 64  # by which those of the second comparison are larger
LAST_DIMENSIONS = "height", "width"
IR_VERSION = 9  # of the file, which ONNX Runtime 1.17 reads


@dataclass(frozen=True)
class Exported:
    """What `export` has written.

    Args:
        path: the file.
        inputs: by name, the shape: numbers, and names of what may differ from call to call.
        outputs: by name, in their order, likewise.
        nodes: how many the graph has.
        error: the largest relative error of an output, against PyTorch.
        calibration: what the file in 8 bits was calibrated with; None of one in float32.

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
    metadata: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Exported:
    """Writes a network as an ONNX file, for inference in float32 on a CPU without PyTorch.

    Scans, their convolutions and norms, and levels of task interaction become nodes of the domain "mtlkit", for which
    ONNX Runtime loads the library of `mtlkit.deploy.library_path()`. Batch, height and width stay open, as far as the
    network leaves them open. Before the file gets its name, ONNX Runtime runs it at two sizes, and what it gives must
    be what PyTorch gives. The model itself stays as it is; a copy is exported in eval mode.

    Args:
        model: a network of mtlkit, or one that `accelerate` has given mtlkit's layers.
        path: the file to write.
        example: what the model takes, a tensor or several; may be None for networks of mtlkit. Its numbers do not
            matter, its sizes must be such as the network serves.
        plain: writes standard operators alone, for engines without mtlkit's library: slower, larger, and of the
            example's height and width only.
        int8: batches of what the model takes, a tensor or several each, of images like those to come. The file then
            computes in 8 bits, with the ranges that these show; scans, task interaction, vectors and the last
            convolutions stay in float32. It differs from PyTorch by some per cent: judge it on other images.
        metadata: further facts to write into the file, as JSON has them.
        force: replaces the file if it exists.

    Returns:
        Shapes, nodes, and the error that was found.

    Raises:
        TypeError: the model is not a module, or the example or a batch has what is not a tensor.
        ValueError: no batch for int8, or one that the model does not take; parameters in another dtype than float32, no
            example where one is needed, or a model that cannot be traced, has operators without a node, or gives other
            results in ONNX Runtime.
        ExistsError: the file exists, and `force` is not given.
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
    if not plain:
        library_path()  # raises where there is none
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
        named = named_outputs(twin(*given))
        program = _traced(twin, given, plain)
        file = _translated(program, input_names(twin)[: len(given)], list(named), plain, int8 is not None)
        file.producer_name, file.producer_version = "mtlkit", __version__
        file.metadata_props[FACTS] = json_text(facts)
        with written_whole(path, force=force) as draft:
            draft.write_bytes(_bytes_of(file))
            error = _compare(twin, given, file, draft, plain)
            if not error <= LIMIT:
                raise ValueError(
                    f"{path}: expected ONNX Runtime to give what PyTorch gives, got a relative error of {error:.1e}; "
                    "nothing was written"
                )
            nodes, calibration = len(file.graph), None
            if int8 is not None:
                nodes, calibration = _quantize(file, draft, int8, facts)
                error = _compare(twin, given, file, draft, plain)
                if not math.isfinite(error):
                    raise ValueError(f"{path}: expected numbers in 8 bits, got some that are none; nothing was written")
    graph = file.graph
    return Exported(Path(path), _shapes(graph.inputs), _shapes(graph.outputs), nodes, error, calibration)


def _quantize(
    file: "onnx_ir.Model", draft: Path, batches: Iterable[Tensor | Sequence[Tensor]], facts: Mapping[str, Any]
) -> tuple[int, Calibration]:
    """Writes the file in 8 bits; how many nodes it has, and what it was calibrated with."""
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
    """SHA-256 of the state dict: names and numbers."""
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
    # by name, where torch.export does not see through a forward of *arguments
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


def _translated(
    program: "ExportedProgram", inputs: list[str], outputs: list[str], plain: bool, int8: bool
) -> "onnx_ir.Model":
    from mtlkit.deploy import _graph

    try:
        found = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            optimize=False,
            input_names=inputs,
            output_names=outputs,
            custom_translation_table={} if plain else _nodes.translations(),
        )
        assert found is not None  # as dynamo=True has it
        with _graph.kept_from_rounding(found.model):
            found.optimize()
    except Exception as error:
        raise ValueError(f"model: has no form in ONNX ({_first_line(error.__cause__ or error)})") from error
    file: Any = found.model
    if not plain:
        _graph.rewrite(file)
    if int8:
        from mtlkit.deploy import _int8

        _int8.prepare(file)
    _name_dimensions(file)
    file.ir_version = min(file.ir_version, IR_VERSION)
    return file


def _name_dimensions(file: Any) -> None:
    """Calls what stays open by its meaning, and forgets the shapes in between, which ONNX Runtime finds by itself."""
    import onnx_ir as ir

    names: dict[str | None, str] = {}
    for value in file.graph.inputs:
        # torch writes numbers that its tracer found out as names
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
    for node in file.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None


def _shapes(values: Any) -> dict[str, tuple[int | str, ...]]:
    return {v.name: tuple(d if isinstance(d, int) else d.value for d in v.shape) for v in values}


def _bytes_of(file: Any) -> bytes:
    import onnx_ir as ir

    try:
        return ir.to_proto(file).SerializeToString()
    except ValueError as error:  # of protobuf
        raise ValueError(f"model: expected less than 2 GB, which a file of ONNX holds ({_first_line(error)})") from None


# --- comparison -------------------------------------------------------------------------------------------------------


def _compare(model: nn.Module, given: tuple[Tensor, ...], file: Any, path: Path, plain: bool) -> float:
    """The largest relative error of an output, with the example and with a larger one, if sizes are open."""
    session: Any = _plain_session(path) if plain else open_session(path, threads=torch.get_num_threads())
    error = 0.0
    for inputs in (given, _other(given, file.graph.inputs)):
        named = {v.name: one.numpy() for v, one in zip(file.graph.inputs, inputs, strict=True)}
        try:
            found: list[Any] = session.run(None, named)
        except Exception as failed:  # of ONNX Runtime's own kinds, which derive from it
            sizes = ", ".join(str(tuple(one.shape)) for one in inputs)
            raise ValueError(f"model: ONNX Runtime cannot run it for {sizes} ({_first_line(failed)})") from failed
        for got, exact in zip(found, named_outputs(model(*inputs)).values(), strict=True):
            one = relative_error(torch.from_numpy(got), exact) if got.shape == exact.shape else math.inf
            error = max(error, math.inf if math.isnan(one) else one)
    return error


def _plain_session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def _other(given: tuple[Tensor, ...], inputs: Any) -> tuple[Tensor, ...]:
    """One image, larger where sizes are open: the example, repeated."""
    found = []
    for one, value in zip(given, inputs, strict=True):
        for i, dimension in enumerate(value.shape):
            if not isinstance(dimension, int):
                steps = dict(zip(LAST_DIMENSIONS, STEPS, strict=True))
                size = 1 if dimension.value == "batch" else one.shape[i] + steps.get(dimension.value, STEPS[0])
                one = one.index_select(i, torch.arange(size) % one.shape[i])
        found.append(one)
    return tuple(found)
