"""`mtlkit export`: a trained network as a file of ONNX."""

import argparse
from pathlib import Path
from typing import Any

DESCRIPTION = """\
Writes the network of a run as an ONNX file, which runs on a CPU without PyTorch. Batch, height and width stay open. The
file says how images are prepared and what the classes are called. Before it gets its name, ONNX Runtime runs it, and
what it gives must be what PyTorch gives. `mtlkit predict` takes the file in the place of the run.

Scans and task interaction are operators of mtlkit, for which ONNX Runtime loads the library that the command names in
the end. --plain writes standard operators alone, for engines without that library.
"""
EPILOG = """\
examples:
  mtlkit export runs/mbdi --out mbdi.onnx
  mtlkit export runs/mbdi --out mbdi.onnx --licence CC-BY-NC-4.0
  mtlkit export runs/mbdi --out plain.onnx --plain      of the size that the run was trained with

exit status: 0 exported, 2 not exported; one sentence on standard error says what and where
"""


def add_command(commands: Any) -> None:
    """Adds `export` to the command line."""
    command = commands.add_parser(
        "export",
        help="a trained network as an ONNX file",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("run_folder", type=Path, metavar="RUN", help="the folder of a run that has ended")
    add("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    add("--plain", action="store_true", help="standard operators alone: slower, and of one size")
    add("--licence", metavar="TEXT", help="terms of the weights, as CC-BY-NC-4.0, for the file's metadata")
    add("--force", action="store_true", help="replace the file if it exists")
    command.set_defaults(run=run, command="export", needs=("train",))


def run(options: argparse.Namespace) -> int:
    """`mtlkit export`."""
    from mtlkit import deploy
    from mtlkit.cli._console import open_console
    from mtlkit.training import load_run

    saved = load_run(options.run_folder)
    found = deploy.export(
        saved.model,
        options.out,
        example=saved.example(),
        plain=options.plain,
        metadata=saved.facts() | ({} if options.licence is None else {"licence": options.licence}),
        force=options.force,
    )
    console = open_console(soft_wrap=True)
    shapes = ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in found.inputs.items())
    console.print(f"{options.out}: {found.nodes} nodes, takes {shapes}; differs from PyTorch by {found.error:.0e}")
    if not options.plain:
        console.print(f"library to register with ONNX Runtime: {deploy.library_path()}")
    return 0
