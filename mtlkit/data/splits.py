"""Stratified splits into training, validation and test by groups, from a seed, saved as a list.

All records of a group (patient, lesion, or single image) are in the same part. Groups are drawn by scikit-learn's
stratified `train_test_split`: first the test part, rounded up, then the validation part of what is left. The test parts
of a cross-validation come from its `StratifiedGroupKFold`, and together cover all records.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mtlkit._fields import Fields
from mtlkit._files import check_file, write_json
from mtlkit._text import composed, parse_json, shown
from mtlkit.data.names import Names
from mtlkit.data.records import Catalogue, Exam, Record, and_more
from mtlkit.errors import DataError

__all__ = ["Split", "load_split", "make_folds", "make_split"]

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """The records for training, validation and test.

    Args:
        train: keys of the records for training.
        val: keys of the records for model selection.
        test: keys of the records for evaluation.
        seed: seed of the split.
        unused: keys of records that are left out on purpose.

    Example:
        >>> from mtlkit.data import Split
        >>> Split(("a", "b"), ("c",), ("d",)).parts()["val"]
        ('c',)
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    seed: int | None = None
    unused: tuple[str, ...] = ()

    def parts(self) -> dict[str, tuple[str, ...]]:
        """The keys by part, without the unused ones."""
        return {part: getattr(self, part) for part in PARTS}

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Writes the list as JSON, atomically.

        Raises:
            DataError: the file exists and `force` is not given, or it cannot be written.
        """
        write_json(path, asdict(self), force=force)


def check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    """The fractions; raises a ValueError unless they are three with sum 1 and the first is not 0."""
    if len(fractions) != 3 or not all(0 <= f < 1 for f in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions: expected three numbers in [0, 1) of sum 1, got {tuple(fractions)}")
    if not fractions[0] > 0:
        raise ValueError(f"fractions: expected something to train on, got {tuple(fractions)}")
    train, val, test = fractions
    return train, val, test


def _divide(catalogue: Catalogue, groups: dict[str, int], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Divides groups into two parts; the second is a fraction `share` of them."""
    from sklearn.model_selection import train_test_split

    names = list(groups)
    if share == 0:
        return names, []
    strata = [groups[name] for name in names]
    label, count = min(Counter(strata).items(), key=lambda item: item[1])
    name = _class_name(catalogue, label)
    if count < 2:
        raise DataError(f"{catalogue.root}: class {name!r} has only {count} group to divide, at least 2 are needed")
    try:
        first, second = train_test_split(names, test_size=share, stratify=strata, random_state=seed)
        return list(first), list(second)
    except ValueError:
        words = f"its {len(names)} groups are too few for a part of {share:.0%} with all classes in both parts"
        raise DataError(f"{catalogue.root}: {words}") from None


def _strata(records: Iterable[Record | Exam]) -> dict[str, int]:
    """The class of each group that splits balance."""
    strata: dict[str, int] = {}
    for record in records:
        strata[record.group] = max(strata.get(record.group, -1), record.stratum)
    return strata


def _draw_val(catalogue: Catalogue, rest: dict[str, int], shares: tuple[float, float, float], seed: int) -> list[str]:
    """The groups for validation, drawn from those not in the test part."""
    train_share, val_share, _ = shares
    return _divide(catalogue, rest, val_share / (train_share + val_share), seed)[1]


