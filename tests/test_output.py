"""Output folders: only files that mtlkit wrote are replaced or removed, even after a kill, and one process writes."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mtlkit import _output
from mtlkit._output import CLAIM, NEW, new_folder, resumable_folder
from mtlkit._owned import LIST, FileList
from mtlkit.errors import ChangedError, DataError, ExistsError, InUseError, OccupiedError


def write(path: Path, files: dict[str, str], *, force: bool = False, kind: str = "an evaluation") -> None:
    with new_folder(path, kind, force=force) as out:
        for name, text in files.items():
            out.write_text(name, text)


def tree(folder: Path) -> dict[str, str]:
    """Every file except the list, with its contents."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LIST)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


@pytest.fixture
def out(tmp_path) -> Path:
    write(tmp_path / "out", {"a.txt": "1", "deep/b.txt": "2"})
    return tmp_path / "out"


# --- complete or nothing ----------------------------------------------------------------------------------------------


def test_a_folder_is_whole_or_not_there(tmp_path):
    path = tmp_path / "deep" / "out"

    def too_much() -> None:
        with new_folder(path, "an evaluation") as draft:
            draft.write_text("a", "x")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        too_much()
    assert not list(tmp_path.iterdir())
    with new_folder(path, "an evaluation") as draft:
        draft.write_text("mark", "1")
        assert not path.exists()
    assert [entry.name for entry in path.parent.iterdir()] == ["out"]
    assert tree(path) == {"mark": "1"}


def test_the_list_names_what_was_written_with_sizes_and_hashes(out):
    lines = [json.loads(line) for line in (out / LIST).read_text().splitlines()]
    assert lines[0] == {"kind": "an evaluation"}
    assert [(line["file"], line["size"], len(line["sha256"])) for line in lines[1:]] == [
        ("a.txt", 1, 64),
        ("deep/b.txt", 1, 64),
    ]


def test_an_empty_folder_may_be_used_also_from_within(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    write(Path(), {"a.txt": "1"})
    assert tree(tmp_path / "out") == {"a.txt": "1"}
    assert Path("a.txt").is_file()


def test_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DataError, match=r"out/a: cannot be written \(No space left on device\)$"):
        write(tmp_path / "out", {"a": "x"})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_named_before_any_work(tmp_path):
    tmp_path.chmod(0o500)
    with (
        pytest.raises(DataError, match=r"out: cannot be written \(Permission denied\)$"),
        new_folder(tmp_path / "out", "an evaluation"),
    ):
        pytest.fail("has worked")


# --- the user's files -------------------------------------------------------------------------------------------------


def test_nothing_is_replaced_without_force(out):
    before = tree(out)
    with pytest.raises(ExistsError, match=r"out: exists already$"):
        write(out, {"a.txt": "new"})
    assert tree(out) == before


def test_force_replaces_what_was_written_and_leaves_the_rest(out):
    mine = {
        "notes.md": "mine",
        "deep/figure.png": "mine",
        "BUSI/benign/1.png": "mine",
        "evaluation/report.html": "mine",
    }
    for name, text in mine.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    (out / "empty").mkdir()
    write(out, {"a.txt": "new", "c/d.txt": "new"}, force=True)
    assert tree(out) == {"a.txt": "new", "c/d.txt": "new", **mine}
    assert (out / "empty").is_dir()
    write(out, {"a.txt": "newer"}, force=True)
    assert tree(out) == {"a.txt": "newer", **mine}
    assert not (out / "c").exists()
    assert not (out / NEW).exists()
    assert not (out / CLAIM).exists()


@pytest.mark.parametrize(
    "name", ["predictions.json", "synthetic.json", ".mtlkit-run", ".mtlkit-evaluation", "config.yaml"]
)
def test_a_folder_without_a_list_is_never_replaced(tmp_path, name):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / name).write_text("{}")
    (thesis / "thesis.tex").write_text("precious")
    before = tree(thesis)
    for force in (False, True):
        with pytest.raises(OccupiedError, match=r"thesis: exists already, and no list says .* name a new folder"):
            write(thesis, {"a.txt": "x"}, force=force)
    with pytest.raises(OccupiedError), resumable_folder(thesis, "a run", resume=True):
        pass
    assert tree(thesis) == before


def test_a_folder_of_another_kind_is_never_replaced(out):
    with pytest.raises(OccupiedError, match="out: holds an evaluation, not predictions; name a new folder"):
        write(out, {"a.txt": "x"}, force=True, kind="predictions")


