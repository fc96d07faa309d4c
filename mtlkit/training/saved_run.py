"""Opens finished runs: the network, the names of its classes, and the data prepared as in training.

A run stores in data.json the folder of its data set, layout, classes and BI-RADS categories, and a fingerprint of each
record of its split, to recognise the records in another folder.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader

from mtlkit._fields import read_fields
from mtlkit._memory import out_of_memory
from mtlkit._text import composed
from mtlkit.data import VIEWS, Catalogue, Exam, LesionDataset, MammographyDataset, Record, Split
from mtlkit.data.files import check_folder, natural, print_of
from mtlkit.data.items import MEAN, STD
from mtlkit.data.layouts import find_layout, scan
from mtlkit.data.open import usable
from mtlkit.data.splits import read_split
from mtlkit.errors import DataError, UnfinishedError
from mtlkit.models import from_pretrained
from mtlkit.models.network import Network
from mtlkit.training.calibration import FILE as CALIBRATION
from mtlkit.training.calibration import Calibration, read_calibration
from mtlkit.training.config import Config, load_config
from mtlkit.training.tasks import Task, find_task, kind_of, record_of

__all__ = ["SavedRun", "load_run"]

MARK = ".mtlkit-run"  # in the folder of a run
NOT_OURS = "is not as a run writes it"
DATA, RESULT, SPLIT = "data.json", "result.json", "split.json"


@dataclass(frozen=True)
class SavedRun:
    """A finished run, opened by `load_run`.

    Args:
        folder: folder of the run.
        config: recipe of the run.
        model: the best network, in eval mode.
        classes: class names by label; for mammograms, the classes of a breast.
        birads: BI-RADS categories by label, for mammograms; otherwise empty.
        split: split of the data set; None if the folder does not have it any more.
        figures: metrics of its validation and test parts, by names such as "test/accuracy".
        data: folder of its data set during training.
        prints: fingerprints of the records of its split, by key; see `recognise`.
        calibration: calibration of each classifier; see `mtlkit.training.calibration`.

    Example:
        >>> from mtlkit.training import load_run
        >>> load_run("/no/such/run")
        Traceback (most recent call last):
        mtlkit.errors.DataError: /no/such/run: there is no such folder
    """

    folder: Path
    config: Config
    model: Network = field(repr=False)
    classes: tuple[str, ...]
    birads: tuple[int, ...]
    split: Split | None
    figures: Mapping[str, float]
    data: Path
    prints: Mapping[str, str] = field(repr=False)
    calibration: Mapping[str, Calibration] = field(default_factory=dict, repr=False)

    @property
    def tasks(self) -> dict[str, tuple[str, ...]]:
        """The names of the classes by task: "class", or "label" and "birads" if the network predicts them."""
        return {head.name: head.names(getattr(self, head.classes)) for head in self.task.heads_of(self.model)}

    @property
    def task(self) -> Task:
        """The task of the network."""
        return find_task(self.config.task)

    def adjusted(self, max_pixels: int | None) -> "SavedRun":
        """The run with another limit on the pixels of an image; None keeps the recipe's limit."""
        if max_pixels is None:
            return self
        return replace(self, config=self.config.change({"data": {"max_pixels": max_pixels}}))

    def uncalibrated(self) -> "SavedRun":
        """The run without calibration of its probabilities."""
        return replace(self, calibration={})

    def temperature(self, task: str) -> float:
        """The divisor of the logits of a classifier."""
        return self.calibration[task].temperature if task in self.calibration else 1.0

    # --- data ---------------------------------------------------------------------------------------------------------

    def dataset(self, records: Sequence[Record] | Sequence[Exam]) -> LesionDataset | MammographyDataset:
        """Records prepared for the network: resized and normalised as in training, not augmented.

        For an image without label and mask, use `Record(key, path, -1, (), key, segmented=False)`.
        """
        return self.task.items(records, self.config.data)

    def loader(self, records: Sequence[Record] | Sequence[Exam], batch_size: int | None = None) -> DataLoader[Any]:
        """Batches of `dataset` in order, by default with the batch size of the run's own evaluation."""
        d = self.config.data
        batch_size = batch_size or d.eval_batch_size or d.batch_size
        return DataLoader(self.dataset(records), batch_size=batch_size, num_workers=d.workers)

    def open_data(
        self, folder: str | Path | None = None, layout: str | None = None, *, skip_bad: bool = False
    ) -> Catalogue:
        """A data set with the run's classes in the run's order.

        Args:
            folder: folder of the data set; by default that of the run. Another data set may have fewer classes;
                additional classes are left out.
            layout: layout of the data set; by default that of the recipe, or detected.
            skip_bad: as for `mtlkit.data.open_dataset`.

        Raises:
            DataError: there is no such folder, it is incomplete, or it has none of the classes.
        """
        if folder is None and not self.data.exists():
            raise DataError(f"{self.data}: the data set of {self.folder} is no longer there; pass its current folder")
        root = check_folder(self.data if folder is None else folder)
        layout = layout or (self.config.data.layout if folder is None else "auto")
        layout = find_layout(root) if layout == "auto" else layout
        record = record_of(layout)
        if record is not self.task.record:
            raise DataError(f"{root}: holds {kind_of(record)}, which the network of {self.folder} does not take")
        if record is Exam:
            catalogue = scan(root, layout, birads=self.birads)
        else:
            catalogue = self._with_own_labels(root, layout)
        # a class without images is not an error here
        kept = tuple(finding for finding in catalogue.findings if finding.kind != "missing class")
        return usable(replace(catalogue, findings=kept), skip_bad=skip_bad, max_pixels=self.config.data.max_pixels)

    def _with_own_labels(self, root: Path, layout: str) -> Catalogue:
        """The records with classes that the network knows, or without class, with the network's labels."""
        theirs = scan(root, layout).classes
        common = [name for name in self.classes if name in theirs]
        if not common:
            knows = ", ".join(self.classes)
            raise DataError(f"{root}: has the classes {', '.join(theirs)}, but the network knows only {knows}")
        catalogue = scan(root, layout, classes=common)
        labels = {-1: -1} | {label: self.classes.index(name) for label, name in enumerate(common)}
        records = tuple(
            replace(record, label=labels[record.label]) for record in catalogue.records if isinstance(record, Record)
        )
        return replace(catalogue, classes=self.classes, records=records)

    def recognise(self, catalogue: Catalogue) -> set[str]:
        """The keys of the records of a data set whose files are the same as in the run's split."""
        known = (record for record in catalogue.records if record.key in self.prints)
        return {record.key for record in known if print_of(record.files) == self.prints[record.key]}

    # --- export -------------------------------------------------------------------------------------------------------

    def example(self) -> tuple[Tensor, ...]:
        """Two random items for the network, in the size of its training."""
        shapes = self.task.shapes(self.config.data.size, 2)
        tensors = {name: torch.rand(shape) for name, shape in shapes.items()}
        if "masks" in tensors:
            tensors["masks"] = tensors["masks"].round()
        return tuple(tensors.get(name, torch.ones(2, len(VIEWS), dtype=torch.bool)) for name in self.task.inputs)

    def facts(self) -> dict[str, Any]:
        """Information to use the network elsewhere: size and normalisation of images, names of classes."""
        data, task = self.config.data, self.task
        return {
            "task": self.config.task,
            "inputs": list(task.inputs),
            "needs_masks": task.takes_masks and self.model.needs_masks,
            "size": data.size,
            "mean": list(MEAN) if data.normalize else None,
            "std": list(STD) if data.normalize else None,
            "classes": {name: list(names) for name, names in self.tasks.items()},
            "logits": {head.name: head.logits for head in task.heads_of(self.model)},
            "temperatures": {name: self.temperature(name) for name in self.tasks},
            "gates": list(self.model.gate_names),
            "recipe": self.config.to_dict(),
        }

    # --- prediction ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(
        self,
        batch: Mapping[str, Any],
        *,
        inspect: bool = False,
        gates: Mapping[str, float | Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The network's predictions for a batch of `loader`, in float32 on the CPU.

        Args:
            batch: the batch.
            inspect: whether to include the signals of the gates.
            gates: weights that replace the network's own, by name.

        Returns:
            Class probabilities for each of `tasks`, (B, K), or (B, 2, K) for the left and the right breast. If the
            network has them, also "mask" (B, 1, H, W), probabilities; "gates", (B, levels, 2) for networks with decoder
            levels, otherwise (B, experts) or (B, views); "stages"; and "signals" with `inspect`.
        """
        device = next(self.model.parameters()).device
        task, model = self.task, self.model
        inputs = {item: batch[item].to(device) for item in task.inputs.values()}
        output = task.inspect(model, inputs, gates) if inspect or gates else task.run(model, inputs)
        found = {
            head.name: (getattr(output, head.logits).float() / self.temperature(head.name)).softmax(-1)
            for head in task.heads_of(model)
        }
        if task.draws_masks:
            found["mask"] = output.seg_logits.float().sigmoid()
        for name in ("gates", "stages", "signals"):
            if (value := getattr(output, name, None)) is not None:
                found[name] = value.float()
        return {name: value.cpu() for name, value in found.items()}


# --- the file ---------------------------------------------------------------------------------------------------------


def data_values(catalogue: Catalogue, split: Split) -> dict[str, Any]:
    """The content of a run's data.json."""
    records = catalogue.subset(key for keys in split.parts().values() for key in keys).records
    return {
        "root": str(catalogue.root.resolve()),
        "layout": catalogue.layout,
        "classes": list(catalogue.classes),
        "birads": list(catalogue.birads),
        "prints": {record.key: print_of(record.files) for record in records},
    }


# --- opening ----------------------------------------------------------------------------------------------------------


def load_run(folder: str | Path, *, device: torch.device | str | None = None) -> SavedRun:
    """Opens a finished run.

    Args:
        folder: folder that `mtlkit train` made.
        device: device of the network.

    Raises:
        DataError: there is no such folder, it is not a run, the run has not finished, or one of its files is damaged.

    Example:
        >>> import tempfile
        >>> from mtlkit.data import synthesize_ultrasound
        >>> from mtlkit.training import load_config, load_run, train
        >>> net = {"encoder": "resnet18", "decoder_dims": [16, 16, 12, 8], "clf_dim": 16, "num_classes": 3}
        >>> small = {"model": {"options": net}, "data": {"size": 32, "batch_size": 4}, "stopping": {"epochs": 1}}
        >>> config = load_config("demo").change(small | {"second_stage": None})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     synthesize_ultrasound(f"{folder}/busi", cases=24, size=64)
        ...     _ = train(config, f"{folder}/busi", f"{folder}/run", progress=False)
        ...     run = load_run(f"{folder}/run")
        ...     batch = next(iter(run.loader(run.open_data().subset(run.split.test).records)))
        >>> run.classes, run.predict(batch)["class"].shape
        (('benign', 'malignant', 'normal'), torch.Size([4, 3]))
    """
    folder = check_folder(folder)
    config = read_recipe(folder)
    data, figures = read_data(folder / DATA), read_figures(folder / RESULT)
    split = read_split(folder / SPLIT) if (folder / SPLIT).exists() else None
    try:
        model = from_pretrained(folder / "model", device=device).eval()
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        if out_of_memory(error):
            raise
        words = " ".join(str(error).split())
        raise DataError(f"{folder / 'model'}: the network cannot be loaded ({words})") from None
    except SafetensorError as error:
        raise DataError(f"{folder / 'model'}: the network cannot be loaded ({error})") from None
    run = SavedRun(
        folder, config, model, split=split, figures=figures, calibration=read_calibration(folder / CALIBRATION), **data
    )
    for head in run.task.heads_of(model):
        names, count = getattr(run, head.classes), getattr(model.options, head.option)
        if len(names) != count:
            words = f"{head.classes}: expected {count} as in the network, got {len(names)}"
            raise DataError(f"{NOT_OURS} ({words})", path=folder / DATA)
    return run


def runs_within(folder: str | Path) -> list[Path]:
    """The folders of runs inside a folder, as written by `repeat`; none inside the folder of a run."""
    folder = check_folder(folder)
    if (folder / MARK).is_file():
        return []
    runs = (path.parent for path in folder.glob(f"*/{MARK}"))
    return sorted((run for run in runs if not run.name.startswith(".")), key=natural)


def read_recipe(folder: Path) -> Config:
    """The recipe of a finished run.

    Raises:
        DataError: it is not the folder of a run, the run has not finished, or its recipe is damaged.
    """
    if not (folder / MARK).is_file():
        if runs := runs_within(folder):
            names = ", ".join(path.name for path in runs)
            raise DataError(f"{folder}: contains several runs; name one of them: {names}")
        if rows := sorted({path.parent.parent.name for path in folder.glob(f"*/*/{MARK}")}):
            raise DataError(f"{folder}: contains folders of runs; name one run in them: {', '.join(rows)}")
        raise DataError(f"{folder}: is not the folder of a run; `mtlkit train` makes one")
    if not (folder / RESULT).is_file():
        raise UnfinishedError(f"{folder}: this run has not finished")
    if not (folder / "model").is_dir():
        raise DataError(f"{folder}: it contains no network, the folder model is missing")
    try:
        return load_config(folder / "config.yaml")
    except ValueError as error:
        raise DataError(str(error)) from None


def read_figures(path: Path) -> dict[str, float]:
    """The metrics in result.json.

    Raises:
        DataError: it cannot be read, or is not in the form that a run writes.
    """
    figures = read_fields(path, NOT_OURS)
    return {name: figures.number(name, math.nan) for name in figures.values}


def read_data(path: Path) -> dict[str, Any]:
    """The content of data.json as arguments of `SavedRun`.

    Raises:
        DataError: it cannot be read, or is not in the form that a run writes.
    """
    data = read_fields(path, NOT_OURS)
    prints = data.fields("prints")
    return {
        "classes": data.texts("classes"),
        "birads": data.integers("birads"),
        "data": Path(data.text("root")),
        "prints": {composed(key): prints.text(key) for key in prints.values},
    }
