"""Weights of the official TensorFlow code: its names and layouts, compared with golden values; rejected files."""

import json
import random
import re
import zlib
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from mtlkit.models import create_model, state_dict_from_keras
from mtlkit.nn import (
    AttentionGate,
    ConvUpsample,
    DualPathAttention,
    InteractionLevel,
    MultiScaleFusion,
    ResidualBlock,
    SeparableConv,
    TaskInteraction,
    UncertaintyProxyAttention,
)

FOLDER = Path(__file__).resolve().parents[1] / "golden"
GOLDEN = json.loads((FOLDER / "golden_mtl_bus.json").read_text())

# Names as in .h5 files saved by TensorFlow 2.15, by the names of the golden values.
FUSION = {
    "sep_d1": "{0}_sep_conv_1",
    "sep_d2": "{0}_sep_conv_2",
    "sep_d4": "{0}_sep_conv_4",
    "att_fc1": "dense",
    "att_fc2": "dense_1",
    "fuse": "{0}_fusion",
}
BLOCK = {
    **{part: f"hct_res_s1/hct_res_s1_{part}" for part in ("conv1", "bn1", "conv2", "bn2", "proj")},
    **{f"hmsf.{k}": v.format("hct_res_s1/hct_res_s1_multiscale/hct_res_s1_multiscale") for k, v in FUSION.items()},
    "attn.ch_fc1": "dense_2",
    "attn.ch_fc2": "dense_3",
    "attn.spatial": "hct_res_s1/hct_res_s1_attention/hct_res_s1_attention_spatial",
}
CASES = {
    "hmsf": (lambda: MultiScaleFusion(8), "fusion", {k: v.format("fusion/fusion") for k, v in FUSION.items()}),
    "dual_path_attention": (
        lambda: DualPathAttention(8),
        "attention",
        {"ch_fc1": "dense_9", "ch_fc2": "dense_10", "spatial": "attention/attention_spatial"},
    ),
    "residual_block_same": (lambda: ResidualBlock(8, 8), "hct_res_s1", BLOCK),
    "residual_block_proj_noatt": (lambda: ResidualBlock(8, 16, attention=False), "hct_res_s1", BLOCK),
    "attention_gate": (
        lambda: AttentionGate(8, 3, 5),
        "att_gate_d1",
        {
            "x_proj": "att_gate_d1/att_gate_d1_x_transform",
            "g_proj": "att_gate_d1/att_gate_d1_g_transform",
            "ctx1": "separable_conv2d",
            "ctx2": "separable_conv2d_1",
            "psi": "conv2d",
        },
    ),
    "tim": (
        lambda: TaskInteraction(4, 6),
        "task_interaction_d1",
        {
            "s2c_conv": "conv2d",
            "s2c_dense": "dense",
            "s2c_bn": "batch_normalization",
            "c2s_dense": "dense_1",
            "seg_gate": "task_interaction_d1/task_interaction_d1_seg_gate",
            "clf_gate": "task_interaction_d1/task_interaction_d1_clf_gate",
        },
    ),
    "upa_v1": (
        lambda: UncertaintyProxyAttention(4, 6),
        "uncertainty_attention_d1",
        {"fc1": "dense", "fc2": "dense_1"},
    ),
    "upa_v2": (
        lambda: UncertaintyProxyAttention(4, 6, "alignment"),
        "upa_d1",
        {"seg_proj": "upa_d1/upa_d1_sp", "clf_proj": "upa_d1/upa_d1_cp", "fc1": "dense", "fc2": "dense_1"},
    ),
}
OUTPUTS = {"tim": ("seg_enh", "clf_enh"), "upa_v1": ("seg_final", "clf_final"), "upa_v2": ("seg_final", "clf_final")}
KINDS = {
    "gamma": "gamma",
    "beta": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
    "depthwise": "depthwise_kernel",
    "pointwise": "pointwise_kernel",
    "weight": "kernel",
    "bias": "bias",
}


def keras_layout(kind: str, value: numpy.ndarray) -> numpy.ndarray:
    if kind == "depthwise":
        return value.transpose(2, 3, 0, 1)  # (in, 1, kh, kw) to (kh, kw, in, 1)
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)  # (out, in, kh, kw) to (kh, kw, in, out)
    return value.T


def keras_weights(name: str, prefix: str = "") -> dict[str, numpy.ndarray]:
    """The weights of a golden value in Keras' form, unordered."""
    _, layer, parts = CASES[name]
    weights = {}
    for weight in GOLDEN[name]["weights"]:
        stem, kind = weight["name"].rsplit(".", 1)
        value = numpy.array(weight["value"], numpy.float32).reshape(weight["shape"])
        weights[f"{prefix}{layer}/{parts[stem]}/{KINDS[kind]}:0"] = keras_layout(kind, value)
    names = list(weights)
    random.Random(0).shuffle(names)
    return {name: weights[name] for name in names}


