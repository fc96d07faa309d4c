"""Small phantoms and a recipe that trains in seconds."""

from pathlib import Path

import pytest

from mtlkit.training import Config, load_config

# With a frozen encoder there are no gradients, and no optimiser moments of it in a checkpoint.
NET = {
    "encoder": "resnet18",
    "freeze_until": "layer4",
    "decoder_dims": [16, 16, 12, 8],
    "clf_dim": 16,
    "num_classes": 3,
    "hmsf": False,
}


@pytest.fixture(scope="session")
def ultrasound(draw_phantoms) -> Path:
    return draw_phantoms("ultrasound", 24)


@pytest.fixture(scope="session")
def mammograms(draw_phantoms) -> Path:
    return draw_phantoms("mammography", 15)


@pytest.fixture(scope="session")
def small() -> Config:
    """The demo with a smaller network and smaller images, for two epochs, without a second stage."""
    changes = {
        "model": {"options": NET},
        "data": {"size": 32, "batch_size": 4, "cache": False},
        "stopping": {"epochs": 2},
        "second_stage": None,
    }
    return load_config("demo").change(changes)


@pytest.fixture(scope="session")
def two_stages(small) -> Config:
    """The same for three epochs, with a plateau, and two epochs for the gates."""
    schedule = {"monitor": "val/combined", "patience": 0, "factor": 0.5}
    second = {"loss": {"gates": 1.0}, "stopping": {"epochs": 2, "monitor": "val/loss", "mode": "min"}}
    return small.change({"stopping": {"epochs": 3}, "schedule": schedule, "second_stage": second})
