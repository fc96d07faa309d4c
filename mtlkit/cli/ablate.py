"""`mtlkit ablate`: a paper's table of ablations in one run."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlkit.cli._limits import add_max_pixels

if TYPE_CHECKING:
    from mtlkit.training import AblationRow

DESCRIPTION = """\
Trains one recipe once for each row of a table, a part more or less in each, on the same split and with the same seeds,
and sets the figures of the test part side by side.

tables: mbdi, btinet, csa_moe and hybrid_vssm are the papers'; demo is small; a path ending in .yaml is one of yours:

  name: Without and with TIM
  recipe: mbdi
  figures: [iou, accuracy]
  rows:
    - {name: without, changes: {model: {options: {tim: false, upa: false}}}}
    - {name: with, changes: {}}
"""
EPILOG = """\
examples:
  mtlkit ablate demo --data phantoms/busi --out runs/ablation --repeats 3
  mtlkit ablate mbdi --data BUSI --out runs/table --set data.batch_size=8 --set model.options.pretrained=false
  mtlkit ablate mbdi --data BUSI --out runs/table --resume       after a crash; rows that ended are left as they are

the folder: table.json, table.csv and table.md, written again after each row, and a folder of runs for each row

exit status: 0 all rows trained, 2 not; one sentence on standard error says what and where
"""


def add_command(commands: Any) -> None:
    """Adds `ablate` to the command line."""
    command = commands.add_parser(
        "ablate",
        help="train a table of ablations",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("table", metavar="TABLE", help="a name, or a file")
    add("--data", type=Path, required=True, metavar="FOLDER", help="the data set")
    add("--out", type=Path, required=True, metavar="FOLDER", help="the runs and their table; a new folder")
    add("--repeats", type=int, default=1, metavar="N", help="train each row with N seeds; default 1")
    add("--split", type=Path, metavar="FILE", help="a saved split, in place of a drawn one")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting of all rows")
    add("--devices", type=int, default=1, metavar="N", help="processes, one for each GPU; default 1")
    add("--skip-bad", action="store_true", help="leave out what cannot be used in the data set")
    add_max_pixels(command)
    either = command.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="go on with a table that was interrupted")
    either.add_argument(
        "--force", action="store_true", help="begin again; an earlier table stays until the new one is complete"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """`mtlkit ablate`."""
    from rich.table import Table
    from rich.text import Text

    from mtlkit._output import check_outside
    from mtlkit.cli._console import open_console
    from mtlkit.cli.train import changes_of, training_options
    from mtlkit.training import ablate, load_ablation
    from mtlkit.training.ablation import show
    from mtlkit.training.config import named_recipe
    from mtlkit.training.run import is_main

    console = open_console(soft_wrap=True, quiet=not is_main())  # of several processes one tells
    if options.force:
        check_outside(options.out, options.table)
    table = load_ablation(options.table, changes_of(options))

    def on_row(number: int, row: "AblationRow") -> None:
        console.print(f"{number + 1} of {len(table.rows)}: {row.name}")

    settings = training_options(options, progress=console.is_terminal)
    with named_recipe(options.table):
        found = ablate(table, options.data, options.out, repeats=options.repeats, on_row=on_row, **settings)
    headings, cells = show(table, found)
    drawn = Table(title=table.name, title_justify="left")
    for number, heading in enumerate(headings):
        drawn.add_column(heading, no_wrap=number == 0)
    for row in cells:
        drawn.add_row(*(Text(cell.strip("*"), "bold") if cell.startswith("**") else cell for cell in row))
    console.print(drawn)
    console.print(f"{options.out / 'table.md'}, .csv and .json hold it")
    return 0
