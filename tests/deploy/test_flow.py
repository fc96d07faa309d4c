"""Which layers of a network read the outputs of others."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit.deploy._flow import Flow


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.act = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU(inplace=True)
        self.second, self.shared = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
        self.third, self.last = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.act(self.norm(self.first(x)))
        y = y + self.shared(self.second(input=y))
        skip = self.third(y)
        return {"y": F.relu(self.shared(skip)) + skip, "last": self.last(y)}


def flow_of(model: nn.Module) -> Flow:
    flow = Flow(model.eval(), lambda layer: not list(layer.children()))
    with torch.no_grad():
        flow.run((torch.rand(1, 2, 3, 3),))
    return flow


def test_next():
    model = Branches()
    flow = flow_of(model)
    assert flow.next_of(model.first) is model.norm
    assert flow.next_of(model.norm) is model.act
    assert flow.next_of(model.act) is None  # two layers read its output
    assert flow.next_of(model.second) is None  # called by name
    assert flow.next_of(model.third) is None  # its output is also added
    assert flow.next_of(model.last) is None  # its output leaves the network
    assert flow.next_of(model.shared) is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_is_looked_at_has_readers():
    model, seen = Branches(), []
    model.norm.register_forward_hook(lambda *call: seen.append(call))
    flow = flow_of(model)
    assert flow.next_of(model.first) is None
    assert len(seen) == 1
    assert len(model.norm._forward_hooks) == 1


def test_layers_that_never_run():
    model = Branches()
    assert flow_of(nn.Sequential(nn.Identity())).next_of(model.first) is None
