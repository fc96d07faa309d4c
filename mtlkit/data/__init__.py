"""Data sets on disk, checked, split and augmented; and phantoms to try things on.

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

Needs the extra `train`.
"""

from mtlkit.data.catalogue import VIEWS, Catalogue, DataError, Exam, Finding, Record
from mtlkit.data.checking import Report, check_dataset
from mtlkit.data.datasets import LesionDataset, MammographyDataset
from mtlkit.data.dicom import DicomTags, read_dicom, read_dicom_tags
from mtlkit.data.files import read_image, read_mask
from mtlkit.data.opening import LAYOUTS, open_dataset
from mtlkit.data.splits import Split, load_split, make_split
from mtlkit.data.synthetic import synthesize_mammography, synthesize_ultrasound
from mtlkit.data.transforms import AUGMENTATIONS, augmentation, preparation

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
    "Record",
    "Report",
    "Split",
    "augmentation",
    "check_dataset",
    "load_split",
    "make_split",
    "open_dataset",
    "preparation",
    "read_dicom",
    "read_dicom_tags",
    "read_image",
    "read_mask",
    "synthesize_mammography",
    "synthesize_ultrasound",
]
