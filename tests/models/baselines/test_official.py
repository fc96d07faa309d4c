"""Parts of the baselines compared with the results of their official code for the same weights.

The values come from the official code at the commits named below, with its parameters set by the same `fill`.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from mtlkit.models.baselines import densemtl, missformer, mtanet, mti_net
from mtlkit.models.baselines._base import PatchExpand


def wave(*shape: int, phase: float = 0.0) -> Tensor:
    return torch.sin(torch.arange(math.prod(shape)) * 0.7 + phase).reshape(shape)


def fill(module: nn.Module) -> nn.Module:
    """Sets all parameters to waves, in order, so that none is 0 or equal to another; those of norms are around 1."""
    for i, (name, parameter) in enumerate(module.named_parameters()):
        fan = parameter[0].numel() if parameter.dim() > 1 else 1
        values = torch.sin(torch.arange(parameter.numel()) * (0.5 + 0.01 * i) + i).reshape(parameter.shape)
        norm = parameter.dim() == 1 and name.endswith("weight")
        parameter.data.copy_(1 + 0.3 * values if norm else values / fan**0.5)
    return module.eval()


def bridge() -> Tensor:
    maps = [wave(1, 56 // 2**i, 56 // 2**i, 4 * f, phase=i) for i, f in enumerate(missformer.FACTORS)]
    return torch.cat([y.reshape(1, -1, 4) for y in fill(missformer._BridgeLayer(4))(maps)], 1)


def propagation() -> Tensor:
    maps = {task: wave(2, 16, 5, 3, phase=i) for i, task in enumerate(mti_net.TASKS)}
    found = fill(mti_net._Propagation(16))(maps)
    return torch.stack([found[task] for task in mti_net.TASKS])


def exchange() -> Tensor:
    return fill(densemtl._Exchange(8))(wave(2, 8, 8, 12), wave(2, 8, 8, 12, phase=1))


def aggregation() -> Tensor:
    maps = wave(2, 4, 2, 3), wave(2, 4, 4, 6, phase=1), wave(2, 4, 8, 12, phase=2)
    return fill(mtanet._Aggregation(4))(*maps)


# ZhifangDeng/MISSFormer 007424e, HuCaoFighting/Swin-Unet f48f623 (with MISSFormer's patch expansion),
# SimonVandenhende/Multi-Task-Learning-PyTorch ed3d9ac, astra-vision/DenseMTL 2884250, yatingling/MTANet 7a5f5d1
GOLDEN = {
    "MISSFormer, block": (
        lambda: fill(missformer._Block(8, 2, 2))(wave(2, 4, 6, 8)),
        [-1.14784, -0.55937, 0.67838, 1.37207, 1.05612, -3.61735],
        1.15211,
    ),
    "MISSFormer, bridge": (bridge, [-0.21055, -0.13627, 0.49618, 1.91294, 0.64195, 3.60262], 1.135489),
    "MISSFormer and Swin-Unet, expansion": (
        lambda: fill(PatchExpand(8, 2, 4))(wave(2, 3, 5, 8)),
        [1.8458, 0.85863, -0.54486, 0.81546, 0.08581, -1.51732],
        1.173676,
    ),
    "MISSFormer and Swin-Unet, last expansion": (
        lambda: fill(PatchExpand(8, 4, 8))(wave(2, 3, 5, 8)),
        [2.06371, -1.5588, -1.05748, 0.05252, 0.26917, 0.17098],
        1.073372,
    ),
    "MTI-Net, feature propagation": (
        propagation,
        [0.0, 0.98343, -0.84692, -0.92628, 0.74335, 0.19663],
        0.644461,
    ),
    "DenseMTL, exchange": (exchange, [0.66349, 1.15334, 0.56316, 0.78982, -0.93073, 0.07524], 0.833244),
    "MTANet, receptive field": (
        lambda: fill(mtanet._ReceptiveField(6, 4))(wave(2, 6, 7, 9)),
        [0.15927, 0.01074, 0.0496, 0.0, 0.54415, 0.0496],
        0.145674,
    ),
    "MTANet, aggregation": (aggregation, [0.66882, 0.70381, 0.68415, 0.57377, 0.69986, 0.54625], 0.645121),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_same_as_the_official_code(name):
    run, some, mean = GOLDEN[name]
    with torch.no_grad():
        values = run().flatten()
    places = torch.linspace(0, values.numel() - 1, 6).long()
    torch.testing.assert_close(values[places], torch.tensor(some), rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(values.abs().mean(), torch.tensor(mean), rtol=1e-5, atol=1e-6)
