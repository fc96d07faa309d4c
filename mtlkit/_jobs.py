"""Runs jobs one after the other in this process, or in parallel on the machines of a Ray cluster.

A job is a call of a function at module level. It saves its progress in files: if a worker of a cluster is lost, its job
is called again and resumes from these files.
"""

import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple
from uuid import uuid4

import mtlkit
from mtlkit._extras import check_installed
from mtlkit._owned import DRAFT
from mtlkit.errors import DataError, InUseError

LOSSES = 3  # how many lost workers a job survives
POLL = 1.0  # seconds between two checks of the jobs' progress
REACHED, PROBED, STOPPED, RELEASED = 10, 120, 20, 120  # seconds to wait for a server, a node, jobs that end, a lock
MEMORY = 256 * 2**20  # bytes for arguments and results in transit on a local cluster
# With these variables, libraries would take a worker for one rank of a distributed job.
RANKS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE")


class State(NamedTuple):
    """The progress of a job."""

    where: str  # description of the current step; "" if the job is waiting
    done: int
    total: int


class Job(NamedTuple):
    """A function call to run.

    Example:
        >>> from mtlkit._jobs import Here, Job
        >>> with Here().results([Job("a", max, (1, 2)), Job("b", max, (4, 3))]) as results:
        ...     list(results)
        [2, 4]
    """

    name: str  # for messages
    call: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = {}
    state: Callable[[], State] | None = None


class Here:
    """Runs jobs one after the other in this process."""

    gpu: bool | None = None  # unknown: PyTorch chooses

    def check_shared(self, folder: Path | None, *read: str | Path | None) -> None:
        """Does nothing: jobs in this process see the same files."""

    @contextmanager
    def results(self, jobs: Sequence[Job], **_: Any) -> Iterator[Iterator[Any]]:
        """Gives an iterator over the results of the jobs; each job runs when its result is requested."""
        yield (job.call(*job.arguments, **job.options) for job in jobs)


@contextmanager
def open_runner(address: str | None, cpus: int = 1, *, gpu: bool = True) -> "Iterator[Here | Cluster]":
    """Gives an object that runs jobs.

    Args:
        address: address of a Ray cluster: "host:port" from one of its machines, "ray://host:port" from elsewhere,
            "auto" for the cluster that runs on this machine, "local" to start one here; None runs jobs in this process.
        cpus: number of CPUs of each job on a cluster.
        gpu: whether to give each job a GPU, if the cluster has GPUs.

    Raises:
        ImportError: Ray is not installed.
        ValueError: there is no cluster at the address, or none of its machines has `cpus` CPUs.
    """
    if address is None:
        yield Here()
        return
    if cpus < 1:
        raise ValueError(f"ray_cpus: expected at least 1, got {cpus}")
    check_installed("a Ray cluster", "cluster")
    with _connected(address):
        yield Cluster(cpus, gpu=gpu)


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Connects this process to a cluster inside the context."""
    import ray

    if ray.is_initialized():  # by the caller: leave it connected
        yield
        return
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {"include_dashboard": False, "object_store_memory": MEMORY}
    elif address != "auto":
        _check_reached(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except (OSError, RuntimeError, ValueError) as error:
        if address == "auto" and isinstance(error, ConnectionError):
            words = "no Ray cluster runs on this machine; `ray start --head` starts one, and 'local' needs none"
        else:
            words = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"ray: expected the address of a cluster, got {address!r} ({words})") from None
    with ExitStack() as stack:
        stack.callback(ray.shutdown)
        if handler is not None and threading.current_thread() is threading.main_thread():  # Ray has replaced it
            stack.callback(signal.signal, signal.SIGTERM, handler)
            signal.signal(signal.SIGTERM, _kept(handler) if callable(handler) else handler)
        yield


_raised: list[BaseException] = []  # by a signal handler


def _kept(handler: Callable[[int, Any], Any]) -> Callable[[int, Any], Any]:
    """Wraps a signal handler so that `_waiting` can raise its exception, which Ray turns into SystemExit(1)."""
    _raised.clear()

    def handle(number: int, frame: Any) -> None:
        try:
            handler(number, frame)
        except BaseException as error:
            _raised.append(error)
            raise

    return handle


@contextmanager
def _waiting() -> Iterator[None]:
    """Raises the original exception of a signal handler if Ray turned it into SystemExit while waiting."""
    try:
        yield
    except SystemExit:
        if _raised:
            raise _raised.pop() from None
        raise


def _check_reached(address: str) -> None:
    """Raises if nothing answers at an address; Ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"ray: expected auto, local, HOST:PORT or ray://HOST:PORT, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"ray: expected the address of a cluster, got {address!r} ({why})") from None


