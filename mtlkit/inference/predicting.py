"""From images to a folder of predictions.

    predictions.csv          a row for each image, frame or exam
    masks/ overlays/         PNG, in the sizes of the images, where the network draws masks or was given them
    dicom/seg/ dicom/sr/     Segmentations and measurement reports that refer to images of DICOM, where they are wanted
    predictions.json         which network and options, the rows with all digits, and what was left out; written last

Masks and overlays are written as they come, the table at the end; a prediction that was interrupted is resumed where it
was, and ends with the very same files.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

import mtlkit
from mtlkit._extras import check_installed
from mtlkit._files import csv_text
from mtlkit._output import OutputFolder, resumable_folder
from mtlkit.data import VIEWS, Exam, Record, read_mask
from mtlkit.data.files import check_folder
from mtlkit.data.items import read_lesion, read_views, stack_views, to_range
from mtlkit.data.pixels import Loaded
from mtlkit.data.resizing import resize_map
from mtlkit.errors import DataError, MasksNeededError
from mtlkit.inference.dicom_out import DicomWriter, check_dicom, remarks_on
from mtlkit.inference.drawing import draw_overlay
from mtlkit.inference.inputs import KIND, MARK, Problems, check_exists, find_exams, find_images
from mtlkit.inference.networks import OpenNetwork, check_network, engine_of, open_network
from mtlkit.inference.progress import Progress, digest_of_records, saved_prediction

if TYPE_CHECKING:
    import torch

    from mtlkit.training import SavedRun

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


class _Item(NamedTuple):
    """What a network takes of a record, without the dimension of the batch, or why it cannot be read."""

    index: int
    arrays: dict[str, np.ndarray]
    image: Loaded | None = None  # in its own size
    error: DataError | None = None


def predict(
    run: "OpenNetwork | SavedRun | str | Path",
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    masks: str | Path | None = None,
    batch_size: int | None = None,
    engine: str | None = None,
    device: "torch.device | str | None" = None,
    resume: bool = False,
    force: bool = False,
    skip_bad: bool = False,
    max_pixels: int | None = None,
    calibrate: bool = True,
    dicom_seg: bool = False,
    dicom_sr: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Predicted:
    """Runs a trained network over images, and writes what it says.

    Images are read and prepared as in training. A mask is brought back to the size of its image, and its area is told
    in pixels, and in mm² where a DICOM file says how large these are. Each frame of a DICOM file is an image.

    Args:
        run: the folder of a run, or of several (folds or seeds), whose mean it is then, what
            `mtlkit.training.load_run` made of one, a file that `mtlkit export` wrote, or
            what `open_network` made of any of them.
        inputs: images (PNG, JPEG, BMP, TIFF, DICOM), and folders of them; for a network of four-view mammograms folders
            with the views of an exam, or folders of such folders.
        out: a new folder.
        masks: a folder of masks by the names of the images, for networks that look at a known lesion (csa_moe).
        batch_size: images at once; by default as in training. Only MBDI's gates, as published, look at the others of a
            batch.
        engine: "torch" for a run or "onnxruntime" for a file, where it is to be said; it follows from `run`.
        device: where PyTorch runs the network; by default where it is, on the CPU if it was not loaded yet.
        resume: goes on with a prediction that was interrupted, of the same network, inputs and options; one that has
            ended is left as it is.
        force: begins again where there is a prediction already, whose files stay until the new one has ended.
        skip_bad: leaves out what cannot be used, instead of raising.
        max_pixels: the most that a frame may have; by default as in the run's recipe.
        calibrate: divides logits by the temperatures that were fitted after training; False leaves them as they are.
        dicom_seg: writes a DICOM Segmentation for each image or frame of DICOM, too (extra `dicom`).
        dicom_sr: writes a DICOM report (TID 1500) for each, too: area, longest diameter, class and probabilities.
        progress: told how many of how many images are done.

    Raises:
        DataError: there is no such file, one cannot be read, nothing is left to predict, the folder may not be written,
            or it holds a prediction of something else than what is to be resumed.
        ValueError: `batch_size` is below 1, `resume` and `force` are both given, or `engine` or `device` is none for
            this network.
        FloatingPointError: the network's answer is no number.

    Example:
        >>> from mtlkit.inference import predict
        >>> predict("/no/such/run", "scans", "found")
        Traceback (most recent call last):
        mtlkit.errors.DataError: /no/such/run: there is no such folder
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    if dicom_seg or dicom_sr:
        check_installed("writing DICOM", "dicom")
    engine_of(run, engine)
    check_network(run, device)
    paths = [Path(path) for path in ([inputs] if isinstance(inputs, str | Path) else inputs)]
    masks = None if masks is None else Path(masks)
    for path in paths:
        check_exists(path)
    if masks is not None:
        check_folder(masks)
    network = open_network(run, device=device)  # before anything is told about the folder to write
    network = network if calibrate else network.uncalibrated()
    facts, problems = network.facts, Problems(skip=skip_bad)
    max_pixels = max_pixels or facts.max_pixels
    batch_size = batch_size or facts.batch_size
    with resumable_folder(out, KIND, resume=resume, force=force, resumes_at="the next image") as place:
        place.check_inputs(network.source, masks, *paths)
        records, remarks = _find(network, paths, masks, problems)
        remarks = [*network.remarks, *remarks]
        if dicom_seg or dicom_sr:
            check_dicom(network, records, seg=dicom_seg, sr=dicom_sr)
        about = {
            "mtlkit": mtlkit.__version__,
            "run": str(network.source.resolve()),
            "network": facts.network,
            "weights": network.weights,
            "engine": network.engine,
            "device": network.device,
            "calibrated": calibrate,
            "classes": {task: list(names) for task, names in facts.classes.items()},
            "inputs": [str(path.resolve()) for path in paths],
            "masks": None if masks is None else str(masks.resolve()),
            "batch_size": batch_size,
            "max_pixels": max_pixels,
            "dicom_seg": dicom_seg,
            "dicom_sr": dicom_sr,
            "images": len(records),
            "records": digest_of_records(records),
        }
        if (ended := saved_prediction(place, about)) is not None:
            return Predicted(*ended)
        found = Progress(place, about, records, batch_size)
        dicom = DicomWriter(network, found.started, dicom_seg, dicom_sr) if dicom_seg or dicom_sr else None
        rows = _run(network, records, found, problems, max_pixels, dicom, progress) if records else []
        if not rows:
            where = ", ".join(map(str, paths))
            raise DataError(f"{where}: there is nothing that can be predicted; {problems.found[0]}")
        remarks += remarks_on(rows)
        cells = [{name: _cell(value) for name, value in row.items()} for row in rows]
        place.write_text("predictions.csv", csv_text(cells))
        values = {"predicted": len(rows), "skipped": problems.found, "remarks": remarks, "rows": rows}
        place.write_json(MARK, about | values)
        found.end()
    return Predicted(rows, problems.found, remarks)


