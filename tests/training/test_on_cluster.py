"""Series, tables and predictions on a local Ray cluster of two nodes: the files equal those of one process."""

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml

from mtlkit import _jobs
from mtlkit._jobs import Job, open_runner
from mtlkit._output import CLAIM
from mtlkit.cli import main
from mtlkit.errors import DataError
from mtlkit.training import cross_validate, train
from tests.kill import difference

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a cluster with two nodes, each with one CPU."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        try:
            cluster.add_node(**NODE)
            cluster.wait_for_nodes()
            yield cluster.address
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Computes like a worker with one CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Killer(threading.Thread):
    """Kills a worker.

    Args:
        find: returns its process id, or 0 while it must not be killed.

    Attributes:
        killed: the process id, after the kill.
    """

    def __init__(self, find: Callable[[], int]) -> None:
        super().__init__(daemon=True)
        self.find, self.killed = find, 0
        self.start()

    def run(self) -> None:
        end = time.monotonic() + 300
        while not (found := self.find()) and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(found, signal.SIGKILL)
        self.killed = found


def writer_of(folder: Path, mark: str) -> int:
    """The process that writes to a folder, as soon as the folder has a file."""
    return int((folder / CLAIM).read_text().split()[1]) if (folder / mark).exists() else 0


def worker_in(folder: Path, name: str) -> int:
    """A Ray worker whose job's name starts like this, with this directory."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            title = (process / "cmdline").read_bytes()
            if title.startswith(f"ray::{name}".encode()) and (process / "cwd").readlink() == folder:
                return int(process.name)
    return 0


def test_jobs(address, tmp_path, monkeypatch):
    """Results in order; an error as raised, which stops running jobs; and a lost worker in each case."""
    monkeypatch.setattr(_jobs, "LOSSES", 1)
    with open_runner(address) as where:
        assert (where.slots, where.gpu) == (2, False)
        where.check_shared(tmp_path, Path(__file__), None)
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(DataError, match=r"/no/such: .* does not see it; its machines must share it"):
            where.check_shared(None, "/no/such")
        with where.results([Job(f"{i}", pow, (i, 2)) for i in range(5)], few=True, reuse=True) as found:
            assert list(found) == [0, 1, 4, 9, 16]
        jobs = [Job("waits", time.sleep, (600,)), Job("fails", int, ("x",))]
        with pytest.raises(ValueError, match="invalid literal"), where.results(jobs, reuse=True) as found:
            next(found)
        with (
            pytest.warns(UserWarning, match="dies: its worker was lost, and another takes it up again"),
            pytest.raises(ChildProcessError, match="dies: its worker was lost 2 times"),
            where.results([Job("dies", os._exit, (1,))], reuse=True) as found,
        ):
            next(found)
    words = "ray_cpus: expected at most 1, as no machine of the cluster has more, got 2"
    with pytest.raises(ValueError, match=words), open_runner(address, 2):
        pass


@pytest.mark.slow
def test_folds_of_which_one_is_killed(address, one_thread, tmp_path, ultrasound, two_stages):
    whole, out = tmp_path / "whole", tmp_path / "out"
    expected = cross_validate(two_stages, ultrasound, whole, 2, progress=False)
    killer = Killer(lambda: writer_of(out / "fold-2", "stage1/last.ckpt"))
    with pytest.warns(UserWarning, match="fold 2: its worker was lost, and another takes it up again"):
        found = cross_validate(two_stages, ultrasound, out, 2, progress=False, ray=address)
    assert killer.killed
    assert found.keys() == expected.keys()
    assert difference(out, whole) == ""


@pytest.fixture(scope="module")
def run(one_thread, tmp_path_factory, ultrasound, small) -> Path:
    """A run folder."""
    out = tmp_path_factory.mktemp("predicted") / "run"
    train(small.change({"stopping": {"epochs": 1}}), ultrasound, out, progress=False)
    return out


@pytest.mark.slow
def test_predictions_of_which_a_worker_is_killed(address, run, tmp_path, ultrasound, capsys, monkeypatch):
    """By the command, with relative paths; one image cannot be read."""
    scans = shutil.copytree(ultrasound / "benign", tmp_path / "scans")
    (scans / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    monkeypatch.chdir(tmp_path)
    command = ["predict", str(run), "scans", "--skip-bad", "--batch-size", "3", "--device", "cpu", "--out"]
    assert main([*command, "whole"]) == 0
    words = capsys.readouterr().out
    killer = Killer(lambda: worker_in(tmp_path, "predicting"))
    with pytest.warns(UserWarning, match=r"predicting .* to .*: its worker was lost, and another takes it up again"):
        assert main([*command, "out", "--ray", address]) == 0
    assert killer.killed
    last = words.splitlines()[:-1]
    assert [line for line in capsys.readouterr().out.splitlines() if line in last] == last
    assert difference(tmp_path / "out", tmp_path / "whole") == ""


@pytest.mark.slow
def test_a_table(address, one_thread, tmp_path, ultrasound, small, capsys):
    """Rows and seeds by the command; a failed row is named, and all others can be resumed without the cluster."""
    short = {"stopping": {"epochs": 1}}
    small.change(short).save(tmp_path / "recipe.yaml")
    rows = [{"name": "plain"}, {"name": "slower", "changes": {"optimizer": {"lr": 0.0001}}}]
    (tmp_path / "table.yaml").write_text(yaml.safe_dump({"recipe": "recipe.yaml", "rows": rows}))
    command = ["ablate", str(tmp_path / "table.yaml"), "--data", str(ultrasound), "--repeats", "2", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    shown = capsys.readouterr().out.replace("whole", "out")
    assert main([*command, str(tmp_path / "out"), "--ray", address]) == 0
    assert capsys.readouterr().out == shown
    assert difference(tmp_path / "out", tmp_path / "whole") == ""
    out = str(tmp_path / "failed")
    assert main([*command, out, "--ray", address, "--trainer", "accelerator=none"]) == 2
    assert re.search(r"row '(plain|slower)', seed 4[23]: trainer: .*none", capsys.readouterr().err)
    assert not Path(out).exists()
