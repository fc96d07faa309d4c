"""The results of an ablation table as files and on the screen: metrics next to published ones, and tests.

A cell is the mean of a metric over the seeds with its standard deviation, and in brackets the published value. With
three or more seeds every row is compared with the reference row by paired t-tests over the seeds, adjusted by Holm's
method for the number of rows.

Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (1979).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scipy import stats

from mtlkit._files import csv_text, markdown_table, plain
from mtlkit._output import OutputFolder
from mtlkit._text import escape_markdown
from mtlkit.models import Costs
from mtlkit.training.aggregate import best_of, digits_of, holm, in_words

if TYPE_CHECKING:
    from mtlkit.training.ablation import Ablation, AblationRow

__all__ = ["COSTS", "Trained", "cost_rows", "paired_tests", "show", "write_table"]

COSTS = {"parameters": 1e6, "computing": 1e6, "flops": 1e9}  # columns, and the value of a published 1
COST_TITLES = {"parameters": "parameters, M", "computing": "used parameters, M", "flops": "FLOPs, G"}
FEWEST_SEEDS = 3  # minimal number of seeds for a test
Figures = dict[str, dict[str, float]]  # "mean" and "sd" of each metric


@dataclass(frozen=True)
class Trained:
    """A trained row.

    Args:
        summary: "mean" and "sd" of each metric over the seeds.
        runs: metrics of each seed.
    """

    summary: Figures
    runs: Sequence[Mapping[str, float]]


# --- cells ------------------------------------------------------------------------------------------------------------


def show(
    table: "Ablation", found: Mapping[str, Figures], costs: Mapping[str, Costs] | None = None
) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the metrics to show; the best mean of each is in asterisks.

    The metrics are for the test part, or for the validation part if there is no test part.
    """
    part = part_of(found)
    whole = dict.fromkeys(name for figures in found.values() for name in figures if name.startswith(f"{part}/"))
    own = [name.removeprefix(f"{part}/") for name in whole]
    names = table.figures or tuple(name for name in own if not name.startswith("gate_"))
    rows = [row for row in table.rows if row.name in found]
    cells = [[row.name] for row in rows]
    for name in names:
        if name in COSTS:
            column = [_cost(row, name, (costs or {}).get(row.name)) for row in rows]
        else:
            column = _column(name, [found[row.name].get(f"{part}/{name}") for row in rows])
            column = [_with_published(text, row, name, table) for text, row in zip(column, rows, strict=True)]
        for cell, text in zip(cells, column, strict=True):
            cell.append(text)
    return ["", *(COST_TITLES.get(name, name) for name in names)], cells


def part_of(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The part to report: "test" if there are metrics for a test part, otherwise "val"."""
    return "test" if any(name.startswith("test/") for figures in found.values() for name in figures) else "val"


def _column(name: str, pairs: Sequence[Mapping[str, float] | None]) -> list[str]:
    """A metric for all rows; the best value is in asterisks."""
    means = [pair["mean"] for pair in pairs if pair is not None and not math.isnan(pair["mean"])]
    pick = best_of(name)
    best = pick(means) if pick is not None and len(means) > 1 else None
    texts = ["" if pair is None else in_words(pair, digits_of(name)) for pair in pairs]
    return [f"**{text}**" if pair and pair["mean"] == best else text for text, pair in zip(texts, pairs, strict=True)]


def _with_published(text: str, row: "AblationRow", name: str, table: "Ablation") -> str:
    if name not in row.published:
        return text
    mean, sd = row.published[name]
    pair = {"mean": table.scale * mean, "sd": None if sd is None else table.scale * sd}
    return f"{text} ({in_words(pair, digits_of(name))})".strip()


def _cost(row: "AblationRow", name: str, costs: Costs | None) -> str:
    text = "" if costs is None else f"{getattr(costs, name) / COSTS[name]:.3f}"
    return f"{text} ({row.published[name][0]:.3f})".strip() if name in row.published else text


def cost_rows(table: "Ablation", costs: Mapping[str, Costs]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the networks' costs next to the published ones."""
    cells = [[row.name, *(_cost(row, name, costs[row.name]) for name in COSTS)] for row in table.rows]
    return ["", *COST_TITLES.values()], cells


# --- tests ------------------------------------------------------------------------------------------------------------


def paired_tests(table: "Ablation", trained: Mapping[str, Trained]) -> dict[str, dict[str, float]]:
    """p-values by row and figure, against the table's reference; none with fewer than three seeds."""
    reference = trained.get(table.reference)
    others = [name for name in trained if name != table.reference]
    if reference is None or len(reference.runs) < FEWEST_SEEDS:
        return {}
    found: dict[str, dict[str, float]] = {name: {} for name in others}
    part = part_of({name: row.summary for name, row in trained.items()})
    for figure in table.figures:
        key = f"{part}/{figure}"
        with_figure = [name for name in others if key in trained[name].summary and key in reference.summary]
        values = [_paired_p(trained[name].runs, reference.runs, key) for name in with_figure]
        for name, p in zip(with_figure, holm(values), strict=True):
            found[name][figure] = p
    return found


def _paired_p(runs: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]], figure: str) -> float:
    """The p-value of a paired t-test over the seeds; 1 if the two never differ, NaN if a metric is undefined."""
    differences = [run[figure] - other[figure] for run, other in zip(runs, others, strict=True)]
    if len(set(differences)) == 1:
        return 1.0 if differences[0] == 0 else math.nan if math.isnan(differences[0]) else 0.0
    result: Any = stats.ttest_1samp(differences, 0.0)
    return float(result.pvalue)


