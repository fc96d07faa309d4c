"""accelerate: token blocks before and after replacement; blocks that are not replaced, and the reasons."""

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import mtlkit
from harness.third_party_models import accelerated, perturbed
from harness.token_blocks import MambaBlock, MambaVisionMixer, MultiMamba, PlainMamba2D
from mtlkit.nn import Mamba
from mtlkit.testing import assert_accurate

BLOCKS = {
    "mamba": lambda: MambaBlock(6),
    "mamba_biased": lambda: MambaBlock(6, bias=True, conv_bias=False, d_conv=3, expand=1.5),
    "v1": lambda: MambaBlock(6, bimamba_type="v1"),
    "v2": lambda: MambaBlock(6, bimamba_type="v2"),
    "v2_mean": lambda: MambaBlock(6, bimamba_type="v2", if_divide_out=True, init_layer_scale=0.1),
    "v3": lambda: MambaBlock(6, bimamba_type="v3", nslices=4),
    "mambavision": lambda: MambaVisionMixer(6),
    "mambavision_biased": lambda: MambaVisionMixer(6, d_conv=4, bias=True, conv_bias=True),
    "localvim": lambda: MultiMamba(6),
    "localvim_class": lambda: MultiMamba(6, ("h_flip", "v", "w2"), (4, 6), use_middle_cls_token=True),
    "plainmamba": lambda: PlainMamba2D(6),
    "plainmamba_scaled": lambda: PlainMamba2D(6, conv_size=5, init_layer_scale=0.5),
}


class Model(nn.Module):
    """A block with its additional arguments."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, (4, 6)) if hasattr(self.block, "conv2d") else self.block(x)


def tokens(model: Model) -> Tensor:
    return torch.randn(2, 25 if getattr(model.block, "use_middle_cls_token", False) else 24, 6)


def results(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output, and the gradients of the input and of every parameter, by name."""
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = model(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype))
    return {"output": y.detach(), "x": x.grad} | {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_compute_the_same(name):
    model = perturbed(Model(BLOCKS[name]()))
    x = tokens(model)
    exact = results(copy.deepcopy(model).double(), x.double())
    parameters, state = dict(model.named_parameters()), list(model.state_dict())
    report = mtlkit.accelerate(model, strict=True)
    assert report.replaced[0].error < 1e-5
    assert list(model.state_dict()) == state
    assert all(parameter is parameters[key] for key, parameter in model.named_parameters())
    for got in (results(model, x), results(model.double(), x.double())):
        assert list(got) == list(exact)
        for key in exact:
            assert_accurate(key, got[key], exact[key], gradient=key != "output")
    with torch.no_grad():
        assert_accurate("without gradients", model(x.double()), exact["output"])
    assert not mtlkit.accelerate(model).replaced
    assert mtlkit.restore(model) == ["block"]
    assert_accurate("restored", model(x.double()), exact["output"])


@pytest.mark.parametrize("name", ["v2", "mambavision", "localvim_class", "plainmamba"])
def test_copies_of_accelerated_blocks(name):
    model = perturbed(Model(BLOCKS[name]()))
    x = tokens(model)
    accelerated(model)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(x), model(x))
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
    restored = copy.deepcopy(twin)
    mtlkit.restore(restored)
    torch.testing.assert_close(restored(x), model(x), rtol=1e-4, atol=1e-5)


class Halved(MambaBlock):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) / 2


def test_the_mean_is_found_where_the_block_does_not_say_so():
    (replaced,) = mtlkit.accelerate(nn.Sequential(Halved(6, bimamba_type="v2"))).replaced
    assert "their mean" in replaced.form


def test_accelerated_blocks_decode():
    model = accelerated(Model(perturbed(MambaBlock(6))))
    x = tokens(model)
    exact = model(x)
    model.block.layer_idx = 3
    params = SimpleNamespace(seqlen_offset=0, key_value_memory_dict={})
    torch.testing.assert_close(model.block(x[:, :20], inference_params=params), exact[:, :20])
    params.seqlen_offset = 20
    torch.testing.assert_close(model.block(x[:, 20:21], params), exact[:, 20:21], rtol=1e-4, atol=1e-5)


