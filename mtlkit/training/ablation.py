"""Ablation tables: variants of one recipe, one per row, trained, evaluated and compared.

    table.json table.csv table.md    the metrics of all rows, updated after each row
    <row>/seed-42/ ...               a run for each seed, as written by `mtlkit.training.train`

A table is a file; mtlkit/configs/ablations/ has the tables of the papers:

    name: MBDI, its parts            title
    paper: arXiv 2603.01295, table 2 source of the published values
    data: [busi]                     layouts of the data sets that it is of; none takes all
    images: 780                      number of images or exams in the data set
    recipe: mbdi                     a recipe by name, or its path relative to the table
    figures: [iou, accuracy]         metrics to show; the files have all. "parameters", "computing" and "flops" are
    columns
    unit: percent                    of the published values: "percent" or "fraction"
    reference: whole                 the row that the others are tested against; by default the last rows:
      - name: plain
        changes: {model: {options: {hmsf: false, tim: false, upa: false}}}
        published: {iou: 67.43, accuracy: [93.32, 0.30]}    the second is a standard deviation
      - name: whole
        changes: {}

All rows are trained on the same split and with the same seeds. Published parameters are in millions, FLOPs in 10^9.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources import files
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mtlkit._output import resumable_folder
from mtlkit._text import did_you_mean, shown
from mtlkit.data.files import check_folder
from mtlkit.data.layouts import LAYOUTS, find_layout
from mtlkit.data.synthetic import synthesize_layout
from mtlkit.errors import DataError
from mtlkit.models import Costs, count_costs
from mtlkit.training.ablation_table import COSTS, Trained, write_table
from mtlkit.training.config import Config, RecipeError, beside, load_config, read_yaml
from mtlkit.training.modules import TrainingModule, check_recipe, create_network
from mtlkit.training.run import check_sources, is_main
from mtlkit.training.series import open_series, open_train_runner, seeds

__all__ = ["Ablation", "AblationRow", "ablate", "count_table", "list_ablations", "load_ablation"]

PACKAGE = "mtlkit.configs.ablations"
PHANTOMS = "phantoms"  # instead of a folder, for a rehearsal
REHEARSED = 16  # images per row in a rehearsal
UNITS = {"percent": 0.01, "fraction": 1.0}


@dataclass(frozen=True)
class AblationRow:
    """A row of a table.

    Args:
        name: name of the row.
        config: the recipe with the row's changes.
        published: mean and, if published, standard deviation of metrics by name, in the table's unit; "parameters" in
            millions and "flops" in 10^9.
        remark: remark on the row.

    Example:
        >>> from mtlkit.training import load_ablation
        >>> row = load_ablation("mbdi_table2_busi").rows[3]
        >>> row.folder, row.published["iou"]
        ('tim-upa', (69.74, None))
    """

    name: str
    config: Config
    published: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)
    remark: str = ""

    @property
    def folder(self) -> str:
        """The name of the row's folder."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class Ablation:
    """An ablation table.

    Args:
        name: title of the table.
        rows: the variants to compare.
        figures: metrics to show, without the part of the data in their names.
        paper: source of the published values.
        data: layouts of the data sets that it applies to; none for all.
        images: number of images or exams in that data set; 0 if unknown.
        unit: unit of the published values, "percent" or "fraction".
        reference: the row that the others are tested against; by default the last.

    Raises:
        ValueError: there is no row, two rows share a folder, or an argument is invalid.

    Example:
        >>> from mtlkit.training import load_ablation
        >>> [row.name for row in load_ablation("btinet_gates_busi").rows][:2]
        ['no interaction', 'fixed interaction']
    """

    name: str
    rows: tuple[AblationRow, ...]
    figures: tuple[str, ...] = ()
    paper: str = ""
    data: tuple[str, ...] = ()
    images: int = 0
    unit: str = "percent"
    reference: str = ""

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("rows: expected at least one, got none")
        folders: dict[str, str] = {}
        for row in self.rows:
            if not row.folder:
                raise ValueError(f"rows: expected names with letters or digits, got {row.name!r}")
            other = folders.setdefault(row.folder, row.name)
            if other is not row.name:
                raise ValueError(f"rows: expected different names, got {other!r} and {row.name!r}")
        if self.unit not in UNITS:
            raise ValueError(f"unit: expected one of {', '.join(UNITS)}, got {shown(self.unit)}")
        names = [row.name for row in self.rows]
        if not self.reference:
            object.__setattr__(self, "reference", names[-1])
        if self.reference not in names:
            raise ValueError(f"reference: expected one of the rows {', '.join(names)}, got {shown(self.reference)}")
        for layout in self.data:
            if layout not in LAYOUTS:
                raise ValueError(f"data: expected some of {', '.join(LAYOUTS)}, got {shown(layout)}")

    @property
    def scale(self) -> float:
        """The value of a published 1."""
        return UNITS[self.unit]

    def check_data(self, data: str | Path) -> None:
        """Raises a DataError unless the folder has a data set that the table applies to, or the user's own images."""
        found = find_layout(check_folder(data))
        if self.data and found not in (*self.data, "folder"):
            words = f"{self.name!r} is a table for {' or '.join(self.data)}, but this folder has the layout {found}"
            raise DataError(f"{data}: {words}")


