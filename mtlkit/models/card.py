"""Model cards: the README.md next to a network's parameters, in the format of the Hugging Face Hub.

A card contains what is known: for any network its kind, options and paper; for a network trained by a run also the
data, metrics, calibration and recipe, which are its `Origin`. An origin belongs to parameters, not to an object: if
they change, for example by further training, the card omits the metrics and says so.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mtlkit
from mtlkit._files import markdown_table
from mtlkit._text import escape_markdown
from mtlkit.models.network import Network, takes

__all__ = ["Origin", "Result"]

HERE = Path(__file__).parent
TEMPLATE, CITATIONS = HERE / "card.md", HERE / "citations.bib"
PHANTOMS = "It was trained on phantoms, which are synthetic images: its results say nothing about patients."
FIGURES = {  # display names
    "iou": "IoU",
    "dice": "Dice",
    "sensitivity": "sensitivity of the mask",
    "precision": "precision of the mask",
    "hd95": "HD95, pixels",
    "assd": "ASSD, pixels",
    "surface_dice": "surface Dice",
    "hd95_mm": "HD95, mm",
    "assd_mm": "ASSD, mm",
    "surface_dice_mm": "surface Dice, mm",
    "accuracy": "accuracy",
    "precision_macro": "precision, macro",
    "recall_macro": "recall, macro",
    "f1_macro": "F1, macro",
    "f1_weighted": "F1, weighted",
    "precision_positive": "precision of the positive class",
    "recall_positive": "recall of the positive class",
    "f1_positive": "F1 of the positive class",
    "auc": "AUC",
    "calibration_error": "calibration error",
    "brier": "Brier score",
}
OF_MASKS = tuple(FIGURES)[: tuple(FIGURES).index("accuracy")]
THRESHOLDS = {"youden": "Youden's index", "sensitivity_95": "sensitivity of 95 %"}
PREFIXES = {"label_": "label: ", "birads_": "BI-RADS: "}
LICENCES = {  # the Hub's identifiers that are common for weights
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "openrail"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0"),
}


@dataclass(frozen=True)
class Result:
    """The metrics of a network on a part of a data set.

    Args:
        data: name of the data set.
        part: "test", "val", "train" or "all".
        figures: metrics by name, such as "iou" and "auc": value and both ends of its interval, None without one.
        intervals: how the intervals were computed, in words.
        images: number of images; None if unknown.
        remarks: what a reader must know about the result.

    Raises:
        ValueError: a metric is not a finite number.

    Example:
        >>> from mtlkit.models import Result
        >>> Result("busi", "test", {"accuracy": (0.9, 0.8, 0.95)}, images=100).figures["accuracy"][0]
        0.9
    """

    data: str
    part: str
    figures: Mapping[str, tuple[float, float | None, float | None]]
    intervals: str = ""
    images: int | None = None
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, (value, *_) in self.figures.items():
            if not math.isfinite(value):
                raise ValueError(f"figures: expected finite numbers, got {value} for {name!r}")


@dataclass(frozen=True)
class Origin:
    """Where the parameters of a network come from, for its model card.

    Args:
        parameters: hash of the parameters, from `print_of_parameters`.
        network: registered name of the network.
        data: name of the data set.
        layout: layout of the data set.
        phantoms: whether the images are synthetic.
        classes: the names of the classes, by task.
        parts: number of images or exams in each part of the split.
        images: preprocessing of the images, in words.
        results: metrics.
        calibration: for each task, "temperature", "images" and "thresholds".
        recipe: recipe of the training.
        mtlkit: version of mtlkit that trained it.

    Example:
        >>> import mtlkit
        >>> from mtlkit.models import Origin, Result, create_model
        >>> from mtlkit.models.card import card_of, print_of_parameters
        >>> model = create_model("medmamba_t", num_classes=2, depths=(1, 1), dims=(16, 32))
        >>> result = Result("busi", "test", {"accuracy": (0.9, 0.8, 0.95)})
        >>> model.origin = Origin(print_of_parameters(model), "medmamba_t", "busi", results=(result,))
        >>> card_of(model, "someone/net", licence="mit").data.eval_results[0].metric_value
        0.9
    """

    parameters: str
    network: str
    data: str
    layout: str = ""
    phantoms: bool = False
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    parts: Mapping[str, int] = field(default_factory=dict[str, int])
    images: str = ""
    results: tuple[Result, ...] = ()
    calibration: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])
    mtlkit: str = mtlkit.__version__

    def with_result(self, result: Result) -> "Origin":
        """A copy with a new result, which replaces an earlier one on the same part of the same data set."""
        others = [one for one in self.results if (one.data, one.part) != (result.data, result.part)]
        return replace(self, results=(result, *others))

    def to_dict(self) -> dict[str, Any]:
        """The form in which config.json stores it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Origin":
        """The inverse of `to_dict`, also after a round trip through JSON; fields of later versions are ignored.

        Raises:
            ValueError: it is not in that form.
        """
        try:
            known = _known(cls, values)
            for name in ("parameters", "network", "data", "layout", "images", "mtlkit"):
                if not isinstance(known.get(name, ""), str):
                    raise TypeError(f"{name}: expected text")
            results = [_known(Result, one) for one in known.pop("results", ())]
            for one in results:
                one["figures"] = {str(name): _figure(*figure) for name, figure in one["figures"].items()}
                one["remarks"] = tuple(map(str, one.get("remarks", ())))
            origin = cls(**known, results=tuple(Result(**one) for one in results))
            _lines(origin)  # checks the types that the card relies on
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"origin: expected the form that mtlkit writes, got another ({error})") from None
        return origin


