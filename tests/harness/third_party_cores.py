"""Scans of other codebases that do more, or less, than an SS2D layer, restated with the published names."""

import math

import torch
import torch.nn.functional as F
from plain_medmamba import scan_token_by_token
from torch import Tensor, nn

from harness.third_party_models import perturbed


class Scanning(nn.Module):
    """The parameters of K directions, and their scan of prepared sequences."""

    def __init__(self, dim: int, d_state: int, directions: int) -> None:
        super().__init__()
        D, N, R, K = dim, d_state, math.ceil(dim / 16), directions
        self.x_proj_weight = nn.Parameter(torch.randn(K, R + 2 * N, D) * D**-0.5)
        self.dt_projs_weight = nn.Parameter(0.1 * torch.rand(K, D, R))
        self.dt_projs_bias = nn.Parameter(0.1 * torch.rand(K, D))
        self.A_logs = nn.Parameter(torch.arange(1.0, N + 1).log().repeat(K * D, 1))
        self.Ds = nn.Parameter(torch.ones(K * D))

    def scanned(self, xs: Tensor, k: slice = slice(None), prompt: Tensor | float = 0.0) -> Tensor:
        """(B, K, D, L) in and out, for the directions k."""
        D, N = xs.shape[2], self.A_logs.shape[1]
        weight = self.x_proj_weight.view(-1, self.x_proj_weight.shape[1], D)[k]
        rows = torch.einsum("bkdl,kcd->bkcl", xs, weight)
        dts, Bs, Cs = rows.split((rows.shape[2] - 2 * N, N, N), 2)
        dts = torch.einsum("bkrl,kdr->bkdl", dts, self.dt_projs_weight[k])
        A, Ds = -torch.exp(self.A_logs.view(-1, D, N)[k]), self.Ds.view(-1, D)[k]
        weights = A.flatten(0, 1), Bs, Cs + prompt, Ds.flatten(), self.dt_projs_bias[k].flatten()
        return scan_token_by_token(xs.flatten(1, 2), dts.flatten(1, 2), *weights).view(xs.shape)


