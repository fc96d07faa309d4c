"""The end of a run on a GPU: tables of ratios, and benchmarks/results/<gpu>.json and <gpu>.png."""

import io
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gpu
import torch
from comparisons import megabytes, rate, seconds
from gpu_levels import LEVEL_PROVIDERS, LevelCase
from gpu_networks import NETWORK_PROVIDERS, NetworkCase
from gpu_operators import OPERATOR_PROVIDERS, OperatorCase
from gpu_providers import GPU_PROVIDERS
from gpu_workloads import OPS, SHAPES, GpuCase
from providers import BOTH, FORWARD
from report import replace
from rich.console import Console
from rich.table import Table

from mtlkit import _native
from mtlkit.info import version_of

Row = dict[str, Any]
Rows = dict[str, Row]  # rows of one group, by provider
CORE = "ss2d_layer_core"
LABELS = {provider.name: provider.label for provider in GPU_PROVIDERS}
PEERS = {p.name: p.label for p in (*OPERATOR_PROVIDERS, *LEVEL_PROVIDERS) if not p.own}  # for the other operators
# Targets of mtlkit: the least speed-up over a peer, by direction; the least share of the floor, forward at 56 x 56 with
# a batch of 32; and the most training memory as a share of MedMamba's.
TARGETS = {"medmamba": {FORWARD: 4, BOTH: 3}, "vmamba": {FORWARD: 2, BOTH: 2}}
# Targets of task interaction: the least speed-up over a peer, and the least share of the memory floor.
LEVEL_TARGETS, LEVEL_FLOOR_TARGET = {"eager": 5, "torch-compile": 1.5}, 0.7
FLOOR_TARGET, MEMORY_TARGET = 0.6, 0.4
CHARTED_BATCH = 32
JOURNAL_SECONDS = 5


def row(
    case: GpuCase | OperatorCase | LevelCase | NetworkCase, errors: tuple[float, float], rounds: list[float], peak: int
) -> Row:
    """A row of the results: seconds between events, peak bytes, errors compared with float64."""
    median = statistics.median(rounds)
    what, count = case.unit
    found = {
        "group": case.group,
        "op": case.op,
        "shape": case.shape_name,
        "batch": case.batch,
        "dtype": str(case.dtype).removeprefix("torch."),
        "direction": case.direction,
        "provider": case.provider.name,
        "median_s": median,
        "min_s": min(rounds),
        "max_s": max(rounds),
        "rounds": len(rounds),
        f"{what}_per_s": count / median,
        "peak_bytes": peak,
        "relative_error": errors[0],
        "max_abs_error": errors[1],
    }
    floor = case.floor(gpu.limits())
    if floor is None:
        return found
    return found | {"floor_s": floor.seconds, "bound": floor.bound, "share_of_floor": floor.seconds / median}


def one_line(row: Row) -> str:
    """A row as a line of the progress output."""
    if "images_per_s" in row:
        amount = f"{row['images_per_s']:.0f} images/s"
    else:
        amount = f"{rate(row['updates_per_s'])} updates" if "updates_per_s" in row else gigabytes(row)
        amount += f", {row['share_of_floor']:.0%} of the floor ({row['bound']})"
    memory, error = megabytes(row["peak_bytes"]), row["relative_error"]
    return f"{row['median_s'] * 1e6:.0f} us, {amount}, peak {memory}, error {error:.0e}"


def gigabytes(row: Row) -> str:
    return f"{row['bytes_per_s'] / 1e9:.0f} GB/s"


# --- the table --------------------------------------------------------------------------------------------------------


def groups(rows: list[Row]) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for r in rows:
        found.setdefault(r["group"], {})[r["provider"]] = r
    return found


def fastest(rows: Rows) -> Row | None:
    """mtlkit's fastest backend."""
    own = [r for name, r in rows.items() if name.startswith("mtlkit")]
    return min(own, key=lambda r: r["median_s"], default=None)