def make_split(
    catalogue: Catalogue,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 42,
    *,
    published: bool = True,
    unused: Collection[str] = (),
) -> Split:
    """Draws a split.

    Args:
        catalogue: the data set.
        fractions: fractions of the groups for training, validation and test. The papers use (0.7, 0.15, 0.15);
            BTI-Net's 15 % for test, then 15 % of the rest, is (0.7225, 0.1275, 0.15).
        seed: the same seed gives the same split of the same records.
        published: whether to keep the data set's own partition (BRISC's test part, all parts of BUSI-WHU). Only missing
            parts are drawn: validation as val / (train + val) of its training part.
        unused: keys of records to leave out.

    Raises:
        DataError: a class has too few groups.
        ValueError: the fractions are invalid.

    Example:
        >>> from pathlib import Path
        >>> from mtlkit.data import Catalogue, Record, make_split
        >>> records = tuple(Record(f"{i}", Path(f"{i}.png"), i % 2, (), f"{i}") for i in range(40))
        >>> split = make_split(Catalogue("folder", Path("."), ("benign", "malignant"), records))
        >>> len(split.train), len(split.val), len(split.test)
        (28, 6, 6)
    """
    shares = check_fractions(fractions)
    fixed: dict[str, str] = {}
    left_out = set(unused)
    records = [record for record in catalogue.records if record.key not in left_out]
    for record in records:
        if published and record.split is not None and fixed.setdefault(record.group, record.split) != record.split:
            raise DataError(f"{catalogue.root}: group {record.group!r} lies in two parts of the published partition")
    strata = dict(sorted(_strata(records).items()))  # independent of the order of files on disk
    rest = {group: stratum for group, stratum in strata.items() if fixed.get(group, "train") == "train"}
    part_of = {group: part for group, part in fixed.items() if part != "train"}
    if "test" not in fixed.values():
        names, drawn = _divide(catalogue, rest, shares[2], seed)
        part_of |= dict.fromkeys(drawn, "test")
        rest = {name: rest[name] for name in sorted(names)}
    if "val" not in fixed.values():
        part_of |= dict.fromkeys(_draw_val(catalogue, rest, shares, seed), "val")
    return _by_part(catalogue, part_of, seed, left_out)


def make_folds(
    catalogue: Catalogue,
    folds: int,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 42,
    *,
    unused: Collection[str] = (),
) -> tuple[Split, ...]:
    """Draws the splits of a cross-validation: each record is in the test part of exactly one split.

    The data set's own partition is ignored.

    Args:
        catalogue: the data set.
        folds: number of folds, at least 2.
        fractions: as for `make_split`; val / (train + val) of the records outside a fold's test part are for
            validation.
        seed: the same seed gives the same folds of the same records.
        unused: keys of records to leave out.

    Raises:
        DataError: a class has fewer groups than there are folds, or a part would not contain every class.
        ValueError: there are fewer than two folds, or the fractions are invalid.

    Example:
        >>> from pathlib import Path
        >>> from mtlkit.data import Catalogue, Record, make_folds
        >>> records = tuple(Record(f"{i}", Path(f"{i}.png"), i % 2, (), f"{i}") for i in range(40))
        >>> folds = make_folds(Catalogue("folder", Path("."), ("benign", "malignant"), records), 5)
        >>> [(len(fold.train), len(fold.val), len(fold.test)) for fold in folds]
        [(26, 6, 8), (26, 6, 8), (26, 6, 8), (26, 6, 8), (26, 6, 8)]
    """
    if folds < 2:
        raise ValueError(f"folds: expected at least 2, got {folds}")
    shares = check_fractions(fractions)
    left_out = set(unused)
    records = sorted((r for r in catalogue.records if r.key not in left_out), key=lambda record: record.key)
    strata = _strata(records)
    _check_enough(catalogue, strata, folds)
    from sklearn.model_selection import StratifiedGroupKFold

    labels, groups = [strata[record.group] for record in records], [record.group for record in records]
    drawn = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(records, labels, groups)
    splits = []
    for number, (_, tested) in enumerate(drawn, start=1):
        test = {groups[i] for i in tested}
        rest = {group: stratum for group, stratum in sorted(strata.items()) if group not in test}
        if missing := set(strata.values()) - {strata[group] for group in test}:
            name = _class_name(catalogue, min(missing))
            raise DataError(
                f"{catalogue.root}: fold {number} of {folds} has no test image of class {name!r}; use fewer folds"
            )
        val = _draw_val(catalogue, rest, shares, seed)
        part_of = dict.fromkeys(test, "test") | dict.fromkeys(val, "val")
        splits.append(_by_part(catalogue, part_of, seed, left_out))
    return tuple(splits)


