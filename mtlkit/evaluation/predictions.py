"""Predictions of a network for each image, with everything needed to evaluate and inspect them.

TIM's displacement at a decoder level, of the vector by the map and of the map by the vector, is

    seg->clf  ||f~ - f|| / ||f||        clf->seg  ||D~ - D|| / ||D||

Source: the published code of MBDI (arXiv 2603.01295).
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtlkit.data import Exam, Record
from mtlkit.data.images import load_image
from mtlkit.data.items import MEAN, STD
from mtlkit.data.resizing import resize_map
from mtlkit.evaluation.uncertainty import ENTROPY, entropies
from mtlkit.inference.passes import EXAM_FLIPS, IMAGE_FLIPS, check_windows, count_windows, flip_average, slide
from mtlkit.metrics import boundary_scores, segmentation_scores
from mtlkit.models.network import Network
from mtlkit.nn import InteractionLevel, TaskInteraction
from mtlkit.training import SavedRun
from mtlkit.training.tasks import HEADS

__all__ = ["Predictions", "pool", "predict_records"]

SIDES = ("left", "right")
SCORES = ("iou", "dice", "sensitivity", "precision")
DISTANCES = ("hd95", "assd", "surface_dice")
TOLERANCE = 2.0  # tolerance of the surface Dice
INSIDE = ("gates", "signals", "stages")


@dataclass(frozen=True)
class Predictions:
    """Predictions of a network by row: each image, or each breast of an exam, is a row.

    Args:
        run: run of the network.
        records: image or exam of each row.
        sides: "left" or "right" for each row; empty for images.
        labels: labels of each task, (N,), -1 if the class is unknown.
        probabilities: probabilities of each task, (N, K).
        scores: IoU and so on, (N,) each, NaN without lesion or known mask; empty if the network predicts no masks.
            "hd95", "assd" and "surface_dice", of `mtlkit.metrics.boundary_scores`,
            are in pixels of the network's input; if an image has a pixel size, "hd95_mm" and so on are in mm.
        lesion: fraction of lesion pixels, (N,), in the true mask (NaN if unknown) and in the predicted one.
        masks: predicted masks, packed, for `mask`.
        gates: gates, (N, gates), and their names.
        signals: signals of the gates, (N, signals), and their names.
        stages: weights of the encoders' stages, (N, stages), and their names.
        displacement: displacement by TIM, seg->clf and clf->seg at each level, (N, levels, 2), and the level numbers.
        features: input of the classifier's last layer, (N, D), if requested.
        positive: the positive class of images, if the recipe names one.
        uncertainty: by method, such as "entropy", and by "mask" or task, (N,).
        seconds: time of a method per image, if measured.
        cost: with flips or windows, the average "passes" of the network and "seconds" per image.

    Example:
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from mtlkit.data import Record
        >>> from mtlkit.evaluation import Predictions
        >>> images = tuple(Record(name, Path(f"{name}.png"), 0, (), name) for name in ("a", "b"))
        >>> shares = np.array([[0.9, 0.1], [0.3, 0.7]])
        >>> found = Predictions(None, images, (), {"class": np.array([0, 0])}, {"class": shares})
        >>> found.predicted("class"), found.wrong("class")
        (array([0, 1]), array([False,  True]))
    """

    run: SavedRun
    records: tuple[Record | Exam, ...]
    sides: tuple[str, ...]
    labels: dict[str, NDArray[np.int64]]
    probabilities: dict[str, NDArray[np.float64]]
    scores: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    lesion: NDArray[np.float64] | None = None
    predicted_lesion: NDArray[np.float64] | None = None
    masks: tuple[NDArray[np.uint8], ...] = field(default=(), repr=False)
    gates: NDArray[np.float64] | None = None
    gate_names: tuple[str, ...] = ()
    signals: NDArray[np.float64] | None = None
    signal_names: tuple[str, ...] = ()
    stages: NDArray[np.float64] | None = None
    stage_names: tuple[str, ...] = ()
    displacement: NDArray[np.float64] | None = None
    levels: tuple[int, ...] = ()
    features: NDArray[np.float64] | None = None
    positive: int | None = None
    uncertainty: Mapping[str, Mapping[str, NDArray[np.float64]]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def groups(self) -> list[str]:
        """The group of each row: its patient, if known."""
        return [record.group for record in self.records]

    @property
    def images(self) -> list[Record]:
        """The records that are images: all of them or none."""
        return [record for record in self.records if isinstance(record, Record)]

    @property
    def first_rows(self) -> NDArray[np.int64]:
        """The first row of each image or exam; both rows of an exam have the same features and gates."""
        return np.sort(np.unique([record.key for record in self.records], return_index=True)[1])

    @property
    def empty(self) -> NDArray[np.bool_]:
        """The rows with a known mask without lesion."""
        return self.lesion == 0

    def predicted(self, task: str) -> NDArray[np.int64]:
        """The predicted class of each row."""
        return self.probabilities[task].argmax(1)

    def confidence(self, task: str) -> NDArray[np.float64]:
        """The probability of the predicted class."""
        return self.probabilities[task].max(1)

    def wrong(self, task: str) -> NDArray[np.bool_]:
        """The rows whose predicted class is wrong."""
        return (self.labels[task] >= 0) & (self.predicted(task) != self.labels[task])

    def mask(self, row: int) -> NDArray[np.bool_]:
        """The predicted mask of a row, (size, size)."""
        size = self.run.config.data.size
        return np.unpackbits(self.masks[row], count=size * size).reshape(size, size).astype(bool)


def pool(parts: Sequence[Predictions]) -> Predictions:
    """The rows of several predictions, as those of the folds of a cross-validation; their run is the first one's.

    What one of them lacks is left out.

    Example:
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from mtlkit.data import Record
        >>> from mtlkit.evaluation import Predictions, pool
        >>> def fold(name):
        ...     images = (Record(name, Path(f"{name}.png"), 0, (), name),)
        ...     return Predictions(None, images, (), {"class": np.array([0])}, {"class": np.array([[0.9, 0.1]])})
        >>> len(pool([fold("a"), fold("b")]))
        2
    """
    first = parts[0]

    def joined(values: Sequence[Any]) -> Any:
        if any(value is None for value in values):
            return None
        if isinstance(values[0], np.ndarray):
            return np.concatenate(values)
        if isinstance(values[0], tuple):
            return tuple(item for value in values for item in value)
        return {name: joined([value[name] for value in values]) for name in values[0] if all(name in v for v in values)}

    rows = ("records", "sides", "labels", "probabilities", "scores", "lesion", "predicted_lesion", "masks", "gates")
    rows += ("signals", "stages", "displacement", "features", "uncertainty")
    return replace(
        first, seconds={}, cost={}, **{name: joined([getattr(part, name) for part in parts]) for name in rows}
    )


# --- looking inside ---------------------------------------------------------------------------------------------------


def displacement(before: Tensor, after: Tensor) -> Tensor:
    """The displacement of each item of a batch relative to its length, (B,); NaN for length 0."""
    length = before.float().flatten(1).norm(dim=1)
    moved = (after.float() - before.float()).flatten(1).norm(dim=1)
    return torch.where(length > 0, moved / length, float("nan"))


class _Watch:
    """Records the displacement by TIM and the classifier's input, batch by batch."""

    def __init__(self) -> None:
        self.levels: list[Tensor] = []  # (B, 2) per level
        self.features: Tensor | None = None

    def see_interaction(self, module: TaskInteraction, given: tuple[Tensor, Tensor], found: Any) -> None:
        """Forward hook for TIM."""
        (seg, clf), values = given, found
        self.levels.append(torch.stack([displacement(clf, values.clf), displacement(seg, values.seg)], 1))

    def see_features(self, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        """Forward pre-hook for the last linear layer."""
        self.features = given[0].float()

    def take(self) -> tuple[Tensor | None, Tensor | None]:
        """Displacements (B, levels, 2) and features (B, D) of the last batch."""
        levels = torch.stack(self.levels, 1).cpu() if self.levels else None
        features = None if self.features is None else self.features.cpu()
        self.levels, self.features = [], None
        return levels, features


def _unfused(level: InteractionLevel, given: tuple[Tensor, ...], _: Any) -> None:
    """Forward hook: a level fuses TIM with UPA, so TIM is run separately to trigger its hook."""
    level.tim(*given[:2])


@contextmanager
def watched(model: Network, *, features: bool = False) -> Iterator[_Watch]:
    """Records the requested values of forward passes inside the block."""
    watch = _Watch()
    handles = []
    for module in model.modules():
        if isinstance(module, InteractionLevel):
            handles.append(module.register_forward_hook(_unfused))
        elif isinstance(module, TaskInteraction):
            handles.append(module.register_forward_hook(watch.see_interaction))
    if features and (layer := model.last_layer) is not None:
        handles.append(layer.register_forward_pre_hook(watch.see_features))
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


# --- running ----------------------------------------------------------------------------------------------------------


def predict_records(
    run: SavedRun,
    records: Sequence[Record] | Sequence[Exam],
    *,
    batch_size: int | None = None,
    features: bool = False,
    tolerance: float = TOLERANCE,
    sliding_window: bool = False,
    tta: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Runs a network over records.

    Args:
        run: a run from `mtlkit.training.load_run`.
        records: records of a catalogue.
        batch_size: batch size; by default that of the run's own evaluation.
        features: whether to keep the input of the classifier's last layer.
        tolerance: tolerance of the surface Dice, in pixels and in mm.
        sliding_window: as for `mtlkit.inference.predict`; masks are resized to the network's input size for evaluation.
        tta: as for `mtlkit.inference.predict`. Displacement and features are those of the original image.
        progress: called with the number of processed records and the total.

    Raises:
        ValueError: there is no record, the tolerance is negative, or windows are requested for a network without masks.
        DataError: an image cannot be read.
        FloatingPointError: the network's output is NaN or infinite.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mtlkit.data import open_dataset, synthesize_ultrasound
        >>> from mtlkit.evaluation import predict_records
        >>> from mtlkit.models import create_model
        >>> from mtlkit.training import SavedRun, load_config
        >>> model = create_model("unet", encoder="resnet18", dim=4).eval()
        >>> config = load_config("demo").change({"data": {"size": 32}})
        >>> classes = ("benign", "malignant", "normal")
        >>> run = SavedRun(Path("."), config, model, classes, (), None, {}, Path("."), {})  # as load_run gives it
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     synthesize_ultrasound(f"{folder}/busi", cases=6, size=64)
        ...     found = predict_records(run, open_dataset(f"{folder}/busi").records)
        >>> found.probabilities["class"].shape, found.mask(0).shape
        ((6, 3), (32, 32))
    """
    if sliding_window:
        check_windows(run.folder, tuple(run.task.inputs))
    parts: dict[str, list[Tensor]] = {}
    done, passes, seconds = 0, 0, 0.0
    with watched(run.model, features=features) as watch:
        for batch in run.loader(records, batch_size):
            start = time.perf_counter()
            found, (levels, seen) = _answer(run, batch, watch, tta=tta)
            windows = [0] * len(batch["key"])
            if sliding_window:
                windows = _blend(run, records[done : done + len(windows)], found["mask"], watch, tta=tta)
            seconds += time.perf_counter() - start
            passes += sum(1 + count for count in windows) * (len(_flips(run)) if tta else 1)
            for task in run.tasks:
                if not found[task].isfinite().all():
                    keys = ", ".join(batch["key"][:3])
                    words = f"the network's output for the images {keys} is NaN or infinite"
                    raise FloatingPointError(f"{run.folder}: {words}")
            values = {task: found[task] for task in run.tasks}
            values |= {f"label {task}": batch[HEADS[task].item] for task in run.tasks}
            values |= {"displacement": levels, "features": seen}
            values |= {name: found.get(name) for name in INSIDE}
            values |= {f"entropy {what}": value for what, value in entropies(found, list(run.tasks)).items()}
            if "mask" in found:
                values |= _judge_masks(found["mask"], batch, tolerance)
            for name, value in values.items():
                if value is not None:
                    parts.setdefault(name, []).append(value)
            done += len(batch["key"])
            if progress is not None:
                progress(done, len(records))
    whole = {name: torch.cat(values).numpy() for name, values in parts.items()}
    cost = {"passes": passes / done, "seconds": seconds / done} if sliding_window or tta else {}
    return replace(_as_rows(run, tuple(records), whole), cost=cost)


def _flips(run: SavedRun) -> Any:
    return EXAM_FLIPS if run.task.record is Exam else IMAGE_FLIPS


def _answer(run: SavedRun, batch: Mapping[str, Any], watch: _Watch, *, tta: bool) -> tuple[dict[str, Tensor], Any]:
    """The network's predictions for a batch, and the recorded values for the original images."""
    seen = []

    def network(inputs: Mapping[str, Any]) -> dict[str, Any]:
        found = run.predict({name: torch.as_tensor(value) for name, value in inputs.items()}, inspect=True)
        seen.append(watch.take())
        return {name: value.numpy() for name, value in found.items()}

    inputs = {item: batch[item].numpy() for item in run.task.inputs.values()}
    found = flip_average(network, inputs, _flips(run) if tta else ((),))
    return {name: torch.from_numpy(value) for name, value in found.items()}, seen[0]


def _blend(run: SavedRun, records: Sequence[Any], masks: Tensor, watch: _Watch, *, tta: bool) -> list[int]:
    """The number of windows of each image; the masks (B, 1, H, W) of images with windows are replaced."""
    data, counts = run.config.data, []
    mean, std = (MEAN, STD) if data.normalize else (None, None)

    def draw(images: np.ndarray) -> np.ndarray:
        return _answer(run, {"image": torch.from_numpy(images)}, watch, tta=tta)[0]["mask"].numpy()

    for record, mask in zip(records, masks, strict=True):
        pixels = load_image(record.image, record.frame, data.max_pixels).pixels
        counts.append(count_windows(pixels.shape, data.size))
        if counts[-1]:
            large = slide(
                draw, pixels, data.size, mean=mean, std=std, batch_size=data.eval_batch_size or data.batch_size
            )
            mask[0] = torch.from_numpy(resize_map(large, data.size, data.size).copy())
    return counts


def _judge_masks(probabilities: Tensor, batch: Mapping[str, Any], tolerance: float) -> dict[str, Tensor]:
    """Scores and lesion fractions, (B,) each, and the predicted masks, packed, (B, bytes)."""
    masks, known, nan = batch["mask"], batch["segmented"], torch.tensor(float("nan"))
    predicted = (probabilities >= 0.5).flatten(1)  # (B, H W)
    scores = segmentation_scores(probabilities, masks)
    values = {name: torch.where(known, scores[name], nan) for name in SCORES}
    for unit, spacing in (("", None), ("_mm", batch["spacing"])):
        found = boundary_scores(probabilities, masks, spacing=spacing, tolerance=tolerance)
        values |= {name + unit: torch.where(known, found[name], nan) for name in DISTANCES}
    values["lesion"] = torch.where(known, masks.flatten(1).mean(1), nan)
    values["predicted_lesion"] = predicted.float().mean(1)
    values["masks"] = torch.from_numpy(np.packbits(predicted.numpy(), axis=1))
    return values


def _as_rows(run: SavedRun, records: tuple[Any, ...], whole: dict[str, NDArray[Any]]) -> Predictions:
    """One row per image, or one row per breast with a view."""
    pick = rows_of(run, records)
    index, side = pick if isinstance(pick, tuple) else (pick, None)
    wide = {name: value[index].astype(np.float64) for name, value in whole.items() if name != "masks"}
    in_mm = [f"{name}_mm" for name in DISTANCES if not np.isnan(wide.get("surface_dice_mm", math.nan)).all()]
    return Predictions(
        run=run,
        records=tuple(records[i] for i in index),
        sides=() if side is None else tuple(SIDES[i] for i in side),
        labels={task: whole[f"label {task}"][pick] for task in run.tasks},
        probabilities={task: whole[task][pick].astype(np.float64) for task in run.tasks},
        scores={name: wide[name] for name in (*SCORES, *DISTANCES, *in_mm) if name in wide},
        lesion=wide.get("lesion"),
        predicted_lesion=wide.get("predicted_lesion"),
        masks=tuple(whole.get("masks", ())),
        **{name: wide[name].reshape(len(index), -1) for name in INSIDE if name in wide},
        **{f"{name[:-1]}_names": getattr(run.model, f"{name[:-1]}_names") for name in INSIDE if name in wide},
        displacement=wide.get("displacement"),
        levels=run.model.interaction_levels if "displacement" in wide else (),
        features=wide.get("features"),
        positive=run.config.data.positive_index,
        uncertainty={
            ENTROPY: {
                what: whole[f"entropy {what}"][index if what == "mask" else pick].astype(np.float64)
                for what in (*run.tasks, *(["mask"] if "masks" in whole else []))
            }
        },
    )


def rows_of(run: SavedRun, records: Sequence[Any]) -> Any:
    """The indices of the rows in results by record: one per image, or one per breast with a view."""
    if run.task.record is not Exam:
        return np.arange(len(records))
    seen = np.array([[any(r.views[:2]), any(r.views[2:])] for r in records])  # (exams, 2)
    return seen.nonzero()
