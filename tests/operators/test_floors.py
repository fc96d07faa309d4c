"""Lower bounds for the time of a call: counts of operations, the speed of this CPU, and data sheets of GPUs."""

import pytest

from mtlkit.operators import floors


def test_the_floor_counts_operations():
    """Forward, backward, and the share of one token; the yardsticks measure how many operations run per second."""
    assert floors.scan_operations("avx512", 10**9, 0, False) == pytest.approx(8)
    assert floors.scan_operations("avx2", 10**9, 0, False) == pytest.approx(8)
    assert floors.scan_operations("avx512", 10**9, 0, True) == pytest.approx(8 + 15)
    assert floors.scan_operations("avx512", 16, 3, False) == pytest.approx(8 + (6 + 12 + 3) / 16)
    assert floors.scan_operations("avx512", 16, 3, True) == pytest.approx(23 + (21 + 6 + 17 + 9) / 16)
    assert floors.multiply_adds("avx512", 8e9, 5e9) == 8 * 8e9
    assert floors.multiply_adds("avx512", 7e9, 6e9) == 10 * 6e9


def test_the_speed_of_this_cpu_is_measured():
    pytest.importorskip("mtlkit._C")
    assert floors.yardstick(1, 0.001, threads=1) > 1e6
    few, many = floors.copy_seconds(1 << 10), floors.copy_seconds(1 << 26)
    assert 0 < few < many
    assert floors.copy_seconds(0) > 0


def test_without_kernels_there_is_no_yardstick(monkeypatch):
    monkeypatch.setattr("mtlkit._native.C", None)
    assert floors.yardstick() is None


def test_the_higher_floor_counts():
    limits = floors.Limits(exponentials=1e12, instructions=1e13, bytes=1e12)
    assert floors.scan_floor(10**9, 2, 0, False, limits) == (pytest.approx(2e-3), "arithmetic")
    assert floors.scan_floor(10**9, 2, 0, True, limits) == (pytest.approx(2e-3 + 2.4e-3), "arithmetic")
    assert floors.scan_floor(10**9, 2, 10**10, True, limits) == (1e-2, "memory")


def test_gpus_have_the_names_of_drivers():
    for driver, name in (
        ("NVIDIA H200", "h200"),
        ("Tesla T4", None),
        ("NVIDIA GeForce RTX 4090", "rtx_4090"),
        ("h200", "h200"),
    ):
        assert floors.gpu_named(driver) == (floors.GPUS[name] if name else None)
    h200 = floors.GPUS["h200"]
    assert h200[:2] == (132, 232_448)
    assert h200.limits == (16 * 132 * 1.98e9, 128 * 132 * 1.98e9, 4.8e12)
