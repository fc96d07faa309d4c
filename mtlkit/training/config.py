"""What a training run is made of, as one file: model, data, loss, optimiser, schedule, stopping, stages."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from mtlkit.data.splits import check_fractions
from mtlkit.data.transforms import AUGMENTATIONS
from mtlkit.losses import TVERSKY_PRESETS
from mtlkit.models.registry import option_names

__all__ = ["Config", "list_configs", "load_config"]

TASKS = ("lesion", "views", "mammography")
PRECISIONS = ("32-true", "64-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true")


@dataclass(frozen=True)
class ModelConfig:
    """A network of `mtlkit.models` by its name, and the options that differ from its defaults.

    `batch_norm_momentum` replaces that of the network's own BatchNorm layers (0.01 in MBDI and BTI-Net), whose running
    statistics follow too slowly where an epoch has few batches.
    """

    name: str = "mbdi"
    options: Mapping[str, Any] = field(default_factory=dict)
    batch_norm_momentum: float | None = None


@dataclass(frozen=True)
class DataConfig:
    """How the data are read, split, augmented and batched; see `mtlkit.data`."""

    layout: str = "auto"
    classes: Sequence[str] | None = None
    birads: Sequence[int] | None = None
    fractions: Sequence[float] = (0.7, 0.15, 0.15)
    split_seed: int = 42
    published_split: bool = True
    size: int = 224
    augment: str = "mbdi"
    copies: int = 0
    normalize: bool = True
    batch_size: int = 24
    eval_batch_size: int | None = None
    workers: int = 0
    cache: bool = False
    warmup_epochs: int = 0
    warmup_batches: int = 100


@dataclass(frozen=True)
class LossConfig:
    """Losses of the tasks, and how they are weighed; which of them count depends on the task.

    With `sync`, what a loss takes over a batch is taken over the batches of all processes, so that several learn as one
    with a batch as large as theirs together; see `mtlkit.losses`. Of no effect with one process.
    """

    tversky: str = "mbdi"
    boundary: float = 0.25
    texture: float = 0.15
    size_boost: bool = True
    soft_boundary: bool = True
    focal_gamma: float = 2.0
    first: float = 0.8
    second: float = 0.2
    ramp_start: float | None = None
    ramp_step: float = 0.007
    ramp_top: float = 0.92
    ramp_epochs: int = 15
    class_weights: bool = False
    gates: float = 0.0
    sync: bool = False


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam or AdamW, and the largest norm of the gradient."""

    name: str = "adam"
    lr: float = 3e-4
    betas: Sequence[float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = 1.0


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate by epoch; see `mtlkit.training.Schedule`."""

    cosine_floor: float | None = None
    monitor: str | None = None
    mode: str = "max"
    factor: float = 0.5
    patience: int = 10
    cooldown: int = 0
    min_delta: float = 0.0
    min_lr: float = 0.0


@dataclass(frozen=True)
class StoppingConfig:
    """How long to train, what to judge by, and how long to wait for it to get better."""

    epochs: int = 100
    monitor: str = "val/combined"
    mode: str = "max"
    patience: int | None = None
    min_delta: float = 0.0


# the lowest value, and the settings that it is of; None is as good
LEAST = {
    0: (
        *(f"data.{name}" for name in ("split_seed", "copies", "workers", "warmup_epochs")),
        *(f"loss.{name}" for name in ("boundary", "texture", "focal_gamma", "first", "second", "gates")),
        *(f"optimizer.{name}" for name in ("eps", "weight_decay")),
        *(f"schedule.{name}" for name in ("factor", "patience", "cooldown", "min_lr")),
        "stopping.patience",
        "seed",
    ),
    1: (*(f"data.{name}" for name in ("size", "batch_size", "eval_batch_size", "warmup_batches")), "stopping.epochs"),
}


@dataclass(frozen=True)
class Config:
    """A training run.

    Args:
        task: "lesion" (mask and class), "views" (class, from image and mask) or "mammography" (four views).
        model: which network.
        data: how the data are read.
        loss: what is minimised.
        optimizer: by what.
        schedule: the learning rate.
        stopping: when to end, and which epoch is the best.
        second_stage: sections to change in a second stage, which trains the gates alone from the best epoch on; None
            has no such stage.
        seed: of weights, order and augmentations.
        precision: as Lightning names it: "32-true", "64-true", "16-mixed", "bf16-mixed", "16-true" or "bf16-true".
        sync_batch_norm: BatchNorm takes the statistics of all processes of a run, in place of each its own batch's. Of
            no effect with one process; several need GPUs for it.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> from mtlkit.training import load_config
        >>> config = load_config("btinet")
        >>> config.optimizer.betas, config.stage(2).stopping.epochs
        ((0.91, 0.999), 15)
    """

    task: str = "lesion"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    stopping: StoppingConfig = field(default_factory=StoppingConfig)
    second_stage: Mapping[str, Any] | None = None
    seed: int = 42
    precision: str = "32-true"
    sync_batch_norm: bool = False

    def __post_init__(self) -> None:
        _choice("task", self.task, TASKS)
        _choice("data.augment", self.data.augment, tuple(AUGMENTATIONS))
        _choice("loss.tversky", self.loss.tversky, tuple(TVERSKY_PRESETS))
        _choice("optimizer.name", self.optimizer.name, ("adam", "adamw"))
        _choice("precision", self.precision, PRECISIONS)
        for section in ("schedule", "stopping"):
            _choice(f"{section}.mode", getattr(self, section).mode, ("max", "min"))
        for low, names in LEAST.items():
            for name in names:
                value = self._setting(name)
                if value is not None and not value >= low:
                    raise ValueError(f"{name}: expected at least {low}, got {value}")
        for name in ("optimizer.lr", "optimizer.clip"):
            value = self._setting(name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}: expected a number above 0, got {value}")
        try:
            check_fractions(self.data.fractions)
        except ValueError as error:
            raise ValueError(f"data.{error}") from None
        betas = self.optimizer.betas
        if len(betas) != 2 or not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in betas):
            raise ValueError(f"optimizer.betas: expected two numbers from 0 to below 1, got {tuple(betas)}")
        if self.second_stage is not None:
            self.stage(2)  # raises where it changes what is not there

    def _setting(self, name: str) -> Any:
        section, _, key = name.rpartition(".")
        return getattr(getattr(self, section) if section else self, key)

    def stage(self, number: int) -> "Config":
        """The configuration of a stage: itself for the first, with the changes of `second_stage` for the second."""
        if number == 1:
            return replace(self, second_stage=None)
        if self.second_stage is None:
            raise ValueError("second_stage: this configuration has none")
        return _merge(replace(self, second_stage=None), self.second_stage, "second_stage.")

    def change(self, changes: Mapping[str, Any]) -> "Config":
        """A copy with other values, given by section: {"data": {"batch_size": 8}, "seed": 1}."""
        return _merge(self, changes, "")

    def adjust(self, changes: Mapping[str, Any]) -> "Config":
        """As `change`, but options of the network are added to those that there are, in place of replacing them all.

        Where another network is named, of the options that there are those stay that it has too.
        """
        model = changes.get("model") if isinstance(changes, Mapping) else None
        if not isinstance(model, Mapping) or not isinstance(model.get("options", {}), Mapping):
            return self.change(changes)
        options, name = self.model.options, model.get("name", self.model.name)
        if name != self.model.name:
            options = {option: value for option, value in options.items() if option in option_names(name)}
        return self.change({**changes, "model": {**model, "options": {**options, **model.get("options", {})}}})

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists, as in a file."""
        return _plain(asdict(self))

    def save(self, path: str | Path) -> None:
        """Writes it as YAML, which `load_config` reads."""
        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")


def _choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _merge(section: Any, changes: Any, where: str) -> Any:
    """A dataclass with the values of a mapping; raises where there is no such field, or another kind of value."""
    if not isinstance(changes, Mapping):
        raise ValueError(f"{where.rstrip('.') or 'configuration'}: expected names and values, got {changes!r}")
    hints = get_type_hints(type(section))
    known = [f.name for f in fields(section)]
    values = {}
    for name, value in changes.items():
        if name not in known:
            close = get_close_matches(str(name), known, 1)
            guess = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"{where}{name}: there is no such setting{guess}; there are: {', '.join(known)}")
        current = getattr(section, name)
        values[name] = (
            _merge(current, value, f"{where}{name}.")
            if is_dataclass(current)
            else _typed(where + name, value, hints[name])
        )
    return replace(section, **values)


