"""Each public layout is read as published; missing or odd files are reported."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtlkit.data import DataError, Exam, check_dataset, open_dataset, read_mask

LAYOUTS = ["busi", "busi_whu", "ham10000", "brisc", "cmmd", "own"]


def kinds(root: Path, **options) -> dict[str, str]:
    """The kinds of findings of a check, with their level."""
    return {finding.kind: finding.level for finding in check_dataset(root, **options).findings}


@pytest.fixture(params=LAYOUTS)
def any_root(request) -> Path:
    return request.getfixturevalue(request.param)


# --- all layouts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_recognised_and_sound(name, request):
    catalogue = open_dataset(request.getfixturevalue(name))
    assert catalogue.layout == {"own": "folder"}.get(name, name)
    assert len(catalogue) > 0
    assert all(path.is_file() for record in catalogue.records for path in record.files)
    assert all(finding.level == "note" for finding in catalogue.findings), catalogue.findings
    assert len({record.key for record in catalogue.records}) == len(catalogue)


def test_unreadable_file_is_named_and_skipped_only_if_asked(any_root):
    catalogue = open_dataset(any_root)
    victim = catalogue.records[1]
    victim.files[0].write_bytes(b"not an image")
    report = check_dataset(any_root)
    (finding,) = [f for f in report.findings if f.level == "error"]
    assert (finding.kind, finding.path) == ("unreadable", victim.files[0])
    assert not report.ok
    rest = open_dataset(any_root, skip_bad=True)
    assert victim.files[0] not in {path for record in rest.records for path in record.files}
    assert len(rest) >= len(catalogue) - 1


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match="empty: the folder is empty"):
        open_dataset(shutil.copytree(tmp_path, tmp_path / "empty"))


def test_wrong_paths(tmp_path, busi):
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match="expected a folder, found a file"):
        open_dataset(busi / "Dataset_BUSI_with_GT/benign/benign (1).png")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("x")
    with pytest.raises(DataError, match="has none of the layouts busi, busi_whu, ham10000, brisc, cmmd, folder"):
        open_dataset(tmp_path / "other")
    with pytest.raises(ValueError, match=r"layout: expected 'auto' or one of busi, .*got 'buzi'"):
        open_dataset(busi, "buzi")
    with pytest.raises(ValueError, match="birads: the layout busi has no such option, only classes"):
        open_dataset(busi, birads=(1, 5))


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "cmmd"])
def test_classes_are_chosen_and_ordered(name, request):
    root = request.getfixturevalue(name)
    whole = open_dataset(root)
    chosen = tuple(reversed(whole.classes[:2]))
    part = open_dataset(root, classes=chosen)
    assert part.classes == chosen
    assert part.counts() == {name: whole.counts()[name] for name in chosen}
    with pytest.raises(DataError, match=r"expected classes among .*, each once, got nonsense"):
        open_dataset(root, classes=("nonsense",))


# --- BUSI -------------------------------------------------------------------------------------------------------------


def test_busi(busi):
    catalogue = open_dataset(busi)
    assert catalogue.counts() == {"benign": 4, "malignant": 4, "normal": 4}
    by_key = {record.key: record for record in catalogue.records}
    assert [path.name for path in by_key["benign/benign (2)"].masks] == [
        "benign (2)_mask.png",
        "benign (2)_mask_1.png",
        "benign (2)_mask_2.png",
    ]
    merged = read_mask(by_key["benign/benign (2)"].masks, (40, 48))
    assert merged.sum() > read_mask(by_key["benign/benign (2)"].masks[:1], (40, 48)).sum()
    assert [record.group for record in catalogue.records] == [record.key for record in catalogue.records]


def test_busi_numbers_count(busi, write):
    for i in (10, 11):
        write(busi / f"Dataset_BUSI_with_GT/benign/benign ({i}).png")
        write(busi / f"Dataset_BUSI_with_GT/benign/benign ({i})_mask.png", lesion=True)
    keys = [record.key for record in open_dataset(busi).records if record.label == 0]
    assert keys == [f"benign/benign ({i})" for i in (1, 2, 3, 4, 10, 11)]


def test_busi_odd_cases(busi, write):
    folder = busi / "Dataset_BUSI_with_GT"
    (folder / "benign/benign (1)_mask.png").unlink()
    (folder / "normal/normal (1)_mask.png").unlink()
    write(folder / "malignant/malignant (9)_mask.png", lesion=True)
    write(folder / "malignant/malignant (2)_mask.png", lesion=True, size=(40, 50))
    write(folder / "malignant/malignant (3)_mask.png", lesion=False)
    write(folder / "normal/normal (2)_mask.png", lesion=True)
    shutil.copy(folder / "benign/benign (3).png", folder / "benign/benign (4).png")
    shutil.copy(folder / "benign/benign (3).png", folder / "malignant/malignant (4).png")
    (folder / "benign/Thumbs.db").write_bytes(b"x")
    (folder / "cancer").mkdir()
    assert kinds(busi) == {
        "missing mask": "error",
        "several masks": "note",
        "mask without image": "warning",
        "wrong size": "error",
        "empty mask": "warning",
        "lesion in a normal image": "warning",
        "duplicate": "warning",
        "duplicate of another class": "error",
        "unknown file": "note",
        "unknown folder": "warning",
    }
    with pytest.raises(DataError, match=r"benign \(1\).png: there is no mask of this image$"):
        open_dataset(busi)
    assert open_dataset(busi, skip_bad=True).counts() == {"benign": 3, "malignant": 2, "normal": 4}


def test_busi_without_a_class(busi):
    shutil.rmtree(busi / "Dataset_BUSI_with_GT/malignant")
    with pytest.raises(DataError, match="there is no image of class 'malignant'"):
        open_dataset(busi)
    assert open_dataset(busi, classes=("benign", "normal")).counts() == {"benign": 4, "normal": 4}


def test_blank_and_small_images(busi, write):
    folder = busi / "Dataset_BUSI_with_GT/benign"
    Image.fromarray(np.full((40, 48), 7, np.uint8)).save(folder / "benign (1).png")
    write(folder / "benign (3).png", size=(8, 48))
    write(folder / "benign (3)_mask.png", size=(8, 48), lesion=True, at=0)
    found = kinds(busi)
    assert found["blank image"] == found["small image"] == "warning"


# --- BUSI-WHU ---------------------------------------------------------------------------------------------------------


def test_busi_whu_partition(busi_whu):
    catalogue = open_dataset(busi_whu)
    assert catalogue.counts() == {"benign": 4, "malignant": 4}
    assert [record.split for record in catalogue.records] == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    assert all(len(record.masks) == 1 for record in catalogue.records)


def test_busi_whu_by_class(tmp_path, write):
    for name in ("benign", "malignant"):
        for i in range(3):
            write(tmp_path / name / "images" / f"{i}.png")
            write(tmp_path / name / "masks" / f"{i}.png", lesion=True)
    catalogue = open_dataset(tmp_path)
    assert (catalogue.layout, catalogue.counts()) == ("busi_whu", {"benign": 3, "malignant": 3})
    assert {record.split for record in catalogue.records} == {None}


def test_busi_whu_odd_cases(busi_whu, write):
    train = busi_whu / "BUSI_WHU/train"
    (train / "gt/benign_train0000_anno.bmp").unlink()
    write(train / "img/00077.bmp")
    write(train / "gt/00077_anno.bmp", lesion=True)
    write(train / "gt/benign_train0099_anno.bmp", lesion=True)
    assert kinds(busi_whu) == {
        "mask without image": "warning",
        "missing mask": "error",
        "missing label": "warning",
    }
    catalogue = open_dataset(busi_whu, skip_bad=True)
    assert catalogue.counts() == {"benign": 3, "malignant": 4, "not known": 1}


# --- HAM10000 ---------------------------------------------------------------------------------------------------------


def test_ham10000(ham10000):
    catalogue = open_dataset(ham10000)
    assert set(catalogue.counts().values()) == {4}
    assert len({record.group for record in catalogue.records}) == 14
    assert catalogue.records[0].masks[0].name == f"{catalogue.records[0].image.stem}_segmentation.png"


def test_ham10000_odd_cases(ham10000, write):
    table = ham10000 / "HAM10000_metadata.csv"
    rows = table.read_text().splitlines()
    unlisted = rows.pop(1).split(",")[1]
    rows += [rows[-1], "HAM_x,ISIC_9999999,nv,histo,1,male,back", "HAM_y"]
    rows[1] = rows[1].replace(",mel,", ",melanoma,")
    table.write_text("\n".join(rows))
    next((ham10000 / "HAM10000_segmentations_lesion_tschandl").glob("*24308*")).unlink()
    found = kinds(ham10000)
    assert found == {
        "listed twice": "error",
        "missing image": "error",
        "short row": "error",
        "unknown class": "error",
        "missing mask": "error",
        "missing row": "error",
    }
    assert unlisted not in {record.key for record in open_dataset(ham10000, skip_bad=True).records}


def test_ham10000_without_column(ham10000):
    table = ham10000 / "HAM10000_metadata.csv"
    table.write_text(table.read_text().replace("lesion_id", "lesion"))
    with pytest.raises(
        DataError, match=r"HAM10000_metadata.csv: there is no column 'lesion_id'; there are: lesion, im"
    ):
        open_dataset(ham10000)


# --- BRISC ------------------------------------------------------------------------------------------------------------


def test_brisc(brisc):
    catalogue = open_dataset(brisc)
    assert catalogue.counts() == dict.fromkeys(("glioma", "meningioma", "pituitary", "no_tumor"), 8)
    assert sum(record.split == "test" for record in catalogue.records) == 8
    assert all((len(record.masks) == 0) == (record.label == 3) for record in catalogue.records)
    assert all(record.segmented for record in catalogue.records)


def test_brisc_odd_cases(brisc):
    next((brisc / "brisc2025/segmentation_task/train/masks").glob("*_gl_*")).unlink()
    shutil.rmtree(brisc / "brisc2025/classification_task/test")
    assert kinds(brisc) == {"missing mask": "error", "mask without image": "warning", "missing part": "error"}
    with pytest.raises(DataError, match="there is no folder classification_task"):
        open_dataset(brisc / "brisc2025/segmentation_task", "brisc")


# --- a layout of one's own --------------------------------------------------------------------------------------------


def test_own(own):
    catalogue = open_dataset(own)
    assert catalogue.counts() == {"cyst": 6, "normal": 6}
    assert len({record.group for record in catalogue.records}) == 6
    assert all(record.segmented for record in catalogue.records)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("/", "\\"),
        lambda text: text.replace("cyst/", "images/cyst/").replace("normal/", "images\\normal\\"),
        lambda text: text.replace(".png", ""),
        lambda text: f"{text},\n\n , \n",
    ],
)
def test_groups_as_other_programs_write_them(own, change):
    groups = [record.group for record in open_dataset(own).records]
    table = own / "groups.csv"
    table.write_text(change(table.read_text()))
    assert [record.group for record in open_dataset(own).records] == groups
    assert not check_dataset(own).findings


def test_own_names_in_any_case_and_form(own):
    composed, decomposed = "Z\u00fcst", "Zu\u0308st"
    for part in ("images", "masks"):
        (own / part / "cyst").rename(own / part / decomposed)
    table = own / "groups.csv"
    table.write_text(table.read_text().replace("cyst", composed), encoding="utf-8")
    assert len({record.group for record in open_dataset(own).records}) == 6
    assert not check_dataset(own).findings


def test_own_without_masks(own):
    shutil.rmtree(own / "masks")
    assert not any(record.segmented for record in open_dataset(own).records)


def test_own_with_dicom(own, write_dicom):
    write_dicom(own / "images/normal/x.dcm")
    (own / "groups.csv").unlink()
    assert open_dataset(own).counts() == {"cyst": 6, "normal": 7}


def test_own_odd_cases(own, write):
    (own / "masks/cyst/scan 0.png").unlink()
    write(own / "images/cyst/new.png")
    write(own / "masks/cyst/new.png", lesion=True)
    (own / "images/normal/scan 1.png").unlink()
    (own / "images/empty").mkdir()
    assert kinds(own) == {
        "missing mask": "error",
        "missing group": "error",
        "missing image": "error",
        "missing class": "error",
    }
    with pytest.raises(DataError, match="there is no folder images"):
        open_dataset(own / "masks", "folder")


# --- CMMD and TOMPEI-CMMD ---------------------------------------------------------------------------------------------


def by_patient(root: Path, **options) -> dict[str, Exam]:
    return {exam.key: exam for exam in open_dataset(root, **options).records}


def test_cmmd(cmmd):
    catalogue = open_dataset(cmmd)
    exams = {exam.key: exam for exam in catalogue.records}
    assert catalogue.mammography
    assert catalogue.birads == (1, 2, 3, 4, 5)
    assert {key: (exam.labels, exam.birads) for key, exam in exams.items()} == {
        "D1-0001": ((0, -1), (0, -1)),
        "D1-0002": ((0, 0), (1, 0)),
        "D1-0003": ((-1, 0), (-1, 2)),
        "D1-0004": ((1, -1), (3, -1)),
        "D2-0005": ((0, 1), (0, 4)),
    }
    names = [None if view is None else view.stem for view in exams["D1-0003"].views]
    assert names == [None, None, "1-RCC", "1-RMLO"]
    assert catalogue.counts() == {"benign or normal": 5, "malignant": 2, "not known": 3}


@pytest.mark.parametrize(
    ("birads", "expected"),
    [
        ((1, 5), {"D1-0001": (0, -1), "D1-0002": (-1, 0), "D2-0005": (0, 1)}),
        ((1, 3, 5), {"D1-0001": (0, -1), "D1-0002": (-1, 0), "D1-0003": (-1, 1), "D2-0005": (0, 2)}),
    ],
)
def test_birads_subsets(cmmd, birads, expected):
    exams = by_patient(cmmd, birads=birads)
    assert {key: exam.birads for key, exam in exams.items()} == expected
    # a breast outside the subset has neither label nor category
    for exam in exams.values():
        assert [label < 0 for label in exam.labels] == [category < 0 for category in exam.birads]


def test_cmmd_without_birads(plain_cmmd):
    exams = by_patient(plain_cmmd)
    assert exams["D2-0005"].labels == (0, 1)
    assert {exam.birads for exam in exams.values()} == {(-1, -1)}
    with pytest.raises(DataError, match="this table has no BI-RADS categories to select"):
        open_dataset(plain_cmmd, birads=(1, 5))


def test_cmmd_odd_cases(cmmd, write_dicom):
    series = cmmd / "CMMD/D1-0001/07-18-2010/series"
    (series / "1-LCC.dcm").unlink()
    write_dicom(series / "1-x.dcm", patient="D1-0001", view="MLO")
    write_dicom(series / "1-y.dcm", patient="D1-0001", view="MLO", ImageLaterality="L")
    write_dicom(cmmd / "CMMD/D1-0077/a/b/1-1.dcm", patient="D1-0078", view="CC", ImageLaterality="L")
    shutil.rmtree(cmmd / "CMMD/D1-0003")
    assert kinds(cmmd) == {
        "missing tags": "error",
        "view twice": "warning",
        "missing view": "warning",
        "other patient": "warning",
        "missing row": "error",
        "missing image": "error",
        "missing class": "error",
    }
    texts = [str(finding) for finding in check_dataset(cmmd).findings]
    assert any(text.endswith("1-x.dcm: has no tag for its side and is not used") for text in texts)
    assert any("1-y.dcm: is a second L-MLO, after 1-LMLO.dcm" in text for text in texts)
    assert any(text.endswith("D1-0001: there is no view L-CC") for text in texts)


def test_cmmd_bad_options(cmmd, tmp_path):
    with pytest.raises(DataError, match=r"expected BI-RADS categories among 1 to 5, each once, got \(1, 6\)"):
        open_dataset(cmmd, birads=(1, 6))
    next(cmmd.glob("TOMPEI*")).write_bytes(b"PK\3\4 broken")
    with pytest.raises(DataError, match="the table cannot be read"):
        open_dataset(cmmd)
    next(cmmd.glob("TOMPEI*")).unlink()
    with pytest.raises(DataError, match="there is no TOMPEI-CMMD_clinical_data"):
        open_dataset(cmmd, "cmmd")
