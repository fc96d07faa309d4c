"""`mtlkit publish`: writes a trained network with its model card, for the Hugging Face Hub."""

import argparse
from pathlib import Path
from typing import Any

DESCRIPTION = """\
Writes the network of a run as a folder that `mtlkit.models.from_pretrained` loads: options, parameters, and a model
card, README.md, for the Hugging Face Hub. The card describes training data and recipe, test metrics, calibration,
intended use and limits, how to load the network, and which paper to cite. --evaluation adds metrics with intervals from
the folders of `mtlkit evaluate`, also for other data.

The card names the data set, but no folder, image or patient. Read it before you publish it.
"""
EPILOG = """\
examples:
  mtlkit publish runs/mbdi --out mbdi-card                                      then read mbdi-card/README.md
  mtlkit publish runs/mbdi --out mbdi-card --evaluation mbdi-test mbdi-whu      metrics with intervals, on two data sets
  mtlkit publish runs/mbdi --hub someone/mbdi --licence cc-by-nc-4.0 --private  after `hf auth login`

an edited README.md is never replaced: in a folder, --force stops and names it; on the Hub it is kept

exit status: 0 published, 2 not published; one sentence on standard error says what and where
"""


def add_command(commands: Any) -> None:
    """Adds `publish` to the command line."""
    command = commands.add_parser(
        "publish",
        help="write a trained network with its model card to a folder or the Hugging Face Hub",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("run_folder", type=Path, metavar="RUN", help="folder of a finished run")
    add("--out", type=Path, metavar="FOLDER", help="folder to write; it must be new")
    add("--hub", metavar="USER/NAME", help="the repository to upload to")
    add("--private", action="store_true", help="make a new repository private")
    add(
        "--evaluation",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="folders that `mtlkit evaluate` wrote for the run, for metrics with intervals",
    )
    add("--licence", metavar="TEXT", help="terms of the weights, such as cc-by-nc-4.0")
    add("--force", action="store_true", help="replace the files of an earlier call, and no others")
    command.set_defaults(run=run, command="publish", needs=("train",))


def run(options: argparse.Namespace) -> int:
    """`mtlkit publish`."""
    from mtlkit.cli._console import open_console
    from mtlkit.evaluation import publish

    if options.out is None and options.hub is None:
        raise ValueError("--out, --hub: expected at least one of them")
    if options.private and options.hub is None:
        raise ValueError("--private: expected with --hub, which is not given")
    try:
        address = publish(
            options.run_folder,
            options.out,
            evaluations=options.evaluation,
            licence=options.licence,
            repo_id=options.hub,
            private=options.private or None,
            force=options.force,
        )
    except Exception as error:
        if not type(error).__module__.startswith(("huggingface_hub.", "httpx", "requests.")):
            raise
        raise ValueError(f"--hub {options.hub}: {str(error).strip().splitlines()[0]}") from None
    console = open_console(soft_wrap=True)
    if options.out is not None:
        console.print(f"{options.out / 'README.md'}: the model card")
    if address is not None:
        console.print(f"uploaded: {address}")
    return 0