@pytest.mark.parametrize("prefix", ["", "model_weights/"])
@pytest.mark.parametrize("name", CASES)
def test_official_weights_give_the_official_output(name, prefix):
    module = CASES[name][0]().eval()
    module.load_state_dict(state_dict_from_keras(module, keras_weights(name, prefix)))
    given, wanted = ({k: torch.tensor(v) for k, v in GOLDEN[name][side].items()} for side in ("inputs", "outputs"))
    out = module(*given.values())
    outputs = [out.seg, out.clf] if name in OUTPUTS else [out]
    for got, key in zip(outputs, OUTPUTS.get(name, ("y",)), strict=True):
        assert (got - wanted[key]).abs().max() <= 1e-5


def test_names_of_keras_3():
    weights = keras_weights("residual_block_same")
    renamed = {}
    for name, value in weights.items():
        # numbered over the complete model, within their Sequential
        counted = re.sub(
            r"/dense(?:_(\d))?/",
            lambda m: f"/hct_res_s1/hct_res_s1_sequential/dense_{int(m[1] or 0) + 97}/",
            name.removesuffix(":0"),
        )
        renamed[counted] = value
    assert any("dense_100/" in name for name in renamed)
    block = ResidualBlock(8, 8)
    wanted = state_dict_from_keras(block, weights)
    for key, value in state_dict_from_keras(block, renamed).items():
        assert torch.equal(value, wanted[key]), key


def test_single_layers():
    entry = GOLDEN["conv_transpose"]
    kernel = numpy.array(entry["kernel"], numpy.float32)  # (in, out, kh, kw)
    up = ConvUpsample(2, 3)
    weights = {
        "conv2d_transpose_4/conv2d_transpose_4/kernel:0": kernel.transpose(2, 3, 1, 0),
        "conv2d_transpose_4/conv2d_transpose_4/bias:0": numpy.array(entry["bias"], numpy.float32),
    }
    up.load_state_dict(state_dict_from_keras(up, weights))
    assert (up(torch.tensor(entry["x"])) - torch.tensor(entry["y"])).abs().max() <= 1e-5

    depthwise = nn.Conv2d(4, 4, 3, groups=4, bias=False)
    for name in ("dw/dw/depthwise_kernel:0", "dw/dw/kernel"):  # Keras 2, Keras 3
        state = state_dict_from_keras(depthwise, {name: numpy.arange(36.0).reshape(3, 3, 4, 1)})
        assert state["weight"][1, 0].tolist() == [[1, 5, 9], [13, 17, 21], [25, 29, 33]]

    norm = nn.BatchNorm1d(2)
    arrays = {name: numpy.full(2, i) for i, name in enumerate(("gamma", "beta", "moving_mean", "moving_variance"))}
    state = state_dict_from_keras(norm, {f"bn/bn/{name}:0": value for name, value in arrays.items()})
    assert [state[key][0] for key in ("weight", "bias", "running_mean", "running_var")] == [0, 1, 2, 3]
    assert state["num_batches_tracked"] == 0


def test_level_is_two_layers_of_keras():
    for upa, signals in (("upa_v1", "variance"), ("upa_v2", "alignment")):
        made = InteractionLevel(4, 6, signals).eval()
        made.load_state_dict(state_dict_from_keras(made, keras_weights("tim") | keras_weights(upa)))
        assert torch.equal(made.upa.fc2.bias, torch.tensor(GOLDEN[upa]["weights"][-1]["value"]))
        assert made.tim.s2c_bn.running_var.tolist() == pytest.approx(GOLDEN["tim"]["weights"][-1]["value"])


def test_state_is_a_copy_in_the_dtype_of_the_module():
    weights = keras_weights("tim")
    module = TaskInteraction(4, 6, dtype=torch.float64)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state = state_dict_from_keras(module, weights)
    assert state.keys() == before.keys()
    assert state["seg_gate.bias"].dtype == torch.float64
    for value in weights.values():
        value.fill(0)
    assert all(value.any() for key, value in state.items() if key != "s2c_bn.num_batches_tracked")
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


# --- complete networks ------------------------------------------------------------------------------------------------


def made_up(name: str, shape: tuple[int, ...]) -> numpy.ndarray:
    """A weight computed from its name, scaled so that activations of a deep network stay in range."""
    kind = name.rsplit("/", 1)[1].rsplit(":", 1)[0]
    u = numpy.random.RandomState(zlib.crc32(name.encode())).random_sample(shape) - 0.5  # a frozen stream
    if kind in ("gamma", "moving_variance"):
        u = 1 + 0.4 * u
    elif kind in ("bias", "beta", "moving_mean"):
        u = 0.4 * u
    elif kind == "depthwise_kernel":
        u = u * (18 / (shape[0] * shape[1])) ** 0.5
    else:
        inputs = shape[3] * 9 / 4 if "conv2d_transpose" in name else numpy.prod(shape[:-1])
        u = u * (18 / inputs) ** 0.5
    return u.astype(numpy.float32)


@pytest.fixture(scope="module")
def networks() -> dict:
    return json.loads((FOLDER / "golden_keras_networks.json").read_text())


