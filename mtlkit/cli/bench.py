"""`mtlkit bench`: benchmarks this installation."""

import argparse
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any

from mtlkit._extras import TIMING

DESCRIPTION = """\
Times mtlkit's operators and a network on this machine, and compares them with mtlkit's vectorised PyTorch code (the
`torch` backend), which would run if there were no kernels. Each result is checked against a float64 reference before it
is timed. Times are medians over rounds in which the candidates alternate.
"""
EPILOG = """\
examples:
  mtlkit bench                          a minute: operators, and MedMamba-T on one image
  mtlkit bench --quick                  seconds, at small sizes
  mtlkit bench --model btinet --json speed.json
  mtlkit bench --device cuda            needs a GPU

to compare with mamba-ssm, torch.compile and others, run `make bench` in a checkout

exit status: 0 measured, 2 not measured, or a result was wrong; one sentence on standard error says why
"""


def add_command(commands: Any) -> None:
    """Adds `bench` to the command line."""
    command = commands.add_parser(
        "bench",
        help="benchmark this installation on this machine",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("--model", default="medmamba_t", metavar="NAME", help="one of mtlkit.models.list_models(); default medmamba_t")
    add("--quick", action="store_true", help="smaller sizes, fewer rounds, no training step")
    add("--device", default="cpu", metavar="NAME", help="cpu, cuda, ...; default cpu")
    add("--json", type=Path, metavar="FILE", help="also write the numbers to a file")
    add("--force", action="store_true", help="overwrite that file")
    command.set_defaults(run=run, command="bench", needs=("train", TIMING), memory="take --quick")


def run(options: argparse.Namespace) -> int:
    """`mtlkit bench`."""
    from rich.box import SIMPLE
    from rich.console import Console

    from mtlkit._files import check_new, write_json
    from mtlkit.cli._console import open_console, open_table
    from mtlkit.cli._timing import Row, measure_network, measure_operators
    from mtlkit.cli.evaluate import usable_device
    from mtlkit.models import list_models

    if options.json is not None:
        check_new(options.json, force=options.force)
    if options.model not in list_models():
        raise ValueError(f"--model {options.model}: there is no such model; there are: {', '.join(list_models())}")
    device = usable_device(options.device)
    about = machine(device)
    console = open_console()
    seconds = 0.1 if options.quick else 1.0
    rows: list[Row] = []
    measured = chain(
        measure_operators(options.quick, seconds, device),
        measure_network(options.model, options.quick, seconds, device),
    )
    try:
        with Console(stderr=True).status("measuring") as status:
            for row in measured:
                rows.append(row)
                status.update(f"measured {row.what}, {row.direction}")
    except AssertionError as error:
        raise ValueError(f"a result is wrong, and nothing was measured further: {error}") from None
    title = f"{about['processor']}, {about['threads']} threads"
    names = ("what", "size", "pass", "mtlkit", "torch", "ratio")
    table = open_table(*names, title=title, box=SIMPLE, collapse_padding=True, pad_edge=False)
    for column in table.columns[3:]:
        column.justify = "right"
    for row in rows:
        times = [time_words(row.seconds[name]) for name in ("mtlkit", "torch")]
        table.add_row(row.what, row.shape, row.direction, *times, f"{row.ratio:.1f}")
    console.print(table)
    console.print(about["kernels"])
    if options.json is not None:
        write_json(options.json, about | {"rows": [row.to_dict() for row in rows]}, force=options.force)
    return 0


def machine(device: str) -> dict[str, Any]:
    """Facts about machine and installation, for the table and the file."""
    import torch

    import mtlkit
    from mtlkit.info import attempt, cpu_name
    from mtlkit.operators import describe

    kind = torch.device(device).type
    kernels = [state for state in describe() if state.name in {"cpu": ("cpu",)}.get(kind, ("cuda", "triton"))]
    active = [state.detail for state in kernels if state.active]
    missing = [f"{state.name}: {state.detail}" for state in kernels]
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "mtlkit": mtlkit.__version__,
        "torch": torch.__version__,
        "device": device,
        "processor": attempt(cpu_name) if kind == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "kernels": "; ".join(active) or f"no kernels, so both columns are PyTorch: {'; '.join(missing)}",
    }


def time_words(seconds: float) -> str:
    """Three digits in the unit that suits."""
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
