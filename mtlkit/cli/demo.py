"""`mtlkit demo`: from phantoms to a trained network, its report, and its masks of real ultrasound."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from mtlkit._text import printable

DESCRIPTION = """\
Draws ultrasound phantoms, checks them, trains the small network of the recipe `demo`, evaluates it, and predicts masks
of real ultrasound that comes with pydicom: a lymph node and 30 frames of a heart. Neither is a breast image: they only
show the output for DICOM files from a hospital; the report has the network's metrics.

It takes five minutes on two cores and no download. Each command is printed before it runs.
"""
EPILOG = """\
examples:
  mtlkit demo
  mtlkit demo --quick --out /tmp/demo     half a minute: fewer phantoms, less training, poor masks
  mtlkit demo --force                     again, replacing the earlier one

the folder: busi/ (the phantoms), run/ (the network), report/report.html (open it in a browser), real/ (masks, overlays,
table of the real frames)

exit status: 0 all done, 2 a command failed; one sentence on standard error says what and where
"""
REAL = ("examples_rgb_color.dcm", "examples_ybr_color.dcm")  # of pydicom
FEWER_PHANTOMS = ("--cases", "24", "--size", "96")
LESS_TRAINING = ("--set", "data.size=64", "--set", "stopping.epochs=2", "--set", "second_stage.stopping.epochs=1")


def add_command(commands: Any) -> None:
    """Adds `demo` to the command line."""
    command = commands.add_parser(
        "demo",
        help="train and try a small network on phantoms: five minutes",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="FOLDER", help="where to write; default demo"
    )
    command.add_argument("--quick", action="store_true", help="fewer phantoms and epochs")
    command.add_argument("--force", action="store_true", help="overwrite what an earlier demo wrote there")
    command.set_defaults(run=run, command="demo", needs=("train",), memory="take --quick")


def lines(out: Path, *, quick: bool = False, force: bool = False) -> list[list[str]]:
    """The commands of the demo, each as the arguments of `mtlkit`.

    Args:
        out: the folder of everything that they write.
        quick: draw fewer phantoms and train less.
        force: overwrite what is there.

    Example:
        >>> from pathlib import Path
        >>> from mtlkit.cli.demo import lines
        >>> [line[0] for line in lines(Path("demo"))]
        ['data', 'data', 'train', 'evaluate', 'predict']
    """
    from pydicom.data import get_testdata_file

    data, run = str(out / "busi"), str(out / "run")
    real = [str(get_testdata_file(name, download=False)) for name in REAL]
    again = ["--force"] if force else []
    return [
        ["data", "synthesize", "ultrasound", data, *(FEWER_PHANTOMS if quick else ()), *again],
        ["data", "check", data],
        ["train", "demo", "--data", data, "--out", run, *(LESS_TRAINING if quick else ()), *again],
        ["evaluate", run, "--data", data, "--out", str(out / "report"), *again],
        ["predict", run, *real, "--out", str(out / "real"), *again],
    ]


def run(options: argparse.Namespace) -> int:
    """`mtlkit demo`."""
    from mtlkit.cli import parser

    for line in lines(options.out, quick=options.quick, force=options.force):
        print()  # noqa: T201
        print(printable(f"$ mtlkit {shlex.join(line)}"), flush=True)  # noqa: T201 - the command, for the reader to repeat
        command = parser().parse_args(line)
        if status := command.run(command):
            return status
    print()  # noqa: T201
    print(printable(f"the report, to be opened in a browser: {(options.out / 'report' / 'report.html').resolve()}"))  # noqa: T201
    print(printable(f"masks, overlays and table of the real frames: {(options.out / 'real').resolve()}"))  # noqa: T201
    return 0
