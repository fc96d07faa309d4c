"""Training memory of an SS2D: at most 0.4 of MedMamba's or the lower bound, and equal to the documented values."""

import re

import gpu_memory
import pytest

MOST = 0.4
OTHER_TORCH = 0.02  # allowed difference from the page, because torch versions allocate differently


def numbers(table: str) -> list[float]:
    return [float(cell) for cell in re.findall(r"(?<=\| )[\d.]+(?= \|)", table)]


def test_peak(kernels):
    found = gpu_memory.peaks(kernels)
    print(gpu_memory.table(found))
    for (shape, batch), row in found.items():
        for dtype, peak in zip(gpu_memory.DTYPES, row, strict=True):
            assert peak.mtlkit >= peak.least
            assert peak.mtlkit <= max(MOST * peak.medmamba, peak.least), f"{shape}, batch {batch}, {dtype}"
    page = re.search(gpu_memory.TABLE, gpu_memory.PAGE.read_text())[0]
    written = pytest.approx(numbers(gpu_memory.table(found)), rel=OTHER_TORCH, abs=0.05)
    assert numbers(page) == written, "python benchmarks/gpu_memory.py writes the table"
