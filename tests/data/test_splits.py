"""Splits: the papers' sizes, undivided groups, balanced classes, reproducible, saved, and checked against data."""

import json
import random
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from mtlkit.data import Catalogue, DataError, Exam, Record, Split, load_split, make_folds, make_split, open_dataset


def catalogue(counts: list[int], *, per_group: int = 1, split: str | None = None) -> Catalogue:
    records = []
    for label, count in enumerate(counts):
        for i in range(count):
            key = f"{label}/{i}"
            records.append(Record(key, Path(key), label, (), f"{label}-{i // per_group}", split))
    classes = tuple(f"class {label}" for label in range(len(counts)))
    return Catalogue("folder", Path("data"), classes, tuple(records))


def sizes(split: Split) -> tuple[int, ...]:
    return tuple(len(part) for part in split.parts().values())


def test_papers_sizes():
    # CSA-MoE-Net: 15 % test, then 17.65 % of the rest: 1,489 / 320 / 320 of 2,129
    assert sizes(make_split(catalogue([1108, 1021]))) == (1489, 320, 320)
    # BTI-Net on BUSI: 15 % test, then 15 % of the rest
    assert sizes(make_split(catalogue([437, 210, 133]), (0.7225, 0.1275, 0.15))) == (563, 100, 117)


def test_classes_are_balanced():
    data = catalogue([437, 210, 133])
    share = {0: 437 / 780, 1: 210 / 780, 2: 133 / 780}
    for keys in make_split(data).parts().values():
        counts = Counter(int(key[0]) for key in keys)
        for label, expected in share.items():
            assert abs(counts[label] / len(keys) - expected) < 0.01


def test_every_record_is_in_one_part():
    data = catalogue([40, 30])
    split = make_split(data)
    assert sorted(split.train + split.val + split.test) == sorted(record.key for record in data.records)


def test_groups_stay_whole():
    data = catalogue([90, 60], per_group=3)
    group = {record.key: record.group for record in data.records}
    home = defaultdict(set)
    for part, keys in make_split(data).parts().items():
        for key in keys:
            home[group[key]].add(part)
    assert len(home) == 50
    assert all(len(parts) == 1 for parts in home.values())


def test_lesions_of_ham10000_stay_whole(ham10000):
    data = open_dataset(ham10000, classes=("mel", "nv"))
    split = make_split(data, (0.5, 0.0, 0.5))
    assert sizes(split) == (4, 0, 4)
    groups = {record.key: record.group for record in data.records}
    assert not {groups[key] for key in split.train} & {groups[key] for key in split.test}


def test_patients_of_mammograms_are_balanced_by_the_worse_breast():
    exams = tuple(Exam(f"{i}", (None,) * 4, (i % 2, -1), (-1, -1), f"{i}") for i in range(40))
    split = make_split(Catalogue("cmmd", Path("data"), ("benign", "malignant"), exams), (0.8, 0.2, 0.0))
    assert sizes(split) == (32, 8, 0)
    assert sum(int(key) % 2 for key in split.val) == 4


def test_seed_decides_and_order_does_not():
    data = catalogue([40, 40])
    records = list(data.records)
    random.Random(1).shuffle(records)
    shuffled = make_split(replace(data, records=tuple(records)))
    assert {part: set(keys) for part, keys in make_split(data).parts().items()} == {
        part: set(keys) for part, keys in shuffled.parts().items()
    }
    assert make_split(data, seed=1).test != make_split(data, seed=2).test
    assert make_split(data, seed=1) == make_split(data, seed=1)


@pytest.mark.parametrize("seed", range(4))
def test_the_stratum_of_a_group_does_not_depend_on_the_order_of_its_records(seed):
    """It is that of the group's worst record, wherever that comes."""
    labels = [(0, 0, 0), (0, 0, 1), (1, -1, 0), (0, 1, 1), (-1, 0, -1)] * 8
    records = [
        Record(f"{group}/{i}", Path(f"{group}-{i}"), label, (), f"{group:02}")
        for group, three in enumerate(labels)
        for i, label in enumerate(three)
    ]
    given = Catalogue("folder", Path("data"), ("benign", "malignant"), tuple(records))
    random.Random(seed).shuffle(records)
    shuffled = replace(given, records=tuple(records))
    parts = [{part: set(keys) for part, keys in make_split(one).parts().items()} for one in (given, shuffled)]
    assert parts[0] == parts[1]
    groups = {key.partition("/")[0] for key in parts[0]["test"]}
    assert len(groups) == 6
    assert sum(1 in labels[int(group)] for group in groups) in (3, 4)  # 0.6 of 6


