"""Networks in folders and on the Hugging Face Hub: options in config.json, parameters in model.safetensors."""

import functools
import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mtlkit
from mtlkit._text import parse_json
from mtlkit.models._common import install_hint
from mtlkit.models.network import Network
from mtlkit.models.registry import network_named, options_type

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Pretrained(Network):
    """A network with `save_pretrained`, `from_pretrained` and `push_to_hub`, as huggingface_hub has them.

    Its constructor takes its options, a device and a dtype.

    Example:
        >>> from mtlkit.models import MedMamba, Pretrained
        >>> issubclass(MedMamba, Pretrained)
        True
    """

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> str | None:
        """Writes options and parameters into `folder`, which is made where it does not exist.

        Args:
            folder: where to.
            **kwargs: of huggingface_hub's ModelHubMixin.save_pretrained, such as push_to_hub and repo_id.

        Raises:
            ImportError: huggingface_hub or safetensors is not installed.
        """
        return _checkpoint_class()(self).save_pretrained(folder, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Uploads options and parameters to the Hugging Face Hub.

        Args:
            repo_id: "user/name".
            **kwargs: of huggingface_hub's ModelHubMixin.push_to_hub, such as private, branch and token.

        Raises:
            ImportError: huggingface_hub or safetensors is not installed.
        """
        return _checkpoint_class()(self).push_to_hub(repo_id, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> "Pretrained":
        """The network that `save_pretrained` or `push_to_hub` wrote, in training mode as a new one.

        Args:
            source: a folder, or "user/name" on the Hub.
            device: where the parameters are made.
            dtype: of the parameters.
            **kwargs: of huggingface_hub's ModelHubMixin.from_pretrained, such as revision and token.

        Raises:
            ImportError: huggingface_hub or safetensors is not installed.
            ValueError: no network, or another one, is there; the message names the first key that differs.
        """
        network = None if cls is Pretrained else cls
        return _checkpoint_class().from_pretrained(source, network=network, device=device, dtype=dtype, **kwargs).module


def from_pretrained(
    source: str | Path, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None, **kwargs: Any
) -> Pretrained:
    """The network in a folder or on the Hugging Face Hub, of whichever kind it is.

    Args:
        source: a folder that `save_pretrained` wrote, or "user/name" on the Hub.
        device: where the parameters are made.
        dtype: of the parameters.
        **kwargs: of huggingface_hub's ModelHubMixin.from_pretrained, such as revision and token.

    Raises:
        ImportError: huggingface_hub or safetensors is not installed.
        ValueError: no network is there, or its parameters do not fit it; the message names the first key that differs.

    Example:
        >>> import tempfile, torch, mtlkit
        >>> model = mtlkit.models.create_model("medmamba_t", num_classes=2, depths=(1, 1), dims=(16, 32)).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = model.save_pretrained(folder)
        ...     twin = mtlkit.models.from_pretrained(folder).eval()
        >>> images = torch.rand(1, 3, 32, 32)
        >>> torch.equal(twin(images), model(images))
        True
    """
    return Pretrained.from_pretrained(source, device=device, dtype=dtype, **kwargs)


@functools.cache
def _checkpoint_class() -> type:
    """huggingface_hub's mixin around a network; made on first use, so that mtlkit imports without it."""
    try:
        from huggingface_hub import ModelHubMixin, hf_hub_download
        from safetensors.torch import load_file, save_file
    except ImportError as error:
        raise ImportError(install_hint(error.name or "huggingface_hub", "saving and loading")) from error

    class Checkpoint(ModelHubMixin, library_name="mtlkit", tags=["mtlkit"]):
        def __init__(self, module: Any) -> None:
            self.module = module

        def _save_pretrained(self, save_directory: Path) -> None:
            model = self.module
            config = {"mtlkit": mtlkit.__version__, "model": type(model).__name__, "options": asdict(model.options)}
            (save_directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
            state = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
            save_file(state, save_directory / WEIGHTS, metadata={"format": "pt"})

        @classmethod
        def _from_pretrained(cls, *, model_id: str, network, device, dtype, **download):
            def find(name: str) -> Path:
                if not Path(model_id).is_dir():
                    return Path(hf_hub_download(repo_id=model_id, filename=name, **download))
                path = Path(model_id, name)
                if not path.is_file():
                    raise ValueError(f"source: expected a folder with {CONFIG} and {WEIGHTS}, got {model_id!r}")
                return path

            config, state = parse_json(find(CONFIG).read_text()), load_file(find(WEIGHTS))
            if not {"model", "options"} <= set(config):
                raise ValueError(f"source: expected a {CONFIG} of mtlkit, with model and options, got {list(config)}")
            name = config["model"]
            if network is not None and name != network.__name__:
                reason = difference(network(options_type(network)(), device="meta"), state)
                raise ValueError(f"source: expected {network.__name__}, got {name}: {reason}")
            network = network or network_named(name)
            model = network(decode_options(network, config["options"]), device=device, dtype=dtype)
            reason = difference(model, state)
            if reason:
                raise ValueError(f"source: these parameters are not of this {name}: {reason}")
            model.load_state_dict(state)
            return cls(model)

    return Checkpoint


def decode_options(network: type[nn.Module], values: dict[str, Any]) -> Any:
    """The options of a network from JSON; weights of ImageNet are not asked for again.

    Raises:
        ValueError: there is no such option.
    """
    kind = options_type(network)
    known = [field.name for field in fields(kind)]
    for name in values:
        if name not in known:
            raise ValueError(f"{name}: {network.__name__} has no such option; it has: {', '.join(known)}")
    options = kind(**{name: _tuples(value) for name, value in values.items()})
    return replace(options, pretrained=False) if "pretrained" in known else options


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def difference(model: nn.Module, state: dict[str, Tensor]) -> str | None:
    """Where `state` first differs from the network's own keys and shapes, in words; None where it does not."""
    own = model.state_dict()
    for key, value in own.items():
        if key not in state:
            return f"the first key that differs is {key!r}, which is missing"
        if state[key].shape != value.shape:
            return f"the first key that differs is {key!r}, {tuple(state[key].shape)} in place of {tuple(value.shape)}"
    extra = next((key for key in state if key not in own), None)
    return None if extra is None else f"the first key that differs is {extra!r}, which is unknown"
