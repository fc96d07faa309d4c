"""`mtlkit compare`: compares trained networks on the same images."""

import argparse
from pathlib import Path
from typing import Any

from mtlkit.cli._judging import add_judging
from mtlkit.cli._limits import LESS_AT_ONCE
from mtlkit.cli._progress import progress_bar

DESCRIPTION = """\
Compares runs with the first of them on the same images, and writes a folder: every metric of every run, its difference
from the first run with a 95 % bootstrap interval, and tests: Wilcoxon's test for masks, McNemar's for classes, DeLong's
for the area under the ROC curve, adjusted by Holm's method if there are several runs.
"""
EPILOG = """\
examples:
  mtlkit compare runs/unet runs/mbdi --out comparison            the test part of the first run's data set
  mtlkit compare runs/table --out comparison --tsne              all rows and seeds of `mtlkit ablate`
  mtlkit compare runs/a runs/b --out comparison --data BUSI_WHU  another data set, all of it

the folder: comparison.md, .csv and .json; curves.png (loss and accuracy by epoch), gates.png (gates by epoch),
masks.png (masks of all runs, with the outline of the true one), features.png (with --tsne)

exit status: 0 compared, 2 not compared; one sentence on standard error says why. The folder is written completely or
not at all.
"""


def add_command(commands: Any) -> None:
    """Adds `compare` to the command line."""
    command = commands.add_parser(
        "compare",
        help="compare trained networks on the same images: differences, tests, plots",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs; the first is the baseline")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder to write; it must be new")
    add("--data", type=Path, metavar="FOLDER", help="the data set; default: the one that the first run was trained on")
    add("--part", metavar="NAME", help="test, val, train or all; default as for `mtlkit evaluate`")
    add_judging(command, examples=4, shown="images to show with the masks of all runs")
    add("--force", action="store_true", help="replace the files of an earlier comparison, and no others")
    command.set_defaults(run=run, command="compare", needs=("train",), memory=LESS_AT_ONCE)


def run(options: argparse.Namespace) -> int:
    """`mtlkit compare`."""
    from rich.text import Text

    from mtlkit._text import printable
    from mtlkit.cli._console import open_console, open_table
    from mtlkit.cli.evaluate import usable_device
    from mtlkit.evaluation import compare

    names = ("part", "samples", "seed", "examples", "tsne", "batch_size", "max_pixels", "skip_bad", "force")
    settings = {name: getattr(options, name) for name in names}
    with progress_bar("looking at images") as progress:
        found = compare(
            options.runs,
            options.data,
            options.out,
            device=usable_device(options.device),
            progress=progress,
            **settings,
        )
    title = f"{len(found['runs'])} runs on {found['images']} images of the part {found['part']}"
    table = open_table("figure", "run", "value", "difference", "test", "p", title=title)
    for figure, runs in found["figures"].items():
        for name, entry in runs.items():
            table.add_row(*(Text(printable(cell)) for cell in _cells(figure, name, entry)))
    console = open_console(soft_wrap=True)
    console.print(table)
    console.print(f"{options.out / 'comparison.md'}: the table; next to it figures, .csv and .json")
    return 0


def _cells(figure: str, name: str, entry: dict[str, Any]) -> tuple[str, ...]:
    value = entry["value"]["value"]
    shown = "not defined" if value is None else f"{value:.4f}"
    if "difference" not in entry:
        return figure, name, shown, "", "", ""
    apart, low, high = entry["difference"].values()
    span = "" if low is None else f" ({low:+.4f} to {high:+.4f})"
    p = "" if entry["p_adjusted"] is None else f"{entry['p_adjusted']:.3g}"
    return figure, name, shown, "" if apart is None else f"{apart:+.4f}{span}", entry["test"] or "", p
