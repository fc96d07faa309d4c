"""Processes started together by torchrun: the others use the folder of the first."""

import itertools
import multiprocessing
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from mtlkit import _torchrun
from mtlkit._output import NEW, resumable_folder
from mtlkit._torchrun import hear_main, tell_others


@pytest.fixture
def started(monkeypatch) -> None:
    """Sets up two processes and their store, like torchrun."""
    store = TCPStore("localhost", 0, is_master=True, timeout=timedelta(seconds=60))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    for name, first in (("_told", 0), ("_heard", 1)):  # the other process joins after the first folder
        monkeypatch.setattr(_torchrun, name, itertools.count(first))
    yield
    del store


def other(out: Path, queue) -> None:
    """The second process, which starts before the first."""
    queue.put("begins")
    with resumable_folder(out, "a run", force=True, main=False) as place:
        queue.put(str(place.path))
    with resumable_folder(out / "next", "a run", main=False) as place:
        queue.put(str(place.path))


def test_others_wait_for_the_folder_of_the_first(started, tmp_path):
    out = tmp_path / "out"
    with resumable_folder(out, "a run", main=True) as place:  # with a listener that has ended
        place.write_text("a", "1")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=other, args=(out, queue))
    process.start()
    assert queue.get(timeout=60) == "begins"
    assert queue.empty()
    with resumable_folder(out, "a run", force=True) as place:
        assert queue.get(timeout=60) == str(place.path) == str(out / NEW)
        place.write_text("a", "2")
    with resumable_folder(out / "next", "a run") as place:
        assert queue.get(timeout=60) == str(out / "next")
    process.join(60)
    assert process.exitcode == 0


def test_one_process_waits_for_nothing(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    tell_others(True)
    assert hear_main(lambda: True) is True
    assert hear_main(lambda: False) is False
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert hear_main(lambda: True) is True
