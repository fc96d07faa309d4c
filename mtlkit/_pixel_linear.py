"""Linear layers over the channels of every pixel or token, channels-last."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pixel_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear for an image or a sequence: (B, H, W, C_in) to (B, H, W, C_out), or (B, L, C_in) to (B, L, C_out).

    In float32 on a CPU it runs as a 1 x 1 convolution in oneDNN, whereas F.linear calls the BLAS. Measured on an AMD
    EPYC with AVX-512, this is 1.3 to 2 times as fast for the projections of MedMamba-T on 14 x 14 pixels and more, and
    equally fast on 7 x 7.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.dim() not in (3, 4):
        return F.linear(x, weight, bias)
    if x.dim() == 3:
        return pixel_linear(x[:, None], weight, bias)[:, 0]
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


class PixelLinear(nn.Linear):
    """An nn.Linear for images and sequences, with the same parameters: (B, ..., C_in) to (B, ..., C_out)."""

    def forward(self, x: Tensor) -> Tensor:
        """Projects the channels of every pixel."""
        return pixel_linear(x, self.weight, self.bias)
