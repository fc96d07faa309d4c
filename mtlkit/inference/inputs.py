"""Finds the inputs of a prediction: images, frames and masks, or exams of four views."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import NamedTuple

from mtlkit._files import why_unreadable
from mtlkit._owned import kind_of
from mtlkit._text import composed
from mtlkit.data import VIEWS, Exam, Record, count_frames, read_dicom_tags
from mtlkit.data.dicom_file import is_dicom, is_unnamed
from mtlkit.data.files import DICOM, PICTURES, check_folder, entries, files_below, image_stem, subfolders
from mtlkit.data.names import Names, is_text
from mtlkit.data.records import and_more
from mtlkit.errors import DataError, UnusableError

KIND = "a prediction"  # kind of the output folder
MARK = "predictions.json"  # marks a folder of predictions
WRITTEN = (KIND, "an evaluation")  # kinds of folders whose images are results, not inputs

LONGEST = 255  # bytes that a file name may have
MASK = re.compile(r"_(mask|anno|segmentation|gt)(_\d+)?$", re.IGNORECASE)

SIDES = {"l": "L", "left": "L", "r": "R", "right": "R"}
SIDE, VIEW, GAP = r"(?P<side>left|right|l|r)", r"(?P<view>cc|mlo)", r"[\W_]*"
NAMED = [
    re.compile(rf"(?<![a-z]){first}{GAP}{second}(?![a-z])", re.IGNORECASE)
    for first, second in ((SIDE, VIEW), (VIEW, SIDE))
]


class Problems:
    """Handles unusable inputs: raises an error at the first, or collects the messages.

    Args:
        skip: whether to collect them.
    """

    def __init__(self, *, skip: bool) -> None:
        self.skip = skip
        self.found: list[str] = []

    def check(self, error: DataError) -> None:
        """Raises the error, unless `skip` is set."""
        if not self.skip:
            raise UnusableError(error.text, path=error.path) if type(error) is DataError else error

    def add(self, error: DataError) -> None:
        """Raises the error, or with `skip` stores its message once."""
        self.check(error)
        if str(error) not in self.found:
            self.found.append(str(error))


class _Found(NamedTuple):
    """An image file, and its path relative to the input that contains it."""

    name: PurePath
    path: Path


# --- files ------------------------------------------------------------------------------------------------------------


def is_image(path: Path) -> bool:
    """Returns whether a file has the suffix of an image or is DICOM."""
    return path.suffix.lower() in PICTURES or is_dicom(path)


def _is_written(folder: Path) -> bool:
    """Returns whether a folder contains results of mtlkit."""
    return (folder / MARK).is_file() or kind_of(folder) in WRITTEN


def images_below(folder: Path, problems: "Problems") -> Iterator[Path]:
    """Yields the image files of a folder and its subfolders in a fixed order, except results of mtlkit.

    Broken links, pipes and unreadable files are problems if they are named like an image, or like DICOM without suffix.
    """
    for path in files_below(folder, leave=_is_written, told=problems.add):
        why = why_unreadable(path)
        if why is not None and (path.suffix.lower() in (*PICTURES, *DICOM) or is_unnamed(path)):
            problems.add(DataError(why, path=path))
        elif why is None and is_image(path):
            yield path


def check_exists(path: Path) -> None:
    """Raises a DataError if the file or folder does not exist or cannot be read."""
    if not path.exists() and not path.is_symlink():
        raise DataError(f"{path}: there is no such file or folder")
    if not path.is_dir() and (why := why_unreadable(path)) is not None:
        raise DataError(why, path=path)


# --- images -----------------------------------------------------------------------------------------------------------


def find_images(
    inputs: Sequence[Path], masks: Path | None, problems: Problems, *, masks_needed: bool
) -> tuple[list[Record], list[str]]:
    """Returns a record for each image, or for each frame of an image with several, and remarks for the user.

    Masks next to their images, such as "a_mask.png" of "a.png", are left out.

    Args:
        inputs: files, and folders of files.
        masks: folder of masks with the names of the images.
        problems: handles unusable files.
        masks_needed: whether an image without a mask is a problem.

    Raises:
        DataError: a file or folder does not exist, a folder contains no image, or two images have the same name.
    """
    found: list[_Found] = []
    left_out = 0
    for path in inputs:
        check_exists(path)
        if path.is_file():
            if not is_image(path):
                raise DataError(f"{path}: is not an image; expected PNG, JPEG, BMP, TIFF or DICOM")
            found.append(_Found(PurePath(path.name), path))
            continue
        check_folder(path)
        known = len(problems.found)
        files = list(images_below(path, problems))
        if not files and len(problems.found) == known:
            raise DataError(f"{path}: it contains no usable image")
        names = {composed(str(file.with_suffix(""))) for file in files}
        own = [file for file in files if not _is_mask_of(file, names)]
        left_out += len(files) - len(own)
        found += [_Found(file.relative_to(path), file) for file in own]
    remarks = [f"{left_out} files are masks of images beside them, and were left out"] if left_out else []
    records = list(_records(found, problems))
    if masks is not None:
        records, more = _with_masks(records, check_folder(masks), problems, needed=masks_needed)
        remarks += more
    return records, remarks


def _is_mask_of(path: Path, names: set[str]) -> bool:
    """Returns whether a file has the name of a mask of one of `names`, such as "a_mask" for "a"."""
    stem = MASK.sub("", path.stem)
    return stem != path.stem and composed(str(path.with_name(stem))) in names


def _check_name(key: str, path: Path) -> None:
    """Raises unless a name can be used for a row and for the files that are written for the image."""
    if not is_text(key):
        raise DataError("its name is not text in UTF-8: rename it", path=path)
    drawing = PurePath(f"{key}.png").name
    if len(os.fsencode(drawing)) > LONGEST:
        text = f"its name is too long: that of its mask, {drawing[:20]}...{drawing[-20:]}, would have more than "
        raise DataError(f"{text}{LONGEST} bytes", path=path)


def _records(found: Sequence[_Found], problems: Problems) -> Iterator[Record]:
    """Yields the records; the key is the name, without its suffix if that is unique."""
    names = [PurePath(composed(str(file.name))) for file in found]
    short = Counter(name.with_suffix("") for name in names)
    seen: dict[str, Path] = {}
    for name, (_, path) in zip(names, found, strict=True):
        key = (name if short[name.with_suffix("")] > 1 else name.with_suffix("")).as_posix()
        if key in seen:
            raise DataError(f"{path}: has the same name as {seen[key]}; predict them into folders of their own")
        seen[key] = path
        try:
            _check_name(key, path)
            frames = count_frames(path) if is_dicom(path) or path.suffix.lower() in (".tif", ".tiff") else 1
            if frames > 1:
                _check_name(f"{key}_frame{frames}", path)
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


def _with_masks(
    records: Sequence[Record], folder: Path, problems: Problems, *, needed: bool
) -> tuple[list[Record], list[str]]:
    """Returns the records with their masks, which have the same relative paths as the images, and remarks."""
    names = Names(record.key for record in records)
    matched: dict[str, list[Path]] = {}
    seen: dict[str, Path] = {}
    twins: dict[str, DataError] = {}
    orphans: list[Path] = []
    for path in images_below(folder, problems):
        name = composed(path.relative_to(folder).with_suffix("").as_posix())
        key = names.find(name, image_stem(name))
        if key is None:
            orphans.append(path)
            continue
        if (other := seen.setdefault(name, path)) is not path:
            twins[key] = DataError(f"has the same name as {other}: which is the mask?", path=path)
        matched.setdefault(key, []).append(path)
    kept = []
    for record in records:
        masks = tuple(matched.get(record.key, ()))
        if record.key in twins:
            problems.add(twins[record.key])
        elif needed and not masks:
            instead = f"; {orphans[0]} belongs to no image" if orphans else ""
            problems.add(DataError(f"{record.image}: there is no mask {record.key}.png of it in {folder}{instead}"))
        else:
            kept.append(replace(record, masks=masks, segmented=bool(masks)))
    return kept, [f"{orphans[0]}: is the mask of no image{and_more(orphans)}"] if orphans else []


# --- exams ------------------------------------------------------------------------------------------------------------


def find_exams(inputs: Sequence[Path], problems: Problems) -> tuple[list[Exam], list[str]]:
    """Returns exams of four views, and remarks on missing views.

    Args:
        inputs: folders with the views of one exam each, or folders of such folders. Views are recognised by their
            DICOM tags, or by names such as "L_CC.png", "mlo-right.dcm" or "RCC.png".
        problems: handles unusable files and exams.

    Raises:
        DataError: a folder does not exist or contains no image, or two exams have the same name.
    """
    exams: list[Exam] = []
    seen: dict[str, Path] = {}
    for path in inputs:
        check_exists(path)
        if path.is_file():
            raise DataError(f"{path}: expected a folder with the views of an exam, found a file")
        check_folder(path)
        known = len(problems.found)
        if any(is_image(file) for file in entries(path) if not file.is_dir()):
            folders = [path]
        else:
            folders = [folder for folder in subfolders(path) if any(images_below(folder, problems))]
        if not folders and len(problems.found) == known:
            raise DataError(f"{path}: it contains no usable image")
        for folder in folders:
            key = composed(folder.resolve().name)
            if key in seen:
                raise DataError(f"{folder}: has the same name as {seen[key]}; predict them into folders of their own")
            seen[key] = folder
            try:
                if not is_text(key):
                    raise DataError("its name is not text in UTF-8: rename it", path=folder)
                views = _views(folder, problems)
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


def _views(folder: Path, problems: Problems) -> dict[str, Path]:
    views: dict[str, Path] = {}
    for path in images_below(folder, problems):
        name = view_of(path)
        if name is None:
            raise DataError(f"{path}: neither tags nor name say which view it is, as L_CC or R_MLO would")
        if name in views:
            raise DataError(f"{path}: is a second {name}, after {views[name]}")
        views[name] = path
    return views


def view_of(path: Path) -> str | None:
    """Returns which of the four views a file shows, by its tags or else its name; None if neither says so.

    Raises:
        DataError: the file is DICOM and cannot be read.

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
