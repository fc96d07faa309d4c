"""DICOM objects of predictions: contents, references, and a validator that accepts them."""

import csv
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from mtlkit.cli import main
from mtlkit.data import DataError
from mtlkit.inference import predict, progress
from mtlkit.inference.dicom_out import longest_diameter
from mtlkit.inference.progress import Progress

hd = pytest.importorskip("highdicom")

START = "2026-03-04T05:06:07"
FILES = ("CT_small.dcm", "examples_rgb_color.dcm")
SPACING = (0.5, 0.25)


def real(name: str) -> Path:
    return Path(get_testdata_file(name, download=False))


def drawn(out: Path, row: dict) -> np.ndarray:
    with Image.open(out / row["mask"]) as image:
        return np.asarray(image) > 0


@pytest.fixture(autouse=True)
def _started(monkeypatch):
    monkeypatch.setattr(progress, "now", lambda: START)


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """A CT slice, ultrasound, three frames of it, a mammogram without geometry, and a PNG."""
    folder = tmp_path_factory.mktemp("scans")
    for name in FILES:
        shutil.copy(real(name), folder / name)
    cine = pydicom.dcmread(real("examples_rgb_color.dcm"))
    pixels = np.stack([np.roll(cine.pixel_array, 40 * i, 1) for i in range(3)])
    cine.NumberOfFrames, cine.PixelData = 3, pixels.tobytes()
    cine.SOPClassUID = cine.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
    cine.SOPInstanceUID = cine.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    cine.FrameTime, cine.FrameIncrementPointer = 40, 0x00181063
    cine.save_as(folder / "cine.dcm")
    mammogram(folder / "mammogram.dcm")
    Image.fromarray(pixels[0]).save(folder / "picture.png")
    return folder


def mammogram(path: Path) -> None:
    """A 12-bit phantom, of a patient whose name is not ASCII."""
    file = pydicom.dcmread(real("CT_small.dcm"))
    for name in ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(file, name)
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = "2.25.2"
    file.StudyInstanceUID, file.SeriesInstanceUID, file.Modality = "2.25.3", "2.25.4", "MG"
    file.SpecificCharacterSet, file.PatientName, file.PatientSex = "ISO_IR 100", "Müller^Jürgen", "F"
    rows, columns = np.mgrid[:100, :80]
    pixels = (600 + 3000 * np.exp(-((rows - 40) ** 2 + (columns - 30) ** 2) / 200)).astype(np.uint16)
    file.Rows, file.Columns = pixels.shape
    file.PixelRepresentation, file.BitsStored, file.HighBit = 0, 12, 11
    file.ImagerPixelSpacing = list(SPACING)
    for name in ("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue", "RescaleIntercept"):
        if name in file:
            delattr(file, name)
    file.PixelData = pixels.tobytes()
    file.save_as(path)


def enhanced(path: Path) -> pydicom.Dataset:
    """Two slices in one file, with positions and spacing in functional groups."""
    file = pydicom.dcmread(real("CT_small.dcm"))
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    file.NumberOfFrames, file.PixelData = 2, 2 * file.PixelData
    groups = []
    for i in range(2):
        group, position, orientation, measures = (pydicom.Dataset() for _ in range(4))
        position.ImagePositionPatient = [0, 0, 5 * i]
        orientation.ImageOrientationPatient = file.ImageOrientationPatient
        measures.PixelSpacing, measures.SliceThickness = list(SPACING), 5
        group.PlanePositionSequence, group.PlaneOrientationSequence = [position], [orientation]
        group.PixelMeasuresSequence = [measures]
        groups.append(group)
    file.PerFrameFunctionalGroupsSequence, file.SharedFunctionalGroupsSequence = groups, [pydicom.Dataset()]
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(file, name)
    file.save_as(path)
    return file


@pytest.fixture(scope="module", params=["torch", "onnxruntime"])
def found(request, small_lesion, scans, tmp_path_factory):
    """Folder and rows of a prediction with all DICOM objects."""
    out = tmp_path_factory.mktemp(request.param) / "out"
    network = small_lesion.run if request.param == "torch" else small_lesion.file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "now", lambda: START)
        told = predict(network, scans, out, dicom_seg=True, dicom_sr=True)
    return out, {row["key"]: row for row in told.rows}, told


