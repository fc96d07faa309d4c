"""Several runs of one recipe: with other seeds, or on the folds of a cross-validation, here or on a Ray cluster.

seed-42/ seed-43/ ...    a run for each seed, all with the same split
fold-1/ fold-2/ ...      a run for each fold
summary.json             mean and standard deviation of each figure over the runs
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mtlkit._extras import check_installed
from mtlkit._jobs import Cluster, Here, Job, State, open_runner
from mtlkit._output import CLAIM, OutputFolder, resumable_folder
from mtlkit.data import Split, make_folds
from mtlkit.errors import DataError
from mtlkit.training.aggregate import summarise
from mtlkit.training.config import Config, RecipeError, load_config
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
    ray: str | None = None,
    ray_cpus: int = 1,
    **options: Any,
) -> dict[str, dict[str, float]]:
    """Trains with `times` seeds, each in a folder of its own, the split staying the same.

    Args:
        config: a recipe, or the name of one; its seed and those after it are used.
        data: folder of the data set.
        out: folder of the runs; `summary.json` in it holds what is returned.
        times: how often.
        resume: continues the runs that were interrupted, and leaves finished ones alone.
        force: starts again if there are such runs already, whose files stay until all new runs have ended.
        ray: address of a Ray cluster, over which the runs are spread, each with a GPU where there are any: "auto" for
            that of this machine, "local" for one that is started here, "host:port" or "ray://host:port". None trains
            one run after the other in this process.
        ray_cpus: CPUs of each run on a cluster, and threads of PyTorch.
        **options: as for `train`.

    Returns:
        "mean" and "sd" (over the runs, with one degree of freedom less; NaN for a single run) of each figure.

    Raises:
        ValueError: `times` is below 1, or there is no such cluster.
        DataError: as for `train`.
        ImportError: Ray is not installed.

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
    runs = seeds(config, times, options.pop("split", None))
    with open_train_runner(ray, ray_cpus, options) as where:
        return _train_all(where, runs, data, Path(out), resume=resume, force=force, **options)