def test_published_test_part_is_kept(brisc):
    data = open_dataset(brisc)
    split = make_split(data, (0.85, 0.15, 0.0))
    assert set(split.test) == {record.key for record in data.records if record.split == "test"}
    assert sizes(split) == (20, 4, 8)


def test_published_partition_is_kept(busi_whu):
    assert sizes(make_split(open_dataset(busi_whu))) == (4, 2, 2)
    drawn = make_split(open_dataset(busi_whu), (0.5, 0.25, 0.25), published=False)
    assert sizes(drawn) == (4, 2, 2)
    assert any(not key.startswith("test") for key in drawn.test)


def test_published_partition_that_divides_a_group():
    data = catalogue([4, 4], per_group=2)
    records = (replace(data.records[0], split="test"), replace(data.records[1], split="train"), *data.records[2:])
    with pytest.raises(DataError, match="group '0-0' lies in two parts of the published partition"):
        make_split(replace(data, records=records))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([20, 1], "data: class 'class 1' has only 1 group to divide, at least 2 are needed"),
        ([3, 3], "data: its 6 groups are too few for a part of 15% with all classes in both parts"),
    ],
)
def test_too_few(counts, message):
    with pytest.raises(DataError, match=message):
        make_split(catalogue(counts))


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.4, 0.3), (1.2, -0.1, -0.1), (0.0, 0.5, 0.5)])
def test_bad_fractions(fractions):
    with pytest.raises(ValueError, match="fractions: expected"):
        make_split(catalogue([20, 20]), fractions)


# --- saved ------------------------------------------------------------------------------------------------------------


def test_saved_split_is_the_same(tmp_path):
    data = catalogue([20, 20])
    split = make_split(data, seed=7)
    split.save(tmp_path / "split.json")
    assert load_split(tmp_path / "split.json", data) == split
    with pytest.raises(DataError, match="exists already"):
        split.save(tmp_path / "split.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["val"].append("9/9"), "lists '9/9', which is not in data"),
        (lambda v: v["val"].append(v["train"][0]), "lists '0/.*' twice, in train and val"),
        (lambda v: v["val"].append(v["train"].pop(0)), "divides the group '0-.*' between train and val"),
        (lambda v: v.pop("test"), "is not a list of the parts train, val and test"),
        (lambda v: v.update(train=3), "is not a list of the parts train, val and test"),
    ],
)
def test_saved_split_is_held_against_the_data(tmp_path, change, message):
    data = catalogue([40, 40], per_group=2)
    path = tmp_path / "split.json"
    make_split(data).save(path)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=f"split.json: {message}"):
        load_split(path, data)


def test_split_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"no.json: the split cannot be read"):
        load_split(tmp_path / "no.json", catalogue([4, 4]))
    for text in ("[", "[" * 100_000, '{"train": [' + "9" * 5000 + "]}"):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(DataError, match="is not a list of the parts"):
            load_split(tmp_path / "a.json", catalogue([4, 4]))


def test_subset_names_what_is_missing():
    data = catalogue([3, 3])
    assert [record.key for record in data.subset(["1/2", "0/0"]).records] == ["1/2", "0/0"]
    with pytest.raises(DataError, match=r"data: there is no record 'x' \(and 1 more\)"):
        data.subset(["x", "0/0", "y"])


# --- folds ------------------------------------------------------------------------------------------------------------


def test_folds_test_each_record_once_and_keep_groups_whole():
    data = catalogue([30, 30], per_group=3)
    folds = make_folds(data, 4, seed=3)
    assert folds == make_folds(data, 4, seed=3) != make_folds(data, 4, seed=4)
    tested = [key for fold in folds for key in fold.test]
    assert sorted(tested) == sorted(record.key for record in data.records)
    group = {record.key: record.group for record in data.records}
    label = {record.key: record.label for record in data.records}
    for fold in folds:
        parts = [{group[key] for key in keys} for keys in fold.parts().values()]
        assert sum(map(len, parts)) == len(set().union(*parts)) == 20
        assert all({label[key] for key in keys} == {0, 1} for keys in fold.parts().values())


def test_folds_leave_out_what_is_unused_and_need_no_validation_part():
    data = catalogue([20, 20])
    for fold in make_folds(data, 2, (1.0 - 1e-9, 0.0, 1e-9), unused=("0/3", "1/7")):
        assert fold.unused == ("0/3", "1/7")
        assert not fold.val
        assert len(fold.train) + len(fold.test) == 38


def test_folds_refuse_what_cannot_be_divided():
    data = catalogue([6, 6], per_group=2)
    with pytest.raises(DataError, match=r"at least 4 groups \(patients\) of each class for 4 folds, got 3 of class"):
        make_folds(data, 4)
    with pytest.raises(ValueError, match="folds: expected at least 2, got 1"):
        make_folds(data, 1)
