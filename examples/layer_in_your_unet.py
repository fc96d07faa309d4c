"""A layer in your own network: a U-Net that mixes its deepest maps with SS2D, trained to find bright discs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtlkit


def convolve(channels_in: int, channels: int) -> nn.Sequential:
    """A convolution with batch norm and ReLU."""
    return nn.Sequential(nn.Conv2d(channels_in, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())


class UNet(nn.Module):
    """Two levels; what is new is `mix`."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.down = convolve(1, dim)
        self.deep = convolve(dim, 2 * dim)
        self.norm = nn.LayerNorm(2 * dim)
        self.mix = mtlkit.nn.SS2D(d_model=2 * dim)  # (B, H, W, C) in and out: every pixel sees the whole image
        self.up = nn.ConvTranspose2d(2 * dim, dim, 2, 2)
        self.merge = convolve(2 * dim, dim)
        self.head = nn.Conv2d(dim, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) to logits of the same size."""
        skip = self.down(images)
        x = self.deep(F.max_pool2d(skip, 2)).permute(0, 2, 3, 1)  # channels-last, a view
        x = (x + self.mix(self.norm(x))).permute(0, 3, 1, 2)
        return self.head(self.merge(torch.cat((self.up(x), skip), 1)))


def discs(count: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """Noisy images of one disc each, and its mask."""
    y, x = torch.arange(size)[:, None], torch.arange(size)
    centre, radius = torch.randint(8, size - 8, (2, count, 1, 1)), torch.randint(4, 8, (count, 1, 1))
    masks = (((y - centre[0]) ** 2 + (x - centre[1]) ** 2) < radius**2).float()[:, None]
    return masks + 0.5 * torch.randn_like(masks), masks


def main() -> None:
    """Thirty steps of training."""
    torch.manual_seed(0)
    model = UNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(31):
        images, masks = discs(8)
        loss = F.binary_cross_entropy_with_logits(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step:2}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
