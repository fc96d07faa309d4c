"""mamba-ssm's layers: keywords of all versions, norms that take a residual, and their block."""

import pytest
import torch
import torch.nn.functional as F

import mtlkit
from harness.mamba import assert_same_with_gradients
from mtlkit import compat
from mtlkit.testing import assert_accurate

PUBLISHED = {  # for each version, the keywords that a project passes
    "mamba-ssm": {"d_model": 16, "d_state": 8, "d_conv": 3, "expand": 1, "layer_idx": 2, "use_fast_path": False},
    "U-Mamba": {"d_model": 16, "d_state": 16, "d_conv": 4, "expand": 2},
    "Vim": {"d_model": 16, "bimamba_type": "v2", "if_divide_out": True, "init_layer_scale": 0.1, "layer_idx": 0},
    "LocalMamba": {"d_model": 16, "bimamba_type": "v2", "if_devide_out": True, "init_layer_scale": None},
    "SegMamba": {"d_model": 16, "bimamba_type": "v3", "nslices": 4},
    "VideoMamba": {"d_model": 16, "bimamba": True, "layer_idx": 3},
    "Vim, v1": {"d_model": 16, "bimamba_type": "v1"},
}


@pytest.fixture(autouse=True)
def _installed():
    compat.install("mamba_ssm")
    yield
    compat.uninstall()


@pytest.mark.parametrize("edition", PUBLISHED)
def test_editions(edition):
    from mamba_ssm import Mamba

    torch.manual_seed(0)
    block = Mamba(**PUBLISHED[edition])
    ours = {"bimamba": ("bimamba_type", "v2"), "if_devide_out": ("if_divide_out", True)}
    torch.manual_seed(0)
    plain = mtlkit.nn.Mamba(**dict(ours.get(name, (name, value)) for name, value in PUBLISHED[edition].items()))
    assert list(block.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 8, 16)
    assert torch.equal(block(x), plain(x))
    assert isinstance(block, mtlkit.nn.Mamba)


def test_an_unknown_keyword_is_named():
    from mamba_ssm.modules.mamba_simple import Mamba

    with pytest.raises(TypeError, match=r"Mamba: expected keywords among d_model, .*, bimamba, .*, got 'headdim'"):
        Mamba(16, headdim=4)


# --- norms ------------------------------------------------------------------------------------------------------------


def restated_norm(x, weight, bias, residual, rms, eps=1e-3):
    """The norm of the sum, and the sum."""
    total = x if residual is None else x + residual
    mean = 0 if rms else total.mean(-1, keepdim=True)
    y = (total - mean) / ((total - mean).square().mean(-1, keepdim=True) + eps).sqrt() * weight
    return (y if bias is None else y + bias), total


@pytest.mark.parametrize("module", ["layernorm", "layer_norm"])
@pytest.mark.parametrize("rms", [True, False])
@pytest.mark.parametrize("parts", ["", "residual", "bias", "bias residual"])
def test_norms(module, rms, parts):
    from mamba_ssm.ops import triton

    functions = getattr(triton, module)
    arguments = {
        "x": torch.randn(2, 3, 5).double(),
        "weight": torch.randn(5).double(),
        "bias": torch.randn(5).double() if "bias" in parts else None,
        "residual": torch.randn(2, 3, 5).double() if "residual" in parts else None,
    }
    function = functions.rms_norm_fn if rms else functions.layer_norm_fn

    def joined(y, total):
        return torch.cat((y, 2 * total), -1)

    assert_same_with_gradients(
        lambda leaves: joined(*function(**leaves, prenorm=True, eps=1e-3)),
        lambda leaves: joined(*restated_norm(*leaves.values(), rms)),
        arguments,
    )
    assert torch.equal(function(**arguments, eps=1e-3), function(**arguments, prenorm=True, eps=1e-3)[0])