def table(rows: list[Row], title: str) -> Table:
    drawn = Table(title=title, title_justify="left", title_style="bold", caption_justify="left", pad_edge=False)
    drawn.caption = (
        "SS2D from its input to the merged output, projections included. Share of the floor: of the exponentials, "
        "instructions or bytes that the scan cannot do without. Memory: at the peak of a call, over MedMamba's."
    )
    drawn.add_column("shape, batch, dtype, direction")
    for name in ("mtlkit", "of the floor", "memory", *(LABELS[p] for p in LABELS if not p.startswith("mtlkit"))):
        drawn.add_column(name, justify="right")
    for group, by_provider in groups(rows).items():
        ours = fastest(by_provider)
        if ours is None or ours["op"] != CORE:
            continue
        peers = [by_provider.get(p) for p in LABELS if not p.startswith("mtlkit")]
        medmamba = by_provider.get("medmamba")
        drawn.add_row(
            group.removeprefix(f"{CORE}-"),
            seconds(ours["median_s"]),
            f"{ours['share_of_floor']:.0%}",
            f"{ours['peak_bytes'] / medmamba['peak_bytes']:.2f}x" if medmamba else "",
            *(f"{r['median_s'] / ours['median_s']:.1f}x slower" if r else "" for r in peers),
        )
    return drawn


def operators_table(rows: list[Row]) -> Table:
    """The table of operators other than SS2D."""
    drawn = Table(title="Other operators", title_justify="left", title_style="bold", caption_justify="left")
    drawn.caption = (
        "Bytes are those that must be read and written. Share of the floor: of these at the speed of a copy, in a scan "
        "also of its exponentials and instructions. Memory: at the peak of a call."
    )
    drawn.add_column("operator, shape, batch, dtype, direction")
    for name in ("mtlkit", "rate", "of the floor", "memory", *PEERS.values()):
        drawn.add_column(name, justify="right")
    for group, by_provider in groups(rows).items():
        ours = fastest(by_provider)
        if ours is None or ours["op"] in OPS or "images_per_s" in ours:
            continue
        peers = [by_provider.get(p) for p in PEERS]
        drawn.add_row(
            group,
            seconds(ours["median_s"]),
            rate(ours["updates_per_s"]) if "updates_per_s" in ours else gigabytes(ours),
            f"{ours['share_of_floor']:.0%}",
            megabytes(ours["peak_bytes"]),
            *(f"{r['median_s'] / ours['median_s']:.1f}x slower" if r else "" for r in peers),
        )
    return drawn


def networks_table(rows: list[Row]) -> Table:
    """The table of training steps."""
    drawn = Table(title="Training steps", title_justify="left", title_style="bold")
    drawn.add_column("network, image, batch, dtype")
    plain = next(p for p in NETWORK_PROVIDERS if not p.own)
    for name in ("mtlkit", "images/s", "memory", plain.label, "memory of that"):
        drawn.add_column(name, justify="right")
    for group, by_provider in groups(rows).items():
        ours, peer = fastest(by_provider), by_provider.get(plain.name)
        if ours is None or "images_per_s" not in ours:
            continue
        drawn.add_row(
            group.removesuffix(f"-{ours['direction']}"),
            seconds(ours["median_s"]),
            f"{ours['images_per_s']:.0f}",
            megabytes(ours["peak_bytes"]),
            f"{peer['median_s'] / ours['median_s']:.1f}x slower" if peer else "",
            f"{peer['peak_bytes'] / ours['peak_bytes']:.1f}x" if peer else "",
        )
    return drawn


def verdicts(rows: list[Row]) -> Iterator[str]:
    """For each target, whether it was met and, if not, where the result was furthest off."""
    core = {name: by for name, by in groups(rows).items() if fastest(by) and fastest(by)["op"] == CORE}
    for peer, targets in TARGETS.items():
        for direction, target in targets.items():
            found = {
                name: by[peer]["median_s"] / fastest(by)["median_s"]
                for name, by in core.items()
                if peer in by and fastest(by)["direction"] == direction
            }
            if found:
                least = min(found, key=found.get)
                verdict = "met" if found[least] >= target else "missed"
                yield f"{direction}: {LABELS[peer]}: at least {target}x {verdict}: {found[least]:.1f}x at {least}"
    shares = [
        r["share_of_floor"]
        for r in rows
        if r["op"] == "ss2d" and r["provider"].startswith("mtlkit") and r["direction"] == FORWARD
        if (r["shape"], r["batch"]) == ("medmamba_t_stage1", CHARTED_BATCH)
    ]
    if shares:
        verdict = "met" if max(shares) >= FLOOR_TARGET else "missed"
        yield f"56 x 56, batch {CHARTED_BATCH}, forward: {FLOOR_TARGET:.0%} of the floor {verdict}: {max(shares):.0%}"
    memory = {
        name: fastest(by)["peak_bytes"] / by["medmamba"]["peak_bytes"]
        for name, by in core.items()
        if "medmamba" in by and fastest(by)["direction"] == BOTH
    }
    if memory:
        most = max(memory, key=memory.get)
        verdict = "met" if memory[most] <= MEMORY_TARGET else "missed"
        yield f"memory in training: at most {MEMORY_TARGET}x MedMamba's {verdict}: {memory[most]:.2f}x at {most}"


