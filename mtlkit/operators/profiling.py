"""What a profiler needs from the operators: their calls, how a backend divides each call, and the work in it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_leaves

from mtlkit import _native
from mtlkit.operators import (
    causal_conv1d,
    depthwise_conv2d,
    directional_scan,
    dwconv_silu,
    norm_gate,
    selective_scan,
    ss2d,
    ss2d_layer,
    ss2d_norm_gate,
)
from mtlkit.operators._backends import has_code
from mtlkit.operators._operator import Operator
from mtlkit.operators.directional_scan import signature as directional
from mtlkit.operators.floors import GPU
from mtlkit.operators.interaction import gating, reduce, scale
from mtlkit.operators.interaction.level import WHOLE
from mtlkit.operators.selective_scan import signature as selective
from mtlkit.operators.ss2d import signature as four_directions

OPERATORS: Mapping[str, Operator] = {
    part.OPERATOR.name: part.OPERATOR
    for part in (
        causal_conv1d,
        depthwise_conv2d,
        directional_scan,
        dwconv_silu,
        norm_gate,
        selective_scan,
        ss2d,
        ss2d_norm_gate,
        reduce,
        scale,
    )
}
GATING, LAYER = "interaction_gating", "ss2d_layer"
BACKWARD = ("backward", "backward_with", "gradient_of_factors")  # of a backend


class Call(NamedTuple):
    """A call of an operator.

    Args:
        operator: name of the operator.
        backend: name of the backend that runs the call.
        inputs: tensors of the call, by the operator's names in the forward pass and in a complete backward pass.
        options: settings of the call.
        grads: gradients of the outputs, in the backward pass.
        backward: whether this is the backward pass.
    """

    operator: str
    backend: str
    inputs: Sequence[Tensor | None]
    options: Any = ()
    grads: Sequence[Tensor | None] = ()
    backward: bool = False

    def nbytes(self, results: Any) -> int:
        """The bytes that must be read and written: inputs, and outputs or the gradients of both."""
        if not self.backward and self.operator in OPERATORS:  # other saved tensors are not strictly needed
            results = results[: OPERATORS[self.operator].outputs]
        return bytes_of(self.inputs, self.grads, results)


def bytes_of(*tensors: Any) -> int:
    """Bytes of all tensors in nested containers."""
    return sum(t.nbytes for t in tree_leaves(tensors) if isinstance(t, Tensor))


# --- watching ---------------------------------------------------------------------------------------------------------

Watch = Callable[[Call, Callable[[], Any]], Any]


class _Watched:
    """A backend that reports its calls."""

    def __init__(self, backend: Any, operator: str, name: str, watch: Watch) -> None:
        self._backend, self._operator, self._name, self._watch = backend, operator, name, watch

    def __getattr__(self, attribute: str) -> Any:
        function = getattr(self._backend, attribute)
        if attribute != "forward" and attribute not in BACKWARD:
            return function

        def watched(*arguments: Any) -> Any:
            return self._watch(self._call(attribute, arguments), lambda: function(*arguments))

        return watched

    def _call(self, attribute: str, arguments: tuple[Any, ...]) -> Call:
        operator, name, backward = self._operator, self._name, attribute != "forward"
        if operator == GATING:
            tensors = [t for t in tree_leaves(arguments[1:]) if isinstance(t, Tensor)]
            return Call(operator, name, tensors, backward=backward)
        if attribute == "gradient_of_factors":
            dy, *inputs = arguments
            return Call(operator, name, inputs, (), (dy,), True)
        inputs, options, *others = arguments
        return Call(operator, name, inputs, options, tree_leaves(others[1:-1]) if backward else (), backward)


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Passes every call of an operator to `watch(call, run)`, which must return what `run()` returns.

    Calls inside a watched call are not reported, nor are calls in traced or compiled graphs.

    Example:
        >>> import torch, mtlkit
        >>> from mtlkit.operators.profiling import watching
        >>> names = []
        >>> def watch(call, run):
        ...     names.append(call.operator)
        ...     return run()
        >>> with torch.no_grad(), watching(watch):
        ...     y = mtlkit.ops.norm_gate(torch.randn(2, 4, 8))
        >>> names
        ['norm_gate']
    """
    within = False

    def outermost(call: Call, run: Callable[[], Any]) -> Any:
        nonlocal within
        if within:
            return run()
        within = True
        try:
            return watch(call, run)
        finally:
            within = False

    def plain(operator: Operator, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        count = len(operator.inputs._fields)

        def watched(*arguments: Any) -> Any:
            inputs, options = operator.inputs._make(arguments[:count]), operator.options._make(arguments[count:])
            return outermost(Call(operator.name, name, inputs, options), lambda: function(*arguments))

        return watched

    def backends(given: Mapping[str, Any], operator: str) -> dict[str, Any]:
        return {name: _Watched(backend, operator, name, outermost) for name, backend in given.items()}

    def layer(x: Tensor, weights: ss2d_layer.Weights, options: ss2d_layer.Options) -> Tensor:
        return outermost(
            Call(LAYER, "cpu", (x, *weights), (weights, options)), lambda: whole_layer(x, weights, options)
        )

    whole_layer, gates, levels = ss2d_layer.ss2d_layer, dict(gating.BACKENDS), dict(WHOLE)
    before = {operator: (operator.backends, operator.plain_forms) for operator in OPERATORS.values()}
    try:
        ss2d_layer.ss2d_layer = layer
        gating.BACKENDS.update(backends(gates, GATING))
        WHOLE.clear()  # a level then runs as its three parts
        for operator, (compiled, forms) in before.items():
            operator.backends = backends(compiled, operator.name)
            operator.plain_forms = {name: plain(operator, name, function) for name, function in forms.items()}
        yield
    finally:
        ss2d_layer.ss2d_layer = whole_layer
        gating.BACKENDS.update(gates)
        WHOLE.update(levels)
        for operator, (compiled, forms) in before.items():
            operator.backends, operator.plain_forms = compiled, forms


# --- the work in a call -----------------------------------------------------------------------------------------------


class Scan(NamedTuple):
    """The scan in a call: state updates of a forward pass, states, and the rank of the time step (0 without one)."""

    updates: int
    states: int
    rank: int


def scan_in(call: Call) -> Scan | None:
    """The scan in a call; None if there is none."""
    given: Any = call.inputs
    if call.operator in ("ss2d", "ss2d_norm_gate"):
        states, rank = given.A_logs.shape[1], given.dt_weight.shape[2]
        return Scan(4 * given.u.numel() * states, states, rank)
    if call.operator == LAYER:
        weights, (batch, height, width, _) = call.options[0], given[0].shape
        (directions, channels, rank), states = weights.dt_weight.shape, weights.A_logs.shape[1]
        return Scan(batch * height * width * directions * channels * states, states, rank)
    if call.operator == "selective_scan":
        return Scan(given.u.numel() * given.A.shape[1], given.A.shape[1], 0)
    if call.operator == "directional_scan":
        directions, channels, rank = given.dt_weight.shape
        states = given.A_logs.shape[1]
        return Scan(given.u.shape[0] * directions * channels * call.options.steps * states, states, rank)
    return None


def projection_in(call: Call) -> int:
    """Multiply-adds of the projection in a forward pass of `interaction_reduce`; 0 for all other calls.

    The backward pass needs fewer, because one factor of its products is a sign.
    """
    if call.operator != reduce.OPERATOR.name or call.backward:
        return 0
    given: Any = call.inputs
    return 0 if given.weight is None else given.x.numel() * given.weight.shape[0]


# --- plans ------------------------------------------------------------------------------------------------------------


def gpu_backend(operator: str, gpu: GPU) -> str:
    """The backend that `auto` takes for an operator on a GPU; "torch" if it has no GPU kernels."""
    for name in OPERATORS[operator].backends:
        if name == "triton":
            return name
        native = _native.C
        if name == "cuda" and native is not None and native.cuda and has_code(gpu.capability, native.cuda_archs):
            return name
    return "torch"


def plan_of(call: Call, backend: str, gpu: GPU | tuple[int, int] | None) -> dict[str, int]:
    """How a backend divides a call, if it plans before the launch; otherwise empty.

    Args:
        call: a call of an operator.
        backend: name of the backend.
        gpu: multiprocessors and shared memory per block in bytes (the first two values) of the GPU to plan for. None
            for the CPU.
    """
    if gpu is None or backend not in ("cuda", "triton"):
        return {}
    multiprocessors, shared = gpu[:2]
    found = (_cuda_plan if backend == "cuda" else _triton_plan)(call, multiprocessors, shared)
    if "blocks" in found:
        found["blocks_per_sm"] = -(-found["blocks"] // multiprocessors)
    return found


def _scan_sizes(call: Call) -> selective.Sizes | None:
    """The sizes of a selective scan; None for other operators."""
    given: Any = call.inputs
    if call.operator == "selective_scan":
        return selective.sizes_of(given)
    if call.operator == "directional_scan":  # the directions are groups of channels
        sizes = directional.sizes_of(given, call.options)
        return selective.Sizes(
            sizes.batch, sizes.directions * sizes.channels, sizes.steps, sizes.states, sizes.directions
        )
    return None


def _cuda_plan(call: Call, multiprocessors: int, shared: int) -> dict[str, int]:
    native: ModuleType | Any = _native.C
    given: Any = call.inputs
    gpu = multiprocessors, shared
    if call.operator in ("ss2d", "ss2d_norm_gate"):
        sizes = four_directions.sizes_of(given)
        plan = native.cuda_ss2d_plan(sizes=sizes, gpu=gpu, backward=call.backward)
        tokens = native.cuda_ss2d_tiling(states=sizes.states, rank=sizes.rank, gpu=gpu).tokens
        blocks = plan.images * plan.pairs * plan.channel_blocks * plan.chunks
        return {"tile_tokens": tokens, "tiles": plan.tiles, "chunks": plan.chunks, "blocks": blocks}
    if (sizes := _scan_sizes(call)) is not None:
        constant = call.operator == "selective_scan" and (given.B.dim() == 2 or given.C.dim() == 2)
        plan = native.cuda_selective_scan_plan(sizes=sizes, constant=constant, gpu=gpu)
        blocks = sizes.batch * sizes.groups * plan.group_blocks * plan.chunks
        return {"tile_tokens": plan.tile_tokens, "tiles": plan.tiles, "chunks": plan.chunks, "blocks": blocks}
    return {}


def _triton_plan(call: Call, multiprocessors: int, _shared: int) -> dict[str, int]:
    from mtlkit.kernels import tables

    given: Any = call.inputs
    kind = "backward" if call.backward else "forward"
    if call.operator in ("ss2d", "ss2d_norm_gate"):
        batch, channels, height, width, states, _ = four_directions.sizes_of(given)
        length, scans, directions = height * width, 2 * batch, 2
    elif (sizes := _scan_sizes(call)) is not None:
        channels, length, states = sizes.channels // sizes.groups, sizes.length, sizes.states
        scans, directions = sizes.batch * sizes.groups, 1
    else:
        return {}
    tiles = tables.scan_tiles(kind, states, channels, scans, directions, multiprocessors)
    programs = scans * -(-channels // tiles.channels)
    chunks, _ = tables.chunking(programs, tiles, length, multiprocessors)
    return {"tile_tokens": tiles.T, "tiles": -(-length // tiles.T), "chunks": chunks, "blocks": programs * chunks}
