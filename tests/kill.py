"""Kills `mtlkit train`, `predict` and `ablate` at random moments, resumes them, and compares the folders.

    python -m tests.kill --times 50

One process imports everything once and forks, so that a trial takes seconds: a child runs the command and is killed by
SIGKILL at a random moment; further children resume it, and some of them are killed as well. The final folder must equal
that of an uninterrupted command: the same files, bit by bit, and checkpoints tensor by tensor.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from mtlkit.cli import main
from mtlkit.data import synthesize_ultrasound
from mtlkit.training import load_config

NET = {
    "encoder": "resnet18",
    "freeze_until": "layer4",
    "decoder_dims": [16, 16, 12, 8],
    "clf_dim": 16,
    "num_classes": 3,
    "hmsf": False,
}
RECIPE = {
    "model": {"options": NET},
    "data": {"size": 32, "batch_size": 4, "cache": False, "workers": 0},
    "stopping": {"epochs": 2},
    "schedule": {"monitor": "val/combined", "patience": 0, "factor": 0.5},
    "second_stage": {"loss": {"gates": 1.0}, "stopping": {"epochs": 2, "monitor": "val/loss", "mode": "min"}},
}
SHORT = {"second_stage": None, "stopping": {"epochs": 1}}
ROWS = [
    {"name": "with", "changes": SHORT},
    {"name": "without", "changes": {**SHORT, "optimizer": {"lr": 0.001}}},
]
RESUMES = 20  # the most per trial
LIST, CLAIM = ".mtlkit-files", ".mtlkit-claim"


class Trial(NamedTuple):
    """The result of one trial."""

    command: str
    seconds: float  # duration of an uninterrupted run, if known
    kills: int  # kills while the command was running
    places: tuple[str, ...]  # the progress at each kill
    difference: str  # from the folder of an uninterrupted run; "" if there is none


# --- processes --------------------------------------------------------------------------------------------------------


def begin(arguments: Sequence[str], log: Path) -> int:
    """Forks a child that runs a command; returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = main(arguments)
    finally:
        os._exit(status)


