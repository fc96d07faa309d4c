"""`mtlkit evaluate`: metrics of a trained network with intervals, and its failures."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtlkit.cli._calibrating import add_no_calibrate
from mtlkit.cli._judging import add_judging
from mtlkit.cli._limits import LESS_AT_ONCE
from mtlkit.cli._passes import add_passes
from mtlkit.cli._progress import progress_bar

DESCRIPTION = """\
Runs the network of a training run on a part of a data set, and writes a folder: every metric of the papers with a
95 % bootstrap interval (IoU, Dice, HD95, surface Dice, ...; accuracy, F1, AUC), how well the gates predict failure,
what the gates and the interaction of the tasks do at each level, where the network looks for the class (Grad-CAM of the
worst, median and best image), a row for each image, plots, and a report.
With --oracle it also measures what the interaction gains: each gate is forced off and on, for every image.

The bootstrap resamples patients, where the data set names them, not single images. Images without a lesion are left
out of the mask metrics, and counted.
"""
EPILOG = """\
examples:
  mtlkit evaluate runs/mbdi --out mbdi-test                      the test part of the run's own data set
  mtlkit evaluate runs/mbdi --out mbdi-whu --data BUSI_WHU       another data set, all of it
  mtlkit evaluate runs/csa --out csa                             all seeds of --repeats: mean ± standard deviation
  mtlkit evaluate runs/cv --out cv                               folds of --folds: also all test images together
  mtlkit evaluate runs/csa/seed-42 --out csa --part val --tsne   one of them; and a plot of the features
  mtlkit evaluate runs/btinet --out oracle --oracle --rivals     do the gates, or other scores, predict failure?
  mtlkit evaluate runs/mbdi --out flips --tta                    mean over each image and its mirror images
  mtlkit evaluate runs/mbdi --out mbdi-test --force              again, replacing the earlier one

the folder: report.html (open it in a browser; it needs no other file), metrics.json, images.csv, *.png, with --oracle
oracle.csv; of several seeds a folder for each, and metrics.json, metrics.csv and report.html over them

classes of another data set are matched by name; images of classes that the network does not know are left out.

exit status: 0 evaluated, 2 not evaluated; one sentence on standard error says why. The folder is written completely or
not at all.
"""


def add_command(commands: Any) -> None:
    """Adds `evaluate` to the command line."""
    command = commands.add_parser(
        "evaluate",
        help="evaluate a trained network: metrics with intervals, plots, a report",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("run_folder", type=Path, metavar="RUN", help="folder of a finished run, or of several seeds or folds")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder to write; it must be new")
    add("--data", type=Path, metavar="FOLDER", help="the data set; default: the one that the run was trained on")
    add(
        "--part",
        metavar="NAME",
        help="test, val or train of the run's split, or all; default test, of another data set all",
    )
    add("--layout", metavar="NAME", help="layout of the data set, as in `mtlkit data check`; detected by default")
    add("--oracle", action="store_true", help="force each gate off and on, to measure what the interaction gains")
    add(
        "--rivals",
        type=int,
        nargs="?",
        const=20,
        default=0,
        metavar="N",
        help="also evaluate Monte Carlo dropout (N passes, default 20) and flips as failure scores",
    )
    add(
        "--tolerance",
        type=float,
        default=2.0,
        metavar="D",
        help="distance within which surface Dice counts boundaries as equal, in pixels and mm; default 2",
    )
    add_no_calibrate(command)
    add_passes(command)
    add_judging(command, examples=5, shown="best and worst masks to show")
    add("--force", action="store_true", help="replace the files of an earlier evaluation, and no others")
    command.set_defaults(run=run, command="evaluate", needs=("train",), memory=LESS_AT_ONCE)


def run(options: argparse.Namespace) -> int:
    """`mtlkit evaluate`."""
    from mtlkit.cli._console import open_console, open_table
    from mtlkit.evaluation import evaluate, evaluate_repeats
    from mtlkit.inference.passes import cost_in_words
    from mtlkit.training.saved_run import runs_within

    names = ("part", "layout", "tolerance", "samples", "seed", "examples", "tsne", "oracle", "rivals")
    names += ("sliding_window", "tta")
    names += ("batch_size", "max_pixels", "skip_bad", "force")
    settings = {name: getattr(options, name) for name in names}
    several = bool(runs_within(options.run_folder))
    judge = evaluate_repeats if several else evaluate
    with progress_bar("looking at images") as progress:
        metrics = judge(
            options.run_folder,
            options.data,
            options.out,
            device=usable_device(options.device),
            progress=progress,
            calibrate=not options.no_calibrate,
            **settings,
        )
    title = f"{metrics['model']}, {metrics['part']} part of {metrics['data']}"
    title += f", {len(metrics['runs'])} runs" if several else ""
    headings = ("metric", "mean ± sd", "lowest to highest") if several else ("metric", "value", "95 % interval")
    table = open_table(*headings, title=title)
    for row in (_repeated if several else _single)(metrics["figures"]):
        table.add_row(*row)
    console = open_console(soft_wrap=True)
    console.print(table)
    if "pooled" in metrics:
        table = open_table("figure", "value", "95 % interval", title="all folds together")
        for row in _single(metrics["pooled"]["figures"]):
            table.add_row(*row)
        console.print(table)
    for table in _of_oracle(metrics.get("oracle") or {}):
        console.print(table)
    for remark in metrics["remarks"]:
        console.print(remark)
    if cost := metrics["cost"]:
        passes, seconds = (cost[name]["mean"] if several else cost[name] for name in ("passes", "seconds"))
        console.print(cost_in_words(passes, seconds, tta=options.tta, sliding_window=options.sliding_window))
    console.print(f"{options.out / 'report.html'}: the report")
    return 0


def _single(figures: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The rows of one run: value and interval."""
    from mtlkit.evaluation.report import figure_rows

    for name, entry in figure_rows(figures):
        value, low, high = (entry[key] for key in ("value", "low", "high"))
        interval = "" if low is None else f"{low:.3f} to {high:.3f}"
        yield name, "not defined" if value is None else f"{value:.3f}", interval


def _repeated(figures: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The rows of several: mean, standard deviation and range."""
    from mtlkit.evaluation.report import figure_rows
    from mtlkit.training.aggregate import in_words

    for name, entry in figure_rows(figures):
        values = [value for value in entry["runs"].values() if value is not None]
        span = f"{min(values):.3f} to {max(values):.3f}" if len(values) > 1 else ""
        yield name, in_words(entry, 3), span


def _of_oracle(oracle: dict[str, Any]) -> Iterator[Any]:
    """The tables of the oracle, if there is one."""
    from mtlkit.cli._console import open_table
    from mtlkit.evaluation.report import oracle_tables
    from mtlkit.training.aggregate import in_words

    def words(entry: dict[str, Any] | None) -> str:
        if entry is None:
            return ""
        if "mean" in entry:
            return in_words(entry, 3)
        value, low, high = entry.values()
        told = "not defined" if value is None else f"{value:.3f}"
        return told if low is None else f"{told} ({low:.3f} to {high:.3f})"

    for found in oracle_tables(oracle) if oracle else ():
        table = open_table("", *found["head"], title=found["title"])
        for name, figures in found["rows"]:
            table.add_row(name, *map(words, figures))
        yield table


def usable_device(name: str | None) -> str:
    """The device, if torch can use it."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name}: torch cannot use it ({str(error).splitlines()[0]})") from None
    return name
