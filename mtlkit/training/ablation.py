"""Tables of ablations: one recipe with a part more or less in each row, trained, judged and set side by side.

    table.json table.csv table.md    the figures of all rows, written again after each
    <row>/seed-42/ ...               a run for each seed, as `mtlkit.training.train` makes it

A table is a file; mtlkit/configs/ablations/ holds those of the papers:

    name: MBDI, its parts            title
    recipe: mbdi                     a recipe by name, or the path of one, from the table's own folder
    figures: [iou, accuracy]         to be shown; the files hold all
    rows:
      - name: plain
        changes: {model: {options: {hmsf: false, tim: false, upa: false}}}
      - name: whole
        changes: {}

All rows are trained on the same split and with the same seeds.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlkit._files import csv_text, plain
from mtlkit._output import OutputFolder, resumable_folder
from mtlkit._text import printable
from mtlkit.errors import DataError
from mtlkit.training.aggregate import best_of, digits_of, in_words
from mtlkit.training.config import Config, RecipeError, did_you_mean, load_config, read_yaml
from mtlkit.training.modules import TrainingModule, check_recipe, create_network
from mtlkit.training.run import is_main, repeat

__all__ = ["Ablation", "AblationRow", "ablate", "load_ablation"]


@dataclass(frozen=True)
class AblationRow:
    """A row of a table.

    Args:
        name: what it is called.
        config: the recipe with the row's changes.

    Example:
        >>> from mtlkit.training import load_ablation
        >>> load_ablation("mbdi").rows[3].folder
        'tim-upa'
    """

    name: str
    config: Config

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class Ablation:
    """A table of ablations.

    Args:
        name: its title.
        rows: what is compared.
        figures: those to be shown, without the part of the data that they are of.

    Raises:
        ValueError: there is no row, or two rows share a folder.

    Example:
        >>> from mtlkit.training import load_ablation
        >>> [row.name for row in load_ablation("btinet").rows][:2]
        ['no interaction', 'fixed interaction']
    """

    name: str
    rows: tuple[AblationRow, ...]
    figures: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("rows: expected at least one, got none")
        folders: dict[str, str] = {}
        for row in self.rows:
            if not row.folder:
                raise ValueError(f"rows: expected names with letters or digits, got {row.name!r}")
            other = folders.setdefault(row.folder, row.name)
            if other is not row.name:
                raise ValueError(f"rows: expected names of their own, got {other!r} and {row.name!r}")


def load_ablation(name: str | Path, changes: Mapping[str, Any] | None = None) -> Ablation:
    """A table by name or from a file.

    Args:
        name: the name of one that comes with mtlkit (mbdi, btinet, csa_moe, hybrid_vssm, demo), or a path that ends
            with .yaml or .yml.
        changes: to the recipe of all rows; what a row changes itself comes on top.

    Raises:
        ValueError: there is no such table, or something in it is not as it must be.

    Example:
        >>> from mtlkit.training import load_ablation
        >>> table = load_ablation("mbdi", {"data": {"batch_size": 8}})
        >>> len(table.rows), table.rows[0].config.model.options["tim"], table.rows[0].config.data.batch_size
        (5, False, 8)
    """
    values, path = read_yaml(name, "mtlkit.configs.ablations", "table of ablations")
    try:
        known = ("name", "recipe", "figures", "rows")
        _check_names("", values, known)
        recipe = str(values.get("recipe", ""))
        beside = path.parent / recipe
        base = load_config(beside if beside.suffix in (".yaml", ".yml") and beside.is_file() else recipe)
        base = base.adjust(changes or {})
        figures = values.get("figures", [])
        if not isinstance(figures, list):
            raise ValueError(f"figures: expected a list of names, got {figures!r}")
        rows = values.get("rows")
        if not isinstance(rows, list):
            raise ValueError(f"rows: expected a list, got {rows!r}")
        table = tuple(_row(base, number, row) for number, row in enumerate(rows, 1))
        return Ablation(str(values.get("name", path.stem)), table, tuple(map(str, figures)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_names(where: str, values: Any, known: Sequence[str]) -> None:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}expected the names {', '.join(known)}, got {values!r}")
    for name in values:
        if name not in known:
            raise ValueError(f"{where}expected the names {', '.join(known)}, got {name!r}")


def _row(base: Config, number: int, values: Any) -> AblationRow:
    _check_names(f"row {number}: ", values, ("name", "changes"))
    name = str(values.get("name", ""))
    try:
        return AblationRow(name, base.adjust(values.get("changes") or {}))
    except ValueError as error:
        raise ValueError(f"row {name!r}: {error}") from None


# --- training ---------------------------------------------------------------------------------------------------------


def ablate(
    table: Ablation | str | Path,
    data: str | Path,
    out: str | Path,
    *,
    repeats: int = 1,
    resume: bool = False,
    force: bool = False,
    on_row: Callable[[int, AblationRow], None] | None = None,
    **options: Any,
) -> dict[str, dict[str, dict[str, float]]]:
    """Trains every row of a table, and writes what came out as table.json, table.csv and table.md.

    Every network is made once before anything is trained, so that a wrong option in the last row does not cost the time
    of those before it.

    Args:
        table: what to compare, as a table or by name or path.
        data: folder of the data set.
        out: folder of the runs.
        repeats: how many seeds each row is trained with.
        resume: goes on where an earlier call was interrupted: rows that ended are left as they are.
        force: begins again where there is an ablation already, whose files stay until the new one has ended.
        on_row: is told the number, from 0, and the row that is trained next.
        **options: as for `train`: split, skip_bad, progress, callbacks, trainer.

    Returns:
        For each row by name "mean" and "sd" of each figure, as `repeat` returns them.

    Raises:
        ValueError: a row does not fit the data, or has an option that its network lacks.
        DataError: as for `train`.

    Example:
        >>> from mtlkit.training import ablate
        >>> ablate("demo", "busi", "runs", repeats=0)
        Traceback (most recent call last):
        ValueError: repeats: expected at least 1, got 0
    """
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    source = None if isinstance(table, Ablation) else table
    table = table if isinstance(table, Ablation) else load_ablation(table)
    modules = [_module(row) for row in table.rows]
    _check_figures(table, modules)
    parameters = [_count(module) for module in modules]
    found: dict[str, dict[str, dict[str, float]]] = {}
    with resumable_folder(out, "an ablation", resume=resume, force=force, main=is_main()) as place:
        place.check_inputs(data, options.get("split"), source)
        for number, row in enumerate(table.rows):
            if on_row is not None:
                on_row(number, row)
            try:
                folder = place.nested(row.folder)
                found[row.name] = repeat(row.config, data, folder, repeats, resume=resume, **options)
            except DataError:
                raise
            except (ValueError, FloatingPointError) as error:
                kinds = (FloatingPointError, RecipeError, ValueError)
                kind = next(kind for kind in kinds if isinstance(error, kind))
                raise kind(f"row {row.name!r}: {error}") from None
            if is_main():
                _write(place, table, found, parameters, repeats)
    return found


def _module(row: AblationRow) -> TrainingModule:
    """What a row trains, without memory for its network; raises where it cannot be made, or the recipe does not fit."""
    changes = {"pretrained": False} if row.config.model.options.get("pretrained") else {}
    try:
        module = TrainingModule(create_network(row.config, "meta", **changes), row.config)
        check_recipe(module, row.config)
    except ValueError as error:
        raise RecipeError(f"row {row.name!r}: {error}") from None
    return module


def _parameters(row: AblationRow) -> int:
    """How many parameters the network of a row has."""
    return _count(_module(row))


def _count(module: TrainingModule) -> int:
    return sum(parameter.numel() for parameter in module.model.parameters())


def _check_figures(table: Ablation, modules: Sequence[TrainingModule]) -> None:
    """Raises where a figure to be shown is that of no row."""
    known = list(dict.fromkeys(name for module in modules for name in module.figure_names()))
    for name in table.figures:
        if name not in known:
            words = f"there is no figure {name!r}{did_you_mean(name, known)}; there are: {', '.join(sorted(known))}"
            raise RecipeError(f"figures: {words}")


# --- tables -----------------------------------------------------------------------------------------------------------


def show(table: Ablation, found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the figures to be shown; the best mean of each stands in asterisks.

    The figures are those of the test part, or where there is none of the validation part.
    """
    part = part_of(found)
    whole = dict.fromkeys(name for figures in found.values() for name in figures if name.startswith(f"{part}/"))
    own = [name.removeprefix(f"{part}/") for name in whole]
    names = table.figures or [name for name in own if not name.startswith("gate_")]
    columns = [[figures.get(f"{part}/{name}") for figures in found.values()] for name in names]
    cells = [[row] for row in found]
    for name, column in zip(names, columns, strict=True):
        means = [pair["mean"] for pair in column if pair is not None and not math.isnan(pair["mean"])]
        pick = best_of(name)
        for cell, pair in zip(cells, column, strict=True):
            text = "" if pair is None else in_words(pair, digits_of(name))
            best = pick is not None and len(means) > 1 and pair is not None and pair["mean"] == pick(means)
            cell.append(f"**{text}**" if best else text)
    return ["", *names], cells