def test_a_file_is_not_taken_for_a_folder(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for force in (False, True):
        with pytest.raises(DataError, match="expected a folder, found a file"):
            write(tmp_path / "thesis.tex", {"a.txt": "x"}, force=force)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_changed_file_is_the_users(out):
    (out / "deep/b.txt").write_text("edited")
    with pytest.raises(
        ChangedError, match=r"out/deep/b.txt: has been changed since mtlkit wrote it; move or delete it"
    ):
        write(out, {"a.txt": "new"}, force=True)
    assert tree(out) == {"a.txt": "1", "deep/b.txt": "edited"}
    (out / "deep/b.txt").unlink()
    write(out, {"a.txt": "new"}, force=True)
    assert tree(out) == {"a.txt": "new"}


def test_a_file_that_changes_during_the_work_stays(out):
    def work() -> None:
        with new_folder(out, "an evaluation", force=True) as draft:
            (out / "a.txt").write_text("edited")
            draft.write_text("a.txt", "new")

    with pytest.raises(ChangedError):
        work()
    assert tree(out) == {"a.txt": "edited", "deep/b.txt": "2"}


@pytest.mark.parametrize("name", ["c.txt", "c.txt/inner"])
def test_a_new_file_never_replaces_one_of_the_user(out, name):
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("mine")
    with pytest.raises(OccupiedError, match=r"out/c.txt: was not written by mtlkit; move it away"):
        write(out, {"a.txt": "new", "c.txt": "new"}, force=True)
    assert tree(out) == {"a.txt": "1", "deep/b.txt": "2", name: "mine"}


def test_a_folder_that_became_a_link_is_not_followed(out, tmp_path):
    backup = shutil.move(out / "deep", tmp_path / "backup")
    (out / "deep").symlink_to(backup)
    with pytest.raises(OccupiedError, match="out/deep: is not a folder that mtlkit made; move it away"):
        write(out, {"a.txt": "new"}, force=True)
    assert (tmp_path / "backup/b.txt").read_text() == "2"


def test_links_to_the_folder_are_followed(out, tmp_path):
    (tmp_path / "link").symlink_to(out)
    write(tmp_path / "link", {"a.txt": "new"}, force=True)
    (tmp_path / "dangling").symlink_to(tmp_path / "later")
    write(tmp_path / "dangling", {"a.txt": "new"})
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "dangling").is_symlink()
    assert tree(out) == tree(tmp_path / "later") == {"a.txt": "new"}


def test_links_in_a_circle_are_an_error(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(DataError, match="a: cannot be written"):
        write(tmp_path / "a", {"a.txt": "x"})
    with pytest.raises(DataError, match="a: cannot be written"), resumable_folder(tmp_path / "a", "a run"):
        pass
    assert (tmp_path / "a").is_symlink()


def test_nothing_is_replaced_from_within(out, monkeypatch):
    before = tree(out)
    for place in (out, out / "deep"):
        monkeypatch.chdir(place)
        with pytest.raises(OccupiedError, match="cannot be replaced from within; change the directory"):
            write(Path(os.path.relpath(out)), {"a.txt": "new"}, force=True)
    assert tree(out) == before


def test_inputs_within_are_refused(out, tmp_path):
    (out / "BUSI").mkdir()
    (tmp_path / "elsewhere").symlink_to(out / "BUSI")
    for path in (out, out / "BUSI", tmp_path / "elsewhere", out / "deep/../BUSI"):
        with (
            pytest.raises(OccupiedError, match="which is read, lies in it"),
            new_folder(out, "an evaluation", force=True) as draft,
        ):
            draft.check_inputs(None, tmp_path, path)
    with new_folder(tmp_path / "other", "an evaluation", force=True) as draft:
        draft.check_inputs(out, tmp_path / "other" / "data")  # nothing would be replaced


@pytest.mark.parametrize("name", ["../thesis.tex", "/etc/passwd", "deep/../../thesis.tex", ""])
def test_a_list_names_nothing_outside(out, tmp_path, name):
    (tmp_path / "thesis.tex").write_text("precious")
    with (out / LIST).open("a") as file:
        file.write(json.dumps({"file": name}) + "\n")
    with pytest.raises(OccupiedError, match=r"\.mtlkit-files: line 4 is damaged"):
        write(out, {"a.txt": "new"}, force=True)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    "text", [b"", b"\x80\x04K\x01.", b"[]\n", b"{}\n", b'{"file": "a.txt"}\n', b"[" * 100_000 + b"\n"]
)
def test_a_damaged_list_is_named(out, text):
    (out / LIST).write_bytes(text)
    with pytest.raises(OccupiedError, match=r"out/\.mtlkit-files: line 1 is damaged, so that nothing here is replaced"):
        write(out, {"a.txt": "new"}, force=True)
    assert tree(out) == {"a.txt": "1", "deep/b.txt": "2"}


# --- one process at a time --------------------------------------------------------------------------------------------