def objects(found, what):
    out, rows, _ = found
    return {key: out / row[f"dicom_{what}"] for key, row in rows.items() if row[f"dicom_{what}"]}


# --- segmentations ----------------------------------------------------------------------------------------------------


def test_masks_are_those_of_the_pictures(found, scans):
    out, rows, _ = found
    files = objects(found, "seg")
    assert sorted(files) == ["CT_small", "cine_frame1", "cine_frame2", "cine_frame3", "examples_rgb_color", "mammogram"]
    for key, path in files.items():
        mask, segmentation = drawn(out, rows[key]), hd.seg.segread(path)
        assert (segmentation.pixel_array == mask).all()
        source = pydicom.dcmread(rows[key]["image"])
        assert (segmentation.Rows, segmentation.Columns) == (source.Rows, source.Columns) == mask.shape
        assert segmentation.StudyInstanceUID == source.StudyInstanceUID
        assert segmentation.SeriesInstanceUID != source.SeriesInstanceUID
        assert segmentation.get("FrameOfReferenceUID") == source.get("FrameOfReferenceUID")
        assert segmentation.PatientName == source.PatientName
        assert (segmentation.ContentDate, segmentation.ContentTime) == ("20260304", "050607")
        (segment,) = segmentation.SegmentSequence
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Lesion"
        assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "mtlkit"
        assert ("AnatomicRegionSequence" in segment) == (key == "mammogram")
    assert any(drawn(out, row).any() for row in rows.values())


def test_what_segmentations_refer_to(found):
    _, rows, _ = found
    seen = set()
    for key, path in objects(found, "seg").items():
        segmentation, source = hd.seg.segread(path), pydicom.dcmread(rows[key]["image"])
        group = segmentation.PerFrameFunctionalGroupsSequence[0]
        for item in (segmentation.SourceImageSequence[0], group.DerivationImageSequence[0].SourceImageSequence[0]):
            assert item.ReferencedSOPInstanceUID == source.SOPInstanceUID
            assert item.ReferencedSOPClassUID == source.SOPClassUID
            assert item.get("ReferencedFrameNumber") == (rows[key]["frame"] or None)
        (series,) = segmentation.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == source.SeriesInstanceUID
        assert "ReferencedFrameNumber" not in series.ReferencedInstanceSequence[0]
        seen.add(segmentation.SOPInstanceUID)
    assert len(seen) == 6
    ct = hd.seg.segread(objects(found, "seg")["CT_small"])
    plane = ct.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    assert plane.ImagePositionPatient == pydicom.dcmread(real("CT_small.dcm")).ImagePositionPatient


def test_an_enhanced_file_has_an_object_for_each_frame_in_its_place(small_lesion, tmp_path):
    file = enhanced(tmp_path / "a.dcm")
    rows = predict(small_lesion.file, tmp_path / "a.dcm", tmp_path / "out", dicom_seg=True).rows
    assert [row["dicom_left_out"] for row in rows] == ["", ""]
    for group, row in zip(file.PerFrameFunctionalGroupsSequence, rows, strict=True):
        segmentation = hd.seg.segread(tmp_path / "out" / row["dicom_seg"])
        own, shared = segmentation.PerFrameFunctionalGroupsSequence[0], segmentation.SharedFunctionalGroupsSequence[0]
        assert segmentation.FrameOfReferenceUID == file.FrameOfReferenceUID
        position = group.PlanePositionSequence[0].ImagePositionPatient
        assert own.PlanePositionSequence[0].ImagePositionPatient == position
        assert own.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber == row["frame"]
        assert list(shared.PixelMeasuresSequence[0].PixelSpacing) == list(SPACING)


# --- reports ----------------------------------------------------------------------------------------------------------


