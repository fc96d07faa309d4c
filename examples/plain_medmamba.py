"""MedMamba as published code often is: plain PyTorch, published names, one step of the scan per token.

It is an example of a model that you bring; `accelerate_medmamba.py`, the tests and the benchmarks accelerate it.
"""

# pyright: basic

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def scan_token_by_token(u, delta, A, B, C, D, delta_bias) -> Tensor:
    """A selective scan with softplus, as in code without a kernel: u, delta (B, D, L); B, C (B, G, N, L)."""
    dt = F.softplus(delta + delta_bias[:, None])  # (B, D, L)
    B, C = (v.repeat_interleave(u.shape[1] // v.shape[1], 1) for v in (B, C))  # (B, D, N, L)
    decay = torch.exp(torch.einsum("bdl,dn->bdln", dt, A))  # (B, D, L, N)
    push = torch.einsum("bdl,bdnl,bdl->bdln", dt, B, u)  # (B, D, L, N)
    h, ys = torch.zeros_like(decay[:, :, 0]), []  # (B, D, N)
    for decay_t, push_t, C_t in zip(decay.unbind(2), push.unbind(2), C.unbind(3), strict=True):  # (B, D, N)
        h = decay_t * h + push_t
        ys.append((h * C_t).sum(-1))
    return torch.stack(ys, -1) + u * D[:, None]  # (B, D, L)


class SS2D(nn.Module):
    """Parameters and computation of the layer that MedMamba and VM-UNet share with the first VMamba."""

    def __init__(self, d_model: int, d_state: int = 16, expand: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.dt_rank = expand * d_model, d_state, math.ceil(d_model / 16)
        D, N, R = self.d_inner, d_state, self.dt_rank
        self.in_proj = nn.Linear(d_model, 2 * D, bias=False)
        self.conv2d = nn.Conv2d(D, D, 3, padding=1, groups=D)
        self.act = nn.SiLU()
        self.x_proj_weight = nn.Parameter(D**-0.5 * (2 * torch.rand(4, R + 2 * N, D) - 1))
        self.dt_projs_weight = nn.Parameter(R**-0.5 * (2 * torch.rand(4, D, R) - 1))
        step = torch.exp(torch.rand(4, D) * math.log(100) + math.log(1e-3))
        self.dt_projs_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.A_logs = nn.Parameter(torch.arange(1.0, N + 1).log().repeat(4 * D, 1))
        self.Ds = nn.Parameter(torch.ones(4 * D))
        for parameter in (self.A_logs, self.Ds):
            parameter._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue] - read by training code
        self.forward_core = self.forward_corev0
        self.out_norm = nn.LayerNorm(D)
        self.out_proj = nn.Linear(D, d_model, bias=False)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else None

    def forward_corev0(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four directions, each in row-major order again: (B, D, H, W) to four times (B, D, L)."""
        batch, D, H, W = x.shape
        hwwh = torch.stack((x.flatten(2), x.transpose(2, 3).flatten(2)), 1)  # (B, 2, D, L)
        xs = torch.cat((hwwh, hwwh.flip(-1)), 1)  # (B, 4, D, L)
        x_dbl = torch.einsum("bkdl,kcd->bkcl", xs, self.x_proj_weight)
        dts, Bs, Cs = x_dbl.split((self.dt_rank, self.d_state, self.d_state), 2)
        dts = torch.einsum("bkrl,kdr->bkdl", dts, self.dt_projs_weight)
        ys = scan_token_by_token(
            xs.reshape(batch, 4 * D, -1),
            dts.reshape(batch, 4 * D, -1),
            -torch.exp(self.A_logs),
            Bs,
            Cs,
            self.Ds,
            self.dt_projs_bias.reshape(-1),
        ).view(batch, 4, D, -1)
        back = ys[:, 2:].flip(-1)  # (B, 2, D, L)
        down, up = (v.view(batch, D, W, H).transpose(2, 3).flatten(2) for v in (ys[:, 1], back[:, 1]))
        return ys[:, 0], back[:, 0], down, up

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) in and out."""
        batch, H, W, _ = x.shape
        x, z = self.in_proj(x).chunk(2, -1)
        x = self.act(self.conv2d(x.permute(0, 3, 1, 2).contiguous()))  # (B, D, H, W)
        first, *others = self.forward_core(x)
        y = sum(others, first).transpose(1, 2).reshape(batch, H, W, -1)
        y = self.out_proj(self.out_norm(y) * F.silu(z))
        return y if self.dropout is None else self.dropout(y)


class SSConvSSM(nn.Module):
    """Convolutions on half of the channels and SS2D on the other half, shuffled, plus the input."""

    def __init__(self, dim: int, d_state: int = 16) -> None:
        super().__init__()
        half = dim // 2
        self.ln_1 = nn.LayerNorm(half)
        self.self_attention = SS2D(half, d_state)
        self.conv33conv33conv11 = nn.Sequential(
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 3, padding=1),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, half, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) in and out."""
        left, right = x.chunk(2, -1)
        left = self.conv33conv33conv11(left.permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1)
        return torch.stack((left, self.self_attention(self.ln_1(right))), -1).flatten(-2) + x


class PatchMerging2D(nn.Module):
    """Half the rows and columns, twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H / 2, W / 2, 2 C)."""
        x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
        quarters = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(quarters, -1)))


class Stage(nn.Module):
    """Blocks at one resolution, and the downsampling to the next stage."""

    def __init__(self, depth: int, dim: int, d_state: int, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SSConvSSM(dim, d_state) for _ in range(depth))
        self.downsample = None if last else PatchMerging2D(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same, or, except in the last stage, to (B, H / 2, W / 2, 2 C)."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class MedMamba(nn.Module):
    """The network: patches of 4 x 4, four stages, the mean over pixels, a linear head."""

    def __init__(self, num_classes=1000, depths=(2, 2, 4, 2), dims=(96, 192, 384, 768), d_state=16) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dims[0], 4, 4), "norm": nn.LayerNorm(dims[0])})
        self.layers = nn.ModuleList()
        for depth, dim in zip(depths, dims, strict=True):
            self.layers.append(Stage(depth, dim, d_state, last=dim == dims[-1]))
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to logits (B, num_classes)."""
        x = self.patch_embed["norm"](self.patch_embed["proj"](images).permute(0, 2, 3, 1))  # (B, H/4, W/4, C)
        for stage in self.layers:
            x = stage(x)
        return self.head(x.mean((1, 2)))
