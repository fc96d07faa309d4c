"""A layer in your own network: a U-Net with SS2D at its deepest level learns to segment lesions of phantoms.

`python layer_in_your_unet.py 30` trains for 30 steps; needs the extra `train`, draws layer_in_your_unet.png.
"""

import sys

import torch
import torch.nn.functional as F
from plain_pictures import draw_rows
from plain_training import fit, phantoms
from torch import Tensor, nn

import mtlkit


def convolve(channels_in: int, channels: int) -> nn.Sequential:
    """A convolution with batch norm and ReLU."""
    return nn.Sequential(nn.Conv2d(channels_in, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())


class UNet(nn.Module):
    """Two levels; `mix` is the only change to the U-Net."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.down, self.deep, self.merge = convolve(1, dim), convolve(dim, 2 * dim), convolve(2 * dim, dim)
        self.norm = nn.LayerNorm(2 * dim)
        self.mix = mtlkit.nn.SS2D(d_model=2 * dim)  # (B, H, W, C) in and out: every pixel sees the whole image
        self.up, self.head = nn.ConvTranspose2d(2 * dim, dim, 2, 2), nn.Conv2d(dim, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) to logits of the same size."""
        skip = self.down(images)
        x = self.deep(F.max_pool2d(skip, 2)).permute(0, 2, 3, 1)  # a channels-last view
        x = (x + self.mix(self.norm(x))).permute(0, 3, 1, 2)
        return self.head(self.merge(torch.cat((self.up(x), skip), 1)))


def train(steps: int) -> UNet:
    """Trains on 96 phantoms."""
    torch.manual_seed(0)
    model = UNet()
    fit(model, *phantoms(range(96)), steps)
    return model


def main() -> None:
    """Trains, and draws six unseen phantoms: the image, its mask, and the network's mask."""
    model = train(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
    images, masks = phantoms(range(1000, 1006))
    with torch.no_grad():
        found = model(images).sigmoid()
    draw_rows("layer_in_your_unet.png", {"phantom": images[:, 0], "lesion": masks[:, 0], "network": found[:, 0]})


if __name__ == "__main__":
    main()
