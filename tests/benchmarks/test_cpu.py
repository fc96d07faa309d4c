"""Tests of the CPU benchmarks at tiny shapes: problems, checks and the report; nothing is timed."""

import io

import pytest
import torch
from rich.console import Console

from mtlkit.testing import SS2D_SHAPES, SS2DShape

pytest.importorskip("pytest_benchmark")
STAGE = "medmamba_t_stage1"
NEW = ("dwconv_silu", "norm_gate", "ss2d_norm_gate")


@pytest.fixture
def workloads(monkeypatch: pytest.MonkeyPatch):
    """The workloads module, with a tiny shape in place of a named one."""
    import workloads

    monkeypatch.setitem(SS2D_SHAPES, STAGE, SS2DShape(1, 8, 4, 3, 4, 2))
    caches = (workloads.exact_results, workloads.plain_results)
    for cache in caches:
        cache.cache_clear()
    yield workloads
    for cache in caches:
        cache.cache_clear()


def test_each_operator_has_a_benchmark(root):
    operators = [path.name for path in (root / "mtlkit/operators").iterdir() if (path / "__init__.py").exists()]
    assert len(operators) >= 6
    assert [op for op in operators if not (root / f"benchmarks/test_bench_{op}.py").exists()] == []


@pytest.mark.parametrize("op", NEW)
def test_rows_are_right_before_they_are_timed(workloads, op):
    """The results of each provider pass its check; a wrong output or gradient fails it."""
    found = [case for case in workloads.cases(op) if case.workload.shape_name == STAGE]
    assert len({case.provider.name for case in found}) == 2
    assert len({str(case) for case in found}) == len(found)
    for case in found:
        problem = case.problem()
        results = problem.run(case.workload.direction)
        relative, absolute = case.check(results)
        assert 0 <= relative < 0.1
        assert absolute >= 0
        for name, value in results.items():
            with pytest.raises(AssertionError, match=name):
                case.check(results | {name: 2 * value + 1})


def test_the_floor_counts_maps(workloads):
    """Counts x, the gate, the output's gradient, and written maps of their size."""
    for op, maps in (("dwconv_silu", (2, 5)), ("norm_gate", (3, 8))):
        of = {case.workload.direction: case for case in workloads.cases(op) if case.workload.dtype == torch.float32}
        for direction, count in zip(("forward", "forward_backward"), maps, strict=True):
            x = workloads.problem(op, of[direction].workload.shape_name, torch.float32, of[direction].provider).tensors
            assert of[direction].unit == ("bytes", count * x["x"].nbytes)


def test_the_cost_of_calls_has_a_table():
    """One line per operator and shape, with the shortest time and the calls of both directions."""
    import report
    from measuring import Results

    row = {"op": "ss2d", "shape": "7x7", "median_s": 2e-5, "min_s": 1.75e-5, "calls_per_s": 5e4, "relative_error": 1e-7}
    forward = row | {"direction": "forward", "python_calls": 116}
    backward = row | {"direction": "forward_backward", "python_calls": 313, "min_s": 8.6e-5}
    layer = forward | {"op": "ss2d_layer", "shape": "layer_14x14"}
    assert report.one_line(forward) == "20 µs, at least 17.5 µs, 116 Python calls, error 1e-07"
    results = Results()
    assert report.calls(results) is None
    for entry in (forward, backward, layer):
        results.rows.append(entry)
    out = io.StringIO()
    Console(file=out, width=100).print(report.calls(results))
    lines = [line.split("│")[1:-1] for line in out.getvalue().splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line] for line in lines]
    assert cells == [
        ["ss2d, 7x7", "17.5 µs", "116", "86 µs", "313"],
        ["ss2d_layer, 14x14", "17.5 µs", "116", "", ""],
    ]
