"""Lightning's loggers by name.

Their files are in the folder `logs` of the run. They belong to the logger, not to the run: replacing a run keeps them.
"""

import os
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from mtlkit._extras import check_installed

__all__ = ["LOGGERS", "make_logger"]

# modules that each logger needs
LOGGERS: dict[str, tuple[str, ...]] = {
    "csv": (),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "wandb": ("wandb",),
}
LOGS = "logs"


class _StageOfWandb(WandbLogger):
    """Finishes its W&B run with the stage: Lightning's would reuse it for the next stage and write at exit."""

    def finalize(self, status: str) -> None:
        import wandb  # pyright: ignore[reportMissingImports] - of the extra `loggers`

        super().finalize(status)
        if wandb.run is not None:
            wandb.run.finish(exit_code=int(status != "success"))


def make_logger(name: str, run: Path, stage: str) -> Logger:
    """A logger for one stage of a run.

    TensorBoard and CSV files are in logs/<name>/<stage>/version_0; a resumed run adds version_1. MLflow writes to the
    server in MLFLOW_TRACKING_URI, or to the database logs/mlflow.db if it is not set. Weights & Biases writes to its
    own server, or to logs/wandb with WANDB_MODE=offline.

    Args:
        name: one of `LOGGERS`.
        run: folder of the run.
        stage: name of the stage, such as "stage1".

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
    """Raises a ValueError if there is no such logger, and an ImportError if its package is not installed."""
    if name not in LOGGERS:
        raise ValueError(f"logger: expected one of {', '.join(LOGGERS)}, got {name!r}")
    if LOGGERS[name]:
        check_installed(f"the logger {name}", "loggers", LOGGERS[name])
