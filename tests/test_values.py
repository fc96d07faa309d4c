"""Any value in tags, cells and settings is read correctly or rejected by an error of mtlkit."""

import csv
import json
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian

from harness.values import JSON_VALUES, SCALARS, refusal
from mtlkit._owned import LIST, FileList
from mtlkit.cli.train import parse_changes
from mtlkit.data import count_frames, read_dicom_tags, read_pixel_spacing
from mtlkit.data.files import read_table
from mtlkit.data.images import load_image
from mtlkit.data.layouts import scan
from mtlkit.data.splits import read_split
from mtlkit.errors import DataError, OccupiedError
from mtlkit.training import RecipeError, load_ablation, load_config
from mtlkit.training.saved_run import read_data, read_figures

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MOST = 3000  # characters of a message that lists as many lines as there are wrong settings


def check(words: str) -> None:
    """Raises if an error message is long, or contains control characters."""
    assert len(words) < MOST, words


# --- JSON -------------------------------------------------------------------------------------------------------------


def like(values: dict) -> st.SearchStrategy:
    """The expected values except one, and additional fields."""
    changed = st.tuples(st.sampled_from(list(values)), JSON_VALUES).map(lambda pair: values | dict([pair]))
    return st.one_of(JSON_VALUES, changed)


SPLIT = {"train": ["a"], "val": ["b"], "test": [], "seed": 1}
DATA = {"root": "/data", "layout": "busi", "classes": ["a"], "birads": [1], "prints": {"a": "b"}}
FIGURES = {"val/iou": 0.5, "test/iou": None}


@pytest.mark.parametrize(("read", "values"), [(read_split, SPLIT), (read_data, DATA), (read_figures, FIGURES)])
def test_json(tmp_path, read, values):
    path = tmp_path / "a.json"

    @given(like(values))
    @few
    def whatever(value):
        path.write_text(json.dumps(value))
        words = refusal(lambda: read(path), DataError)
        assert words == "" or words.startswith(f"{path}: ")
        check(words)

    whatever()


@given(like({"file": "a", "size": 3, "sha256": "x"}))
@few
def test_the_list_of_a_folder(tmp_path, value):
    (tmp_path / LIST).write_text(f'{{"kind": "a run"}}\n{json.dumps(value)}\n')
    words = refusal(lambda: FileList.read(tmp_path), OccupiedError)
    assert words == "" or words.startswith(f"{tmp_path / LIST}: line 2 is damaged")


# --- recipes ----------------------------------------------------------------------------------------------------------

SECTIONS = {name: values for name, values in load_config("demo").to_dict().items() if isinstance(values, dict)}
SETTINGS = [(section, name) for section, values in SECTIONS.items() for name in values]
ASSIGNMENTS = st.builds("{}={}".format, st.text("a.", max_size=5), SCALARS) | st.text(max_size=20)


@given(st.sampled_from(SETTINGS), JSON_VALUES)
@settings(max_examples=150, deadline=None)
def test_settings(place, value):
    section, name = place
    check(refusal(lambda: load_config("demo").adjust({section: {name: value}}), RecipeError))


@given(JSON_VALUES)
@few
def test_recipes_and_tables_of_ablations(tmp_path, value):
    recipe, table = tmp_path / "a.yaml", tmp_path / "b.yaml"
    recipe.write_text(json.dumps(value))
    check(refusal(lambda: load_config(recipe), ValueError))
    row = value if isinstance(value, dict) else {"name": value, "changes": value}
    for values in (value, {"recipe": "demo", "rows": [row]}, {"recipe": value, "figures": value, "rows": value}):
        table.write_text(json.dumps(values))
        check(refusal(lambda: load_ablation(table), ValueError))


@given(st.lists(ASSIGNMENTS, max_size=3))
@few
def test_changes_by_name(texts):
    check(refusal(lambda: load_config("demo").adjust(parse_changes(texts)), ValueError))


