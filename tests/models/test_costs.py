"""Costs of networks: operators count by their formulas, and the network stays unchanged."""

import pytest
from torch import Tensor, nn

from mtlkit.models import count_costs, create_model
from mtlkit.nn import SS2D
from mtlkit.ops import directional_scan, orders
from mtlkit.testing import DirectionalScanShape


def test_convolutions_products_and_norms():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 5))
    costs = count_costs(network, (2, 3, 4, 4))
    assert costs.parameters == costs.computing == sum(p.numel() for p in network.parameters())
    assert costs.flops == 2 * (8 * 16 * 27 + 4 * 8 * 16 + 5 * 8 * 16)


def test_parameters_that_nothing_uses():
    class Part(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.unused = nn.Linear(10, 10)

    costs = count_costs(Part(), (1, 3))
    assert (costs.parameters, costs.computing) == (118, 8)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_scans_count_as_vmamba_counts_them(device):
    layer = SS2D(8, d_state=4, device=device)  # 16 channels in each of four directions, with a time step of rank 1
    height, width = 5, 6
    length = height * width
    projections = length * (8 * 32 + 16 * 4 * (1 + 2 * 4) + 16 * 8)
    scan = 64 * length * (9 * 4 + 1) + 64 * length
    assert count_costs(layer, (1, height, width, 8)).flops == projections + 9 * 16 * length + scan


def test_directions_count_by_their_steps():
    class Scan(nn.Module):
        def __init__(self, order: orders.ScanOrder) -> None:
            super().__init__()
            shape = DirectionalScanShape(1, 4, 8, 24, 3, 2)
            self.order, self.parts = order, nn.ParameterDict(shape.inputs(device="meta"))

        def forward(self, u: Tensor) -> Tensor:
            return directional_scan(**{**self.parts, "u": u}, order=self.order)

    for order in (orders.cross(4, 6), orders.atrous(4, 6), orders.snake(4, 6)):
        channels = 4 * 8 * order.steps
        assert count_costs(Scan(order), (1, 8, 24)).flops == channels * (9 * 3 + 1) + channels * 2


def test_the_network_stays_as_it_was():
    network = create_model("btinet", encoder="resnet10t", decoder_dims=(8, 8, 8, 8), clf_dim=8, device="meta")
    frozen = next(network.parameters()).requires_grad_(False)
    costs = count_costs(network, (1, 3, 64, 64))
    assert costs.computing == costs.parameters
    assert network.training
    assert not frozen.requires_grad
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_direction_that_is_cut_costs_no_projection():
    small = {"encoder": "resnet10t", "decoder_dims": (8, 8, 8, 8), "clf_dim": 8, "device": "meta"}
    both, one = (
        count_costs(create_model("btinet", **small, **options), (1, 3, 64, 64))
        for options in ({}, {"directions": ("clf_to_seg",)})
    )
    assert one.flops < both.flops
    assert one.computing == one.parameters < both.parameters