def _typed(name: str, value: Any, hint: Any) -> Any:
    """The value as what the field takes: lists become tuples, integers become floats."""
    words = str(hint)
    if value is None and "None" in words:
        return None
    if "Mapping" in words:
        if isinstance(value, Mapping):
            return dict(value)
        kind = "names and values"
    elif "Sequence" in words:
        if isinstance(value, list | tuple):
            return tuple(value)
        kind = "a list"
    elif "bool" in words:
        if isinstance(value, bool):
            return value
        kind = "true or false"
    elif "float" in words:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            with suppress(ValueError):  # YAML takes 1e-4 for text
                return float(value)
        kind = "a number"
    elif "int" in words:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        kind = "an integer"
    else:
        if isinstance(value, str):
            return value
        kind = "text"
    raise ValueError(f"{name}: expected {kind}, got {value!r}")


def list_configs() -> list[str]:
    """The names of the configurations that come with mtlkit.

    Example:
        >>> from mtlkit.training import list_configs
        >>> "mbdi" in list_configs()
        True
    """
    return sorted(
        path.name.removesuffix(".yaml") for path in files("mtlkit.configs").iterdir() if path.suffix == ".yaml"
    )


def load_config(name: str | Path) -> Config:
    """A configuration by name, one of `list_configs()`, or from a file.

    Args:
        name: the name, or a path that ends with .yaml or .yml.

    Raises:
        ValueError: there is no such configuration or file, or something in it is not as it must be.

    Example:
        >>> from mtlkit.training import load_config
        >>> load_config("csa_moe").optimizer.lr
        5e-05
    """
    values, path = read_yaml(name, "mtlkit.configs", "configuration")
    try:
        return Config().change(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_yaml(name: str | Path, package: str, what: str) -> tuple[Any, Path]:
    """The values of a file, and its path: one that ends with .yaml or .yml, or the name of one within a package.

    Raises:
        ValueError: there is no such file, or it is no YAML.
    """
    folder = Path(str(files(package)))
    if str(name).endswith((".yaml", ".yml")):
        path = Path(name)
    else:
        path = folder / f"{name}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
            raise ValueError(f"there is no {what} {str(name)!r}; there are: {known}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no YAML ({' '.join(str(error).split())})") from None
    return {} if values is None else values, path
