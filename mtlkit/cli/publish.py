"""`mtlkit publish`: a trained network with its model card, for the Hugging Face Hub."""

import argparse
from pathlib import Path
from typing import Any

DESCRIPTION = """\
Writes the network of a run as a folder that `mtlkit.models.from_pretrained` loads: options, parameters, and a model
card, README.md, as the Hugging Face Hub shows it. The card says what the network was trained on and how, how good it is
on the test part, how its probabilities are calibrated, what it is for and what not, how it is loaded, and which paper
to cite. --evaluation takes the figures with their intervals from what `mtlkit evaluate` wrote, also on other data.

The card names the data set, but not where it lies, and no image and no patient. Read it before you publish it.
"""
EPILOG = """\
examples:
  mtlkit publish runs/mbdi --out mbdi-card                                      look at mbdi-card/README.md
  mtlkit publish runs/mbdi --out mbdi-card --evaluation mbdi-test mbdi-whu      figures with intervals, on two data sets
  mtlkit publish runs/mbdi --hub someone/mbdi --licence cc-by-nc-4.0 --private  after `hf auth login`

a README.md that was edited is never replaced: --force names it in the folder, and on the Hub it stays as it is

exit status: 0 published, 2 not published; one sentence on standard error says what and where
"""


def add_command(commands: Any) -> None:
    """Adds `publish` to the command line."""
    command = commands.add_parser(
        "publish",
        help="a trained network with its model card, as a folder or on the Hugging Face Hub",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("run_folder", type=Path, metavar="RUN", help="the folder of a run that has ended")
    add("--out", type=Path, metavar="FOLDER", help="where to write; a new folder")
    add("--hub", metavar="USER/NAME", help="the repository to upload to")
    add("--private", action="store_true", help="make a new repository private")
    add(
        "--evaluation",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="what `mtlkit evaluate` wrote of the run: its figures, with intervals",
    )
    add("--licence", metavar="TEXT", help="terms of the weights, as cc-by-nc-4.0")
    add("--force", action="store_true", help="replace what an earlier call wrote there")
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
