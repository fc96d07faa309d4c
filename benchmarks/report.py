"""The end of a run: tables of ratios and targets and, for a complete run, its file in results/ and the README's table.

`python benchmarks/report.py` prints the targets of every file in results/ and writes the README's table from them.
"""

import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import readme
from comparisons import COMPARISONS, Document, megabytes, rate, seconds
from measuring import UNDISTURBED, Results, Row
from providers import BOTH, FORWARD, PROVIDERS
from rich.console import Console
from rich.table import Table
from rich.text import Text
from targets import TARGETS

from mtlkit.operators import floors


def one_line(row: Row) -> str:
    """A row as a line of the progress output."""
    if "python_calls" in row:
        speed = f"at least {seconds(row['min_s'])}, {row['python_calls']} Python calls"
    elif "updates_per_s" in row:
        speed = f"{rate(row['updates_per_s'])} updates"
    elif "bytes_per_s" in row:
        speed = f"{row['bytes_per_s'] / 1e9:.3g} GB/s"
        speed += f", {row['floor_s'] / row['median_s']:.0%} of the floor" if "floor_s" in row else ""
    else:
        speed = f"{row['images_per_s']:.3g} images/s"
    memory = f", peak {megabytes(row['peak_bytes'])}" if "peak_bytes" in row else ""
    return f"{seconds(row['median_s'])}, {speed}, error {row['relative_error']:.0e}{memory}"


def headline_of(description: dict[str, Any]) -> str:
    """The machine on one line."""
    m, v = description["machine"], description["versions"]
    commit = f", commit {description['commit']}" if description["commit"] else ""
    isa = m["isa"] or "no compiled module"
    bits = {None: "", 0: ", no AVX-512"}.get(m["avx512_bits"], f", AVX-512 of {m['avx512_bits']} bits a cycle")
    return (
        f"{m['cpu']}, {m['microarchitecture']}{bits}; {m['threads']} threads, {isa}, governor {m['governor']}; "
        f"torch {v['torch']}{commit}"
    )


# --- tables -----------------------------------------------------------------------------------------------------------


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left", pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in ("", "what") else "right")
    return table


def ratios(document: Document) -> Table | None:
    table = _table("What the rows come to", "what", "mtlkit", "compared with", "ratio")
    table.caption = (
        "SS2D at 56 x 56, 96 channels, 16 states, one image, float32, unless said otherwise. G/s: 10^9 state updates a "
        "second, counted for one forward pass."
    )
    for comparison in COMPARISONS.values():
        figure = comparison.of(document)
        if figure is not None:
            table.add_row(comparison.what, figure.ours, figure.other, figure.words())
    return table if table.row_count else None


def targets(document: Document, every: bool = True) -> Table | None:
    """The targets for which the run has rows, or all of them."""
    table = _table(f"Targets: {machine.kind(document['machine'])}", "what", "before", "now", "target", "")
    for name, target in TARGETS.items():
        comparison = COMPARISONS[name]
        figure = comparison.of(document)
        if figure is None:
            if every:
                table.add_row(f"{comparison.what} ({name})", target.before, "", "", Text("not measured", "dim"))
            continue
        met = target.met(figure.ratio)
        bound = f"{'≤' if target.at_most else '≥'} {figure.words(target.bound)}"
        against = f"{figure.words()} of {figure.other}" if figure.unit == "%" else f"{figure.words()}, {figure.other}"
        verdict = Text("met" if met else "missed", "green" if met else "red")
        table.add_row(comparison.what, target.before, against, bound, verdict)
    return table if table.row_count else None


def profiles(results: Results) -> Table | None:
    rows = [row for row in results.rows if row.get("profile")]
    if not rows:
        return None
    table = _table("Where an inference spends its time", "", *rows[0]["profile"])
    for row in rows:
        table.add_row(row["op"], *(f"{share:.0%}" for share in row["profile"].values()))
    return table


