"""torch data sets: contents of an item, joint augmentation of image and mask, and repeatability."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from mtlkit.data import (
    AUGMENTATIONS,
    DataError,
    LesionDataset,
    MammographyDataset,
    augmentation,
    open_dataset,
)

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture
def records(busi):
    return open_dataset(busi).records


@pytest.fixture
def outlined(tmp_path):
    """A record whose image is white where its mask is, and black elsewhere."""
    mask = np.zeros((64, 80), np.uint8)
    mask[12:30, 20:60] = 255
    for name in ("images/cyst/a.png", "masks/cyst/a.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(mask).save(tmp_path / name)
    return open_dataset(tmp_path).records


# --- images and lesions -----------------------------------------------------------------------------------------------


def test_item(records):
    item = LesionDataset(records, size=32)[5]
    assert item["image"].shape == (3, 32, 32)
    assert item["image"].dtype == item["mask"].dtype == torch.float32
    assert item["mask"].shape == (1, 32, 32)
    assert item["mask"].unique().tolist() == [0, 1]
    assert (item["label"].item(), item["label"].dtype) == (1, torch.int64)
    assert item["key"] == records[5].key
    assert type(item["image"]) is type(item["mask"]) is torch.Tensor


def test_image_is_resized_and_normalised(records):
    plain = LesionDataset(records, size=40, normalize=False)[0]["image"]
    assert 0 <= plain.min() < plain.max() <= 1
    image = np.asarray(Image.open(records[0].image), dtype=np.float32) / 255
    assert abs(plain.mean().item() - image.mean()) < 0.02
    normal = LesionDataset(records, size=40)[0]["image"]
    torch.testing.assert_close(normal, (plain - MEAN[:, None, None]) / STD[:, None, None])


def test_masks_are_resized_to_the_nearest_pixel(outlined):
    mask = LesionDataset(outlined, size=128)[0]["mask"]
    assert mask.unique().tolist() == [0, 1]
    assert mask.mean().item() == pytest.approx(18 * 40 / (64 * 80), abs=0.01)


def test_masks_are_not_averaged(outlined):
    """In every 4 x 5 pixels, the first is lesion, and it is the one that is kept."""
    mask = np.zeros((64, 80), np.uint8)
    mask[::4, ::5] = 255
    Image.fromarray(mask).save(outlined[0].masks[0])
    assert LesionDataset(outlined, size=16)[0]["mask"].all()


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_image_and_mask_move_together(outlined, augment):
    data = LesionDataset(outlined, size=96, augment=augment, normalize=False)
    moved = set()
    for epoch in range(12):
        data.set_epoch(epoch)
        item = data[0]
        white = (item["image"][:1] > 0.5).float()
        assert (white != item["mask"]).float().mean() < 0.02
        moved.add(round(item["mask"][0].mean(0).argmax().item() + 1000 * item["mask"].mean().item(), 3))
    assert (len(moved) > 1) == (augment != "none")


def flip_share(augment: str, axis: int) -> float:
    """How often a corner moves to the other end of an axis, in 200 draws."""
    corner = torch.zeros(1, 32, 32, dtype=torch.uint8)
    corner[:, 2:10, 2:10] = 1
    transform, hits = augmentation(augment), 0
    for _ in range(200):
        _, mask = transform(tv_tensors.Image(corner.expand(3, -1, -1)), tv_tensors.Mask(corner))
        hits += mask.nonzero()[:, axis].float().mean().item() > 16
    return hits / 200


def test_how_often_images_are_flipped():
    for augment in ("mbdi", "mbdi_elastic", "csa_moe"):
        assert 0.35 < flip_share(augment, 1) < 0.65
        assert 0.35 < flip_share(augment, 2) < 0.65
    assert flip_share("hybrid_vssm", 1) == 0
    assert 0.35 < flip_share("hybrid_vssm", 2) < 0.65


def test_how_often_images_are_rotated():
    # a bar across the middle stays level unless the image is rotated
    bar = torch.zeros(1, 65, 65, dtype=torch.uint8)
    bar[:, 32] = 1
    for augment, share in (("mbdi", 0.7), ("csa_moe", 1.0)):
        transform, level = augmentation(augment), 0
        for _ in range(200):
            _, mask = transform(tv_tensors.Image(bar.expand(3, -1, -1)), tv_tensors.Mask(bar))
            rows = mask.nonzero()[:, 1].float()
            assert rows.max() - rows.min() <= 2 * 32 * np.sin(np.deg2rad(15)) + 2
            level += mask[0, 32].all().item()
        assert 1 - share <= level / 200 + 0.12  # a rotation by less than a pixel's height also counts as level
        assert level / 200 < 1 - share + 0.2


def test_copies(records):
    data = LesionDataset(records, size=32, augment="mbdi", copies=3)
    assert len(data) == 4 * len(records)
    plain = LesionDataset(records, size=32)
    for number in (0, 7):
        items = [data[4 * number + copy] for copy in range(4)]
        assert {item["key"] for item in items} == {records[number].key}
        assert torch.equal(items[0]["image"], plain[number]["image"])
        assert any(not torch.equal(items[0]["image"], item["image"]) for item in items[1:])


def test_augmentation_depends_on_seed_epoch_and_index_alone(records):
    data, other = LesionDataset(records, 32, "mbdi", seed=3), LesionDataset(records, 32, "mbdi", seed=4)
    first = [data[i]["image"] for i in range(len(data))]
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again = [data[i]["image"] for i in reversed(range(len(data)))][::-1]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, other[i]["image"]) for i, a in enumerate(first))
    data.set_epoch(1)
    assert not all(torch.equal(a, data[i]["image"]) for i, a in enumerate(first))
    data.set_epoch(0)
    assert torch.equal(data[0]["image"], first[0])


def test_augmentation_differs_between_seeds_epochs_images_and_copies(records):
    """The complete items differ; pixels alone may be equal by chance."""
    draws = {}
    for seed in (3, 4):
        data = LesionDataset(records, 32, "mbdi", copies=2, seed=seed)
        data._augment = lambda image, mask: (torch.rand(image.shape), mask)
        for epoch in (0, 1, 2):
            data.set_epoch(epoch)
            draws |= {(seed, epoch, i): data[i]["image"].numpy().tobytes() for i in (1, 2, 4, 5)}
    assert len(set(draws.values())) == len(draws) == 24


def test_running_workers_see_the_epoch(records):
    data = LesionDataset(records, 32, "mbdi")
    loader = DataLoader(data, batch_size=4, num_workers=1, persistent_workers=True)
    epochs = []
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        epochs.append(torch.cat([batch["image"] for batch in loader]))
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[0], epochs[2])
    assert torch.equal(epochs[0][3], data[3]["image"])


def test_cache_changes_nothing_but_the_reading(records):
    data, cached = LesionDataset(records, 32, "mbdi"), LesionDataset(records, 32, "mbdi", cache=True)
    for _ in range(2):
        assert torch.equal(cached[1]["image"], data[1]["image"])
    records[1].image.unlink()
    assert torch.equal(cached[1]["mask"], cached[1]["mask"])
    with pytest.raises(DataError, match="there is no such file"):
        data[1]


def test_a_batch(records):
    batch = next(iter(DataLoader(LesionDataset(records, 32), batch_size=3)))
    assert batch["image"].shape == (3, 3, 32, 32)
    assert batch["label"].tolist() == [0, 0, 0]
    assert batch["key"] == [record.key for record in records[:3]]


# --- mammograms -------------------------------------------------------------------------------------------------------


@pytest.fixture
def exams(cmmd):
    return open_dataset(cmmd).records


def test_exam(exams):
    item = MammographyDataset(exams, size=32)[2]  # D1-0003: the right breast only
    assert item["views"].shape == (4, 3, 32, 32)
    assert item["present"].tolist() == [False, False, True, True]
    assert not item["views"][:2].any()
    assert item["views"][2:].flatten(1).any(1).all()
    assert item["label"].tolist() == [-1, 0]
    assert item["birads"].tolist() == [-1, 2]


def test_right_breasts_are_flipped(tmp_path, cmmd, write_dicom):
    ramp = np.tile(np.linspace(0, 4000, 48).astype(np.uint16), (40, 1))
    for side in "LR":
        path = cmmd / f"CMMD/D1-0002/07-18-2010/series/1-{side}CC.dcm"
        write_dicom(path, ramp, patient="D1-0002", view="CC", ImageLaterality=side)
    item = MammographyDataset(open_dataset(cmmd).records, size=40, normalize=False)[1]
    left, right = item["views"][0, 0], item["views"][2, 0]
    assert (left.diff(dim=1) >= 0).all()
    torch.testing.assert_close(right, left.flip(1))


def test_views_are_augmented_each_by_itself(exams, write_dicom):
    data, plain = MammographyDataset(exams, 32, "hybrid_vssm"), MammographyDataset(exams, 32)
    assert not torch.equal(data[1]["views"], plain[1]["views"])
    assert torch.equal(data[1]["views"], data[1]["views"])
    assert not data[2]["views"][:2].any()  # missing views stay zero


def test_copies_of_exams(exams):
    data, plain = MammographyDataset(exams, 32, "hybrid_vssm", copies=2, seed=3), MammographyDataset(exams, 32)
    assert len(data) == 3 * len(exams)
    for number in (0, len(exams) - 1):
        first, *copies = (data[3 * number + i] for i in range(3))
        torch.testing.assert_close(first["views"], plain[number]["views"], rtol=0, atol=0)
        views = [first["views"], *(copy["views"] for copy in copies)]
        assert not any(torch.equal(views[i], views[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
        assert {item["key"] for item in (first, *copies)} == {exams[number].key}
    with pytest.raises(IndexError, match=rf"expected 0 to {3 * len(exams) - 1}"):
        data[3 * len(exams)]
    with pytest.raises(ValueError, match="copies: expected at least 0, got -1"):
        MammographyDataset(exams, copies=-1)


def test_exams_in_a_batch(exams):
    batch = next(iter(DataLoader(MammographyDataset(exams, 16), batch_size=5)))
    assert batch["views"].shape == (5, 4, 3, 16, 16)
    assert batch["birads"].shape == (5, 2)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_bad_options(records, exams):
    with pytest.raises(ValueError, match="records: expected at least one, got none"):
        LesionDataset([])
    with pytest.raises(ValueError, match="size: expected at least 1 pixel, got 0"):
        MammographyDataset(exams, size=0)
    with pytest.raises(ValueError, match="copies: expected at least 0, got -1"):
        LesionDataset(records, copies=-1)
    with pytest.raises(ValueError, match=r"augmentation: expected one of none, mbdi, .*, got 'flip'"):
        LesionDataset(records, augment="flip")
    with pytest.raises(IndexError, match="index: expected 0 to 11, got 12"):
        LesionDataset(records)[12]


def test_broken_file_is_named_when_it_is_read(records):
    records[2].image.write_bytes(b"x")
    data = LesionDataset(records)
    with pytest.raises(DataError, match=r"benign \(3\).png: cannot be read as an image"):
        data[2]


def test_an_odd_mask_is_told_in_the_first_epoch(busi, write):
    folder = busi / "Dataset_BUSI_with_GT"
    write(folder / "benign/benign (1)_mask.png", lesion=False)
    write(folder / "normal/normal (1)_mask.png", lesion=True)
    Image.new("L", (48, 40), 255).save(folder / "malignant/malignant (1)_mask.png")
    data = LesionDataset(open_dataset(busi).records, size=16)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for i in range(len(data)):
            data[i]
        told = [str(one.message) for one in found]
        assert told == [
            f"{folder}/benign/benign (1).png: its mask is empty",
            f"{folder}/malignant/malignant (1).png: its mask covers nearly all of the image",
            f"{folder}/normal/normal (1).png: its mask is not empty",
        ]
        data.set_epoch(1)
        data[0]
        assert len(found) == 3
