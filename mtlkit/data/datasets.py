"""torch data sets of records: images with masks, and exams with four views.

An item is a dictionary of tensors and of its key. Its random numbers depend only on the seed, the epoch and the index,
not on the number of workers or on earlier items: a run that is resumed after a kill sees the same data.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from mtlkit.data.items import read_lesion, read_views
from mtlkit.data.pixels import MAX_PIXELS
from mtlkit.data.records import VIEWS, Exam, Record
from mtlkit.data.transforms import augmentation, preparation

__all__ = ["LesionDataset", "MammographyDataset"]


class _Augmented(Dataset[Any]):
    """Shared by both data sets: the seed, the epoch and the transforms."""

    def __init__(
        self,
        records: Sequence[Any],
        size: int,
        augment: str,
        copies: int,
        seed: int,
        normalize: bool,
        cache: bool,
        max_pixels: int,
    ) -> None:
        if not records:
            raise ValueError("records: expected at least one, got none")
        if size < 1:
            raise ValueError(f"size: expected at least 1 pixel, got {size!r}")
        if copies < 0:
            raise ValueError(f"copies: expected at least 0, got {copies!r}")
        self.copies = copies
        self.records: tuple[Any, ...] = tuple(records)
        self.size = size
        self.seed = seed
        self.max_pixels = max_pixels
        self._augment, self._prepare = augmentation(augment), preparation(normalize=normalize)
        self._cache: dict[int, Any] | None = {} if cache else None
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # shared with workers that are already running

    def __len__(self) -> int:
        return len(self.records) * (1 + self.copies)

    def _number(self, index: int) -> int:
        """The index of an item's record."""
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        return index // (1 + self.copies)

    def _is_augmented(self, index: int) -> bool:
        """Whether an item is augmented: it is a copy, or there are no copies."""
        return self.copies == 0 or index % (1 + self.copies) > 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch; each epoch has its own augmentations."""
        self._epoch.fill_(epoch)

    def _read(self, index: int) -> Any:
        raise NotImplementedError

    def _decoded(self, index: int) -> Any:
        if self._cache is None:
            return self._read(index)
        if index not in self._cache:
            self._cache[index] = self._read(index)
        return self._cache[index]

    @contextmanager
    def _draw(self, index: int) -> Iterator[None]:
        """Uses this item's random numbers inside the block and restores the random state afterwards."""
        sequence = np.random.SeedSequence([self.seed, int(self._epoch), index])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(sequence.generate_state(1)[0]))
            yield


