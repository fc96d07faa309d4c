"""Recipes: all settings of a training run in one file: model, data, loss, optimiser, schedule, stopping, stages.

The sections are pydantic dataclasses: their types and bounds are used to check a recipe, and `recipe_schema` provides
them to editors.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr, TypeAdapter
from pydantic import ValidationError as PydanticError
from pydantic.dataclasses import dataclass as section
from pydantic_core import ErrorDetails, core_schema

from mtlkit._files import why_unreadable
from mtlkit._text import did_you_mean, parse_yaml, printable, shown
from mtlkit.data.layouts import LAYOUTS
from mtlkit.data.pixels import MAX_PIXELS
from mtlkit.data.splits import check_fractions
from mtlkit.data.transforms import AUGMENTATIONS
from mtlkit.losses import TVERSKY_PRESETS
from mtlkit.models.registry import option_names
from mtlkit.training.tasks import TASKS

__all__ = ["Config", "RecipeError", "list_configs", "load_config", "recipe_schema"]


class RecipeError(ValueError):
    """A setting of a recipe is wrong, or does not fit the network or the data; the message names it.

    Example:
        >>> from mtlkit.training import RecipeError, load_config
        >>> try:
        ...     load_config("demo").change({"seed": -1})
        ... except RecipeError as error:
        ...     print(error)
        seed: expected at least 0, got -1
    """


# --- kinds of values --------------------------------------------------------------------------------------------------


def _parsed(value: Any) -> Any:
    """Converts text to a number, because YAML reads 1e-4 as text; other text is rejected later."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


@dataclass(frozen=True)
class _OneOf:
    """Text that is one of the given choices."""

    choices: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.literal_schema(list(self.choices))


def _pair_below_1(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) != 2 or not all(0 <= value < 1 for value in values):
        raise ValueError(f"expected two numbers from 0 to below 1, got {values}")
    return values


def _fractions(values: tuple[float, ...]) -> tuple[float, ...]:
    try:
        return check_fractions(values)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("fractions: ")) from None


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values or len(set(values)) < len(values):
        raise ValueError(f"expected at least one, each once, got {values}")
    return values


Number = Annotated[float, Field(strict=True), BeforeValidator(_parsed)]
Weight = Annotated[float, Field(strict=True, ge=0), BeforeValidator(_parsed)]
Share = Annotated[float, Field(strict=True, ge=0, le=1), BeforeValidator(_parsed)]
Above0 = Annotated[float, Field(strict=True, gt=0), BeforeValidator(_parsed)]
Decay = Annotated[float, Field(strict=True, gt=0, lt=1), BeforeValidator(_parsed)]
Count = Annotated[StrictInt, Field(ge=0)]
AtLeast1 = Annotated[StrictInt, Field(ge=1)]
Seed = Annotated[StrictInt, Field(ge=0, le=2**32 - 1)]  # the range that NumPy and Lightning accept
Category = Annotated[StrictInt, Field(ge=1, le=5)]
Better = Literal["max", "min"]
Precision = Literal["32-true", "64-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true"]

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

# --- sections ---------------------------------------------------------------------------------------------------------


@section(frozen=True, config=STRICT)
class ModelConfig:
    """A network of `mtlkit.models` by its name, and the options that differ from its defaults.

    `batch_norm_momentum` replaces the momentum of the network's BatchNorm layers (0.01 in MBDI and BTI-Net), whose
    running statistics adapt too slowly if an epoch has few batches.
    """

    name: StrictStr = "mbdi"
    options: dict[StrictStr, Any] = Field(default_factory=dict)
    batch_norm_momentum: Share | None = None


