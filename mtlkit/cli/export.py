"""`mtlkit export`: writes a trained network as an ONNX file."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlkit.cli._calibrating import add_no_calibrate
from mtlkit.cli._progress import progress_bar

if TYPE_CHECKING:
    from mtlkit.training import SavedRun

DESCRIPTION = """\
Writes the network of a run as an ONNX file that runs on a CPU without PyTorch, for any batch, height and width. The
file also says how to prepare images and what the classes are called. Before it is saved, ONNX Runtime runs it, and its
outputs must match PyTorch's. `mtlkit predict` accepts the file instead of the run.

Scans and task interaction become mtlkit's own operators; ONNX Runtime loads them from a library, whose path the command
prints at the end. --plain writes standard operators only, for engines that cannot load it.

--int8 quantises the network to 8 bits: half the time on one thread of a CPU with VNNI. Some images of a data set
calibrate it; the others measure what it costs: IoU, accuracy and AUROC before and after.
"""
CALIBRATION = 64  # images, at most

EPILOG = """\
examples:
  mtlkit export runs/mbdi --out mbdi.onnx
  mtlkit export runs/mbdi --out mbdi.onnx --licence CC-BY-NC-4.0
  mtlkit export runs/mbdi --out plain.onnx --plain      for the image size of the run
  mtlkit export runs/mbdi --out mbdi8.onnx --int8       calibrated on training images, evaluated on the test part
  mtlkit export runs/mbdi --out mbdi8.onnx --int8 --calibrate BUSI_WHU     calibrated and evaluated on another data set

exit status: 0 exported, 2 not exported; one sentence on standard error says why
"""


def add_command(commands: Any) -> None:
    """Adds `export` to the command line."""
    command = commands.add_parser(
        "export",
        help="write a trained network as an ONNX file",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("run_folder", type=Path, metavar="RUN", help="folder of a finished run")
    add("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    add("--plain", action="store_true", help="use standard ONNX operators only: slower, and for one image size")
    add("--licence", metavar="TEXT", help="terms of the weights, such as CC-BY-NC-4.0, for the file's metadata")
    add("--int8", action="store_true", help="quantise to 8 bits: faster on few threads, slightly different outputs")
    add("--calibrate", type=Path, metavar="DATA", help="the data set for --int8; default: that of the run")
    add("--skip-bad", action="store_true", help="leave out images that cannot be used")
    add_no_calibrate(command)
    add("--force", action="store_true", help="replace the file if it exists")
    command.set_defaults(run=run, command="export", needs=("train,deploy",))


def run(options: argparse.Namespace) -> int:
    """`mtlkit export`."""
    from mtlkit import deploy
    from mtlkit.cli._console import open_console
    from mtlkit.training import load_run

    if options.calibrate is not None and not options.int8:
        raise ValueError("--calibrate: expected with --int8, which is not given")
    saved = load_run(options.run_folder)
    saved = saved.uncalibrated() if options.no_calibrate else saved
    chosen, held_out = _records(saved, options) if options.int8 else ([], [])
    found = deploy.export(
        saved.model,
        options.out,
        example=saved.example(),
        plain=options.plain,
        metadata=saved.facts() | ({} if options.licence is None else {"licence": options.licence}),
        int8=_batches(saved, chosen) if options.int8 else None,
        force=options.force,
    )
    console = open_console(soft_wrap=True)
    shapes = ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in found.inputs.items())
    console.print(f"{options.out}: {found.nodes} nodes, takes {shapes}; differs from PyTorch by {found.error:.0e}")
    if found.calibration is not None:
        _judge(console, saved, held_out, options, found.calibration.images)
    if not options.plain:
        console.print(f"library to register with ONNX Runtime: {deploy.library_path()}")
    return 0


# --- 8 bits -----------------------------------------------------------------------------------------------------------


def _records(saved: "SavedRun", options: argparse.Namespace) -> tuple[Any, Any]:
    """The records for calibration and for evaluation."""
    from mtlkit.errors import DataError
    from mtlkit.evaluation.exported import split_for_calibration
    from mtlkit.evaluation.runner import choose_records

    catalogue = saved.open_data(options.calibrate, skip_bad=options.skip_bad)
    part, records, _ = choose_records(saved, catalogue, None, options.skip_bad)
    if part == "all":
        chosen, held_out = split_for_calibration(records, CALIBRATION)
    else:
        training = choose_records(saved, catalogue, "train", options.skip_bad)[1]
        chosen, held_out = split_for_calibration(training, CALIBRATION)[0], records
    if not chosen:
        raise DataError(
            f"{catalogue.root}: expected images of two groups (patients) or more, to calibrate and to evaluate"
        )
    return chosen, held_out


def _batches(saved: "SavedRun", records: Any) -> Iterator[tuple[Any, ...]]:
    for batch in saved.loader(records):
        yield tuple(batch[item] for item in saved.task.inputs.values())


def _judge(console: Any, saved: "SavedRun", records: Any, options: argparse.Namespace, images: int) -> None:
    """Metrics before and after, and a line if one got worse."""
    from mtlkit import deploy
    from mtlkit.cli._console import open_table
    from mtlkit.evaluation.exported import POINT, in_session, key_figures

    session = deploy.open_session(options.out)
    with progress_bar("judging") as progress:
        before, after = (key_figures(run, records, progress=progress) for run in (saved, in_session(saved, session)))
    title = f"calibrated with {images} images, evaluated on {len(records)} others"
    table = open_table("figure", "float32", "int8", title=title)
    for name, value in before.items():
        table.add_row(name, f"{value:.3f}", f"{after.get(name, float('nan')):.3f}")
    console.print(table)
    lost = {name: value - after.get(name, 0) for name, value in before.items()}
    if falls := ", ".join(f"{name} by {100 * loss:.1f} points" for name, loss in lost.items() if loss > POINT):
        console.print(f"8 bits lower {falls}: decide whether that is acceptable before you use the file")
