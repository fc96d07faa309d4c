"""The three kinds of training as LightningModules: lesion (mask and class), views (class), mammography (four views)."""

from pathlib import Path
from typing import Any, get_type_hints

import lightning
import numpy as np
import torch
from torch import Tensor, nn

from mtlkit import losses
from mtlkit._distributed import Group, all_processes
from mtlkit.data import Catalogue, Split
from mtlkit.metrics import ClassificationMetrics, SegmentationMetrics
from mtlkit.models import create_model
from mtlkit.models.hybrid_vssm import VIEWS
from mtlkit.training.config import Config
from mtlkit.training.schedule import Schedule, task_weights

__all__ = ["LesionModule", "MammographyModule", "TrainingModule", "ViewsModule", "create_module"]


class TrainingModule(lightning.LightningModule):
    """What all kinds share: optimiser, learning rate, random numbers, and the figures of each epoch.

    The random numbers of a batch (dropout, stochastic depth) depend on the seed, the epoch, its place in the epoch and
    the process alone, so that a run that goes on after a kill ends with the same weights.

    Args:
        model: the network.
        config: the recipe.
        gates_only: the second stage of BTI-Net: everything but the gates rests.

    Example:
        >>> from mtlkit.training import TrainingModule, create_module, load_config
        >>> module = create_module(load_config("demo"))
        >>> isinstance(module, TrainingModule)
        True
    """

    def __init__(self, model: nn.Module, config: Config, *, gates_only: bool = False) -> None:
        super().__init__()
        self.model, self.config, self.gates_only = model, config, gates_only
        self.schedule = Schedule(config.optimizer.lr, config.stopping.epochs, config.schedule)
        self.metrics = nn.ModuleDict({part: self._new_metrics() for part in ("valid", "test")})
        self._alone = False
        if gates_only:
            model.requires_grad_(False)
            for parameter in model.stage2_parameters():
                parameter.requires_grad_(True)

    # --- what each kind says ------------------------------------------------------------------------------------------

    def _new_metrics(self) -> nn.ModuleDict:
        raise NotImplementedError

    def compute_losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Any]:
        """The losses by name, "loss" being what is minimised, and the model's output."""
        raise NotImplementedError

    def _group(self) -> Group | None:
        """The processes over whose batches losses are taken; None for this one alone."""
        return all_processes() if self.config.loss.sync and not self._alone else None

    def judge_alone(self) -> None:
        """From here on figures are those of this process's images, which are to be all that there are."""
        self._alone = True
        for metrics in self.metrics.values():
            for metric in metrics.values():
                metric.distributed_available_fn = lambda: False

    def _update(self, metrics: nn.ModuleDict, output: Any, batch: dict[str, Any]) -> None:
        raise NotImplementedError

    def _figures(self, metrics: nn.ModuleDict) -> dict[str, Tensor]:
        raise NotImplementedError

    # --- optimisation -------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam or AdamW over what is trained."""
        o = self.config.optimizer
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        kind = torch.optim.AdamW if o.name == "adamw" else torch.optim.Adam
        return kind(trained, lr=o.lr, betas=tuple(o.betas), eps=o.eps, weight_decay=o.weight_decay)

    def train(self, mode: bool = True) -> "TrainingModule":
        """As nn.Module.train; in the second stage all of the network rests, statistics included, but for dropout."""
        super().train(mode)
        if mode and self.gates_only:
            self.model.eval()
            for module in self.model.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.train()
        return self

    def on_train_epoch_start(self) -> None:
        """Sets the learning rate of the epoch."""
        for group in self.optimizers().param_groups:
            group["lr"] = self.schedule.lr(self.current_epoch)

    def on_train_batch_start(self, batch: dict[str, Any], index: int) -> None:
        """Sets the random numbers of the batch."""
        numbers = (self.config.seed, self.current_epoch, index, self.global_rank, self.gates_only)
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))

    def on_train_epoch_end(self) -> None:
        """Tells the schedule how the epoch went, before checkpoints are written."""
        if self.config.schedule.monitor is not None:
            self.schedule.observe(float(self.trainer.callback_metrics[self.config.schedule.monitor]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the state of the schedule."""
        checkpoint["schedule"] = self.schedule.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the state of the schedule."""
        self.schedule.load_state_dict(checkpoint["schedule"])

    # --- steps --------------------------------------------------------------------------------------------------------

    def _size(self, batch: dict[str, Any]) -> int:
        return len(batch["key"])

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        """The loss of a batch."""
        values, _ = self.compute_losses(batch)
        for name, value in values.items():
            self.log(f"train/{name}", value, on_step=False, on_epoch=True, batch_size=self._size(batch), sync_dist=True)
        if not values["loss"].isfinite():
            keys = ", ".join(batch["key"][:3])
            raise FloatingPointError(
                f"the loss is {values['loss'].item()} in epoch {self.current_epoch}, images {keys}"
            )
        return values["loss"]

    def _judge(self, batch: dict[str, Any], part: str) -> None:
        values, output = self.compute_losses(batch)
        for name, value in values.items():
            self.log(f"{part}/{name}", value, on_epoch=True, batch_size=self._size(batch), sync_dist=True)
        if getattr(output, "gates", None) is not None:
            means = output.gates.float().flatten(1).mean(0)
            names = gate_names(self.model, len(means))
            gates = {f"{part}/gate_{name}": mean for name, mean in zip(names, means, strict=True)}
            self.log_dict(gates, on_epoch=True, batch_size=self._size(batch), sync_dist=True)
        self._update(self.metrics["valid" if part == "val" else part], output, batch)

    def _tell(self, part: str) -> None:
        metrics = self.metrics["valid" if part == "val" else part]
        self.log_dict({f"{part}/{name}": value.float() for name, value in self._figures(metrics).items()})
        for metric in metrics.values():
            metric.reset()

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        """Losses and counts of a batch."""
        self._judge(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """The figures of the validation part."""
        self._tell("val")

    def test_step(self, batch: dict[str, Any], index: int) -> None:
        """Losses and counts of a batch."""
        self._judge(batch, "test")

    def on_test_epoch_end(self) -> None:
        """The figures of the test part."""
        self._tell("test")


class LesionModule(TrainingModule):
    """Mask and class at once: MBDI and BTI-Net, with the gates' losses where the recipe weighs them.

    Figures: "iou", "dice", "sensitivity", "precision", "accuracy", "f1_macro", "f1_weighted", "auc", and "combined",
    0.7 IoU + 0.3 accuracy.

    Example:
        >>> from mtlkit.training import create_module, load_config
        >>> type(create_module(load_config("demo"))).__name__
        'LesionModule'
    """

    def __init__(self, model: nn.Module, config: Config, *, gates_only: bool = False) -> None:
        super().__init__(model, config, gates_only=gates_only)
        c = config.loss
        self.segmentation = losses.SegmentationLoss(
            c.tversky, c.boundary, c.texture, size_boost=c.size_boost, soft_boundary=c.soft_boundary
        )

    def _new_metrics(self) -> nn.ModuleDict:
        classes = self.model.options.num_classes
        return nn.ModuleDict({"mask": SegmentationMetrics(), "class": ClassificationMetrics(classes)})

    def compute_losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Any]:
        """The "loss", of "segmentation", "classification" and, where they count, "gates"."""
        c, output, group = self.config.loss, self.model(batch["image"]), self._group()
        known = None if batch["segmented"].all() else batch["segmented"]
        segmentation = self.segmentation(output.seg_logits, batch["mask"], known=known, group=group)
        labels = batch["label"]
        classification = losses.focal_cross_entropy(output.cls_logits, labels, gamma=c.focal_gamma, group=group)
        first, second = task_weights(c, self.current_epoch)
        values = {"segmentation": segmentation, "classification": classification}
        values["loss"] = first * segmentation + second * classification
        if c.gates > 0:
            hard = losses.segmentation_difficulty(output.seg_logits, batch["mask"], group=group)
            unsure = losses.classification_difficulty(output.cls_logits, group=group)
            gates = losses.gate_loss(output.gates[:, :, 0].T, hard) + losses.gate_loss(output.gates[:, :, 1].T, unsure)
            values |= {"gates": gates, "loss": values["loss"] + c.gates * gates}
        return values, output

    def _update(self, metrics: nn.ModuleDict, output: Any, batch: dict[str, Any]) -> None:
        known = batch["segmented"]
        metrics["mask"].update(output.seg_logits[known].float().sigmoid(), batch["mask"][known])
        metrics["class"].update(output.cls_logits.float().softmax(1), batch["label"])

    def _figures(self, metrics: nn.ModuleDict) -> dict[str, Tensor]:
        mask, labels = metrics["mask"].compute(), metrics["class"].compute()
        mask.pop("images")
        figures = {**mask, **labels}
        figures["combined"] = 0.7 * mask["iou"].nan_to_num(0) + 0.3 * labels["accuracy"].nan_to_num(0)
        return figures


class ViewsModule(TrainingModule):
    """The class from an image and the mask of its lesion: CSA-MoE-Net.

    Figures: "accuracy", "f1_macro", "f1_weighted", "auc".

    Example:
        >>> from mtlkit.training import create_module, load_config
        >>> config = load_config("csa_moe").change({"model": {"options": {"pretrained": False}}})
        >>> type(create_module(config)).__name__
        'ViewsModule'
    """

    def _new_metrics(self) -> nn.ModuleDict:
        return nn.ModuleDict({"class": ClassificationMetrics(self.model.options.num_classes)})

    def compute_losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Any]:
        """The "loss": cross-entropy."""
        output = self.model(batch["image"], batch["mask"])
        loss = losses.weighted_cross_entropy(output.cls_logits, batch["label"], group=self._group())
        return {"loss": loss}, output

    def _update(self, metrics: nn.ModuleDict, output: Any, batch: dict[str, Any]) -> None:
        metrics["class"].update(output.cls_logits.float().softmax(1), batch["label"])

    def _figures(self, metrics: nn.ModuleDict) -> dict[str, Tensor]:
        return metrics["class"].compute()


class MammographyModule(TrainingModule):
    """Label and BI-RADS category of both breasts from four views: the hybrid CNN-VSSM and its relatives.

    Each task's loss is the mean of the two breasts'. Figures: those of ClassificationMetrics for each task, as
    "label_auc", over all breasts, and "combined", the sum of the tasks' AUC.

    Args:
        model: the network.
        config: the recipe.
        weights: of the classes of each task, by its name; none weighs all alike.

    Example:
        >>> from mtlkit.training import create_module, load_config
        >>> config = load_config("hybrid_vssm").change({"model": {"options": {}}, "loss": {"class_weights": False}})
        >>> type(create_module(config)).__name__
        'MammographyModule'
    """

    def __init__(self, model: nn.Module, config: Config, weights: dict[str, Tensor] | None = None) -> None:
        super().__init__(model, config)
        for task in model.options.tasks:
            self.register_buffer(f"{task}_weights", (weights or {}).get(task))

    def _new_metrics(self) -> nn.ModuleDict:
        o = self.model.options
        classes = {"label": o.label_classes, "birads": o.birads_classes}
        return nn.ModuleDict({task: ClassificationMetrics(classes[task]) for task in o.tasks})

    def _logits(self, output: Any) -> dict[str, Tensor]:
        return {task: getattr(output, f"{task}_logits") for task in self.model.options.tasks}  # (B, 2, K) each

    def compute_losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Any]:
        """The "loss", and one for each task, the mean over left and right."""
        output = self.model(batch["views"], batch["present"])
        values, group = {}, self._group()
        for task, logits in self._logits(output).items():
            weight = getattr(self, f"{task}_weights")
            pairs = [(logits[:, i], batch[task][:, i]) for i in range(2)]
            sides = [losses.weighted_cross_entropy(*pair, weight, group=group) for pair in pairs]
            values[task] = (sides[0] + sides[1]) / 2
        if len(values) == 1:
            values["loss"] = next(iter(values.values()))
        else:
            first, second = task_weights(self.config.loss, self.current_epoch)
            values["loss"] = first * values["label"] + second * values["birads"]
        return values, output

    def _update(self, metrics: nn.ModuleDict, output: Any, batch: dict[str, Any]) -> None:
        for task, logits in self._logits(output).items():
            metrics[task].update(logits.float().softmax(2).flatten(0, 1), batch[task].flatten())

    def _figures(self, metrics: nn.ModuleDict) -> dict[str, Tensor]:
        found = {task: metric.compute() for task, metric in metrics.items()}
        figures = {f"{task}_{name}": value for task, values in found.items() for name, value in values.items()}
        figures["combined"] = torch.stack([values["auc"].nan_to_num(0).cpu() for values in found.values()]).sum()
        return figures