class SegMANScan(Scanning):
    """Four directions of a map, (B, C, H, W) to (B, C, L)."""

    def __init__(self, dim: int, ratio: int, d_state: int) -> None:
        super().__init__(dim * ratio, d_state, 4)
        self.x_proj_weight = nn.Parameter(
            self.x_proj_weight.detach().flatten(0, 1).unsqueeze(-1)
        )  # (K (R + 2 N), D, 1)
        if ratio != 1:
            self.proj, self.yproj = nn.Linear(dim, dim * ratio), nn.Linear(dim * ratio, dim)

    def scanned(self, xs: Tensor, *_: object) -> Tensor:
        kept = self.x_proj_weight
        try:
            self._parameters["x_proj_weight"] = kept.view(4, -1, kept.shape[1])
            return super().scanned(xs)
        finally:
            self._parameters["x_proj_weight"] = kept

    def forward(self, x: Tensor, to_dtype: bool = False) -> Tensor:
        x = self.proj(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if hasattr(self, "proj") else x
        H, W = x.shape[2:]
        two = torch.stack((x.flatten(2), x.transpose(2, 3).flatten(2)), 1)
        ys = self.scanned(torch.cat((two, two.flip(-1)), 1))
        ys = ys[:, :2] + ys[:, 2:].flip(-1)
        y = ys[:, 0] + ys[:, 1].unflatten(-1, (W, H)).transpose(-2, -1).flatten(-2)
        y = self.yproj(y.transpose(1, 2)).transpose(1, 2) if hasattr(self, "yproj") else y
        return y.to(x.dtype) if to_dtype else y


class PromptedScan(Scanning):
    """Sorted tokens (B, L, D), with an addition to C (B, L, N)."""

    def __init__(self, dim: int, d_state: int) -> None:
        super().__init__(dim, d_state, 1)

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        return self.scanned(x.transpose(1, 2).unsqueeze(1), prompt=prompt.transpose(1, 2).unsqueeze(1))[:, 0].mT


class SqueezeExcite(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(dim, dim // 2, bias=False), nn.ReLU(), nn.Linear(dim // 2, dim), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class MultiScaleSS2D(Scanning):
    """A map by rows, and its half-size version in three directions one after the other."""

    def __init__(self, dim: int, d_state: int, excited: bool, norms: bool) -> None:
        D = 2 * dim
        super().__init__(D, d_state, 2)
        self.in_proj, self.out_proj = nn.Linear(dim, 2 * D, bias=False), nn.Linear(D, dim, bias=False)
        self.act, self.dropout = nn.SiLU(), nn.Identity()
        self.conv2d = nn.Conv2d(D, D, 3, padding=1, groups=D)
        self.conv2d_b1 = nn.Conv2d(D, D, 7, stride=2, padding=3, groups=D)
        self.out_norm = nn.LayerNorm(D)
        if norms:
            self.out_norm0, self.out_norm1 = self.out_norm, nn.LayerNorm(D)
        if excited:
            self.se = SqueezeExcite(D)

    def forward(self, x: Tensor, h_tokens: None = None, w_tokens: None = None) -> Tensor:
        B, H, W, _ = x.shape
        x, z = self.in_proj(x).chunk(2, -1)
        x = x.permute(0, 3, 1, 2)
        half, x = self.act(self.conv2d_b1(x)), self.act(self.conv2d(x))
        h, w = half.shape[2:]
        across = half.transpose(2, 3).flatten(2)
        long = torch.cat((half.flatten(2).flip(-1), across, across.flip(-1)), 2)
        ys = self.scanned(long.unsqueeze(1), slice(0, 1))[:, 0].transpose(1, 2)  # (B, 3 L, D)
        first, second, third = getattr(self, "out_norm0", self.out_norm)(ys).transpose(1, 2).chunk(3, -1)
        few = first.flip(-1).unflatten(-1, (h, w)) + (second + third.flip(-1)).unflatten(-1, (w, h)).transpose(2, 3)
        few = F.interpolate(few, size=(H, W), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
        y = self.scanned(x.flatten(2).unsqueeze(1), slice(1, 2))[:, 0].transpose(1, 2)
        y = getattr(self, "out_norm1", self.out_norm)(y).view(B, H, W, -1) + few
        y = self.se(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if hasattr(self, "se") else y
        return self.dropout(self.out_proj(y * self.act(z)))


class JoinedSS2D(Scanning):
    """Two maps as one sequence in both directions, each weighted by the means of the other."""

    def __init__(self, dim: int, d_state: int) -> None:
        D = 2 * dim
        super().__init__(D, d_state, 2)
        self.in_proj, self.in_proj_modalx = nn.Linear(dim, D, bias=False), nn.Linear(dim, D, bias=False)
        self.conv2d, self.conv2d_modalx = (nn.Conv2d(D, D, 3, padding=1, groups=D) for _ in range(2))
        self.act, self.dropout = nn.SiLU(), nn.Identity()
        self.out_norm1, self.out_norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.out_proj = nn.Linear(2 * D, dim, bias=False)
        self.fc1, self.fc2 = (
            nn.Sequential(nn.Linear(D, 2), nn.ReLU(), nn.Linear(2, D), nn.Sigmoid()) for _ in range(2)
        )

    def forward(self, x_rgb: Tensor, x_e: Tensor) -> Tensor:
        B, H, W, _ = x_rgb.shape
        x_rgb, x_e = self.in_proj(x_rgb).permute(0, 3, 1, 2), self.in_proj_modalx(x_e).permute(0, 3, 1, 2)
        maps = self.act(self.conv2d(x_rgb)), self.act(self.conv2d_modalx(x_e))
        x = torch.cat([m.flatten(2) for m in maps], -1)
        ys = self.scanned(torch.stack((x, x.flip(-1)), 1))
        one, other = (ys[:, 0] + ys[:, 1].flip(-1)).transpose(1, 2).reshape(B, 2, H, W, -1).unbind(1)
        one = self.out_norm1(one) * self.fc2(x_e.mean((2, 3)))[:, None, None]
        other = self.out_norm2(other) * self.fc1(x_rgb.mean((2, 3)))[:, None, None]
        return self.dropout(self.out_proj(torch.cat((one, other), -1)))


class CrossScan(nn.Module):
    """Two sequences (B, L, D), each read out by the C of the other."""

    def __init__(self, dim: int, d_state: int) -> None:
        super().__init__()
        self.d_state = d_state
        self.x_proj_1, self.x_proj_2 = (nn.Linear(dim, 1 + 2 * d_state, bias=False) for _ in range(2))
        self.dt_proj_1, self.dt_proj_2 = nn.Linear(1, dim), nn.Linear(1, dim)
        self.A_log_1, self.A_log_2 = nn.Parameter(torch.randn(dim, d_state)), nn.Parameter(torch.randn(dim, d_state))
        self.D_1, self.D_2 = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))
        self.out_norm_1, self.out_norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x_rgb: Tensor, x_e: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.x_proj_1(x_rgb).mT, self.x_proj_2(x_e).mT
        (dt_1, B_1, C_1), (dt_2, B_2, C_2) = (r.split((1, self.d_state, self.d_state), 1) for r in rows)

        def scan(x: Tensor, dt: Tensor, proj: nn.Linear, A_log: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
            return scan_token_by_token(
                x.mT, proj.weight @ dt, -torch.exp(A_log), B[:, None], C[:, None], D, proj.bias
            ).mT

        one = scan(x_rgb, dt_1, self.dt_proj_1, self.A_log_1, B_1, C_2, self.D_1)
        other = scan(x_e, dt_2, self.dt_proj_2, self.A_log_2, B_2, C_1, self.D_2)
        return self.out_norm_1(one), self.out_norm_2(other)


# the constructor of each, and the shapes of its inputs
CORES = {
    "segman": (lambda: SegMANScan(6, 1, 2), [(2, 6, 5, 7)]),
    "segman_wide": (lambda: SegMANScan(6, 2, 1), [(2, 6, 5, 7)]),
    "mambairv2": (lambda: PromptedScan(6, 3), [(2, 11, 6), (2, 11, 3)]),
    "msvmamba": (lambda: MultiScaleSS2D(6, 2, True, True), [(2, 5, 7, 6)]),
    "msvmamba_one_norm": (lambda: MultiScaleSS2D(6, 1, False, False), [(2, 6, 4, 6)]),
    "sigma_joined": (lambda: JoinedSS2D(6, 3), [(2, 5, 7, 6), (2, 5, 7, 6)]),
    "sigma_crossed": (lambda: CrossScan(6, 3), [(2, 11, 6), (2, 11, 6)]),
}  # fmt: skip


class Around(nn.Module):
    """A model around one module with any number of inputs and outputs."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def forward(self, *inputs: Tensor) -> Tensor:
        y = self.core(*inputs)
        return torch.cat([part.flatten() for part in y]) if isinstance(y, tuple) else y


def around(name: str) -> Around:
    """A model around one of CORES, with perturbed parameters."""
    return Around(perturbed(CORES[name][0]()))
