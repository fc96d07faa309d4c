"""Mammography phantoms: four views of one woman, with density, masses and microcalcifications.

Fat and gland are clutter whose spectrum falls with about the third power of frequency, as measured on mammograms; gland
lies in a cone behind the nipple, and ligaments, ducts and vessels run through it. A lesion lies at the same distance
from the nipple in both views of its breast. In a left breast the chest wall is the left edge of the image, in a right
one the right edge.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter

from mtlkit._output import new_folder
from mtlkit.data.dicom import VIEW_CODES
from mtlkit.data.records import VIEWS
from mtlkit.data.synthetic._fields import check_options, curve, grid, inside, outline, power_law, smooth_step

__all__ = ["Breast", "draw_mammogram", "synthesize_mammography"]

Place = tuple[float, float]  # y, x

MARK = "synthetic.json"
ASPECT = 1914 / 2294  # width by height, that of CMMD
BITS = 12
MEANINGS = {"CC": "cranio-caudal", "MLO": "medio-lateral oblique"}
HEADER = ("ID", "LeftRight", "Age", "classification", "Exclusion reason", "Breast density", "BI-RADS\nCategory")


@dataclass(frozen=True)
class Breast:
    """The contents of a breast.

    Args:
        birads: BI-RADS category. 1 nothing; 2 a few coarse calcifications; 3 a smooth mass; 4 an irregular mass or a
            loose cluster; 5 a
            spiculated mass, often with a tight cluster of uneven calcifications.
        malignant: whether the lesion is malignant: BI-RADS 5 is, 4 may be, 1 to 3 are not.
        density: fraction of gland, 0 to 1.

    Example:
        >>> from mtlkit.data.synthetic import Breast
        >>> Breast(birads=5, malignant=True).classification
        'Malignant'
    """

    birads: int = 1
    malignant: bool = False
    density: float = 0.4

    def __post_init__(self) -> None:
        if self.birads not in (1, 2, 3, 4, 5):
            raise ValueError(f"birads: expected 1 to 5, got {self.birads!r}")
        if self.malignant != (self.birads == 5) and self.birads != 4:
            raise ValueError(f"malignant: expected {self.birads == 5} with BI-RADS {self.birads}, got {self.malignant}")
        if not 0 <= self.density <= 1:
            raise ValueError(f"density: expected a share in [0, 1], got {self.density!r}")

    @property
    def classification(self) -> str:
        """The classification in CMMD's tables."""
        return "Malignant" if self.malignant else "Normal" if self.birads == 1 else "Benign"


# --- the breast -------------------------------------------------------------------------------------------------------


def _shape(rng: Generator, y: np.ndarray, x: np.ndarray, view: str, build: np.ndarray) -> tuple[np.ndarray, Place]:
    """Depth below the skin (0 at the skin, negative in air), and the position of the nipple; chest wall at x = 0."""
    width = float(x.max())
    reach, half, sag = width * (0.62 + 0.22 * build[0]), 0.30 + 0.10 * build[1], 0.02 * build[2]
    middle = 0.5 + 0.03 * rng.uniform(-1, 1) + (0.10 + sag if view == "MLO" else 0.0)
    above, below = (half * 2.0, half * 0.95) if view == "MLO" else (half, half)
    v = (y - middle) / np.where(y < middle, above, below)
    bulge = 0.012 * curve(rng, y.shape[0], 2.0)[:, None]
    # fuller than an ellipse, as a compressed breast is
    edge = reach * np.maximum(1 - np.abs(v) ** 2.3, 0) ** 0.5 + bulge
    return np.minimum((edge - x) * 0.9, (1 - np.abs(v)) * half), (middle, reach)


def _tissue(
    rng: Generator, y: np.ndarray, x: np.ndarray, depth: np.ndarray, nipple: Place, density: float
) -> np.ndarray:
    """Absorption of the tissue, about 0.25 for fat and 0.8 for gland."""
    height, width = y.shape
    middle, reach = nipple
    fine, coarse = power_law(rng, height, width, 1.5), power_law(rng, height, width, 1.9)
    behind = (reach - x) / reach  # 0 at the nipple, 1 at the chest wall
    opening = np.abs(y - middle) / (0.05 + 0.55 * np.clip(behind, 0, 1))
    cone = np.exp(-((np.maximum(opening - 0.35, 0) / 0.45) ** 2)) * smooth_step(0.92 - behind, 0.35)
    lobules = power_law(rng, height, width, 1.2)
    amount = cone * (0.6 + 1.0 * density) + 0.30 * coarse + 0.20 * fine + 0.16 * lobules - 0.80 + 0.35 * density
    gland = smooth_step(amount, 0.9) * smooth_step(depth - 0.03, 0.05)
    absorbs = 0.27 + 0.035 * fine + 0.045 * coarse + gland * (0.26 + 0.12 * density + 0.07 * fine + 0.05 * lobules)
    for _ in range(rng.integers(14, 26)):  # ligaments and ducts, which run to the nipple
        start = (middle + rng.uniform(-0.38, 0.38), rng.uniform(0, 0.5) * reach)
        absorbs += rng.uniform(0.02, 0.07) * _strand(rng, y, x, start, (middle, 0.97 * reach), 0.02, 0.0022)
    for _ in range(rng.integers(1, 4)):  # vessels
        start, end = (rng.uniform(0.15, 0.85), 0.0), (middle + rng.uniform(-0.25, 0.25), 0.8 * reach)
        absorbs += rng.uniform(0.06, 0.11) * _strand(rng, y, x, start, end, 0.035, 0.0042)
    return absorbs


