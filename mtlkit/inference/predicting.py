"""From images to a folder of predictions.

    predictions.csv          a row for each image, frame or exam
    masks/ overlays/         PNG, in the sizes of the images, where the network draws masks or was given them
    predictions.json         which network and options, the rows with all digits, and what was left out; written last

Masks and overlays are written as they come, the table at the end; a prediction that was interrupted is resumed where it
was, and ends with the very same files.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms.v2 import functional as TF

import mtlkit
from mtlkit._extras import check_installed
from mtlkit._files import csv_text
from mtlkit._output import OutputFolder, resumable_folder
from mtlkit.data import VIEWS, Exam, LesionDataset, Record, read_mask
from mtlkit.data.files import check_folder
from mtlkit.data.pixels import Loaded
from mtlkit.errors import DataError, MasksNeededError
from mtlkit.inference.drawing import draw_overlay
from mtlkit.inference.inputs import KIND, MARK, Problems, check_exists, find_exams, find_images
from mtlkit.inference.progress import Progress, digest_of_records, digest_of_weights, saved_prediction
from mtlkit.training import SavedRun, load_run
from mtlkit.training.saved_run import read_recipe

__all__ = ["Predicted", "predict"]

THRESHOLD = 0.5  # a pixel of at least so much belongs to the mask, as in the figures of training
SIDES = ("left", "right")


class Predicted(NamedTuple):
    """What `predict` wrote.

    Example:
        >>> from mtlkit.inference import Predicted
        >>> Predicted([{"key": "scan 1", "class_predicted": "benign"}], [], []).rows[0]["key"]
        'scan 1'
    """

    rows: list[dict[str, Any]]  # of predictions.csv
    skipped: list[str]  # why images were left out
    remarks: list[str]  # on what is missing and was done without


class _Readable(Dataset):
    """Items with the image's own pixels, or the error where one cannot be read."""

    def __init__(self, run: SavedRun, records: Sequence[Record] | Sequence[Exam]) -> None:
        self.items, self.records = run.dataset(records), records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[int, dict[str, Any] | DataError, Loaded | None]:
        try:
            if isinstance(self.items, LesionDataset):
                return index, *self.items.with_image(index)
            return index, self.items[index], None
        except DataError as error:
            return index, error, None


