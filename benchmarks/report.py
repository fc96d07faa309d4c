"""What a run ends with: one table of ratios, and for a whole run benchmarks/results/cpu.json and cpu.png."""

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from providers import BOTH, BY_NAME, FORWARD, MEDMAMBA_56, PROVIDERS
from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = dict[str, Any]


@dataclass
class Results:
    """The rows of a run, and the machine's yardstick before and after."""

    rows: list[Row] = field(default_factory=list)
    yardsticks: list[float | None] = field(default_factory=list)

    @property
    def limit(self) -> float | None:
        """State updates a second that no scan can pass here: noise only ever lowers a measurement of it."""
        return max((y for y in self.yardsticks if y), default=None)

    def add(self, row: Row) -> None:
        self.rows.append(row)

    def on_yardstick(self, row: Row) -> None:
        """Writes a row's share of the limit into it."""
        if self.limit and "updates_per_s" in row:
            row["share_of_limit"] = row["updates_per_s"] / self.limit

    def find(self, op: str, shape: str, direction: str, provider: str) -> Row:
        """The float32 row; raises KeyError where the run has none."""
        for row in self.rows:
            key = (row["op"], row["shape"], row["direction"], row["provider"], row["dtype"])
            if key == (op, shape, direction, provider, "float32"):
                return row
        raise KeyError((op, shape, direction, provider))


# --- words ------------------------------------------------------------------------------------------------------------


def seconds(value: float) -> str:
    if value >= 1:
        return f"{value:.2f} s"
    value *= 1e3
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def rate(value: float) -> str:
    value /= 1e9
    return f"{value:.1f} G/s" if value >= 1 else f"{value:.2g} G/s"


def megabytes(value: float) -> str:
    return f"{value / 2**20:.0f} MiB"


def one_line(row: Row) -> str:
    """A row on its line of the progress."""
    speed = f"{rate(row['updates_per_s'])} updates" if "updates_per_s" in row else f"{row['images_per_s']:.3g} images/s"
    memory = f", peak {megabytes(row['peak_bytes'])}" if "peak_bytes" in row else ""
    return f"{seconds(row['median_s'])}, {speed}, error {row['relative_error']:.0e}{memory}"


def headline_of(description: dict[str, Any]) -> str:
    """The machine on one line."""
    m, v = description["machine"], description["versions"]
    commit = f", commit {description['commit']}" if description["commit"] else ""
    isa = m["isa"] or "no compiled module"
    return f"{m['cpu']}, {m['threads']} threads, {isa}; torch {v['torch']}{commit}"


# --- the table of ratios ----------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """One comparison: values in words, their ratio, and the target if there is one."""

    what: str
    ours: str
    other: str
    ratio: float
    shown: str  # the ratio in words
    target: float | None = None
    at_most: bool = False  # whether the target is an upper bound

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target

    def target_in_words(self) -> str:
        if self.target is None:
            return ""
        number = f"{self.target:.0%}" if self.shown.endswith("%") else f"{self.target:g}"
        mark = "met" if self.met else "missed"
        return f"{'at most' if self.at_most else 'at least'} {number}, {mark}"


def _times(what: str, ours: Row, other: Row, label: str, target: float | None = None) -> Line:
    ratio = other["median_s"] / ours["median_s"]
    words = f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x"
    return Line(what, seconds(ours["median_s"]), f"{label} {seconds(other['median_s'])}", ratio, words, target)


def _share(what: str, ours: str, other: str, ratio: float, target: float | None = None, at_most: bool = False) -> Line:
    return Line(what, ours, other, ratio, f"{ratio:.0%}", target, at_most)


