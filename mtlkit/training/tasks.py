"""The tasks that networks are trained for: one object each, the only place that knows a task's details.

A task defines its data, its networks' inputs, classifiers and masks, and the losses. To add one, add a `Task` to this
file and to `TASKS`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from mtlkit import losses
from mtlkit._distributed import Group
from mtlkit.data import Catalogue, Exam, LesionDataset, MammographyDataset, Record
from mtlkit.data.layouts import cmmd
from mtlkit.metrics import ClassificationMetrics, SegmentationMetrics
from mtlkit.models import Pretrained
from mtlkit.models.network import Network, takes

if TYPE_CHECKING:
    from mtlkit.training.config import DataConfig, LossConfig

__all__ = ["CLASS", "HEADS", "LOSSES", "TASKS", "Head", "Task", "find_task"]


@dataclass(frozen=True)
class Head:
    """A classifier of a network, and where its classes, labels and logits are.

    Args:
        name: name in predictions and metrics.
        logits: field of the network's output, (..., K).
        option: option of the network with the number of classes.
        item: key of the labels in a batch, (...), -1 if unknown.
        label: attribute of a record with its label, or the labels of both breasts.
        classes: attribute of a catalogue with the classes.
        title: title for readers.
        titles: plural of the title.
        class_name: format of a class name; {} is replaced by the catalogue's entry.
        prefix: prefix of its metrics' names.

    Example:
        >>> from mtlkit.training.tasks import HEADS
        >>> HEADS["birads"].names((1, 5)), HEADS["birads"].prefix
        (('BI-RADS 1', 'BI-RADS 5'), 'birads_')
    """

    name: str
    logits: str
    option: str
    item: str
    label: str
    classes: str
    title: str
    titles: str
    class_name: str = "{}"
    prefix: str = ""

    def names(self, classes: Iterable[Any]) -> tuple[str, ...]:
        """The names of its classes."""
        return tuple(self.class_name.format(one) for one in classes)

    def labels(self, records: Sequence[Any]) -> Tensor:
        """The labels of records, (N,) or (N, 2)."""
        return torch.tensor([getattr(record, self.label) for record in records])


# --- losses -----------------------------------------------------------------------------------------------------------


class TaskLosses(nn.Module):
    """The losses of a task.

    Args:
        config: weights of the losses.
        heads: the classifiers to train.
        weights: class weights of each classifier, by its name; empty for equal weights.

    Attributes:
        kinds: names of possible losses besides "loss", which is minimised.
    """

    kinds: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: "LossConfig", heads: Sequence[Head], weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        self.heads: tuple[Head, ...] = tuple(heads)
        for head in self.heads:
            self.register_buffer(f"{head.name}_weights", weights.get(head.name), persistent=False)

    @property
    def names(self) -> tuple[str, ...]:
        """What `forward` returns."""
        return (*self.kinds, "loss")

    def weights(self, head: Head) -> Tensor | None:
        """The class weights, (K,)."""
        return getattr(self, f"{head.name}_weights")

    def forward(
        self, output: Any, batch: Mapping[str, Any], first: float, second: float, group: Group | None
    ) -> dict[str, Tensor]:
        """The losses by name.

        Args:
            output: output of the network.
            batch: input of the network.
            first: weight of the first of two losses in this epoch.
            second: weight of the second loss.
            group: process group over which losses are computed; None for this process only.
        """
        raise NotImplementedError


class LesionLosses(TaskLosses):
    """Losses of mask and class, and of the gates if the recipe gives them a weight."""

    kinds: ClassVar[tuple[str, ...]] = ("segmentation", "classification", "gates")

    def __init__(self, config: "LossConfig", heads: Sequence[Head], weights: Mapping[str, Tensor]) -> None:
        super().__init__(config, heads, weights)
        self.segmentation = losses.SegmentationLoss(
            config.tversky,
            config.boundary,
            config.texture,
            size_boost=config.size_boost,
            soft_boundary=config.soft_boundary,
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in super().names if name != "gates" or self.config.gates > 0)

    def forward(
        self, output: Any, batch: Mapping[str, Any], first: float, second: float, group: Group | None
    ) -> dict[str, Tensor]:
        (head,), c = self.heads, self.config
        known = None if batch["segmented"].all() else batch["segmented"]
        segmentation = self.segmentation(output.seg_logits, batch["mask"], known=known, group=group)
        classification = losses.focal_cross_entropy(
            output.cls_logits, batch[head.item], self.weights(head), gamma=c.focal_gamma, group=group
        )
        values = {"segmentation": segmentation, "classification": classification}
        values["loss"] = first * segmentation + second * classification
        if c.gates > 0:
            hard = losses.segmentation_difficulty(output.seg_logits, batch["mask"], group=group)
            unsure = losses.classification_difficulty(output.cls_logits, group=group)
            gates = losses.gate_loss(output.gates[:, :, 0].T, hard) + losses.gate_loss(output.gates[:, :, 1].T, unsure)
            values |= {"gates": gates, "loss": values["loss"] + c.gates * gates}
        return values


class ViewsLosses(TaskLosses):
    """Cross-entropy of the class."""

    def forward(
        self, output: Any, batch: Mapping[str, Any], first: float, second: float, group: Group | None
    ) -> dict[str, Tensor]:
        (head,) = self.heads
        logits, labels = output.cls_logits, batch[head.item]
        return {"loss": losses.weighted_cross_entropy(logits, labels, self.weights(head), group=group)}


class MammographyLosses(TaskLosses):
    """Cross-entropy of each classifier, averaged over both breasts."""

    kinds: ClassVar[tuple[str, ...]] = ("label", "birads")

    @property
    def names(self) -> tuple[str, ...]:
        return (*(head.name for head in self.heads), "loss")

    def forward(
        self, output: Any, batch: Mapping[str, Any], first: float, second: float, group: Group | None
    ) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        for head in self.heads:
            logits, labels = getattr(output, head.logits), batch[head.item]
            pairs = [(logits[:, i], labels[:, i], self.weights(head)) for i in range(2)]
            left, right = (losses.weighted_cross_entropy(*pair, group=group) for pair in pairs)
            values[head.name] = (left + right) / 2
        shares = (first, second) if len(values) == 2 else (1,)
        weighted = [share * value for share, value in zip(shares, values.values(), strict=True)]
        return values | {"loss": sum(weighted[1:], weighted[0])}


# --- tasks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A task that networks are trained for.

    Args:
        name: name in recipes.
        record: type of its records: images or exams.
        dataset: data set class for its items.
        inputs: key in a batch for each argument of the network's forward, in order.
        needs: fields that the network's output must have.
        heads: classifiers that its networks may have; those in `needs` are required.
        losses: loss class.
        combined: weights of metrics in the metric "combined", by name; empty for no such metric.

    Example:
        >>> from mtlkit.models import create_model
        >>> from mtlkit.training.tasks import TASKS
        >>> network = create_model("mammo_resnet18", tasks=("label",))
        >>> [name for name, task in TASKS.items() if task.serves(network)]
        ['mammography']
        >>> [head.name for head in TASKS["mammography"].heads_of(network)]
        ['label']
    """

    name: str
    record: type[Record] | type[Exam]
    dataset: type[LesionDataset] | type[MammographyDataset]
    inputs: Mapping[str, str]
    needs: tuple[str, ...]
    heads: tuple[Head, ...]
    losses: type[TaskLosses]
    combined: Mapping[str, float]

    # --- networks -----------------------------------------------------------------------------------------------------

    def serves(self, network: nn.Module) -> bool:
        """Whether the network has the inputs and outputs that the task needs."""
        if not isinstance(network, Pretrained) or not set(self.inputs) <= set(takes(network)):
            return False
        return set(self.needs) <= set(network.returns) and bool(self.heads_of(network))

    def heads_of(self, network: Any) -> tuple[Head, ...]:
        """The classifiers that the network has."""
        return tuple(head for head in self.heads if head.logits in self.needs or head.logits in network.returns)

    @property
    def draws_masks(self) -> bool:
        """Whether its networks predict masks."""
        return "seg_logits" in self.needs

    @property
    def takes_masks(self) -> bool:
        """Whether its networks get masks as input."""
        return "masks" in self.inputs

    def shapes(self, size: int, batch: int = 1) -> dict[str, tuple[int, ...]]:
        """Shapes of its networks' inputs, by argument, for images of size x size."""
        known = {"image": (3, size, size), "mask": (1, size, size), "views": (4, 3, size, size)}
        return {name: (batch, *known[item]) for name, item in self.inputs.items() if item in known}

    def run(self, network: nn.Module, batch: Mapping[str, Any]) -> Any:
        """The network's output for a batch."""
        return network(*(batch[item] for item in self.inputs.values()))

    def inspect(
        self, network: Network, batch: Mapping[str, Any], gates: Mapping[str, float | Tensor] | None = None
    ) -> Any:
        """The network's output for a batch, with its signals if it has any, and with replaced gates if given."""
        return network.inspect(*(batch[item] for item in self.inputs.values()), gates=gates)

    # --- data ---------------------------------------------------------------------------------------------------------

    def check_kind(self, root: Path, record: type) -> None:
        """Raises unless a data set has the records that the task needs."""
        if record is not self.record:
            raise ValueError(f"{root}: contains {kind_of(record)}, which the task {self.name!r} does not accept")

    def open_options(self, data: "DataConfig") -> dict[str, tuple[Any, ...]]:
        """The recipe's options for the classes, for `open_dataset`."""
        chosen = {"birads": data.birads} if self.record is Exam else {"classes": data.classes}
        return {name: tuple(value) for name, value in chosen.items() if value is not None}

    def items(
        self, records: Sequence[Any], data: "DataConfig", *, training: bool = False, seed: int = 0, cache: bool = False
    ) -> LesionDataset | MammographyDataset:
        """The items of records, prepared by the recipe; augmented only in training."""
        options: dict[str, Any] = {"augment": data.augment, "copies": data.copies} if training else {"augment": "none"}
        options |= {"seed": seed, "cache": cache}
        limits = {"normalize": data.normalize, "max_pixels": data.max_pixels}
        return self.dataset(records, data.size, **limits, **options)

    # --- figures ------------------------------------------------------------------------------------------------------

    def metrics(self, network: nn.Module, positive: int | None = None) -> nn.ModuleDict:
        """The metrics of an epoch; `positive` is the positive class of images."""
        found: dict[str, nn.Module] = {"mask": SegmentationMetrics()} if self.draws_masks else {}
        for head in self.heads_of(network):
            named = positive if head is CLASS else None
            found[head.name] = ClassificationMetrics(getattr(network.options, head.option), positive=named)
        return nn.ModuleDict(found)

    def update(self, metrics: Any, network: nn.Module, output: Any, batch: Mapping[str, Any]) -> None:
        """Adds a batch to the metrics."""
        if self.draws_masks:
            known = batch["segmented"]
            metrics["mask"].update(output.seg_logits[known].float().sigmoid(), batch["mask"][known])
        for head in self.heads_of(network):
            probabilities = getattr(output, head.logits).float().softmax(-1)
            metrics[head.name].update(probabilities.flatten(0, -2), batch[head.item].flatten())

    def figures(self, metrics: Any) -> dict[str, Tensor]:
        """The metrics of the batches so far."""
        figures = metrics["mask"].compute() if self.draws_masks else {}
        figures.pop("images", None)  # the number of labels
        for head in self.heads:
            if head.name in metrics:
                figures |= {f"{head.prefix}{name}": value for name, value in metrics[head.name].compute().items()}
        shares = {name: share for name, share in self.combined.items() if name in figures}
        if shares:
            parts = [share * figures[name].nan_to_num(0).cpu() for name, share in shares.items()]
            figures["combined"] = torch.stack(parts).sum()
        return figures


