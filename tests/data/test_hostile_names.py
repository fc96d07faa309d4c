"""All kinds of names and files, in every layout: read correctly, or an error before anything is read."""

import os
import socket
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtlkit.data import DataError, check_dataset, load_split, make_split, open_dataset, read_image
from mtlkit.errors import UnusableError

LESIONS = ["busi", "busi_whu", "ham10000", "brisc", "own"]
LAYOUTS = [*LESIONS, "cmmd"]


@pytest.fixture(params=LAYOUTS)
def any_root(request) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=LESIONS)
def lesions(request) -> Path:
    return request.getfixturevalue(request.param)


def refused(root: Path, kind: str, words: str, *paths: Path) -> None:
    """Asserts an error about only these files, in a check and before training; skip_bad leaves their records out."""
    findings = [finding for finding in check_dataset(root).findings if finding.level == "error"]
    assert {finding.kind for finding in findings} == {kind}, findings
    assert {finding.path for finding in findings} == set(paths)
    with pytest.raises(UnusableError, match=words) as error:
        open_dataset(root)
    str(error.value).encode()
    rest = open_dataset(root, skip_bad=True)
    assert not {file for record in rest.records for file in record.files} & set(paths)
    assert len(rest) > 0


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere.png")


def put_round_link(path: Path) -> None:
    path.symlink_to(path.name)


def put_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def put_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # socket names must be short
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.chdir(before)


def put_folder(path: Path) -> None:
    path.mkdir()


PUT: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (put_pipe, "found a device or a pipe"),
    "dangling": (put_dangling_link, "is a link to nowhere.png, which is not there"),
    "round": (put_round_link, "is a link that leads to itself"),
    "device": (put_device, "found a device or a pipe"),
    "socket": (put_socket, "found a device or a pipe"),
}


@pytest.mark.parametrize("kind", [*PUT, "folder"])
def test_what_is_no_file_is_refused(lesions, kind):
    put, words = PUT.get(kind, (put_folder, "expected a file, found a folder"))
    victim = open_dataset(lesions).records[1]
    victim.image.unlink()
    put(victim.image)
    refused(lesions, "unreadable", words, victim.image)


@pytest.mark.parametrize("kind", PUT)
def test_a_mask_that_is_no_file_is_refused(lesions, kind):
    put, words = PUT[kind]
    victim = next(record for record in open_dataset(lesions).records if record.masks).masks[0]
    victim.unlink()
    put(victim)
    refused(lesions, "unreadable", words, victim)


@pytest.mark.parametrize("kind", PUT)
def test_a_mammogram_that_is_no_file_is_an_error(cmmd, kind):
    put, words = PUT[kind]
    victim = open_dataset(cmmd).records[1].files[0]
    victim.unlink()
    put(victim)
    (found,) = [finding for finding in check_dataset(cmmd).findings if finding.level == "error"]
    assert (found.kind, found.path) == ("unreadable", victim)
    with pytest.raises(UnusableError, match=words):
        open_dataset(cmmd)


def test_a_file_that_may_not_be_read_is_refused(any_root, monkeypatch):
    victim = open_dataset(any_root).records[1].files[0]
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != victim and access(path, mode))
    with pytest.raises(UnusableError, match=r"cannot be read \(Permission denied\)"):
        open_dataset(any_root)
    assert [f.path for f in check_dataset(any_root).findings if f.level == "error"] == [victim]