def _find(
    network: OpenNetwork, paths: Sequence[Path], masks: Path | None, problems: Problems
) -> tuple[list[Record] | list[Exam], list[str]]:
    """The records of what is named, for the network's kind of input."""
    if not paths:
        raise DataError("inputs: expected at least one image or folder, got none")
    facts = network.facts
    if masks is not None and "masks" not in facts.inputs:
        raise DataError(f"{masks}: the network of {network.source} takes no masks")
    if facts.takes_exams:
        return find_exams(paths, problems)
    if facts.needs_masks and masks is None:
        raise MasksNeededError(f"{network.source}: this network looks at a known lesion: a folder of masks is needed")
    return find_images(paths, masks, problems, masks_needed=facts.needs_masks)


def _read(network: OpenNetwork, records: Sequence[Record] | Sequence[Exam], index: int, max_pixels: int) -> _Item:
    """A record as the network takes it."""
    facts, record = network.facts, records[index]
    try:
        if isinstance(record, Exam):
            views = read_views(record, facts.size, max_pixels=max_pixels)
            return _Item(index, dict(zip(("views", "present"), stack_views(views, facts.mean, facts.std), strict=True)))
        image, mask, loaded = read_lesion(record, facts.size, max_pixels=max_pixels)
    except DataError as error:
        return _Item(index, {}, error=error)
    arrays = {"images": to_range(image, facts.mean, facts.std), "masks": mask.astype(np.float32)}
    return _Item(index, {name: arrays[name] for name in facts.inputs}, loaded)


def _read_ahead(read: Callable[[int], _Item], batches: Sequence[Sequence[int]], workers: int) -> Iterator[list[_Item]]:
    """The items of each batch; with workers, those of the next one are read meanwhile."""
    if not workers:
        yield from ([read(index) for index in batch] for batch in batches)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        waiting: deque[list[Future[_Item]]] = deque()
        for batch in batches:
            waiting.append([pool.submit(read, index) for index in batch])
            if len(waiting) > 1:
                yield [future.result() for future in waiting.popleft()]
        for futures in waiting:
            yield [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)


