"""Converts weights of the official TensorFlow code of MBDI and BTI-Net to the names and layouts of this package.

Keras calls a variable `layer/part/variable:0`. A part that the official code names ends in that name
("bti_res_d1_conv1"); a part without a name is called by its kind and a counter ("dense", "dense_1") in order of
creation. This module lists both for each layer of mtlkit.nn, and the layouts:

    kernel of a convolution             (kh, kw, in, out)      weight (out, in, kh, kw)
    kernel of a transposed convolution  (kh, kw, out, in)      weight (in, out, kh, kw)
    kernel of a depthwise convolution   (kh, kw, in, 1)        weight (in, 1, kh, kw)
    kernel of a dense layer             (in, out)              weight (out, in)
    gamma, beta, moving_mean, moving_variance                  weight, bias, running_mean, running_var
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from mtlkit import nn as layers
from mtlkit.models.encoders import Encoder
from mtlkit.models.mbdi import MBDI

# The parts of a layer, in the order in which Keras creates them: the end of the part's name, from an underscore on, #
# or its kind if it has no name.
_FUSION = {
    "sep_d1": "_sep_conv_1",
    "sep_d2": "_sep_conv_2",
    "sep_d4": "_sep_conv_4",
    "att_fc1": "dense",
    "att_fc2": "dense",
    "fuse": "_fusion",
}
_ATTENTION = {"ch_fc1": "dense", "ch_fc2": "dense", "spatial": "_spatial"}
_PARTS: dict[type[nn.Module], dict[str, str]] = {
    layers.MultiScaleFusion: _FUSION,
    layers.DualPathAttention: _ATTENTION,
    layers.ResidualBlock: {
        "conv1": "_conv1",
        "bn1": "_bn1",
        "conv2": "_conv2",
        "bn2": "_bn2",
        **{f"hmsf.{path}": part for path, part in _FUSION.items()},
        **{f"attn.{path}": part for path, part in _ATTENTION.items()},
        "proj": "_proj",
    },
    layers.AttentionGate: {
        "x_proj": "_x_transform",
        "g_proj": "_g_transform",
        "ctx1": "separable_conv2d",
        "ctx2": "separable_conv2d",
        "psi": "conv2d",
    },
    layers.TaskInteraction: {
        "s2c_conv": "conv2d",
        "s2c_dense": "dense",
        "s2c_bn": "batch_normalization",
        "c2s_dense": "dense",
        "seg_gate": "_seg_gate",
        "clf_gate": "_clf_gate",
    },
    layers.UncertaintyProxyAttention: {"seg_proj": "_sp", "clf_proj": "_cp", "fc1": "dense", "fc2": "dense"},
}
_COUNTED = re.compile(r"(dense|conv2d|separable_conv2d|batch_normalization|conv2d_transpose)(?:_(\d+))?")

# The convolutions and norms of EfficientNet, by timm's names; the first stage's blocks have no expansion.
_FIRST_STAGE = {"conv_dw": "dwconv", "bn1": "bn", "conv_pw": "project_conv", "bn2": "project_bn"}
_STAGE = {
    "conv_pw": "expand_conv",
    "bn1": "expand_bn",
    "conv_dw": "dwconv",
    "bn2": "bn",
    "conv_pwl": "project_conv",
    "bn3": "project_bn",
}
_SQUEEZE = {"se.conv_reduce": "se_reduce", "se.conv_expand": "se_expand"}
_STEM_AND_TOP = {"conv_stem": "stem_conv", "bn1": "stem_bn", "conv_head": "top_conv", "bn2": "top_bn"}

# --- variables of a part ----------------------------------------------------------------------------------------------

_CONVOLUTION = (3, 2, 0, 1)  # axes of Keras in the order of PyTorch
_DEPTHWISE = (2, 3, 0, 1)
_DENSE = (1, 0)
_VECTOR = (0,)


def _variables(part: nn.Module) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Keras' name of each tensor of a part, and the order of its axes."""
    if isinstance(part, layers.SeparableConv):
        return {
            "depthwise.weight": ("depthwise_kernel", _DEPTHWISE),
            "pointwise.weight": ("pointwise_kernel", _CONVOLUTION),
            "pointwise.bias": ("bias", _VECTOR),
        }
    if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
        names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        return {ours: (theirs, _VECTOR) for ours, theirs in names.items()}
    if isinstance(part, nn.Linear):
        kernel = ("kernel", _DENSE)
    elif isinstance(part, nn.Conv2d) and part.groups > 1:
        kernel = ("depthwise_kernel", _DEPTHWISE)
    else:
        kernel = ("kernel", _CONVOLUTION)
    return {"weight": kernel} if part.bias is None else {"weight": kernel, "bias": ("bias", _VECTOR)}


