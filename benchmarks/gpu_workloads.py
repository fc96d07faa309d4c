"""Workloads on a GPU: SS2D at the shapes of networks and of mammograms, batches of 1 to 64, two dtypes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import gpu
import torch
from gpu_providers import GPU_PROVIDERS, GpuProvider, mtlkit_scan
from providers import BOTH, FORWARD
from torch import Tensor
from workloads import dtype_name

import mtlkit
from mtlkit.operators.floors import Floor, Limits, scan_floor
from mtlkit.testing import ROUNDING, SS2D_SHAPES, SS2DShape, assert_accurate, relative_error

SHAPES = {
    **{f"medmamba_t_stage{i}": SS2D_SHAPES[f"medmamba_t_stage{i}"] for i in (1, 2, 3, 4)},
    "mammo_128": SS2D_SHAPES["mammo_4view_128"],
    "mammo_64": SS2D_SHAPES["mammo_4view_64"],
    "vmamba_t_stage1": SS2D_SHAPES["vmamba_t_stage1"],
}
BATCHES = (1, 8, 32, 64)
DTYPES = (torch.float32, torch.bfloat16)
# `ss2d_layer_core`: the scan with its projections, for every provider; `ss2d`: only mtlkit's operator.
OPS = ("ss2d_layer_core", "ss2d")
REFERENCE_PIXELS = 28 * 28  # images up to this size get exact results from the reference, within seconds
PEER_BOUND = {torch.float32: 1e-3, torch.bfloat16: 5e-2}  # detects wrong wiring; the rows hold each peer's accuracy

Tensors = dict[str, Tensor]
Problem = tuple[Tensors, Tensor]  # arguments by name, and the output's gradient


class GpuCase(NamedTuple):
    """A benchmark row."""

    op: str
    shape_name: str
    batch: int
    dtype: torch.dtype
    direction: str
    provider: GpuProvider

    def __str__(self) -> str:
        return f"{self.group}-{self.provider.name}"

    @property
    def group(self) -> str:
        return group_of(self)

    @property
    def shape(self) -> SS2DShape:
        return dataclasses.replace(SHAPES[self.shape_name], B=self.batch)

    @property
    def checked(self) -> list[int]:
        """The images whose results are compared with exact ones."""
        return checked_images(self.batch)

    @property
    def unit(self) -> tuple[str, int]:
        return "updates", self.shape.updates

    def floor(self, limits: Limits) -> Floor:
        s = self.shape
        return scan_floor(s.updates, s.N, least_bytes(s, self.dtype, self.direction), self.direction != FORWARD, limits)

    def function(self) -> Callable[..., Tensor]:
        return mtlkit.ops.ss2d if self.op == "ss2d" else self.provider.scan

    def problem(self) -> Problem:
        """Arguments and the output's gradient, on the GPU."""
        few, dy_few = given(self.op, self.shape_name, len(self.checked), self.dtype)
        tensors = spread(few, ("u", "x_dbl"), self.batch, self.checked)
        tensors["u"] = tensors["u"].contiguous(memory_format=self.provider.memory_format)
        if "x_dbl" in tensors:  # (B, 4, M, H, W), a pixel's values side by side
            tensors["x_dbl"] = tensors["x_dbl"].permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
        dy = torch.zeros_like(tensors["u"])
        dy[self.checked] = dy_few.to(dy.device)
        return {name: t.requires_grad_() for name, t in tensors.items()}, dy

    def run(self, given: Problem) -> Tensors:
        """The output and, for the direction `forward_backward`, every gradient, by name."""
        return run(self.function(), *given, self.direction)

    def another(self, given: Problem) -> Problem:
        return other_maps(given, ("u",))

    def nbytes(self, given: Problem) -> int:
        return given[0]["u"].nbytes + given[1].nbytes

    def check(self, results: Tensors) -> tuple[float, float]:
        """Checks the results; returns the largest error relative to a norm, and the output's largest absolute error."""
        key = (self.op, self.shape_name, len(self.checked), self.dtype)
        plain = plain_results(*key) if self.provider.own else {}
        return compare(results, exact_results(*key), plain, ("u", "x_dbl"), self.checked, self.dtype, self.provider.own)


def group_of(case: NamedTuple) -> str:
    """What identifies the group of rows that are compared: everything except the provider."""
    return f"{case.op}-{case.shape_name}-batch{case.batch}-{dtype_name(case.dtype)}-{case.direction}"


def checked_images(batch: int) -> list[int]:
    """The first and the last image."""
    return [0] if batch == 1 else [0, batch - 1]


def spread(few: Tensors, by_image: tuple[str, ...], batch: int, checked: list[int]) -> Tensors:
    """Arguments on the GPU for a complete batch, made from those on the CPU for the checked images.

    The results of an image do not depend on other images. Nor do the parameters' gradients, because the output's
    gradient is zero for all images that are not checked.
    """
    device, seed = gpu.device(), torch.Generator(gpu.device()).manual_seed(2)

    def whole(t: Tensor) -> Tensor:
        many = torch.randn(batch, *t.shape[1:], generator=seed, device=device).to(t.dtype)
        many[checked] = t.to(device)
        return many

    return {name: whole(t) if name in by_image else t.to(device) for name, t in few.items()}


