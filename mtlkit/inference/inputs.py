"""What is to be predicted: images and their frames, with masks where a network wants them, and exams of four views."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import NamedTuple

from mtlkit.data import VIEWS, Exam, Record, count_frames, read_dicom_tags
from mtlkit.data.dicom_file import is_dicom
from mtlkit.data.files import PICTURES, check_folder, image_stem, natural
from mtlkit.errors import DataError

MARK = "predictions.json"  # a folder with this file in it is one of predictions

MASK = re.compile(r"_(mask|anno|segmentation|gt)(_\d+)?$", re.IGNORECASE)

SIDES = {"l": "L", "left": "L", "r": "R", "right": "R"}
SIDE, VIEW, GAP = r"(?P<side>left|right|l|r)", r"(?P<view>cc|mlo)", r"[\W_]*"
NAMED = [
    re.compile(rf"(?<![a-z]){first}{GAP}{second}(?![a-z])", re.IGNORECASE)
    for first, second in ((SIDE, VIEW), (VIEW, SIDE))
]


class Problems:
    """What cannot be used: raised at once, or kept to be told.

    Args:
        skip: keeps them.
    """

    def __init__(self, *, skip: bool) -> None:
        self.skip, self.found = skip, list[str]()

    def add(self, error: DataError) -> None:
        """Raises the error, or keeps its words."""
        if not self.skip:
            raise error
        self.found.append(str(error))


class _Found(NamedTuple):
    """An image, and where it lies below what was named."""

    name: PurePath
    path: Path


# --- files ------------------------------------------------------------------------------------------------------------


def is_image(path: Path) -> bool:
    """Whether a file is named as an image, or is DICOM."""
    return path.suffix.lower() in PICTURES or is_dicom(path)


def images_below(folder: Path) -> Iterator[Path]:
    """The image files of a folder and of those in it, in a fixed order; not what a prediction wrote."""
    try:
        content = sorted(folder.iterdir(), key=natural)
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be listed ({error.strerror})") from None
    content = [path for path in content if not path.name.startswith(".")]
    yield from (path for path in content if path.is_file() and is_image(path))
    for path in content:
        if path.is_dir() and not (path / MARK).is_file():
            yield from images_below(path)


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder")


# --- images -----------------------------------------------------------------------------------------------------------


def find_images(
    inputs: Sequence[Path], masks: Path | None, problems: Problems, *, masks_needed: bool
) -> tuple[list[Record], list[str]]:
    """A record for each image, and for each frame of one, and remarks.

    Files that are masks of others beside them, as "a_mask.png" of "a.png", are left out.

    Args:
        inputs: files, and folders of them.
        masks: folder of masks, by the names of the images.
        problems: takes what cannot be used.
        masks_needed: whether an image without mask is a problem.

    Raises:
        DataError: there is no such file or folder, no image in a folder, or two images of one name.
    """
    found: list[_Found] = []
    left_out = 0
    for path in inputs:
        _check_exists(path)
        if path.is_file():
            if not is_image(path):
                raise DataError(f"{path}: is no image; expected PNG, JPEG, BMP, TIFF or DICOM")
            found.append(_Found(PurePath(path.name), path))
            continue
        check_folder(path)
        files = list(images_below(path))
        if not files:
            raise DataError(f"{path}: there is not a single image in it")
        names = {file.with_suffix("") for file in files}
        own = [file for file in files if not _is_mask_of(file, names)]
        left_out += len(files) - len(own)
        found += [_Found(file.relative_to(path), file) for file in own]
    remarks = [f"{left_out} files are masks of images beside them, and were left out"] if left_out else []
    records = list(_records(found, problems))
    if masks is not None:
        records = list(_with_masks(records, check_folder(masks), problems, needed=masks_needed))
    return records, remarks


def _is_mask_of(path: Path, names: set[Path]) -> bool:
    """Whether a file is named as the mask of one of `names`, as "a_mask" of "a"."""
    stem = MASK.sub("", path.stem)
    return stem != path.stem and path.with_name(stem) in names


def _records(found: Sequence[_Found], problems: Problems) -> Iterator[Record]:
    """With keys that are the names without suffix, where that is enough to tell them apart."""
    short = Counter(file.name.with_suffix("") for file in found)
    seen: dict[str, Path] = {}
    for name, path in found:
        key = (name if short[name.with_suffix("")] > 1 else name.with_suffix("")).as_posix()
        if key in seen:
            raise DataError(f"{path}: has the same name as {seen[key]}; predict them into folders of their own")
        seen[key] = path
        try:
            frames = count_frames(path) if is_dicom(path) or path.suffix.lower() in (".tif", ".tiff") else 1
        except DataError as error:
            problems.add(error)
            continue
        if frames == 1:
            yield Record(key, path, -1, (), key, segmented=False)
        for frame in range(frames if frames > 1 else 0):
            one = f"{key}_frame{frame + 1:0{len(str(frames))}d}"
            if one in seen:
                raise DataError(f"{path}: its frame {frame + 1} has the same name as {seen[one]}")
            seen[one] = path
            yield Record(one, path, -1, (), key, segmented=False, frame=frame)


def _with_masks(records: Sequence[Record], folder: Path, problems: Problems, *, needed: bool) -> Iterator[Record]:
    """The records with their masks, in the same folders below `folder` as the images below theirs."""
    names = {record.key for record in records}
    matched: dict[str, list[Path]] = {}
    for path in images_below(folder):
        key = path.relative_to(folder).with_suffix("").as_posix()
        matched.setdefault(key if key in names else image_stem(key), []).append(path)
    for record in records:
        masks = tuple(matched.get(record.key, ()))
        if needed and not masks:
            problems.add(DataError(f"{record.image}: there is no mask {record.key}.png of it in {folder}"))
            continue
        yield replace(record, masks=masks, segmented=bool(masks))


# --- exams ------------------------------------------------------------------------------------------------------------


def find_exams(inputs: Sequence[Path], problems: Problems) -> tuple[list[Exam], list[str]]:
    """Exams of four views, and remarks on views that are missing.

    Args:
        inputs: folders with the views of an exam, or folders of such folders. The views tell what they are by their
            tags, or by names as "L_CC.png", "mlo-right.dcm" or "RCC.png".
        problems: takes what cannot be used.

    Raises:
        DataError: there is no such folder, or no image in one.
    """
    exams: list[Exam] = []
    seen: dict[str, Path] = {}
    for path in inputs:
        _check_exists(path)
        if path.is_file():
            raise DataError(f"{path}: expected a folder with the views of an exam, found a file")
        check_folder(path)
        content = sorted(path.iterdir(), key=natural)
        if any(file.is_file() and is_image(file) for file in content):
            folders = [path]
        else:
            folders = [f for f in content if f.is_dir() and not f.name.startswith(".") and any(images_below(f))]
        if not folders:
            raise DataError(f"{path}: there is not a single image in it")
        for folder in folders:
            key = folder.resolve().name
            if key in seen:
                raise DataError(f"{folder}: has the same name as {seen[key]}; predict them into folders of their own")
            seen[key] = folder
            try:
                views = _views(folder)
            except DataError as error:
                problems.add(error)
                continue
            exams.append(Exam(key, tuple(views.get(name) for name in VIEWS), (-1, -1), (-1, -1), key))
    remarks = []
    for exam in exams:
        missing = [name for name, path in zip(VIEWS, exam.views, strict=True) if path is None]
        if missing:
            remarks.append(f"{exam.key}: there is no view {', '.join(missing)}")
    return exams, remarks


def _views(folder: Path) -> dict[str, Path]:
    views: dict[str, Path] = {}
    for path in images_below(folder):
        name = view_of(path)
        if name is None:
            raise DataError(f"{path}: neither tags nor name say which view it is, as L_CC or R_MLO would")
        if name in views:
            raise DataError(f"{path}: is {name} a second time, after {views[name]}")
        views[name] = path
    return views


def view_of(path: Path) -> str | None:
    """Which of the four views a file shows: by its tags, else by its name; None where neither says.

    Raises:
        DataError: it is DICOM and cannot be read.

    Example:
        >>> from pathlib import Path
        >>> from mtlkit.inference.inputs import view_of
        >>> view_of(Path("exam 7/left_MLO.png")), view_of(Path("RCC.jpg")), view_of(Path("breast.png"))
        ('L-MLO', 'R-CC', None)
    """
    if is_dicom(path) and (name := read_dicom_tags(path).name):
        return name
    for pattern in NAMED:
        if match := pattern.search(path.stem):
            return f"{SIDES[match['side'].lower()]}-{match['view'].upper()}"
    return None
