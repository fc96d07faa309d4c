"""Code that imports mamba-ssm, on a machine where mamba-ssm cannot be installed."""

import torch

import mtlkit

if "mamba_ssm" in mtlkit.compat.install():  # before importing it; keeps a working mamba-ssm
    print("mamba_ssm is served by mtlkit")

from mamba_ssm import Mamba  # pyright: ignore[reportMissingImports] - served
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # pyright: ignore[reportMissingImports] - served


def main() -> None:
    """Runs the block, a decoding step, and the scan."""
    torch.manual_seed(0)
    block = Mamba(d_model=64, d_state=16, d_conv=4, expand=2)
    y = block(torch.randn(2, 1000, 64))
    (gradient,) = torch.autograd.grad(y.square().mean(), [block.A_log])
    print(f"block: {tuple(y.shape)}, gradient of A_log {gradient.norm():.2e}")
    with torch.no_grad():
        token, *_ = block.step(torch.randn(2, 1, 64), *block.allocate_inference_cache(2, 1))
    print(f"step: {tuple(token.shape)}")
    u, delta = torch.randn(2, 128, 1000), torch.rand(2, 128, 1000)
    out, last = selective_scan_fn(u, delta, -torch.rand(128, 16), *torch.randn(2, 2, 16, 1000), return_last_state=True)
    print(f"scan: {tuple(out.shape)}, last state {tuple(last.shape)}")


if __name__ == "__main__":
    main()
