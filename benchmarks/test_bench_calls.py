"""The fixed cost of a call: operators and the SS2D layer on maps of 8 channels and few pixels, on one thread.

`pytest benchmarks -k calls --benchmark-only` measures only these rows.
"""

import cProfile
import pstats
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from interaction_workloads import LevelCase, LevelProblem
from providers import BOTH, BY_NAME, FORWARD, Workload
from workloads import Case, Problem, map_shape

ITERATIONS = 10
OPERATORS = ("ss2d", "selective_scan", "dwconv_silu", "norm_gate", "ss2d_norm_gate", "task_interaction")


def call_cases() -> Iterator[Case]:
    rows = [(op, name, direction) for op in OPERATORS for name in ("1x1", "7x7") for direction in (FORWARD, BOTH)]
    rows += [("ss2d_layer", name, FORWARD) for name in ("layer_7x7", "layer_14x14")]
    for op, name, direction in rows:
        kind = LevelCase if op == "task_interaction" else Case
        s = map_shape(name)
        yield kind(Workload(op, name, torch.float32, direction, s.B, s.B * s.H * s.W), BY_NAME["mtlkit"])


def bare(problem: Problem | LevelProblem, direction: str) -> Callable[[], Any]:
    """The bare call: forward under `torch.no_grad`, or with its backward pass."""
    tensors, forward, cotangents = problem
    wanted = list(tensors.values())
    return forward if direction == FORWARD else lambda: torch.autograd.grad(forward(), wanted, cotangents)


def python_calls(call: Callable[[], Any]) -> int:
    """Python calls as counted by cProfile, including those of built-in functions."""
    profile = cProfile.Profile()
    profile.runcall(call)
    return pstats.Stats(profile).total_calls


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", list(call_cases()), ids=lambda case: f"{case.workload.op}-{case}")
def test_calls(case: Case, measure, one_thread: None) -> None:
    w = case.workload
    problem = case.problem()
    errors = case.check(problem.run(w.direction))
    call = bare(problem, w.direction)
    with torch.set_grad_enabled(w.direction == BOTH):
        call()
        measure(
            call,
            lambda _: errors,
            group=f"call-{case.group}",
            unit=("calls", 1),
            iterations=ITERATIONS,
            python_calls=python_calls(call),
        )