def predict(
    run: SavedRun | str | Path,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    masks: str | Path | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    resume: bool = False,
    force: bool = False,
    skip_bad: bool = False,
    max_pixels: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Predicted:
    """Runs a trained network over images, and writes what it says.

    Images are read and prepared as in training. A mask is brought back to the size of its image, and its area is told
    in pixels, and in mm² where a DICOM file says how large these are. Each frame of a DICOM file is an image.

    Args:
        run: the folder of a run, or what `mtlkit.training.load_run` made of one.
        inputs: images (PNG, JPEG, BMP, TIFF, DICOM), and folders of them; for a network of four-view mammograms folders
            with the views of an exam, or folders of such folders.
        out: a new folder.
        masks: a folder of masks by the names of the images, for networks that look at a known lesion (csa_moe).
        batch_size: images at once; by default as in training. Only MBDI's gates, as published, look at the others of a
            batch.
        device: where the network runs; by default where it is, on the CPU if it was not loaded yet.
        resume: goes on with a prediction that was interrupted, of the same network, inputs and options; one that has
            ended is left as it is.
        force: begins again where there is a prediction already, whose files stay until the new one has ended.
        skip_bad: leaves out what cannot be used, instead of raising.
        max_pixels: the most that a frame may have; by default as in the run's recipe.
        progress: told how many of how many images are done.

    Raises:
        DataError: there is no such file, one cannot be read, nothing is left to predict, the folder may not be written,
            or it holds a prediction of something else than what is to be resumed.
        ValueError: `batch_size` is below 1, or `resume` and `force` are both given.
        FloatingPointError: the network's answer is no number.

    Example:
        >>> from mtlkit.inference import predict
        >>> predict("/no/such/run", "scans", "found")
        Traceback (most recent call last):
        mtlkit.errors.DataError: /no/such/run: there is no such folder
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    check_installed("prediction")
    paths = [Path(path) for path in ([inputs] if isinstance(inputs, str | Path) else inputs)]
    masks = None if masks is None else Path(masks)
    if not isinstance(run, SavedRun):
        read_recipe(check_folder(run))  # what is named wrongly is told before anything about the folder to write
    for path in paths:
        check_exists(path)
    if masks is not None:
        check_folder(masks)
    problems = Problems(skip=skip_bad)
    with resumable_folder(out, KIND, resume=resume, force=force, resumes_at="the next image") as place:
        run = (run if isinstance(run, SavedRun) else load_run(run)).adjusted(max_pixels)
        place.check_inputs(run.folder, masks, *paths)
        if device is not None:
            run.model.to(device)
        records, remarks = _find(run, paths, masks, problems)
        d = run.config.data
        batch_size = batch_size or d.eval_batch_size or d.batch_size
        about = {
            "mtlkit": mtlkit.__version__,
            "run": str(run.folder.resolve()),
            "network": run.config.model.name,
            "weights": digest_of_weights(run.model),
            "device": next(run.model.parameters()).device.type,
            "classes": {task: list(names) for task, names in run.tasks.items()},
            "inputs": [str(path.resolve()) for path in paths],
            "masks": None if masks is None else str(masks.resolve()),
            "batch_size": batch_size,
            "max_pixels": d.max_pixels,
            "images": len(records),
            "records": digest_of_records(records),
        }
        if (ended := saved_prediction(place, about)) is not None:
            return Predicted(*ended)
        found = Progress(place, about, records, batch_size)
        rows = _run(run, records, found, problems, progress) if records else []
        if not rows:
            where = ", ".join(map(str, paths))
            raise DataError(f"{where}: there is nothing that can be predicted; {problems.found[0]}")
        cells = [{name: _cell(value) for name, value in row.items()} for row in rows]
        place.write_text("predictions.csv", csv_text(cells))
        values = {"predicted": len(rows), "skipped": problems.found, "remarks": remarks, "rows": rows}
        place.write_json(MARK, about | values)
        found.end()
    return Predicted(rows, problems.found, remarks)


def _find(
    run: SavedRun, paths: Sequence[Path], masks: Path | None, problems: Problems
) -> tuple[list[Record] | list[Exam], list[str]]:
    """The records of what is named, for the network's kind of input."""
    if not paths:
        raise DataError("inputs: expected at least one image or folder, got none")
    task = run.task
    if masks is not None and not task.takes_masks:
        raise DataError(f"{masks}: the network of {run.folder} takes no masks")
    if task.record is Exam:
        return find_exams(paths, problems)
    needed = task.takes_masks and run.model.needs_masks
    if needed and masks is None:
        raise MasksNeededError(f"{run.folder}: this network looks at a known lesion: a folder of masks is needed")
    return find_images(paths, masks, problems, masks_needed=needed)


def _run(
    run: SavedRun,
    records: Sequence[Record] | Sequence[Exam],
    found: Progress,
    problems: Problems,
    progress: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    """The rows; each is written, with its mask and overlay, as soon as it is known."""
    d = run.config.data
    workers = d.workers if len(records) > 2 * found.batch_size else 0
    batches = found.left()
    done = len(records) - sum(map(len, batches))
    for batch in DataLoader(_Readable(run, records), batch_sampler=batches, num_workers=workers, collate_fn=list):
        done += len(batch)
        for index, item, _ in batch:
            if isinstance(item, DataError):
                problems.check(item)
                found.add_problem(index, str(item))
        good = [(index, item, image) for index, item, image in batch if not isinstance(item, DataError)]
        if good:
            answers = run.predict(default_collate([item for _, item, _ in good]))
            for i, (index, _, image) in enumerate(good):
                one = {name: value[i] for name, value in answers.items()}
                if not all(value.isfinite().all() for value in one.values()):
                    raise FloatingPointError(f"{run.folder}: the network's answer to {records[index].key} is no number")
                if index not in found.rows:
                    found.add_row(index, _row(run, records[index], one, image, found.place))
        if progress is not None:
            progress(done, len(records))
    problems.found += [found.problems[index] for index in sorted(found.problems)]
    return [found.rows[index] for index in sorted(found.rows)]


# --- rows -------------------------------------------------------------------------------------------------------------


def _row(
    run: SavedRun, record: Record | Exam, found: Mapping[str, Tensor], image: Loaded | None, draft: OutputFolder
) -> dict[str, Any]:
    """The row of an image or exam; its mask and overlay are written."""
    row: dict[str, Any] = {"key": record.key}
    if isinstance(record, Exam):
        row |= {name: str(path or "") for name, path in zip(VIEWS, record.views, strict=True)}
        for side, name in enumerate(SIDES):
            seen = any(record.views[2 * side : 2 * side + 2])
            for task, classes in run.tasks.items():
                row |= _classes(f"{name}_{task}", classes, found[task][side], seen=seen)
    else:
        assert image is not None  # with a record comes its image
        row |= {"image": str(record.image), "frame": "" if record.frame is None else record.frame + 1}
        for task, classes in run.tasks.items():
            row |= _classes(task, classes, found[task])
        row |= _lesion(record, found.get("mask"), image, draft, run.config.data.max_pixels)
    if "gates" in found:
        gates = found["gates"].flatten().tolist()
        row |= {f"gate_{name}": gate for name, gate in zip(run.model.gate_names, gates, strict=True)}
    return row


def _classes(task: str, names: Sequence[str], probabilities: Tensor, *, seen: bool = True) -> dict[str, Any]:
    """The likeliest class and the probability of each; empty for a breast of which there is no view."""
    best = names[int(probabilities.argmax())]
    values = {f"{task}_predicted": best if seen else ""}
    return values | {
        f"{task}_p_{name}": p if seen else "" for name, p in zip(names, probabilities.tolist(), strict=True)
    }


def _lesion(
    record: Record, found: Tensor | None, image: Loaded, draft: OutputFolder, max_pixels: int
) -> dict[str, Any]:
    """Area and files of the mask that the network drew, or of the one that it was given."""
    height, width = image.pixels.shape[:2]
    if found is not None:
        mask = TF.resize(found, [height, width], antialias=True)[0].numpy() >= THRESHOLD  # (H, W)
    elif record.masks:
        mask = read_mask(record.masks, (height, width), max_pixels=max_pixels).astype(bool)
    else:
        return {}
    row = {"area_pixels": int(mask.sum()), "area_mm2": ""}
    if image.spacing is not None:
        row["area_mm2"] = row["area_pixels"] * image.spacing[0] * image.spacing[1]
    drawings = {"overlay": draw_overlay(image.pixels, mask)}
    if found is not None:
        drawings = {"mask": mask.astype(np.uint8) * 255} | drawings
    for what, drawn in drawings.items():
        name = f"{what}s/{record.key}.png"
        with draft.file(name) as file:
            Image.fromarray(drawn).save(file)
        row[what] = name
    return row


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