@section(frozen=True, config=STRICT)
class DataConfig:
    """How the data are read, split, augmented and batched; see `mtlkit.data`.

    With `drop_duplicates`, a new split keeps only one of several images that look alike but belong to different groups
    (`mtlkit.data.near_duplicates`).

    `positive` names the class among `classes` for which precision, recall and F1 of the positive class are computed.
    """

    layout: Annotated[str, _OneOf(("auto", *LAYOUTS))] = "auto"
    classes: Annotated[tuple[StrictStr, ...], AfterValidator(_distinct)] | None = None
    positive: StrictStr | None = None
    birads: Annotated[tuple[Category, ...], AfterValidator(_distinct)] | None = None
    fractions: Annotated[tuple[Number, ...], AfterValidator(_fractions)] = (0.7, 0.15, 0.15)
    split_seed: Seed = 42
    published_split: StrictBool = True
    drop_duplicates: StrictBool = False
    size: AtLeast1 = 224
    augment: Annotated[str, _OneOf(tuple(AUGMENTATIONS))] = "mbdi"
    copies: Count = 0
    normalize: StrictBool = True
    max_pixels: AtLeast1 = MAX_PIXELS
    batch_size: AtLeast1 = 24
    eval_batch_size: AtLeast1 | None = None
    workers: Count = 0
    cache: StrictBool = False
    warmup_epochs: Count = 0
    warmup_batches: AtLeast1 = 100

    def __post_init__(self) -> None:
        if self.positive is not None and self.positive not in (self.classes or ()):
            classes = "none" if self.classes is None else ", ".join(self.classes)
            raise ValueError(f"positive: expected one of the classes ({classes}), got {shown(self.positive)}")

    @property
    def positive_index(self) -> int | None:
        """The label of the positive class, if there is one."""
        return None if self.positive is None or self.classes is None else self.classes.index(self.positive)


@section(frozen=True, config=STRICT)
class LossConfig:
    """The losses and their weights; the task decides which of them apply.

    With `sync`, batch statistics in a loss are computed over the batches of all processes, so that the gradients equal
    those of one process with the combined batch; see `mtlkit.losses`. It has no effect with one process.

    With `class_weights`, each class of a classifier is weighted by its inverse frequency in the training part.
    """

    tversky: Annotated[str, _OneOf(tuple(TVERSKY_PRESETS))] = "mbdi"
    boundary: Weight = 0.25
    texture: Weight = 0.15
    size_boost: StrictBool = True
    soft_boundary: StrictBool = True
    focal_gamma: Weight = 2.0
    first: Weight = 0.8
    second: Weight = 0.2
    ramp_start: Share | None = None
    ramp_step: Weight = 0.007
    ramp_top: Share = 0.92
    ramp_epochs: Count = 15
    class_weights: StrictBool = False
    gates: Weight = 0.0
    sync: StrictBool = False


@section(frozen=True, config=STRICT)
class OptimizerConfig:
    """Adam or AdamW, the maximal gradient norm, and the number of batches to accumulate per step."""

    name: Literal["adam", "adamw"] = "adam"
    lr: Above0 = 3e-4
    betas: Annotated[tuple[Number, ...], AfterValidator(_pair_below_1)] = (0.9, 0.999)
    eps: Weight = 1e-8
    weight_decay: Weight = 0.0
    clip: Above0 | None = 1.0
    accumulate: AtLeast1 = 1


@section(frozen=True, config=STRICT)
class ScheduleConfig:
    """The learning rate by epoch; see `mtlkit.training.Schedule`."""

    cosine_floor: Share | None = None
    monitor: StrictStr | None = None
    mode: Better = "max"
    factor: Share = 0.5
    patience: Count = 10
    cooldown: Count = 0
    min_delta: Weight = 0.0
    min_lr: Weight = 0.0


@section(frozen=True, config=STRICT)
class StoppingConfig:
    """How long to train, which metric to monitor, and how long to wait for an improvement."""

    epochs: AtLeast1 = 100
    monitor: StrictStr = "val/combined"
    mode: Better = "max"
    patience: Count | None = None
    min_delta: Weight = 0.0


