"""Networks with the weights of their beginning, as if they came from runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mtlkit.training import Config, SavedRun, create_module, load_config

CLASSES = ("benign", "malignant", "normal")


def opened(config: Config, classes: tuple[str, ...], birads: tuple[int, ...] = ()) -> SavedRun:
    torch.manual_seed(0)
    model = create_module(config).model.eval()
    return SavedRun(Path("/runs/one"), config, model, classes, birads, None, {}, Path("/data"), {})


@pytest.fixture(scope="session")
def lesion() -> SavedRun:
    """A small BTI-Net that calls about half of the pixels lesion."""
    options = {"encoder": "resnet18", "decoder_dims": [16, 16, 12, 8], "num_classes": 3, "clf_dim": 16, "hmsf": False}
    changes = {"model": {"options": options}, "data": {"size": 32, "batch_size": 4, "cache": False}}
    return opened(load_config("demo").change(changes), CLASSES)


@pytest.fixture(scope="session")
def views() -> SavedRun:
    """CSA-MoE-Net, which takes masks."""
    changes = {
        "model": {"options": {"pretrained": False, "num_classes": 2}},
        "data": {"size": 32, "batch_size": 4, "workers": 0},
    }
    return opened(load_config("csa_moe").change(changes), CLASSES[:2])


@pytest.fixture(scope="session")
def mammography() -> SavedRun:
    options = {"backbone": "vssm", "depths": [1], "dims": [16], "d_state": 1, "birads_classes": 2}
    changes = {
        "model": {"options": options},
        "data": {"size": 32, "batch_size": 4, "workers": 0},
        "loss": {"class_weights": False},
    }
    return opened(load_config("hybrid_vssm").change(changes), ("benign or normal", "malignant"), (1, 5))


@pytest.fixture
def image(tmp_path) -> Callable[..., Path]:
    """Writes a drawn image: image("a/b.png", height, width)."""
    from PIL import Image

    def write(name: str, height: int = 40, width: int = 52, seed: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(seed))
        pixels = torch.nn.functional.interpolate(noise[None], (height, width), mode="bilinear")[0]
        Image.fromarray((pixels.permute(1, 2, 0) * 255).byte().numpy()).save(path)
        return path

    return write
