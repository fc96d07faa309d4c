"""The number of training steps, compared with a run, and the time per step."""

import math

import pytest

from mtlkit.training import count_steps, load_config, measure_step


@pytest.mark.parametrize(("images", "batch", "copies"), [(100, 8, 0), (101, 8, 2), (7, 24, 0)])
def test_steps_are_batches_times_epochs(images, batch, copies):
    config = load_config("csa_moe").change({"data": {"batch_size": batch, "copies": copies}})
    batches = math.ceil(int(0.7 * images) * (1 + copies) / batch)
    assert count_steps(config, images) == 30 * batches


def test_steps_of_the_warmup_and_of_the_second_stage():
    mbdi = load_config("mbdi").change({"data": {"batch_size": 2}})  # 546 of 780 images, four times: 1,092 batches
    assert count_steps(mbdi, 780) == 97 * 1092 + 3 * 100
    first = load_config("btinet").stage(1)
    both = count_steps(load_config("btinet"), 780)
    assert both == count_steps(first, 780) * (50 + 15) / 50


@pytest.mark.parametrize("name", ["demo", "csa_moe", "hybrid_vssm"])
def test_a_step_of_each_task_is_measured(name):
    config = load_config(name).change({"data": {"size": 32, "batch_size": 2}})
    assert 0 < measure_step(config, "cpu", repeats=1) < math.inf
