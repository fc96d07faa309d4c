"""Entropies by hand, reproducible dropout that is switched off afterwards, and flips that are undone."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mtlkit.evaluation.uncertainty import DROPOUT, FLIPS, ONE_PASS, entropies, run_rivals


def test_entropies_by_hand():
    mask = torch.tensor([0.5, 0.5, 0.0, 1.0]).reshape(1, 1, 2, 2)
    found = entropies({"class": torch.tensor([[0.5, 0.5], [1.0, 0.0]]), "mask": mask}, ["class"])
    assert found["class"].tolist() == pytest.approx([math.log(2), 0])
    assert found["mask"].tolist() == pytest.approx([2 * math.log(2) / 2])  # the expected size is 2
    assert entropies({"mask": torch.zeros(1, 1, 2, 2)}, [])["mask"].tolist() == [0]
    assert entropies({"label": torch.full((3, 2, 4), 0.25)}, ["label"])["label"].shape == (3, 2)


class Network(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(1, 2, bias=False), nn.Dropout(rate)


class Run:
    """Returns its image as the mask, and classifies by the first pixel, with dropout."""

    tasks = {"class": ("a", "b")}  # noqa: RUF012
    task = SimpleNamespace(draws_masks=True)

    def __init__(self, rate: float = 0.5) -> None:
        self.model, self.seen = Network(rate).eval(), []

    def loader(self, records, batch_size):
        images = torch.linspace(0.1, 0.9, 12).reshape(2, 1, 2, 3)
        return [{"key": ["a", "b"], "image": images, "label": torch.zeros(2)}]

    @torch.no_grad()
    def predict(self, batch):
        self.seen.append(batch["image"])
        first = self.model.drop(batch["image"][:, :, 0, 0])
        return {"class": self.model.linear(first).softmax(1), "mask": batch["image"]}


def test_rivals():
    run = Run()
    found, seconds = run_rivals(run, [None, None], 3)
    assert list(found) == [DROPOUT, FLIPS]
    assert list(seconds) == [ONE_PASS, DROPOUT, FLIPS]
    assert min(seconds.values()) > 0
    assert len(run.seen) == 2 + 3 + 4
    assert not run.model.drop.training
    images = run.loader(None, None)[0]["image"]
    for method in found:  # a mask that moves with its image is unchanged
        assert found[method]["mask"] == pytest.approx(entropies({"mask": images}, [])["mask"].numpy())
    corners = [run.predict({"image": images.flip(dims)})["class"] for dims in ((), (2,), (3,), (2, 3))]
    mean = torch.stack(corners).mean(0)
    assert found[FLIPS]["class"] == pytest.approx(entropies({"class": mean}, ["class"])["class"].numpy())


def test_dropout_repeats_and_leaves_the_random_numbers():
    torch.manual_seed(0)
    run, state = Run(), torch.random.get_rng_state()
    first, second, other = (run_rivals(run, [None, None], 3, seed=seed)[0][DROPOUT]["class"] for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_network_without_dropout_has_no_entropy_by_it():
    found, seconds = run_rivals(Run(rate=0.0), [None, None], 3)
    assert list(found) == [FLIPS]
    assert list(seconds) == [ONE_PASS, FLIPS]