KINDS = {"lesion": LesionModule, "views": ViewsModule, "mammography": MammographyModule}


def create_module(
    config: Config, catalogue: Catalogue | None = None, split: Split | None = None, *, gates_only: bool = False
) -> TrainingModule:
    """The module of a recipe, with a new network.

    Args:
        config: the recipe.
        catalogue: the data, held against the network's classes; needed for class weights.
        split: whose training part the class weights are counted in.
        gates_only: for the second stage.

    Raises:
        ValueError: the network does not fit the task or the classes, or a class to be weighed has no example.

    Example:
        >>> from mtlkit.training import create_module, load_config
        >>> create_module(load_config("demo")).model.options.encoder
        'resnet18'
    """
    model = create_model(config.model.name, **{name: _tuple(v) for name, v in config.model.options.items()})
    if (momentum := config.model.batch_norm_momentum) is not None:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = momentum
    if not _serves(model, config.task):
        raise ValueError(f"model.name: {config.model.name} does not serve the task {config.task!r}")
    if catalogue is not None:
        _check_classes(model, config, catalogue)
    if config.task != "mammography":
        return KINDS[config.task](model, config, gates_only=gates_only)
    weights = None
    if config.loss.class_weights:
        if catalogue is None or split is None:
            raise ValueError("catalogue, split: expected those that the class weights are counted in, got None")
        exams = catalogue.subset(split.train).records
        o = model.options
        weights = {
            "label": losses.class_weights(torch.tensor([exam.labels for exam in exams]), o.label_classes),
            "birads": losses.class_weights(torch.tensor([exam.birads for exam in exams]), o.birads_classes),
        }
    return MammographyModule(model, config, weights)