def part_of(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The part judged by: "test" where there are figures of a test part, else "val"."""
    return "test" if any(name.startswith("test/") for figures in found.values() for name in figures) else "val"


def _write(
    place: OutputFolder, table: Ablation, found: Mapping[str, Any], parameters: Sequence[int], repeats: int
) -> None:
    """The three files."""
    rows = [
        {
            "name": row.name,
            "folder": row.folder,
            "parameters": count,
            "figures": found[row.name],
        }
        for row, count in zip(table.rows, parameters, strict=True)
        if row.name in found
    ]
    values = {"name": table.name, "seeds": [table.rows[0].config.seed + i for i in range(repeats)], "rows": rows}
    place.write_json("table.json", values)

    table_rows = [
        {"row": row["name"], "parameters": row["parameters"]}
        | {f"{name} {what}": plain(value) for name, pair in row["figures"].items() for what, value in pair.items()}
        for row in rows
    ]
    place.write_text("table.csv", csv_text(table_rows))

    headings, cells = show(table, found)
    part = {"test": "Test", "val": "Validation"}[part_of(found)]
    seeds = "one seed" if repeats == 1 else f"mean and standard deviation over {repeats} seeds"
    lines = [f"# {_markdown(table.name)}", "", f"{part} part, {seeds}; the best of each column in bold.", ""]
    for line in (headings, ["---"] * len(headings), *cells):
        lines.append("| " + " | ".join([_markdown(line[0]), *line[1:]]) + " |")
    place.write_text("table.md", "\n".join(lines) + "\n")


def _markdown(name: str) -> str:
    """A name that is taken for no markup."""
    return re.sub(r"([\\`*<>|\[\]])", r"\\\1", printable(name))
