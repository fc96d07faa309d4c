"""What a network says of each image, with what is needed to judge it and to look inside.

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
TOLERANCE = 2.0  # of the surface Dice
INSIDE = ("gates", "signals", "stages")


@dataclass(frozen=True)
class Predictions:
    """What a network says, row by row: an image is a row, and so is each breast of an exam.

    Args:
        run: the network's.
        records: of each row, its image or exam.
        sides: of each row, "left" or "right"; empty for images.
        labels: of each task, (N,), -1 where the class is not known.
        probabilities: of each task, (N, K).
        scores: IoU and so on, (N,) each, NaN where there is no lesion or its mask is not known; empty where the network
            draws no mask. "hd95", "assd" and "surface_dice", of `mtlkit.metrics.boundary_scores`, are in pixels of the
            size that the network sees; where an image says how large its pixels are, "hd95_mm" and so on in mm.
        lesion: share of the pixels that are lesion, (N,), NaN where the mask is not known; and of those so predicted.
        masks: those predicted, packed, for `mask`.
        gates: (N, gates), and their names.
        signals: what the gates come from, (N, signals), and their names.
        stages: weights of the stages of the encoders, (N, stages), and their names.
        displacement: of TIM, seg->clf and clf->seg at each level, (N, levels, 2), and the numbers of the levels.
        features: what the classifier's last layer is given, (N, D), where asked for.
        positive: the class of images that is to be found, where the recipe names one.
        uncertainty: by method, "entropy" among them, and by what it is of, "mask" or a task, (N,).
        seconds: that a method takes for an image, where they were measured.
        cost: with flips or windows, the "passes" of the network and the "seconds" for an image, on average.

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
        """Of each row, what belongs together: its patient, where known."""
        return [record.group for record in self.records]

    @property
    def images(self) -> list[Record]:
        """The records that are images, which are all of them or none."""
        return [record for record in self.records if isinstance(record, Record)]

    @property
    def first_rows(self) -> NDArray[np.int64]:
        """The first row of each image or exam; of exams, features and gates are the same in both rows."""
        return np.sort(np.unique([record.key for record in self.records], return_index=True)[1])

    @property
    def empty(self) -> NDArray[np.bool_]:
        """Which rows have a mask that is known and without lesion."""
        return self.lesion == 0

    def predicted(self, task: str) -> NDArray[np.int64]:
        """The likeliest class of each row."""
        return self.probabilities[task].argmax(1)

    def confidence(self, task: str) -> NDArray[np.float64]:
        """The probability of that class."""
        return self.probabilities[task].max(1)

    def wrong(self, task: str) -> NDArray[np.bool_]:
        """Where that is another class than the true one."""
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
    """How far each of a batch was moved, relative to its length, (B,); NaN for one of length 0."""
    length = before.float().flatten(1).norm(dim=1)
    moved = (after.float() - before.float()).flatten(1).norm(dim=1)
    return torch.where(length > 0, moved / length, float("nan"))


class _Watch:
    """Keeps what TIM moves and what the classifier is given, batch by batch."""

    def __init__(self) -> None:
        self.levels: list[Tensor] = []  # of a batch, (B, 2) each
        self.features: Tensor | None = None

    def see_interaction(self, module: TaskInteraction, given: tuple[Tensor, Tensor], found: Any) -> None:
        """Forward hook of TIM."""
        (seg, clf), values = given, found
        self.levels.append(torch.stack([displacement(clf, values.clf), displacement(seg, values.seg)], 1))

    def see_features(self, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        """Forward hook of the last linear layer, before it."""
        self.features = given[0].float()

    def take(self) -> tuple[Tensor | None, Tensor | None]:
        """Displacements (B, levels, 2) and features (B, D) of the batch that has just gone through."""
        levels = torch.stack(self.levels, 1).cpu() if self.levels else None
        features = None if self.features is None else self.features.cpu()
        self.levels, self.features = [], None
        return levels, features


def _unfused(level: InteractionLevel, given: tuple[Tensor, ...], _: Any) -> None:
    """Forward hook: a level fuses TIM with UPA, so TIM is run by itself too, for its own hook to see."""
    level.tim(*given[:2])


@contextmanager
def watched(model: Network, *, features: bool = False) -> Iterator[_Watch]:
    """Inside, forward passes of the network leave in the watch what was asked for."""
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
    """Runs the network over records.

    Args:
        run: what `mtlkit.training.load_run` opened.
        records: of a catalogue.
        batch_size: default: that of the run's own evaluation.
        features: whether to keep what the classifier's last layer is given.
        tolerance: of the surface Dice, in pixels and in mm.
        sliding_window: as for `mtlkit.inference.predict`; masks are brought back to the size that the network sees, and
            judged there as without.
        tta: as for `mtlkit.inference.predict`. Displacement and features are of the image as it is.
        progress: called with the number of records that are done, and their total.

    Raises:
        ValueError: no record, a tolerance below 0, or windows for a network that draws no masks.
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
    """What the network says of a batch, and what the watch saw of the images as they are."""
    seen = []

    def network(inputs: Mapping[str, Any]) -> dict[str, Any]:
        found = run.predict({name: torch.as_tensor(value) for name, value in inputs.items()}, inspect=True)
        seen.append(watch.take())
        return {name: value.numpy() for name, value in found.items()}

    inputs = {item: batch[item].numpy() for item in run.task.inputs.values()}
    found = flip_average(network, inputs, _flips(run) if tta else ((),))
    return {name: torch.from_numpy(value) for name, value in found.items()}, seen[0]


def _blend(run: SavedRun, records: Sequence[Any], masks: Tensor, watch: _Watch, *, tta: bool) -> list[int]:
    """How many windows there are of each image; the masks (B, 1, H, W) of those that have some are replaced."""
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
    """Scores and shares of the lesion, (B,) each, and the predicted masks, packed, (B, bytes)."""
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
    """One row an image; of exams, one row for each breast of which there is a view."""
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
    """Where rows are found in what was gathered by record: one an image; of exams, each breast with a view."""
    if run.task.record is not Exam:
        return np.arange(len(records))
    seen = np.array([[any(r.views[:2]), any(r.views[2:])] for r in records])  # (exams, 2)
    return seen.nonzero()
