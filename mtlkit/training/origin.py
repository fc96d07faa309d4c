"""The origin of a run's network for its model card: data, split, metrics, calibration, recipe."""

import math
from collections.abc import Mapping
from pathlib import Path

from mtlkit.data import Split
from mtlkit.data.items import MEAN, STD
from mtlkit.models import Origin, Result
from mtlkit.models.card import is_figure, print_of_parameters
from mtlkit.models.network import Network
from mtlkit.training.calibration import Calibration, as_values
from mtlkit.training.config import Config
from mtlkit.training.saved_run import SavedRun

__all__ = ["is_phantoms", "origin_of", "stored_origin"]

PHANTOMS = "synthetic.json"  # file that `mtlkit data synthesize` leaves in its folders
FEW = 100  # number of images below which metrics say little


def origin_of(
    network: Network,
    config: Config,
    data: Path,
    layout: str,
    classes: Mapping[str, tuple[str, ...]],
    split: Split | None,
    figures: Mapping[str, float],
    calibration: Mapping[str, Calibration],
) -> Origin:
    """The origin of a network that a run has trained.

    Args:
        network: network with the evaluated parameters.
        config: recipe of the run.
        data: folder of the data set; only its name is recorded.
        layout: layout of the data set; "" if unknown.
        classes: class names, by task.
        split: split of the data set.
        figures: metrics of the validation and test parts, as in result.json.
        calibration: calibration of each classifier.

    Example:
        >>> from pathlib import Path
        >>> from mtlkit.models import create_model
        >>> from mtlkit.training import load_config
        >>> from mtlkit.training.origin import origin_of
        >>> config, model = load_config("csa_moe"), create_model("csa_moe")
        >>> classes = {"class": ("benign", "malignant")}
        >>> origin = origin_of(model, config, Path("BUSI"), "busi", classes, None, {"test/accuracy": 0.9}, {})
        >>> origin.data, origin.results[0].figures
        ('BUSI', {'accuracy': (0.9, None, None)})
    """
    parts = {} if split is None else {name: len(keys) for name, keys in split.parts().items() if len(keys)}
    name = data.resolve().name
    return Origin(
        parameters=print_of_parameters(network),
        network=config.model.name,
        data=name,
        layout=layout,
        phantoms=is_phantoms(data),
        classes=dict(classes),
        parts=parts,
        images=_preparation(config),
        results=_results(name, parts, figures),
        calibration={task: value for task, value in as_values(calibration).items() if value["images"]},
        recipe=config.to_dict(),
    )


def stored_origin(run: SavedRun) -> Origin:
    """The origin of a finished run's network: as stored by training, or reconstructed for earlier versions."""
    layout = run.config.data.layout.replace("auto", "")
    return getattr(run.model, "origin", None) or origin_of(
        run.model, run.config, run.data, layout, run.tasks, run.split, run.figures, run.calibration
    )


def is_phantoms(folder: Path) -> bool:
    """Whether a data set consists of phantoms written by `mtlkit data synthesize`."""
    return (folder / PHANTOMS).is_file()


def _preparation(config: Config) -> str:
    data = config.data
    words = f"Images are resized to {data.size} x {data.size} pixels, with values from 0 to 1"
    return f"{words}, minus the mean {MEAN} and divided by {STD}." if data.normalize else f"{words}."


def _results(data: str, parts: Mapping[str, int], figures: Mapping[str, float]) -> tuple[Result, ...]:
    """The metrics of the test part, or of the validation part if there is no test part."""
    for part in ("test", "val"):
        found = {
            name: (value, None, None)
            for name, value in _of_part(figures, part).items()
            if is_figure(name) and math.isfinite(value)
        }
        if found:
            remarks = [f"There are only {parts[part]} images in the {part} part."] if parts.get(part, FEW) < FEW else []
            return (Result(data, part, found, images=parts.get(part), remarks=tuple(remarks)),)
    return ()


def _of_part(figures: Mapping[str, float], part: str) -> dict[str, float]:
    return {name.partition("/")[2]: value for name, value in figures.items() if name.startswith(f"{part}/")}