def test_positional_arguments_of_each_version():
    from mamba_ssm.ops.triton import layer_norm, layernorm

    x, weight, residual = torch.randn(3, 4), torch.rand(4), torch.randn(3, 4)
    exact = restated_norm(x, weight, None, residual, True, eps=0.1)[0]
    assert_accurate("1.x", layernorm.layer_norm_fn(x, weight, None, residual, 0.1, False, False, True), exact)
    assert_accurate("1.x", layernorm.rms_norm_fn(x, weight, None, residual, False, False, 0.1), exact)
    assert_accurate("2.x", layer_norm.rms_norm_fn(x, weight, None, residual, None, None, None, 0.1), exact)


@pytest.mark.parametrize("in_fp32", [True, False])
def test_dtypes_of_the_residual(in_fp32):
    from mamba_ssm.ops.triton.layer_norm import RMSNorm

    norm = RMSNorm(4, eps=1e-5)
    x = torch.randn(3, 4).bfloat16()
    y, total = norm(x, prenorm=True, residual_in_fp32=in_fp32)
    assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float32 if in_fp32 else torch.bfloat16)
    assert torch.equal(total.bfloat16(), x)
    y, total = norm(x, total, prenorm=True, residual_in_fp32=in_fp32)
    assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float32 if in_fp32 else torch.bfloat16)
    assert_accurate("out", y, F.rms_norm(2 * x.double(), (4,), eps=1e-5), F.rms_norm(2 * x, (4,), eps=1e-5))


def test_what_later_versions_added():
    from mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn

    x, weight = torch.randn(3, 4), torch.ones(4)
    scaled = layer_norm_fn(x, weight, None, rowscale=torch.zeros(3), prenorm=True)[1]
    assert torch.equal(scaled, torch.zeros(3, 4))
    dropped = layer_norm_fn(x, weight, None, dropout_p=1.0, prenorm=True)[1]
    assert torch.equal(dropped, torch.zeros(3, 4))
    norm = RMSNorm(4, dropout_p=1.0)
    assert torch.equal(norm.train()(x), torch.zeros(3, 4))
    assert_accurate("without dropout", norm.eval()(x), F.rms_norm(x.double(), (4,), eps=1e-5))
    with pytest.raises(ValueError, match="weight1: expected None, since parallel norms are not served"):
        layer_norm_fn(x, weight, None, weight1=weight)
    with pytest.raises(ValueError, match="return_dropout_mask: expected False"):
        layer_norm_fn(x, weight, None, return_dropout_mask=True)


# --- the block --------------------------------------------------------------------------------------------------------


class _Mixer(torch.nn.Linear):
    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)

    def forward(self, x, inference_params=None):
        return super().forward(x)

    def allocate_inference_cache(self, batch_size, max_seqlen, dtype=None):
        return batch_size, max_seqlen, dtype


@pytest.mark.parametrize("rms", [True, False])
@pytest.mark.parametrize("in_fp32", [True, False])
def test_block(rms, in_fp32):
    from mamba_ssm.modules.mamba_simple import Block
    from mamba_ssm.ops.triton.layernorm import RMSNorm

    blocks = []
    for fused in (True, False):
        torch.manual_seed(0)
        blocks.append(Block(6, _Mixer, RMSNorm if rms else torch.nn.LayerNorm, fused, in_fp32))
    x = torch.randn(2, 3, 6)
    states = [block(*block(x)) for block in blocks]
    first = blocks[0].mixer(blocks[0].norm(x))
    exact = blocks[0].mixer(blocks[0].norm(first + x)), first + x
    for found in states:
        for name, got, want in zip(("hidden states", "residual"), found, exact, strict=True):
            assert_accurate(name, got, want.double())
    assert blocks[0].allocate_inference_cache(2, 5) == (2, 5, None)
    with pytest.raises(TypeError, match="norm_cls: expected LayerNorm or RMSNorm with fused_add_norm, got Identity"):
        Block(6, _Mixer, torch.nn.Identity, True)
