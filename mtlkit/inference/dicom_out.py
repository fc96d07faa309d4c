"""Predictions as DICOM objects that refer to their source: Segmentations, and measurement reports (TID 1500).

    dicom/seg/KEY.dcm    the mask that the network predicted, in the pixel matrix of its source
    dicom/sr/KEY.dcm     area, longest diameter, class and probabilities

Each image or frame gets its own objects. Their UIDs are hashes of source, frame, network, content and the start time of
the prediction. A prediction that was interrupted and resumed therefore gives the same objects; a later one gives new
objects, as DICOM requires.

Sources: DICOM PS3.3, A.51 (Segmentation IOD) and A.35.3 (Comprehensive SR); PS3.16, TID 1500, 1410 and 1501.
"""

import uuid
import zlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

import mtlkit
from mtlkit._output import Files
from mtlkit.data import Exam, Record
from mtlkit.data.dicom_file import Tags, first_line, is_dicom, open_dicom
from mtlkit.errors import DataError
from mtlkit.inference.networks import OpenNetwork

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["DicomWriter", "check_dicom", "longest_diameter"]

SCHEME = "99MTLKIT"  # coding scheme of the classes, which have no public codes
SERIES = {"seg": 9001, "sr": 9002}  # series numbers
NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# attributes that an object must have, and that may be empty
EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "Modality"),
)
PLANES = ("PlaneOrientationSequence", "PixelMeasuresSequence")


def check_dicom(network: OpenNetwork, records: Sequence[Record] | Sequence[Exam], *, seg: bool, sr: bool) -> None:
    """Raises if no object can be written.

    Raises:
        DataError: the network takes exams, or predicts no masks for `seg`; or none of the images is DICOM.
    """
    wanted = " and ".join(name for name, on in (("dicom_seg", seg), ("dicom_sr", sr)) if on)
    if network.facts.takes_exams:
        raise DataError(f"{wanted}: expected a network that looks at single images, got that of {network.source}")
    if seg and "masks" in network.facts.inputs:
        raise DataError(f"dicom_seg: the network of {network.source} draws no masks, it is given them")
    if not any(is_dicom(path) for path in {record.files[0] for record in records}):
        raise DataError(f"{wanted}: expected DICOM files to refer to, got none among the {len(records)} images")


def longest_diameter(mask: np.ndarray, spacing: tuple[float, float]) -> float:
    """Returns the longest distance between two points of a mask, whose pixels are rectangles; 0 for an empty mask.

    Args:
        mask: (H, W), bool.
        spacing: distances between rows and between columns; the result has the same unit.

    Example:
        >>> import numpy as np
        >>> from mtlkit.inference.dicom_out import longest_diameter
        >>> longest_diameter(np.ones((3, 4), bool), (1.0, 1.0))
        5.0
    """
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return 0.0
    left = mask[rows].argmax(1)
    right = mask.shape[1] - mask[rows, ::-1].argmax(1)
    points = np.concatenate([np.stack([rows + down, side], 1) for down in (0, 1) for side in (left, right)])
    corners = _hull(np.unique(points, axis=0) * np.asarray(spacing))
    return float(np.sqrt(((corners[:, None] - corners[None]) ** 2).sum(-1).max()))


def _hull(points: np.ndarray) -> np.ndarray:
    """Returns the corners of the convex hull of sorted points (N, 2)."""

    def chain(ordered: list[list[float]]) -> list[list[float]]:
        kept: list[list[float]] = []
        for y, x in ordered:
            while len(kept) > 1:
                (y0, x0), (y1, x1) = kept[-2:]
                if (y1 - y0) * (x - x0) - (x1 - x0) * (y - y0) > 0:
                    break
                kept.pop()
            kept.append([y, x])
        return kept

    ordered = points.tolist()
    return np.array(chain(ordered) + chain(ordered[::-1]))


