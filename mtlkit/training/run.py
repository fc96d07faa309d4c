"""A training run: from a configuration and a data set to a folder with the best network and its figures.

    config.yaml split.json           what was asked for
    data.json                        of which data set, and the names of its classes
    stage1/ [stage2/]                best.ckpt, last.ckpt, metrics.csv (a row for each epoch), done.json
    model/                           the best network, for `mtlkit.models.from_pretrained`
    result.json                      figures of the validation and test parts; written last

A run that was killed goes on from the last whole epoch, and ends with the weights it would have had. Several processes
save what the first of them has; BatchNorm's statistics are the first's from each validation on.
"""

import json
import logging
import math
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import nn

from mtlkit.data import Catalogue, DataError, Split, load_split, make_split, open_dataset
from mtlkit.data.files import csv_text, write_json, written_whole
from mtlkit.training.config import Config, load_config
from mtlkit.training.datamodule import DataModule
from mtlkit.training.modules import TrainingModule, create_module
from mtlkit.training.saved import DATA, MARK, RESULT, SPLIT, write_data
from mtlkit.training.summary import summarise

__all__ = ["repeat", "train"]


def train(
    config: Config | str,
    data: str | Path,
    out: str | Path,
    *,
    split: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    skip_bad: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    trainer: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Trains a network.

    Args:
        config: a recipe, or the name of one.
        data: folder of the data set.
        out: folder of the run.
        split: a saved split; by default one is drawn as the recipe says.
        resume: goes on with a run that was interrupted; one that has ended is left as it is.
        force: begins anew where there is a run already.
        skip_bad: leaves out what cannot be used in the data set, instead of raising.
        progress: shows a bar.
        callbacks: Lightning's, besides those that stop, save and log.
        trainer: further arguments of Lightning's Trainer, as {"devices": 2, "strategy": "ddp"}.

    Returns:
        The figures of `result.json`, by names as "val/iou" and "test/accuracy".

    Raises:
        DataError: the data set or the run's folder is not as it must be.
        ValueError: the recipe does not fit the data, or not the processes.

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
    config = load_config(config) if isinstance(config, str) else config
    if (trainer or {}).get("sync_batchnorm"):
        words = "expected none, as it loses activations of timm's encoders; the recipe's sync_batch_norm keeps them"
        raise ValueError(f"trainer['sync_batchnorm']: {words}")
    out = Path(out)
    if is_main():
        _prepare(out, config, resume=resume, force=force)
    if (out / RESULT).is_file():
        found = json.loads((out / RESULT).read_text())
        return {name: math.nan if value is None else value for name, value in found.items()}
    catalogue = _open(config, data, skip_bad)
    parts = _split(catalogue, config, split, out / SPLIT)
    if is_main() and not (out / SPLIT).is_file():
        parts.save(out / SPLIT)
    if is_main() and not (out / DATA).is_file():
        write_data(out, catalogue, parts)
    module, stages = None, 1 if config.second_stage is None else 2
    for number in range(1, stages + 1):
        module, figures = _run_stage(
            config.stage(number),
            catalogue,
            parts,
            out,
            number,
            callbacks,
            {"enable_progress_bar": progress} | dict(trainer or {}),
        )
    if is_main():
        if hasattr(module.model, "save_pretrained"):
            module.model.save_pretrained(out / "model")
        write_json(out / RESULT, figures, force=True)
    return figures


def repeat(
    config: Config | str, data: str | Path, out: str | Path, times: int, *, resume: bool = False, **options: Any
) -> dict[str, dict[str, float]]:
    """Trains with `times` seeds, each in a folder of its own, the split staying the same.

    Args:
        config: a recipe, or the name of one; its seed and those after it are used.
        data: folder of the data set.
        out: folder of the runs; `summary.json` in it holds what is returned.
        times: how often.
        resume: goes on with the runs that were interrupted, and leaves those that ended.
        **options: as for `train`.

    Returns:
        "mean" and "sd" (over the runs, with one degree of freedom less; NaN for a single run) of each figure.

    Raises:
        ValueError: `times` is below 1.
        DataError: as for `train`.

    Example:
        >>> from mtlkit.training import repeat
        >>> repeat("demo", "busi", "runs", 0)
        Traceback (most recent call last):
        ValueError: times: expected at least 1, got 0
    """
    if times < 1:
        raise ValueError(f"times: expected at least 1, got {times}")
    config = load_config(config) if isinstance(config, str) else config
    runs = []
    for seed in range(config.seed, config.seed + times):
        runs.append(train(config.change({"seed": seed}), data, Path(out) / f"seed-{seed}", resume=resume, **options))
    summary = summarise(runs)
    if is_main():
        write_json(Path(out) / "summary.json", summary, force=True)
    return summary


# --- the folder -------------------------------------------------------------------------------------------------------


def is_main() -> bool:
    """Whether this is the first of the processes of a run; the others write nothing."""
    return getattr(rank_zero_only, "rank", 0) in (0, None)


def _prepare(out: Path, config: Config, *, resume: bool, force: bool) -> None:
    """Makes the run's folder, or raises where it may not be used."""
    saved = out / "config.yaml"
    if prepare_folder(out, MARK, "a run", resume=resume, force=force) and saved.exists():
        if load_config(saved).to_dict() != config.to_dict():
            raise DataError(f"{saved}: is another recipe than the one to go on with")
        return
    try:
        config.save(saved)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror})") from None