def _serves(model: nn.Module, task: str) -> bool:
    """Whether the network takes what the task gives and tells what it asks, by the annotations of its forward pass."""
    hints = get_type_hints(type(model).forward)
    names = {*hints, *getattr(hints["return"], "_fields", ())}
    return {"lesion": "seg_logits", "views": "masks", "mammography": "views"}[task] in names


def gate_names(model: nn.Module, count: int) -> list[str]:
    """The names of a network's gates, in the order of its output: of levels, of experts or of views.

    Args:
        model: the network.
        count: how many gates it has; of a network that does not say what they are, they are numbered.

    Example:
        >>> from mtlkit.models import create_model
        >>> from mtlkit.training.modules import gate_names
        >>> gate_names(create_model("btinet", encoder="resnet18", levels=(2, 3)), 4)
        ['seg_level2', 'clf_level2', 'seg_level3', 'clf_level3']
    """
    o = model.options
    if hasattr(o, "levels"):
        names = [f"{branch}_level{level}" for level in o.levels for branch in ("seg", "clf")]
    else:
        names = list(VIEWS if hasattr(model, "fusion") else getattr(o, "experts", ()))
    return names if len(names) == count else [str(number) for number in range(1, count + 1)]


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def check_kind(root: Path, task: str, *, mammography: bool) -> None:
    """Raises unless a data set, of mammography or not, is of the kind that the task takes."""
    if mammography != (task == "mammography"):
        kind = "four-view mammograms" if mammography else "single images"
        raise ValueError(f"{root}: holds {kind}, which the task {task!r} does not take")


def check_recipe(module: TrainingModule, config: Config) -> None:
    """Raises where a recipe asks of its network what it cannot do."""
    model = module.model
    if config.second_stage is not None:
        if not hasattr(model, "stage2_parameters"):
            raise ValueError(f"second_stage: expected none, as {config.model.name} has no gates that learn alone")
        model.stage2_parameters()  # raises without UPA
    vectors = any(isinstance(layer, nn.BatchNorm1d) for layer in model.modules())
    if vectors and config.data.batch_size == 1 and not config.sync_batch_norm:
        raise ValueError(f"data.batch_size: expected at least 2, for the BatchNorm of {config.model.name}, got 1")


def _check_classes(model: nn.Module, config: Config, catalogue: Catalogue) -> None:
    """Raises unless the network has a logit for each class of the data, and the data are of the task's kind."""
    check_kind(catalogue.root, config.task, mammography=catalogue.mammography)
    if catalogue.mammography:
        name, have, need = "birads_classes", model.options.birads_classes, len(catalogue.birads)
    else:
        name, have, need = "num_classes", model.options.num_classes, len(catalogue.classes)
    if have != need:
        raise ValueError(f"model.options.{name}: expected {need}, as the data have classes, got {have}")
