"""Code that imports mamba-ssm, on a machine where that cannot be installed."""

import torch
from torch import Tensor, nn

import mtlkit

if mtlkit.compat.install_mamba_ssm():  # before the code that imports it; an installed mamba-ssm is left alone
    print("mamba_ssm is served by mtlkit")

from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, selective_scan_fn  # pyright: ignore[reportMissingImports] - served


class Mamba(nn.Module):
    """A Mamba block as such code has it."""

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        inner, rank = expand * d_model, -(-d_model // 16)
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) in and out."""
        return mamba_inner_fn(
            self.in_proj(x).transpose(1, 2),
            self.conv1d.weight,
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.out_proj.weight,
            self.out_proj.bias,
            -torch.exp(self.A_log),
            None,
            None,
            self.D,
            self.dt_proj.bias,
        )


def main() -> None:
    """The block and the scan."""
    torch.manual_seed(0)
    block = Mamba(64)
    y = block(torch.randn(2, 1000, 64))
    (gradient,) = torch.autograd.grad(y.square().mean(), [block.A_log])
    print(f"block: {tuple(y.shape)}, gradient of A_log {gradient.norm():.2e}")
    u, delta = torch.randn(2, 128, 1000), torch.rand(2, 128, 1000)
    out, last = selective_scan_fn(u, delta, -torch.rand(128, 16), *torch.randn(2, 2, 16, 1000), return_last_state=True)
    print(f"scan: {tuple(out.shape)}, last state {tuple(last.shape)}")


if __name__ == "__main__":
    main()