def wait(child: int, seconds: float | None = None) -> int | None:
    """The exit status of a child, negative for a signal; None if it does not finish within this many seconds."""
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        number, status = os.waitpid(child, 0 if end is None else os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        if end is not None and time.monotonic() >= end:
            return None
        time.sleep(0.002)


# --- folders ----------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> Iterator[tuple[str, Any]]:
    """Names and contents of all files: checkpoints are loaded, lists are sorted."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".ckpt":
            yield name, _without(str(folder), torch.load(path, weights_only=True))
        elif path.name == LIST:
            lines = path.read_bytes().splitlines()
            yield name, sorted(line for line in lines if b".ckpt" not in line)
        else:
            yield name, path.read_bytes()


def _without(folder: str, value: Any) -> Any:
    """The value with the folder's path removed from strings, because checkpoints contain it."""
    if isinstance(value, dict):
        return {_without(folder, key): _without(folder, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without(folder, item) for item in value)
    return value.replace(folder, "") if isinstance(value, str) else value


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, tensors bit by bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def difference(folder: Path, whole: Path) -> str:
    """The first file that differs; "" if none does."""
    found, expected = dict(contents(folder)), dict(contents(whole))
    for name in sorted({*found, *expected}):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is left over"
        if not same(found[name], expected[name]):
            return f"{name} differs"
    return ""


def place_of(out: Path) -> str:
    """The progress of a command, from the files that exist."""
    if not (out / LIST).exists():
        return "before the folder"
    if (out / "table.json").exists():
        return "after a row"
    marks = {"result.json": "at the end", "stage2": "stage 2", "stage1/done.json": "between the stages"}
    for name, words in marks.items():
        if (out / name).exists():
            return words
    if (out / "predictions.csv").exists():
        return "at the end"
    if (out / "stage1/last.ckpt").exists():
        return "stage 1"
    rows = list((out / "overlays").rglob("*.png"))
    return "among the images" if rows else "before the first result"


# --- trials -----------------------------------------------------------------------------------------------------------


def prepare(folder: Path) -> dict[str, Callable[[Path], list[str]]]:
    """Writes phantoms, a recipe and a table, and trains the run for predictions; returns the commands by name."""
    synthesize_ultrasound(folder / "busi", cases=24, size=64)
    load_config("demo").change(RECIPE).save(folder / "recipe.yaml")
    (folder / "table.yaml").write_text(yaml.safe_dump({"recipe": "recipe.yaml", "rows": ROWS}))
    data = ["--data", str(folder / "busi")]
    recipe, table = str(folder / "recipe.yaml"), str(folder / "table.yaml")
    return {
        "train": lambda out: ["train", recipe, *data, "--out", str(out)],
        "predict": lambda out: [
            "predict",
            str(folder / "whole-train"),
            str(folder / "busi"),
            "--out",
            str(out),
            "--batch-size",
            "3",
        ],
        "ablate": lambda out: ["ablate", table, *data, "--out", str(out)],
    }


def undisturbed(name: str, command: list[str], log: Path) -> float:
    """Runs a command without interruption; returns its duration in seconds."""
    began = time.monotonic()
    if (status := wait(begin(command, log))) != 0:
        raise SystemExit(f"{name}: ended with {status} before any kill\n{log.read_text()}")
    return time.monotonic() - began


def trial(name: str, command: list[str], out: Path, whole: Path, seconds: float, random_: random.Random) -> Trial:
    """Kills a command and its resumptions at random moments until one finishes."""
    log, places = out.with_name(f"{out.name}.log"), []
    for attempt in range(RESUMES):
        began = time.monotonic()
        child = begin([*command, *(["--resume"] if attempt else [])], log)
        disturbed = attempt == 0 or random_.random() < 0.7
        status = wait(child, random_.uniform(0, seconds) if disturbed else None)
        if status is None:
            os.kill(child, signal.SIGKILL)
            wait(child)
            places.append(place_of(out))
            continue
        if status != 0:
            return Trial(name, seconds, len(places), tuple(places), f"ended with {status}: {log.read_text()[-500:]}")
        seconds = min(seconds, time.monotonic() - began) if attempt == 0 else seconds
        break
    return Trial(name, seconds, len(places), tuple(places), difference(out, whole))


def run(times: int, seed: int, folder: Path, tell: Callable[[str], None]) -> list[Trial]:
    """Runs trials of each command in turn.

    Args:
        times: the least number of kills in total.
        seed: for the random moments.
        folder: an empty one.
        tell: gets each trial.
    """
    torch.set_num_threads(1)
    commands, seconds, random_ = prepare(folder), {}, random.Random(seed)
    for name, command in commands.items():
        seconds[name] = undisturbed(name, command(folder / f"whole-{name}"), folder / f"{name}.log")
        tell(f"{name}: {seconds[name]:.1f} s undisturbed")
    trials: list[Trial] = []
    while sum(one.kills for one in trials) < times:
        name = list(commands)[len(trials) % len(commands)]
        out = folder / f"trial-{len(trials)}"
        one = trial(name, commands[name](out), out, folder / f"whole-{name}", seconds[name], random_)
        seconds[name] = one.seconds
        trials.append(one)
        tell(f"{len(trials):3}  {name:8} {', '.join(one.places) or 'not met'}: {one.difference or 'identical'}")
        if not one.difference:
            shutil.rmtree(out)
    return trials


def summary(trials: Sequence[Trial]) -> list[str]:
    """The results, one line per command."""
    lines = []
    for name in dict.fromkeys(one.command for one in trials):
        own = [one for one in trials if one.command == name]
        kills, bad = sum(one.kills for one in own), sum(bool(one.difference) for one in own)
        places = Counter(place for one in own for place in one.places)
        where = ", ".join(f"{place} {count}" for place, count in places.most_common())
        lines.append(f"{name}: {len(own)} commands, {kills} kills ({where}), {len(own) - bad} identical, {bad} not")
    return lines


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--times", type=int, default=50, help="kills; default 50")
    options.add_argument("--seed", type=int, default=0, help="of the moments; default 0")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = run(given.times, given.seed, Path(name), lambda line: print(line, flush=True))
    print("\n".join(summary(found)))
    sys.exit(any(one.difference for one in found))