def _run(
    network: OpenNetwork,
    records: Sequence[Record] | Sequence[Exam],
    found: Progress,
    problems: Problems,
    max_pixels: int,
    dicom: DicomWriter | None,
    progress: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    """The rows; each is written, with its mask and overlay, as soon as it is known."""
    workers = network.facts.workers if len(records) > 2 * found.batch_size else 0
    batches = found.left()
    done = len(records) - sum(map(len, batches))
    for batch in _read_ahead(lambda index: _read(network, records, index, max_pixels), batches, workers):
        done += len(batch)
        for item in batch:
            if item.error is not None:
                problems.check(item.error)
                found.add_problem(item.index, str(item.error))
        good = [item for item in batch if item.error is None]
        if good:
            answers = network({name: np.stack([item.arrays[name] for item in good]) for name in good[0].arrays})
            for i, (index, _, image, _) in enumerate(good):
                one = {name: value[i] for name, value in answers.items()}
                if not all(np.isfinite(value).all() for value in one.values()):
                    words = f"the network's answer to {records[index].key} is no number"
                    raise FloatingPointError(f"{network.source}: {words}")
                if index not in found.rows:
                    row = _row(network, records[index], index, one, image, found.place, max_pixels, dicom)
                    found.add_row(index, row)
        if progress is not None:
            progress(done, len(records))
    problems.found += [found.problems[index] for index in sorted(found.problems)]
    return [found.rows[index] for index in sorted(found.rows)]


# --- rows -------------------------------------------------------------------------------------------------------------


def _row(
    network: OpenNetwork,
    record: Record | Exam,
    index: int,
    found: Mapping[str, np.ndarray],
    image: Loaded | None,
    draft: OutputFolder,
    max_pixels: int,
    dicom: DicomWriter | None,
) -> dict[str, Any]:
    """The row of an image or exam; its mask and overlay are written."""
    row: dict[str, Any] = {"key": record.key}
    if isinstance(record, Exam):
        row |= {name: str(path or "") for name, path in zip(VIEWS, record.views, strict=True)}
        for side, name in enumerate(SIDES):
            seen = any(record.views[2 * side : 2 * side + 2])
            for task, classes in network.facts.classes.items():
                row |= _classes(f"{name}_{task}", classes, found[task][side], seen=seen)
    else:
        assert image is not None  # with a record comes its image
        row |= {"image": str(record.image), "frame": "" if record.frame is None else record.frame + 1}
        for task, classes in network.facts.classes.items():
            row |= _classes(task, classes, found[task])
        mask = _drawn(found, image)
        row |= _lesion(record, mask, image, draft, max_pixels)
        if dicom is not None:
            classes = {task: found[task] for task in network.facts.classes}
            row |= dicom.write(draft, record, index, mask, image.spacing, classes)
    if "gates" in found:
        gates = found["gates"].flatten().tolist()
        row |= {f"gate_{name}": gate for name, gate in zip(network.facts.gates, gates, strict=True)}
    return row


def _classes(task: str, names: Sequence[str], probabilities: np.ndarray, *, seen: bool = True) -> dict[str, Any]:
    """The likeliest class and the probability of each; empty for a breast of which there is no view."""
    best = names[int(probabilities.argmax())]
    values = {f"{task}_predicted": best if seen else ""}
    return values | {
        f"{task}_p_{name}": p if seen else "" for name, p in zip(names, probabilities.tolist(), strict=True)
    }


def _drawn(found: Mapping[str, np.ndarray], image: Loaded) -> np.ndarray | None:
    """The mask that the network drew, in the size of the image."""
    return resize_map(found["mask"][0], *image.pixels.shape[:2]) >= THRESHOLD if "mask" in found else None


def _lesion(
    record: Record, drawn: np.ndarray | None, image: Loaded, draft: OutputFolder, max_pixels: int
) -> dict[str, Any]:
    """Area and files of the mask that the network drew, or of the one that it was given."""
    if drawn is not None:
        mask = drawn
    elif record.masks:
        mask = read_mask(record.masks, image.pixels.shape[:2], max_pixels=max_pixels).astype(bool)
    else:
        return {}
    row = {"area_pixels": int(mask.sum()), "area_mm2": ""}
    if image.spacing is not None:
        row["area_mm2"] = row["area_pixels"] * image.spacing[0] * image.spacing[1]
    drawings = {"overlay": draw_overlay(image.pixels, mask)}
    if drawn is not None:
        drawings = {"mask": mask.astype(np.uint8) * 255} | drawings
    for what, pixels in drawings.items():
        name = f"{what}s/{record.key}.png"
        with draft.file(name) as file:
            Image.fromarray(pixels).save(file)
        row[what] = name
    return row


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