def test_companions_are_left_alone(any_root, monkeypatch):
    records, findings = open_dataset(any_root).records, check_dataset(any_root).findings
    for path in [path for record in records for path in record.files]:
        (path.parent / f"._{path.name}").write_bytes(b"Mac OS X        ")
        (path.parent / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (any_root / "__MACOSX").mkdir()
    (any_root / "__MACOSX/a.png").write_bytes(b"")
    assert open_dataset(any_root).records == records
    assert check_dataset(any_root).findings == findings


def test_links_to_the_data_set_itself_change_nothing(any_root):
    records, findings = open_dataset(any_root).records, check_dataset(any_root).findings
    for number, folder in enumerate(sorted(path for path in any_root.rglob("*") if path.is_dir())):
        (folder / f"round{number}").symlink_to(any_root)
        (folder / f"self{number}").symlink_to(".")
    assert open_dataset(any_root).records == records
    assert check_dataset(any_root).findings == findings


def test_a_linked_data_set_is_read(any_root, tmp_path):
    records = open_dataset(any_root).records
    (tmp_path / "link").symlink_to(any_root)
    assert [record.key for record in open_dataset(tmp_path / "link").records] == [record.key for record in records]


def test_bytes_that_are_no_text_are_refused(lesions):
    victim = open_dataset(lesions).records[1]
    if lesions.joinpath("HAM10000_metadata.csv").exists():  # the table of HAM10000 cannot name it
        return
    renamed = []
    for path in victim.files:
        name = path.name.encode().replace(victim.image.stem.encode(), victim.image.stem.encode() + b" caf\xe9")
        renamed.append(path.rename(path.with_name(os.fsdecode(name))))
    if (lesions / "groups.csv").exists():
        (lesions / "groups.csv").unlink()
    refused(lesions, "unreadable name", "its name is not text in UTF-8: rename it", *renamed)


# --- the same name twice ----------------------------------------------------------------------------------------------


def test_twins_that_differ_by_their_suffix_are_refused(lesions):
    victim = open_dataset(lesions).records[1].image
    twin = victim.with_suffix(".tif")
    Image.fromarray(255 - read_image(victim)).save(twin)
    refused(lesions, "same name", "has the same name, except for suffix or spelling, as", victim, twin)


def test_twins_that_differ_by_their_normal_form_are_refused(busi, write):
    folder = busi / "Dataset_BUSI_with_GT/benign"
    composed, decomposed = (unicodedata.normalize(form, "f\u00fcnf") for form in ("NFC", "NFD"))
    images = [write(folder / f"{name}.png") for name in (composed, decomposed)]
    write(folder / f"{composed}_mask.png", lesion=True)
    refused(busi, "same name", "has the same name", *images)


def test_twin_masks_are_refused(lesions):
    victim = next(record for record in open_dataset(lesions).records if record.masks)
    mask = victim.masks[0]
    twin = mask.with_suffix(".tiff")
    with Image.open(mask) as image:
        image.save(twin)
    later = max(mask, twin, key=lambda path: path.name)
    refused(lesions, "same name", "which is the mask", later)


def test_names_that_differ_by_case_are_two(busi, write):
    folder = busi / "Dataset_BUSI_with_GT/benign"
    for i, name in enumerate(("a", "A")):
        write(folder / f"{name}.png")
        write(folder / f"{name}_mask.png", lesion=True, at=10 + i)
    records = {record.key: record for record in open_dataset(busi).records}
    for name in ("a", "A"):
        assert records[f"benign/{name}"].masks == (folder / f"{name}_mask.png",)


def test_masks_in_another_case_and_form_are_found(own):
    (own / "groups.csv").unlink()
    before = open_dataset(own)
    for path in sorted((own / "masks/cyst").iterdir()):
        path.rename(path.with_name(path.name.upper()))
    (own / "masks/cyst").rename(own / "masks/Cyst")
    after = open_dataset(own)
    assert [record.key for record in after.records] == [record.key for record in before.records]
    assert all(len(record.masks) == 1 for record in after.records if record.label == 0)
    decomposed, composed = "e\u0301", "\u00e9"
    (own / "images/cyst/scan 0.png").rename(own / f"images/cyst/{decomposed}.png")
    (own / "masks/Cyst/SCAN 0.PNG").rename(own / f"masks/Cyst/{composed}_mask.png")
    records = {record.key: record for record in open_dataset(own).records}
    assert records[f"cyst/{composed}"].masks == (own / f"masks/Cyst/{composed}_mask.png",)


def test_two_classes_of_one_name_are_refused(own):
    for form in ("NFC", "NFD"):
        (own / "images" / unicodedata.normalize(form, "Z\u00fcst")).mkdir()
    with pytest.raises(DataError, match="has the same name as another folder"):
        open_dataset(own)


def test_what_lies_in_no_folder_of_a_class_is_told(own, write):
    write(own / "images/lost.png")
    write(own / "masks/lost.png", lesion=True)
    write(own / "masks/cysts/lost.png", lesion=True)
    (own / "images/gone").symlink_to("nowhere")
    found = {(f.level, f.path.relative_to(own).as_posix()) for f in check_dataset(own).findings}
    assert found == {
        ("warning", "images/lost.png"),
        ("warning", "masks/lost.png"),
        ("warning", "masks/cysts"),
        ("error", "images/gone"),
    }


# --- tables of the user -----------------------------------------------------------------------------------------------


def change_groups(own: Path, change: Callable[[str], str]) -> Path:
    table = own / "groups.csv"
    table.write_text(change(table.read_text()))
    return table


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda text: text.replace("cyst/scan 3.png", "cyst/scann 3.png"),
            r"csv: lists 'cyst/scann 3.png', for which there is no image, and does not list 'cyst/scan 3'; 1 more",
        ),
        (
            lambda text: "\n".join(line for line in text.splitlines() if "cyst/scan 3" not in line),
            r"scan 3.png: is 'cyst/scan 3', which groups.csv does not list; it lists 11 others",
        ),
        (lambda text: f"{text}cyst/more.png,patient 9\n", r"lists 'cyst/more.png', for which there is no image$"),
        (lambda text: text.replace("patient cyst 1", ""), r"groups.csv: row 4 names no group; 3 more"),
        (lambda text: f"{text},patient 9\n", "groups.csv: row 14 names no image"),
        (
            lambda text: f"{text}cyst/scan 0.png,patient cyst 2\n",
            "rows 2 and 14 list 'cyst/scan 0' in the groups 'patient cyst 0' and 'patient cyst 2'",
        ),
    ],
)
def test_a_table_of_groups_that_does_not_fit_is_an_error(own, change, words):
    change_groups(own, change)
    with pytest.raises(UnusableError, match=words):
        open_dataset(own)
    assert not check_dataset(own).ok
    groups = {record.key: record.group for record in open_dataset(own, skip_bad=True).records}
    assert set(groups.values()) <= {f"patient {name} {i}" for name in ("cyst", "normal") for i in range(3)}


