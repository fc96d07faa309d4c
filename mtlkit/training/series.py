"""Several runs of one recipe: with other seeds, or on the folds of a cross-validation.

seed-42/ seed-43/ ...    a run for each seed, all with the same split
fold-1/ fold-2/ ...      a run for each fold
summary.json             mean and standard deviation of each figure over the runs
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtlkit._extras import check_installed
from mtlkit._output import resumable_folder
from mtlkit.data import make_folds
from mtlkit.training.aggregate import summarise
from mtlkit.training.config import Config, load_config
from mtlkit.training.run import check_sources, is_main, left_out, open_for, train

__all__ = ["cross_validate", "repeat"]

KIND = "a series of runs"  # of its folders


def repeat(
    config: Config | str,
    data: str | Path,
    out: str | Path,
    times: int,
    *,
    resume: bool = False,
    force: bool = False,
    **options: Any,
) -> dict[str, dict[str, float]]:
    """Trains with `times` seeds, each in a folder of its own, the split staying the same.

    Args:
        config: a recipe, or the name of one; its seed and those after it are used.
        data: folder of the data set.
        out: folder of the runs; `summary.json` in it holds what is returned.
        times: how often.
        resume: goes on with the runs that were interrupted, and leaves those that ended.
        force: begins again where there are such runs already, whose files stay until all new runs have ended.
        **options: as for `train`.

    Returns:
        "mean" and "sd" (over the runs, with one degree of freedom less; NaN for a single run) of each figure.

    Raises:
        ValueError: `times` is below 1.
        DataError: as for `train`.

    Example:
        >>> from mtlkit.training import repeat
        >>> repeat("demo", "busi", "runs", 0)
        Traceback (most recent call last):
        ValueError: times: expected at least 1, got 0
    """
    if times < 1:
        raise ValueError(f"times: expected at least 1, got {times}")
    config = load_config(config) if isinstance(config, str) else config
    if not resume:
        check_sources(data, options.get("split"))
    configs = [config.change({"seed": seed}) for seed in range(config.seed, config.seed + times)]
    with resumable_folder(out, KIND, resume=resume, force=force, main=is_main()) as place:
        place.check_inputs(data, options.get("split"))
        runs = [train(one, data, place.nested(f"seed-{one.seed}"), resume=resume, **options) for one in configs]
        summary = summarise(runs)
        if is_main():
            place.write_json("summary.json", summary)
    return summary


def cross_validate(
    config: Config | str,
    data: str | Path,
    out: str | Path,
    folds: int,
    *,
    fold: int | None = None,
    resume: bool = False,
    force: bool = False,
    **options: Any,
) -> dict[str, dict[str, float]]:
    """Trains on the folds of a cross-validation, each in a folder of its own; every image is tested on once.

    `mtlkit.data.make_folds` draws the folds, by group and class, from the recipe's `data.split_seed`.

    Args:
        config: a recipe, or the name of one.
        data: folder of the data set.
        out: folder of the runs; `summary.json` in it holds what is returned.
        folds: how many, at least 2.
        fold: trains this one alone, from 1 on, so that each can be a job of its own; all of them share `out`, which
            then has no `summary.json`.
        resume: goes on with the folds that were interrupted, and leaves those that ended.
        force: begins again where there are such runs already, whose files stay until all new runs have ended.
        **options: as for `train`, but for `split`.

    Returns:
        "mean" and "sd" (over the folds, with one degree of freedom less; NaN for one) of each figure.

    Raises:
        ValueError: `folds` is below 2, there is no such fold, or a split is given.
        DataError: a class has fewer groups (patients) than there are folds, or as for `train`.

    Example:
        >>> from mtlkit.training import cross_validate
        >>> cross_validate("demo", "busi", "runs", 5, fold=6)
        Traceback (most recent call last):
        ValueError: fold: expected 1 to 5, got 6
    """
    if folds < 2:
        raise ValueError(f"folds: expected at least 2, got {folds}")
    if fold is not None and not 1 <= fold <= folds:
        raise ValueError(f"fold: expected 1 to {folds}, got {fold}")
    if options.pop("split", None) is not None:
        raise ValueError("split: expected none, as the folds are drawn")
    config = load_config(config) if isinstance(config, str) else config
    check_installed("training")
    check_sources(data, None)
    catalogue = open_for(config, data, options.get("skip_bad", False))
    d = config.data
    splits = make_folds(catalogue, folds, d.fractions, d.split_seed, unused=left_out(catalogue, config))

    def run(number: int, folder: Path, **how: bool) -> Mapping[str, float]:
        return train(config, data, folder, split=splits[number - 1], **how, **options)

    if fold is not None:
        return summarise([run(fold, Path(out) / f"fold-{fold}", resume=resume, force=force)])
    with resumable_folder(out, KIND, resume=resume, force=force, main=is_main()) as place:
        place.check_inputs(data)
        runs = [run(number, place.nested(f"fold-{number}"), resume=resume) for number in range(1, folds + 1)]
        summary = summarise(runs)
        if is_main():
            place.write_json("summary.json", summary)
    return summary