# --- files ------------------------------------------------------------------------------------------------------------


def write_table(
    place: OutputFolder, table: "Ablation", trained: Mapping[str, Trained], costs: Mapping[str, Costs], repeats: int
) -> None:
    """The three files."""
    tests = paired_tests(table, trained)
    rows = [
        {
            "name": row.name,
            "folder": row.folder,
            **{name: getattr(costs[row.name], name) for name in COSTS},
            "figures": trained[row.name].summary,
            "published": {name: plain({"mean": mean, "sd": sd}) for name, (mean, sd) in row.published.items()},
            "p": tests.get(row.name, {}),
        }
        for row in table.rows
        if row.name in trained
    ]
    seeds = [table.rows[0].config.seed + i for i in range(repeats)]
    about = {"name": table.name, "paper": table.paper, "unit_of_published": table.unit, "reference": table.reference}
    place.write_json("table.json", plain(about | {"seeds": seeds, "rows": rows}))
    place.write_text("table.csv", csv_text([_flat(row) for row in rows]))
    place.write_text("table.md", "\n".join(_lines(table, trained, costs, tests, repeats)) + "\n")


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    values = {"row": row["name"]} | {name: row[name] for name in COSTS}
    values |= {f"{name} {what}": plain(v) for name, pair in row["figures"].items() for what, v in pair.items()}
    values |= {f"{name} published {what}": v for name, pair in row["published"].items() for what, v in pair.items()}
    return values | {f"{name} p": plain(value) for name, value in row["p"].items()}


def _lines(
    table: "Ablation",
    trained: Mapping[str, Trained],
    costs: Mapping[str, Costs],
    tests: Mapping[str, Mapping[str, float]],
    repeats: int,
) -> list[str]:
    found = {name: row.summary for name, row in trained.items()}
    part = {"test": "Test", "val": "Validation"}[part_of(found)]
    seeds = "one seed" if repeats == 1 else f"mean and standard deviation over {repeats} seeds"
    published = any(row.published for row in table.rows)
    source = f"; in brackets, published in {escape_markdown(table.paper)}" if published else ""
    words = f"{part} part, {seeds}; the best of each column in bold{source}."
    lines = [f"# {escape_markdown(table.name)}", "", words, "", *_table(*show(table, found, costs))]
    remarks = [f"- {escape_markdown(row.name)}: {escape_markdown(row.remark)}" for row in table.rows if row.remark]
    if remarks:
        lines += ["", *remarks]
    if tests:
        figures = list(dict.fromkeys(name for row in tests.values() for name in row))
        cells = [[name, *(_p_in_words(row.get(figure)) for figure in figures)] for name, row in tests.items()]
        reference = escape_markdown(table.reference)
        title = f"p-values of paired t-tests over the seeds against {reference}, adjusted by Holm's method."
        lines += ["", title, "", *_table(["", *figures], cells)]
    return lines


def _p_in_words(p: float | None) -> str:
    return "" if p is None or math.isnan(p) else "below 0.001" if p < 0.001 else f"{p:.3f}"


def _table(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """A table whose first column has names."""
    return markdown_table(headings, [(escape_markdown(name), *figures) for name, *figures in cells])