def test_an_empty_table_of_groups_is_an_error(own):
    change_groups(own, lambda text: text.splitlines()[0])
    with pytest.raises(
        UnusableError, match=r"scan 0.png: is 'cyst/scan 0', which groups.csv does not list; it lists 0 others"
    ):
        open_dataset(own)


def test_a_table_of_groups_fits_whichever_classes_are_chosen(own):
    assert len(open_dataset(own, classes=("cyst",))) == 6
    change_groups(own, lambda text: text.replace("normal/scan 3", "normal/scan three"))
    with pytest.raises(UnusableError, match=r"lists 'normal/scan three.png', for which there is no image"):
        open_dataset(own, classes=("cyst",))


def test_groups_are_the_same_in_any_case_and_form(own):
    change_groups(own, lambda text: text.replace("scan 1.png,patient cyst 0", "scan 1.png,Patient  CYST 0"))
    assert len({record.group for record in open_dataset(own).records}) == 6


def test_one_image_listed_twice_in_one_group_is_no_error(own):
    change_groups(own, lambda text: f"{text}{text.splitlines()[1]}\n")
    assert len(open_dataset(own)) == 12


@pytest.mark.parametrize("name", ["group.csv", "groups.xlsx", "groups.csv.txt", "Groups.tsv"])
def test_a_table_of_groups_of_nearly_the_right_name_is_an_error(own, name):
    (own / "groups.csv").rename(own / name)
    with pytest.raises(DataError, match=f"expected one table of groups with the name groups.csv, got {name}"):
        open_dataset(own, skip_bad=True)


def test_a_table_of_groups_in_another_case_is_read(own):
    (own / "groups.csv").rename(own / "Groups.CSV")
    assert len({record.group for record in open_dataset(own).records}) == 6


@pytest.mark.parametrize("kind", PUT)
def test_a_table_of_groups_that_is_no_file_is_an_error(own, kind):
    put, words = PUT[kind]
    (own / "groups.csv").unlink()
    put(own / "groups.csv")
    with pytest.raises(DataError, match=words):
        open_dataset(own)


def test_keys_from_a_table_that_mtlkit_wrote(own, rng):
    from mtlkit._files import csv_text

    (own / "images/=cyst").mkdir()
    (own / "masks/=cyst").mkdir()
    for folder in ("images", "masks"):
        for path in sorted((own / folder / "cyst").iterdir()):
            path.rename(own / folder / "=cyst" / path.name)
        (own / folder / "cyst").rmdir()
    rows = [{"image": f"{name}/scan {i}", "group": f"-{i // 2}x"} for name in ("=cyst", "normal") for i in range(6)]
    (own / "groups.csv").write_text(csv_text(rows))
    assert {record.group for record in open_dataset(own).records} == {"-0x", "-1x", "-2x"}


def test_keys_of_splits_are_found_as_other_programs_write_them(own, tmp_path):
    catalogue = open_dataset(own)
    path = tmp_path / "split.json"
    split = make_split(catalogue, (0.34, 0.33, 0.33))
    split.save(path)
    text = path.read_text()
    for change in (
        lambda text: text.replace("/", "\\\\"),
        lambda text: text.replace("cyst/", "images/cyst/"),
        lambda text: text.replace("scan", "Scan"),
    ):
        path.write_text(change(text))
        assert load_split(path, catalogue) == split


def test_a_split_names_every_image_or_says_that_it_is_not_used(own, tmp_path):
    import json

    catalogue = open_dataset(own)
    path = tmp_path / "split.json"
    make_split(catalogue, (0.34, 0.33, 0.33)).save(path)
    values = json.loads(path.read_text())
    left = values["train"].pop()
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=rf"split.json: does not list '{left}' of .*; list records to leave out"):
        load_split(path, catalogue)
    path.write_text(json.dumps(values | {"train": [*values["train"], "cyst/scann 3"]}))
    with pytest.raises(DataError, match=rf"lists 'cyst/scann 3', which is not in .*, and does not list '{left}'"):
        load_split(path, catalogue)
    path.write_text(json.dumps(values | {"unused": [left]}))
    split = load_split(path, catalogue)
    assert split.unused == (left,)
    split.save(path, force=True)
    assert load_split(path, catalogue) == split


def test_a_split_that_is_a_pipe_does_not_hang(own, tmp_path):
    os.mkfifo(tmp_path / "split.json")
    with pytest.raises(DataError, match="found a device or a pipe"):
        load_split(tmp_path / "split.json", open_dataset(own))


def test_long_names_are_read(busi, write):
    folder = busi / "Dataset_BUSI_with_GT/benign"
    name = "x" * 246
    write(folder / f"{name}.png")
    Image.fromarray(np.eye(40, 48, dtype=np.uint8) * 255).save(folder / f"{name}_mask.png")
    assert f"benign/{name}" in {record.key for record in open_dataset(busi).records}
