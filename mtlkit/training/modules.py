"""Training as a LightningModule: optimiser, learning rate, random numbers, and the metrics of each epoch."""

import warnings
from typing import Any, get_type_hints

import lightning
import numpy as np
import torch
from pydantic import ConfigDict, TypeAdapter
from pydantic import ValidationError as PydanticError
from torch import Tensor, nn

from mtlkit import losses
from mtlkit._distributed import Group, all_processes
from mtlkit._memory import out_of_memory
from mtlkit._text import did_you_mean
from mtlkit.data import Catalogue, Split
from mtlkit.models import Pretrained, create_model
from mtlkit.models.registry import default_options
from mtlkit.training.config import Config, RecipeError, all_of, lines_of
from mtlkit.training.schedule import Schedule, task_weights
from mtlkit.training.tasks import Task, TaskLosses, find_task, record_in

__all__ = ["TrainingModule", "create_module"]

PARTS = {
    "train": "fit",
    "val": "valid",
    "test": "test",
}  # parts of the data, under names that do not collide with nn.Module


class TrainingModule(lightning.LightningModule):
    """A network that is trained for the task of its recipe.

    The random numbers of a batch (dropout, stochastic depth) depend only on the seed, the epoch, its position in the
    epoch and the process, so that a run resumed after a kill gives exactly the weights of an uninterrupted one.

    Args:
        model: the network.
        config: the recipe.
        weights: class weights of each classifier, by its name; empty for equal weights.
        gates_only: whether to train only the gates, as in the second stage of BTI-Net.

    Example:
        >>> from mtlkit.training import TrainingModule, create_module, load_config
        >>> module = create_module(load_config("demo"))
        >>> isinstance(module, TrainingModule), module.task.name
        (True, 'lesion')
    """

    def __init__(
        self, model: Pretrained, config: Config, weights: dict[str, Tensor] | None = None, *, gates_only: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.gates_only = gates_only
        self.task: Task = find_task(config.task)
        self.losses: TaskLosses = self.task.losses(config.loss, self.task.heads_of(model), weights or {})
        self.schedule: Schedule = Schedule(config.optimizer.lr, config.stopping.epochs, config.schedule)
        self.metrics: nn.ModuleDict = nn.ModuleDict({part: self._new_metrics() for part in PARTS.values()})
        self._alone = False
        self.answers: dict[str, list[tuple[Tensor, Tensor]]] | None = None  # logits and labels, if they are kept
        if gates_only:
            model.requires_grad_(False)
            for parameter in model.stage2_parameters():
                parameter.requires_grad_(True)

    # --- the task -----------------------------------------------------------------------------------------------------

    def compute_losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Any]:
        """The losses by name (training minimises "loss"), and the model's output."""
        output = self.task.run(self.model, batch)
        weights = task_weights(self.config.loss, self.current_epoch)
        return self.losses(output, batch, *weights, self._group()), output

    def figure_names(self) -> list[str]:
        """The results for a part of the data after an epoch: losses, gates and metrics, without the part's name."""
        gates = [f"gate_{name}" for name in self.model.gate_names if "gates" in self.model.returns]
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # torchmetrics' warning about empty metrics, of which only the names are used
            figures = self._figures(self._new_metrics())
        return [*self.losses.names, *gates, *figures]

    def _new_metrics(self) -> nn.ModuleDict:
        return self.task.metrics(self.model, self.config.data.positive_index)

    def _group(self) -> Group | None:
        """The process group over which losses are computed; None for this process only."""
        return all_processes() if self.config.loss.sync and not self._alone else None

    def judge_alone(self) -> None:
        """From now on, metrics are not gathered across processes: this process sees all images."""
        self._alone = True
        for part in PARTS:
            for metric in self._metrics(part).values():
                metric.distributed_available_fn = lambda: False

    def _metrics(self, part: str) -> Any:
        """The metrics of a part."""
        return self.metrics[PARTS[part]]

    def _update(self, metrics: Any, output: Any, batch: dict[str, Any]) -> None:
        self.task.update(metrics, self.model, output, batch)

    def _figures(self, metrics: Any) -> dict[str, Tensor]:
        return self.task.figures(metrics)

    # --- optimisation -------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam or AdamW for the trained parameters, on a CPU in one pass over each."""
        o = self.config.optimizer
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        kind = torch.optim.AdamW if o.name == "adamw" else torch.optim.Adam
        first, second = o.betas
        precision = self.config.precision if self._trainer is None else self._trainer.precision
        on_cpu = all(parameter.device.type == "cpu" for parameter in trained)
        fused = on_cpu and not precision.endswith("mixed")  # with which Lightning cannot clip for a fused optimizer
        return kind(
            trained, lr=o.lr, betas=(first, second), eps=o.eps, weight_decay=o.weight_decay, fused=fused or None
        )

    def train(self, mode: bool = True) -> "TrainingModule":
        """nn.Module.train, except that in the second stage only dropout is in training mode."""
        super().train(mode)
        if mode and self.gates_only:
            self.model.eval()
            for module in self.model.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.train()
        return self

    def on_train_epoch_start(self) -> None:
        """Sets the learning rate of the epoch."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)  # configure_optimizers returns one
        for group in optimizer.param_groups:
            group["lr"] = self.schedule.lr(self.current_epoch)

    def on_train_batch_start(self, batch: dict[str, Any], index: int) -> None:
        """Sets the random numbers of the batch."""
        numbers = (self.config.seed, self.current_epoch, index, self.global_rank, self.gates_only)
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))

    def on_train_epoch_end(self) -> None:
        """Updates the schedule with the epoch's metric, before checkpoints are written."""
        if self.config.schedule.monitor is not None:
            self.schedule.observe(float(self.trainer.callback_metrics[self.config.schedule.monitor]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the state of the schedule."""
        checkpoint["schedule"] = self.schedule.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the state of the schedule."""
        self.schedule.load_state_dict(checkpoint["schedule"])

    # --- steps --------------------------------------------------------------------------------------------------------

    def _size(self, batch: dict[str, Any]) -> int:
        return len(batch["key"])

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        """The loss of a batch."""
        values, output = self.compute_losses(batch)
        if not values["loss"].isfinite():
            keys = ", ".join(batch["key"][:3])
            raise FloatingPointError(
                f"the loss is {values['loss'].item()} in epoch {self.current_epoch}, images {keys}"
            )
        with torch.no_grad():
            self._take(values, output, batch, "train")
        return values["loss"]

    def _judge(self, batch: dict[str, Any], part: str) -> None:
        values, output = self.compute_losses(batch)
        self._take(values, output, batch, part)
        if self.answers is not None:
            for head in self.losses.heads:
                pair = getattr(output, head.logits).float().cpu(), batch[head.item].cpu()
                self.answers.setdefault(head.name, []).append(pair)

    def _take(self, values: dict[str, Tensor], output: Any, batch: dict[str, Any], part: str) -> None:
        """Adds a batch to the means and metrics of an epoch."""
        means = {f"{part}/{name}": value.detach() for name, value in values.items()}
        if "gates" in self.model.returns:
            gates = output.gates.float().flatten(1).mean(0)
            means |= {f"{part}/gate_{name}": mean for name, mean in zip(self.model.gate_names, gates, strict=True)}
        self.log_dict(means, on_step=False, on_epoch=True, batch_size=self._size(batch), sync_dist=True)
        self._update(self._metrics(part), output, batch)

    def _tell(self, part: str) -> None:
        metrics = self._metrics(part)
        self.log_dict({f"{part}/{name}": value.float() for name, value in self._figures(metrics).items()})
        for metric in metrics.values():
            metric.reset()

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        """Losses and counts of a batch."""
        self._judge(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """The metrics of the validation part, and of the training part as collected during training."""
        self._tell("val")
        if self.trainer.state.fn == "fit":
            self._tell("train")

    def test_step(self, batch: dict[str, Any], index: int) -> None:
        """Losses and counts of a batch."""
        self._judge(batch, "test")

    def on_test_epoch_end(self) -> None:
        """The metrics of the test part."""
        self._tell("test")


# --- from a recipe ----------------------------------------------------------------------------------------------------


def create_module(
    config: Config, catalogue: Catalogue | None = None, split: Split | None = None, *, gates_only: bool = False
) -> TrainingModule:
    """The training module of a recipe, with a new network.

    Args:
        config: the recipe.
        catalogue: the data, to check the network's classes; needed for class weights.
        split: the split whose training part gives the class weights.
        gates_only: whether the module is for the second stage.

    Raises:
        ValueError: the network does not fit the task or the classes, or a class to weight has no example.

    Example:
        >>> from mtlkit.training import create_module, load_config
        >>> create_module(load_config("demo")).model.options.encoder
        'resnet18.tv_in1k'
    """
    model = create_network(config)
    if catalogue is not None:
        _check_classes(model, config, catalogue)
    weights = _class_weights(model, config, catalogue, split) if config.loss.class_weights else None
    return TrainingModule(model, config, weights, gates_only=gates_only)


def create_network(config: Config, device: torch.device | str | None = None, **changes: Any) -> Pretrained:
    """A new network by a recipe, optionally with changed options.

    Raises:
        RecipeError: there is no such network, one of its options is wrong, or it does not support the task.
    """
    options: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in config.model.options.items()}
    try:
        _check_options(config.model.name, options)
        model = create_model(config.model.name, device=device, **options | changes)
    except (TypeError, ValueError) as error:
        raise RecipeError(str(error)) from None
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        words = f"{config.model.name} cannot be created with these options ({' '.join(str(error).split())})"
        raise RecipeError(f"model.options: {words}") from None
    if (momentum := config.model.batch_norm_momentum) is not None:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = momentum
    if not isinstance(model, Pretrained) or not find_task(config.task).serves(model):
        raise RecipeError(f"model.name: {config.model.name} does not support the task {config.task!r}")
    return model


def _check_options(name: str, options: dict[str, Any]) -> None:
    """Raises unless the network's options have the right types."""
    hints = get_type_hints(type(default_options(name)))
    words = []
    for option, value in options.items():
        if option in hints:
            try:
                adapter = TypeAdapter(hints[option], config=ConfigDict(arbitrary_types_allowed=True))
                adapter.validate_python(value, strict=True)
            except PydanticError as error:
                words += lines_of(error, f"model.options.{option}")
    if words:
        raise RecipeError(all_of(words))


def _class_weights(
    model: Pretrained, config: Config, catalogue: Catalogue | None, split: Split | None
) -> dict[str, Tensor]:
    """The class weights of each of the network's classifiers, from the training part."""
    if catalogue is None or split is None:
        raise ValueError("catalogue, split: expected both, to compute class weights, got None")
    records, weights = catalogue.subset(split.train).records, {}
    for head in find_task(config.task).heads_of(model):
        try:
            weights[head.name] = losses.class_weights(head.labels(records), getattr(model.options, head.option))
        except ValueError as error:
            words = f"expected an example of each class in the training part, to weight the {head.titles}"
            raise RecipeError(f"loss.class_weights: {words}; {error}") from None
    return weights


def _check_classes(model: Pretrained, config: Config, catalogue: Catalogue) -> None:
    """Raises unless the data fit the task, and the network has a logit for each of their classes."""
    task = find_task(config.task)
    task.check_kind(catalogue.root, record_in(catalogue))
    for head in task.heads_of(model):
        have, need = getattr(model.options, head.option), len(getattr(catalogue, head.classes))
        if have != need:
            raise RecipeError(
                f"model.options.{head.option}: expected {need}, the number of classes in the data, got {have}"
            )
        if len(catalogue) and not (head.labels(catalogue.records) >= 0).any():
            words = f"expected a network without the classifier {head.name!r}, for which there are no labels"
            raise RecipeError(f"model.options: {words} in {catalogue.root}")


def check_recipe(module: TrainingModule, config: Config) -> None:
    """Raises if a recipe requests something that its network cannot do."""
    model, name = module.model, config.model.name
    stages = {"": config.stage(1)}
    if config.second_stage is not None:
        try:
            model.stage2_parameters()
        except ValueError as error:
            words = f"expected none, as {name} has no gates to train in a second stage ({error})"
            raise RecipeError(f"second_stage: {words}") from None
        stages["second_stage."] = config.stage(2)
    vectors = any(isinstance(layer, nn.BatchNorm1d) for layer in model.modules())
    if vectors and config.data.batch_size == 1 and not config.sync_batch_norm:
        raise RecipeError(f"data.batch_size: expected at least 2, for the BatchNorm of {name}, got 1")
    for where, stage in stages.items():
        _check_stage(where, TrainingModule(model, stage))


def _check_stage(where: str, module: TrainingModule) -> None:
    """Raises if a stage has a loss for gates that do not exist, or monitors a metric that does not exist."""
    config, name = module.config, module.config.model.name
    if config.loss.gates > 0:
        words = None
        if "gates" not in module.losses.kinds:
            words = f"the task {config.task!r} has no loss of gates"
        elif "gates" not in module.model.returns:
            words = f"{name} has no gates with these options (MBDI and BTI-Net have gates with upa)"
        if words is not None:
            raise RecipeError(f"{where}loss.gates: expected 0, as {words}, got {config.loss.gates:g}")
    known = [f"val/{figure}" for figure in module.figure_names()]
    for section, monitor in (("stopping", config.stopping.monitor), ("schedule", config.schedule.monitor)):
        if monitor is not None and monitor not in known:
            words = f"there is no metric {monitor!r}; there are: {', '.join(sorted(known))}"
            raise RecipeError(f"{where}{section}.monitor: {words}{did_you_mean(monitor, known)}")
