"""The small calls used by checks at run time, by the CPU kernels and in plain PyTorch."""

import importlib
import pkgutil

import pytest
import torch

import mtlkit.operators
from mtlkit.operators._operator import Operator
from mtlkit.operators._step import Step
from mtlkit.operators.samples import compare, samples

SAMPLES = samples()
OTHERS = ("cuda", "triton", "reference")  # the last one gives the expected results in float64


def test_every_operator_has_samples():
    declared = set()
    for module in pkgutil.walk_packages(mtlkit.operators.__path__, "mtlkit.operators."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Operator | Step):
                declared.add(value.function if isinstance(value, Operator) else value.name)
    assert declared == set(SAMPLES)
    for name, found in SAMPLES.items():
        assert {sample.operator for sample in found} == {name}
        assert len({sample.words for sample in found}) == len(found), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SAMPLES)
def test_backends_agree_with_the_reference(name, dtype):
    for sample in (SAMPLES[name][0], SAMPLES[name][-1]):
        exact, plain = sample.exact(dtype), sample.plain(dtype)
        assert exact.keys() >= {f"d{n}" for n, t in sample.tensors().items() if sample.gradients}
        served = [backend for backend in sample.served if backend not in OTHERS]
        assert set(served) == {"cpu", "torch"}
        for backend in served:
            found = compare(sample.results(backend, sample.given(dtype)), exact, plain)
            assert found.keys() == exact.keys()
            assert [judged.fault for judged in found.values() if judged.fault] == [], (backend, sample.words)


def test_numbers_do_not_depend_on_the_dtype():
    sample = SAMPLES["ss2d"][0]
    for few, many in ((torch.float16, torch.bfloat16), (torch.float32, torch.float64)):
        first, second = sample.given(few), sample.given(many)
        assert all(torch.equal(first[name].double(), second[name].double()) for name in first)


def test_a_wrong_result_is_named():
    sample = SAMPLES["causal_conv1d"][0]
    exact = sample.exact(torch.float32)
    got = sample.results("cpu", sample.given(torch.float32))
    got["dweight"] = got["dweight"] * 1.001
    faults = [judged.fault for judged in compare(got, exact, None).values() if judged.fault]
    assert len(faults) == 1
    assert faults[0].startswith("dweight: relative error 1.0")