@dataclass(frozen=True)
class DicomWriter:
    """Writes the DICOM objects of images.

    Args:
        network: the network that made the predictions.
        started: start of the prediction, ISO 8601.
        seg: whether to write Segmentations.
        sr: whether to write measurement reports.
    """

    network: OpenNetwork
    started: str
    seg: bool
    sr: bool

    def write(
        self,
        place: Files,
        record: Record,
        number: int,
        mask: np.ndarray | None,
        spacing: tuple[float, float] | None,
        probabilities: Mapping[str, np.ndarray],
    ) -> dict[str, str]:
        """Writes the objects of an image.

        Args:
            place: the folder of the prediction.
            record: the image.
            number: index of the image.
            mask: predicted mask, (H, W), bool.
            spacing: mm between rows and between columns.
            probabilities: probabilities of the classes, by classifier.

        Returns:
            Cells for the row of the image: the names of the files, "" for those not written, and the reason.
        """
        objects: dict[str, Any] = {}
        why = ""
        try:
            source = _source(record)
            if self.seg and mask is not None:
                objects["seg"] = self._segmentation(source, record.frame, number, mask)
            if self.sr:
                objects["sr"] = self._report(
                    source, record.frame, number, mask, spacing, probabilities, objects.get("seg")
                )
        except DataError as error:
            objects, why = {}, error.text
        except MemoryError:
            raise
        except Exception as error:  # highdicom raises many types for sources that violate the standard
            objects, why = {}, f"no object can refer to it ({first_line(error)})"
        cells = {}
        for what in (name for name in SERIES if getattr(self, name)):
            cells[f"dicom_{what}"] = name = f"dicom/{what}/{record.key}.dcm" if what in objects else ""
            if name:
                with place.file(name) as file:
                    objects[what].save_as(file, enforce_file_format=True)
        return cells | {"dicom_left_out": why}

    # --- objects ------------------------------------------------------------------------------------------------------

    def _segmentation(self, source: "Dataset", frame: int | None, number: int, mask: np.ndarray) -> Any:
        import highdicom as hd
        from pydicom.sr.codedict import codes

        if (source.Rows, source.Columns) != mask.shape:
            size = f"{source.Rows} x {source.Columns}"
            raise DataError(f"its tags say {size} pixels, and it has {mask.shape[0]} x {mask.shape[1]}")
        content = zlib.crc32(np.packbits(mask).tobytes())
        facts = self.network.facts
        breast = source.Modality == "MG" or source.get("BodyPartExamined") == "BREAST"
        segment = hd.seg.SegmentDescription(
            segment_number=1,
            segment_label="Lesion",
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Lesion,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=hd.AlgorithmIdentificationSequence(
                name="mtlkit",
                family=codes.DCM.ArtificialIntelligence,
                version=mtlkit.__version__,
                parameters=self._parameters(),
            ),
            tracking_uid=self._uid("lesion", source, frame, content),
            tracking_id="Lesion",
            anatomic_regions=[codes.SCT.Breast] if breast else None,
        )
        found = hd.seg.Segmentation(
            source_images=[source],
            pixel_array=mask.astype(np.uint8)[None],
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[segment],
            series_instance_uid=self._uid("seg series", source),
            series_number=SERIES["seg"],
            sop_instance_uid=self._uid("seg", source, frame, content),
            instance_number=number + 1,
            manufacturer="mtlkit",
            manufacturer_model_name=facts.network,
            software_versions=mtlkit.__version__,
            device_serial_number=self.network.weights[:64],  # an ensemble joins those of its members
            content_label="LESION",
            content_description=f"Lesion, by mtlkit ({facts.network})",
            omit_empty_frames=False,
            series_description=f"Lesion, by mtlkit ({facts.network})",
            specific_character_set="ISO_IR 192",
        )
        organization = self._uid("dimensions", source, frame)
        for item in (*found.DimensionOrganizationSequence, *found.DimensionIndexSequence):
            item.DimensionOrganizationUID = organization
        (shared,) = found.SharedFunctionalGroupsSequence
        if "PixelMeasuresSequence" in shared and "SliceThickness" not in shared.PixelMeasuresSequence[0]:
            del shared.PixelMeasuresSequence  # readers would expect a slice thickness in it
        if "PlaneOrientationSequence" not in shared:
            found.PatientOrientation = source.get("PatientOrientation", "")
        if frame is not None:
            _name_frame(found, frame + 1)
        return self._dated(found)

    def _report(
        self,
        source: "Dataset",
        frame: int | None,
        number: int,
        mask: np.ndarray | None,
        spacing: tuple[float, float] | None,
        probabilities: Mapping[str, np.ndarray],
        segmentation: Any,
    ) -> Any:
        from highdicom import sr
        from highdicom.coding_schemes import CodingSchemeIdentificationItem
        from pydicom.sr.codedict import codes

        facts = self.network.facts
        algorithm = sr.AlgorithmIdentification(
            name="mtlkit",
            version=mtlkit.__version__,
            parameters=[f"{name}: {value}" for name, value in self._parameters().items()],
            family=codes.DCM.ArtificialIntelligence,
        )
        where = (source.SOPClassUID, source.SOPInstanceUID, None if frame is None else [frame + 1])
        groups: list[Any] = []
        content: list[Any] = [f"{name} {values.tolist()}" for name, values in probabilities.items()]
        if mask is not None:
            content.append(zlib.crc32(np.packbits(mask).tobytes()))
            lesion: dict[str, Any] = {
                "tracking_identifier": sr.TrackingIdentifier(
                    uid=self._uid("lesion", source, frame, content[-1]), identifier="Lesion"
                ),
                "finding_type": codes.SCT.Lesion,
                "algorithm_id": algorithm,
                "measurements": _sizes(mask, spacing),
            }
            if segmentation is None:
                image = sr.SourceImageForMeasurementGroup(*where)
                groups.append(sr.MeasurementsAndQualitativeEvaluations(**lesion, source_images=[image]))
            else:
                segment = sr.ReferencedSegmentationFrame(
                    segmentation.SOPClassUID,
                    segmentation.SOPInstanceUID,
                    frame_number=1,
                    segment_number=1,
                    source_image=sr.SourceImageForSegmentation(*where),
                )
                del segment[0].ReferencedSOPSequence[0].ReferencedSegmentNumber  # either this or a frame
                groups.append(sr.PlanarROIMeasurementsAndQualitativeEvaluations(**lesion, referenced_segment=segment))
        for task, values in probabilities.items():
            names = facts.classes[task]
            groups.append(
                sr.MeasurementsAndQualitativeEvaluations(
                    tracking_identifier=sr.TrackingIdentifier(
                        uid=self._uid(f"classes {task}", source, frame, *content), identifier=f"Image, {task}"
                    ),
                    algorithm_id=algorithm,
                    measurements=[
                        sr.Measurement(_code(f"Probability of {name}"), _decimal(p), codes.UCUM.NoUnits)
                        for name, p in zip(names, values.tolist(), strict=True)
                    ],
                    qualitative_evaluations=[
                        sr.QualitativeEvaluation(_code(f"Predicted {task}"), _code(names[int(values.argmax())]))
                    ],
                    source_images=[sr.SourceImageForMeasurementGroup(*where)],
                )
            )
        device = sr.DeviceObserverIdentifyingAttributes(
            uid=_hashed(self.network.weights, mtlkit.__version__),
            name="mtlkit",
            manufacturer_name="mtlkit",
            model_name=facts.network,
            serial_number=self.network.weights,
        )
        report = sr.MeasurementReport(
            observation_context=sr.ObservationContext(
                observer_device_context=sr.ObserverContext(codes.DCM.Device, device)
            ),
            procedure_reported=codes.SCT.ImagingProcedure,
            imaging_measurements=groups,
            title=codes.DCM.ImagingMeasurementReport,
        )
        found = sr.ComprehensiveSR(
            evidence=[source] if segmentation is None else [source, segmentation],
            content=report,
            series_instance_uid=self._uid("sr series", source),
            series_number=SERIES["sr"],
            sop_instance_uid=self._uid("sr", source, frame, *content),
            instance_number=number + 1,
            manufacturer="mtlkit",
            is_complete=True,
            series_description=f"Measurements, by mtlkit ({facts.network})",
            specific_character_set="ISO_IR 192",
            coding_schemes=[CodingSchemeIdentificationItem(SCHEME, name="mtlkit")],
        )
        return self._dated(found)

    # --- shared -------------------------------------------------------------------------------------------------------

    def _parameters(self) -> dict[str, str]:
        return {"network": self.network.facts.network, "weights": self.network.weights, "engine": self.network.engine}

    def _uid(self, what: str, source: "Dataset", *more: Any) -> str:
        """Returns the UID of the series for the source's series or, with `more`, of the object for the source image."""
        of = (source.SOPInstanceUID if more else source.SeriesInstanceUID, *more)
        return _hashed(what, *self._parameters().values(), mtlkit.__version__, self.started, *of)

    def _dated(self, found: Any) -> Any:
        """Sets the times of an object to the start of the prediction, and returns it."""
        time = datetime.fromisoformat(self.started)
        for what in ("InstanceCreation", "Content", "Series"):
            setattr(found, f"{what}Date", f"{time:%Y%m%d}")
            setattr(found, f"{what}Time", f"{time:%H%M%S}")
        for item in found.get("ContributingEquipmentSequence", []):  # added by highdicom
            item.ContributionDateTime = f"{time:%Y%m%d%H%M%S}"
        return found


