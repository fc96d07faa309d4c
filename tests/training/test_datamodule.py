"""Batches: reproducible for a seed and epoch, from the parts of a split, and divided between processes."""

from types import SimpleNamespace

import pytest
import torch

from mtlkit.data import DataError, Split, make_split, open_dataset
from mtlkit.training import DataModule, EpochSampler


class Numbers:
    """A stand-in for a data set with this many items."""

    def __init__(self, count: int) -> None:
        self.count, self.epochs = count, []

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


@pytest.fixture
def catalogue(ultrasound, small):
    return open_dataset(ultrasound, classes=small.data.classes)


def test_order_depends_on_seed_and_epoch():
    numbers = Numbers(20)
    sampler = EpochSampler(numbers, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(20))
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(second) == sorted(first)
    assert second != first
    assert list(EpochSampler(numbers, seed=2)) != first
    assert numbers.epochs == [1]
    assert list(EpochSampler(numbers, 1, shuffle=False)) == list(range(20))


@pytest.mark.parametrize(("count", "world"), [(20, 2), (21, 2), (7, 4), (1, 3)])
def test_processes_share_alike(count, world):
    parts = []
    for rank in range(world):
        sampler = EpochSampler(Numbers(count), seed=5)
        sampler.rank, sampler.world = rank, world
        parts.append(list(sampler))
        assert len(parts[-1]) == len(sampler) == -(-count // world)
    merged = [part[i] for i in range(len(parts[0])) for part in parts]
    alone = list(EpochSampler(Numbers(count), seed=5))
    assert merged[:count] == alone
    assert merged[count:] == (alone * world)[: len(merged) - count]


def test_limit():
    sampler = EpochSampler(Numbers(20), seed=1, limit=6)
    assert len(sampler) == len(list(sampler)) == 6
    assert len(EpochSampler(Numbers(4), seed=1, limit=6)) == 4


def test_parts(catalogue, small):
    split = make_split(catalogue, small.data.fractions)
    data = DataModule(catalogue, split, small)
    for part, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        keys = [key for batch in loader for key in batch["key"]]
        assert keys == list(split.parts()[part])
    keys = [key for batch in data.train_dataloader() for key in batch["key"]]
    assert sorted(keys) == sorted(split.train)
    assert keys != list(split.train)


def test_only_training_is_augmented(catalogue, small):
    data = DataModule(catalogue, make_split(catalogue, small.data.fractions), small)
    for part, augmented in (("train", True), ("val", False), ("test", False)):
        dataset = data.dataset(part)
        before = dataset[0]["image"]
        dataset.set_epoch(1)
        assert torch.equal(before, dataset[0]["image"]) != augmented


def test_copies_are_of_training_alone(catalogue, small):
    split = make_split(catalogue, small.data.fractions)
    data = DataModule(catalogue, split, small.change({"data": {"copies": 3}}))
    assert len(data.dataset("train")) == 4 * len(split.train)
    assert len(data.dataset("val")) == len(split.val)


def test_a_single_image_is_left_over_for_no_batch(catalogue, small):
    split = make_split(catalogue, small.data.fractions)  # 14 for training
    for batch_size, batches in ((13, 1), (4, 4), (14, 1)):
        data = DataModule(catalogue, split, small.change({"data": {"batch_size": batch_size}}))
        assert len(data.train_dataloader()) == batches


def test_warm_up_epochs_are_short(catalogue, small):
    config = small.change({"data": {"warmup_epochs": 2, "warmup_batches": 2}})
    data = DataModule(catalogue, make_split(catalogue, config.data.fractions), config)
    lengths = []
    for epoch in range(4):
        data.trainer = SimpleNamespace(current_epoch=epoch)
        lengths.append(len(data.train_dataloader()))
    assert lengths == [2, 2, 4, 4]


def test_evaluation_has_its_own_batch_size(catalogue, small):
    config = small.change({"data": {"eval_batch_size": 2}})
    data = DataModule(catalogue, make_split(catalogue, config.data.fractions), config)
    assert next(iter(data.val_dataloader()))["image"].shape[0] == 2


def test_bad_splits(catalogue, small):
    keys = tuple(record.key for record in catalogue.records)
    with pytest.raises(ValueError, match="split: expected records in the part 'val', got none"):
        DataModule(catalogue, Split(keys, (), ()), small)
    data = DataModule(catalogue, Split(keys, ("nobody",), ()), small)
    with pytest.raises(DataError, match="there is no record 'nobody'"):
        data.val_dataloader()