@given(st.text(max_size=60))
@few
def test_yaml_of_any_text(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape" if text.isascii() else "replace")
    check(refusal(lambda: load_config(path), ValueError))


# --- tables -----------------------------------------------------------------------------------------------------------

CELLS = SCALARS.map(str) | st.sampled_from(["a", "b/1", "1", "L", "R", "Benign", "Malignant", "5", "mel", "D1"])
TABLES = {
    "folder": ("groups.csv", ["image", "group"]),
    "ham10000": ("HAM10000_metadata.csv", ["lesion_id", "image_id", "dx"]),
    "cmmd": ("TOMPEI_clinical.csv", ["ID", "LeftRight", "classification", "BI-RADS category"]),
}


@pytest.mark.parametrize("layout", list(TABLES))
def test_tables(tmp_path, layout):
    name, header = TABLES[layout]
    (tmp_path / "images/a").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "images/a/1.png")

    @given(st.lists(st.lists(CELLS, max_size=5), max_size=4), st.booleans())
    @few
    def whatever(rows, headed):
        with (tmp_path / name).open("w", newline="", encoding="utf-8", errors="replace") as file:
            csv.writer(file).writerows([header, *rows] if headed else rows)
        check(refusal(lambda: [str(finding)[:MOST] for finding in scan(tmp_path, layout).findings], DataError))

    whatever()


@given(st.lists(st.lists(SCALARS, max_size=3), min_size=1, max_size=3))
@few
def test_workbooks(tmp_path, rows):
    openpyxl = pytest.importorskip("openpyxl")
    book, path = openpyxl.Workbook(), tmp_path / "a.xlsx"
    for row in rows:
        try:
            book.active.append(row)
        except (ValueError, TypeError, openpyxl.utils.exceptions.IllegalCharacterError):
            return  # a cell cannot hold it
    try:
        book.save(path)
    except (ValueError, OverflowError):
        return
    check(refusal(lambda: read_table(path), DataError))


# --- tags -------------------------------------------------------------------------------------------------------------

# by their purpose: name and VR
TAGS = [
    ("PatientID", "LO"),
    ("ImageLaterality", "CS"),
    ("ViewPosition", "CS"),
    ("ViewCodeSequence", "SQ"),
    ("PixelSpacing", "DS"),
    ("ImagerPixelSpacing", "DS"),
    ("EstimatedRadiographicMagnificationFactor", "DS"),
    ("SequenceOfUltrasoundRegions", "SQ"),
    ("NumberOfFrames", "IS"),
    ("Rows", "US"),
    ("Columns", "US"),
    ("BitsAllocated", "US"),
    ("BitsStored", "US"),
    ("HighBit", "US"),
    ("PixelRepresentation", "US"),
    ("SamplesPerPixel", "US"),
    ("PlanarConfiguration", "US"),
    ("PhotometricInterpretation", "CS"),
    ("PixelPaddingValue", "US"),
    ("PixelPaddingRangeLimit", "US"),
    ("RescaleSlope", "DS"),
    ("RescaleIntercept", "DS"),
    ("WindowCenter", "DS"),
    ("WindowWidth", "DS"),
    ("VOILUTFunction", "CS"),
    ("VOILUTSequence", "SQ"),
    ("ModalityLUTSequence", "SQ"),
    ("RedPaletteColorLookupTableDescriptor", "US"),
    ("PerFrameFunctionalGroupsSequence", "SQ"),
    ("SharedFunctionalGroupsSequence", "SQ"),
    ("SOPClassUID", "UI"),
]
BYTES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"", b" ", b"x", b"1\\2", b"1\\2\\3", b"NaN", b"inf", b"-1", b"-0", b"1e400", b"9" * 40, b"\0"]),
    st.lists(st.integers(0, 65535), min_size=1, max_size=4).map(lambda numbers: np.array(numbers, "<u2").tobytes()),
)


def film() -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.PatientID = "1.2.840.10008.5.1.4.1.1.1.2", "D1"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 4, 6, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = np.arange(24, dtype="<u2").tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2"
    return dataset


@given(st.dictionaries(st.sampled_from(TAGS), BYTES, min_size=1, max_size=3), st.sampled_from(["UN", ""]))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tags(tmp_path, values, kind):
    dataset, path = film(), tmp_path / "a.dcm"
    for (name, vr), value in values.items():
        tag, value = Tag(name), value + bytes(len(value) % 2)
        dataset[tag] = RawDataElement(tag, kind or vr, len(value), value, 0, False, True)
    if refusal(lambda: dataset.save_as(path, enforce_file_format=True), Exception):
        return  # pydicom cannot write it either
    for read in (read_dicom_tags, read_pixel_spacing, count_frames, load_image, partial(load_image, frame=0)):
        words = refusal(partial(read, path), DataError)
        assert words == "" or words.startswith(f"{path}: ")
        check(words)
