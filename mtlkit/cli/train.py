"""`mtlkit train`: trains a network from a recipe and a folder of data."""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from mtlkit._extras import check_installed
from mtlkit.cli._cluster import add_ray
from mtlkit.cli._limits import add_max_pixels

DESCRIPTION = """\
Trains a network from a recipe: reads the data set, splits it, trains with checkpoints, keeps the best epoch, and
evaluates it on the test part.

recipes: mbdi, btinet, csa_moe and hybrid_vssm reproduce the papers; demo is small; a path that ends in .yaml is your
own. --schema prints the JSON schema with which editors check it: # yaml-language-server: $schema=recipe.json

The papers' recipes start from ImageNet weights, which are downloaded from the Hugging Face hub the first time. Without
a network connection, either put them into its cache beforehand or train from scratch:
--set model.options.pretrained=false
"""
EPILOG = """\
examples:
  mtlkit data synthesize ultrasound phantoms/busi
  mtlkit train demo --data phantoms/busi --out runs/demo
  mtlkit train mbdi --data BUSI --out runs/mbdi --set data.batch_size=8 --set model.options.pretrained=false
  mtlkit train mbdi --data BUSI --out runs/mbdi --resume         after a crash: continues where it stopped
  mtlkit train csa_moe --data BUSI --out runs/csa --repeats 20   mean and standard deviation over seeds
  mtlkit train mbdi --data BUSI --out runs/cv --folds 5          cross-validation by patient
  mtlkit train mbdi --data BUSI --out runs/cv --folds 5 --fold 2   one of the folds, as a job of its own
  mtlkit train mbdi --data BUSI --out runs/cv --folds 5 --ray auto   folds spread over the GPUs of a Ray cluster
  mtlkit train mbdi --data BUSI --out runs/mbdi --devices 4 --set data.batch_size=6 --set sync_batch_norm=true

with --devices the batch size is that of each process; BatchNorm takes its statistics, and MBDI the signals of its
gates, from each process's own batch, unless sync_batch_norm=true, which needs GPUs; so do losses unless loss.sync=true

the folder of a run: config.yaml, split.json, data.json, stage1/ (best.ckpt, last.ckpt, metrics.csv), model/,
result.json

exit status: 0 trained, 2 not trained; one sentence on standard error says why
"""
LONGEST = 160  # characters of an option in a message
MEMORY = "lower data.batch_size or data.size, as with --set data.batch_size=4, or data.workers, or set data.cache=false"


def add_command(commands: Any) -> None:
    """Adds `train` to the command line."""
    command = commands.add_parser(
        "train",
        help="train a network from a recipe",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("recipe", metavar="RECIPE", help="a name, or a file")
    add(
        "--data",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="the data set; `mtlkit data check` finds what is wrong with it",
    )
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder to write; it must be new")
    add_training_options(command)
    several = command.add_mutually_exclusive_group()
    several.add_argument("--repeats", type=int, metavar="N", help="train with N seeds, each in its own folder")
    several.add_argument("--folds", type=int, metavar="N", help="cross-validate: N folds, each in its own folder")
    add("--fold", type=int, metavar="K", help="with --folds: train only this one, from 1 on, in the folder fold-K")
    add_ray(add, "folds or seeds")
    either = command.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="continue an interrupted run")
    either.add_argument(
        "--force",
        action="store_true",
        help="start again; the files of the earlier run, and no others, are replaced once the new one has finished",
    )
    add("--schema", action=_PrintSchema, nargs=0, help="print the JSON schema of recipes, for editors, and exit")
    command.set_defaults(run=run, command="train", needs=("train",), memory=MEMORY)


def add_training_options(command: argparse.ArgumentParser) -> None:
    """Adds the options that `changes_of` and `training_options` read, but for --resume and --force."""
    add = command.add_argument
    add("--split", type=Path, metavar="FILE", help="use this saved split instead of drawing one")
    add("--drop-duplicates", action="store_true", help="leave out images that look the same as others")
    add("--skip-bad", action="store_true", help="leave out images that cannot be used")
    add_max_pixels(command)
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting, such as data.batch_size=8")
    add("--devices", type=int, default=1, metavar="N", help="processes, one for each GPU; default 1")
    add("--logger", metavar="NAME", help="also log to csv, tensorboard, mlflow or wandb, in the folder logs of a run")
    add(
        "--trainer",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set an argument of Lightning's Trainer, such as accelerator=gpu or max_time=00:08:00:00",
    )


def parse_changes(settings: list[str], option: str = "--set") -> dict[str, Any]:
    """Nested dictionaries of "section.name=value"; values are read as YAML.

    Example:
        >>> from mtlkit.cli.train import parse_changes
        >>> parse_changes(["data.batch_size=8", "data.classes=[benign, malignant]", "seed=1"])
        {'data': {'batch_size': 8, 'classes': ['benign', 'malignant']}, 'seed': 1}
    """
    import yaml

    from mtlkit._text import parse_yaml

    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        setting = setting if len(setting) <= LONGEST else f"{setting[:LONGEST]}..."  # for messages
        if not equals or not name:
            raise ValueError(f"{option} {setting}: expected NAME=VALUE")
        try:
            value = parse_yaml(text)
        except yaml.YAMLError:
            raise ValueError(f"{option} {setting}: the value is not valid YAML") from None
        *sections, last = name.split(".")
        place = changes
        for depth, section in enumerate(sections, 1):
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ValueError(f"{option} {setting}: {'.'.join(sections[:depth])} has a value by another {option}")
        if isinstance(place.get(last), dict) and not isinstance(value, dict):
            raise ValueError(f"{option} {setting}: {name} has settings of its own by another {option}")
        place[last] = value
    return changes


