"""Training as in the papers, on Lightning: a recipe and a folder of data give a network and its metrics.

>>> from mtlkit.training import load_config
>>> config = load_config("mbdi").change({"data": {"batch_size": 8}, "seed": 7})
>>> config.loss.boundary
0.25

`train(config, data="phantoms/busi", out="runs/mbdi")` runs it. Needs the extras `train` and `models`.
"""

import warnings
from typing import Any

from mtlkit.training.ablation import Ablation, AblationRow, ablate, count_table, list_ablations, load_ablation
from mtlkit.training.config import Config, RecipeError, list_configs, load_config, recipe_schema
from mtlkit.training.datamodule import DataModule, EpochSampler
from mtlkit.training.duration import count_steps, measure_step
from mtlkit.training.modules import TrainingModule, create_module
from mtlkit.training.run import train
from mtlkit.training.saved_run import SavedRun, load_run
from mtlkit.training.schedule import Schedule, task_weights
from mtlkit.training.series import cross_validate, repeat

__all__ = [
    "Ablation",
    "AblationRow",
    "Config",
    "DataModule",
    "EpochSampler",
    "RecipeError",
    "SavedRun",
    "Schedule",
    "TrainingModule",
    "ablate",
    "count_steps",
    "count_table",
    "create_module",
    "cross_validate",
    "list_ablations",
    "list_configs",
    "load_ablation",
    "load_config",
    "load_run",
    "measure_step",
    "recipe_schema",
    "repeat",
    "task_weights",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in ("LesionModule", "MammographyModule", "ViewsModule"):
        words = f"mtlkit.training.{name} is TrainingModule now, whose recipe names the task; the old name goes next"
        warnings.warn(words, DeprecationWarning, stacklevel=2)
        return TrainingModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