def calls(results: Results) -> Table | None:
    """The cost of a call with almost nothing to compute; the minimum, which other programs disturb least."""
    rows = {(row["op"], row["shape"], row["direction"]): row for row in results.rows if "python_calls" in row}
    if not rows:
        return None
    columns = ("", "forward", "Python calls", "with backward", "Python calls")
    table = _table("What a call costs, on one thread", *columns)
    for op, shape in dict.fromkeys(key[:2] for key in rows):
        cells = []
        for direction in (FORWARD, BOTH):
            row = rows.get((op, shape, direction))
            cells += [seconds(row["min_s"]), str(row["python_calls"])] if row else ["", ""]
        table.add_row(f"{op}, {shape.removeprefix('layer_')}", *cells)
    return table


def remarks(results: Results, document: Document) -> Iterator[str]:
    """Missing or excluded implementations, with the reason, and whether the machine was quiet."""
    for provider in PROVIDERS:
        reason = provider.why_absent()
        if reason:
            yield f"absent: {provider.label}: {reason}"
        elif provider.left_out:
            yield f"in part: {provider.label}: {provider.left_out}"
    if document["yardstick"]:
        first, last, most, old, operations = map(rate, document["yardstick"].values())
        yield (
            f"yardstick: {first} at the start, {last} at the end; highest {most}; with a polynomial {old}; "
            f"operations of the multiply-adds {operations}"
        )
    disturbed = results.disturbed()
    if disturbed:
        yield (
            f"disturbed: other programs ran during {len(disturbed)} of {len(results.rows)} rows (the yardstick fell "
            f"below {UNDISTURBED:.0%} of the limit); run again on an idle machine before quoting these results"
        )
    yield f"other programs used, before: {document['load']['before']}; after: {document['load']['after']}"


# --- the end of a run -------------------------------------------------------------------------------------------------


def document_of(results: Results, description: dict[str, Any], load: dict[str, str]) -> Document:
    """The contents of a file in results/."""
    yardstick = {}
    if results.limit:
        start, *_, end = results.yardsticks
        polynomial = max(results.polynomials)
        yardstick = {
            "start_updates_per_s": start,
            "end_updates_per_s": end,
            "limit_updates_per_s": results.limit,
            "polynomial_updates_per_s": polynomial,
            "multiply_adds_per_s": floors.multiply_adds(description["machine"]["isa"], results.limit, polynomial),
        }
    return description | {
        "load": load,
        "yardstick": yardstick,
        "absent": {p.name: p.why_absent() for p in PROVIDERS if p.why_absent()},
        "disturbed_rows": len(results.disturbed()),
        "rows": results.rows,
    }


def finish(results: Results, document: Document, why_kept: str | None, *, colour: bool, width: int) -> str:
    """Prints the report and writes the files.

    Args:
        results: the rows.
        document: the run's description.
        why_kept: why the files in results/ stay unchanged; None writes them.
        colour: whether the terminal supports colours.
        width: of the terminal.
    """
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=colour, no_color=not colour, width=min(max(width, 100), 130), highlight=False
    )
    console.print()
    for remark in remarks(results, document):
        console.print(remark, style="dim")
    whole = why_kept is None
    for table in filter(None, (profiles(results), calls(results), ratios(document), targets(document, every=whole))):
        console.print()
        console.print(table)
    console.print(headline_of(document))
    if why_kept:
        console.print(f"benchmarks/results stays as it is: {why_kept}.")
    else:
        console.print(f"written: {', '.join(map(str, write(document, readme.RESULTS)))}")
        readme.update()
        console.print("written: the table of README.md")
    return out.getvalue()


def write(document: Document, folder: Path) -> list[Path]:
    """Writes the JSON, one row per line, and the chart of this kind of machine, each completely or not at all."""
    from chart import draw

    folder.mkdir(exist_ok=True)
    json_path, png_path = (folder / f"{machine.stem(document['machine'])}.{suffix}" for suffix in ("json", "png"))
    rows = ",\n".join(json.dumps(row) for row in document["rows"])
    text = json.dumps(document | {"rows": []}, indent=1).replace('"rows": []', f'"rows": [\n{rows}\n]')
    replace(json_path, f"{text}\n".encode())
    replace(png_path, draw(document))
    return [json_path, png_path]


def replace(path: Path, content: bytes) -> None:
    """Replaces the file at once, so that no reader sees half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


if __name__ == "__main__":
    printer = Console(highlight=False, file=sys.stdout)
    for found in readme.documents():
        printer.print(targets(found))
    readme.update()