HOLD = """
import sys
from mtlkit._output import {function}
with {function}(sys.argv[1], "a run") as out:
    out.write_text("a.txt", "1")
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["new_folder", "resumable_folder"])
def holder(request, tmp_path):
    """A process that writes to a folder."""
    arguments = [sys.executable, "-c", HOLD.format(function=request.param), tmp_path / "out"]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("function", [new_folder, resumable_folder])
def test_a_second_process_is_told(holder, tmp_path, function):
    for force in (False, True):
        words = rf"out: another process writes to it \(process {holder.pid} on .+\)"
        with pytest.raises(InUseError, match=words), function(tmp_path / "out", "a run", force=force):
            pass
    holder.communicate("")
    assert holder.returncode == 0
    assert tree(tmp_path / "out") == {"a.txt": "1"}


def test_a_dead_process_holds_nothing(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with resumable_folder(tmp_path / "out", "a run", resume=True) as out:
        out.write_text("b.txt", "2")
    assert tree(tmp_path / "out")["b.txt"] == "2"
    write(tmp_path / "out", {"c.txt": "3"}, force=True, kind="a run")
    assert tree(tmp_path / "out") == {"c.txt": "3"}


def test_what_a_killed_process_claimed_goes_with_the_next(tmp_path):
    (tmp_path / ".out.mtlkit-claim").write_text("process 1 on elsewhere")
    end(tmp_path / "out", {"a.txt": "1"})
    (tmp_path / ".out.mtlkit-claim").write_text("process 1 on elsewhere")
    end(tmp_path / "out", {"b.txt": "1"}, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert tree(tmp_path / "out") == {"a.txt": "1", "b.txt": "1"}


def test_the_same_process_is_told_too(tmp_path):
    with new_folder(tmp_path / "out", "a run"), pytest.raises(InUseError), new_folder(tmp_path / "out", "a run"):
        pass


# --- resuming ---------------------------------------------------------------------------------------------------------


def begin(path: Path, files: dict[str, str], **options: bool) -> None:
    """Writes files, and is interrupted."""
    with resumable_folder(path, "a run", **options) as out:
        for name, text in files.items():
            out.write_text(name, text)
        out.resumable = True
        raise KeyboardInterrupt


def end(path: Path, files: dict[str, str], **options: bool) -> None:
    with resumable_folder(path, "a run", **options) as out:
        for name, text in files.items():
            out.write_text(name, text)


def test_an_interrupted_folder_is_continued(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt) as error:
        begin(out, {"a.txt": "1", "b.txt": "1"})
    assert error.value.resumable
    with pytest.raises(ExistsError, match=r"out: there is a run already$") as error:
        end(out, {})
    assert error.value.resumable
    end(out, {"b.txt": "2"}, resume=True)
    assert tree(out) == {"a.txt": "1", "b.txt": "2"}
    lines = (out / LIST).read_text().splitlines()
    assert len(lines) == 3


def test_what_cannot_be_continued_vanishes(tmp_path):
    def fail(**options: bool) -> None:
        with resumable_folder(tmp_path / "deep/out", "a run", **options) as out:
            out.write_text("a.txt", "1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not (tmp_path / "deep").exists()
    end(tmp_path / "deep/out", {"old.txt": "1"})
    with pytest.raises(RuntimeError):
        fail(force=True)
    assert tree(tmp_path / "deep/out") == {"old.txt": "1"}


def test_what_vanishes_leaves_what_was_edited(tmp_path):
    def fail() -> None:
        with resumable_folder(tmp_path / "out", "a run") as out:
            out.write_text("a.txt", "1")
            out.write_text("b.txt", "1")
            (out.path / "a.txt").write_text("edited")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert tree(tmp_path / "out") == {"a.txt": "edited"}


def test_a_file_that_appears_while_it_is_written_stays(tmp_path):
    def work() -> None:
        with resumable_folder(tmp_path / "out", "a run") as out, out.file("a.txt") as draft:
            draft.write_text("new")
            (out.path / "a.txt").write_text("mine")

    with pytest.raises(DataError, match=r"out/a.txt"):
        work()
    assert tree(tmp_path / "out") == {"a.txt": "mine"}


def test_an_old_run_stays_until_the_new_one_has_ended(tmp_path):
    out = tmp_path / "out"
    end(out, {"a.txt": "1", "old.txt": "1"})
    (out / "notes.md").write_text("mine")
    with pytest.raises(KeyboardInterrupt):
        begin(out, {"a.txt": "2"}, force=True)
    assert tree(out) == {"a.txt": "1", "old.txt": "1", "notes.md": "mine", f"{NEW}/a.txt": "2"}
    end(out, {"b.txt": "2"}, resume=True)
    assert tree(out) == {"a.txt": "2", "b.txt": "2", "notes.md": "mine"}


def test_force_replaces_a_new_run_that_was_interrupted(tmp_path):
    out = tmp_path / "out"
    end(out, {"a.txt": "1"})
    with pytest.raises(KeyboardInterrupt):
        begin(out, {"b.txt": "2"}, force=True)
    end(out, {"c.txt": "3"}, force=True)
    assert tree(out) == {"c.txt": "3"}


def test_resume_and_force_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="resume, force: expected at most one of them, got both"):
        end(tmp_path / "out", {}, resume=True, force=True)
    assert not (tmp_path / "out").exists()


def test_a_file_that_changed_is_not_written_over(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        begin(out, {"metrics.csv": "1"})
    (out / "metrics.csv").write_text("edited")
    with pytest.raises(ChangedError, match=r"out/metrics.csv: has been changed"):
        end(out, {"metrics.csv": "2"}, resume=True)
    assert tree(out) == {"metrics.csv": "edited"}


def test_folders_within_are_replaced_together(tmp_path):
    out = tmp_path / "out"

    def runs(names: str, text: str, *, force: bool = False) -> None:
        with resumable_folder(out, "a series of runs", force=force) as place:
            for name in names:
                end(place.nested(name), {"a.txt": text})
            place.write_text("summary.json", text)

    runs("xy", "1")
    (out / "x/notes.md").write_text("mine")
    (out / "y/notes.md").write_text("mine")
    with pytest.raises(ExistsError):
        runs("xy", "2")
    runs("xz", "2", force=True)
    assert tree(out) == {
        "summary.json": "2",
        "x/a.txt": "2",
        "x/notes.md": "mine",
        "y/notes.md": "mine",
        "z/a.txt": "2",
    }
    (out / "z/a.txt").write_text("edited")
    with pytest.raises(ChangedError, match=r"out/z/a.txt: has been changed"):
        runs("x", "3", force=True)


# --- killed at any moment ---------------------------------------------------------------------------------------------

KILLED = """
import os, sys
from pathlib import Path
from mtlkit import _output, _owned
from mtlkit._output import new_folder, resumable_folder

