"""Layers of task interaction on two processes, each with part of a batch, compared with one process."""

import pytest
import torch

import mtlkit

# Two processes with 3 and 2 images of the same batch: returns the summed gradients, the outputs, and the buffers.
WORK = """
import torch
from torch import distributed, nn
import mtlkit

def work(rank, given):
    backend, given = given
    found = {}
    for name, (layer, inputs) in given.items():
        layer = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
        seg, clf = (t[3 * rank : 3 + 2 * rank].requires_grad_() for t in inputs)
        with mtlkit.use_backend(backend):
            for _ in range(2):
                out = layer(seg, clf)
        (out.seg.square().sum() + out.clf.sin().sum()).backward()
        for p in layer.parameters():
            distributed.all_reduce(p.grad)
        found[name] = {
            "output": (out.seg.detach(), out.clf.detach()),
            "inputs": (seg.grad, clf.grad),
            "parameters": {key: p.grad for key, p in layer.named_parameters()},
            "buffers": dict(layer.named_buffers()),
        }
    return found
"""


def layers():
    """Every form that computes statistics over the batch, in float64 and in training."""
    options = {"dim": 6, "clf_dim": 5, "dtype": torch.float64}
    return {
        "tim": mtlkit.nn.TaskInteraction(**options),
        "attention": mtlkit.nn.TaskInteraction(**options, pooling="attention"),
        "variance": mtlkit.nn.InteractionLevel(**options, signals="variance"),
        "running": mtlkit.nn.InteractionLevel(**options, signals="variance", normaliser="running"),
        "alignment": mtlkit.nn.InteractionLevel(**options, signals="alignment"),
    }


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_two_processes_are_as_one(two_processes, backend):
    """Outputs, gradients of inputs and parameters, and running statistics after two steps, with SyncBatchNorm."""
    given = {
        name: (layer, (torch.randn(5, 6, 7, 4, dtype=torch.float64), torch.randn(5, 5, dtype=torch.float64)))
        for name, layer in layers().items()
    }
    both = two_processes(WORK, (backend, given))
    for name, (layer, (seg, clf)) in given.items():
        for tensor in (seg, clf):
            tensor.requires_grad_()
        for _ in range(2):
            out = layer(seg, clf)
        (out.seg.square().sum() + out.clf.sin().sum()).backward()
        for key, expected in (("output", (out.seg, out.clf)), ("inputs", (seg.grad, clf.grad))):
            for i, value in enumerate(expected):
                got = torch.cat([found[name][key][i] for found in both])
                torch.testing.assert_close(got, value.detach(), msg=lambda m, n=name, k=key: f"{n}, {k}: {m}")
        for found in both:
            for key, parameter in layer.named_parameters():
                got = found[name]["parameters"][key]
                torch.testing.assert_close(got, parameter.grad, msg=lambda m, n=name, k=key: f"{n}, {k}: {m}")
            for key, buffer in layer.named_buffers():
                got = found[name]["buffers"][key]
                torch.testing.assert_close(got, buffer, msg=lambda m, n=name, k=key: f"{n}, {k}: {m}")


def test_one_process_needs_no_others():
    """Outside torch.distributed, a converted layer gives bitwise the results of the original."""
    for name, layer in layers().items():
        seg, clf = torch.randn(3, 6, 7, 4, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
        expected = layer(seg, clf)
        got = torch.nn.SyncBatchNorm.convert_sync_batchnorm(layer)(seg, clf)
        assert torch.equal(got.seg, expected.seg), name
        assert torch.equal(got.clf, expected.clf), name