_LEAVES = (layers.SeparableConv, nn.BatchNorm1d, nn.BatchNorm2d, nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def _leaves(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The parts of a layer that have variables, by path."""
    if isinstance(module, _LEAVES):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _leaves(child, f"{path}.{name}" if path else name)


# --- names ------------------------------------------------------------------------------------------------------------


def _split(name: str) -> tuple[str, str, str]:
    """Layer, part and variable of a Keras name; without a part, it is the layer itself."""
    layer, *inner, variable = name.removeprefix("model_weights/").rsplit(":", 1)[0].split("/")
    return layer, inner[-1] if inner else layer, variable


def _count(part: str) -> tuple[str, int]:
    """Kind and number of an unnamed part; name and 0 of a named part."""
    counted = _COUNTED.fullmatch(part)
    return (counted[1], int(counted[2] or 0)) if counted else (part, 0)


def _parts_of_layer(module: nn.Module, names: list[str]) -> dict[str, str | None]:
    """The name in `names` for each part of our layer, by path; None for a missing one."""
    known = _PARTS.get(type(module))
    if known is None:  # a layer that is itself a part
        return {path: names[0] if names else None for path, _ in _leaves(module)}
    present = dict(_leaves(module))
    unknown = [path for path in present if path not in known]
    if unknown:
        raise ValueError(f"module: the official code has no counterpart of {type(module).__name__}.{unknown[0]}")
    counted = sorted((name for name in names if _COUNTED.fullmatch(name)), key=_count)
    queues = {kind: iter([name for name in counted if _count(name)[0] == kind]) for kind in set(known.values())}
    found: dict[str, str | None] = {}
    for path, part in known.items():
        if path not in present:
            continue
        if part.startswith("_"):
            found[path] = next((name for name in names if name.endswith(part)), None)
        else:
            found[path] = next(queues[part], None)
    return found


# --- networks ---------------------------------------------------------------------------------------------------------


def _encoder_layers(encoder: Encoder) -> dict[str, str]:
    """The path of each part and its Keras name."""
    if not encoder.name.startswith("tf_efficientnet"):
        raise ValueError(f"module: expected a tf_efficientnet as encoder, as in the official code, got {encoder.name}")
    found: dict[str, str] = {}
    for path, _ in _leaves(encoder):
        if path in _STEM_AND_TOP:
            found[path] = _STEM_AND_TOP[path]
            continue
        _, stage, block, part = path.split(".", 3)
        kinds = (_STAGE if int(stage) else _FIRST_STAGE) | _SQUEEZE
        found[path] = f"block{int(stage) + 1}{chr(ord('a') + int(block))}_{kinds[part]}"
    return found


def _network_layers(network: MBDI) -> dict[str, str]:
    """The path of each layer and a pattern for its Keras name, or its kind if it has no name."""
    found = {f"encoder.{path}": name for path, name in _encoder_layers(network.encoder).items()}
    for i, scale in enumerate(("s1", "s2", "s3", "s4", "bridge")):
        found[f"refine.{i}"] = rf"(hct|bti)_res_{scale}"
    for i, level in enumerate(network.decoder):
        found |= {
            f"decoder.{i}.up": "conv2d_transpose",
            f"decoder.{i}.gate": f"att_gate_d{i + 1}",
            f"decoder.{i}.block": rf"(hct|bti)_res_d{i + 1}",
            f"vectors.{i}": f"clf_d{i + 1}_features",
        }
        if isinstance(level.interaction, layers.InteractionLevel):
            found[f"decoder.{i}.interaction.tim"] = f"task_interaction_d{i + 1}"
            found[f"decoder.{i}.interaction.upa"] = rf"(upa|uncertainty_attention)_d{i + 1}"
        elif level.interaction is not None:
            found[f"decoder.{i}.interaction"] = f"task_interaction_d{i + 1}"
    head = {
        "seg_head.0": "conv2d_transpose",
        "seg_head.1": "conv2d",
        "seg_head.3": "segmentation_output",
        "cls_head.0": "dense",
        "cls_head.2": "batch_normalization",
        "cls_head.4": "classification_output",
    }
    return found | head


def _layers(module: nn.Module) -> dict[str, str] | None:
    """The layers of a module that corresponds to several Keras layers; None if it is a single one."""
    if isinstance(module, MBDI):
        return _network_layers(module)
    if isinstance(module, Encoder):
        return _encoder_layers(module)
    if isinstance(module, layers.InteractionLevel):
        return {"tim": r"task_interaction.*", "upa": r"(upa|uncertainty).*"}
    return None


def _layer_names(wanted: dict[str, str], names: list[str]) -> dict[str, str | None]:
    """The Keras layer for each of our layers, by path; None for a missing one."""
    counted = sorted((name for name in names if _COUNTED.fullmatch(name)), key=_count)
    queues = {kind: iter([n for n in counted if _count(n)[0] == kind]) for kind in set(wanted.values())}
    found: dict[str, str | None] = {}
    for path, name in wanted.items():
        if _COUNTED.fullmatch(name):
            found[path] = next(queues[name], None)
        else:
            pattern = re.compile(name)
            found[path] = next((n for n in names if pattern.fullmatch(n)), None)
    return found


# --- public -----------------------------------------------------------------------------------------------------------


def state_dict_from_keras(module: nn.Module, weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of a layer or a network from the weights of its official Keras counterpart.

    The keys of `weights` are as in an .h5 file saved by Keras, layer by layer; for a model in memory, use

        {f"{layer.name}/{w.name}": w.numpy() for layer in model.layers for w in layer.weights}

    with `w.path` instead of `w.name` in Keras 3. The name of a weight is not enough: many layers have a
    "dense/kernel:0".

    Keras' EfficientNet starts with layers that rescale the image x to (x / 255 - mean) / std, with ImageNet's mean and
    standard deviation if it was created with ImageNet weights, otherwise 0 and 1. Our networks do not, so give them
    images rescaled in this way. The official code feeds Keras images in [0, 1], not in [0, 255].

    Args:
        module: MBDI or BTINet, Encoder (an EfficientNet), or a layer: MultiScaleFusion, DualPathAttention,
            ResidualBlock, AttentionGate, TaskInteraction, UncertaintyProxyAttention, InteractionLevel, SeparableConv,
            ConvUpsample, or a Linear, Conv2d or BatchNorm of PyTorch; with the sizes of the official one. It is not
            changed.
        weights: arrays by Keras name, exactly those of this module.

    Returns:
        The complete state dict for `module.load_state_dict`, in the dtypes of the module. Batch counters and the
        running signals of UPA, which Keras does not have, are taken from `module`.

    Raises:
        ValueError: a variable is missing, has another shape, or is left over.
        TypeError: `weights` is not a mapping.

    Example:
        >>> import numpy, torch, mtlkit
        >>> gate = torch.nn.Linear(2, 3)
        >>> weights = {"dense/dense/kernel:0": numpy.ones((2, 3)), "dense/dense/bias:0": numpy.zeros(3)}
        >>> gate.load_state_dict(mtlkit.models.state_dict_from_keras(gate, weights))
        <All keys matched successfully>
        >>> gate(torch.ones(2)).tolist()
        [2.0, 2.0, 2.0]
    """
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights: expected a mapping from names to arrays, got {type(weights).__name__}")
    by_layer: dict[str, list[str]] = {}
    for name in weights:
        by_layer.setdefault(_split(name)[0], []).append(name)
    by_layer.pop("normalization", None)  # of the image
    left = {name: None for names in by_layer.values() for name in names}  # in order

    wanted = _layers(module)
    state: dict[str, Tensor] = {}
    if wanted is None:
        pairs = [("", module, "...", list(left))]
    else:
        found = _layer_names(wanted, list(by_layer))
        pairs = [
            (f"{p}.", module.get_submodule(p), wanted[p], by_layer.get(name or "", [])) for p, name in found.items()
        ]
    for prefix, layer, shown, names in pairs:
        for key, name, value in _layer_tensors(layer, prefix, shown, names, weights):
            state[key] = value
            del left[name]
    if left:
        others = f" and {len(left) - 1} others" if len(left) > 1 else ""
        raise ValueError(f"weights: {type(module).__name__} has no tensor for {next(iter(left))!r}{others}")
    kept = {key: value.detach().clone() for key, value in module.state_dict().items() if key not in state}
    return state | kept


def _layer_tensors(
    layer: nn.Module, prefix: str, shown: str, names: list[str], weights: Mapping[str, Any]
) -> Iterator[tuple[str, str, Tensor]]:
    """The tensors of a layer: our key, Keras' name, the value."""
    by_part: dict[tuple[str | None, str], str]  # by part and variable
    by_part = {_split(name)[1:]: name for name in names}
    parts = _parts_of_layer(layer, list(dict.fromkeys(_split(name)[1] for name in names)))
    leaves = dict(_leaves(layer))
    own = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    for path, part in parts.items():
        for tensor, (variable, axes) in _variables(leaves[path]).items():
            inner = f"{path}.{tensor}" if path else tensor
            # Keras 3 calls the kernel of a DepthwiseConv2D, but not that of a SeparableConv2D, "kernel"
            name = by_part.get((part, variable)) or by_part.get((part, variable.removeprefix("depthwise_")))
            if name is None:
                missing = f"*{_PARTS[type(layer)][path]}" if path else "*"
                where = f"{shown}/{part or missing}/{variable}"
                raise ValueError(f"weights: expected a variable {where!r} for {prefix}{inner}, got none")
            have = tuple(getattr(weights[name], "shape", ()))
            expected = tuple(own[inner].shape[axes.index(i)] for i in range(len(axes)))
            if have != expected:
                raise ValueError(f"weights[{name!r}]: expected shape {expected} for {prefix}{inner}, got {have}")
            value = torch.from_numpy(numpy.array(weights[name])).permute(axes)  # a copy
            yield prefix + inner, name, value.to(own[inner].dtype).contiguous()
