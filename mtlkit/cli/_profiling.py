"""Profiles a network: each operator's calls, plans and floors, and the rest of the work by kind.

torch's profiler measures the calls that `mtlkit.operators.profiling` reports. Without a GPU, its floors are computed
from shapes on the meta device.
"""

import functools
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from mtlkit import _native
from mtlkit.operators import floors
from mtlkit.operators.profiling import OPERATORS, Call, bytes_of, gpu_backend, plan_of, projection_in, scan_in, watching

# kind of work -> words in the names of torch's operators; the first that fits counts
KINDS = {
    "normalisation": ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"),
    "convolutions": ("conv",),
    "linear": ("linear", "Linear", "addmm", "baddbmm", "aten::mm", "aten::bmm", "matmul", "einsum"),
}
REST = "rest"
GROUPS = ("convolutions", "linear", "normalisation", REST)
ROUND, MARK = "mtlkit round", "mtlkit call "
SECONDS, FEWEST, MOST = 1.0, 3, 30  # of the rounds


@dataclass
class Row:
    """An operator at one size, or a kind of other work.

    Args:
        what: name of the operator or of the kind.
        sizes: of its first tensor, and states of a scan.
        direction: "forward" or "backward"; empty where they are not told apart.
        backend: that serves the operator; empty for other work.
        plan: how the backend cuts a call, as far as it tells.
        calls: of one pass of the network.
        floor: the least seconds of these calls; None where it is not known.
        bound: what bounds them: "arithmetic" or "memory".
        seconds: measured; None where nothing was.
        share: of the network's measured time or, if nothing was measured, of the sum of floors.
    """

    what: str
    sizes: str = ""
    direction: str = ""
    backend: str = ""
    plan: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    floor: float | None = None
    bound: str = ""
    seconds: float | None = None
    share: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        floor = "predicted_floor_s" if self.seconds is None else "floor_s"
        times = {} if self.seconds is None else {"seconds": self.seconds}
        given = {name: getattr(self, name) for name in ("what", "sizes", "direction", "backend", "calls", "plan")}
        return given | {floor: self.floor, "bound": self.bound} | times | {"share": self.share}


def kind_of(name: str) -> str | None:
    """The kind of work of an operator of torch; None for the rest.

    Example:
        >>> from mtlkit.cli._profiling import kind_of
        >>> kind_of("aten::conv2d"), kind_of("aten::native_layer_norm"), kind_of("aten::add")
        ('convolutions', 'normalisation', None)
    """
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), None)


def _row_of(call: Call, backend: str, gpu: Any) -> Row:
    scan = scan_in(call)
    tensor = next(t for t in call.inputs if t is not None)
    sizes = " x ".join(map(str, tensor.shape)) + (f", N {scan.states}" if scan else "")
    direction = "backward" if call.backward else "forward"
    return Row(call.operator, sizes, direction, backend, plan_of(call, backend, gpu))


def _add_floor(row: Row, floor: floors.Floor | None) -> None:
    if floor is not None:
        row.floor = (row.floor or 0.0) + floor.seconds
        row.bound = floor.bound


# --- floors -----------------------------------------------------------------------------------------------------------


@functools.cache
def _cpu_rate(isa: str, _threads: int) -> float:
    """Vector operations a second, by lane, of this CPU."""
    table, polynomial = (floors.yardstick(3, 0.01, polynomial=p) for p in (False, True))
    return floors.multiply_adds(isa, table or 1.0, polynomial or 1.0)


def _cpu_floor(call: Call, nbytes: int) -> floors.Floor:
    """The higher of those of arithmetic, by kernels, and of memory."""
    memory, scan, operations = floors.copy_seconds(nbytes), scan_in(call), float(projection_in(call))
    if call.backend != "cpu" or _native.C is None or not (scan or operations):
        return floors.Floor(memory, "memory")
    isa = _native.C.cpu_isa()
    if scan is not None:
        forward, both = (floors.scan_operations(isa, scan.states, scan.rank, backward) for backward in (False, True))
        operations = scan.updates * (both - forward if call.backward else forward)
    arithmetic = operations / _cpu_rate(isa, torch.get_num_threads())
    return floors.Floor(arithmetic, "arithmetic") if arithmetic >= memory else floors.Floor(memory, "memory")