def test_reports(found):
    out, rows, _ = found
    for key, path in objects(found, "sr").items():
        row, source = rows[key], pydicom.dcmread(rows[key]["image"])
        report = hd.sr.srread(path)
        assert report.StudyInstanceUID == source.StudyInstanceUID
        (lesion,) = report.content.get_planar_roi_measurement_groups()
        segment = lesion.referenced_segmentation_frame
        assert segment.referenced_sop_instance_uid == hd.seg.segread(out / row["dicom_seg"]).SOPInstanceUID
        assert segment.source_image_for_segmentation.referenced_sop_instance_uid == source.SOPInstanceUID
        assert segment.source_image_for_segmentation.referenced_frame_numbers == (
            [row["frame"]] if row["frame"] else None
        )
        sizes = {one.name.meaning: (one.value, one.unit.value) for one in lesion.get_measurements()}
        mask = drawn(out, row)
        if row["area_mm2"] == "":
            assert sizes == {}
        else:
            assert sizes["Area"] == (pytest.approx(row["area_mm2"], rel=1e-5), "mm2")
            if mask.any():
                assert sizes["Long axis"][1] == "mm"
        (classes,) = report.content.get_image_measurement_groups()
        told = {one.name.meaning: one.value.meaning for one in classes.get_qualitative_evaluations()}
        assert told["Predicted class"] == row["class_predicted"]
        for one in classes.get_measurements():
            name = one.name.meaning.removeprefix("Probability of ")
            assert one.value == pytest.approx(row[f"class_p_{name}"], rel=1e-5)
    assert rows["CT_small"]["area_mm2"] != ""
    assert rows["examples_rgb_color"]["area_mm2"] == ""


def test_a_report_alone_refers_to_the_image(small_views, scans, small_lesion, tmp_path):
    alone = predict(small_lesion.file, scans / "cine.dcm", tmp_path / "alone", dicom_sr=True)
    assert not (tmp_path / "alone/dicom/seg").exists()
    report = hd.sr.srread(tmp_path / "alone" / alone.rows[1]["dicom_sr"])
    assert report.content.get_planar_roi_measurement_groups() == []
    lesion, classes = report.content.get_image_measurement_groups()
    assert lesion.finding_type.meaning == "Lesion"
    assert lesion.source_images[0].referenced_frame_numbers == [2]
    assert classes.source_images[0].referenced_sop_instance_uid == "2.25.1"
    masks = _mask(tmp_path / "masks/CT_small.png").parent
    given = predict(small_views.file, scans / "CT_small.dcm", tmp_path / "given", masks=masks, dicom_sr=True)
    report = hd.sr.srread(tmp_path / "given" / given.rows[0]["dicom_sr"])
    assert len(report.content.get_image_measurement_groups()) == 1  # classes only: the mask is not the network's


def _mask(path: Path) -> Path:
    path.parent.mkdir()
    pixels = np.zeros((128, 128), np.uint8)
    pixels[30:60, 40:80] = 255
    Image.fromarray(pixels).save(path)
    return path


def test_longest_diameter():
    generator = np.random.default_rng(0)
    assert longest_diameter(np.zeros((4, 5), bool), (1, 1)) == 0
    one = np.zeros((4, 5), bool)
    one[2, 3] = True
    assert longest_diameter(one, (3, 4)) == 5
    for _ in range(20):
        mask = generator.random((9, 7)) < 0.1
        rows, columns = np.nonzero(mask)
        corners = np.concatenate([np.stack([rows + i, columns + j], 1) for i in (0, 1) for j in (0, 1)]) * [0.5, 2.0]
        expected = np.linalg.norm(corners[:, None] - corners[None], axis=-1).max() if len(corners) else 0
        assert longest_diameter(mask, (0.5, 2.0)) == pytest.approx(expected)


# --- the folder -------------------------------------------------------------------------------------------------------


def test_images_without_objects_are_told(found):
    _, rows, told = found
    assert (rows["picture"]["dicom_seg"], rows["picture"]["dicom_left_out"]) == ("", "is not DICOM")
    assert rows["cine_frame2"]["dicom_left_out"] == ""
    assert told.remarks == [f"1 of 7 images have no DICOM objects: {rows['picture']['image']}: is not DICOM"]