@pytest.mark.parametrize("name", ["btinet", "mbdi"])
def test_official_networks(networks, name):
    entry = networks[name]
    weights = {
        f"{layer}/{variable}": made_up(f"{layer}/{variable}", tuple(shape))
        for layer, variables in entry["variables"].items()
        for variable, shape in variables.items()
    }
    network = create_model(name, num_classes=3).eval()
    network.load_state_dict(state_dict_from_keras(network, weights))
    images = numpy.random.RandomState(0).random_sample((2, 128, 128, 3)).astype("f") * 8 - 4  # after Keras' x / 255
    with torch.no_grad():
        out = network(torch.tensor(images).permute(0, 3, 1, 2))
    wanted = torch.tensor(entry["seg_logits"])
    assert wanted.std() > 1
    assert (out.seg_logits[:, 0, ::7, ::7] - wanted).abs().max() <= 1e-4
    assert (out.cls_logits.softmax(1) - torch.tensor(entry["cls_probabilities"])).abs().max() <= 1e-5

    encoder = {k: v for k, v in weights.items() if k.startswith(("stem", "block", "top", "normalization"))}
    state = state_dict_from_keras(network.encoder, encoder)
    assert torch.equal(state["blocks.5.7.se.conv_reduce.weight"], network.encoder.blocks[5][7].se.conv_reduce.weight)
    ablated = create_model(name, num_classes=3, upa=False, device="meta")
    fewer = {k: v for k, v in weights.items() if not k.startswith(("upa", "uncertainty"))}
    assert "decoder.0.interaction.s2c_conv.weight" in state_dict_from_keras(ablated, fewer)
    with pytest.raises(ValueError, match=r"has no tensor for '(upa|uncertainty_attention)_d1/.*' and \d+ others"):
        state_dict_from_keras(ablated, weights)
    del fewer["clf_d3_features/clf_d3_features/bias:0"]
    with pytest.raises(
        ValueError, match=r"variable 'clf_d3_features/clf_d3_features/bias' for vectors\.2\.bias, got none"
    ):
        state_dict_from_keras(ablated, fewer)
    other = create_model(name, encoder="resnet18", decoder_dims=(32, 24, 16, 12), device="meta")
    with pytest.raises(
        ValueError, match="expected a tf_efficientnet as encoder, as in the official code, got resnet18"
    ):
        state_dict_from_keras(other, weights)


# --- rejected files ---------------------------------------------------------------------------------------------------


def test_missing_variables():
    weights = keras_weights("tim")
    del weights["task_interaction_d1/task_interaction_d1/task_interaction_d1_seg_gate/bias:0"]
    message = "expected a variable '.*task_interaction_d1_seg_gate/bias' for seg_gate.bias, got none"
    with pytest.raises(ValueError, match=message):
        state_dict_from_keras(TaskInteraction(4, 6), weights)
    weights = {k: v for k, v in keras_weights("residual_block_same").items() if "_multiscale_fusion" not in k}
    with pytest.raises(ValueError, match=r"expected a variable '.*_fusion/kernel' for hmsf.fuse.weight, got none"):
        state_dict_from_keras(ResidualBlock(8, 8), weights)
    with pytest.raises(ValueError, match=r"expected a variable .*conv2d/kernel' for tim.s2c_conv.weight, got none"):
        state_dict_from_keras(InteractionLevel(4, 6), keras_weights("upa_v1"))
    with pytest.raises(ValueError, match="kernel' for weight, got none"):
        state_dict_from_keras(nn.Linear(2, 3), {})


def test_left_over_variables():
    weights = keras_weights("residual_block_same")
    with pytest.raises(ValueError, match=r"ResidualBlock has no tensor for 'hct_res_s1/.*' and \d others"):
        state_dict_from_keras(ResidualBlock(8, 8, attention=False), weights)
    weights = keras_weights("upa_v1") | {"uncertainty_attention_d1/extra/kernel:0": numpy.zeros(1)}
    with pytest.raises(ValueError, match=r"has no tensor for 'uncertainty_attention_d1/extra/kernel:0'$"):
        state_dict_from_keras(UncertaintyProxyAttention(4, 6), weights)


def test_shapes():
    weights = keras_weights("tim")
    with pytest.raises(ValueError, match=r"conv2d/kernel:0'\]: expected shape \(1, 1, 6, 3\) for s2c_conv.weight, got"):
        state_dict_from_keras(TaskInteraction(6, 6), weights)
    kernel = {"dense/kernel:0": numpy.zeros((3, 2)), "dense/bias:0": numpy.zeros(3)}
    with pytest.raises(ValueError, match=r"expected shape \(2, 3\) for weight, got \(3, 2\)"):
        state_dict_from_keras(nn.Linear(2, 3), kernel)


def test_no_counterpart():
    with pytest.raises(ValueError, match=r"no counterpart of TaskInteraction\.s2c_attn"):
        state_dict_from_keras(TaskInteraction(4, 6, pooling="attention"), keras_weights("tim"))
    with pytest.raises(TypeError, match="weights: expected a mapping from names to arrays, got list"):
        state_dict_from_keras(SeparableConv(4, 4), [1])
