"""`mtlkit ablate`: a paper's table of ablations in one run."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlkit.cli._cluster import add_ray
from mtlkit.cli.train import MEMORY, add_training_options, changes_of, cluster_options, training_options

if TYPE_CHECKING:
    from rich.console import Console

    from mtlkit.training import Ablation, AblationRow

DESCRIPTION = """\
Trains a recipe once for each row of a table, with the same split and seeds but with different parts switched off, and
prints the test metrics of all rows next to the published ones.

tables: --list names those of the papers; a path that ends in .yaml is your own:

  name: Without and with TIM
  recipe: mbdi
  figures: [iou, accuracy, parameters]
  rows:
    - {name: without, changes: {model: {options: {tim: false, upa: false}}}, published: {iou: 69.95}}
    - {name: with, changes: {}}
"""
EPILOG = """\
examples:
  mtlkit ablate --list                                           every table: paper, data set, rows and training steps
  mtlkit ablate csa_moe_table4 --costs                           parameters and FLOPs of each row; trains nothing
  mtlkit ablate mbdi_table1_busi --data phantoms --rehearse --out runs/rehearsal     does every row run? takes minutes
  mtlkit ablate mbdi_table1_busi --measure                       how long the table takes on this machine
  mtlkit ablate demo --data phantoms/busi --out runs/ablation --repeats 3
  mtlkit ablate mbdi_table2_busi --data BUSI --out runs/table --set data.batch_size=8
  mtlkit ablate mbdi_table2_busi --data BUSI --out runs/table --resume     after a crash; finished rows are kept
  mtlkit ablate mbdi_table2_busi --data BUSI --out runs/table --repeats 20 --ray auto    over the GPUs of a Ray cluster

the folder: table.json, table.csv and table.md, written again after each row, and a folder of runs for each row

exit status: 0 all rows trained, 2 not; one sentence on standard error says why
"""


def add_command(commands: Any) -> None:
    """Adds `ablate` to the command line."""
    command = commands.add_parser(
        "ablate",
        help="train the rows of an ablation table",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("table", nargs="?", metavar="TABLE", help="a name, or a file")
    add("--list", action="store_true", help="list the tables of the papers and train nothing")
    add("--costs", action="store_true", help="print parameters and FLOPs of each row and train nothing")
    add("--measure", action="store_true", help="time a training step of each row on this machine and train nothing")
    add("--data", type=Path, metavar="FOLDER", help="the data set; with --rehearse also the word `phantoms`")
    add("--out", type=Path, metavar="FOLDER", help="folder to write; it must be new")
    add("--rehearse", action="store_true", help="train each row for one epoch on 16 small images, to see that it runs")
    add("--repeats", type=int, default=1, metavar="N", help="train each row with N seeds; default 1")
    add_training_options(command)
    add_ray(add, "rows and seeds")
    either = command.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="continue an interrupted table")
    either.add_argument(
        "--force", action="store_true", help="start again; the files of the earlier table, and no others, are replaced"
    )
    command.set_defaults(run=run, command="ablate", needs=("train",), memory=MEMORY)


def run(options: argparse.Namespace) -> int:
    """`mtlkit ablate`."""
    from mtlkit.cli._console import open_console
    from mtlkit.training.run import is_main

    console = open_console(soft_wrap=True, quiet=not is_main())  # of several processes one tells
    if options.list:
        _print(console, "Tables of the papers", *_tables())
        return 0
    if options.table is None:
        raise ValueError("TABLE: expected the name of a table; mtlkit ablate --list names them")
    if options.costs or options.measure:
        return _tell(console, options)
    for name in ("data", "out"):
        if getattr(options, name) is None:
            raise ValueError(f"--{name}: expected a folder, got none")
    return _train(console, options)


def _train(console: "Console", options: argparse.Namespace) -> int:
    from mtlkit._output import check_outside
    from mtlkit.training import ablate, count_table, load_ablation
    from mtlkit.training.ablation_table import COSTS, show
    from mtlkit.training.config import named_recipe

    if options.force:
        check_outside(options.out, options.table)
    table = load_ablation(options.table, changes_of(options))

    def on_row(number: int, row: "AblationRow") -> None:
        console.print(f"{number + 1} of {len(table.rows)}: {row.name}")

    settings = training_options(options, progress=console.is_terminal) | {"rehearse": options.rehearse}
    settings |= cluster_options(options)
    with named_recipe(options.table):
        found = ablate(table, options.data, options.out, repeats=options.repeats, on_row=on_row, **settings)
    costs = count_table(table) if COSTS.keys() & set(table.figures) else None
    _print(console, table.name, *show(table, found, costs))
    console.print(f"{options.out / 'table.md'}, .csv and .json hold it")
    return 0


def _tables() -> tuple[list[str], list[list[str]]]:
    """Every table that comes with mtlkit: what it is of, and how long it trains."""
    from mtlkit.training import count_steps, list_ablations, load_ablation

    cells = []
    for name in list_ablations():
        table = load_ablation(name)
        steps = sum(count_steps(row.config, table.images) for row in table.rows)
        shown_steps = f"{steps:,}" if table.images else ""
        cells.append([name, table.paper, ", ".join(table.data), str(len(table.rows)), shown_steps])
    return ["table", "paper", "data set", "rows", "steps at most"], cells


def _tell(console: "Console", options: argparse.Namespace) -> int:
    """What the rows cost, or how long they train here."""
    from mtlkit.training import count_table, load_ablation
    from mtlkit.training.ablation_table import cost_rows
    from mtlkit.training.config import named_recipe

    table = load_ablation(options.table, changes_of(options))
    with named_recipe(options.table):
        if options.costs:
            _print(console, table.name, *cost_rows(table, count_table(table)))
        if options.measure:
            _print(console, table.name, *_durations(table))
    return 0


def _durations(table: "Ablation") -> tuple[list[str], list[list[str]]]:
    """Of each row the measured step, and the hours of all of its steps on this device."""
    import torch

    from mtlkit.training import count_steps, measure_step

    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    cells, total = [], 0.0
    for row in table.rows:
        steps, seconds = count_steps(row.config, table.images), measure_step(row.config, "cuda" if gpu else "cpu")
        total += steps * seconds / 3600
        cells.append([row.name, f"{1000 * seconds:.0f}", f"{steps:,}", f"{steps * seconds / 3600:.1f}"])
    cells.append(["all rows, one seed", "", "", f"{total:.1f}"])
    return ["", "step, ms", "steps at most", f"hours at most on {device}"], cells


def _print(console: "Console", title: str, headings: list[str], cells: list[list[str]]) -> None:
    """A table on the screen; the best of a column stands in bold, where files have asterisks."""
    from rich.text import Text

    from mtlkit._text import printable
    from mtlkit.cli._console import open_table

    drawn = open_table(*headings, title=title)
    for name, *figures in cells:
        bold = ("bold" if cell.startswith("**") else "" for cell in figures)
        shown = (Text(cell.replace("**", ""), style) for cell, style in zip(figures, bold, strict=True))
        drawn.add_row(Text(printable(name)), *shown)
    console.print(drawn)
