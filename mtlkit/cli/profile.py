"""`mtlkit profile`: shows where a network's time goes and how close each operator is to the machine's limits."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlkit._extras import TIMING

if TYPE_CHECKING:
    from mtlkit.cli._profiling import Row

DESCRIPTION = """\
Measures each of mtlkit's operators in a network: its backend, how the backend divides the work, the shortest possible
time on this machine, the measured time, and its share of the total. All other work is listed as convolutions, linear
layers, normalisation and the rest, so that the shares add up to 100 %.

With --dry-run nothing is measured and no GPU is needed: plans and floors are computed from the sizes and the data sheet
of the GPU. The output then shows lower bounds, not measured times.
"""
EPILOG = """\
examples:
  mtlkit profile medmamba_t                             one image of 224 x 224 on the CPU
  mtlkit profile runs/mbdi --size 256 --batch 4 --json profile.json
  mtlkit profile vm_unet --training                     forward and backward
  mtlkit profile medmamba_t --device cuda               needs a GPU
  mtlkit profile medmamba_t --dry-run --gpu h200        needs none

exit status: 0 profiled, 2 not profiled; one sentence on standard error says why
"""
NOT_PREDICTED = "convolutions and linear layers are predicted only from their bytes"


def add_command(commands: Any) -> None:
    """Adds `profile` to the command line."""
    command = commands.add_parser(
        "profile",
        help="show where a network's time goes, operator by operator",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("model", metavar="MODEL", help="one of mtlkit.models.list_models(), or the folder of a run")
    add("--size", type=int, default=224, metavar="PIXELS", help="height and width of the images; default 224")
    add("--batch", type=int, metavar="N", help="images, or exams of four views; default 1, with --training 2")
    add("--training", action="store_true", help="profile a training step: forward and backward")
    add("--device", metavar="NAME", help="cpu, cuda, ...; default cpu")
    add("--dry-run", action="store_true", help="predict plans and floors on a GPU that need not be there")
    add("--gpu", metavar="NAME", help="the GPU for --dry-run, such as h200")
    add("--json", type=Path, metavar="FILE", help="also write the numbers to a file")
    add("--force", action="store_true", help="overwrite that file")
    command.set_defaults(run=run, command="profile", needs=("train", TIMING), memory="take a smaller --size or --batch")


def run(options: argparse.Namespace) -> int:
    """`mtlkit profile`."""
    import torch

    from mtlkit._files import check_new, write_json
    from mtlkit.cli._profiling import measure, predict, step_of
    from mtlkit.cli._timing import inputs_of
    from mtlkit.cli.bench import machine
    from mtlkit.cli.evaluate import usable_device

    gpu = _gpu_of(options)
    if options.batch is None:
        options.batch = 2 if options.training else 1
    for name in ("size", "batch"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}: expected at least 1, got {getattr(options, name)}")
    if options.json is not None:
        check_new(options.json, force=options.force)
    device = "meta" if gpu else usable_device(options.device or "cpu")
    torch.manual_seed(0)
    network = _network(options.model, device)
    inputs = inputs_of(network, options.size, options.batch, torch.float32, device)
    step = step_of(network, inputs, options.training)
    about = {
        "model": options.model,
        "size": options.size,
        "batch": options.batch,
        "pass": "training" if options.training else "inference",
        "dtype": "float32",
    }
    if gpu is not None:
        rows, whole = predict(step, gpu), None
        about |= {"predicted": True, "gpu": options.gpu}
        title = f"predicted floors on {options.gpu}, from its data sheet; nothing is measured, and {NOT_PREDICTED}"
    else:
        rows, whole = measure(step, torch.device(device))
        about |= {"predicted": False, "seconds": whole} | machine(device)
        title = f"{about['processor']}, {about['threads']} threads; {1e3 * whole:.3g} ms without the profiler"
    many = "" if options.batch == 1 else "s"
    what = f"exam{many} of 4 views" if inputs[0].dim() == 5 else f"image{many}"
    text = f"{options.model}, {about['pass']}, {options.batch} {what}, {options.size} x {options.size}, float32"
    print("\n".join([text, title, "", *_table(rows)]))  # noqa: T201 - the command's own voice
    if options.json is not None:
        write_json(options.json, about | {"rows": [row.to_dict() for row in rows]}, force=options.force)
    return 0


def _gpu_of(options: argparse.Namespace) -> Any:
    """The GPU to predict for; None where it is measured."""
    from mtlkit.operators.floors import GPUS, gpu_named

    if not options.dry_run:
        if options.gpu is not None:
            raise ValueError("--gpu: expected with --dry-run, which is not given; --device cuda measures on a GPU")
        return None
    if options.device is not None:
        raise ValueError("--device: expected without --dry-run, which needs no device")
    gpu = gpu_named(options.gpu or "")
    if gpu is None:
        what = "--dry-run: --gpu is not given" if options.gpu is None else f"--gpu {options.gpu}: its data is not known"
        raise ValueError(f"{what}; there are: {', '.join(GPUS)}")
    return gpu


def _network(model: str, device: str) -> Any:
    """A network by name, with fresh weights, or that of a run."""
    from mtlkit.models import create_model, list_models

    if model in list_models():
        return create_model(model).to(device)
    if Path(model).is_dir():
        from mtlkit.training import load_run

        return load_run(model).model.to(device)
    raise ValueError(f"MODEL {model}: there is no such model or folder; there are: {', '.join(list_models())}")


# --- the table --------------------------------------------------------------------------------------------------------


def _table(rows: "list[Row]") -> list[str]:
    from mtlkit.cli._console import table_lines
    from mtlkit.cli.bench import time_words

    predicted = all(row.seconds is None for row in rows)
    both = any(row.direction == "backward" for row in rows)
    planned = any(row.plan for row in rows)  # on a GPU
    cells = []
    for row in rows:
        floor = "-" if row.floor is None else time_words(row.floor)
        time = [] if row.seconds is None else [time_words(row.seconds)]
        what = f"{row.what}, {row.direction}" if both and row.direction else row.what
        cut = [_plan(row.plan)] if planned else []
        calls, share = str(row.calls) if row.calls else "-", f"{100 * row.share:.1f} %"
        cells.append([what, row.sizes or "-", calls, row.backend or "-", *cut, floor, row.bound or "-", *time, share])
    floor, share = ("predicted floor", "of floors") if predicted else ("floor", "share")
    time, cut = [] if predicted else ["time"], ["plan"] if planned else []
    words = time_words(sum((row.floor or 0.0) if predicted else (row.seconds or 0.0) for row in rows))
    total = [words, "-"] if predicted else ["-", "-", words]
    cells.append(["all", "-", "-", "-", *("-" for _ in cut), *total, "100.0 %"])
    headings = ["operator", "size", "calls", "backend", *cut, floor, "bound", *time, share]
    return table_lines(headings, cells, ["calls", floor, *time, share])


def _plan(plan: dict[str, int]) -> str:
    """In words: tokens of a tile, chunks, blocks, and blocks of a multiprocessor."""
    if not plan:
        return "-"
    counts = [
        f"{plan[key]} {word}{'' if plan[key] == 1 else 's'}"
        for key, word in (("tiles", "tile"), ("chunks", "chunk"), ("blocks", "block"))
    ]
    counts[0] += f" of {plan['tile_tokens']}"
    return f"{', '.join(counts)}, {plan['blocks_per_sm']}/SM"