def _class_name(catalogue: Catalogue, label: int) -> str:
    return catalogue.classes[label] if label >= 0 else "not known"


def _check_enough(catalogue: Catalogue, strata: Mapping[str, int], folds: int) -> None:
    label, count = min(Counter(strata.values()).items(), key=lambda item: item[1])
    if count < folds:
        name = _class_name(catalogue, label)
        words = f"expected at least {folds} groups (patients) of each class for {folds} folds"
        raise DataError(f"{catalogue.root}: {words}, got {count} of class {name!r}")


def _by_part(catalogue: Catalogue, part_of: Mapping[str, str], seed: int, left_out: Collection[str]) -> Split:
    """A split of the records by the parts of their groups; groups without a part are for training."""
    keys: dict[str, list[str]] = {part: [] for part in (*PARTS, "unused")}
    for record in catalogue.records:
        keys["unused" if record.key in left_out else part_of.get(record.group, "train")].append(record.key)
    return Split(**{part: tuple(names) for part, names in keys.items()}, seed=seed)


def read_split(path: str | Path) -> Split:
    """Reads a saved split without checking it against a data set.

    Raises:
        DataError: the file cannot be read, or is not a split.
    """
    path, what = Path(path), "is not a list of the parts train, val and test"
    if path.exists():  # a pipe could block
        check_file(path)
    try:
        values = Fields(path, parse_json(path.read_text(encoding="utf-8")), what)
    except OSError as error:
        raise DataError(f"the split cannot be read ({error.strerror})", path=path) from None
    except DataError:
        raise
    except ValueError:
        raise DataError(what, path=path) from None
    parts = [tuple(map(composed, values.texts(part))) for part in PARTS]
    unused = tuple(map(composed, values.texts("unused", ())))
    return Split(*parts, seed=values.integer("seed", None), unused=unused)


def load_split(path: str | Path, catalogue: Catalogue) -> Split:
    """Reads a saved split and checks it against a data set.

    Args:
        path: a file written by `Split.save`.
        catalogue: the data set that it must fit.

    Raises:
        DataError: the file cannot be read, lists an unknown record or one twice, does not list a record of the data
            set, or divides a group.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mtlkit.data import Catalogue, Record, load_split, make_split
        >>> records = tuple(Record(f"{i}", Path(f"{i}.png"), i % 2, (), f"{i}") for i in range(40))
        >>> catalogue = Catalogue("folder", Path("."), ("benign", "malignant"), records)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     make_split(catalogue).save(f"{folder}/split.json")
        ...     load_split(f"{folder}/split.json", catalogue) == make_split(catalogue)
        True
    """
    split = read_split(path)
    groups = {record.key: record.group for record in catalogue.records}
    names = Names(groups)
    place: dict[str, str] = {}
    home: dict[str, str] = {}
    unknown: list[str] = []
    for part, listed in (*split.parts().items(), ("unused", split.unused)):
        for name in listed:
            key = names.find(name)
            if key is None:
                unknown.append(name)
                continue
            if key in place:
                raise DataError(f"{path}: lists {shown(key)} twice, in {place[key]} and {part}")
            place[key] = part
            if part != "unused" and home.setdefault(groups[key], part) != part:
                raise DataError(
                    f"{path}: divides the group {shown(groups[key])} between {home[groups[key]]} and {part}"
                )
    missing = [key for key in groups if key not in place]
    if unknown:
        instead = f", and does not list {shown(missing[0])}{and_more(missing)}" if missing else ""
        raise DataError(
            f"{path}: lists {shown(unknown[0])}, which is not in {catalogue.root}{and_more(unknown)}{instead}"
        )
    if missing:
        words = "list records to leave out under 'unused'"
        raise DataError(f"{path}: does not list {shown(missing[0])} of {catalogue.root}{and_more(missing)}; {words}")
    keys = {part: tuple(key for key in place if place[key] == part) for part in (*PARTS, "unused")}
    return Split(**keys, seed=split.seed)
