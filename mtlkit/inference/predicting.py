"""Predicts images and writes a folder of predictions.

    predictions.csv          a row for each image, frame or exam
    masks/ overlays/         PNG in the size of the image, if the network predicts or takes masks
    dicom/seg/ dicom/sr/     Segmentations and measurement reports for DICOM images, on request
    predictions.json         network, options, rows with all digits, and skipped images; written last

Masks and overlays are written one by one, the table at the end. An interrupted prediction can be resumed, and then
gives the same files. On a Ray cluster, workers read, predict and draw one batch at a time, and the main process writes
the files.
"""

import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Container, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

import mtlkit
from mtlkit._extras import check_installed
from mtlkit._files import csv_text
from mtlkit._jobs import Cluster, Here, Job, open_runner
from mtlkit._output import Files, OutputFolder, resumable_folder
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
from mtlkit.inference.passes import Ways, check_windows
from mtlkit.inference.progress import Progress, digest_of_records, saved_prediction

if TYPE_CHECKING:
    import torch

    from mtlkit.training import SavedRun

__all__ = ["Predicted", "predict"]

THRESHOLD = 0.5  # pixels with at least this probability belong to the mask, as in the metrics of training
SIDES = ("left", "right")


class Predicted(NamedTuple):
    """The result of `predict`.

    Example:
        >>> from mtlkit.inference import Predicted
        >>> Predicted([{"key": "scan 1", "class_predicted": "benign"}], [], []).rows[0]["key"]
        'scan 1'
    """

    rows: list[dict[str, Any]]  # of predictions.csv
    skipped: list[str]  # reasons why images were left out
    remarks: list[str]  # for example, on missing views