def list_ablations() -> list[str]:
    """The names of the tables that come with mtlkit.

    Example:
        >>> from mtlkit.training import list_ablations
        >>> "mbdi_table2_busi" in list_ablations()
        True
    """
    return sorted(path.name.removesuffix(".yaml") for path in files(PACKAGE).iterdir() if path.name.endswith(".yaml"))


# --- files ------------------------------------------------------------------------------------------------------------


def load_ablation(name: str | Path, changes: Mapping[str, Any] | None = None) -> Ablation:
    """Loads a table by name or from a file.

    Args:
        name: one of `list_ablations()`, or a path that ends with .yaml or .yml.
        changes: changes to the recipe of all rows; the changes of a row are applied after these.

    Raises:
        ValueError: there is no such table, or something in it is invalid.

    Example:
        >>> from mtlkit.training import load_ablation
        >>> table = load_ablation("mbdi_table2_busi", {"data": {"batch_size": 8}})
        >>> len(table.rows), table.rows[0].config.model.options["tim"], table.rows[0].config.data.batch_size
        (5, False, 8)
    """
    values, path = read_yaml(name, PACKAGE, "table of ablations")
    try:
        known = ("name", "recipe", "figures", "rows", "paper", "data", "images", "unit", "reference")
        _check_names("", values, known)
        recipe = _text("recipe", values.get("recipe", ""))
        base = load_config(beside(path, recipe)).adjust(changes or {})
        rows = values.get("rows")
        if not isinstance(rows, list):
            raise ValueError(f"rows: expected a list, got {shown(rows)}")
        images = values.get("images", 0)
        if not isinstance(images, int) or isinstance(images, bool) or images < 0:
            raise ValueError(f"images: expected an integer of at least 0, got {shown(images)}")
        return Ablation(
            _text("name", values.get("name", path.stem)),
            tuple(_row(base, number, row) for number, row in enumerate(rows, 1)),
            _names(values, "figures"),
            data=_names(values, "data"),
            images=images,
            **{name: _text(name, values[name]) for name in ("paper", "unit", "reference") if name in values},
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_names(where: str, values: Any, known: Sequence[str]) -> None:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}expected the names {', '.join(known)}, got {shown(values)}")
    for name in values:
        if name not in known:
            raise ValueError(f"{where}expected the names {', '.join(known)}, got {shown(name)}")


