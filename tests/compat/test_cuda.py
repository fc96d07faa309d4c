"""Code that asks for a CUDA device, on a machine without one."""

import io
import os

import pytest
import torch
from torch import nn

from mtlkit import compat


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_contexts_of_a_cpu_pass_while_names_are_served():
    x = torch.ones(2)
    before = torch.cuda.device
    compat.install("mamba_ssm")
    compat.install("selective_scan_cuda")
    for device in (x.device, "cpu", x.device.index):
        with torch.cuda.device(device):
            pass
    assert torch.cuda.device(0).idx == 0  # as in torch
    compat.uninstall("mamba_ssm")
    with torch.cuda.device(x.device):
        pass
    compat.uninstall("selective_scan_cuda")
    assert torch.cuda.device is before
    with pytest.raises(ValueError, match="Expected a cuda device"):
        torch.cuda.device(x.device)


def test_devices_are_read_as_the_cpu():
    functions = torch.load, torch.cuda.device, torch.cuda.set_device, torch.cuda.synchronize
    cuda = torch.device("cuda", 0)
    with compat.cuda_on_cpu():
        layer = nn.Linear(3, 3).cuda().to("cuda").to(cuda).to(0).cuda(0)
        made = [torch.zeros(2, 3, device=device) for device in ("cuda", "cuda:1", cuda)]
        made += [torch.tensor([[1.0, 2, 3]], device="cuda").to("cuda", torch.float64).float(), torch.ones(3).to(0)]
        made += [torch.ones(3).cuda(non_blocking=True), torch.ones(3).to(device="cuda"), torch.arange(3.0, device=cuda)]
        with torch.cuda.device(0), torch.cuda.device(cuda):
            torch.cuda.set_device(0)
            torch.cuda.synchronize()
            y = sum(layer(x).sum() for x in made)
        y.backward()
        assert {t.device.type for t in (*made, *layer.parameters())} == {"cpu"}
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        for where in ("cuda", None, "cpu"):
            file.seek(0)
            layer.load_state_dict(torch.load(file, where))
    assert functions == (torch.load, torch.cuda.device, torch.cuda.set_device, torch.cuda.synchronize)


@pytest.mark.parametrize("value", [None, "0"])
def test_triton_kernels_are_interpreted(monkeypatch, value):
    if value is None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    else:
        monkeypatch.setenv("TRITON_INTERPRET", value)
    with compat.cuda_on_cpu():
        assert os.environ["TRITON_INTERPRET"] == (value or "1")
    assert os.environ.get("TRITON_INTERPRET") == value


def test_an_error_ends_it():
    load = torch.load
    with pytest.raises(KeyError), compat.cuda_on_cpu():
        raise KeyError
    assert torch.load is load