def _strand(
    rng: Generator, y: np.ndarray, x: np.ndarray, start: Place, end: Place, swing: float, width: float
) -> np.ndarray:
    """A curved line from `start` to `end` (y, x)."""
    along = (x - start[1]) / (end[1] - start[1] + 1e-6)
    steps = np.clip((x[0] - start[1]) / (end[1] - start[1] + 1e-6), 0, 1)
    line = start[0] + (end[0] - start[0]) * steps + swing * np.sin(np.pi * steps) * curve(rng, x.shape[1], 1.5)
    slope = np.abs((end[0] - start[0]) / (end[1] - start[1] + 1e-6))
    near = np.exp(-(((y - line[None]) / (width * np.hypot(1, slope))) ** 2))
    return near * smooth_step(along - 0.02, 0.05) * smooth_step(0.98 - along, 0.15)


def _pectoral(y: np.ndarray, x: np.ndarray, build: np.ndarray) -> np.ndarray:
    """The muscle in the upper corner at the chest wall of an MLO view, 0 to 1."""
    base, length = 0.26 + 0.10 * build[3], 0.62 + 0.12 * build[4]
    edge = base * np.maximum(1 - y / length, 0) ** 0.85
    return smooth_step(edge - 0.015 - x, 0.02)


# --- lesions ----------------------------------------------------------------------------------------------------------


def _mass(rng: Generator, y: np.ndarray, x: np.ndarray, centre: Place, radius: float, form: str) -> np.ndarray:
    """Absorption added by a "smooth", "irregular" or "spiculated" mass."""
    axes = (radius, radius * rng.uniform(0.85, 1.25))
    tilt = rng.uniform(0, np.pi)
    if form == "smooth":
        depth = inside(y, x, centre, axes, tilt, outline(rng, 0.04, range(2, 5)))
        return rng.uniform(0.16, 0.23) * smooth_step(depth, 0.2) * (0.75 + 0.25 * np.clip(depth, 0, 1))
    depth = inside(y, x, centre, axes, tilt, outline(rng, 0.16, range(2, 9)))
    added = rng.uniform(0.20, 0.28) * smooth_step(depth, 0.6)
    if form == "spiculated":
        dy, dx = y - centre[0], x - centre[1]
        far, angle = np.hypot(dy, dx), np.arctan2(dy, dx)
        for _ in range(rng.integers(16, 26)):
            bend = angle - rng.uniform(-np.pi, np.pi) + rng.uniform(-1.5, 1.5) * far
            across = far * np.sin(np.angle(np.exp(1j * bend)))
            ahead = np.cos(np.angle(np.exp(1j * bend))) > 0
            length = radius * rng.uniform(1.4, 2.8)
            ray = np.exp(-((across / 0.0022) ** 2)) * ahead * smooth_step(length - far, 0.4 * length)
            added = np.maximum(added, rng.uniform(0.07, 0.15) * ray)
        added += 0.05 * np.exp(-((far / (1.8 * radius)) ** 2))
    return added


def _calcifications(rng: Generator, y: np.ndarray, x: np.ndarray, centre: Place, form: str) -> np.ndarray:
    """Absorption added by "coarse", "loose" or "tight" calcifications."""
    pixel = 1 / y.shape[0]
    added = np.zeros_like(y)
    count, spread = {"coarse": (4, 0.16), "loose": (9, 0.045), "tight": (26, 0.03)}[form]
    for _ in range(rng.poisson(count) + 3):
        spot = np.array(centre) + spread * rng.standard_normal(2)
        wide = max(rng.uniform(0.0032, 0.0055) if form == "coarse" else rng.uniform(0.0010, 0.0020), 0.5 * pixel)
        stretch = 1.0 if form != "tight" else rng.uniform(1, 2.4)
        angle = rng.uniform(0, np.pi)
        v = np.cos(angle) * (y - spot[0]) - np.sin(angle) * (x - spot[1])
        u = np.sin(angle) * (y - spot[0]) + np.cos(angle) * (x - spot[1])
        added += rng.uniform(0.15, 0.40) * np.exp(-0.5 * ((v / wide) ** 2 + (u / (wide * stretch)) ** 2))
    return added


