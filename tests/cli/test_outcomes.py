"""How commands end: hints on options, signals, and readers that close the pipe."""

import functools
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mtlkit import errors
from mtlkit._output import new_folder
from mtlkit.cli import main, parser
from mtlkit.cli._outcomes import printable_warnings, sentence

MTLKIT = Path(sys.executable).with_name("mtlkit")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("outcomes") / "busi"
    assert main(["data", "synthesize", "ultrasound", str(folder), "--cases", "24", "--size", "64"]) == 0
    return folder


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.ExistsError("out: exists already"), "out: exists already; --force replaces it"),
        (
            errors.ExistsError("out: there is a run already", resumable=True),
            "out: there is a run already; --resume continues it, --force starts again",
        ),
        (
            errors.UnfinishedError("out: has not finished"),
            "out: has not finished; `mtlkit train --resume` continues it",
        ),
        (errors.CheckpointError("a.ckpt: is missing"), "a.ckpt: is missing; --force starts the run again"),
        (errors.UnusableError("a.png: is gone"), "a.png: is gone; --skip-bad leaves it out"),
        (errors.MasksNeededError("masks are needed"), "masks are needed; --masks names it"),
        (errors.DataError("out: is odd"), "out: is odd"),
    ],
)
def test_the_option_that_helps(error, words):
    assert sentence(error) == words


def test_words_of_other_processes_are_those_of_the_error():
    """The error of a data-loading process comes from torch as a traceback with the message at its end."""
    words = "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  x\n"
    error = errors.DataError(f"{words}mtlkit.errors.DataError: /a: b\n\x1b.png: cannot be read")
    assert sentence(error) == r"/a: b\n\x1b.png: cannot be read"
    assert sentence(ValueError("two\nlines\x1b")) == "two\nlines\\x1b"


def test_warnings_do_not_control_the_terminal():
    given = (UserWarning("Unknown encoding '\x1b[2J'"), UserWarning, "a.py", 1)
    before = warnings.formatwarning(*given)
    with printable_warnings():
        text = warnings.formatwarning(*given)
    assert text == before.replace("\x1b", r"\x1b") != before
    assert warnings.formatwarning(*given) == before


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory; "),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."), "out of memory; "),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory on the GPU; "),
        (MemoryError("a.png: there is not enough memory to read it"), "a.png: there is not enough memory to read it; "),
        (
            MemoryError("Caught MemoryError in process 0.\nOriginal Traceback ...\nMemoryError: a: not enough memory"),
            "a: not enough memory; ",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "out of memory: the system ended a process that reads images; ",
        ),
    ],
)
def test_memory_names_what_to_lower(error, words, monkeypatch, capsys, phantoms):
    def hungry(*_, **__):
        raise error

    monkeypatch.setattr("mtlkit.data.validate.check_dataset", hungry)
    assert main(["data", "check", str(phantoms)]) == 2
    assert capsys.readouterr().err == f"mtlkit: {words}lower --max-pixels, which refuses large images\n"


@pytest.mark.parametrize(
    "command", ["train", "ablate", "evaluate", "predict", "data check", "data synthesize", "bench"]
)
def test_every_command_says_what_it_needs_and_what_to_lower(command):
    more = {
        "train": ["demo", "--data", "a", "--out", "b"],
        "ablate": ["demo", "--data", "a", "--out", "b"],
        "evaluate": ["run", "--out", "b"],
        "predict": ["run", "a", "--out", "b"],
        "data check": ["a"],
        "data synthesize": ["ultrasound", "a"],
        "bench": [],
    }
    options = parser().parse_args([*command.split(), *more[command]])
    assert options.command == command
    assert options.memory
    if command != "predict":  # because predict needs what its engine needs
        assert options.needs[0] == "train"


def test_other_errors_are_mistakes_in_the_code(monkeypatch, tmp_path):
    def wrong(*_, **__):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("mtlkit.data.validate.check_dataset", wrong)
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["data", "check", str(tmp_path)])


def test_missing_packages_are_told_before_anything_else(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["train", "nonsense", "--data", "none", "--out", str(tmp_path / "out")]) == 2
    words = "`mtlkit train` needs lightning and jinja2, which are not installed: pip install 'mtlkit[train]'"
    assert capsys.readouterr().err == f"mtlkit: {words}\n"