def _gpu_floor(call: Call, nbytes: int, gpu: floors.GPU) -> floors.Floor:
    scan = scan_in(call)
    if scan is None:
        return floors.memory_floor(nbytes, gpu.limits)
    return floors.scan_floor(scan.updates, scan.states, nbytes, call.backward, gpu.limits)


# --- measuring --------------------------------------------------------------------------------------------------------


def step_of(network: nn.Module, inputs: Sequence[Tensor], training: bool) -> Callable[[], None]:
    """Inference, or a step of training without its optimizer, whose loss is a sum over all outputs."""

    def infer() -> None:
        with torch.no_grad():
            network(*inputs)

    def step() -> None:
        network.zero_grad()
        outputs = network(*inputs)
        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        sums = [t.float().square().mean() for t in parts if isinstance(t, Tensor) and t.requires_grad]
        torch.stack(sums).sum().backward()

    network.train(training)
    return step if training else infer


def measure(step: Callable[[], None], device: torch.device) -> tuple[list[Row], float]:
    """Rows of a step, whose shares add up to 1, and the median seconds of the step without the profiler.

    Args:
        step: what is measured.
        device: where it computes.
    """
    on_gpu = device.type == "cuda"
    gpu = planned = None
    if on_gpu:
        properties = torch.cuda.get_device_properties(device)
        # torch for ROCm does not say how much shared memory there is, which only the plans of CUDA kernels ask for
        planned = properties.multi_processor_count, getattr(properties, "shared_memory_per_block_optin", 0)
        gpu = floors.gpu_named(properties.name)
    rows: dict[tuple[Any, ...], Row] = {}

    def key(call: Call) -> tuple[Any, ...]:
        shapes = tuple(t if t is None else t.shape for t in call.inputs)
        return call.operator, call.backend, call.backward, shapes

    def look(call: Call, run: Callable[[], Any]) -> Any:
        results = run()
        if (row := rows.get(key(call))) is None:
            row = rows[key(call)] = _row_of(call, call.backend, planned)
        row.calls += 1
        nbytes = call.nbytes(results)
        if on_gpu:
            _add_floor(row, None if gpu is None else _gpu_floor(call, nbytes, gpu))
        else:
            _add_floor(row, _cpu_floor(call, nbytes))
        return results

    def record(call: Call, run: Callable[[], Any]) -> Any:
        with record_function(f"{MARK}{numbers[key(call)]}"):
            return run()

    def timed() -> float:
        start = time.perf_counter()
        step()
        if on_gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    timed()  # compiles, fills caches
    with watching(look):
        step()
    numbers = {name: i for i, name in enumerate(rows)}
    rounds = min(MOST, max(FEWEST, int(SECONDS / max(1e-6, timed()))))
    whole = statistics.median(timed() for _ in range(rounds))
    with watching(record), _profiler(on_gpu) as profiler:
        for _ in range(rounds):
            with record_function(ROUND):
                step()
                if on_gpu:
                    torch.cuda.synchronize(device)
    found = list(_split(profiler.events() or (), on_gpu))
    labels = [*(f"{MARK}{i}" for i in range(len(rows))), *GROUPS]
    listed = [*rows.values(), *map(Row, GROUPS)]
    for row, label in zip(listed, labels, strict=True):
        row.seconds = statistics.median(times.get(label, 0.0) for times in found)
    return _with_shares(listed), whole