def _names(values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = values.get(name, [])
    if not isinstance(found, list):
        raise ValueError(f"{name}: expected a list of names, got {shown(found)}")
    return tuple(_text(name, one) for one in found)


def _text(name: str, value: Any) -> str:
    """Text; numbers and booleans are taken as they are written."""
    if not isinstance(value, str | int | float):
        raise ValueError(f"{name}: expected text, got {shown(value)}")
    return str(value) if isinstance(value, str) else shown(value)


def _row(base: Config, number: int, values: Any) -> AblationRow:
    _check_names(f"row {number}: ", values, ("name", "changes", "published", "remark"))
    name = _text(f"row {number}: name", values.get("name", ""))
    try:
        config = base.adjust(values.get("changes") or {})
        published = values.get("published") or {}
        if not isinstance(published, Mapping):
            raise ValueError(f"published: expected metrics and their values, got {shown(published)}")
        pairs = {str(figure): _published(str(figure), value) for figure, value in published.items()}
        return AblationRow(name, config, pairs, _text("remark", values.get("remark", "")))
    except ValueError as error:
        raise ValueError(f"row {shown(name)}: {error}") from None


def _published(figure: str, value: Any) -> tuple[float, float | None]:
    """Mean, and standard deviation if there is one."""
    pair = value if isinstance(value, list) else [value]
    numbers = [v for v in pair if isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e308]
    if len(numbers) != len(pair) or len(pair) not in (1, 2):
        words = "expected a number, or a mean and a standard deviation"
        raise ValueError(f"published.{figure}: {words}, got {shown(value)}")
    return float(pair[0]), float(pair[1]) if len(pair) == 2 else None


# --- training ---------------------------------------------------------------------------------------------------------


def ablate(
    table: Ablation | str | Path,
    data: str | Path,
    out: str | Path,
    *,
    repeats: int = 1,
    resume: bool = False,
    force: bool = False,
    rehearse: bool = False,
    on_row: Callable[[int, AblationRow], None] | None = None,
    ray: str | None = None,
    ray_cpus: int = 1,
    **options: Any,
) -> dict[str, dict[str, dict[str, float]]]:
    """Trains every row of a table, and writes the results to table.json, table.csv and table.md.

    All networks are created once before training starts, so that a wrong option in the last row is found at once.

    Args:
        table: the table, or its name or path.
        data: folder of the data set; for a rehearsal also "phantoms", which are drawn in the layout of the table's data
            set.
        out: folder of the runs.
        repeats: number of seeds for each row.
        resume: whether to continue an interrupted ablation; finished rows are kept.
        force: whether to start again if there is an ablation already; its files stay until the new one has finished.
        rehearse: whether to train each row for only one epoch of 16 small images from random weights, to check that all
                run.
        on_row: called with the number, from 0, and the row that is trained next, or waited for on a cluster.
        ray: address of a Ray cluster for the seeds of all rows; see `repeat`.
        ray_cpus: as for `repeat`.
        **options: as for `train`: split, skip_bad, progress, callbacks, trainer.

    Returns:
        "mean" and "sd" of each metric for each row by name, as `repeat` returns them.

    Raises:
        ValueError: a row does not fit the data, or has an option that its network does not have.
        DataError: the table does not apply to the data set, or as for `train`.

    Example:
        >>> from mtlkit.training import ablate
        >>> ablate("demo", "busi", "runs", repeats=0)
        Traceback (most recent call last):
        ValueError: repeats: expected at least 1, got 0
    """
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    if str(data) == PHANTOMS and not rehearse:
        raise ValueError(f"data: expected a folder, got {PHANTOMS!r}, which only a rehearsal draws")
    if rehearse and resume:
        raise ValueError("rehearse: expected False with resume, because a rehearsal starts again, got True")
    if not resume and not rehearse:
        check_sources(data, options.get("split"))
    split = options.pop("split", None)
    source = None if isinstance(table, Ablation) else table
    table = table if isinstance(table, Ablation) else load_ablation(table)
    if rehearse:
        table = replace(table, rows=tuple(replace(row, config=_rehearsal(row.config)) for row in table.rows))
        options["trainer"] = {**options.get("trainer", {}), "limit_train_batches": REHEARSED // REHEARSAL_BATCH}
    modules = {row.name: _module(row) for row in table.rows}
    _check_figures(table, list(modules.values()))
    costs = {row.name: _costs(row, modules[row.name]) for row in table.rows}
    trained: dict[str, Trained] = {}
    progress = options.get("progress", True)
    with (
        _data_of(table, data) as folder_of_data,
        open_train_runner(ray, ray_cpus, options) as where,
        resumable_folder(out, "an ablation", resume=resume, force=force, main=is_main()) as place,
        ExitStack() as rows,
    ):
        place.check_inputs(folder_of_data, split, source)
        series = []
        for row in table.rows:
            settings: dict[str, Any] = {**options, "resume": resume, "prefix": f"row {row.name!r}"}
            runs, folder = seeds(row.config, repeats, split), place.nested(row.folder)
            series.append(rows.enter_context(open_series(where, runs, folder_of_data, folder, **settings)))
        with where.results([job for one in series for job in one.jobs], progress=progress) as results:
            for number, (row, one) in enumerate(zip(table.rows, series, strict=True)):
                if on_row is not None:
                    on_row(number, row)
                found = list(islice(results, repeats))
                trained[row.name] = Trained(one.end(found), found)
                if is_main():
                    write_table(place, table, trained, costs, repeats)
    return {name: row.summary for name, row in trained.items()}


def _module(row: AblationRow) -> TrainingModule:
    """The module of a row on the meta device; raises if it cannot be made or the recipe does not fit."""
    changes = {"pretrained": False} if row.config.model.options.get("pretrained") else {}
    try:
        module = TrainingModule(create_network(row.config, "meta", **changes), row.config)
        check_recipe(module, row.config)
    except ValueError as error:
        raise RecipeError(f"row {row.name!r}: {error}") from None
    return module


def count_table(table: Ablation) -> dict[str, Costs]:
    """The costs of the network of each row, for one image of its recipe's size.

    Raises:
        RecipeError: a network cannot be created.

    Example:
        >>> from mtlkit.training import count_table, load_ablation
        >>> costs = count_table(load_ablation("demo"))
        >>> costs["no interaction"].parameters < costs["adaptive gates"].parameters
        True
    """
    return {row.name: _costs(row, _module(row)) for row in table.rows}


def _costs(row: AblationRow, module: TrainingModule) -> Costs:
    return count_costs(module.model, *module.task.shapes(row.config.data.size).values())


def _check_figures(table: Ablation, modules: Sequence[TrainingModule]) -> None:
    """Raises if a metric to show does not exist in any row."""
    known = [*dict.fromkeys(name for module in modules for name in module.figure_names()), *COSTS]
    for name in table.figures:
        if name not in known:
            words = f"there is no metric {name!r}{did_you_mean(name, known)}; there are: {', '.join(sorted(known))}"
            raise RecipeError(f"figures: {words}")


# --- rehearsals -------------------------------------------------------------------------------------------------------

REHEARSAL_BATCH, REHEARSAL_SIZE = 4, 64
REHEARSAL_CASES = {"ham10000": 64}  # enough for seven classes in every part; otherwise 28


def _rehearsal(config: Config) -> Config:
    """The recipe for one epoch of small images from random weights."""
    data = {"size": REHEARSAL_SIZE, "batch_size": REHEARSAL_BATCH, "eval_batch_size": REHEARSAL_BATCH}
    data |= {"workers": 0, "copies": 0, "warmup_epochs": 0}
    changes: dict[str, Any] = {"data": data, "stopping": {"epochs": 1}}
    if config.model.options.get("pretrained"):
        changes["model"] = {"options": {"pretrained": False}}
    if config.second_stage is not None:
        changes["second_stage"] = {"stopping": {"epochs": 1}}
    return config.adjust(changes)


@contextmanager
def _data_of(table: Ablation, data: str | Path) -> Iterator[str | Path]:
    """The folder of the data, which is checked; phantoms are drawn, and removed afterwards."""
    if str(data) != PHANTOMS:
        table.check_data(data)
        yield data
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / PHANTOMS
        layout = table.data[0] if table.data else "busi"
        synthesize_layout(layout, path, REHEARSAL_CASES.get(layout, 28), REHEARSAL_SIZE)
        yield path
