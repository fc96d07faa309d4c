"""Lightning's loggers by name, as far as a run needs them.

Their files are in the folder `logs` of the run. They belong to the logger, not to the run: what replaces a run leaves
them there.
"""

import os
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from mtlkit._extras import check_installed

__all__ = ["LOGGERS", "make_logger"]

# the modules that each needs
LOGGERS: dict[str, tuple[str, ...]] = {
    "csv": (),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "wandb": ("wandb",),
}
LOGS = "logs"


class _StageOfWandb(WandbLogger):
    """Finishes its run with its stage: Lightning's would give the next stage the same run, and write it at exit."""

    def finalize(self, status: str) -> None:
        import wandb  # pyright: ignore[reportMissingImports] - of the extra `loggers`

        super().finalize(status)
        if wandb.run is not None:
            wandb.run.finish(exit_code=int(status != "success"))


def make_logger(name: str, run: Path, stage: str) -> Logger:
    """A logger for one stage of a run.

    TensorBoard's and the CSV files are in logs/<name>/<stage>/version_0, what a resumed run adds in version_1. MLflow
    writes to the server that MLFLOW_TRACKING_URI names, or else to the database logs/mlflow.db; Weights & Biases to its
    own server, or, where WANDB_MODE=offline, to logs/wandb.

    Args:
        name: one of `LOGGERS`.
        run: its folder.
        stage: its name, as "stage1".

    Raises:
        ValueError: there is no such logger.
        ImportError: its package is not installed.
    """
    check_logger(name)
    folder = run / LOGS
    folder.mkdir(parents=True, exist_ok=True)
    if name == "csv":
        return CSVLogger(folder / name, name=stage)
    if name == "tensorboard":
        return TensorBoardLogger(folder / name, name=stage)
    if name == "wandb":
        return _StageOfWandb(name=f"{run.name} {stage}", save_dir=folder, project="mtlkit")
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
    return MLFlowLogger("mtlkit", f"{run.name} {stage}", tracking_uri=uri)


def check_logger(name: str) -> None:
    """Raises a ValueError where there is no such logger, and an ImportError where its package is not installed."""
    if name not in LOGGERS:
        raise ValueError(f"logger: expected one of {', '.join(LOGGERS)}, got {name!r}")
    if LOGGERS[name]:
        check_installed(f"the logger {name}", "loggers", LOGGERS[name])