class Cluster:
    """Runs jobs on the Ray cluster to which this process is connected.

    Args:
        cpus: number of CPUs of each job.
        gpu: whether to give each job a GPU, if the cluster has GPUs.

    Attributes:
        gpu: whether each job has a GPU.
        slots: how many jobs can run at the same time.
    """

    def __init__(self, cpus: int, *, gpu: bool) -> None:
        import ray

        alive = [node for node in ray.nodes() if node["Alive"]]
        self.cpus, self.gpu = cpus, gpu and any(node["Resources"].get("GPU", 0) >= 1 for node in alive)
        most = max((int(node["Resources"].get("CPU", 0)) for node in alive), default=0)
        if 0 < most < cpus:  # a cluster without CPUs may still be starting machines
            raise ValueError(f"ray_cpus: expected at most {most}, as no machine of the cluster has more, got {cpus}")
        self.nodes = [node for node in alive if self._room(node)]
        self.slots = max(1, sum(map(self._room, self.nodes)))

    def _room(self, node: Mapping[str, Any]) -> int:
        """Returns how many jobs can run on a node at the same time."""
        resources = node["Resources"]
        room = int(resources.get("CPU", 0)) // self.cpus
        return min(room, int(resources.get("GPU", 0))) if self.gpu else room

    # --- shared files -------------------------------------------------------------------------------------------------

    def check_shared(self, folder: Path | None, *read: str | Path | None) -> None:
        """Raises if a node does not see the same files as this process.

        Args:
            folder: the folder to which the jobs write.
            read: files and folders that the jobs read.

        Raises:
            DataError: one of these paths does not exist on a node, or the folder there is not this one.
            ValueError: mtlkit is not installed on a node, or another version.
        """
        import ray
        from ray.exceptions import RayError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        inputs = [str(Path(path).absolute()) for path in read if path is not None]
        with ExitStack() as stack:
            probe, token = None, uuid4().hex
            if folder is not None:
                probe = folder / f"{DRAFT}-probe-{token}"
                stack.callback(probe.unlink, missing_ok=True)
                probe.write_text(token)
            look = ray.remote(num_cpus=0, max_retries=0)(_look)
            found = {}
            for node in self.nodes:
                on = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                found[node["NodeManagerHostname"]] = look.options(scheduling_strategy=on).remote(probe, token, inputs)
            for host, ref in found.items():
                try:
                    version, missing = ray.get(ref, timeout=PROBED)
                except RayError as error:
                    why = str(error).strip().splitlines()[-1]
                    raise ValueError(f"ray: mtlkit does not run on {host} ({why})") from None
                if version != mtlkit.__version__:
                    words = f"expected mtlkit {mtlkit.__version__} on {host}, as here, got {version}"
                    raise ValueError(f"ray: {words}")
                for path in missing:
                    path = folder if path == str(probe) else path
                    words = f"{host}, of the cluster, does not see it; its machines must share it, under the same path"
                    raise DataError(f"{path}: {words}")

    # --- jobs ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def results(
        self, jobs: Sequence[Job], *, few: bool = False, reuse: bool = False, progress: bool = False
    ) -> Iterator[Iterator[Any]]:
        """Gives an iterator over the results of the jobs, in order; stops running jobs at the end of the context.

        An error in a job is raised immediately.

        Args:
            jobs: the jobs to run.
            few: whether to submit only as many jobs as keep the cluster busy; use it if results are large.
            reuse: whether one process may run several jobs, so that it loads expensive objects only once.
            progress: whether to show the progress of the jobs on a terminal.
        """
        flight = _Flight(self, jobs, 2 * self.slots if few else len(jobs), reuse=reuse)
        with ExitStack() as stack:
            stack.callback(flight.stop)
            show = stack.enter_context(_view(len(jobs))) if progress else None
            yield flight.results(show)


