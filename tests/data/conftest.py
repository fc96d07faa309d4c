"""Small folders with the layouts of public data sets."""

import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import openpyxl
import pydicom
import pytest
from PIL import Image
from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

HEIGHT, WIDTH = 40, 48


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def write(rng) -> Callable[..., Path]:
    """write(path) writes an image of noise; write(path, lesion=True) a mask with a square."""

    def make(path: Path, *, lesion: bool | None = None, size: tuple[int, int] = (HEIGHT, WIDTH), at: int = 10) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, size, dtype=np.uint8)
        if lesion is not None:
            pixels[:] = 0
            pixels[at : at + 8, at : at + 12] = 255 * lesion
        Image.fromarray(pixels).save(path)
        return path

    return make


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.fixture
def write_deep() -> Callable[..., None]:
    """write_deep(path, values) writes 16-bit colours (H, W, C) as PNG or TIFF, which Pillow cannot."""

    def png(values: np.ndarray, orientation: int) -> bytes:
        height, width, channels = values.shape
        kind = {2: 4, 3: 2, 4: 6}[channels]
        head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
        exif = Image.Exif()
        exif[0x0112] = orientation
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        rest = _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + head + _chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + rest

    def tiff(values: np.ndarray, orientation: int, order: str, extra: int, *, compressed: bool) -> bytes:
        height, width, channels = values.shape
        data = values.astype(f"{order}u2").tobytes()
        data = zlib.compress(data) if compressed else data
        count = 11 if channels == 4 else 10
        bits_at = 8 + 2 + 12 * count + 4
        tags = [
            (256, 4, 1, width),
            (257, 4, 1, height),
            (258, 3, channels, bits_at),
            (259, 3, 1, 8 if compressed else 1),
        ]
        tags += [(262, 3, 1, 2), (273, 4, 1, bits_at + 2 * channels), (274, 3, 1, orientation), (277, 3, 1, channels)]
        tags += [(278, 4, 1, height), (279, 4, 1, len(data)), (338, 3, 1, extra)][: count - 8]
        head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8) + struct.pack(f"{order}H", len(tags))
        for tag, kind, count, value in tags:
            short = kind == 3 and count == 1
            head += struct.pack(f"{order}HHI", tag, kind, count)
            head += struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
        return head + struct.pack(f"{order}I", 0) + struct.pack(f"{order}{channels}H", *[16] * channels) + data

    def make(
        path: Path,
        values: np.ndarray,
        *,
        orientation: int = 1,
        order: str = "<",
        extra: int = 2,
        compressed: bool = False,
    ) -> None:
        if path.suffix == ".png":
            path.write_bytes(png(values, orientation))
        else:
            path.write_bytes(tiff(values, orientation, order, extra, compressed=compressed))

    return make


@pytest.fixture
def busi(tmp_path, write) -> Path:
    """Four images of each class; benign (2) has three masks."""
    root = tmp_path / "data"
    for name in ("benign", "malignant", "normal"):
        for i in range(1, 5):
            write(root / "Dataset_BUSI_with_GT" / name / f"{name} ({i}).png")
            write(root / "Dataset_BUSI_with_GT" / name / f"{name} ({i})_mask.png", lesion=name != "normal")
    for extra, at in (("_mask_1", 20), ("_mask_2", 28)):
        write(root / f"Dataset_BUSI_with_GT/benign/benign (2){extra}.png", lesion=True, at=at)
    return root


@pytest.fixture
def busi_whu(tmp_path, write) -> Path:
    """The published partition: 4, 2 and 2 images."""
    root = tmp_path / "data"
    for part, count in (("train", 4), ("valid", 2), ("test", 2)):
        for i in range(count):
            name = f"{'benign' if i % 2 == 0 else 'malignant'}_{part}{i:04d}"
            write(root / "BUSI_WHU" / part / "img" / f"{name}.bmp")
            write(root / "BUSI_WHU" / part / "gt" / f"{name}_anno.bmp", lesion=True)
    return root