def _lesion(rng: Generator, y: np.ndarray, x: np.ndarray, centre: Place, breast: Breast, choice: float) -> np.ndarray:
    """Absorption added by the lesion of a breast; `choice` in [0, 1) selects the same kind in both views."""
    if breast.birads == 1:
        return np.zeros_like(y)
    if breast.birads == 2:
        return _calcifications(rng, y, x, centre, "coarse")
    radius = 0.035 + 0.035 * ((7 * choice) % 1)
    if breast.birads == 3:
        return _mass(rng, y, x, centre, radius, "smooth")
    if breast.birads == 4:
        if choice < 0.4:
            return _calcifications(rng, y, x, centre, "tight" if breast.malignant else "loose")
        return _mass(rng, y, x, centre, radius, "irregular")
    added = _mass(rng, y, x, centre, radius, "spiculated")
    return added + _calcifications(rng, y, x, centre, "tight") if choice < 0.6 else added


def draw_mammogram(
    view: str, breast: Breast | None = None, size: int = 512, seed: int | Sequence[int] = 0
) -> np.ndarray:
    """Draws one view of a breast.

    Args:
        view: "L-CC", "L-MLO", "R-CC" or "R-MLO".
        breast: contents of the breast; by default only tissue.
        size: height in pixels; the width is 0.834 of it, as in CMMD.
        seed: seed of the woman; her four views have the same shape, and both views of a breast the same lesion.

    Returns:
        (H, W), float32 in [0, 1], bright where absorption is high.

    Raises:
        ValueError: there is no such view.

    Example:
        >>> from mtlkit.data.synthetic import Breast, draw_mammogram
        >>> image = draw_mammogram("R-MLO", Breast(birads=3), size=96)
        >>> image.shape, bool(image[:, 0].mean() < image[:, -1].mean())
        ((96, 80), True)
    """
    if view not in VIEWS:
        raise ValueError(f"view: expected one of {', '.join(VIEWS)}, got {view!r}")
    breast = Breast() if breast is None else breast
    seeds = [seed] if isinstance(seed, int) else list(seed)
    woman = np.random.default_rng([*seeds, 0])
    side = np.random.default_rng([*seeds, 1 + VIEWS.index(view) // 2])
    rng = np.random.default_rng([*seeds, 3 + VIEWS.index(view)])
    projection = view[2:]
    y, x = grid(size, round(size * ASPECT))
    build = woman.uniform(0, 1, 5)
    depth, nipple = _shape(rng, y, x, projection, build)
    absorbs = _tissue(rng, y, x, depth, nipple, breast.density)
    choice, from_nipple = side.uniform(), side.uniform(0.35, 0.65)
    across = side.uniform(-0.14, 0.14, 2)[["CC", "MLO"].index(projection)]
    absorbs += _lesion(rng, y, x, (nipple[0] + across, (1 - from_nipple) * nipple[1]), breast, choice)
    thickness = np.clip(depth / 0.09, 0, 1) ** 0.55
    image = absorbs * thickness
    if projection == "MLO":
        muscle = _pectoral(y, x, build) * (depth > 0)
        image += muscle * (0.58 + 0.04 * power_law(rng, y.shape[0], y.shape[1], 1.5) - 0.75 * image)
    image += 0.10 * np.exp(-(((depth - 0.006) / 0.005) ** 2)) * (depth > 0)  # skin
    ring = np.hypot(y - nipple[0], x - nipple[1])
    image += 0.22 * np.exp(-((ring / 0.014) ** 2))
    image = gaussian_filter(image, 0.5 * size / 1024) * smooth_step(depth + 0.002, 0.006)
    image += 0.012 * rng.standard_normal(image.shape) * np.sqrt(np.maximum(image, 0.02))
    image = np.clip(image, 0, 1).astype(np.float32)
    return image if view.startswith("L") else np.ascontiguousarray(image[:, ::-1])


# --- files ------------------------------------------------------------------------------------------------------------


def _write_dicom(path: Path, image: np.ndarray, patient: str, view: str, seeds: Sequence[int], *, inverted: bool):
    """Writes a 12-bit mammogram with a window; `inverted` as MONOCHROME1."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, DigitalMammographyXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    def uid(*parts: object) -> UID:
        return generate_uid(entropy_srcs=["mtlkit phantom", *map(str, (*seeds, *parts))])

    side, projection = view.split("-")
    stored = (200 + image * 3600).round().astype(np.uint16)
    window = (2000, 3600)
    if inverted:
        stored, window = (2**BITS - 1) - stored, (2**BITS - 1 - 2000, 3600)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = uid(patient, view)
    file = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # pyright: ignore[reportArgumentType] - a new data set has no file
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.StudyInstanceUID, file.SeriesInstanceUID = uid(patient), uid(patient, "series")
    file.PatientID = file.PatientName = patient
    file.PatientSex, file.Modality, file.Manufacturer = "F", "MG", "mtlkit phantom"
    file.BodyPartExamined, file.ImageLaterality = "BREAST", side
    code = pydicom.Dataset()
    code.CodeValue = next(value for value, name in VIEW_CODES.items() if name == projection)
    code.CodingSchemeDesignator, code.CodeMeaning = "SCT", MEANINGS[projection]
    file.ViewCodeSequence = [code]
    file.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    file.Rows, file.Columns = image.shape
    file.SamplesPerPixel, file.PixelRepresentation = 1, 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, BITS, BITS - 1
    file.WindowCenter, file.WindowWidth = window
    file.PixelData = stored.tobytes()
    file.save_as(path, enforce_file_format=True)


def _breasts(rng: Generator, category: int) -> dict[str, Breast]:
    """A woman's breasts: one has this BI-RADS category, the other one, if imaged, none worse."""
    density = float(rng.beta(2, 2.5))
    worse, other = ("L", "R") if rng.random() < 0.5 else ("R", "L")
    breasts = {worse: Breast(category, category == 5 or (category == 4 and rng.random() < 0.5), density)}
    if rng.random() > 0.25:  # a quarter of the women have only one breast imaged
        breasts[other] = Breast(int(rng.choice([1, 1, 1, 2])) if category > 1 else 1, density=density)
    return breasts


def synthesize_mammography(
    path: str | Path,
    cases: int = 100,
    size: int = 512,
    seed: int = 0,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes a data set of mammography phantoms as DICOM in CMMD's layout, with a table in TOMPEI-CMMD's format.

    The five BI-RADS categories are equally frequent among the women (by the worse of the two breasts). A quarter of
    the women have one breast imaged; a fifth of the files are MONOCHROME1. The folder is written atomically.

    Args:
        path: folder to create.
        cases: number of women, at least 5.
        size: height of the views in pixels, 64 to 4096; CMMD's have 2294.
        seed: random seed; the same seed gives the same files.
        force: whether to overwrite the result of an earlier run.
        progress: called with the number of processed cases and the total.

    Raises:
        ValueError: an option is out of range.
        DataError: `path` exists already, or cannot be written.

    Example:
        >>> import tempfile
        >>> from mtlkit.data import open_dataset, synthesize_mammography
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     synthesize_mammography(f"{folder}/cmmd", cases=5, size=64)
        ...     len(open_dataset(f"{folder}/cmmd"))
        5
    """
    check_options(cases, size, seed, least_cases=5)
    with new_folder(path, "phantoms", force=force) as folder:
        rows = []
        for i in range(cases):
            rng = np.random.default_rng([seed, i])
            patient, category = f"D1-{i + 1:04d}", 1 + i % 5
            day = date(2012, 7, 1) + timedelta(days=int(rng.integers(0, 1200)))
            study = f"CMMD/{patient}/{day:%m-%d-%Y}-NA-NA-{rng.integers(10000, 99999)}"
            series = f"{study}/1.000000-NA-{rng.integers(10000, 99999)}"
            age, breasts = int(rng.integers(28, 80)), _breasts(rng, category)
            views = [view for view in VIEWS if view[0] in breasts]
            for number, view in enumerate(views, start=1):
                image = draw_mammogram(view, breasts[view[0]], size, (seed, i))
                with folder.file(f"{series}/1-{number}.dcm") as file:
                    _write_dicom(file, image, patient, view, (seed, i), inverted=i % 5 == 4)
            for side, breast in sorted(breasts.items()):
                letter = "ABCD"[min(int(4 * breast.density), 3)]
                rows.append((patient, side, age, breast.classification, "", letter, breast.birads))
            if progress is not None:
                progress(i + 1, cases)
        table = io.StringIO(newline="")
        csv.writer(table).writerows([HEADER, *rows])
        folder.write_text("TOMPEI-CMMD_clinical_data_phantoms.csv", table.getvalue())
        folder.write_json(MARK, {"phantoms": "mammography", "cases": cases, "size": size, "seed": seed})
