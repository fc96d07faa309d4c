"""Opens, checks, splits and augments data sets on disk, and draws phantoms to try things on.

>>> import tempfile
>>> from mtlkit.data import LesionDataset, make_split, open_dataset, synthesize_ultrasound
>>> with tempfile.TemporaryDirectory() as folder:
...     synthesize_ultrasound(f"{folder}/busi", cases=24, size=64)
...     catalogue = open_dataset(f"{folder}/busi")
...     split = make_split(catalogue, seed=42)
...     train = LesionDataset(catalogue.subset(split.train).records, size=64, augment="mbdi")
...     image = train[0]["image"]
>>> image.shape
torch.Size([3, 64, 64])

Needs the extra `train`. Everything is loaded on first use: checking data and drawing phantoms do not need torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtlkit.data.datasets import LesionDataset, MammographyDataset
    from mtlkit.data.dicom import DicomTags, read_dicom, read_dicom_tags, read_pixel_spacing
    from mtlkit.data.duplicates import NearDuplicate, near_duplicates
    from mtlkit.data.images import count_frames, read_image
    from mtlkit.data.layouts import LAYOUTS
    from mtlkit.data.masks import read_mask
    from mtlkit.data.open import open_dataset
    from mtlkit.data.records import VIEWS, Catalogue, Exam, Finding, Record
    from mtlkit.data.splits import Split, load_split, make_folds, make_split
    from mtlkit.data.synthetic import synthesize_layout, synthesize_mammography, synthesize_ultrasound
    from mtlkit.data.transforms import AUGMENTATIONS, augmentation, preparation
    from mtlkit.data.validate import Report, check_dataset
    from mtlkit.errors import DataError

__all__ = [
    "AUGMENTATIONS",
    "LAYOUTS",
    "VIEWS",
    "Catalogue",
    "DataError",
    "DicomTags",
    "Exam",
    "Finding",
    "LesionDataset",
    "MammographyDataset",
    "NearDuplicate",
    "Record",
    "Report",
    "Split",
    "augmentation",
    "check_dataset",
    "count_frames",
    "load_split",
    "make_folds",
    "make_split",
    "near_duplicates",
    "open_dataset",
    "preparation",
    "read_dicom",
    "read_dicom_tags",
    "read_image",
    "read_mask",
    "read_pixel_spacing",
    "synthesize_layout",
    "synthesize_mammography",
    "synthesize_ultrasound",
]

# public name -> module
_LAZY = {
    "AUGMENTATIONS": "mtlkit.data.transforms",
    "Catalogue": "mtlkit.data.records",
    "DataError": "mtlkit.errors",
    "DicomTags": "mtlkit.data.dicom",
    "Exam": "mtlkit.data.records",
    "Finding": "mtlkit.data.records",
    "LAYOUTS": "mtlkit.data.layouts",
    "LesionDataset": "mtlkit.data.datasets",
    "MammographyDataset": "mtlkit.data.datasets",
    "NearDuplicate": "mtlkit.data.duplicates",
    "Record": "mtlkit.data.records",
    "Report": "mtlkit.data.validate",
    "Split": "mtlkit.data.splits",
    "VIEWS": "mtlkit.data.records",
    "augmentation": "mtlkit.data.transforms",
    "check_dataset": "mtlkit.data.validate",
    "count_frames": "mtlkit.data.images",
    "load_split": "mtlkit.data.splits",
    "make_folds": "mtlkit.data.splits",
    "make_split": "mtlkit.data.splits",
    "near_duplicates": "mtlkit.data.duplicates",
    "open_dataset": "mtlkit.data.open",
    "preparation": "mtlkit.data.transforms",
    "read_dicom": "mtlkit.data.dicom",
    "read_dicom_tags": "mtlkit.data.dicom",
    "read_image": "mtlkit.data.images",
    "read_mask": "mtlkit.data.masks",
    "read_pixel_spacing": "mtlkit.data.dicom",
    "synthesize_layout": "mtlkit.data.synthetic",
    "synthesize_mammography": "mtlkit.data.synthetic",
    "synthesize_ultrasound": "mtlkit.data.synthetic",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | _LAZY.keys())