def changes_of(options: argparse.Namespace) -> dict[str, Any]:
    """The changes to the recipe: of --set, and of options that are settings."""
    others = [] if options.max_pixels is None else [f"data.max_pixels={options.max_pixels}"]
    others += ["data.drop_duplicates=true"] if options.drop_duplicates else []
    return parse_changes([*options.set, *others])


class _PrintSchema(argparse.Action):
    """Prints the JSON schema of recipes and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        check_installed("`mtlkit train --schema`")
        from mtlkit.training import recipe_schema

        print(json.dumps(recipe_schema(), indent=2))  # noqa: T201 - the requested output
        parser.exit()


def training_options(options: argparse.Namespace, *, progress: bool) -> dict[str, Any]:
    """The arguments of `mtlkit.training.train` that the command line has under the same names, and the trainer's."""
    if options.devices < 1:
        raise ValueError(f"--devices: expected at least 1, got {options.devices}")
    settings = {name: getattr(options, name) for name in ("split", "resume", "force", "skip_bad")}
    trainer = {} if options.devices == 1 else {"devices": options.devices, "strategy": "ddp"}
    trainer |= parse_changes(options.trainer, "--trainer")
    return settings | {"progress": progress, "logger": options.logger, "trainer": trainer}


def cluster_options(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of series of trainings that say where they run."""
    if options.ray is not None and options.devices != 1:
        raise ValueError(f"--devices: expected 1 with --ray, whose jobs are one process each, got {options.devices}")
    return {"ray": options.ray, "ray_cpus": options.ray_cpus}


def run(options: argparse.Namespace) -> int:
    """`mtlkit train`."""
    from mtlkit._output import check_outside
    from mtlkit.cli._console import open_console, open_table
    from mtlkit.training import cross_validate, load_config, repeat, train
    from mtlkit.training.aggregate import digits_of, in_words
    from mtlkit.training.config import named_recipe
    from mtlkit.training.run import is_main
    from mtlkit.training.tasks import LOSSES

    if options.repeats is not None and options.repeats < 1:
        raise ValueError(f"--repeats: expected at least 1, got {options.repeats}")
    if options.folds is not None and options.folds < 2:
        raise ValueError(f"--folds: expected at least 2, got {options.folds}")
    if options.fold is not None and not 1 <= options.fold <= (options.folds or 0):
        among = "--folds as well" if options.folds is None else f"1 to {options.folds}"
        raise ValueError(f"--fold: expected {among}, got {options.fold}")
    if options.folds is not None and options.split is not None:
        raise ValueError("--split: expected none with --folds, which draws the splits")
    series = cluster_options(options)
    if options.ray is not None and (options.fold is not None or options.folds is options.repeats is None):
        raise ValueError("--ray: expected --repeats, or --folds without --fold, as well: a single run cannot be spread")
    if options.force:
        check_outside(options.out, options.recipe)
    config = load_config(options.recipe).adjust(changes_of(options))
    console = open_console(quiet=not is_main())  # of several processes one tells
    settings = training_options(options, progress=console.is_terminal)
    with named_recipe(options.recipe):
        if options.folds is not None:
            pairs = cross_validate(
                config, options.data, options.out, options.folds, fold=options.fold, **settings, **series
            )
        elif options.repeats is None:
            found = train(config, options.data, options.out, **settings)
            pairs = {name: {"mean": value, "sd": None} for name, value in found.items()}
        else:
            pairs = repeat(config, options.data, options.out, options.repeats, **settings, **series)
    cells = {name: in_words(pair, digits_of(name)) for name, pair in pairs.items()}
    shown = [name.removeprefix("val/") for name in cells if name.startswith("val/") and "/gate_" not in name]
    table = open_table("metric", "validation", "test", "meaning", title=str(options.out))
    for name in sorted(shown, key=lambda name: name in LOSSES):  # metrics first
        table.add_row(name, cells[f"val/{name}"], cells.get(f"test/{name}", ""), metric_meaning(name))
    console.print(table)
    out = shlex.quote(str(options.out))
    for line in (
        "next:",
        f"  mtlkit evaluate {out} --out REPORT         intervals, plots and a report for the browser",
        f"  mtlkit predict {out} IMAGES --out MASKS    masks and classes of your own images",
    ):
        console.print(line, soft_wrap=True)
    return 0


def metric_meaning(name: str) -> str:
    """A few words on a row of the table that ends a training.

    Example:
        >>> from mtlkit.cli.train import metric_meaning
        >>> metric_meaning("f1_macro"), metric_meaning("label_auc"), metric_meaning("combined")
        ('F1, macro', 'Label: AUC', 'score that picks the epoch')
    """
    from mtlkit.evaluation.report import COUNTS, FIGURES, figure_rows
    from mtlkit.training.tasks import HEADS, LOSSES

    base = name
    for head in HEADS.values():
        base = base.removeprefix(head.prefix)
    if base in FIGURES:
        return figure_rows({name: None})[0][0]
    if name in LOSSES:
        return "loss, lower is better"
    return "score that picks the epoch" if name == "combined" else COUNTS.get(base, "")