def prepare_folder(out: Path, mark: str, what: str, *, resume: bool, force: bool) -> bool:
    """Makes a folder with the file `mark` in it; whether it is one to go on in.

    Raises:
        DataError: it may not be used, or cannot be made.
    """
    if out.is_file():
        raise DataError(f"{out}: expected a folder, found a file")
    occupied = out.is_dir() and next(out.iterdir(), None) is not None
    if occupied and not (out / mark).is_file():
        raise DataError(f"{out}: holds other things than {what}; a new folder is needed")
    if occupied and resume:
        return True
    if occupied and not force:
        raise DataError(f"{out}: there is {what} already; --resume goes on with it, --force begins anew")
    try:
        if occupied:
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        (out / mark).touch()
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror})") from None
    return False


def _open(config: Config, data: str | Path, skip_bad: bool) -> Catalogue:
    d = config.data
    options = {"birads": d.birads} if config.task == "mammography" else {"classes": d.classes}
    options = {name: tuple(value) for name, value in options.items() if value is not None}
    return open_dataset(data, d.layout, skip_bad=skip_bad, **options)


def _split(catalogue: Catalogue, config: Config, path: str | Path | None, saved: Path) -> Split:
    if path is None and saved.is_file():
        path = saved
    if path is not None:
        return load_split(path, catalogue)
    d = config.data
    return make_split(catalogue, d.fractions, d.split_seed, published=d.published_split)


# --- a stage ----------------------------------------------------------------------------------------------------------


class _KnownFigure(Callback):
    """Says which figures there are when the one to judge by is none of them."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
            raise ValueError(f"stopping.monitor: there is no figure {self.monitor!r}; there are: {known}")


class _Table(Callback):
    """Writes the figures of each epoch as a row; what was written before a kill stays."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, []

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: TrainingModule) -> None:
        row = {"epoch": trainer.current_epoch, "lr": module.schedule.lr(trainer.current_epoch)}
        figures = {name: value.item() for name, value in sorted(trainer.callback_metrics.items())}
        self.rows.append(row | figures)
        if trainer.is_global_zero:
            with written_whole(self.path, force=True) as draft:
                draft.write_text(csv_text(self.rows), encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]


def _run_stage(
    config: Config,
    catalogue: Catalogue,
    split: Split,
    out: Path,
    number: int,
    more_callbacks: Sequence[Callback],
    arguments: Mapping[str, Any],
) -> tuple[TrainingModule, dict[str, float]]:
    """Trains one stage, or takes the one that is done, and judges its best epoch."""
    folder = out / f"stage{number}"
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    module = create_module(config, catalogue, split, gates_only=number == 2)
    if number == 2:
        _load(module, out / "stage1" / "best.ckpt")
    data = DataModule(catalogue, split, config)
    s = config.stopping
    saved = {"dirpath": folder, "save_on_train_epoch_end": True, "enable_version_counter": False}
    best = ModelCheckpoint(filename="best", monitor=s.monitor, mode=s.mode, **saved)
    last = ModelCheckpoint(filename="last", monitor=None, **saved)  # after the best, whose state it carries
    callbacks: list[Callback] = [*more_callbacks, _KnownFigure(s.monitor), _Table(folder / "metrics.csv"), best, last]
    if s.patience is not None:
        stop = EarlyStopping(s.monitor, s.min_delta, s.patience, mode=s.mode, check_on_train_epoch_end=True)
        callbacks.append(stop)
    options = {
        "max_epochs": s.epochs,
        "precision": config.precision,
        "gradient_clip_val": config.optimizer.clip,
        "callbacks": callbacks,
        "logger": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "reload_dataloaders_every_n_epochs": 1 if config.data.warmup_epochs else 0,
        "deterministic": "warn",
    }
    with warnings.catch_warnings(), _quiet():
        # few workers and small last batches are chosen, and a class may lack in a small validation part
        warnings.filterwarnings("ignore", module="lightning")
        trainer = lightning.Trainer(**options | arguments)
        if config.sync_batch_norm and trainer.world_size > 1:
            _check_sync_batch_norm(trainer)
            module.model = synchronise(module.model)
        if not (folder / "done.json").is_file():
            module.train()
            path = folder / "last.ckpt"
            trainer.fit(module, data, ckpt_path=path if path.is_file() else None, weights_only=False)
            if trainer.interrupted:
                raise KeyboardInterrupt
            if is_main():
                write_json(folder / "done.json", {"epochs": trainer.current_epoch}, force=True)
        _load(module, folder / "best.ckpt")
        return module, _judge(trainer, module, data)


def _check_sync_batch_norm(trainer: lightning.Trainer) -> None:
    """Raises where torch's SyncBatchNorm does not run."""
    if trainer.strategy.root_device.type == "cpu":
        words = "expected false on a CPU, where torch has no SyncBatchNorm"
        raise ValueError(f"sync_batch_norm: {words}, got true for {trainer.world_size} processes")


def synchronise(model: nn.Module) -> nn.Module:
    """The network with SyncBatchNorm for every BatchNorm, Parameters and statistics staying the same.

    torch's own conversion, which is Lightning's, loses the activations that timm's BatchNormAct2d has within.
    """
    from timm.layers import convert_sync_batchnorm  # not before it is needed: it takes a second to load

    return convert_sync_batchnorm(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's remarks on the machine, and its advertisements."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _load(module: TrainingModule, path: Path) -> None:
    """Takes the network's weights of a checkpoint."""
    state = torch.load(path, map_location="cpu", weights_only=False)["state_dict"]
    module.model.load_state_dict(
        {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    )


def _judge(trainer: lightning.Trainer, module: TrainingModule, data: DataModule) -> dict[str, float]:
    """The figures of the validation part and, where there is one, of the test part.

    Each process judges all images: divided among them, some would count twice, to fill the last share.
    """
    data.divided = False
    module.judge_alone()
    (found,) = trainer.validate(module, data, verbose=False)
    if data.split.test:
        found = found | trainer.test(module, data, verbose=False)[0]
    return {name: float(value) for name, value in found.items()}
