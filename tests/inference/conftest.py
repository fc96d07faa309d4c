"""Networks with initial weights, in the form of runs."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mtlkit import deploy
from mtlkit.models.network import Network
from mtlkit.nn import VSSBlock
from mtlkit.training import Config, SavedRun, create_module, load_config

CLASSES = ("benign", "malignant", "normal")


def opened(config: Config, classes: tuple[str, ...], birads: tuple[int, ...] = ()) -> SavedRun:
    torch.manual_seed(0)
    model = create_module(config).model.eval()
    return SavedRun(Path("/runs/one"), config, model, classes, birads, None, {}, Path("/data"), {})


@pytest.fixture(scope="session")
def lesion() -> SavedRun:
    """A small BTI-Net that marks about half of the pixels as lesion."""
    options = {"encoder": "resnet18", "decoder_dims": [16, 16, 12, 8], "num_classes": 3, "clf_dim": 16, "hmsf": False}
    changes = {"model": {"options": options}, "data": {"size": 32, "batch_size": 4, "cache": False}}
    return opened(load_config("demo").change(changes), CLASSES)


@pytest.fixture(scope="session")
def views() -> SavedRun:
    """A CSA-MoE-Net, which needs masks."""
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


# --- networks with a few parameters, which are exported in a second ---------------------------------------------------


class LesionOutput(NamedTuple):
    seg_logits: Tensor
    cls_logits: Tensor
    gates: Tensor


class ViewsOutput(NamedTuple):
    cls_logits: Tensor
    gates: Tensor


class MammographyOutput(NamedTuple):
    label_logits: Tensor
    birads_logits: Tensor


class _Small(Network):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(features, 4, 3, stride=2, padding=1), nn.ReLU())
        self.classify = nn.Linear(4, classes)

    def means(self, images: Tensor) -> Tensor:
        return self.features(images).mean((2, 3))


class SmallLesion(_Small):
    gate_names = ("seg_level1", "clf_level1")

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.draw, self.scan = nn.Conv2d(3, 1, 5, padding=2), VSSBlock(4)

    def forward(self, images: Tensor) -> LesionOutput:
        means = self.scan(self.features(images).permute(0, 2, 3, 1)).mean((1, 2))
        return LesionOutput(4 * self.draw(images), self.classify(means), means[:, :2].sigmoid()[:, None])


class SmallViews(_Small):
    gate_names = ("image", "tumor")
    needs_masks = True

    def __init__(self) -> None:
        super().__init__(3, 2)

    def forward(self, images: Tensor, masks: Tensor) -> ViewsOutput:
        means = self.means(images * masks)
        return ViewsOutput(self.classify(means), means[:, :2].softmax(-1))


class SmallMammography(_Small):
    def __init__(self) -> None:
        super().__init__(3, 4)

    def forward(self, views: Tensor, present: Tensor) -> MammographyOutput:
        found = torch.stack([self.means(views[:, i]) for i in range(4)], 1) * present[..., None]  # (B, 4, 4)
        logits = self.classify(found.unflatten(1, (2, 2)).mean(2))  # (B, 2, 4)
        return MammographyOutput(logits[..., :2], logits[..., 2:])


class Pair(NamedTuple):
    """A run, and the file exported from its network."""

    run: SavedRun
    file: Path


def _pair(folder: Path, recipe: str, network: Network, classes: tuple[str, ...], birads: tuple[int, ...] = ()) -> Pair:
    data = {"size": 32, "batch_size": 4, "workers": 0}
    config = load_config(recipe).change({"data": data, "loss": {"class_weights": False}})
    run = SavedRun(Path("/runs/one"), config, network.eval(), classes, birads, None, {}, Path("/data"), {})
    file = folder / "net.onnx"
    deploy.export(run.model, file, example=run.example(), metadata=run.facts())
    return Pair(run, file)


@pytest.fixture(scope="session")
def small_lesion(tmp_path_factory) -> Pair:
    return _pair(tmp_path_factory.mktemp("lesion"), "demo", SmallLesion(), CLASSES)


@pytest.fixture(scope="session")
def small_views(tmp_path_factory) -> Pair:
    return _pair(tmp_path_factory.mktemp("views"), "csa_moe", SmallViews(), CLASSES[:2])


@pytest.fixture(scope="session")
def small_mammography(tmp_path_factory) -> Pair:
    network, classes = SmallMammography(), ("benign or normal", "malignant")
    return _pair(tmp_path_factory.mktemp("mammography"), "hybrid_vssm", network, classes, (1, 5))


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path) -> Callable[..., Path]:
    """Writes a random image: image("a/b.png", height, width)."""
    from PIL import Image

    def write(name: str, height: int = 40, width: int = 52, seed: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(seed))
        pixels = torch.nn.functional.interpolate(noise[None], (height, width), mode="bilinear")[0]
        Image.fromarray((pixels.permute(1, 2, 0) * 255).byte().numpy()).save(path)
        return path

    return write
