"""What benchmarks prepare before the first row of a run."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("pytest_benchmark")
preparing = pytest.importorskip("preparing", exc_type=ImportError)
started = []


@dataclass(frozen=True)
class Job:
    name: str

    def seconds(self) -> float:
        return len(self.name)

    def run(self, folder: Path) -> None:
        started.append(self.name)
        (folder / self.name).touch()
        assert self.name != "wrong", "this row fails by itself"


def item(mark=None, **parameters) -> SimpleNamespace:
    mark = mark and SimpleNamespace(kwargs={"by": mark})
    return SimpleNamespace(callspec=SimpleNamespace(params=parameters), get_closest_marker=lambda name: mark)


@pytest.fixture
def prepare(monkeypatch):
    """Prepares in threads; returns the messages."""
    monkeypatch.setattr(preparing, "ProcessPoolExecutor", lambda count, mp_context: ThreadPoolExecutor(count))
    monkeypatch.setattr(preparing, "PROCESSES", 1)
    started.clear()

    def run(*items) -> list[str]:
        said = []
        preparing.prepare(items, said.append)
        return said

    return run


def test_each_thing_is_made_once_and_the_longest_first(prepare):
    items = [item(Job, name=name) for name in ("ab", "wrong", "abc", "abc")]
    (words,) = prepare(*items, item(lambda name: None, name="nothing"), item(other=1))
    assert "export and compile 3 " in words
    assert started == ["wrong", "abc", "ab"]


def test_a_single_thing_is_left_to_its_row(prepare):
    assert prepare(item(Job, name="a"), item(Job, name="a")) == []
    assert started == []


def test_a_file_in_int8_brings_that_in_float32(prepare, monkeypatch):
    monkeypatch.setattr(preparing.Export, "run", lambda job, folder: started.append((job.name, job.kind)))
    kinds = ("a", ""), ("a", "int8"), ("a", "plain"), ("b", "")
    (words,) = prepare(*(item(preparing.Export, name=name, shape="s", kind=kind) for name, kind in kinds))
    assert "export and compile 3 " in words
    assert started == [("a", "int8"), ("a", "plain"), ("b", "")]


def test_rows_of_torch_compile_are_compiled():
    workload = SimpleNamespace(op="ss2d", shape_name="s", direction="forward")
    for name, job in (("torch-compile", preparing.Compiled("ss2d", "s", "forward")), ("mtlkit", None)):
        case = SimpleNamespace(workload=workload, provider=SimpleNamespace(name=name))
        assert preparing.job_of(item(case=case)) == job


def test_a_file_is_written_once(monkeypatch):
    monkeypatch.setattr(
        preparing.Export, "run", lambda job, folder: job.path(folder).write_text(f"{job.name} {job.kind}")
    )
    plain = preparing.Export("a", "b", "plain")
    path = preparing.file_of(plain)
    assert path.read_text() == "a plain"
    path.write_text("kept")
    assert preparing.file_of(plain).read_text() == "kept"
    assert preparing.file_of(preparing.Export("a", "b")).read_text() == "a "