def test_killed_and_resumed_is_as_if_undisturbed(small_lesion, scans, tmp_path, monkeypatch):
    def contents(folder):
        return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.*") if p.suffix in (".dcm", ".csv")}

    wanted = {"dicom_seg": True, "dicom_sr": True, "batch_size": 2}
    whole = predict(small_lesion.file, scans, tmp_path / "whole", **wanted)
    add_row = Progress.add_row

    def killed(self, index, row):
        if len(self.rows) == 3:
            raise KeyboardInterrupt
        add_row(self, index, row)

    monkeypatch.setattr(Progress, "add_row", killed)
    with pytest.raises(KeyboardInterrupt):
        predict(small_lesion.file, scans, tmp_path / "out", **wanted)
    monkeypatch.setattr(Progress, "add_row", add_row)
    (tmp_path / "out" / whole.rows[0]["dicom_sr"]).unlink()
    monkeypatch.setattr(progress, "now", lambda: "2027-01-01T00:00:00")
    with pytest.raises(DataError, match="dicom_sr: expected True"):
        predict(small_lesion.file, scans, tmp_path / "out", resume=True, dicom_seg=True, batch_size=2)
    assert predict(small_lesion.file, scans, tmp_path / "out", resume=True, **wanted) == whole
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    later = predict(small_lesion.file, scans / "CT_small.dcm", tmp_path / "later", dicom_seg=True)
    first, second = (hd.seg.segread(out / whole.rows[0]["dicom_seg"]) for out in (tmp_path / "out", tmp_path / "later"))
    assert later.rows[0]["dicom_seg"] == whole.rows[0]["dicom_seg"]
    assert first.SOPInstanceUID != second.SOPInstanceUID


def test_sources_that_break_the_standard(small_lesion, tmp_path):
    file = pydicom.dcmread(real("examples_rgb_color.dcm"))
    del file.SOPInstanceUID
    file.save_as(tmp_path / "a.dcm", enforce_file_format=False)
    file = pydicom.dcmread(real("examples_rgb_color.dcm"))
    file.SOPClassUID = "1.2.3"
    file.save_as(tmp_path / "b.dcm")
    file = pydicom.dcmread(real("examples_rgb_color.dcm"))
    for name in ("PatientID", "PatientName", "StudyDate", "AccessionNumber"):
        delattr(file, name)
    file.PatientSex = "U"
    file.save_as(tmp_path / "c.dcm")
    rows = predict(small_lesion.file, tmp_path, tmp_path / "out", dicom_seg=True).rows
    words = [row["dicom_left_out"] for row in rows]
    assert words[0] == "no object can refer to it without SOPInstanceUID"
    assert words[1].startswith("no object can refer to it (")
    assert words[2] == ""
    assert hd.seg.segread(tmp_path / "out" / rows[2]["dicom_seg"]).PatientID == ""


def test_what_cannot_be_written_is_refused_first(small_lesion, small_views, small_mammography, scans, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"^dicom_seg and dicom_sr: expected DICOM files .* none among the 1 images$"):
        predict(small_lesion.file, scans / "picture.png", out, dicom_seg=True, dicom_sr=True)
    masks = _mask(tmp_path / "masks/CT_small.png").parent
    with pytest.raises(DataError, match="draws no masks, it is given them"):
        predict(small_views.file, scans / "CT_small.dcm", out, masks=masks, dicom_seg=True)
    exam = tmp_path / "exam"
    exam.mkdir()
    shutil.copy(scans / "mammogram.dcm", exam / "L_CC.dcm")
    with pytest.raises(DataError, match="dicom_sr: expected a network that looks at single images"):
        predict(small_mammography.file, exam, out, dicom_sr=True)
    assert not out.exists()


def test_command(small_lesion, scans, tmp_path, capsys):
    arguments = ["predict", str(small_lesion.file), str(scans), "--out", str(tmp_path / "out"), "--dicom-seg"]
    assert main([*arguments, "--dicom-sr"]) == 0
    assert "1 of 7 images have no DICOM objects" in capsys.readouterr().out
    with (tmp_path / "out/predictions.csv").open(newline="") as file:
        names = [row["dicom_seg"] for row in csv.DictReader(file)]
    assert names[0] == "dicom/seg/CT_small.dcm"
    assert (tmp_path / "out" / names[0]).is_file()


# --- a validator ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
def test_dciodvfy_finds_no_error(found):
    for path in (*objects(found, "seg").values(), *objects(found, "sr").values()):
        words = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False).stderr
        assert [line for line in words.splitlines() if line.startswith("Error")] == [], path