CLASS = Head("class", "cls_logits", "num_classes", "label", "label", "classes", title="class", titles="classes")
LABEL = Head(
    "label",
    "label_logits",
    "label_classes",
    "label",
    "labels",
    "classes",
    title="label",
    titles="labels",
    prefix="label_",
)
BIRADS = Head(
    "birads",
    "birads_logits",
    "birads_classes",
    "birads",
    "birads",
    "birads",
    title="BI-RADS",
    titles="BI-RADS categories",
    class_name="BI-RADS {}",
    prefix="birads_",
)

# mask and class at once: MBDI and BTI-Net
LESION = Task(
    name="lesion",
    record=Record,
    dataset=LesionDataset,
    inputs={"images": "image"},
    needs=("seg_logits", "cls_logits"),
    heads=(CLASS,),
    losses=LesionLosses,
    combined={"iou": 0.7, "accuracy": 0.3},
)
# the class from an image and the mask of its lesion: CSA-MoE-Net
VIEWS = Task(
    name="views",
    record=Record,
    dataset=LesionDataset,
    inputs={"images": "image", "masks": "mask"},
    needs=("cls_logits",),
    heads=(CLASS,),
    losses=ViewsLosses,
    combined={},
)
# label and BI-RADS category of both breasts from four views: the hybrid CNN-VSSM and its relatives
MAMMOGRAPHY = Task(
    name="mammography",
    record=Exam,
    dataset=MammographyDataset,
    inputs={"views": "views", "present": "present"},
    needs=(),
    heads=(LABEL, BIRADS),
    losses=MammographyLosses,
    combined={"label_auc": 1.0, "birads_auc": 1.0},
)

TASKS = {task.name: task for task in (LESION, VIEWS, MAMMOGRAPHY)}
HEADS = {head.name: head for task in TASKS.values() for head in task.heads}
LOSSES = frozenset({"loss", *(kind for task in TASKS.values() for kind in task.losses.kinds)})


def find_task(name: str) -> Task:
    """The task of a recipe.

    Example:
        >>> from mtlkit.training.tasks import find_task
        >>> find_task("views").takes_masks
        True
    """
    return TASKS[name]


def kind_of(record: type[Record] | type[Exam]) -> str:
    """The kind of records, in words."""
    return "four-view mammograms" if record is Exam else "single images"


def record_of(layout: str) -> type[Record] | type[Exam]:
    """The kind of records in a layout."""
    return Exam if layout == cmmd.NAME else Record


def record_in(catalogue: Catalogue) -> type[Record] | type[Exam]:
    """The kind of records in a data set."""
    return Exam if catalogue.mammography else Record
