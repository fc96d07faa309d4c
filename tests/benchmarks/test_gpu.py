"""The GPU benchmarks run on the CPU at tiny shapes: problems, checks, rows and tables; nothing is timed."""

import json
import sys

import pytest
import torch

from mtlkit.operators.floors import Limits
from mtlkit.testing import INTERACTION_SHAPES, SS2D_SHAPES, InteractionShape, SS2DShape

OPERATORS = ("selective_scan", "norm_gate", "dwconv_silu")
STAGE, LEVEL = "medmamba_t_stage1", "busi_224_level4_batch8"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch):
    """The modules of benchmarks/, with the CPU in place of a GPU."""
    pytest.importorskip("pytest_benchmark")
    import gpu
    import gpu_levels
    import gpu_operators
    import gpu_report
    import gpu_workloads
    import interaction_workloads

    monkeypatch.setitem(SS2D_SHAPES, STAGE, SS2DShape(1, 8, 4, 3, 4, 2))
    monkeypatch.setitem(gpu_workloads.SHAPES, STAGE, SS2DShape(1, 8, 4, 3, 4, 2))
    monkeypatch.setitem(INTERACTION_SHAPES, LEVEL, InteractionShape(8, 8, 6, 5))
    monkeypatch.setattr(gpu, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(gpu, "limits", lambda: Limits(1e12, 1e13, 1e12))
    caches = [
        *(getattr(module, name) for module in (gpu_operators, gpu_workloads) for name in ("given", "exact_results")),
        gpu_operators.plain_results,
        gpu_workloads.plain_results,
        gpu_levels._plain_results,
        interaction_workloads.inputs_of,
        interaction_workloads.exact_results,
    ]
    for cache in caches:
        cache.cache_clear()
    yield gpu, gpu_operators, gpu_levels, gpu_workloads, gpu_report
    for cache in caches:
        cache.cache_clear()


def case_of(benchmarks, op: str, dtype: torch.dtype, direction: str, own: bool):
    """A case of mtlkit on a backend that runs on a CPU, or a case of a peer."""
    _, operators, levels, workloads, _ = benchmarks
    if op == "ss2d":
        provider = workloads.GPU_PROVIDERS[0]
        return workloads.GpuCase(op, STAGE, 3, dtype, direction, provider)
    if op == "task_interaction":
        provider = next(p for p in levels.LEVEL_PROVIDERS if p.own == own and p.name != "torch-compile")
        return levels.LevelCase(LEVEL, dtype, "nchw", direction, provider)
    provider = next(p for p in operators.OPERATOR_PROVIDERS if p.own == own and op in p.calls)
    return operators.OperatorCase(op, STAGE, 3, dtype, direction, provider)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", [*OPERATORS, "task_interaction", "ss2d"])
def test_rows_are_right_before_they_are_timed(benchmarks, op, dtype):
    """mtlkit's results pass the check, also at other places in memory; a wrong output or gradient fails it."""
    case = case_of(benchmarks, op, dtype, "forward_backward", own=True)
    given = case.problem()
    results = case.run(given)
    relative, absolute = case.check(results)
    assert 0 <= relative < 0.1
    assert absolute >= 0
    other = case.another(given)
    assert case.nbytes(other) == case.nbytes(given) > 0
    assert case.run(other).keys() == results.keys()
    for name, value in results.items():
        with pytest.raises(AssertionError, match=name):
            case.check(results | {name: 2 * value + 1})


@pytest.mark.parametrize(("name", "layout"), [(LEVEL, "channels_last"), (f"{LEVEL}_alignment", "nchw")])
def test_other_levels(benchmarks, name, layout):
    """Channels-last maps keep their format when moved to the GPU; three signals have their own parameters."""
    case = case_of(benchmarks, "task_interaction", torch.float32, "forward_backward", own=True)
    case = case._replace(shape_name=name, layout=layout)
    given = case.problem()
    wanted = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert given.inputs.x.is_contiguous(memory_format=wanted)
    assert case.another(given).inputs.x.stride() == given.inputs.x.stride()
    assert (given.inputs.upa.seg_proj is not None) == name.endswith("_alignment")
    case.check(case.run(given))


@pytest.mark.parametrize("op", [*OPERATORS, "task_interaction", "ss2d"])
def test_measured_checks_the_call_that_it_times(benchmarks, monkeypatch, op):
    """Without a GPU: every problem is run once, no time is measured, and the memory is that of the results."""
    gpu = benchmarks[0]
    monkeypatch.setattr(gpu, "copies", lambda nbytes: 2)
    monkeypatch.setattr(gpu, "durations", lambda calls: [float(len(call())) for call in calls])
    monkeypatch.setattr(gpu, "peak_bytes", lambda call: sum(t.nbytes for t in call().values()))
    case = case_of(benchmarks, op, torch.float32, "forward_backward", own=True)
    errors, seconds, peak = gpu.measured(case)
    assert max(errors) < 1e-2
    assert seconds == 2 * [float(len(case.run(case.problem())))]
    assert peak > case.nbytes(case.problem()) / 2
    monkeypatch.setattr(type(case), "check", lambda self, results: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gpu.measured(case)


@pytest.mark.parametrize("op", ["norm_gate", "dwconv_silu", "task_interaction"])
def test_peers_compute_the_same(benchmarks, op):
    for dtype in (torch.float32, torch.bfloat16):
        case = case_of(benchmarks, op, dtype, "forward_backward", own=False)
        case.check(case.run(case.problem()))


def test_mamba_ssm_gets_what_selective_scan_gets(benchmarks, monkeypatch):
    """Arguments come in the order of mamba-ssm's signature; mtlkit's function with that signature replaces it."""
    import mtlkit

    interface = type(sys)("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = mtlkit.selective_scan_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    case = case_of(benchmarks, "selective_scan", torch.float32, "forward_backward", own=False)
    assert case.provider.name == "mamba-ssm"
    case.check(case.run(case.problem()))
    gated = case._replace(shape_name="vim_tiny", batch=1, direction="forward")
    gated.check(gated.run(gated.problem()))


def test_least_bytes_count_each_tensor_once(benchmarks):
    """Counts the memory of arguments, outputs and gradients, without parameters; interaction reads its map twice."""
    for op in OPERATORS:
        for direction in ("forward", "forward_backward"):
            case = case_of(benchmarks, op, torch.bfloat16, direction, own=True)
            tensors, dy = case.problem()
            inputs = sum(t.nbytes for name, t in tensors.items() if name in benchmarks[1].OPERATORS[op].by_image)
            expected = inputs + dy.nbytes
            if direction != "forward":
                expected += 2 * inputs + dy.nbytes
            assert case.bytes == expected
    level = case_of(benchmarks, "task_interaction", torch.float32, "forward", own=True)
    assert level.bytes == 3 * level.problem().inputs.x.nbytes
    assert level._replace(direction="forward_backward").bytes == 8 * level.problem().inputs.x.nbytes


def test_vision_mambas_gate_is_counted(benchmarks):
    case = case_of(benchmarks, "selective_scan", torch.float32, "forward", own=True)._replace(shape_name="vim_tiny")
    tensors, dy = case.problem()
    inputs = sum(t.nbytes for name, t in tensors.items() if name in ("u", "delta", "z", "B", "C"))
    assert case.bytes == inputs + dy.nbytes
    assert case._replace(direction="forward_backward").bytes == 3 * inputs + 2 * dy.nbytes


def test_report_of_every_kind_of_row(benchmarks):
    """Rows become JSON and tables, next to peers and targets; verdicts name the row that is furthest off."""
    *_, report = benchmarks
    rows = []
    for op in (*OPERATORS, "task_interaction", "ss2d"):
        for own, seconds in ((True, 1e-3), (False, 2e-3)):
            if op == "ss2d" and not own:
                continue
            case = case_of(benchmarks, op, torch.float32, "forward", own)
            rows.append(report.row(case, (1e-7, 1e-6), [seconds] * 3, 1 << 20))
            assert "of the floor" in report.one_line(rows[-1])
    assert json.loads(json.dumps(rows)) == rows
    assert {("updates_per_s" in r) for r in rows if r["op"] in ("norm_gate", "task_interaction")} == {False}
    assert report.operators_table(rows).row_count == 4
    said = list(report.level_verdicts(rows))
    assert said[0].startswith("eager PyTorch: at least 5x missed: 2.0x at task_interaction-busi_224_level4_batch8")
    assert "70% of the floor missed" in said[1]


@pytest.fixture
def networks(benchmarks, monkeypatch):
    """gpu_networks with a MedMamba of a few channels and small images."""
    import gpu_networks

    small = {"num_classes": 2, "drop_path_rate": 0.0, "depths": (1, 1), "dims": (8, 16), "d_state": 4}
    for name, value in {"NETWORKS": {"medmamba_t": small}, "BATCH": 2, "SIZE": 32}.items():
        monkeypatch.setattr(gpu_networks, name, value)
    gpu_networks.plain_results.cache_clear()
    yield gpu_networks
    gpu_networks.plain_results.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_training_steps(networks, benchmarks, dtype):
    """Each step starts from the same weights, is compared with plain PyTorch's, and makes a row without a floor."""
    report = benchmarks[-1]
    case = networks.NetworkCase("medmamba_t", dtype, networks.NETWORK_PROVIDERS[0])
    given = case.problem()
    before = [p.clone() for p in given.model.parameters()]
    case.run(given)
    results = case.run(case.another(given))
    assert case.check(results) >= (0, 0)
    assert all(torch.equal(*pair) for pair in zip(before, given.model.parameters(), strict=True))
    assert sum(name.startswith("logits") for name in results) == 1
    for what in ("logits", "gradients"):
        wrong = {name: 2 * t if name.startswith("logits") == (what == "logits") else t for name, t in results.items()}
        with pytest.raises(AssertionError, match=what):
            case.check(wrong)
    rows = [
        report.row(case._replace(provider=provider), (1e-7, 1e-6), [seconds], 1 << 20)
        for provider, seconds in zip(networks.NETWORK_PROVIDERS, (0.5, 0.25, 1.0), strict=True)
    ]
    assert "8 images/s, peak" in report.one_line(rows[1])
    assert "floor" not in "".join(rows[0])
    assert report.networks_table(rows).row_count == 1
    assert list(report.networks_table(rows).columns[4].cells) == ["4.0x slower"]
    assert report.operators_table(rows).row_count == report.table(rows, "").row_count == 0
    assert not [*report.verdicts(rows), *report.level_verdicts(rows)]


def test_rows_are_written_while_they_are_measured(benchmarks, monkeypatch, tmp_path):
    """A stage's rows join those of earlier stages; rows of another commit are dropped; writing waits some seconds."""
    *_, report = benchmarks
    monkeypatch.setattr(report.gpu, "stem", lambda: "h200")
    monkeypatch.setattr(report, "described", lambda description: description)
    monkeypatch.setattr(report.time, "monotonic", lambda: now)

    def row(provider: str, seconds: float) -> dict:
        case = case_of(benchmarks, "norm_gate", torch.float32, "forward", own=True)
        return report.row(case, (1e-7, 1e-6), [seconds], 1 << 20) | {"provider": provider}

    def found() -> dict[str, float]:
        document = json.loads((tmp_path / "h200.json").read_text())
        return {row["provider"]: row["median_s"] for row in document["rows"]}

    now, first = 0.0, {"commit": "a", "versions": {"torch": "2.11"}}
    journal = report.Journal(first, tmp_path)
    journal.note([row("mtlkit-cuda", 1.0)])
    now += report.JOURNAL_SECONDS / 2
    journal.note([row("mtlkit-cuda", 1.0), row("eager", 4.0)])
    assert found() == {"mtlkit-cuda": 1.0}
    now += report.JOURNAL_SECONDS
    journal.note([row("mtlkit-cuda", 1.0), row("eager", 4.0)])
    assert found() == {"mtlkit-cuda": 1.0, "eager": 4.0}
    assert report.Journal(first | {"commit": "b"}, tmp_path).earlier == set()
    journal = report.Journal(first, tmp_path)
    assert {provider for _, provider in journal.earlier} == {"mtlkit-cuda", "eager"}
    journal.note([row("eager", 3.0)])
    assert found() == {"mtlkit-cuda": 1.0, "eager": 3.0}
    report.Journal(first | {"commit": "b"}, tmp_path).note([row("eager", 2.0)])
    assert found() == {"eager": 2.0}


def test_every_shape_has_a_case_where_a_gpu_is(benchmarks, monkeypatch):
    """Checks the parametrisation, which is empty without a GPU."""
    import gpu_networks

    _, operators, levels, _, _ = benchmarks
    assert levels.cases() == gpu_networks.cases() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    for op in OPERATORS:
        found = operators.cases(op)
        assert {case.shape_name for case in found} == set(operators.OPERATORS[op].shapes)
        assert len({str(case) for case in found}) == len(found)
    found = levels.cases()
    assert {case.shape_name for case in found} > set(INTERACTION_SHAPES)
    assert {case.layout for case in found} == {"nchw", "channels_last"}
    assert {case.shape.signals for case in found} == {"variance", "alignment"}
    assert len({str(case) for case in found}) == len(found)
    assert {case.dtype for case in found} == {torch.float32, torch.bfloat16}
    assert {case.op for case in gpu_networks.cases()} == set(gpu_networks.NETWORKS)
