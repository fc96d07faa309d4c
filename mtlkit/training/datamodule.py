"""Batches of records: seed and epoch determine order and augmentations, for any number of processes."""

from collections.abc import Iterator
from typing import Any

import lightning
import torch
import torch.distributed
from torch.utils.data import DataLoader, Sampler

from mtlkit._distributed import all_processes
from mtlkit.data import Catalogue, LesionDataset, MammographyDataset, Split
from mtlkit.training.config import Config
from mtlkit.training.tasks import find_task

__all__ = ["DataModule", "EpochSampler"]


class EpochSampler(Sampler[int]):
    """Indices in an order that depends on seed and epoch, divided among the processes of a run.

    Process r of n takes indices r, r + n, r + 2n, ... of the order. The order is extended from its start so that all
    processes get the same number: if n does not divide a part evenly, up to n - 1 images count twice.

    Args:
        dataset: the data set; its epoch is set here.
        seed: seed of the order.
        shuffle: whether to shuffle; otherwise the order of the data set is kept.
        limit: maximal number of indices in total.
        divided: whether to divide the indices; otherwise every process gets all of them.

    Example:
        >>> from mtlkit.training import EpochSampler
        >>> class Letters(str):
        ...     def set_epoch(self, epoch):
        ...         pass
        >>> sampler = EpochSampler(Letters("abcd"), seed=1)
        >>> sampler.set_epoch(2)
        >>> sorted(sampler), list(sampler) == list(sampler)
        ([0, 1, 2, 3], True)
    """

    def __init__(
        self, dataset: Any, seed: int, *, shuffle: bool = True, limit: int | None = None, divided: bool = True
    ) -> None:
        self.dataset, self.seed, self.shuffle, self.limit, self.epoch = dataset, seed, shuffle, limit, 0
        self.rank, self.world = 0, 1
        if divided and all_processes() is not None:
            self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch; Lightning calls it before each epoch."""
        self.epoch = epoch
        self.dataset.set_epoch(epoch)

    def _order(self) -> list[int]:
        count = len(self.dataset)
        if not self.shuffle:
            return list(range(count))
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        return torch.randperm(count, generator=generator).tolist()[: self.limit]

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        whole = self.world * len(self)
        return iter((order * self.world)[:whole][self.rank :: self.world])

    def __len__(self) -> int:
        count = len(self.dataset) if self.limit is None else min(self.limit, len(self.dataset))
        return -(-count // self.world)


class DataModule(lightning.LightningDataModule):
    """Loaders of the three parts of a split.

    Args:
        catalogue: the data set.
        split: the split of the records.
        config: sizes, augmentation and batches.

    Attributes:
        divided: whether the processes of a run divide the images among them; otherwise each gets all images.

    Raises:
        ValueError: the training or validation part of the split is empty.
        DataError: the split lists an unknown record.

    Example:
        >>> import tempfile
        >>> from mtlkit.data import make_split, open_dataset, synthesize_ultrasound
        >>> from mtlkit.training import DataModule, load_config
        >>> config = load_config("demo").change({"data": {"size": 32, "batch_size": 4}})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     synthesize_ultrasound(f"{folder}/busi", cases=24, size=64)
        ...     catalogue = open_dataset(f"{folder}/busi", classes=config.data.classes)
        ...     data = DataModule(catalogue, make_split(catalogue, config.data.fractions), config)
        ...     next(iter(data.train_dataloader()))["image"].shape
        torch.Size([4, 3, 32, 32])
    """

    def __init__(self, catalogue: Catalogue, split: Split, config: Config) -> None:
        super().__init__()
        for part, keys in (("train", split.train), ("val", split.val)):
            if not keys:
                raise ValueError(f"split: expected records in the part {part!r}, got none")
        self.catalogue, self.split, self.config, self.divided = catalogue, split, config, True
        self._datasets: dict[str, Any] = {}

    def dataset(self, part: str) -> LesionDataset | MammographyDataset:
        """The data set of "train", "val" or "test"; only the first is augmented."""
        if part not in self._datasets:
            d, training = self.config.data, part == "train"
            records = self.catalogue.subset(self.split.parts()[part]).records
            self._datasets[part] = find_task(self.config.task).items(
                records, d, training=training, seed=self.config.seed, cache=d.cache
            )
        return self._datasets[part]

    def _loader(self, part: str, batch_size: int, limit: int | None = None) -> DataLoader[Any]:
        d, training = self.config.data, part == "train"
        sampler = EpochSampler(
            self.dataset(part), self.config.seed, shuffle=training, limit=limit, divided=self.divided
        )
        return DataLoader(
            self.dataset(part),
            batch_size=batch_size,
            sampler=sampler,
            num_workers=d.workers,
            # BatchNorm over vectors cannot train on a single image
            drop_last=training and len(sampler) > batch_size and len(sampler) % batch_size == 1,
            persistent_workers=d.workers > 0 and d.warmup_epochs == 0,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled and augmented; limited in number during warm-up epochs."""
        d = self.config.data
        warming = self.trainer is not None and self.trainer.current_epoch < d.warmup_epochs
        return self._loader("train", d.batch_size, d.warmup_batches * d.batch_size if warming else None)

    def val_dataloader(self) -> DataLoader[Any]:
        """As it is."""
        return self._loader("val", self.config.data.eval_batch_size or self.config.data.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """As it is."""
        return self._loader("test", self.config.data.eval_batch_size or self.config.data.batch_size)
