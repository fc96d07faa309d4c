"""A training run: from a configuration and a data set to a folder with the best network and its metrics.

    config.yaml split.json           the recipe and the split
    data.json                        the data set and the names of its classes
    stage1/ [stage2/]                best.ckpt, last.ckpt, metrics.csv (a row for each epoch), done.json
    calibration.json                 temperature and thresholds of each classifier, from the validation part
    model/                           the best network, for `mtlkit.models.from_pretrained`, with its model card
    result.json                      metrics of the validation and test parts; written last
    logs/                            output of Lightning's logger, if there is one; it is never replaced

A killed run continues from the last complete epoch and gives exactly the weights of an uninterrupted run. With several
processes, the first one saves; at each validation, all take its BatchNorm statistics.
"""

import logging
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from mtlkit._accelerate import accelerate, restore
from mtlkit._extras import check_installed
from mtlkit._files import csv_text, write_json
from mtlkit._memory import out_of_memory
from mtlkit._output import OutputFolder, final_place, resumable_folder
from mtlkit.data import Catalogue, Split, load_split, make_split, near_duplicates, open_dataset
from mtlkit.data.duplicates import surplus
from mtlkit.data.files import check_folder
from mtlkit.data.layouts import find_layout
from mtlkit.data.splits import read_split
from mtlkit.errors import CheckpointError, DataError
from mtlkit.metrics import positive_class
from mtlkit.training.calibration import FILE as CALIBRATION
from mtlkit.training.calibration import Calibration, as_values, fit_calibration
from mtlkit.training.checkpoints import RunCheckpoints, read_checkpoint, unwritten
from mtlkit.training.config import Config, load_config, named_recipe
from mtlkit.training.datamodule import DataModule
from mtlkit.training.loggers import check_logger, make_logger
from mtlkit.training.modules import TrainingModule, check_recipe, create_module
from mtlkit.training.origin import origin_of
from mtlkit.training.saved_run import DATA, MARK, RESULT, SPLIT, data_values, read_figures
from mtlkit.training.tasks import CLASS, find_task, record_of

__all__ = ["train"]

_Network = TypeVar("_Network", bound=nn.Module)


