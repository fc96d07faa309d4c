import torch
from torch import nn

from mtlkit._factory import Factory


def test_layers_and_functions_take_device_and_dtype():
    factory = Factory(device="meta", dtype=torch.float64)
    for made in (nn.Linear(2, 3, **factory).weight, torch.empty(2, **factory)):
        assert made.device.type == "meta"
        assert made.dtype == torch.float64