def test_marks_are_those_of_the_original():
    plain, marked = MambaBlock(6), MambaBlock(6)
    marked.A_log._no_weight_decay = marked.D._no_weight_decay = True
    model = accelerated(nn.Sequential(plain, marked))
    names = {name for name, p in copy.deepcopy(model).named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert names == {"1.A_log", "1.D"}


def test_our_own_block_is_known():
    report = mtlkit.accelerate(nn.Sequential(Mamba(8), nn.Linear(8, 8)))
    assert report.already == ("0",)


def test_the_report_says_what_was_recognised():
    model = nn.ModuleDict({"a": MambaBlock(6, bimamba_type="v3", nslices=4), "b": MultiMamba(6), "c": PlainMamba2D(6)})
    forms = [entry.form for entry in mtlkit.accelerate(model).replaced]
    assert forms == [
        "Mamba, C=6, D=12, N=3, R=1, three directions, 4 slices",
        "MultiMamba, C=6, D=12, N=3, R=1, h, v_flip, w2, w2_flip",
        "PlainMamba2D, C=6, D=12, N=3, R=1",
    ]
    assert "bimamba_type='v3', for=MambaBlock" in repr(model["a"])
    assert "for=MultiMamba" in repr(model["b"])


def test_bad_input_of_a_swapped_block_is_named():
    model = accelerated(nn.ModuleList([MultiMamba(6), PlainMamba2D(6)]))
    with pytest.raises(ValueError, match=r"hidden_states: expected shape \(B, 24, 6\), got \(2, 25, 6\)"):
        model[0](torch.ones(2, 25, 6))
    with pytest.raises(ValueError, match=r"x: expected shape \(B, 20, 6\), got \(2, 24, 6\)"):
        model[1](torch.ones(2, 24, 6), (4, 5))


# --- blocks that are not replaced -------------------------------------------------------------------------------------


def changed(block: nn.Module, **parts) -> nn.Module:
    for name, part in parts.items():
        setattr(block, name, part)
    return block


class Cached(MambaBlock):
    def forward(self, hidden_states: Tensor, cache_params: object = None, attention_mask: object = None) -> Tensor:
        return super().forward(hidden_states)


class Gelu(MambaBlock):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return nn.functional.gelu(super().forward(hidden_states))


def second_mamba() -> nn.Module:
    block = nn.Module()
    block.in_proj, block.out_proj, block.conv1d = nn.Linear(4, 22), nn.Linear(8, 4), nn.Conv1d(12, 12, 4, groups=12)
    block.A_log, block.D, block.dt_bias = (nn.Parameter(torch.ones(2)) for _ in range(3))
    return block


LEFT = {
    "mamba_2": (second_mamba, "a block of Mamba-2, whose scan mtlkit does not have"),
    "another_activation": (lambda: Gelu(6), "it computes something else"),
    "arguments": (lambda: Cached(6), "arguments that mtlkit's does not: cache_params, attention_mask"),
    "norms": (lambda: changed(MambaBlock(6), dt_norm=nn.LayerNorm(1)), r"a part that Mamba has not: dt_norm"),
    "no_projection": (lambda: changed(MambaBlock(6), x_proj=None), "it has no x_proj, which Mamba has"),
    "full_convolution": (lambda: changed(MambaBlock(6), conv1d=nn.Conv1d(12, 12, 4)), "conv1d is not depthwise"),
    "shape": (lambda: changed(MambaBlock(6), D=nn.Parameter(torch.ones(6))), r"D has shape \(6,\), not \(12,\)"),
    "slices": (
        lambda: changed(MambaBlock(6, bimamba_type="v3"), nslices=None),
        "does not say how many slices",
    ),
    "searching": (
        lambda: changed(MultiMamba(6), multi_scan=changed(MultiMamba(6).multi_scan, search=True)),
        "it still searches",
    ),
    "odd_windows": (lambda: MultiMamba(6, ("w3",), (4, 6)), "windows of 3 do not divide its 4 x 6 tokens"),
    "unknown_direction": (
        lambda: changed(MultiMamba(6), multi_scan=changed(MultiMamba(6).multi_scan, choices=("h", "d", "v", "w2"))),
        "a direction that LocalVim has not: d",
    ),
    "attention": (lambda: changed(MultiMamba(6), attn=nn.Identity()), "its attn has other parts than BiAttn"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_look_alikes_are_left_alone(case):
    make, reason = LEFT[case]
    block = make()
    model = nn.ModuleList([block, MambaBlock(6)])
    report = mtlkit.accelerate(model)
    assert model[0] is block
    assert [entry.name for entry in report.replaced] == ["1"]
    (left,) = report.left
    assert re.search(reason, left.reason), left.reason