class _Flight:
    """The jobs of one call, while a cluster runs them."""

    def __init__(self, cluster: Cluster, jobs: Sequence[Job], most: int, *, reuse: bool) -> None:
        import ray

        self.jobs, self.most, self.cpus = jobs, most, cluster.cpus
        remote: Any = ray.remote(  # Any: Ray's annotations lack some of these options
            num_cpus=cluster.cpus,
            num_gpus=int(cluster.gpu),
            max_retries=0,  # lost jobs are submitted again by `_lose`
            max_calls=0 if reuse else 1,
            scheduling_strategy="SPREAD",
        )
        self.call = remote(_run)
        self.running: dict[Any, int] = {}  # reference -> index of its job
        self.found: dict[int, Any] = {}
        self.lost = [0] * len(jobs)

    def results(self, show: "Callable[[int, Sequence[Job]], None] | None") -> Iterator[Any]:
        """Yields the results in the order of the jobs."""
        given = 0
        for number in range(len(self.jobs)):
            while number not in self.found:
                while given < min(len(self.jobs), number + self.most):
                    self._give(given)
                    given += 1
                with _waiting():
                    self._wait()
                if show is not None:
                    show(number + len(self.found), [self.jobs[i] for i in sorted(self.running.values())])
            yield self.found.pop(number)

    def _give(self, number: int) -> None:
        from ray import cloudpickle

        job = self.jobs[number]
        call = cloudpickle.dumps((job.call, job.arguments, dict(job.options)))
        here = str(Path.cwd())
        ref = self.call.options(name=job.name).remote(call, self.cpus, here, again=self.lost[number] > 0)
        self.running[ref] = number

    def _wait(self) -> None:
        """Waits for a job to end, for at most POLL seconds, and stores its result."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        ended, _ = ray.wait(list(self.running), num_returns=1, timeout=POLL)
        for ref in ended:
            number = self.running.pop(ref)
            try:
                self.found[number] = ray.get(ref)
            except RayTaskError as error:
                raise error.cause from error
            except RayError as error:  # in the worker or its node, not in the function
                self._lose(number, " ".join(str(error).split()).partition(". ")[0])

    def _lose(self, number: int, why: str) -> None:
        name, self.lost[number] = self.jobs[number].name, self.lost[number] + 1
        if self.lost[number] > LOSSES:
            raise ChildProcessError(f"{name}: its worker was lost {self.lost[number]} times ({why})")
        warnings.warn(f"{name}: its worker was lost, and another takes it up again ({why})", stacklevel=2)
        self._give(number)

    def stop(self) -> None:
        """Stops the running jobs: asks them to end, and kills them if they do not."""
        import ray
        from ray.exceptions import RayError

        for force in (False, True):
            if not self.running:
                return
            for ref in self.running:
                with suppress(RayError, ValueError):
                    ray.cancel(ref, force=force)
            _, left = ray.wait(list(self.running), num_returns=len(self.running), timeout=STOPPED)
            self.running = {ref: self.running[ref] for ref in left}


@contextmanager
def _view(total: int) -> "Iterator[Callable[[int, Sequence[Job]], None]]":
    """Gives a function that shows how many jobs are done, and the progress of the running ones."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        whole = bars.add_task("runs", total=total)
        rows: dict[str, Any] = {}

        def show(done: int, running: Sequence[Job]) -> None:
            bars.update(whole, completed=done)
            states = {job.name: job.state() for job in running if job.state is not None}
            states = {name: state for name, state in states.items() if state.where}
            for name in rows.keys() - states.keys():
                bars.remove_task(rows.pop(name))
            for name, (where, finished, of) in states.items():
                if name not in rows:
                    rows[name] = bars.add_task("")
                bars.update(rows[name], description=escape(f"{name}: {where}"), completed=finished, total=of)

        show(0, ())
        yield show


# --- on a node --------------------------------------------------------------------------------------------------------


def _look(probe: Path | None, token: str, read: Sequence[str]) -> tuple[str, list[str]]:
    """Runs on a node; returns its version of mtlkit and the paths that it does not see."""
    missing = [path for path in read if not os.path.lexists(path)]
    if probe is not None:
        try:
            seen = probe.read_text()
        except OSError:
            seen = ""
        missing += [] if seen == token else [str(probe)]
    return mtlkit.__version__, missing


def _run(call: bytes, cpus: int, folder: str, *, again: bool) -> Any:
    """Runs a job in a worker.

    Args:
        call: the pickled function and its arguments. Unpickling imports PyTorch, so the environment is set before.
        cpus: number of threads.
        folder: base of relative paths in the arguments; may be missing on the node if all paths are absolute.
        again: whether an earlier worker was lost; a file system may hold its locks for a while.
    """
    from ray import cloudpickle

    for name in [name for name in os.environ if name.startswith("SLURM_") or name in RANKS]:
        del os.environ[name]
    os.environ["OMP_NUM_THREADS"] = str(cpus)
    with suppress(OSError):
        os.chdir(folder)
    function, arguments, options = cloudpickle.loads(call)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(cpus)
    end = monotonic() + (RELEASED if again else 0)
    while True:
        try:
            return function(*arguments, **options)
        except InUseError:
            if monotonic() >= end:
                raise
            sleep(POLL)
