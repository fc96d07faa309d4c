"""Networks in folders and on the Hugging Face Hub: options in config.json, parameters in model.safetensors.

The model card, README.md, is next to them. Saving a network again rewrites the card only if it is unchanged since
mtlkit wrote it, which a hash in config.json shows; a card that was edited or comes from elsewhere is kept, with a
warning.
"""

import functools
import hashlib
import inspect
import json
import re
import tempfile
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import mtlkit
from mtlkit._text import did_you_mean, parse_json, shown
from mtlkit.models._common import install_hint
from mtlkit.models._state_dict import unwrapped
from mtlkit.models.card import Origin, card_of
from mtlkit.models.network import Network
from mtlkit.models.registry import network_named, options_type

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FILES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")  # of parameters alone
REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class Pretrained(Network):
    """A network with huggingface_hub's `save_pretrained`, `from_pretrained` and `push_to_hub`.

    The constructor takes options, a device and a dtype. `origin` describes the training of the parameters for the model
    card; networks trained by a run have one. `licence` is the licence of the weights, if known.

    Example:
        >>> from mtlkit.models import MedMamba, Pretrained
        >>> issubclass(MedMamba, Pretrained)
        True
    """

    origin: Origin | None = None
    licence: str | None = None

    def save_pretrained(self, folder: str | Path, *, licence: str | None = None, **kwargs: Any) -> str | None:
        """Writes options, parameters and a model card into `folder`, which is created if it does not exist.

        A card that was edited or comes from elsewhere is kept, with a warning.

        Args:
            folder: the folder to write to.
            licence: of the weights, for the card: an identifier of the Hub, as "cc-by-nc-4.0", or text; by default
                that of the network.
            **kwargs: arguments of huggingface_hub's ModelHubMixin.save_pretrained, such as push_to_hub and repo_id.

        Raises:
            ImportError: huggingface_hub or safetensors is not installed.
        """
        return self._checkpoint(licence).save_pretrained(folder, **kwargs)

    def push_to_hub(self, repo_id: str, *, licence: str | None = None, **kwargs: Any) -> str:
        """Uploads options, parameters and a model card to the Hugging Face Hub.

        An existing card that was edited or comes from elsewhere is kept, with a warning.

        Args:
            repo_id: "user/name".
            licence: of the weights, for the card: an identifier of the Hub, as "cc-by-nc-4.0", or text; by default
                that of the network.
            **kwargs: arguments of huggingface_hub's ModelHubMixin.push_to_hub, such as private, branch and token.

        Raises:
            ImportError: huggingface_hub or safetensors is not installed.
        """
        return self._checkpoint(licence).push_to_hub(repo_id, **kwargs)

    def _checkpoint(self, licence: str | None) -> Any:
        checkpoint = _checkpoint_class()(self)
        if licence is not None:
            checkpoint.licence = licence
        return checkpoint

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> "Pretrained":
        """Loads the network that `save_pretrained` or `push_to_hub` wrote; like a new network, it is in training mode.

        Args:
            source: a folder, or "user/name" on the Hub.
            device: device of the parameters.
            dtype: dtype of the parameters.
            **options: as in `mtlkit.models.from_pretrained`.

        Raises:
            ImportError: huggingface_hub or safetensors is not installed.
            TypeError: there is no such option.
            ValueError: there is no network, or another one; the message names the first key that differs.
        """
        checkpoint, network = _checkpoint_class(), None if cls is Pretrained else cls
        hub = {name: options.pop(name) for name in _hub_options(checkpoint) if name in options}
        _check_source(source)
        return checkpoint.from_pretrained(
            source, network=network, device=device, dtype=dtype, options=options, **hub
        ).module

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`state` with published names and shapes translated to those of this network; by default unchanged."""
        return dict(state)


def from_pretrained(
    source: str | Path, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None, **options: Any
) -> Pretrained:
    """Loads the network in a folder or on the Hugging Face Hub, of any registered kind.

    Options replace the stored ones. Another number of classes creates a new head, and a warning names its tensors;
    dropout and similar rates may change; an option that changes other tensors is rejected.

    Args:
        source: a folder that `save_pretrained` wrote, or "user/name" on the Hub.
        device: device of the parameters.
        dtype: dtype of the parameters.
        **options: options of the network, such as num_classes, and arguments of huggingface_hub's
            ModelHubMixin.from_pretrained, such as revision and token.

    Raises:
        ImportError: huggingface_hub or safetensors is not installed.
        TypeError: there is no such option; the message lists the available ones.
        ValueError: there is no network, or its parameters do not fit; the message names the first key that differs.

    Example:
        >>> import tempfile, torch, mtlkit
        >>> model = mtlkit.models.create_model("medmamba_t", num_classes=2, depths=(1, 1), dims=(16, 32)).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = model.save_pretrained(folder)
        ...     twin = mtlkit.models.from_pretrained(folder, drop_path_rate=0.2).eval()
        >>> images = torch.rand(1, 3, 32, 32)
        >>> torch.equal(twin(images), model(images))
        True
    """
    return Pretrained.from_pretrained(source, device=device, dtype=dtype, **options)


@functools.cache
def _checkpoint_class() -> type:
    """huggingface_hub's mixin for a network class; created on first use, so that mtlkit imports without it."""
    try:
        from huggingface_hub import HfApi, ModelHubMixin, hf_hub_download
        from safetensors.torch import load_file, save_file
    except ImportError as error:
        raise ImportError(install_hint(error.name or "huggingface_hub", "saving and loading")) from error

    class Checkpoint(ModelHubMixin, library_name="mtlkit", tags=["mtlkit"]):
        def __init__(self, module: Any) -> None:  # the mixin passes each further argument to from_pretrained
            self.module, self.licence = module, module.licence
            self.repository = ""
            self.keeps_card = False

        def save_pretrained(self, save_directory: str | Path, *, repo_id: str | None = None, **others: Any):
            folder = Path(save_directory)
            self.repository = self.repository or repo_id or ""
            self.keeps_card = not _card_is_ours(folder / CARD, folder / CONFIG)
            if self.keeps_card:
                _warn_of_card(str(folder / CARD))
            return super().save_pretrained(folder, repo_id=repo_id, **others)

        def push_to_hub(self, repo_id: str, **others: Any) -> str:
            api, branch = HfApi(token=others.get("token")), others.get("branch")
            self.repository = api.create_repo(repo_id=repo_id, private=others.get("private"), exist_ok=True).repo_id
            with tempfile.TemporaryDirectory() as folder:
                there = [Path(folder, name) for name in (CARD, CONFIG)]
                for path in there:
                    if api.file_exists(self.repository, path.name, revision=branch):
                        api.hf_hub_download(self.repository, path.name, revision=branch, local_dir=folder)
                if not _card_is_ours(*there):
                    _warn_of_card(f"{CARD} of {self.repository}")
                    ignored = others.get("ignore_patterns") or []
                    others["ignore_patterns"] = [*([ignored] if isinstance(ignored, str) else ignored), CARD]
            return super().push_to_hub(self.repository, **others)

        def _save_pretrained(self, save_directory: Path) -> None:
            model = self.module
            config = {"mtlkit": mtlkit.__version__, "model": type(model).__name__, "options": asdict(model.options)}
            if self.licence is not None:
                config["licence"] = self.licence
            if model.origin is not None:
                config["origin"] = model.origin.to_dict()
            if not self.keeps_card:
                text = str(card_of(model, self.repository, licence=self.licence))
                config["card"] = hashlib.sha256(text.encode()).hexdigest()
                (save_directory / CARD).write_bytes(text.encode())
            (save_directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
            state = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
            save_file(state, save_directory / WEIGHTS, metadata={"format": "pt"})

        @classmethod
        def _from_pretrained(
            cls,
            *,
            model_id: str,
            network: type[Pretrained] | None,
            device: torch.device | str | None,
            dtype: torch.dtype | None,
            options: Mapping[str, Any],
            **download: Any,
        ) -> "Checkpoint":
            def find(name: str) -> Path:
                if not Path(model_id).is_dir():
                    return Path(hf_hub_download(repo_id=model_id, filename=name, **download))
                path = Path(model_id, name)
                if not path.is_file():
                    raise ValueError(
                        f"source: expected a folder with {CONFIG} and {WEIGHTS}, got {model_id!r}{_of_a_run(path)}"
                    )
                return path

            config, state = parse_json(find(CONFIG).read_text()), load_file(find(WEIGHTS))
            if not {"model", "options"} <= set(config):
                raise ValueError(f"source: expected a {CONFIG} of mtlkit, with model and options, got {list(config)}")
            name = config["model"]
            if network is not None and name != network.__name__:
                reason = difference(network(options_type(network)(), device="meta"), state)
                raise ValueError(f"source: expected {network.__name__}, got {name}: {reason}")
            network = network or cast(type[Pretrained], network_named(name))
            stored = decode_options(network, config["options"])
            wanted = replace(stored, **_known(network, options))
            model = network(wanted, device=device, dtype=dtype)
            state = unwrapped(state, model).tensors
            counts = class_options(wanted)
            fresh = set() if counts == class_options(stored) else changed_by_classes(network, stored, counts)
            reason = difference(model, state, fresh)
            if reason:
                _check_options(network, stored, options, state)
                raise ValueError(f"source: the parameters do not belong to this {name}: {reason}")
            model.load_state_dict({key: value for key, value in state.items() if key not in fresh}, strict=False)
            warn_of_fresh(model, fresh)
            model.origin, model.licence = _origin(config), config.get("licence")
            return cls(model)

    return Checkpoint


def _card_is_ours(card: Path, config: Path) -> bool:
    """Whether a model card may be replaced: there is none, or it is unchanged since mtlkit wrote it."""
    if not card.exists():
        return True
    try:
        known = parse_json(config.read_text(encoding="utf-8"))["card"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return hashlib.sha256(card.read_bytes()).hexdigest() == known


def _warn_of_card(name: str) -> None:
    words = "was edited or comes from elsewhere, and is kept; to get a new one, delete or rename it and save again"
    warnings.warn(f"{name}: {words}", stacklevel=4)


def _origin(config: Mapping[str, Any]) -> Origin | None:
    """The origin of stored parameters, if it is there and can be read."""
    if config.get("origin") is None:
        return None
    try:
        return Origin.from_dict(config["origin"])
    except ValueError as error:
        warnings.warn(f"{CONFIG}: {error}, so it is missing from the model card", stacklevel=4)
        return None


def decode_options(network: type[nn.Module], values: dict[str, Any]) -> Any:
    """The options of a network from JSON; ImageNet weights are not loaded again.

    Raises:
        ValueError: there is no such option.
    """
    kind = options_type(network)
    known = [field.name for field in fields(kind)]
    for name in values:
        if name not in known:
            raise ValueError(f"{name}: {network.__name__} has no such option; it has: {', '.join(known)}")
    return _offline(kind(**{name: _tuples(value) for name, value in values.items()}))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def difference(model: nn.Module, state: Mapping[str, Tensor], fresh: Collection[str] = ()) -> str | None:
    """The first difference of `state` from the network's keys and shapes, in words; None if there is none.

    Args:
        model: the network.
        state: its parameters.
        fresh: keys whose values are not taken from `state`.
    """
    own = model.state_dict()
    for key, value in own.items():
        if key in fresh:
            continue
        if key not in state:
            return f"the first key that differs is {key!r}, which is missing"
        if state[key].shape != value.shape:
            return f"the first key that differs is {key!r}, {tuple(state[key].shape)} instead of {tuple(value.shape)}"
    extra = next((key for key in state if key not in own), None)
    return None if extra is None else f"the first key that differs is {extra!r}, which is unknown"


# --- what the options and the source say ------------------------------------------------------------------------------


def class_options(options: Any) -> dict[str, int]:
    """The options that count classes; changing one creates a new head."""
    return {field.name: getattr(options, field.name) for field in fields(options) if field.name.endswith("_classes")}


def changed_by_classes(network: type[nn.Module], options: Any, counts: Mapping[str, int] | None = None) -> set[str]:
    """The keys of a network whose shapes follow from numbers of classes.

    Args:
        network: its class.
        options: its options.
        counts: other numbers of classes, by option; by default one more for each.
    """
    counts = {name: count + 1 for name, count in class_options(options).items()} if counts is None else counts
    shapes: list[dict[str, torch.Size]] = []
    for made in (_offline(options), _offline(replace(options, **counts))):
        shapes.append({key: value.shape for key, value in network(made, device="meta").state_dict().items()})
    return {key for key in shapes[0] if shapes[0][key] != shapes[1].get(key)}


def _offline(options: Any) -> Any:
    """The options without ImageNet weights."""
    return replace(options, pretrained=False) if hasattr(options, "pretrained") else options


def warn_of_fresh(model: nn.Module, fresh: Collection[str]) -> None:
    """Warns about parameters that were not loaded, by name, if there are any."""
    if fresh:
        names = [key for key in model.state_dict() if key in fresh]
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        warnings.warn(
            f"{type(model).__name__}: newly initialised, not loaded; train them: {', '.join(names[:8])}{more}",
            stacklevel=2,
        )


def _known(network: type[nn.Module], options: Mapping[str, Any]) -> dict[str, Any]:
    known = [field.name for field in fields(options_type(network))]
    for name in options:
        if name not in known:
            raise TypeError(
                f"{name}: {network.__name__} has no such option{did_you_mean(name, known)}; it has: {', '.join(known)}"
            )
    return {name: _tuples(value) for name, value in options.items()}


def _check_options(
    network: type[nn.Module], stored: Any, options: Mapping[str, Any], state: Mapping[str, Tensor]
) -> None:
    """Raises if an option is the reason why parameters do not fit, and names its two values and the parameter."""
    if difference(network(stored, device="meta"), state):
        return
    for name, value in _known(network, options).items():
        if name in class_options(stored):
            continue
        try:
            alone = network(replace(stored, **{name: value}), device="meta")
        except ValueError:  # it depends on the others
            continue
        reason = difference(alone, state)
        if reason:
            raise ValueError(
                f"{name}: expected {shown(getattr(stored, name))} as stored, got {shown(value)}; the stored "
                f"parameters do not fit it: {reason}"
            )
    raise ValueError(f"{', '.join(options)}: expected as stored")


def _hub_options(checkpoint: Any) -> list[str]:
    kinds = inspect.signature(checkpoint.from_pretrained).parameters.values()
    return [parameter.name for parameter in kinds if parameter.kind is parameter.KEYWORD_ONLY]


def _check_source(source: str | Path) -> None:
    """Raises unless the source is a folder or can be a repository."""
    path = Path(source)
    if path.is_dir():
        return
    if path.is_file() or path.suffix.lower() in FILES:
        if path.name == WEIGHTS and (path.parent / CONFIG).is_file():
            remedy = f"pass its folder, {str(path.parent)!r}"
        else:
            remedy = _of_a_run(path).removeprefix("; ") or (
                "it has no options: make the network with mtlkit.models.create_model, and load the file with "
                "mtlkit.models.load_published(model, file)"
            )
        raise ValueError(f"source: expected a folder or a repository, got the file {str(source)!r}; {remedy}")
    if not REPOSITORY.fullmatch(str(source)):
        raise ValueError(f"source: expected a folder or a repository, got {str(source)!r}; there is no such folder")


def _of_a_run(path: Path) -> str:
    """Names the folder of a run's network, if the file is in the folder of a run."""
    found = next((folder / "model" for folder in path.parents[:3] if (folder / "model" / CONFIG).is_file()), None)
    return "" if found is None else f"; the network of this run is in {str(found)!r}"


# --- names of publications --------------------------------------------------------------------------------------------


def renamed(state: Mapping[str, Tensor], names: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """`state` with names replaced: each old name in turn, at the start, or anywhere if it starts with a dot."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        for old, new in names:
            if old.startswith("."):
                key = key.replace(old, new)
            elif key.startswith(old):
                key = new + key.removeprefix(old)
        found[key] = value
    return found


def translate(model: Pretrained, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Converts a published checkpoint to today's names and shapes, in place: a hook for load_state_dict."""
    published = {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}
    state.update({prefix + key: value for key, value in model.from_published(published).items()})