def _known(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    return {one.name: values[one.name] for one in fields(kind) if one.name in values}


def _figure(value: Any, low: Any, high: Any) -> tuple[float, float | None, float | None]:
    return float(value), None if low is None else float(low), None if high is None else float(high)


def print_of_parameters(network: nn.Module) -> str:
    """A hash of a network's parameters and buffers, with their names.

    Example:
        >>> import torch
        >>> from mtlkit.models.card import print_of_parameters
        >>> layer = torch.nn.Linear(2, 2)
        >>> before = print_of_parameters(layer)
        >>> _ = layer.bias.data.add_(1)
        >>> before == print_of_parameters(layer)
        False
    """
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def is_figure(name: str) -> bool:
    """Whether a card shows a metric of that name; it does not show losses and gates.

    Example:
        >>> from mtlkit.models.card import is_figure
        >>> is_figure("iou"), is_figure("birads_auc"), is_figure("gate_seg_level1")
        (True, True, False)
    """
    return _without_prefix(name)[1] in FIGURES


def _is_of_mask(name: str) -> bool:
    return name in OF_MASKS


def _without_prefix(name: str) -> tuple[str, str]:
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
    return PREFIXES.get(prefix, ""), name.removeprefix(prefix)


def _title(name: str) -> str:
    """The display name of a metric."""
    prefix, name = _without_prefix(name)
    return prefix + FIGURES.get(name, name)


# --- the card ---------------------------------------------------------------------------------------------------------


def card_of(network: nn.Module, source: str = "", *, licence: str | None = None) -> Any:
    """The model card of a network, as a huggingface_hub ModelCard.

    Args:
        network: the network; its attribute `origin`, if it has one, describes the training of its parameters.
        source: the repository or folder from which `from_pretrained` will load it; "" if unknown.
        licence: licence of the weights: one of the Hub's identifiers, such as "cc-by-nc-4.0", or text.

    Example:
        >>> from mtlkit.models import create_model
        >>> from mtlkit.models.card import card_of
        >>> card = card_of(create_model("medmamba_t", depths=(1, 1), dims=(16, 32)), "someone/net")
        >>> card.data.pipeline_tag
        'image-classification'
    """
    from huggingface_hub import ModelCard, ModelCardData

    origin: Origin | None = getattr(network, "origin", None)
    changed = origin is not None and origin.parameters != print_of_parameters(network)
    shown = replace(origin, results=(), calibration={}) if origin is not None and changed else origin
    kind = type(network).__name__
    draws = isinstance(network, Network) and "seg_logits" in network.returns
    data = ModelCardData(
        library_name="mtlkit",
        license=_identifier(licence),
        license_name=licence if _identifier(licence) == "other" else None,
        pipeline_tag="image-segmentation" if draws else "image-classification",
        tags=["mtlkit", *(["medical-imaging", shown.network] if shown else [])],
        model_name=kind if shown is None else f"{shown.network} on {shown.data}",
        eval_results=None if shown is None else _eval_results(shown) or None,
    )
    lines = {} if shown is None else _lines(shown)
    limits = lines.get("limits", [])
    if changed:
        limits = ["The parameters have changed since the run, so its metrics do not apply to them.", *limits]
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        title=lines.get("title", kind),
        about=_about(network),
        facts=_facts(network) + lines.get("facts", []),
        source=source or "path/of/this/folder",
        takes=_takes(network) + lines.get("images", ""),
        use=_use(draws),
        data=lines.get("data", []),
        results=lines.get("results", []),
        why_no_figures=", because its parameters have changed since the run" if changed else "",
        calibration=lines.get("calibration", []),
        limits=[
            "It is not a medical device. It must not be used for decisions about patients, nor to support them.",
            *limits,
            "It may fail unnoticed on images from devices, hospitals or populations that are not in its training data.",
        ],
        licence_words=_licence_words(licence),
        citation=citation(kind),
        recipe=lines.get("recipe", ""),
        version=mtlkit.__version__,
        made_by=lines.get("made_by", ""),
    )


def citation(kind: str) -> str:
    """The BibTeX entry of the paper for a class of networks; "" if mtlkit does not know one.

    Example:
        >>> from mtlkit.models.card import citation
        >>> citation("MedMamba").splitlines()[0]
        '@misc{MedMamba,'
    """
    entries = CITATIONS.read_text(encoding="utf-8").split("\n\n")
    return next((entry.strip() for entry in entries if entry.startswith(f"@misc{{{kind},")), "")