def headline(results: Results) -> tuple[list[Line], int]:
    """The comparisons that this run has rows for, and how many it lacks."""
    find = results.find
    scan, vmamba = MEDMAMBA_56, "vmamba_t_stage1"

    def of_limit() -> Line:
        row = find("ss2d", scan, FORWARD, "mtlkit")
        if not results.limit:
            raise KeyError("yardstick")
        share = row["updates_per_s"] / results.limit
        return _share("forward", rate(row["updates_per_s"]), f"machine's limit {rate(results.limit)}", share, 0.7)

    def scans(shape: str, direction: str, provider: str, what: str, target: float | None = None) -> Callable[[], Line]:
        def line() -> Line:
            ours, other = (find("ss2d", shape, direction, name) for name in ("mtlkit", provider))
            return _times(what, ours, other, BY_NAME[provider].label, target)

        return line

    def both_rate() -> Line:
        value = find("ss2d", scan, BOTH, "mtlkit")["updates_per_s"]
        return Line("forward and backward", rate(value), "", value / 1e9, rate(value), 1.6)

    def one_dimensional() -> Line:
        ours, other = (find(op, scan, FORWARD, "mtlkit")["updates_per_s"] for op in ("selective_scan", "ss2d"))
        return _share("1-D scan of the same work", rate(ours), f"SS2D {rate(other)}", ours / other, 0.5)

    def level(name: str) -> Callable[[], Line]:
        def line() -> Line:
            best, ours = (find("ss2d", scan, FORWARD, p)["updates_per_s"] for p in ("mtlkit", f"mtlkit-{name}"))
            target = 0.35 if name == "avx2" else None
            return _share(f"forward, {name} code", rate(ours), f"AVX-512 code {rate(best)}", ours / best, target)

        return line

    def layer() -> Line:
        ours, other = (find(op, scan, FORWARD, "mtlkit")["median_s"] for op in ("ss2d_layer", "ss2d"))
        ratio = ours / other
        return Line(
            "whole SS2D layer, forward", seconds(ours), f"its scan {seconds(other)}", ratio, f"{ratio:.2f}", 2, True
        )

    def layer_times(direction: str, what: str) -> Callable[[], Line]:
        return lambda: _times(
            what, *(find("ss2d_layer", scan, direction, p) for p in ("mtlkit", "torch")), "PyTorch backend"
        )

    def memory() -> Line:
        ours, other = (find("ss2d_layer", scan, BOTH, p)["peak_bytes"] for p in ("mtlkit", "torch"))
        what = "peak memory, SS2D layer in training"
        return _share(what, megabytes(ours), f"PyTorch backend {megabytes(other)}", ours / other, 0.4, True)

    def network(name: str, direction: str, what: str, target: float | None = None) -> Callable[[], Line]:
        return lambda: _times(
            what, *(find(name, "busi_224", direction, p) for p in ("mtlkit", "torch")), "PyTorch backend", target
        )

    def scans_in_network() -> Line:
        row = find("medmamba_t", "busi_224", "inference", "mtlkit")
        share = row["profile"]["scan"]
        time = row["median_s"]
        return _share("its scans", seconds(share * time), f"the network {seconds(time)}", share, 0.25, True)

    lines, missing = [], 0
    for make in (
        of_limit,
        scans(scan, FORWARD, "reference", "forward", 150),
        scans(scan, FORWARD, "torch", "forward", 60),
        scans(scan, FORWARD, "torch-compile", "forward"),
        scans(scan, FORWARD, "mambapy", "forward"),
        both_rate,
        scans(scan, BOTH, "reference", "forward and backward"),
        scans(scan, BOTH, "torch", "forward and backward"),
        scans(vmamba, FORWARD, "torch", "forward, one state (VMamba)"),
        one_dimensional,
        level("avx2"),
        level("baseline"),
        layer,
        layer_times(FORWARD, "whole SS2D layer, forward"),
        layer_times(BOTH, "whole SS2D layer, forward and backward"),
        memory,
        network("medmamba_t", "inference", "MedMamba-T, one image of 224", 6),
        scans_in_network,
        network("medmamba_t", "training_step", "MedMamba-T, training step"),
        network("vmamba_t_s1l8", "inference", "VMamba-T, one image of 224"),
        network("vmamba_t_s1l8", "training_step", "VMamba-T, training step"),
    ):
        try:
            lines.append(make())
        except KeyError:
            missing += 1
    return lines, missing