@pytest.mark.parametrize(
    "arguments", [["train", "demo", "--data", "none"], ["predict", "none", "a.png"], ["evaluate", "none"]]
)
def test_of_two_mistakes_the_input_is_told_first(capsys, tmp_path, monkeypatch, arguments):
    """Suggesting --force, which replaces the folder, would not help a user who named the wrong data set."""
    with new_folder(tmp_path / "out", "a run") as folder:
        folder.write_text("a", "1")
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--out", "out"]) == 2
    assert capsys.readouterr().err == "mtlkit: none: there is no such folder\n"


def test_the_library_names_no_option(root):
    """Only the command line mentions options; the only exception is descriptions in comments of recipes."""
    for path in (root / "mtlkit").rglob("*.py"):
        text = path.read_text()
        if path.parent.name != "cli":
            assert not any(f"--{name}" in text for name in ("force", "resume", "skip-bad", "masks", "repeats")), path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data", "synthesize", "ultrasound", "out", "--f"], "unrecognized arguments: --f"),
        (["train", "demo", "--data", "x", "--out", "out", "--f"], "unrecognized arguments: --f"),
        (["train", "demo", "--data", "x", "--out", "out", "--res"], "unrecognized arguments: --res"),
        (["--deb", "info"], "unrecognized arguments: --deb"),
        (["train", "demo", "--data", "x", "--out", "out", "--resume", "--force"], "not allowed with argument --resume"),
        (["ablate", "demo", "--data", "x", "--out", "out", "--force", "--resume"], "not allowed with argument --force"),
    ],
)
def test_options_are_written_out_and_fit_together(capsys, arguments, words):
    with pytest.raises(SystemExit) as status:
        main(arguments)
    assert status.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "ablate"])
def test_a_recipe_within_the_folder_is_refused(tmp_path, capsys, command, phantoms):
    recipe = tmp_path / "out/recipe.yaml"
    recipe.parent.mkdir()
    recipe.write_text("task: lesion")
    assert main([command, str(recipe), "--data", str(phantoms), "--out", str(tmp_path / "out"), "--force"]) == 2
    assert f"cannot be replaced, as {recipe}, which is read, lies in it" in capsys.readouterr().err
    assert recipe.read_text() == "task: lesion"


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a command that SIGINT can interrupt (shells make background jobs ignore it); it ends with the test."""
    processes = []

    def run(command):
        interruptible = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_signals_end_a_command_with_one_sentence(tmp_path, start, number, word):
    command = [MTLKIT, "data", "synthesize", "mammography", tmp_path / "out", "--cases", "500", "--size", "512"]
    process = start(command)
    while not list(tmp_path.rglob("*.dcm")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    assert process.communicate(timeout=60)[1] == f"mtlkit: {word}\n"
    assert process.returncode == 128 + number
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_training_that_was_stopped_can_be_resumed(tmp_path, phantoms, start, number, word):
    small = {"data.size": 32, "data.batch_size": 4, "data.workers": 0, "stopping.epochs": 500, "second_stage": "null"}
    small["model.options"] = "{encoder: resnet18, decoder_dims: [16, 16, 12, 8], clf_dim: 16, num_classes: 3}"
    command = [MTLKIT, "train", "demo", "--data", phantoms, "--out", tmp_path / "run"]
    command += [part for name, value in small.items() for part in ("--set", f"{name}={value}")]
    for arguments in ([], ["--resume"]):
        process = start([*command, *arguments])
        started, checkpoint = time.time(), tmp_path / "run/stage1/last.ckpt"
        while not (checkpoint.is_file() and checkpoint.stat().st_mtime > started):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(number)
        sentence = process.communicate(timeout=60)[1]
        assert sentence == f"mtlkit: {word}; --resume continues from the last whole epoch\n"
        assert process.returncode == 128 + number


# --- readers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["info"], ["--help"], ["train", "--help"], ["data", "check", "BUSI", "--all"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_ends_a_command_quietly(arguments, unbuffered, phantoms):
    arguments = [phantoms if argument == "BUSI" else argument for argument in arguments]
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [MTLKIT, *arguments],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (process.returncode, process.stderr) == (141, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_standard_output_is_one_sentence(unbuffered, phantoms):
    with Path("/dev/full").open("wb") as full:
        process = subprocess.run(
            [MTLKIT, "data", "check", phantoms, "--all"],
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    words = "mtlkit: standard output: No space left on device\n"
    assert (process.returncode, process.stderr) == (2, words)
