"""Volumes: a small 3-D network like SegMamba, whose deepest level scans forward, backward and across slices.

`python volumes_with_mamba.py 30` trains for 30 steps; needs matplotlib, draws volumes_with_mamba.png.
"""

import sys

import torch
import torch.nn.functional as F
from plain_pictures import draw_rows
from plain_training import fit, volumes
from torch import Tensor, nn

import mtlkit


class Scanner(nn.Module):
    """Downsamples, scans in three directions, upsamples; (B, 1, S, H, W) in and out."""

    def __init__(self, dim: int = 16, slices: int = 8) -> None:
        super().__init__()
        self.down = nn.Conv3d(1, dim, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(dim)
        self.mix = mtlkit.nn.Mamba(d_model=dim, d_state=8, bimamba_type="v3", nslices=slices)
        self.up = nn.ConvTranspose3d(dim, dim, 2, stride=2)
        self.head = nn.Conv3d(dim + 1, 1, 3, padding=1)

    def forward(self, volumes: Tensor) -> Tensor:
        """Returns logits."""
        x = F.silu(self.down(volumes))  # (B, C, S / 2, H / 2, W / 2)
        tokens = x.flatten(2).transpose(1, 2)  # (B, L, C), slice by slice
        x = x + self.mix(self.norm(tokens)).transpose(1, 2).unflatten(2, x.shape[2:])
        return self.head(torch.cat((F.silu(self.up(x)), volumes), 1))


def main() -> None:
    """Trains on 64 volumes, and shows an unseen one."""
    torch.manual_seed(0)
    model, steps = Scanner(), int(sys.argv[1]) if len(sys.argv) > 1 else 300
    fit(model, *volumes(64), steps, batch_size=2)
    scans, masks = volumes(1)
    with torch.no_grad():
        found = model(scans).sigmoid()
    rows = {"scan": (scans + 1) / 3, "truth": masks, "network": found}
    slices = {name: volume[0, 0, ::2] for name, volume in rows.items()}
    draw_rows("volumes_with_mamba.png", slices, "every second slice of a volume")


if __name__ == "__main__":
    main()