def train(
    config: Config | str,
    data: str | Path,
    out: str | Path,
    *,
    split: Split | str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    skip_bad: bool = False,
    progress: bool = True,
    logger: str | None = None,
    callbacks: Sequence[Callback] = (),
    trainer: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Trains a network.

    Args:
        config: a recipe or its name.
        data: folder of the data set.
        out: folder of the run.
        split: a split, or the path of a saved one; by default one is drawn by the recipe.
        resume: whether to continue an interrupted run; a finished one is not changed.
        force: whether to start again if there is a run already; its files stay until the new run has finished.
        skip_bad: whether to leave out unusable records of the data set instead of raising an error.
        progress: whether to show a progress bar.
        logger: additional logger, "csv", "tensorboard", "mlflow" or "wandb"; it writes to the folder logs of the run.
        callbacks: further Lightning callbacks, besides those that stop, save and log.
        trainer: further arguments of Lightning's Trainer, such as {"devices": 2, "strategy": "ddp"}.

    Returns:
        The metrics of `result.json`, by names such as "val/iou" and "test/accuracy".

    Raises:
        DataError: the data set or the run's folder is invalid.
        ValueError: the recipe does not fit the data or the number of processes, there is no such logger, or both
            `resume` and `force` are given.
        ImportError: the logger is not installed.

    Example:
        >>> import tempfile
        >>> from mtlkit.data import synthesize_ultrasound
        >>> from mtlkit.training import load_config, train
        >>> small = {"data": {"size": 32, "batch_size": 4}, "stopping": {"epochs": 1}, "second_stage": None}
        >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +ELLIPSIS
        ...     synthesize_ultrasound(f"{folder}/busi", cases=24, size=64)
        ...     figures = train(load_config("demo").change(small), f"{folder}/busi", f"{folder}/run", progress=False)
        >>> 0 <= figures["test/accuracy"] <= 1
        True
    """
    recipe = config if isinstance(config, str) else None
    config = load_config(config) if isinstance(config, str) else config
    if (trainer or {}).get("sync_batchnorm"):
        words = "expected none, as it loses activations of timm's encoders; use the recipe's sync_batch_norm instead"
        raise ValueError(f"trainer['sync_batchnorm']: {words}")
    check_installed("training")
    if logger is not None:
        check_logger(logger)
    if not resume:
        check_sources(data, split)
    with resumable_folder(out, "a run", resume=resume, force=force, main=is_main()) as place:
        place.check_inputs(data, None if isinstance(split, Split) else split, recipe)
        if resume:
            _check_same_recipe(place.path / "config.yaml", config)
        if resume and (place.path / RESULT).is_file():
            return read_figures(place.path / RESULT)
        catalogue = open_for(config, data, skip_bad)
        parts = _split(catalogue, config, split, place.path / SPLIT if resume else None)
        with named_recipe(recipe):
            module = _create(config.stage(1), catalogue, parts)
            check_recipe(module, config)
        if is_main():
            place.check_room(_size_on_disk(module))
            _write_plan(place, config, catalogue, parts)
        arguments = {"enable_progress_bar": progress} | dict(trainer or {})
        log = None if logger is None else partial(make_logger, logger, final_place(out))
        judged = _run_stage(config.stage(1), module, catalogue, parts, place, "stage1", callbacks, arguments, log)
        if config.second_stage is not None:
            stage = config.stage(2)
            module = _create(stage, catalogue, parts, gates_only=True)
            _load(module, place.path / "stage1" / "best.ckpt")
            judged = _run_stage(stage, module, catalogue, parts, place, "stage2", callbacks, arguments, log)
        figures, calibration = judged
        if is_main():
            place.write_json(CALIBRATION, as_values(calibration))
            model = module.model
            heads = find_task(config.task).heads_of(model)
            names = {head.name: head.names(getattr(catalogue, head.classes)) for head in heads}
            root, layout = catalogue.root, catalogue.layout
            model.origin = origin_of(model, config, root, layout, names, parts, figures, calibration)
            with place.files("model") as draft:
                _save_network(module, draft)
            place.write_json(RESULT, figures)
    return figures


# --- the folder -------------------------------------------------------------------------------------------------------


def is_main() -> bool:
    """Whether this is the first process of a run; the others do not write."""
    return getattr(rank_zero_only, "rank", 0) in (0, None)


def check_sources(data: str | Path, split: Split | str | Path | None) -> None:
    """Raises if an input is missing; this is reported before any problem with the output folder."""
    check_folder(data)
    if isinstance(split, str | Path):
        read_split(split)


def _size_on_disk(module: TrainingModule) -> int:
    """Bytes that a run writes: the network, and three checkpoints (one temporary), with two moments per weight."""
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in module.model.parameters()]
    whole, trained = (sum(size for size, learns in sizes if learns or every) for every in (True, False))
    return 3 * (whole + 2 * trained) + whole


def _save_network(module: TrainingModule, folder: Path) -> None:
    from safetensors import SafetensorError

    try:
        module.model.save_pretrained(folder)
    except SafetensorError:
        raise OSError(unwritten(folder)) from None


def _check_same_recipe(saved: Path, config: Config) -> None:
    if saved.exists() and load_config(saved).to_dict() != config.to_dict():
        raise DataError(f"{saved}: differs from the recipe of the run to be continued")


def _write_plan(place: OutputFolder, config: Config, catalogue: Catalogue, parts: Split) -> None:
    """Writes recipe, split and data set of a run, unless they are written already."""
    writers = {
        MARK: Path.touch,
        "config.yaml": config.save,
        SPLIT: parts.save,
        DATA: lambda draft: write_json(draft, data_values(catalogue, parts)),
    }
    for name, write in writers.items():
        if not (place.path / name).is_file():
            with place.file(name) as draft:
                write(draft)


def open_for(config: Config, data: str | Path, skip_bad: bool) -> Catalogue:
    """The data set, opened by the settings of a recipe."""
    d = config.data
    task = find_task(config.task)
    layout = find_layout(check_folder(data)) if d.layout == "auto" else d.layout
    task.check_kind(Path(data), record_of(layout))
    options = task.open_options(d)
    return open_dataset(data, layout, skip_bad=skip_bad, max_pixels=d.max_pixels, **options)


def _split(catalogue: Catalogue, config: Config, split: Split | str | Path | None, saved: Path | None) -> Split:
    if not isinstance(split, str | Path) and saved is not None and saved.is_file():
        split = saved
    if isinstance(split, Split):
        return split
    if split is not None:
        return load_split(split, catalogue)
    d = config.data
    return make_split(
        catalogue, d.fractions, d.split_seed, published=d.published_split, unused=left_out(catalogue, config)
    )


def left_out(catalogue: Catalogue, config: Config) -> tuple[str, ...]:
    """The keys that a new split leaves out."""
    d = config.data
    return surplus(catalogue, near_duplicates(catalogue, max_pixels=d.max_pixels)) if d.drop_duplicates else ()


# --- a stage ----------------------------------------------------------------------------------------------------------


class _Table(Callback):
    """Writes the metrics of each epoch as a row; rows from before a kill stay."""

    def __init__(self, place: OutputFolder, name: str) -> None:
        self.place, self.name, self.rows = place, name, []

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: TrainingModule) -> None:
        row = {"epoch": trainer.current_epoch, "lr": module.schedule.lr(trainer.current_epoch)}
        figures = {name: value.item() for name, value in sorted(trainer.callback_metrics.items())}
        self.rows.append(row | figures)
        if trainer.is_global_zero:
            self.place.write_text(self.name, csv_text(self.rows))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]


class _Restored(Callback):
    """Runs when training starts, after the checkpoint is restored, and restores what Lightning does not."""

    def __init__(self) -> None:
        self.yes = False

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.yes = True
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):  # score of the best epoch, for the next checkpoint
                callback.current_score = callback.best_model_score


def _create(config: Config, catalogue: Catalogue, split: Split, *, gates_only: bool = False) -> TrainingModule:
    """The module of a stage, initialised from its seed."""
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    return create_module(config, catalogue, split, gates_only=gates_only)


def _run_stage(
    config: Config,
    module: TrainingModule,
    catalogue: Catalogue,
    split: Split,
    place: OutputFolder,
    name: str,
    more_callbacks: Sequence[Callback],
    arguments: Mapping[str, Any],
    log: Callable[[str], Logger] | None,
) -> tuple[dict[str, float], dict[str, Calibration]]:
    """Trains one stage unless it is finished, loads the weights of its best epoch, and evaluates them."""
    data = DataModule(catalogue, split, config)
    folder = place.path / name
    s = config.stopping
    saved = {"dirpath": folder, "save_on_train_epoch_end": True, "enable_version_counter": False}
    best = ModelCheckpoint(filename="best", monitor=s.monitor, mode=s.mode, **saved)
    last = ModelCheckpoint(filename="last", monitor=None, **saved)  # after the best checkpoint, whose state it contains
    callbacks: list[Callback] = [
        *more_callbacks,
        _Table(place, f"{name}/metrics.csv"),
        best,
        last,
    ]
    if s.patience is not None:
        stop = EarlyStopping(s.monitor, s.min_delta, s.patience, mode=s.mode, check_on_train_epoch_end=True)
        callbacks.append(stop)
    averaged = None if config.ema is None else EMAWeightAveraging(decay=config.ema)
    if averaged is not None:
        callbacks.insert(0, averaged)
    options = {
        "max_epochs": s.epochs,
        "precision": config.precision,
        "gradient_clip_val": config.optimizer.clip,
        "accumulate_grad_batches": config.optimizer.accumulate,
        "callbacks": callbacks,
        "logger": False if log is None or (folder / "done.json").is_file() else log(name),
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "reload_dataloaders_every_n_epochs": 1 if config.data.warmup_epochs else 0,
        "deterministic": "warn",
    }
    with warnings.catch_warnings(), _quiet():
        # few workers and small last batches are intended, and a small validation part may not have every class
        warnings.filterwarnings("ignore", module="lightning")
        try:
            plugins = arguments.get("plugins") or ()
            plugins = [*(plugins if isinstance(plugins, list | tuple) else (plugins,)), RunCheckpoints(place)]
            trainer = lightning.Trainer(**{**options, **arguments, "plugins": plugins})
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise ValueError(f"trainer: {' '.join(str(error).split())}") from None
        if config.channels_last and trainer.strategy.root_device.type == "cpu":
            lay_out(module.model)
        if config.sync_batch_norm and trainer.world_size > 1:
            _check_sync_batch_norm(trainer)
            module.model = synchronise(module.model)
        if not (folder / "done.json").is_file():
            module.train()
            path = folder / "last.ckpt"
            if path.is_file():
                read_checkpoint(path)  # raises a clear error before Lightning raises a traceback
            _fit(trainer, module, data, path if path.is_file() else None)
            if is_main():
                place.write_json(f"{name}/done.json", {"epochs": trainer.current_epoch})
        if averaged is not None:  # otherwise it would replace the best average by the last one
            cast(list[Callback], trainer.callbacks).remove(averaged)  # pyright: ignore[reportAttributeAccessIssue]
        trainer.loggers = []  # they have the epochs; result.json has the final metrics
        lay_back(module.model)  # as it is opened later, so that metrics and predictions agree
        _load(module, folder / "best.ckpt")
        return _judge(trainer, module, data)


def lay_out(model: nn.Module) -> None:
    """Makes a network channels-last and replaces PyTorch's depthwise convolutions by mtlkit's, for the CPU."""
    model.to(memory_format=torch.channels_last)
    accelerate(model, check=False)


def lay_back(model: nn.Module) -> None:
    """Undoes `lay_out`."""
    restore(model)
    for parameter in model.parameters():  # 1 x 1 filters count as contiguous in both formats, but sum in another order
        parameter.data = torch.empty(parameter.shape, dtype=parameter.dtype).copy_(parameter.data)


def _check_sync_batch_norm(trainer: lightning.Trainer) -> None:
    """Raises if torch's SyncBatchNorm cannot run."""
    if trainer.strategy.root_device.type == "cpu":
        words = "expected false on a CPU, for which torch has no SyncBatchNorm"
        raise ValueError(f"sync_batch_norm: {words}, got true for {trainer.world_size} processes")


def synchronise(model: _Network) -> _Network:
    """The network with SyncBatchNorm instead of BatchNorm, with the same Parameters and statistics.

    torch's own conversion, which Lightning uses, loses the activations inside timm's BatchNormAct2d.
    """
    from timm.layers import convert_sync_batchnorm  # imported late: it takes a second

    return cast(_Network, convert_sync_batchnorm(model))  # without its submodules


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Lightning's messages about the machine and its advertisements."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _fit(trainer: lightning.Trainer, module: TrainingModule, data: DataModule, checkpoint: Path | None) -> None:
    """Trains, starting from a checkpoint if there is one.

    Raises:
        KeyboardInterrupt: it was interrupted; Lightning itself would end the process.
        SystemExit: it was terminated; the exit status is that of the signal, while Lightning's would be 0.
    """
    restored = _Restored()
    cast(list[Callback], trainer.callbacks).insert(0, restored)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if checkpoint is None or restored.yes or isinstance(error, DataError) or out_of_memory(error):
            raise
        raise CheckpointError(f"{checkpoint}: the checkpoint does not belong to this run") from None
    except SIGTERMException:
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as error:
        if error.code == 1 and trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    if trainer.interrupted:
        raise KeyboardInterrupt


def _load(module: TrainingModule, path: Path) -> None:
    """Loads the network's weights from a checkpoint."""
    state = read_checkpoint(path)["state_dict"]
    try:
        module.model.load_state_dict(
            {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
        )
    except (RuntimeError, AttributeError, TypeError):
        raise CheckpointError(f"{path}: the checkpoint does not belong to this network") from None


def _judge(
    trainer: lightning.Trainer, module: TrainingModule, data: DataModule
) -> tuple[dict[str, float], dict[str, Calibration]]:
    """The metrics of the validation part and of the test part, if there is one, and the calibration by the former.

    Each process evaluates all images: if they were divided, some would count twice to equalise the shares.
    """
    data.divided = False
    module.judge_alone()
    module.answers = {}
    (found,) = trainer.validate(module, data, verbose=False)
    answers, module.answers = module.answers, None
    if data.split.test:
        found = {**found, **trainer.test(module, data, verbose=False)[0]}
    return {name: float(value) for name, value in found.items()}, _calibrate(module, answers)


def _calibrate(
    module: TrainingModule, answers: Mapping[str, Sequence[tuple[Tensor, Tensor]]]
) -> dict[str, Calibration]:
    """The calibration of each classifier from the logits and labels of the validation part."""
    found = {}
    for head in module.losses.heads:
        logits, labels = (torch.cat(values) for values in zip(*answers[head.name], strict=True))
        logits, labels = logits.flatten(0, -2), labels.flatten()  # both breasts
        named = module.config.data.positive_index if head is CLASS else None
        positive = positive_class(logits.shape[-1], named)
        found[head.name] = fit_calibration(logits.double().numpy(), labels.numpy(), positive)
    return found
