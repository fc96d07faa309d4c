"""Phantoms: readable by the loaders, reproducible from a seed, at any size, and similar to real images."""

import hashlib
import json

import numpy as np
import pytest

from mtlkit.data import (
    DataError,
    LesionDataset,
    MammographyDataset,
    check_dataset,
    open_dataset,
    read_dicom,
    synthesize_mammography,
    synthesize_ultrasound,
)
from mtlkit.data.synthetic import Breast, draw_mammogram, draw_ultrasound


def digest(folder) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- ultrasound -------------------------------------------------------------------------------------------------------


def test_ultrasound_is_read_by_the_loader_of_busi(tmp_path):
    steps = []
    synthesize_ultrasound(tmp_path / "us", cases=12, size=96, progress=lambda done, of: steps.append((done, of)))
    assert steps == [(i, 12) for i in range(1, 13)]
    report = check_dataset(tmp_path / "us")
    assert report.ok
    assert not report.findings
    assert report.catalogue.layout == "busi"
    assert report.catalogue.counts() == {"benign": 7, "malignant": 3, "normal": 2}
    assert LesionDataset(report.catalogue.records, size=64)[0]["mask"].any()


def test_shares_are_those_of_busi():
    from mtlkit.data.synthetic.ultrasound import class_counts

    assert class_counts(780) == {"benign": 437, "malignant": 210, "normal": 133}
    assert class_counts(3) == {"benign": 1, "malignant": 1, "normal": 1}
    for cases in range(3, 60):
        assert sum(class_counts(cases).values()) == cases
        assert min(class_counts(cases).values()) >= 1


@pytest.mark.parametrize("size", [64, 97, (80, 120)])
def test_ultrasound_of_any_size(size):
    image, mask = draw_ultrasound("malignant", size, seed=5)
    assert image.shape == mask.shape == ((size, size) if isinstance(size, int) else size)
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 255}


def test_lesions_look_as_they_should():
    inside, behind, ratio = {}, {}, {}
    for kind in ("benign", "malignant"):
        dark, shadow, shape = [], [], []
        for seed in range(30):
            image, mask = draw_ultrasound(kind, 128, seed)
            rows, columns = np.nonzero(mask)
            shape.append((np.ptp(columns) + 1) / (np.ptp(rows) + 1))
            dark.append(image[mask > 0].mean() - np.median(image[40:90]))
            middle = slice(int(columns.mean()) - 3, int(columns.mean()) + 4)
            below = slice(min(rows.max() + 4, 118), min(rows.max() + 22, 128))
            beside = np.delete(image[below], np.arange(columns.min(), columns.max() + 1), axis=1)
            shadow.append(image[below, middle].mean() - beside.mean())
        inside[kind], behind[kind], ratio[kind] = np.mean(dark), np.mean(shadow), np.mean(shape)
    print(inside, behind, ratio)
    assert max(inside.values()) < -15  # darker than its surroundings
    assert behind["malignant"] < -10  # a shadow
    assert behind["benign"] > 0  # brighter behind
    assert ratio["benign"] > 1.3  # wider than tall
    assert ratio["malignant"] < 1.15


def test_normal_has_no_lesion():
    for seed in range(5):
        assert not draw_ultrasound("normal", 64, seed)[1].any()


def test_speckle():
    image, mask = draw_ultrasound("benign", 256, 1)
    rows, columns = np.nonzero(mask)
    patch = image[int(rows.mean()) - 8 : int(rows.mean()) + 8, int(columns.mean()) - 8 : int(columns.mean()) + 8]
    patch = patch.astype(float) - patch.mean()
    assert patch.std() > 8  # speckle within a homogeneous lesion
    # grains are longer across the beam than along it
    across = (patch[:, 1:] * patch[:, :-1]).mean() / patch.var()
    along = (patch[1:] * patch[:-1]).mean() / patch.var()
    assert across > along > 0


# --- mammography ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mammograms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms") / "mg"
    synthesize_mammography(folder, cases=10, size=96, seed=1)
    return folder