def _profiler(on_gpu: bool) -> profile:
    """Which would write on standard error that it begins, ends, and finds no GPU."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    return profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])])


def _split(events: Sequence[Any], on_gpu: bool) -> Iterator[dict[str, float]]:
    """The seconds of each round by mark and kind of work, on a GPU those of the kernels that an event launched."""

    def seconds(event: Any) -> float:
        return (event.device_time_total if on_gpu else event.cpu_time_total) / 1e6

    def add(event: Any, times: dict[str, float]) -> None:
        label = event.name if event.name.startswith(MARK) else kind_of(event.name)
        if label is not None:
            times[label] += seconds(event)
            return
        for child in event.cpu_children:
            add(child, times)

    roots = [event for event in events if event.device_type == DeviceType.CPU and event.cpu_parent is None]
    for whole in (event for event in roots if event.name == ROUND):
        start, end = whole.time_range.start, whole.time_range.end
        # autograd works in a thread of its own on a GPU
        others = [e for e in roots if on_gpu and e is not whole and start <= e.time_range.start <= end]
        times: dict[str, float] = defaultdict(float)
        for event in (whole, *others):
            add(event, times)
        times[REST] = max(0.0, seconds(whole) + sum(map(seconds, others)) - sum(times.values()))
        yield times


def _with_shares(rows: list[Row]) -> list[Row]:
    """Operators with the most time first, then the groups that there are."""
    times = [row.floor or 0.0 if row.seconds is None else row.seconds for row in rows]
    total = sum(times) or 1.0
    for row, mine in zip(rows, times, strict=True):
        row.share = mine / total
    operators = sorted((row for row in rows if row.what not in GROUPS), key=lambda row: -row.share)
    return [*operators, *(row for row in rows if row.what in GROUPS and row.share > 0)]


# --- predicting -------------------------------------------------------------------------------------------------------


class _Predictor(TorchDispatchMode):
    """Adds up the floors of what is called: of mtlkit's operators, and of all others the bytes they must move."""

    def __init__(self, gpu: floors.GPU) -> None:
        super().__init__()
        self.gpu, self.rows = gpu, {}
        self.groups = {name: Row(name) for name in GROUPS}

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        results = operator(*args, **(kwargs or {}))
        name = operator.name()
        if name.startswith("mtlkit::"):
            self._add_call(name.removeprefix("mtlkit::"), args, results)
        elif not operator.is_view and not name.startswith(("aten::empty", "aten::new_empty", "aten::_unsafe_view")):
            row = self.groups[kind_of(name) or REST]
            row.calls += 1
            _add_floor(row, floors.memory_floor(bytes_of(args, kwargs, results), self.gpu.limits))
        return results

    def _add_call(self, node: str, arguments: Sequence[Any], results: Any) -> None:
        name = node.partition(".")[0]
        backward = name not in OPERATORS
        operator = OPERATORS[name.removesuffix("_backward")]
        grads, rest = (
            (arguments[1 : 1 + operator.outputs], arguments[1 + operator.outputs :])
            if backward
            else (
                (),
                arguments[1:],
            )
        )
        count = len(operator.inputs._fields)
        behind = rest[count:] if not backward else rest[len(rest) - len(operator.options._fields) :]
        options = operator.options._make(behind[: len(operator.options._fields)])
        backend = gpu_backend(operator.name, self.gpu)
        inputs = operator.inputs._make(rest[:count])
        call = Call(operator.name, backend, inputs, options, grads, backward)
        results = results if isinstance(results, (tuple, list)) else (results,)
        row = _row_of(call, backend, self.gpu)
        row = self.rows.setdefault((row.what, row.sizes, row.direction), row)
        row.calls += 1
        _add_floor(row, _gpu_floor(call, call.nbytes(results), self.gpu))


def predict(step: Callable[[], None], gpu: floors.GPU) -> list[Row]:
    """Rows of a step on tensors of the device "meta": plans and floors on a GPU, which need not be there.

    Args:
        step: what is predicted.
        gpu: for which.
    """
    with _Predictor(gpu) as found:
        step()
    return _with_shares([*found.rows.values(), *found.groups.values()])