def cross_validate(
    config: Config | str,
    data: str | Path,
    out: str | Path,
    folds: int,
    *,
    fold: int | None = None,
    resume: bool = False,
    force: bool = False,
    ray: str | None = None,
    ray_cpus: int = 1,
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
        resume: continues the folds that were interrupted, and leaves finished ones alone.
        force: starts again if there are such runs already, whose files stay until all new runs have ended.
        ray: address of a Ray cluster, over which the folds are spread; see `repeat`.
        ray_cpus: as for `repeat`.
        **options: as for `train`, but for `split`.

    Returns:
        "mean" and "sd" (over the folds, with one degree of freedom less; NaN for one) of each figure.

    Raises:
        ValueError: `folds` is below 2, there is no such fold or cluster, or a split is given.
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
    if fold is not None and ray is not None:
        raise ValueError("ray: expected None with a fold, which is one run")
    if options.pop("split", None) is not None:
        raise ValueError("split: expected none, as the folds are drawn")
    config = load_config(config) if isinstance(config, str) else config
    check_installed("training")
    check_sources(data, None)
    catalogue = open_for(config, data, options.get("skip_bad", False))
    d = config.data
    splits = make_folds(catalogue, folds, d.fractions, d.split_seed, unused=left_out(catalogue, config))

    if fold is not None:
        alone = train(
            config, data, Path(out) / f"fold-{fold}", split=splits[fold - 1], resume=resume, force=force, **options
        )
        return summarise([alone])
    runs = [Run(f"fold {number}", config, split) for number, split in enumerate(splits, 1)]
    with open_train_runner(ray, ray_cpus, options) as where:
        return _train_all(where, runs, data, Path(out), resume=resume, force=force, **options)


# --- runs as jobs -----------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """One of a series."""

    name: str  # of its folder, with a blank
    config: Config
    split: Split | str | Path | None


class Series(NamedTuple):
    """Runs that are to be trained, in their folder."""

    place: OutputFolder
    jobs: list[Job]

    def end(self, runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
        """Writes and returns the summary of what the jobs returned."""
        summary = summarise(runs)
        if is_main():
            self.place.write_json("summary.json", summary)
        return summary


def seeds(config: Config, times: int, split: Split | str | Path | None) -> list[Run]:
    """A run for each seed, from the recipe's on."""
    numbers = range(config.seed, config.seed + times)
    return [Run(f"seed {number}", config.change({"seed": number}), split) for number in numbers]


def open_train_runner(ray: str | None, cpus: int, options: Mapping[str, Any]) -> AbstractContextManager[Here | Cluster]:
    """As `open_runner`, for trainings with these options.

    Raises:
        ValueError: a training is to have several processes, which a job of a cluster does not start.
    """
    trainer = options.get("trainer") or {}
    if ray is not None and str(devices := trainer.get("devices", 1)) not in ("1", "auto"):
        raise ValueError(f"devices: expected 1 with a Ray cluster, whose jobs are one process each, got {devices}")
    return open_runner(ray, cpus, gpu=trainer.get("accelerator") != "cpu")


def _train_all(
    where: Here | Cluster, runs: Sequence[Run], data: str | Path, out: Path, **options: Any
) -> dict[str, dict[str, float]]:
    progress = options.get("progress", True)
    with open_series(where, runs, data, out, **options) as series:
        with where.results(series.jobs, progress=progress) as results:
            found = list(results)
        return series.end(found)


@contextmanager
def open_series(
    where: Here | Cluster,
    runs: Sequence[Run],
    data: str | Path,
    out: Path,
    *,
    resume: bool,
    force: bool = False,
    prefix: str = "",
    **options: Any,
) -> Iterator[Series]:
    """Gives runs as jobs, each of which goes on with what is there of it.

    Args:
        where: they are to run.
        runs: a folder each.
        data: folder of the data set.
        out: folder of the runs.
        resume: goes on with those that are there.
        force: replaces those that are there.
        prefix: of the names of the jobs.
        **options: as for `train`.
    """
    with resumable_folder(out, KIND, resume=resume, force=force, main=is_main()) as place:
        files = {run.split for run in runs if isinstance(run.split, str | Path)}
        place.check_inputs(data, *files)
        where.check_shared(place.path, data, *files)
        if not isinstance(where, Here):
            options["progress"] = False  # in a worker nobody sees it
        jobs = []
        for run in runs:
            folder = place.nested(run.name.replace(" ", "-"))
            name = ", ".join(([prefix] if prefix else []) + ([run.name] if len(runs) > 1 or not prefix else []))
            given = {**options, "split": run.split, "resume": True}
            state = partial(_state, folder, run.config)
            jobs.append(Job(name, _train, (name, run.config, data, folder), given, state))
        yield Series(place, jobs)


def _train(name: str, *given: Any, **options: Any) -> dict[str, float]:
    """Trains; an error of the recipe or of the training names the run, where one of data names a file."""
    try:
        return train(*given, **options)
    except DataError:
        raise
    except (ValueError, FloatingPointError) as error:
        kinds = (FloatingPointError, RecipeError, ValueError)
        named = next(kind for kind in kinds if isinstance(error, kind))(f"{name}: {error}")
        named.__dict__.update(error.__dict__)  # from where it can be resumed
        raise named from None


def _state(folder: Path, config: Config) -> State:
    """Where a run is trained, and how many of its epochs are done, as its files tell."""
    stages = [config.stage(number) for number in range(1, 2 if config.second_stage is None else 3)]
    done = 0
    for number, stage in enumerate(stages, 1):
        if (folder / f"stage{number}/done.json").is_file():  # it may have stopped early
            done += stage.stopping.epochs
        elif (table := folder / f"stage{number}/metrics.csv").is_file():
            done += len(table.read_bytes().splitlines()) - 1
    try:
        where = (folder / CLAIM).read_text(errors="replace").strip()
    except OSError:
        where = ""
    return State(where, done, sum(stage.stopping.epochs for stage in stages))