@section(frozen=True, config=STRICT)
class Config:
    """A training run.

    Args:
        task: "lesion" (mask and class), "views" (class, from image and mask) or "mammography" (four views).
        model: which network.
        data: how the data are read.
        loss: what is minimised.
        optimizer: by what.
        schedule: the learning rate.
        stopping: when to stop, and which epoch is the best.
        second_stage: changes for a second stage, which trains only the gates, starting from the best epoch; None for no
            such stage.
        seed: seed of weights, order and augmentations.
        precision: Lightning's name of the precision: "32-true", "64-true", "16-mixed", "bf16-mixed", "16-true" or
            "bf16-true".
        ema: decay of an exponential moving average of the weights, such as 0.999; the average is validated, saved and
            evaluated. None for no average.
        channels_last: whether a network on a CPU runs channels-last and with mtlkit's depthwise convolutions, which is
            faster; metrics differ in rounding. It has no effect on a GPU.
        sync_batch_norm: whether BatchNorm computes its statistics over all processes of a run instead of each process's
            batch. It has no effect with one process; several processes need GPUs for it.

    Raises:
        ValueError: a value is out of range.

    Example:
        >>> from mtlkit.training import load_config
        >>> config = load_config("btinet")
        >>> config.optimizer.betas, config.stage(2).stopping.epochs
        ((0.91, 0.999), 15)
    """

    task: Annotated[str, _OneOf(tuple(TASKS))] = "lesion"
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    stopping: StoppingConfig = Field(default_factory=StoppingConfig)
    second_stage: dict[StrictStr, Any] | None = None
    seed: Seed = 42
    precision: Precision = "32-true"
    ema: Decay | None = None
    channels_last: StrictBool = True
    sync_batch_norm: StrictBool = False

    def __post_init__(self) -> None:
        if self.second_stage is not None:
            self.stage(2)  # raises an error if it changes unknown settings

    def stage(self, number: int) -> "Config":
        """The configuration of a stage: itself for the first, with the changes of `second_stage` for the second."""
        first = replace(self, second_stage=None)
        if number == 1:
            return first
        if self.second_stage is None:
            raise RecipeError("second_stage: this configuration has none")
        return _changed(first, self.second_stage, "second_stage.")

    def change(self, changes: Mapping[str, Any]) -> "Config":
        """A copy with other values, given by section: {"data": {"batch_size": 8}, "seed": 1}.

        Raises:
            RecipeError: there are unknown settings, or values out of range; the message names all of them.
        """
        return _changed(self, changes, "")

    def adjust(self, changes: Mapping[str, Any]) -> "Config":
        """Like `change`, but extends the existing options of the network and changes of the second stage.

        If another network is named, only the existing options that it also has are kept.
        """
        if not isinstance(changes, Mapping):
            return self.change(changes)
        changes, stage = dict(changes), changes.get("second_stage")
        if isinstance(stage, Mapping) and self.second_stage is not None:
            changes["second_stage"] = _added(self.second_stage, stage)
        model = changes.get("model")
        if not isinstance(model, Mapping) or not isinstance(model.get("options", {}), Mapping):
            return self.change(changes)
        options, name = self.model.options, model.get("name", self.model.name)
        if isinstance(name, str) and name != self.model.name:
            try:
                known = option_names(name)
            except ValueError as error:
                raise RecipeError(f"model.{error}") from None
            options = {option: value for option, value in options.items() if option in known}
        return self.change({**changes, "model": {**model, "options": {**options, **model.get("options", {})}}})

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists, as in a file."""
        return _plain(asdict(self))

    def save(self, path: str | Path) -> None:
        """Writes the recipe as YAML for `load_config`."""
        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


# --- changes ----------------------------------------------------------------------------------------------------------


def _changed(config: Config, changes: Any, where: str) -> Config:
    """The configuration with the values of a mapping; raises one error that lists all wrong values."""
    if not isinstance(changes, Mapping):
        raise RecipeError(f"{where.rstrip('.') or 'configuration'}: expected names and values, got {shown(changes)}")
    try:
        return TypeAdapter(Config).validate_python(_merged(config, changes))
    except PydanticError as error:
        found = error
    raise RecipeError(all_of([f"{where}{line}" for line in lines_of(found)]))


def all_of(lines: list[str]) -> str:
    """The error message: one line, or several below a title."""
    return lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} settings are wrong:", *lines])


def lines_of(error: PydanticError, name: str = "") -> list[str]:
    """The errors that pydantic found in the section `name`, one line each."""
    return [_in_words(one, name) for one in error.errors()]


def _added(current: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with changes, applied recursively."""
    added = dict(current)
    for name, value in changes.items():
        inner = added.get(name)
        added[name] = _added(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return added


def _merged(current: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a section with changes, applied recursively."""
    values = {f.name: getattr(current, f.name) for f in fields(current)}
    for name, value in changes.items():
        inner = values.get(name)
        values[name] = _merged(inner, value) if is_dataclass(inner) and isinstance(value, Mapping) else value
    return values


EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "names and values",
    "dataclass_type": "names and values",
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "a number above {gt:g}",
    "less_than_equal": "at most {le:.10g}",
}


def _in_words(error: ErrorDetails, name: str) -> str:
    """As "name: expected ..., got ..."."""
    place, value, context, kind = error["loc"], error["input"], error.get("ctx", {}), error["type"]
    if kind in ("unexpected_keyword_argument", "invalid_key"):
        known = [f.name for f in fields(_section_at(place[:-1]))]
        more = did_you_mean(str(place[-1]), known)
        return f"{'.'.join(map(str, place))}: there is no such setting{more}; there are: {', '.join(known)}"
    if place[-1:] == ("[key]",):
        return f"{'.'.join(map(str, place[:-2]))}: expected text for a name, got {shown(value)}"
    name = (name + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)).lstrip(".")
    if kind == "value_error":
        of_section = len(place) == 1 and is_dataclass(_section_at(place))  # the error names its setting itself
        return f"{name}{'.' if of_section else ': '}{context['error']}".removeprefix(": ")
    if kind == "literal_error":
        choices = context["expected"].replace(" or ", ", ")
        return f"{name}: expected {f'one of {choices}' if isinstance(value, str) else 'text'}, got {shown(value)}"
    words = EXPECTED[kind].format(**context) if kind in EXPECTED else f"another value ({error['msg']})"
    return f"{name}: expected {words}, got {shown(value)}"


def _section_at(place: tuple[int | str, ...]) -> type:
    """The class of the section at a place; () is the complete recipe."""
    sections: dict[Any, Any] = {f.name: f.type for f in fields(Config)}
    return sections[place[0]] if place else Config


# --- files ------------------------------------------------------------------------------------------------------------


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of recipes, for completion and checks in an editor; `mtlkit train --schema` prints it.

    Example:
        >>> from mtlkit.training import recipe_schema
        >>> recipe_schema()["$defs"]["DataConfig"]["properties"]["batch_size"]["minimum"]
        1
    """
    schema = TypeAdapter(Config).json_schema()
    extends = {"type": "string", "title": "Extends", "description": "the configuration that this one changes"}
    return schema | {"properties": {"extends": extends} | schema["properties"]}


@contextmanager
def named_recipe(name: str | Path | None) -> Iterator[None]:
    """Adds the name of the recipe to errors inside the block, unless it is None."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(str(error) if name is None else f"{name}: {error}") from None


def list_configs() -> list[str]:
    """The names of the configurations that come with mtlkit.

    Example:
        >>> from mtlkit.training import list_configs
        >>> "mbdi" in list_configs()
        True
    """
    return sorted(
        path.name.removesuffix(".yaml") for path in files("mtlkit.configs").iterdir() if path.name.endswith(".yaml")
    )


def load_config(name: str | Path) -> Config:
    """Loads a configuration by name, one of `list_configs()`, or from a file.

    A file with `extends: mbdi` starts from the settings of that configuration.

    Args:
        name: the name, or a path that ends with .yaml or .yml.

    Raises:
        ValueError: there is no such configuration or file, or a RecipeError if a setting in it is wrong.

    Example:
        >>> from mtlkit.training import load_config
        >>> load_config("csa_moe").optimizer.lr
        5e-05
    """
    return _load(name, ())


def _load(name: str | Path, within: tuple[Path, ...]) -> Config:
    """Loads a configuration and what it extends; `within` holds the configurations being loaded, to detect cycles."""
    values, path = read_yaml(name, "mtlkit.configs", "configuration")
    with named_recipe(path):
        if not isinstance(values, Mapping) or "extends" not in values:
            return Config().change(values)
        if path in within:
            raise RecipeError(f"extends: expected another configuration, got {name}, which extends itself")
        base = values["extends"]
        if not isinstance(base, str):
            raise RecipeError(f"extends: expected the name of a configuration or a path, got {shown(base)}")
        try:
            config = _load(beside(path, base), (*within, path))
        except ValueError as error:
            raise RecipeError(f"extends: {error}") from None
        return config.adjust({setting: value for setting, value in values.items() if setting != "extends"})


def beside(path: Path, name: str) -> str | Path:
    """Resolves a name in a file: a configuration, a file in the same folder, or a path."""
    found = path.parent / name
    return found if found.suffix in (".yaml", ".yml") and os.access(found, os.F_OK) else name


def read_yaml(name: str | Path, package: str, what: str) -> tuple[Any, Path]:
    """The values and the path of a YAML file, given by a path or by its name in a package.

    Raises:
        ValueError: there is no such file, or it is not valid YAML.
    """
    folder = Path(str(files(package)))
    if str(name).endswith((".yaml", ".yml")):
        path = Path(name)
    else:
        path = folder / f"{name}.yaml"
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        if name not in known:
            raise ValueError(f"there is no {what} {shown(str(name))}; there are: {', '.join(known)}")
    if os.access(path, os.F_OK) and (why := why_unreadable(path)) is not None:  # a pipe could block
        raise ValueError(f"{printable(path)}: {why}")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not valid YAML ({' '.join(str(error).split())})") from None
    return {} if values is None else values, path