def test_mammography_is_read_by_the_loader_of_cmmd(mammograms):
    report = check_dataset(mammograms)
    assert report.ok, report.findings
    assert report.catalogue.layout == "cmmd"
    exams = report.catalogue.records
    assert len(exams) == 10
    assert {max(exam.birads) for exam in exams} == {0, 1, 2, 3, 4}
    assert all(exam.labels[i] == 1 for exam in exams for i in range(2) if exam.birads[i] == 4)
    assert all(exam.labels[i] == 0 for exam in exams for i in range(2) if 0 <= exam.birads[i] < 3)
    assert any(None in exam.views for exam in exams)
    assert len(open_dataset(mammograms, birads=(1, 5))) >= 4
    item = MammographyDataset(exams, size=64, normalize=False)[0]
    # after right images are flipped, every chest wall is at the left edge
    for view, present in zip(item["views"], item["present"], strict=True):
        assert not present or view[0, :, 0].mean() > view[0, :, -8:].mean() + 0.05


def test_monochrome1_reads_as_the_others(mammograms):
    for exam in open_dataset(mammograms).records[:5]:
        view = read_dicom(exam.files[0])
        assert view[:4].mean() < 0.2 or "MLO" in str(exam.files[0])
        assert np.median(view) < 0.35  # most of a mammogram is black


def test_the_breasts_of_a_woman_are_alike():
    outlines = [[draw_mammogram(view, Breast(1), 96, seed) > 0.05 for view in ("L-CC", "R-CC")] for seed in range(8)]
    own = [(left != right[:, ::-1]).mean() for left, right in outlines]
    others = [(outlines[i][0] != outlines[i - 1][0]).mean() for i in range(8)]
    assert np.mean(own) < 0.05
    assert np.mean(own) < 0.6 * np.mean(others)


def test_lesions_and_density_absorb():
    for birads, least in ((2, 0.08), (3, 0.08), (5, 0.12)):
        plain, lesion = (draw_mammogram("L-CC", Breast(b, b == 5, density=0.1), 256, seed=2) for b in (1, birads))
        # the tissue is drawn before the lesion, from the same random numbers: only the lesion and noise differ
        assert (lesion - plain).max() > least + 0.05
    means = [draw_mammogram("L-MLO", Breast(density=d), 128, seed=2).mean() for d in (0.0, 0.5, 1.0)]
    assert means[0] < means[1] < means[2]


# --- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "cases"), [(synthesize_ultrasound, 4), (synthesize_mammography, 5)])
def test_a_seed_decides_every_byte(tmp_path, make, cases):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make(tmp_path / name, cases=cases, size=64, seed=seed)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a") != digest(tmp_path / "c")
    assert json.loads((tmp_path / "a" / "synthetic.json").read_text())["seed"] == 3


def test_nothing_is_overwritten_without_force(tmp_path):
    synthesize_ultrasound(tmp_path / "us", cases=3, size=64)
    before = digest(tmp_path / "us")
    with pytest.raises(DataError, match="exists already"):
        synthesize_ultrasound(tmp_path / "us", cases=3, size=64, seed=1)
    assert digest(tmp_path / "us") == before
    synthesize_ultrasound(tmp_path / "us", cases=4, size=64, seed=1, force=True)
    assert len(digest(tmp_path / "us")) == 10


def test_an_interrupted_run_leaves_nothing(tmp_path):
    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize_ultrasound(tmp_path / "us", cases=3, size=64, progress=stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cases": 2}, "cases: expected an integer that is at least 3, got 2"),
        ({"size": 32}, "size: expected an integer that is at least 64, got 32"),
        ({"size": 9999}, "size: expected at most 4096 pixels, got 9999"),
        ({"seed": -1}, "seed: expected an integer that is at least 0, got -1"),
        ({"cases": 2.5}, "cases: expected an integer"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        synthesize_ultrasound(tmp_path / "us", **options)
    assert not list(tmp_path.iterdir())


def test_bad_drawings():
    with pytest.raises(ValueError, match="kind: expected one of benign, malignant, normal, got 'cyst'"):
        draw_ultrasound("cyst")
    with pytest.raises(ValueError, match=r"view: expected one of L-CC, .*got 'CC'"):
        draw_mammogram("CC")
    with pytest.raises(ValueError, match="birads: expected 1 to 5, got 6"):
        Breast(6)
    with pytest.raises(ValueError, match="malignant: expected True with BI-RADS 5, got False"):
        Breast(5)
    with pytest.raises(ValueError, match="density: expected a share"):
        Breast(density=1.5)