steps = int(sys.argv[2])

def counted(function):
    def step(*arguments, **options):
        global steps
        steps -= 1
        if steps < 0:
            os.kill(os.getpid(), 9)
        return function(*arguments, **options)
    return step

for name in ("replace", "unlink", "rename", "mkdir", "rmdir", "open", "write_bytes", "write_text"):
    setattr(Path, name, counted(getattr(Path, name)))
function = {"new": new_folder, "resumable": resumable_folder}[sys.argv[3]]
with function(sys.argv[1], "a run", force=True) as out:
    out.write_text("a.txt", "2")
    out.write_text("deep/c.txt", "2")
    if sys.argv[3] == "resumable":
        out.resumable = True
        with resumable_folder(out.nested("inner"), "a run") as inner:
            inner.write_text("d.txt", "2")
    out.write_text("result.json", "2")
print("whole")
"""


@pytest.mark.parametrize("function", ["new", "resumable"])
def test_killed_at_any_moment(tmp_path, run_python, function):
    """No file of the user is lost, and the next attempt succeeds and leaves only the files of the new folder."""
    new = {"a.txt": "2", "deep/c.txt": "2", "result.json": "2"}
    inner = {"d.txt": "2"} if function == "resumable" else {}
    expected = new | {f"inner/{name}": text for name, text in inner.items()}
    mine = {"notes.md": "mine", "deep/notes.md": "mine"}
    for steps in range(0, 200, 3):
        out = tmp_path / str(steps)
        with resumable_folder(out, "a run") as place:
            for name in ("a.txt", "deep/b.txt", "result.json"):
                place.write_text(name, "1")
            end(place.nested("inner"), {"d.txt": "1", "e.txt": "1"})
        for name, text in mine.items():
            (out / name).write_text(text)
        process = run_python("-c", KILLED, str(out), str(steps), function)
        assert {name: (out / name).read_text() for name in mine} == mine
        if process.stdout == "whole\n":
            break
        assert process.returncode == -signal.SIGKILL, process.stderr
        if (out / "result.json").is_file():  # written last
            text = (out / "result.json").read_text()
            assert (out / "a.txt").read_text() == text
        with resumable_folder(out, "a run", force=True) as place:
            if inner:
                end(place.nested("inner"), inner)
            for name, text in new.items():
                place.write_text(name, text)
        assert tree(out) == expected | mine
    else:
        pytest.fail("was killed in all cases")
    assert tree(out) == expected | mine


def test_a_torn_line_is_written_again(tmp_path):
    files = FileList.create(tmp_path, "a run")
    (tmp_path / "a").write_text("1")
    files.add("a", _output.contents(tmp_path / "a"))
    with (tmp_path / LIST).open("ab") as file:
        file.write(b'{"file": "b", "si')
    again = FileList.read(tmp_path)
    again.add_draft("c")
    assert list(FileList.read(tmp_path).files) == ["a", "c"]
