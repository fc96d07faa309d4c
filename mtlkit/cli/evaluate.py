"""`mtlkit evaluate`: how good a trained network is, how sure that is, and where it fails."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtlkit.cli._calibrating import add_no_calibrate
from mtlkit.cli._judging import add_judging
from mtlkit.cli._limits import LESS_AT_ONCE
from mtlkit.cli._progress import progress_bar

DESCRIPTION = """\
Runs the network of a training run over a part of a data set, and writes a folder: every figure of the papers with a
95 % bootstrap interval (IoU, Dice, HD95, surface Dice, ...; accuracy, F1, AUC), how well the gates foretell failure,
what the gates and the interaction of the tasks do at each level, a row for each image, plots, and a report to read.
With --oracle also what the interaction brings: each gate is forced off and on, for every image.

Groups (patients, where the data set knows them) are drawn whole for the intervals. Images without lesion are left out
of the figures of the masks, and counted.
"""
EPILOG = """\
examples:
  mtlkit evaluate runs/mbdi --out mbdi-test                      the test part of the run's own data set
  mtlkit evaluate runs/mbdi --out mbdi-whu --data BUSI_WHU       another data set, all of it
  mtlkit evaluate runs/csa --out csa                             all seeds of --repeats: mean ± standard deviation
  mtlkit evaluate runs/cv --out cv                               folds of --folds: also all test images together
  mtlkit evaluate runs/csa/seed-42 --out csa --part val --tsne   one of them; features in the plane
  mtlkit evaluate runs/btinet --out oracle --oracle --rivals     are the gates right, and what else would tell
  mtlkit evaluate runs/mbdi --out mbdi-test --force              once more, in place of the earlier one

the folder: report.html (open it in a browser; it needs no other file), metrics.json, images.csv, *.png, with --oracle
oracle.csv; of several seeds a folder for each, and metrics.json, metrics.csv and report.html over them

another data set is matched by the names of its classes: those that the network does not know are left out.

exit status: 0 evaluated, 2 not evaluated; one sentence on standard error says what and where. The folder is written
whole or not at all.
"""


def add_command(commands: Any) -> None:
    """Adds `evaluate` to the command line."""
    command = commands.add_parser(
        "evaluate",
        help="judge a trained network: figures with intervals, plots, a report",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("run_folder", type=Path, metavar="RUN", help="the folder of a run that has ended, or of several seeds or folds")
    add("--out", type=Path, required=True, metavar="FOLDER", help="where to write; a new folder")
    add("--data", type=Path, metavar="FOLDER", help="the data set; default: that of the run, where it lay")
    add(
        "--part",
        metavar="NAME",
        help="test, val or train of the run's split, or all; default test, of another data set all",
    )
    add("--layout", metavar="NAME", help="of the data set, as in `mtlkit data check`; by default found by looking")
    add("--oracle", action="store_true", help="force each gate off and on: what the interaction brings, and who knows")
    add(
        "--rivals",
        type=int,
        nargs="?",
        const=20,
        default=0,
        metavar="N",
        help="also judge N passes of Monte-Carlo dropout, and flips, as failure scores; N is 20 if not given",
    )
    add(
        "--tolerance",
        type=float,
        default=2.0,
        metavar="D",
        help="up to which distance surface Dice takes boundaries for the same, in pixels and mm; default 2",
    )
    add_no_calibrate(command)
    add_judging(command, examples=5, shown="best and worst masks to show")
    add("--force", action="store_true", help="overwrite what an earlier evaluation wrote there")
    command.set_defaults(run=run, command="evaluate", needs=("train",), memory=LESS_AT_ONCE)


def run(options: argparse.Namespace) -> int:
    """`mtlkit evaluate`."""
    from rich.table import Table

    from mtlkit.cli._console import open_console
    from mtlkit.evaluation import evaluate, evaluate_repeats
    from mtlkit.training.saved_run import runs_within

    names = ("part", "layout", "tolerance", "samples", "seed", "examples", "tsne", "oracle", "rivals")
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
    headings = ("figure", "mean ± sd", "lowest to highest") if several else ("figure", "value", "95 % interval")
    table = Table(*headings, title=title, title_justify="left")
    for row in (_repeated if several else _single)(metrics["figures"]):
        table.add_row(*row)
    console = open_console(soft_wrap=True)
    console.print(table)
    if "pooled" in metrics:
        table = Table("figure", "value", "95 % interval", title="all folds together", title_justify="left")
        for row in _single(metrics["pooled"]["figures"]):
            table.add_row(*row)
        console.print(table)
    for table in _of_oracle(metrics.get("oracle") or {}):
        console.print(table)
    for remark in metrics["remarks"]:
        console.print(remark)
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
    from rich.table import Table

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
        table = Table("", *found["head"], title=found["title"], title_justify="left")
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
