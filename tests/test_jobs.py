"""Where jobs run: locally, or on clusters that do not exist; tests/training/test_on_cluster.py uses a real one."""

import sys
import types
from contextlib import suppress

import pytest

from mtlkit import _jobs
from mtlkit._jobs import Here, Job, open_runner
from mtlkit.errors import InUseError


def test_jobs_run_here_when_they_are_asked_for():
    done = []
    with open_runner(None) as where, where.results([Job("a", done.append, (1,)), Job("b", done.append, (2,))]) as found:
        assert isinstance(where, Here)
        where.check_shared(None, "/no/such/file")
        assert done == []
        next(found)
        assert done == [1]
        next(found)
    assert done == [1, 2]


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("here", "ray: expected auto, local, HOST:PORT or ray://HOST:PORT, got 'here'"),
        ("ray://", "ray: expected auto, local, HOST:PORT or ray://HOST:PORT, got 'ray://'"),
        ("127.0.0.1:{port}", r"got '127.0.0.1:\d+' \(Connection refused\)"),
        ("ray://127.0.0.1:{port}", r"got 'ray://127.0.0.1:\d+' \(Connection refused\)"),
        ("no.such.host.invalid:6379", r"got 'no.such.host.invalid:6379' \(.*(not known|resolution)"),
        ("127.0.0.1:99999", "ray: expected the address of a cluster"),
    ],
)
def test_addresses_that_are_none(address, words):
    with pytest.raises(ValueError, match=words), open_runner(address.format(port=free_port())):
        pass


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    words = r"^a Ray cluster needs ray, which is not installed: pip install 'mtlkit\[cluster\]'$"
    with pytest.raises(ImportError, match=words), open_runner("auto"):
        pass


def test_cpus():
    with pytest.raises(ValueError, match="ray_cpus: expected at least 1, got 0"), open_runner("auto", 0):
        pass


def test_a_job_that_is_called_again_waits_for_the_lock_of_the_lost_one(monkeypatch):
    """File systems shared by several machines release the lock later than the process ends."""
    import pickle

    calls = []

    def write() -> int:
        calls.append(len(calls))
        if len(calls) < 3:
            raise InUseError("runs/a: another process writes to it")
        return 7

    names = types.SimpleNamespace(loads=lambda _: (write, (), {}))
    monkeypatch.setattr("ray.cloudpickle", names)
    monkeypatch.setattr(_jobs, "POLL", 0.0)
    monkeypatch.setattr(_jobs.os, "environ", {"SLURM_PROCID": "1", "RANK": "1", "HOME": "/"})
    monkeypatch.setattr(_jobs.os, "chdir", lambda _: None)
    monkeypatch.setattr(_jobs, "sys", types.SimpleNamespace(modules={}))
    assert _jobs._run(pickle.dumps(None), 2, "/", again=True) == 7
    assert _jobs.os.environ == {"HOME": "/", "OMP_NUM_THREADS": "2"}
    calls.clear()
    with pytest.raises(InUseError):
        _jobs._run(pickle.dumps(None), 2, "/", again=False)


def test_a_signal_ends_a_wait_as_it_ends_the_rest():
    """While Ray waits, it turns any exception of a signal handler into SystemExit(1)."""

    def handler(number, _):
        raise SystemExit(128 + number)

    def wait(handle):
        with _jobs._waiting():
            if handle is not None:
                with suppress(SystemExit):
                    handle(15, None)
            raise SystemExit(1)

    for handle, status in ((_jobs._kept(handler), 143), (None, 1)):
        with pytest.raises(SystemExit) as ended:
            wait(handle)
        assert ended.value.code == status