def other_maps(given: Problem, names: tuple[str, ...]) -> Problem:
    """The same problem with these arguments and the output's gradient at another place in memory."""
    tensors, dy = given
    cloned = {name: tensors[name].detach().clone().requires_grad_() for name in names}
    return tensors | cloned, torch.randn_like(dy)


def compare(
    results: Tensors,
    exact: Tensors,
    plain: Tensors,
    by_image: tuple[str, ...],
    checked: list[int],
    dtype: torch.dtype,
    own: bool,
) -> tuple[float, float]:
    """Checks the results; returns the largest error relative to a norm, and the output's largest absolute error."""
    errors = []
    for name, t in results.items():
        if name == "y" or name in by_image:
            others = t[1:-1] if name != "y" else t[:0]
            assert not others.any(), f"{name}: a gradient reaches images that it does not belong to"
            t = t[checked]
        t, wanted = t.cpu(), exact[name]
        if own and (name not in plain or t.dtype == dtype):
            errors.append(assert_accurate(name, t, wanted, plain.get(name), gradient=name != "y"))
            continue
        bound = PEER_BOUND[dtype]
        if own:  # float32 gradients may have passed through 16 bits; the policy treats them so
            bound = 3 * relative_error(plain[name], wanted) + ROUNDING[dtype]
        errors.append(relative_error(t, wanted))
        assert errors[-1] <= bound, f"{name}: relative error {errors[-1]:.1e} is beyond {bound:.0e}"
    output = results["y"][checked].double().cpu()
    return max(errors), (output - exact["y"]).abs().max().item()


def least_bytes(shape: SS2DShape, dtype: torch.dtype, direction: str) -> int:
    """What an SS2D must read and write: u, the projections and y; backward also dy, and gradients of the first two."""
    pixels = shape.B * shape.H * shape.W
    maps, rows = shape.D * pixels, 4 * (shape.R + 2 * shape.N) * pixels
    passes = (2, 1) if direction == FORWARD else (5, 3)
    return dtype.itemsize * (passes[0] * maps + passes[1] * rows)


def run(function: Callable[..., Tensor], tensors: Tensors, dy: Tensor, direction: str) -> Tensors:
    if direction == FORWARD:
        with torch.no_grad():
            return {"y": function(*tensors.values())}
    y = function(*tensors.values())
    gradients = torch.autograd.grad(y, list(tensors.values()), dy.to(y.dtype))
    return {"y": y.detach(), **dict(zip(tensors, gradients, strict=True))}


@functools.lru_cache(maxsize=2)
def given(op: str, shape_name: str, images: int, dtype: torch.dtype) -> tuple[Tensors, Tensor]:
    """Arguments and the output's gradient on the CPU: activations in `dtype`, the scan's parameters in float32."""
    shape = dataclasses.replace(SHAPES[shape_name], B=images)
    tensors = shape.inputs()
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, shape.R + 2 * shape.N, shape.D, generator=generator) * shape.D**-0.5
    u, weight = tensors.pop("u").to(dtype), weight.to(dtype)
    dy = torch.empty_like(u).copy_(torch.randn(u.shape, generator=generator))
    x_dbl = tensors.pop("x_dbl").to(dtype)
    second = {"x_dbl": x_dbl} if op == "ss2d" else {"x_proj_weight": weight}
    return {"u": u, **second, **tensors}, dy


@functools.lru_cache(maxsize=2)
def exact_results(op: str, shape_name: str, images: int, dtype: torch.dtype) -> Tensors:
    """Float64 results on the CPU: of the reference if that takes seconds, else of kernels tested against it."""
    tensors, dy = given(op, shape_name, images, dtype)
    pixels = images * tensors["u"][0, 0].numel()
    with mtlkit.use_backend("reference" if pixels <= REFERENCE_PIXELS else "auto"):
        return run(*_on_cpu(op, {n: t.double() for n, t in tensors.items()}, dy.double()))


@functools.lru_cache(maxsize=2)
def plain_results(op: str, shape_name: str, images: int, dtype: torch.dtype) -> Tensors:
    """Results of plain PyTorch on the same 16-bit numbers, as the policy needs them; nothing for float32."""
    if dtype == torch.float32:
        return {}
    tensors, dy = given(op, shape_name, images, dtype)
    with mtlkit.use_backend("torch"):
        return run(*_on_cpu(op, tensors, dy))


def _on_cpu(op: str, tensors: Tensors, dy: Tensor) -> tuple:
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    return mtlkit.ops.ss2d if op == "ss2d" else mtlkit_scan, leaves, dy, BOTH


def cases() -> list[GpuCase]:
    """All rows whose provider is installed; rows with the same exact results are adjacent."""
    if not torch.cuda.is_available():
        return []
    present = [provider for provider in GPU_PROVIDERS if not provider.why_absent()]
    return [
        GpuCase(op, shape_name, batch, dtype, direction, provider)
        for op in OPS
        for shape_name in SHAPES
        for dtype in DTYPES
        for batch in BATCHES
        for direction in (FORWARD, BOTH)
        for provider in present
        if (op != "ss2d" or provider.own) and (not provider.one_size or batch == 32)
    ]
