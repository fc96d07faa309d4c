"""What a run ends with: one table of ratios, and for a whole run benchmarks/results/cpu.json and cpu.png."""

import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comparisons import Line, headline, megabytes, rate, seconds
from providers import BOTH, FORWARD, PROVIDERS
from rich.console import Console
from rich.table import Table
from rich.text import Text
from run_results import UNDISTURBED, Results, Row


def one_line(row: Row) -> str:
    """A row on its line of the progress."""
    if "python_calls" in row:
        speed = f"at least {seconds(row['min_s'])}, {row['python_calls']} Python calls"
    elif "updates_per_s" in row:
        speed = f"{rate(row['updates_per_s'])} updates"
    elif "bytes_per_s" in row:
        speed = f"{row['bytes_per_s'] / 1e9:.3g} GB/s, {row['floor_s'] / row['median_s']:.0%} of the floor"
    else:
        speed = f"{row['images_per_s']:.3g} images/s"
    memory = f", peak {megabytes(row['peak_bytes'])}" if "peak_bytes" in row else ""
    return f"{seconds(row['median_s'])}, {speed}, error {row['relative_error']:.0e}{memory}"


def headline_of(description: dict[str, Any]) -> str:
    """The machine on one line."""
    m, v = description["machine"], description["versions"]
    commit = f", commit {description['commit']}" if description["commit"] else ""
    isa = m["isa"] or "no compiled module"
    return f"{m['cpu']}, {m['threads']} threads, {isa}; torch {v['torch']}{commit}"


# --- tables -----------------------------------------------------------------------------------------------------------


def ratios(lines: list[Line], title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left", pad_edge=False)
    table.caption = (
        "SS2D at 56 x 56, 96 channels, 16 states, one image, float32, unless said otherwise. G/s: 10^9 state updates a "
        "second, counted for one forward pass. The machine's limit is that arithmetic alone."
    )
    table.add_column("what")
    table.add_column("mtlkit", justify="right")
    table.add_column("compared with", justify="right")
    table.add_column("ratio", justify="right", style="bold")
    table.add_column("target")
    for line in lines:
        style = {True: "green", False: "red", None: ""}[line.met]
        shown = "" if line.shown == line.ours else line.shown  # a value by itself
        table.add_row(line.what, line.ours, line.other, shown, Text(line.target_in_words(), style))
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


def calls(results: Results) -> Table | None:
    """What a call costs where there is next to nothing to compute; the least, which other programs disturb last."""
    rows = {(row["op"], row["shape"], row["direction"]): row for row in results.rows if "python_calls" in row}
    if not rows:
        return None
    table = Table(title="What a call costs, on one thread", title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("")
    for direction in ("forward", "with backward"):
        table.add_column(direction, justify="right")
        table.add_column("Python calls", justify="right")
    for op, shape in dict.fromkeys(key[:2] for key in rows):
        cells = []
        for direction in (FORWARD, BOTH):
            row = rows.get((op, shape, direction))
            cells += [seconds(row["min_s"]), str(row["python_calls"])] if row else ["", ""]
        table.add_row(f"{op}, {shape.removeprefix('layer_')}", *cells)
    return table


def remarks(results: Results) -> Iterator[str]:
    """Who is absent or left out, and why."""
    for provider in PROVIDERS:
        reason = provider.why_absent()
        if reason:
            yield f"absent: {provider.label}: {reason}"
        elif provider.left_out:
            yield f"in part: {provider.label}: {provider.left_out}"
    if results.limit:
        first, *_, last = map(rate, results.yardsticks)
        yield f"yardstick: {first} at the start, {last} at the end; the highest, {rate(results.limit)}"
    disturbed = results.disturbed()
    if disturbed:
        yield (
            f"disturbed: other programs ran beside {len(disturbed)} of {len(results.rows)} rows (the yardstick fell "
            f"under {UNDISTURBED:.0%} of the limit); run again on an idle machine before quoting figures"
        )


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
    for table in filter(None, (profiles(results), calls(results))):
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
        "disturbed_rows": len(results.disturbed()),
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