class LesionDataset(_Augmented):
    """Images with their lesion's mask and class.

    Args:
        records: records of a catalogue, for example `catalogue.subset(split.train).records`.
        size: pixels per side; the papers use 224.
        augment: one of `AUGMENTATIONS`.
        copies: number of augmented copies of each image, in addition to the image itself; MBDI uses 3. With 0, every
            image occurs once, augmented.
        seed: seed of the augmentations.
        normalize: whether to normalise to ImageNet's mean and standard deviation; see `preparation`.
        cache: whether each worker keeps the resized images in memory, 4 bytes per pixel.
        max_pixels: maximal number of pixels in a frame.

    An item has "image" (3, size, size) float32, "mask" (1, size, size) float32 of 0 and 1, "label" int64 (-1 if
    unknown), "segmented" bool (whether the mask is known), "spacing" (2,) float32 (mm between rows and between columns,
    NaN if the file does not say) and "key".

    Raises:
        ValueError: there is no record, or an option is unknown.
        DataError: when an item is read, if its file is missing or damaged, or differs in size from its mask.

    Warns:
        UserWarning: when an item is read in the first epoch, if its mask is empty or full, or not empty although its
            class has no lesion.

    Example:
        >>> import tempfile
        >>> from mtlkit.data import LesionDataset, open_dataset, synthesize_ultrasound
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     synthesize_ultrasound(f"{folder}/busi", cases=6, size=64)
        ...     item = LesionDataset(open_dataset(f"{folder}/busi").records, size=32, augment="mbdi")[0]
        >>> item["image"].shape, item["mask"].shape, int(item["label"])
        (torch.Size([3, 32, 32]), torch.Size([1, 32, 32]), 0)
    """

    def __init__(
        self,
        records: Sequence[Record],
        size: int = 224,
        augment: str = "none",
        copies: int = 0,
        seed: int = 0,
        *,
        normalize: bool = True,
        cache: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(records, size, augment, copies, seed, normalize, cache, max_pixels)

    def _read(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Image (3, size, size) and mask (1, size, size), uint8, and spacing (2,)."""
        first = not self._epoch  # warnings are not repeated in later epochs
        found = read_lesion(self.records[index], self.size, max_pixels=self.max_pixels, warn=first)
        return torch.from_numpy(found.image), torch.from_numpy(found.mask), torch.tensor(found.spacing)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = self._number(index)
        record, (pixels, outline, spacing) = self.records[number], self._decoded(number)
        image, mask = tv_tensors.Image(pixels), tv_tensors.Mask(outline)
        if self._is_augmented(index):
            with self._draw(index):
                image, mask = self._augment(image, mask)
        return {
            "image": self._prepare(image).as_subclass(Tensor),
            "mask": mask.as_subclass(Tensor).float(),
            "label": torch.tensor(record.label),
            "segmented": torch.tensor(record.segmented),
            "spacing": spacing,
            "key": record.key,
        }


class MammographyDataset(_Augmented):
    """Exams with four views, L-CC, L-MLO, R-CC and R-MLO; right ones are flipped so that all breasts point one way.

    Args:
        records: exams of a catalogue, for example `catalogue.subset(split.train).records`.
        size: pixels per side; the paper uses 512.
        augment: one of `AUGMENTATIONS`; each view is augmented separately.
        copies: number of augmented copies of each exam, in addition to the exam itself. With 0, every exam occurs once,
            augmented.
        seed: seed of the augmentations.
        normalize: whether to normalise to ImageNet's mean and standard deviation; see `preparation`.
        cache: whether each worker keeps the resized views in memory, one byte per pixel.
        max_pixels: maximal number of pixels in a frame.

    An item has "views" (4, 3, size, size) float32, zeros for a missing view, "present" (4,) bool, "label"
    (2,) and "birads" (2,) int64 of the left and the right breast (-1 if unknown), and "key".

    Raises:
        ValueError: there is no exam, or an option is unknown.
        DataError: when an item is read, if a file is missing or damaged.

    Example:
        >>> import tempfile
        >>> from mtlkit.data import MammographyDataset, open_dataset, synthesize_mammography
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     synthesize_mammography(f"{folder}/cmmd", cases=5, size=64)
        ...     item = MammographyDataset(open_dataset(f"{folder}/cmmd").records, size=32)[0]
        >>> item["views"].shape, item["present"].shape, item["birads"].shape
        (torch.Size([4, 3, 32, 32]), torch.Size([4]), torch.Size([2]))
    """

    def __init__(
        self,
        records: Sequence[Exam],
        size: int = 512,
        augment: str = "none",
        copies: int = 0,
        seed: int = 0,
        *,
        normalize: bool = True,
        cache: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(records, size, augment, copies, seed, normalize, cache, max_pixels)

    def _read(self, index: int) -> list[Tensor | None]:
        """The views, each (1, size, size), uint8."""
        views = read_views(self.records[index], self.size, max_pixels=self.max_pixels)
        return [None if view is None else torch.from_numpy(np.ascontiguousarray(view)) for view in views]

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = self._number(index)
        exam = self.records[number]
        views = torch.zeros(len(VIEWS), 3, self.size, self.size)
        with self._draw(index):
            for i, pixels in enumerate(self._decoded(number)):
                if pixels is not None:
                    image = tv_tensors.Image(pixels.expand(3, -1, -1))
                    views[i] = self._prepare(self._augment(image) if self._is_augmented(index) else image)
        return {
            "views": views,
            "present": torch.tensor([path is not None for path in exam.views]),
            "label": torch.tensor(exam.labels),
            "birads": torch.tensor(exam.birads),
            "key": exam.key,
        }