def _hashed(*parts: Any) -> str:
    """Returns a UID from a UUID (prefix 2.25) that depends only on the parts."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, repr(parts)).int}"


def _source(record: Record) -> "Dataset":
    """Returns the tags of a source image, reduced to the frame of the record.

    Raises:
        DataError: the image is not DICOM, cannot be read, or lacks a tag that identifies it.
    """
    if not is_dicom(record.image):
        raise DataError("is not DICOM")
    tags = open_dicom(record.image, max_pixels=2**32)
    missing = [name for name in NEEDED if not tags.text(name)]
    if missing:
        raise DataError(f"no object can refer to it without {', '.join(missing)}")
    source = tags.dataset
    for tag in list(source.keys()):
        try:
            source[tag]
        except Exception:  # an invalid value, which must not be copied
            del source[tag]
    for name in EMPTY:
        if source.get(name) is None:
            setattr(source, name, "")
    if source.PatientSex not in ("M", "F", "O"):
        source.PatientSex = ""
    if "NumberOfFrames" in source:
        source.NumberOfFrames = 1
        _keep_frame(tags, record.frame or 0)
    return source


def _keep_frame(tags: Tags, index: int) -> None:
    """Keeps the functional groups of one frame; moves its planes to the shared groups, where highdicom reads them."""
    from pydicom import Dataset

    own = tags.items("PerFrameFunctionalGroupsSequence")[index : index + 1]
    shared = tags.items("SharedFunctionalGroupsSequence") or [Dataset()]
    for name in PLANES:
        if own and name in own[0]:
            setattr(shared[0], name, own[0][name].value)
    if "PixelMeasuresSequence" not in shared[0]:
        shared[0].PixelMeasuresSequence = [Dataset()]  # highdicom rejects multi-frame images without it
    tags.dataset.SharedFunctionalGroupsSequence = shared
    tags.dataset.PerFrameFunctionalGroupsSequence = own


def _name_frame(segmentation: Any, number: int) -> None:
    """Writes into a segmentation to which frame of its source it belongs."""
    item = deepcopy(segmentation.SourceImageSequence[0])  # highdicom shares it with other sequences
    item.ReferencedFrameNumber = number
    segmentation.SourceImageSequence = [item]
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        for derivation in group.DerivationImageSequence:
            for source in derivation.SourceImageSequence:
                source.ReferencedFrameNumber = number


def _sizes(mask: np.ndarray, spacing: tuple[float, float] | None) -> list[Any]:
    """Returns area and longest diameter if the spacing is known; only an area of 0 for an empty mask."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    if spacing is None:
        return []
    area = int(mask.sum()) * spacing[0] * spacing[1]
    found = [sr.Measurement(codes.SCT.Area, _decimal(area), codes.UCUM.SquareMillimeter)]
    if mask.any():
        long = _decimal(longest_diameter(mask, spacing))
        found.append(sr.Measurement(codes.SCT.LongAxis, long, codes.UCUM.Millimeter))
    return found


def _decimal(value: float) -> float:
    """Rounds to the six digits of predictions.csv, which fit into a decimal string."""
    return float(f"{value:.6g}")


def _code(meaning: str) -> Any:
    """Returns a code of mtlkit's own scheme."""
    from highdicom.sr import CodedConcept

    text = meaning.replace("\\", "/")[:64]
    value = text if len(text) <= 16 and text.isascii() else f"{zlib.crc32(meaning.encode()):08x}"
    return CodedConcept(value, SCHEME, text)


def remarks_on(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a remark on images without objects, if there are any."""
    left = [row for row in rows if row.get("dicom_left_out")]
    if not left:
        return []
    first = left[0]
    which = f"{first['image']}: {first['dicom_left_out']}"
    return [f"{len(left)} of {len(rows)} images have no DICOM objects: {which}"]
