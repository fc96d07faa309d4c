"""Shared by the scripts that train: random images and volumes, and the training loop."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit.data.synthetic import draw_ultrasound


def fit(model: nn.Module, images: Tensor, masks: Tensor, steps: int, batch_size: int = 8) -> None:
    """Trains on random batches, and prints the loss thirty times."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps + 1):
        batch = torch.randperm(len(images))[:batch_size]
        loss = F.binary_cross_entropy_with_logits(model(images[batch]), masks[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(steps // 30, 1) == 0:
            print(f"step {step:3}: loss {loss.item():.3f}")
    model.eval()


def phantoms(seeds: range, size: int = 64) -> tuple[Tensor, Tensor]:
    """Synthetic ultrasound images of lesions, and their masks, (B, 1, H, W) in [0, 1]; needs the extra `train`."""
    drawn = [draw_ultrasound(("benign", "malignant")[seed % 2], size, seed) for seed in seeds]
    images, masks = (torch.stack([torch.tensor(pair[i]) for pair in drawn])[:, None] / 255 for i in (0, 1))
    return images, masks


def volumes(count: int, slices: int = 16, size: int = 32) -> tuple[Tensor, Tensor]:
    """Noise with an ellipsoid that is slightly brighter, hard to see in one slice, and its mask, (B, 1, S, H, W)."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (slices, size, size)), indexing="ij")
    centre, radius = 0.8 * torch.rand(3, count, 1, 1, 1) - 0.4, 0.25 + 0.3 * torch.rand(3, count, 1, 1, 1)
    distance = torch.stack([((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radius, strict=True)]).sum(0)
    masks = (distance < 1).float()[:, None]
    return masks + torch.randn_like(masks), masks
