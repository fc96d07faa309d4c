"""Several runs of one recipe: with other seeds, or on the folds of a cross-validation, here or on a Ray cluster.

seed-42/ seed-43/ ...    a run for each seed, all with the same split
fold-1/ fold-2/ ...      a run for each fold
summary.json             mean and standard deviation of each metric over the runs
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

KIND = "a series of runs"  # kind of its folders


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
    """Trains with `times` seeds on the same split, each in its own folder.

    Args:
        config: a recipe, or the name of one; its seed and those after it are used.
        data: folder of the data set.
        out: folder of the runs; its `summary.json` has the returned values.
        times: number of runs.
        resume: whether to continue interrupted runs; finished ones are not changed.
        force: whether to start again if there are such runs already; their files stay until all new runs have finished.
        ray: address of a Ray cluster for the runs, each with a GPU if there are any: "auto" for the cluster of this
            machine, "local" to start one here, "host:port" or "ray://host:port". None trains one run after another
            in this process.
        ray_cpus: CPUs and PyTorch threads of each run on a cluster.
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
    """Trains on the folds of a cross-validation, each in its own folder; every image is in one test part.

    `mtlkit.data.make_folds` draws the folds, by group and class, from the recipe's `data.split_seed`.

    Args:
        config: a recipe or its name.
        data: folder of the data set.
        out: folder of the runs; its `summary.json` has the returned values.
        folds: number of folds, at least 2.
        fold: number of a single fold to train, from 1, so that each fold can be a separate job; all share `out`, which
            then has no `summary.json`.
        resume: whether to continue interrupted folds; finished ones are not changed.
        force: whether to start again if there are such runs already; their files stay until all new runs have finished.
        ray: address of a Ray cluster for the folds; see `repeat`.
        ray_cpus: as for `repeat`.
        **options: as for `train`, except `split`.

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
        raise ValueError("ray: expected None with fold, which is a single run")
    if options.pop("split", None) is not None:
        raise ValueError("split: expected none, because the folds are drawn")
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
    """A run of a series."""

    name: str  # prefix of its folder, with a space
    config: Config
    split: Split | str | Path | None


class Series(NamedTuple):
    """The runs to train, in their folder."""

    place: OutputFolder
    jobs: list[Job]

    def end(self, runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
        """Writes and returns the summary of the jobs' results."""
        summary = summarise(runs)
        if is_main():
            self.place.write_json("summary.json", summary)
        return summary


def seeds(config: Config, times: int, split: Split | str | Path | None) -> list[Run]:
    """A run for each seed, starting with the recipe's."""
    numbers = range(config.seed, config.seed + times)
    return [Run(f"seed {number}", config.change({"seed": number}), split) for number in numbers]


def open_train_runner(ray: str | None, cpus: int, options: Mapping[str, Any]) -> AbstractContextManager[Here | Cluster]:
    """`open_runner` for trainings with these options.

    Raises:
        ValueError: the options request several processes, which a cluster job cannot start.
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
    """Submits runs as jobs, each of which continues an existing run.

    Args:
        where: runner for the jobs.
        runs: the runs, one folder each.
        data: folder of the data set.
        out: folder of the runs.
        resume: whether to continue existing runs.
        force: whether to replace existing runs.
        prefix: prefix of the jobs' names.
        **options: as for `train`.
    """
    with resumable_folder(out, KIND, resume=resume, force=force, main=is_main()) as place:
        files = {run.split for run in runs if isinstance(run.split, str | Path)}
        place.check_inputs(data, *files)
        where.check_shared(place.path, data, *files)
        if not isinstance(where, Here):
            options["progress"] = False  # invisible in a worker
        jobs = []
        for run in runs:
            folder = place.nested(run.name.replace(" ", "-"))
            name = ", ".join(([prefix] if prefix else []) + ([run.name] if len(runs) > 1 or not prefix else []))
            given = {**options, "split": run.split, "resume": True}
            state = partial(_state, folder, run.config)
            jobs.append(Job(name, _train, (name, run.config, data, folder), given, state))
        yield Series(place, jobs)


def _train(name: str, *given: Any, **options: Any) -> dict[str, float]:
    """Trains; errors of the recipe or the training name the run, while errors of the data name a file."""
    try:
        return train(*given, **options)
    except DataError:
        raise
    except (ValueError, FloatingPointError) as error:
        kinds = (FloatingPointError, RecipeError, ValueError)
        named = next(kind for kind in kinds if isinstance(error, kind))(f"{name}: {error}")
        named.__dict__.update(error.__dict__)  # it can be resumed from here
        raise named from None


def _state(folder: Path, config: Config) -> State:
    """The stage of a run and its number of finished epochs, from its files."""
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
