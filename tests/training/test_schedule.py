"""The learning rate: MBDI's cosine with plateau, by hand; torch's ReduceLROnPlateau; and weights of the tasks."""

import math

import pytest
import torch

from mtlkit.training import Schedule, load_config, task_weights
from mtlkit.training.config import LossConfig, ScheduleConfig


def test_mbdi_cosine():
    c = load_config("mbdi")
    schedule = Schedule(c.optimizer.lr, c.stopping.epochs, c.schedule)
    for epoch in (0, 1, 50, 99):
        expected = 3e-4 * (0.03 + 0.97 * (1 + math.cos(math.pi * epoch / 100)) / 2)
        assert schedule.lr(epoch) == pytest.approx(expected)
    assert schedule.lr(0) == pytest.approx(3e-4)
    assert schedule.lr(100) == pytest.approx(9e-6)


def test_mbdi_plateau():
    c = load_config("mbdi")
    schedule = Schedule(1.0, 100, c.schedule)
    ratios = []
    for _ in range(20):
        schedule.observe(0.5)
        ratios.append(schedule.ratio)
    # the first is the best; the 7th in a row without improvement reduces the rate; a cooldown of two, and again 7
    expected = [1.0] * 7 + [0.55] * 9 + [0.55**2] * 4
    assert ratios == pytest.approx(expected)


def test_mbdi_lowest_rate():
    schedule = Schedule(3e-4, 100, load_config("mbdi").schedule)
    schedule.ratio = 1e-6
    assert schedule.lr(50) == 1.5e-6


@pytest.mark.parametrize(
    ("mode", "patience", "cooldown"), [("max", 10, 0), ("min", 3, 0), ("min", 1, 2), ("max", 0, 1)]
)
def test_plateau_is_torchs(mode, patience, cooldown):
    config = ScheduleConfig(monitor="x", mode=mode, factor=0.5, patience=patience, cooldown=cooldown, min_lr=1e-3)
    schedule = Schedule(1.0, 100, config)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, 0.5, patience, threshold=0, threshold_mode="abs", cooldown=cooldown, min_lr=1e-3, eps=0
    )
    for epoch, figure in enumerate(torch.rand(120).mul(20).round().tolist()):
        schedule.observe(figure)
        oracle.step(figure)
        assert schedule.lr(epoch) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert schedule.lr(0) < 1


@pytest.mark.parametrize("stop", range(1, 12))
def test_state_goes_on(stop):
    """Also within a cooldown."""
    config = ScheduleConfig(monitor="x", patience=1, cooldown=3)
    figures = [1.0, *[0.0] * 11]
    whole, first, second = (Schedule(1.0, 30, config) for _ in range(3))
    for figure in figures[:stop]:
        whole.observe(figure)
        first.observe(figure)
    second.load_state_dict(first.state_dict())
    for epoch, figure in enumerate(figures[stop:], stop):
        whole.observe(figure)
        second.observe(figure)
        assert second.lr(epoch) == whole.lr(epoch)
    assert second.state_dict() == whole.state_dict()


def test_without_monitor_nothing_happens():
    schedule = Schedule(0.1, 10, ScheduleConfig(patience=0))
    for _ in range(5):
        schedule.observe(0.0)
    assert schedule.lr(9) == 0.1


def test_task_weights():
    constant = LossConfig(first=0.8, second=0.2)
    assert {task_weights(constant, epoch) for epoch in range(40)} == {(0.8, 0.2)}
    ramp = LossConfig(first=0.8, second=0.2, ramp_start=0.82)
    weights = [task_weights(ramp, epoch) for epoch in range(17)]
    assert [first for first, _ in weights[:3]] == pytest.approx([0.827, 0.834, 0.841])
    assert max(first for first, _ in weights) == 0.92
    assert min(second for _, second in weights) == pytest.approx(0.08)
    assert all(first + second == pytest.approx(1) for first, second in weights)
    assert weights[15:] == [(0.8, 0.2)] * 2