def level_verdicts(rows: list[Row]) -> Iterator[str]:
    """The verdicts on task interaction."""
    levels = {name: by for name, by in groups(rows).items() if fastest(by) and fastest(by)["op"] == LevelCase.op}
    for peer, target in LEVEL_TARGETS.items():
        found = {n: by[peer]["median_s"] / fastest(by)["median_s"] for n, by in levels.items() if peer in by}
        if found:
            least = min(found, key=found.get)
            verdict = "met" if found[least] >= target else "missed"
            yield f"{PEERS[peer]}: at least {target}x {verdict}: {found[least]:.1f}x at {least}"
    if levels:
        shares = {name: fastest(by)["share_of_floor"] for name, by in levels.items()}
        least = min(shares, key=shares.get)
        verdict = "met" if shares[least] >= LEVEL_FLOOR_TARGET else "missed"
        yield f"{LevelCase.op}: {LEVEL_FLOOR_TARGET:.0%} of the floor {verdict}: {shares[least]:.0%} at {least}"


# --- the end of a run -------------------------------------------------------------------------------------------------


def described(description: dict[str, Any]) -> dict[str, Any]:
    """The machine and software, including the GPU and the peers."""
    properties = torch.cuda.get_device_properties(gpu.device())
    versions = {name: version_of(name) for name in ("triton", "mamba-ssm")}
    return description | {
        "gpu": {
            "name": gpu.name(),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "clock_hz": gpu.clock(),
            "limits_per_s": gpu.limits()._asdict(),
        },
        "versions": description["versions"]
        | versions
        | {"cuda": torch.version.cuda, "cuda_toolkit": getattr(_native.C, "cuda_toolkit", None)},
        "absent": {p.name: p.why_absent() for p in GPU_PROVIDERS if p.why_absent()}
        | {p.name: p.why_absent("selective_scan") for p in OPERATOR_PROVIDERS if not p.own and p.why_absent("")},
    }


def finish(rows: list[Row], description: dict[str, Any], folder: Path | None, whole: bool, colour: bool) -> str:
    """Prints the tables and writes the files into the folder, if any; a partial run adds its rows to those there."""
    document = document_of(rows, description) if folder is None or whole else added(rows, description, folder)
    out = io.StringIO()
    console = Console(file=out, force_terminal=colour, no_color=not colour, width=190, highlight=False)
    console.print()
    for name, reason in document["absent"].items():
        console.print(f"absent: {(LABELS | PEERS)[name]}: {reason}", style="dim")
    console.print(table(document["rows"], f"{document['gpu']['name']}; torch {document['versions']['torch']}"))
    console.print(operators_table(document["rows"]))
    console.print(networks_table(document["rows"]))
    for verdict in document["verdicts"]:
        console.print(verdict)
    if folder is None:
        console.print("benchmarks/results stays as it is: not every benchmark ran and passed.")
    else:
        console.print(f"written: {', '.join(map(str, write(document, folder)))}")
    return out.getvalue()


def document_of(rows: list[Row], description: dict[str, Any]) -> dict[str, Any]:
    """The contents of <gpu>.json."""
    return described(description) | {"verdicts": [*verdicts(rows), *level_verdicts(rows)], "rows": rows}


def name_of(row: Row) -> tuple[str, str]:
    return row["group"], row["provider"]