def ratios(lines: list[Line], title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left", pad_edge=False)
    table.caption = (
        "SS2D at 56 x 56, 96 channels, 16 states, one image, float32, unless said otherwise. G/s: 10^9 state updates a "
        "second, counted for one forward pass. The machine's limit is the same arithmetic on registers alone."
    )
    table.add_column("what")
    table.add_column("mtlkit", justify="right")
    table.add_column("compared with", justify="right")
    table.add_column("ratio", justify="right", style="bold")
    table.add_column("target")
    for line in lines:
        style = {True: "green", False: "red", None: ""}[line.met]
        ours_is_rate = line.shown == line.ours
        table.add_row(
            line.what,
            line.ours,
            line.other,
            "" if ours_is_rate else line.shown,
            Text(line.target_in_words().replace("1.6", "1.6 G/s") if ours_is_rate else line.target_in_words(), style),
        )
    return table


def profiles(results: Results) -> Table | None:
    rows = [row for row in results.rows if row.get("profile")]
    if not rows:
        return None
    table = Table(title="Where an inference spends its time", title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("")
    for kind in rows[0]["profile"]:
        table.add_column(kind, justify="right")
    for row in rows:
        table.add_row(row["op"], *(f"{share:.0%}" for share in row["profile"].values()))
    return table


def remarks(results: Results) -> Iterator[str]:
    """Who is absent or left out, and why."""
    for provider in PROVIDERS:
        reason = provider.why_absent()
        if reason:
            yield f"absent: {provider.label}: {reason}"
        elif provider.left_out:
            yield f"in part: {provider.label}: {provider.left_out}"
    if len(set(results.yardsticks)) > 1:
        first, *_, last = results.yardsticks
        yield f"machine's limit: {rate(first)} at the start, {rate(last)} at the end; the higher one counts"


# --- the end of a run -------------------------------------------------------------------------------------------------


def finish(results: Results, description: dict[str, Any], folder: Path | None, *, colour: bool, width: int) -> str:
    """Draws the report and writes the files.

    Args:
        results: the rows.
        description: of the machine and the software.
        folder: where the files go; None writes none, for a run of a part or with failures.
        colour: whether the terminal shows colours.
        width: of the terminal.
    """
    for row in results.rows:
        results.on_yardstick(row)
    lines, missing = headline(results)
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=colour, no_color=not colour, width=min(max(width, 100), 130), highlight=False
    )
    console.print()
    for remark in remarks(results):
        console.print(remark, style="dim")
    table = profiles(results)
    if table:
        console.print()
        console.print(table)
    if lines:
        console.print()
        console.print(ratios(lines, headline_of(description)))
    if folder is None or missing:
        why = f"{missing} of the comparisons have no rows" if missing else "not every benchmark ran and passed"
        console.print(f"benchmarks/results stays as it is: {why}.")
    else:
        written = write(results, lines, description, folder)
        console.print(f"written: {', '.join(str(path) for path in written)}")
    return out.getvalue()


def write(results: Results, lines: list[Line], description: dict[str, Any], folder: Path) -> list[Path]:
    """Writes cpu.json and cpu.png, each whole or not at all."""
    from chart import draw

    start, *_, end = results.yardsticks
    document = description | {
        "yardstick": {"start_updates_per_s": start, "end_updates_per_s": end, "limit_updates_per_s": results.limit},
        "absent": {p.name: p.why_absent() for p in PROVIDERS if p.why_absent()},
        "headline": [line._asdict() | {"met": line.met} for line in lines],
        "rows": results.rows,
    }
    folder.mkdir(exist_ok=True)
    json_path, png_path = folder / "cpu.json", folder / "cpu.png"
    replace(json_path, (json.dumps(document, indent=1) + "\n").encode())
    replace(png_path, draw(document))
    return [json_path, png_path]


def replace(path: Path, content: bytes) -> None:
    """Puts the content in the place of the file at once, so that no reader meets half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise
