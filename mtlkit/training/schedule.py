"""The learning rate by epoch: a cosine, a plateau, or both, as the papers' recipes have them.

    lr(e) = max(lr_0 [a + (1 - a) (1 + cos(pi e / E)) / 2] r, lr_min)

a is the floor of the cosine (None: no cosine); r is multiplied by a factor whenever the monitored metric has not
improved for more than `patience` epochs, not counting `cooldown` epochs after each such step.

Source: the published code of MBDI (arXiv 2603.01295): a = 0.03, factor 0.55 at the 7th such epoch,
cooldown 2, lr_min = 1.5e-6. Without cosine it is torch's ReduceLROnPlateau with an absolute threshold.
"""

import math
from typing import Any

from mtlkit.training.config import ScheduleConfig

__all__ = ["Schedule", "task_weights"]


class Schedule:
    """A schedule and its state, which checkpoints include.

    Args:
        lr: initial learning rate.
        epochs: number of epochs, E.
        config: floor, factor, patience and so on.

    Example:
        >>> from mtlkit.training import Schedule
        >>> from mtlkit.training.config import ScheduleConfig
        >>> schedule = Schedule(1e-3, 100, ScheduleConfig(monitor="val/loss", mode="min", patience=0))
        >>> for loss in (1.0, 0.9, 0.9, 0.8):
        ...     schedule.observe(loss)
        >>> schedule.lr(4)
        0.0005
    """

    def __init__(self, lr: float, epochs: int, config: ScheduleConfig) -> None:
        self.first, self.epochs, self.config = lr, epochs, config
        self.ratio, self.best, self.bad, self.rest = 1.0, None, 0, 0

    def lr(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        floor, shape = self.config.cosine_floor, 1.0
        if floor is not None:
            shape = floor + (1 - floor) * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return max(self.first * shape * self.ratio, self.config.min_lr)

    def observe(self, figure: float) -> None:
        """Updates the schedule with an epoch's metric; does nothing without `monitor`."""
        if self.config.monitor is None:
            return
        sign = 1 if self.config.mode == "max" else -1
        if self.best is None or sign * (figure - self.best) > self.config.min_delta:
            self.best, self.bad = figure, 0
        else:
            self.bad += 1
        if self.rest > 0:
            self.rest, self.bad = self.rest - 1, 0
        if self.bad > self.config.patience:
            self.ratio, self.rest, self.bad = self.ratio * self.config.factor, self.config.cooldown, 0

    def state_dict(self) -> dict[str, Any]:
        """The state that changes between epochs."""
        return {name: getattr(self, name) for name in ("ratio", "best", "bad", "rest")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state."""
        for name, value in state.items():
            setattr(self, name, value)


def task_weights(config: Any, epoch: int) -> tuple[float, float]:
    """Weights of the two tasks in an epoch, counted from 0.

    Constant, unless `ramp_start` is given: then for `ramp_epochs` epochs the first task's weight grows from
    `ramp_start` by `ramp_step` per epoch, up to `ramp_top`, and the second's is 1 minus that; afterwards the constants
    apply. MBDI's published code intends this but has no effect, because Keras ignores a change of the weights after
    `compile`.

    Args:
        config: a LossConfig.
        epoch: the epoch.

    Example:
        >>> from mtlkit.training import task_weights
        >>> from mtlkit.training.config import LossConfig
        >>> weights = [task_weights(LossConfig(ramp_start=0.82), epoch)[0] for epoch in (0, 10, 14, 15)]
        >>> [round(weight, 3) for weight in weights]
        [0.827, 0.897, 0.92, 0.8]
    """
    if config.ramp_start is None or epoch >= config.ramp_epochs:
        return config.first, config.second
    first = min(config.ramp_start + config.ramp_step * (epoch + 1), config.ramp_top)
    return first, 1 - first