@pytest.fixture
def ham10000(tmp_path, write) -> Path:
    """Two images of each of two lesions of every class."""
    root, rows, number = tmp_path / "data", ["lesion_id,image_id,dx,dx_type,age,sex,localization"], 24306
    for dx in ("mel", "nv", "bcc", "akiec", "bkl", "df", "vasc"):
        for lesion in range(2):
            for _ in range(2):
                name = f"ISIC_{number:07d}"
                write(root / f"HAM10000_images_part_{1 + number % 2}" / f"{name}.jpg")
                write(root / "HAM10000_segmentations_lesion_tschandl" / f"{name}_segmentation.png", lesion=True)
                rows.append(f"HAM_{dx}{lesion},{name},{dx},histo,50.0,female,back")
                number += 1
    (root / "HAM10000_metadata.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def brisc(tmp_path, write) -> Path:
    """Six slices of each class to train, two to test."""
    root, codes = tmp_path / "data", {"glioma": "gl", "meningioma": "me", "pituitary": "pi", "no_tumor": "no"}
    for split, count in (("train", 6), ("test", 2)):
        for name, code in codes.items():
            for i in range(count):
                stem = f"brisc2025_{split}_{i:05d}_{code}_ax_t1"
                write(root / "brisc2025/classification_task" / split / name / f"{stem}.jpg")
                if name != "no_tumor":
                    write(root / "brisc2025/segmentation_task" / split / "images" / f"{stem}.jpg")
                    write(root / "brisc2025/segmentation_task" / split / "masks" / f"{stem}.png", lesion=True)
    return root


@pytest.fixture
def own(tmp_path, write) -> Path:
    """The layout for your own data: two classes, three patients with two images each."""
    root, rows = tmp_path / "data", ["image,group"]
    for name in ("cyst", "normal"):
        for i in range(6):
            write(root / "images" / name / f"scan {i}.png")
            rows.append(f"{name}/scan {i}.png,patient {name} {i // 2}")
            if name == "cyst":
                write(root / "masks" / name / f"scan {i}.png", lesion=True)
    (root / "groups.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def write_dicom(rng) -> Callable[..., Path]:
    """write_dicom(path, patient="D1-0001", ImageLaterality="L", view="CC", ...) writes a 12-bit mammogram."""

    def make(
        path: Path, pixels: np.ndarray | None = None, *, patient: str = "", view: str | None = None, **tags
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 4096, (HEIGHT, WIDTH), dtype=np.uint16) if pixels is None else pixels
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = DigitalMammographyXRayImageStorageForPresentation
        meta.MediaStorageSOPInstanceUID = generate_uid()
        file = pydicom.FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        file.PatientID, file.PhotometricInterpretation = patient, "MONOCHROME2"
        file.Rows, file.Columns = pixels.shape
        file.SamplesPerPixel, file.PixelRepresentation = 1, 0
        file.BitsAllocated, file.BitsStored, file.HighBit = 16, 12, 11
        file.PixelData = pixels.tobytes()
        if view is not None:
            code = pydicom.Dataset()
            code.CodeValue = {"CC": "399162004", "MLO": "399368009"}[view]
            code.CodingSchemeDesignator, code.CodeMeaning = "SCT", view
            file.ViewCodeSequence = [code]
        for name, value in tags.items():
            setattr(file, name, value)
        file.save_as(path, enforce_file_format=True)
        return path

    return make


# Patient, side, classification, BI-RADS: the worse side of patient i has category 1 + i % 5.
BREASTS = [
    ("D1-0001", "L", "Normal", 1),
    ("D1-0002", "L", "Benign", 2),
    ("D1-0002", "R", "Normal", 1),
    ("D1-0003", "R", "Benign", 3),
    ("D1-0004", "L", "Malignant", 4),
    ("D1-0004", "R", "Exclusion", None),
    ("D2-0005", "L", "Normal", 1),
    ("D2-0005", "R", "Invisible", 5),
]


def _write_table(path: Path, rows: Sequence[Sequence], *, tompei: bool) -> None:
    """A workbook like TOMPEI-CMMD's (two header rows, the table on the second sheet) or CMMD's."""
    book = openpyxl.Workbook()
    if tompei:
        book.active.title = "README"
        sheet = book.create_sheet("Imaging Diagnosis Details Sheet")
        sheet.append(
            ["ID", "LeftRight", "Age", "classification", "Exclusion reason", "Mass", None, "BI-RADS\nCategory"]
        )
        sheet.append([None, None, None, None, None, "Location", "Shape", None])
        for patient, side, kind, birads in rows:
            sheet.append([patient, side, 50, kind, None, None, None, birads])
    else:
        sheet = book.active
        sheet.append(["ID1", "LeftRight", "Age", "number", "abnormality", "classification", "subtype"])
        for patient, side, kind, _ in rows:
            sheet.append([patient, side, 50, 2, "mass", kind, None])
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)


@pytest.fixture
def cmmd(tmp_path, write_dicom) -> Path:
    """Five patients, two of them with only one breast, and TOMPEI-CMMD's table."""
    root = tmp_path / "data"
    for patient, side, _, _ in BREASTS:
        for view in ("CC", "MLO"):
            name = root / "CMMD" / patient / "07-18-2010" / "series" / f"1-{side}{view}.dcm"
            write_dicom(name, patient=patient, view=view, ImageLaterality=side)
    _write_table(root / "TOMPEI-CMMD_clinical_data_v01_20250121.xlsx", BREASTS, tompei=True)
    return root


@pytest.fixture
def plain_cmmd(cmmd) -> Path:
    """The same patients with CMMD's own table, which has no BI-RADS."""
    next(cmmd.glob("TOMPEI*")).unlink()
    rows = [row for row in BREASTS if row[2] != "Exclusion"]
    _write_table(cmmd / "CMMD_clinicaldata_revision.xlsx", rows, tompei=False)
    return cmmd
