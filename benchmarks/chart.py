"""The speed charts in benchmarks/results/; `python benchmarks/chart.py results.json chart.png` draws one."""

import io
import json
import sys
from pathlib import Path
from typing import Any

from machine import kind
from providers import BOTH, BY_NAME, FORWARD, MEDMAMBA_56

OURS, OTHERS, LIMIT, INK, FAINT = "#0072b2", "#b4b8bd", "#d55e00", "#222222", "#6b6b6b"  # Okabe and Ito's palette
SHOWN = ("mtlkit", "torch", "mambapy", "mamba-ssm", "reference")

Rates = dict[str, float]  # provider -> state updates per second


def draw(document: dict[str, Any]) -> bytes:
    """A PNG: state updates per second of every provider at 56 x 56, forward and with backward, next to the limit."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    yardstick = document["yardstick"]
    limit = yardstick.get("limit_updates_per_s") or yardstick["polynomial_updates_per_s"]
    forward, both = (_rates(document, direction) for direction in (FORWARD, BOTH))
    order = sorted(forward, key=forward.get)
    figure = Figure(figsize=(10.5, 4.4), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    lowest = min((*forward.values(), *both.values()))
    for axis, title, rates in zip(axes, ("Forward", "Forward and backward"), (forward, both), strict=True):
        _panel(axis, title, rates, order, limit, lowest / 4)
    axes[0].get_yticklabels()[order.index("mtlkit")].set_fontweight("bold")
    machine, torch = document["machine"], document["versions"]["torch"]
    figure.suptitle(
        "The four-direction scan (SS2D) on a CPU: state updates per second",
        x=0.01,
        ha="left",
        fontsize=15,
        fontweight="bold",
        color=INK,
    )
    figure.supxlabel(
        f"56 × 56 map, 96 channels, 16 states, one image, float32 · logarithmic scale · {machine['cpu']}, "
        f"{kind(machine)}, {machine['threads']} threads · torch {torch}"
        f" · {document['date'][:10]}",
        x=0.01,
        ha="left",
        fontsize=8.5,
        color=FAINT,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _rates(document: dict[str, Any], direction: str) -> Rates:
    key = ("ss2d", MEDMAMBA_56, "float32", direction)
    rows = [r for r in document["rows"] if (r["op"], r["shape"], r["dtype"], r["direction"]) == key]
    return {row["provider"]: row["updates_per_s"] for row in rows if row["provider"] in SHOWN}


def _panel(axis, title: str, rates: Rates, order: list[str], limit: float, left: float) -> None:
    """One direction. Bars start at `left`, because a logarithmic axis has no 0."""
    ours = rates["mtlkit"]
    for place, provider in enumerate(order):
        if provider not in rates:
            axis.text(left * 1.15, place, "not measured", va="center", color=FAINT, fontsize=9.5, style="italic")
            continue
        value = rates[provider]
        own = provider == "mtlkit"
        axis.barh(place, value - left, left=left, height=0.64, color=OURS if own else OTHERS)
        if own:  # inside the bar, because the limit is drawn right next to it
            style = {"ha": "right", "color": "white", "fontsize": 13, "fontweight": "bold"}
            axis.text(value / 1.18, place, _rate(value), va="center", **style)
        else:
            text = axis.text(value * 1.15, place, _rate(value), va="center", color=INK, fontsize=10.5)
            beside = {"xycoords": text, "textcoords": "offset points", "annotation_clip": False}
            axis.annotate(_slower(ours / value), (1, 0), (8, 0), va="bottom", color=FAINT, fontsize=10.5, **beside)
    axis.set_xscale("log")
    axis.set_xlim(left, limit * 1.6)
    axis.set_ylim(-0.55, len(order) - 0.15)
    axis.axvline(limit, color=LIMIT, linestyle=(0, (4, 2)), linewidth=1.8)
    words = f"this CPU's limit, forward: {_rate(limit)}"
    axis.text(limit / 1.1, len(order) - 0.42, words, ha="right", va="center", color=LIMIT, fontsize=9.5)
    axis.set_yticks(range(len(order)), [BY_NAME[provider].label for provider in order], fontsize=11.5, color=INK)
    axis.set_title(title, loc="left", fontsize=12.5, color=INK)
    axis.tick_params(axis="both", length=0)
    axis.tick_params(axis="x", labelcolor=FAINT, labelsize=9.5)
    axis.xaxis.set_major_formatter(lambda value, _: _rate(value))
    axis.minorticks_off()
    axis.grid(axis="x", color="#e8e8e8", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[:].set_visible(False)


def _rate(value: float) -> str:
    return f"{value / 1e9:.3g} G/s" if value >= 1e9 else f"{value / 1e6:.3g} M/s"


def _slower(ratio: float) -> str:
    return f"{ratio:.0f}× slower" if ratio >= 10 else f"{ratio:.1f}× slower"


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_bytes(draw(json.loads(source.read_text())))