def earlier_rows(description: dict[str, Any], folder: Path) -> list[Row]:
    """The rows in the folder's <gpu>.json from the same commit, software and GPU."""
    try:
        earlier = json.loads((folder / f"{gpu.stem()}.json").read_text())
    except FileNotFoundError:
        return []
    now = described(description)
    return earlier["rows"] if all(earlier[name] == now[name] for name in ("commit", "versions")) else []


def added(rows: list[Row], description: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The document with these rows, and earlier rows with other names."""
    measured = set(map(name_of, rows))
    kept = [row for row in earlier_rows(description, folder) if name_of(row) not in measured]
    return document_of([*kept, *rows], description)


class Journal:
    """Writes rows into a folder's <gpu>.json during the run, so that an interrupted run keeps them."""

    def __init__(self, description: dict[str, Any], folder: Path) -> None:
        self.description, self.folder, self.written = description, folder, -math.inf
        self.earlier = set(map(name_of, earlier_rows(description, folder)))

    def note(self, rows: list[Row]) -> None:
        """Writes the rows so far, at most every few seconds, because writing a document takes milliseconds."""
        if time.monotonic() - self.written > JOURNAL_SECONDS:
            write_rows(added(rows, self.description, self.folder), self.folder)
            self.written = time.monotonic()


def write(document: dict[str, Any], folder: Path) -> list[Path]:
    """Writes <gpu>.json and, with Matplotlib, <gpu>.png, each completely or not at all."""
    paths = [write_rows(document, folder)]
    if find_spec("matplotlib"):
        paths.append(folder / f"{gpu.stem()}.png")
        replace(paths[-1], draw(document))
    return paths


def write_rows(document: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{gpu.stem()}.json"
    replace(path, (json.dumps(document, indent=1) + "\n").encode())
    return path


# --- the chart --------------------------------------------------------------------------------------------------------

COLOURS = {  # Okabe and Ito's palette
    "mtlkit-cuda": "#0072b2",
    "mtlkit-triton": "#56b4e9",
    "medmamba": "#e69f00",
    "vmamba": "#cc79a7",
    "torch-compile": "#b4b8bd",
}


def draw(document: dict[str, Any]) -> bytes:
    """A PNG: state updates per second of every provider at every shape, float32, forward and with backward."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 1, sharex=True)
    limit = document["gpu"]["limits_per_s"]["exponentials"]
    for axis, title, direction in zip(panels, ("Forward", "Forward and backward"), (FORWARD, BOTH), strict=True):
        key = (CORE, CHARTED_BATCH, "float32", direction)
        rows = [r for r in document["rows"] if (r["op"], r["batch"], r["dtype"], r["direction"]) == key]
        present = [name for name in COLOURS if any(r["provider"] == name for r in rows)]
        for place, name in enumerate(present):
            heights = {r["shape"]: r["updates_per_s"] / 1e9 for r in rows if r["provider"] == name}
            at = [
                i + 0.8 * (place - (len(present) - 1) / 2) / len(present) for i, s in enumerate(SHAPES) if s in heights
            ]
            values = [heights[s] for s in SHAPES if s in heights]
            axis.bar(at, values, 0.74 / len(present), color=COLOURS[name], label=LABELS[name])
        axis.axhline(limit / 1e9, color="#d55e00", linestyle=(0, (4, 2)), label="limit of the exponentials, forward")
        axis.set_yscale("log")
        axis.set_ylabel("10⁹ state updates per second")
        axis.set_title(title, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    sizes = [f"{s.H} × {s.W}\n{s.D} channels, {s.N} states" for s in SHAPES.values()]
    panels[1].set_xticks(range(len(sizes)), sizes, fontsize=8)
    panels[0].legend(frameon=False, fontsize=8, ncols=3)
    figure.suptitle(
        "The four-direction scan (SS2D) with its projections on a GPU", x=0.01, ha="left", fontweight="bold"
    )
    words = f"{document['gpu']['name']} · batch {CHARTED_BATCH}, float32 · torch {document['versions']['torch']} · "
    figure.supxlabel(words + document["date"][:10], x=0.01, ha="left", fontsize=8.5, color="#6b6b6b")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_bytes(draw(json.loads(source.read_text())))