class _Item(NamedTuple):
    """The inputs of a network for one record, without batch dimension, or why the record cannot be read."""

    index: int
    arrays: dict[str, np.ndarray]
    image: Loaded | None = None  # in its original size
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
    sliding_window: bool = False,
    tta: bool = False,
    ray: str | None = None,
    ray_cpus: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Predicted:
    """Runs a trained network on images, and writes the predictions to a folder.

    Images are read and prepared as in training. Masks are resized to the size of the image, and their area is given in
    pixels, and in mm² if a DICOM file has the pixel size. Each frame of a DICOM file is an image.

    Args:
        run: the folder of a run, or of several runs (folds or seeds) to average, a run from `mtlkit.training.load_run`,
            a file from `mtlkit export`, or a network from `open_network`.
        inputs: images (PNG, JPEG, BMP, TIFF, DICOM) and folders of images; for a network of four-view mammograms
            folders with the views of an exam, or folders of such folders.
        out: folder to write; it must be new.
        masks: folder of masks with the names of the images, for networks that need the lesion's mask (csa_moe).
        batch_size: images per batch; by default as in training. Only the gates of MBDI, as published, depend on the
            other images of a batch.
        engine: "torch" for a run or "onnxruntime" for a file; by default chosen by `run`.
        device: device for PyTorch; by default the run's current device, or the CPU if it was not loaded yet.
        resume: whether to continue an interrupted prediction with the same network, inputs and options; a finished one
            is not changed.
        force: whether to start again if there is a prediction already; its files stay until the new one has finished.
        skip_bad: whether to leave out unusable images instead of raising an error.
        max_pixels: maximal number of pixels in a frame; by default as in the run's recipe.
        calibrate: whether to divide logits by the temperatures that were fitted after training.
        dicom_seg: whether to also write a DICOM Segmentation for each DICOM image or frame (extra `dicom`).
        dicom_sr: whether to also write a DICOM report (TID 1500) for each: area, longest diameter, class and
            probabilities.
        sliding_window: whether to predict masks of images larger than in training from overlapping windows at full
            resolution (`slide`). The network then sees magnified images compared with training; class and gates are
            still computed from the complete image.
        tta: whether to average predictions over the image and its mirror images (`flip_average`): 4 passes, and 2 for
            exams, which are not flipped vertically. With either option each row has "passes" and "seconds".
        ray: address of a Ray cluster for the batches: "auto" for the cluster of this machine, "local" to start one
            here, "host:port" or "ray://host:port". For runs, each worker has a GPU if the cluster has any and `device`
            is not "cpu".
        ray_cpus: CPUs and PyTorch threads of each worker of a cluster.
        progress: called with the number of processed images and the total.

    Raises:
        DataError: a file is missing or unreadable, nothing is left to predict, the folder cannot be written, or it
            contains another prediction than the one to resume.
        ValueError: `batch_size` is below 1, `resume` and `force` are both given, `engine` or `device` does not fit the
            network, the network predicts no masks for `sliding_window`, or there is no such cluster.
        FloatingPointError: the network's output is NaN or infinite.

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
    if ray is not None and not isinstance(run, str | Path):
        raise ValueError("run: expected a folder or file with a cluster, whose workers open it, got an open network")
    if ray is not None and str(device) not in ("None", "cpu", "cuda"):
        raise ValueError(f"device: expected cpu, cuda or None with a cluster, got {str(device)!r}")
    paths = [Path(path) for path in ([inputs] if isinstance(inputs, str | Path) else inputs)]
    masks = None if masks is None else Path(masks)
    for path in paths:
        check_exists(path)
    if masks is not None:
        check_folder(masks)
    network = open_network(run, device=device if ray is None else None)  # its errors come before those about the folder
    network = network if calibrate else network.uncalibrated()
    facts, problems = network.facts, Problems(skip=skip_bad)
    if sliding_window:
        check_windows(network.source, facts.inputs)
    max_pixels = max_pixels or facts.max_pixels
    batch_size = batch_size or facts.batch_size
    with (
        open_runner(ray, ray_cpus, gpu=network.engine == "torch" and str(device) != "cpu") as where,
        resumable_folder(out, KIND, resume=resume, force=force, resumes_at="the next image") as place,
    ):
        place.check_inputs(network.source, masks, *paths)
        where.check_shared(None, network.source, masks, *paths)
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
            "device": "cuda" if where.gpu else network.device,
            "calibrated": calibrate,
            "classes": {task: list(names) for task, names in facts.classes.items()},
            "inputs": [str(path.resolve()) for path in paths],
            "masks": None if masks is None else str(masks.resolve()),
            "batch_size": batch_size,
            "max_pixels": max_pixels,
            "dicom_seg": dicom_seg,
            "dicom_sr": dicom_sr,
            "sliding_window": sliding_window,
            "tta": tta,
            "images": len(records),
            "records": digest_of_records(records),
        }
        if (ended := saved_prediction(place, about)) is not None:
            return Predicted(*ended)
        found = Progress(place, about, records, batch_size)
        dicom = DicomWriter(network, found.started, dicom_seg, dicom_sr) if dicom_seg or dicom_sr else None
        ways = Ways(sliding_window, tta, batch_size)
        work = _Work(network, max_pixels, dicom, calibrate, ways)
        rows = _run(work, where, records, found, problems, progress) if records else []
        if not rows:
            where = ", ".join(map(str, paths))
            raise DataError(f"{where}: no input can be used; {problems.found[0]}")
        remarks += [*remarks_on(rows), *ways.remarks(rows)]
        cells = [{name: _cell(value) for name, value in row.items()} for row in rows]
        place.write_text("predictions.csv", csv_text(cells))
        values = {"predicted": len(rows), "skipped": problems.found, "remarks": remarks, "rows": rows}
        place.write_json(MARK, about | values)
        found.end()
    return Predicted(rows, problems.found, remarks)


def _find(
    network: OpenNetwork, paths: Sequence[Path], masks: Path | None, problems: Problems
) -> tuple[list[Record] | list[Exam], list[str]]:
    """Returns the records or exams in the given paths, and remarks."""
    if not paths:
        raise DataError("inputs: expected at least one image or folder, got none")
    facts = network.facts
    if masks is not None and "masks" not in facts.inputs:
        raise DataError(f"{masks}: the network of {network.source} does not take masks")
    if facts.takes_exams:
        return find_exams(paths, problems)
    if facts.needs_masks and masks is None:
        raise MasksNeededError(f"{network.source}: this network needs a folder with masks of the lesions")
    return find_images(paths, masks, problems, masks_needed=facts.needs_masks)


def _read_ahead(read: Callable[[int], _Item], batches: Sequence[Sequence[int]], workers: int) -> Iterator[list[_Item]]:
    """Yields the items of each batch; with workers, reads the next batch in the background."""
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
    work: "_Work",
    where: Here | Cluster,
    records: Sequence[Record] | Sequence[Exam],
    found: Progress,
    problems: Problems,
    progress: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    """Returns all rows; each is saved, with its mask and overlay, as soon as it is computed."""
    batches = found.left()
    done = len(records) - sum(map(len, batches))
    here = isinstance(where, Here)
    found_by = _here(work, records, batches, found) if here else _on_cluster(where, work, records, batches, found)
    with closing(found_by) as answers:
        for batch, answer in zip(batches, answers, strict=True):
            for index, row in answer:
                if isinstance(row, DataError):
                    problems.check(row)
                    found.add_problem(index, str(row))
                elif index not in found.rows:
                    found.add_row(index, row)
            done += len(batch)
            if progress is not None:
                progress(done, len(records))
    problems.found += [found.problems[index] for index in sorted(found.problems)]
    return [found.rows[index] for index in sorted(found.rows)]


Answer = Iterator[tuple[int, dict[str, Any] | DataError]]  # for a batch: index and row, or why there is no row


def _here(
    work: "_Work",
    records: Sequence[Record] | Sequence[Exam],
    batches: Sequence[Sequence[int]],
    found: Progress,
) -> Generator[Answer, None, None]:
    """Yields the answer for each batch, computed in this process."""
    workers = work.network.facts.workers if len(records) > 2 * found.batch_size else 0
    for items in _read_ahead(lambda index: work.read(records[index], index), batches, workers):
        yield work.answer({item.index: records[item.index] for item in items}, items, found.place, found.rows)


def _on_cluster(
    where: Cluster,
    work: "_Work",
    records: Sequence[Record] | Sequence[Exam],
    batches: Sequence[Sequence[int]],
    found: Progress,
) -> Generator[Answer, None, None]:
    """Yields the same, computed by workers of a cluster."""
    network, dicom = work.network, work.dicom
    opened = (str(network.source), "cuda" if where.gpu else None, work.calibrated)
    drawn = None if dicom is None else (dicom.started, dicom.seg, dicom.sr)
    jobs = []
    for batch in batches:
        those = {index: records[index] for index in batch}
        known = [index for index in batch if index in found.rows]
        name = f"predicting {records[batch[0]].key}" + (f" to {records[batch[-1]].key}" if len(batch) > 1 else "")
        jobs.append(Job(name, _answer_there, (opened, work.max_pixels, drawn, work.ways, those, known)))
    with where.results(jobs, few=True, reuse=True) as results:
        for result in results:
            yield _unpacked(result, found.place)


class _Parcel:
    """Collects files in memory instead of a folder, so that another process can write them."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """Gives a path to write to, see `OutputFolder.file`."""
        with TemporaryDirectory() as folder:
            path = Path(folder, Path(name).name)
            yield path
            self.files[name] = path.read_bytes()


def _answer_there(
    opened: tuple[str, str | None, bool],
    max_pixels: int,
    drawn: tuple[str, bool, bool] | None,
    ways: Ways,
    records: Mapping[int, Record | Exam],
    known: Sequence[int],
) -> list[tuple[int, dict[str, Any] | DataError, dict[str, bytes]]]:
    """Runs in a worker; returns index, row or error, and files of each record of a batch."""
    run, device, calibrated = opened
    network = _opened(run, device, calibrated=calibrated)
    work = _Work(network, max_pixels, None if drawn is None else DicomWriter(network, *drawn), calibrated, ways)
    items = [work.read(record, index) for index, record in records.items()]
    answer, parcel = [], _Parcel()
    for index, row in work.answer(records, items, parcel, known):
        answer.append((index, row, parcel.files))
        parcel.files = {}
    return answer


@lru_cache(maxsize=1)
def _opened(run: str, device: str | None, *, calibrated: bool) -> OpenNetwork:
    """Returns the network, which a worker keeps for all of its batches."""
    network = open_network(run, device=device, threads=int(os.environ["OMP_NUM_THREADS"]))
    return network if calibrated else network.uncalibrated()


def _unpacked(answer: Sequence[tuple[int, Any, Mapping[str, bytes]]], place: OutputFolder) -> Answer:
    for index, row, files in answer:
        for name, content in files.items():
            with place.file(name) as file:
                file.write_bytes(content)
        yield index, row


# --- rows -------------------------------------------------------------------------------------------------------------


class _Work(NamedTuple):
    """What to do with each batch."""

    network: OpenNetwork
    max_pixels: int
    dicom: DicomWriter | None
    calibrated: bool
    ways: Ways

    def read(self, record: Record | Exam, index: int) -> _Item:
        """Reads a record in the form that the network takes."""
        facts, max_pixels = self.network.facts, self.max_pixels
        try:
            if isinstance(record, Exam):
                views = stack_views(read_views(record, facts.size, max_pixels=max_pixels), facts.mean, facts.std)
                return _Item(index, dict(zip(("views", "present"), views, strict=True)))
            image, mask, loaded = read_lesion(record, facts.size, max_pixels=max_pixels)
        except DataError as error:
            return _Item(index, {}, error=error)
        arrays = {"images": to_range(image, facts.mean, facts.std), "masks": mask.astype(np.float32)}
        return _Item(index, {name: arrays[name] for name in facts.inputs}, loaded)

    def answer(
        self,
        records: Mapping[int, Record | Exam],
        items: Sequence[_Item],
        place: Files,
        known: Container[int],
    ) -> Answer:
        """Yields the missing rows of a batch, or why there is no row.

        Args:
            records: the batch, by index.
            items: the inputs that were read for these records.
            place: folder for masks, overlays and DICOM objects.
            known: indices of records that need no row.
        """
        yield from ((item.index, item.error) for item in items if item.error is not None)
        good = [item for item in items if item.error is None]
        if not good:
            return
        start = time.perf_counter()
        stacked = {name: np.stack([item.arrays[name] for item in good]) for name in good[0].arrays}
        answers = self.ways.answer(self.network, stacked)
        each = (time.perf_counter() - start) / len(good)
        for i, (index, _, image, _) in enumerate(good):
            if index in known:
                continue
            one, cost = {name: value[i] for name, value in answers.items()}, dict[str, float]()
            if self.ways.several:
                start = time.perf_counter()
                mask, passes = self.ways.mask(self.network, None if image is None else image.pixels)
                one |= {} if mask is None else {"mask": mask}
                cost = {"passes": passes, "seconds": round(each + time.perf_counter() - start, 4)}
            if not all(np.isfinite(value).all() for value in one.values()):
                words = f"the network's output for {records[index].key} is NaN or infinite"
                raise FloatingPointError(f"{self.network.source}: {words}")
            row = _row(self.network, records[index], index, one, image, place, self.max_pixels, self.dicom)
            yield index, row | cost


def _row(
    network: OpenNetwork,
    record: Record | Exam,
    index: int,
    found: Mapping[str, np.ndarray],
    image: Loaded | None,
    draft: Files,
    max_pixels: int,
    dicom: DicomWriter | None,
) -> dict[str, Any]:
    """Writes the mask and overlay of an image or exam, and returns its row."""
    row: dict[str, Any] = {"key": record.key}
    if isinstance(record, Exam):
        row |= {name: str(path or "") for name, path in zip(VIEWS, record.views, strict=True)}
        for side, name in enumerate(SIDES):
            seen = any(record.views[2 * side : 2 * side + 2])
            for task, classes in network.facts.classes.items():
                row |= _classes(f"{name}_{task}", classes, found[task][side], seen=seen)
    else:
        assert image is not None  # a Record always has an image
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
    """Returns the most likely class and the probabilities of all; empty cells for a breast without views."""
    best = names[int(probabilities.argmax())]
    values = {f"{task}_predicted": best if seen else ""}
    return values | {
        f"{task}_p_{name}": p if seen else "" for name, p in zip(names, probabilities.tolist(), strict=True)
    }


def _drawn(found: Mapping[str, np.ndarray], image: Loaded) -> np.ndarray | None:
    """Returns the predicted mask in the size of the image."""
    return resize_map(found["mask"][0], *image.pixels.shape[:2]) >= THRESHOLD if "mask" in found else None


def _lesion(record: Record, drawn: np.ndarray | None, image: Loaded, draft: Files, max_pixels: int) -> dict[str, Any]:
    """Writes the predicted or given mask, and returns its area and files."""
    if drawn is not None:
        mask = drawn
    elif record.masks:
        mask = read_mask(record.masks, image.pixels.shape[:2], max_pixels=max_pixels).astype(bool)
    else:
        return {}
    row = {"area_pixels": int(mask.sum()), "area_mm2": ""}
    if image.conflict:
        warnings.warn(f"area_mm2: {record.image}: {image.conflict}", stacklevel=2)
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