def _identifier(licence: str | None) -> str | None:
    if licence is None:
        return None
    return licence.lower() if licence.lower() in LICENCES else "other"


def _licence_words(licence: str | None) -> str:
    if licence is None:
        return (
            "No licence has been stated: ask the authors before you use the weights. The terms of the training data "
            "from apply, too."
        )
    return f"Weights: {escape_markdown(licence)}. The terms of the training data apply too."


def _about(network: nn.Module) -> str:
    first = (type(network).__doc__ or type(network).__name__).strip().splitlines()[0]
    return f"{first.rstrip('.')}. A network from mtlkit."


def _facts(network: nn.Module) -> list[str]:
    count = sum(parameter.numel() for parameter in network.parameters())
    return [f"Network: {type(network).__name__}, {count:,} parameters; its options are in config.json."]


def _takes(network: nn.Module) -> str:
    return f"Its inputs are {', '.join(f'`{name}`' for name in takes(network))}." if takes(network) else ""


def _use(draws: bool) -> str:
    what = "segments and classifies lesions" if draws else "classifies images"
    return (
        f"Research: to compare, reproduce and further train networks for medical images. This one {what}. Its output "
        "is a research result, which a person qualified to read such images must review."
    )


def _eval_results(origin: Origin) -> list[Any]:
    from huggingface_hub import EvalResult

    found: list[Any] = []
    for result in origin.results:
        for name, (value, low, high) in result.figures.items():
            interval = None if low is None or high is None else {"interval": [low, high]}
            found.append(
                EvalResult(
                    task_type="image-segmentation" if _is_of_mask(name) else "image-classification",
                    dataset_type="".join(c if c.isalnum() else "-" for c in result.data.lower()),
                    dataset_name=result.data,
                    dataset_split=result.part,
                    metric_type=name,
                    metric_name=_title(name),
                    metric_value=value,
                    metric_args=interval,
                )
            )
    return found


def _lines(origin: Origin) -> dict[str, Any]:
    """The parts of the template that describe an origin."""
    import yaml

    data = escape_markdown(origin.data)
    about_data = [f"Data set: {data}" + (f", in the layout {escape_markdown(origin.layout)}" if origin.layout else "")]
    if origin.phantoms:
        about_data.append("These are phantoms, synthetic images, not patients.")
    for task, names in origin.classes.items():
        about_data.append(f"Classes ({escape_markdown(task)}): {', '.join(map(escape_markdown, names))}")
    if origin.parts:
        counts = ", ".join(f"{int(count):,} {escape_markdown(part)}" for part, count in origin.parts.items())
        about_data.append(f"Split, by patient or other group if the data set has them: {counts}")
    limits = [PHANTOMS] if origin.phantoms else []
    limits += dict.fromkeys(escape_markdown(remark) for result in origin.results for remark in result.remarks)
    if any(result.part == "val" for result in origin.results):
        limits.append("The best epoch was chosen on the validation part, so the metrics there are optimistic.")
    recipe = dict(origin.recipe)
    return {
        "title": f"{escape_markdown(origin.network)} on {data}",
        "facts": [f"Trained on {data}" + (" (phantoms)" if origin.phantoms else "") + "; the recipe is below."],
        "data": about_data,
        "images": f" {escape_markdown(origin.images)}" if origin.images else "",
        "results": [_result_lines(result) for result in origin.results],
        "calibration": [
            line for task, entry in origin.calibration.items() for line in _calibration_lines(str(task), entry)
        ],
        "limits": limits,
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip() if recipe else "",
        "made_by": escape_markdown(origin.mtlkit),
    }


def _result_lines(result: Result) -> dict[str, str]:
    images = "" if result.images is None else f", {int(result.images):,} images"
    intervals = any(low is not None for _, low, _ in result.figures.values())
    rows: list[list[str]] = []
    for name, (value, low, high) in result.figures.items():
        interval = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
        rows.append([escape_markdown(_title(name)), f"{value:.3f}", *([interval] if intervals else [])])
    headings = ["metric", "value", *(["95 % interval"] if intervals else [])]
    note = f"Intervals: {escape_markdown(result.intervals)}." if result.intervals else "Without intervals: one run."
    return {
        "title": f"{escape_markdown(result.data)}, {escape_markdown(result.part)} part{images}:",
        "table": "\n".join(markdown_table(headings, rows)),
        "note": note,
    }


def _calibration_lines(task: str, entry: Mapping[str, Any]) -> list[str]:
    words = f"{escape_markdown(task)}: divide the logits by {float(entry['temperature']):.3f} before the softmax"
    lines = [f"{words} (fitted on {int(entry['images']):,} images of the validation part)."]
    for name, value in entry.get("thresholds", {}).items():
        title = escape_markdown(THRESHOLDS.get(name, str(name)))
        lines.append(f"{escape_markdown(task)}, threshold of the positive class by {title}: {float(value):.3f}.")
    return lines
