"""The chart of benchmarks/results/cpu.png; `python benchmarks/chart.py results.json chart.png` draws it again."""

import io
import json
import sys
from pathlib import Path
from typing import Any

from providers import BOTH, BY_NAME, FORWARD, MEDMAMBA_56

OURS, OTHERS, LIMIT, INK = "#0072b2", "#b4b8bd", "#d55e00", "#222222"  # of Okabe and Ito's palette for all eyes
SHOWN = ("mtlkit", "torch-compile", "torch", "mambapy", "mamba-ssm", "reference")


def draw(document: dict[str, Any]) -> bytes:
    """A PNG: state updates a second of every provider at 56 x 56, forward and with backward, beside the limit."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    limit = document["yardstick"]["limit_updates_per_s"]
    panels = {"Forward": FORWARD, "Forward and backward": BOTH}
    figure = Figure(figsize=(10, 4.6), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharex=True)
    lowest = min(row["updates_per_s"] for row in _rows(document, FORWARD) + _rows(document, BOTH))
    for axis, (title, direction) in zip(axes, panels.items(), strict=True):
        _panel(axis, title, _rows(document, direction), limit, lowest)
    machine = document["machine"]
    figure.suptitle(
        "Four-direction scan (SS2D) of a 56 × 56 map, on a CPU: state updates per second",
        x=0.01,
        ha="left",
        fontsize=14,
        fontweight="bold",
        color=INK,
    )
    figure.supxlabel(
        f"{machine['cpu']}, {machine['threads']} threads, {machine['isa']} · float32, 96 channels, 16 states, one image · "
        f"torch {document['versions']['torch']} · {document['date'][:10]}",
        x=0.01,
        ha="left",
        fontsize=9,
        color="#666666",
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _rows(document: dict[str, Any], direction: str) -> list[dict[str, Any]]:
    key = ("ss2d", MEDMAMBA_56, "float32", direction)
    rows = [r for r in document["rows"] if (r["op"], r["shape"], r["dtype"], r["direction"]) == key]
    return sorted((r for r in rows if r["provider"] in SHOWN), key=lambda r: r["updates_per_s"])


def _panel(axis, title: str, rows: list[dict[str, Any]], limit: float, lowest: float) -> None:
    left = lowest / 4
    ours = next(row["updates_per_s"] for row in rows if row["provider"] == "mtlkit")
    for place, row in enumerate(rows):
        value = row["updates_per_s"]
        own = row["provider"] == "mtlkit"
        axis.barh(place, value - left, left=left, height=0.62, color=OURS if own else OTHERS)
        rate = _rate(value)
        if own:  # inside the bar, for the limit stands close behind it
            axis.text(value / 1.15, place, rate, va="center", ha="right", color="white", fontsize=12, fontweight="bold")
        else:
            text = f"{rate}   mtlkit: {_times(ours / value)}"
            axis.text(value * 1.12, place, text, va="center", ha="left", color=INK, fontsize=10)
    axis.set_xscale("log")
    axis.set_xlim(left, limit * 1.9)
    axis.set_ylim(-0.6, len(rows) - 0.1)
    axis.axvline(limit, color=LIMIT, linestyle=(0, (4, 2)), linewidth=1.6)
    axis.text(limit / 1.08, len(rows) - 0.47, f"limit of this CPU {_rate(limit)}", ha="right", color=LIMIT, fontsize=9)
    axis.set_yticks(range(len(rows)), [_label(row["provider"]) for row in rows], fontsize=11, color=INK)
    axis.get_yticklabels()[-1].set_fontweight("bold")
    axis.set_title(title, loc="left", fontsize=12, color=INK)
    axis.tick_params(axis="both", length=0)
    axis.xaxis.set_major_formatter(lambda value, _: _rate(value))
    axis.xaxis.set_minor_locator(_none())
    axis.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axis.spines[side].set_visible(False)


def _none():
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _label(provider: str) -> str:
    return BY_NAME[provider].label.replace(", ", ",\n")


def _rate(value: float) -> str:
    return f"{value / 1e9:.3g} G/s" if value >= 1e9 else f"{value / 1e6:.0f} M/s"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.1f}×"


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_bytes(draw(json.loads(source.read_text())))
