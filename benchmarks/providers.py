"""Implementations of each operator, mtlkit's and its peers', and the workloads that each is left out of."""

import functools
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module

import torch
import torch.nn.functional as F
from machine import ISA
from torch import Tensor

import mtlkit
from mtlkit import _native
from mtlkit.operators.dwconv_silu import dwconv_silu_torch
from mtlkit.operators.norm_gate import norm_gate_torch
from mtlkit.operators.selective_scan import selective_scan_torch
from mtlkit.operators.ss2d import cross_merge, cross_scan, ss2d_torch
from mtlkit.ops import TIMParameters, UPAParameters

FORWARD, BOTH = "forward", "forward_backward"


@dataclass(frozen=True)
class Workload:
    """What a row measures: an operator at a named shape, in one dtype and direction."""

    op: str
    shape_name: str
    dtype: torch.dtype
    direction: str
    images: int
    tokens: int  # of one direction, for all images together
    layout: str = "nchw"  # of maps: "nchw" or "channels_last"


def selective_scan(**inputs: Tensor) -> Tensor:
    return mtlkit.ops.selective_scan(**inputs, delta_softplus=True)


@dataclass(frozen=True)
class Provider:
    """One implementation, with the signatures of mtlkit.ops; an operator that it lacks is None."""

    name: str
    label: str
    ss2d: Callable[..., Tensor] | None = mtlkit.ops.ss2d
    selective_scan: Callable[..., Tensor] | None = selective_scan
    dwconv_silu: Callable[..., Tensor] | None = None
    norm_gate: Callable[..., Tensor] | None = None
    ss2d_norm_gate: Callable[..., Tensor] | None = None
    task_interaction: Callable[..., tuple[Tensor, Tensor]] | None = None  # the final map and vector
    context: Callable[[], AbstractContextManager] = nullcontext  # active during the check and the timing
    why_absent: Callable[[], str | None] = lambda: None
    serves: Callable[[Workload], bool] = lambda workload: True
    left_out: str = ""  # describes what `serves` rejects


# --- peers ------------------------------------------------------------------------------------------------------------


def composed(scan: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """SS2D as MedMamba composes it: copies in four orders, a 1-D scan over 4 D channels, and the sum."""

    def ss2d(u: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_logs: Tensor, Ds: Tensor) -> Tensor:
        rank, states = dt_weight.shape[2], A_logs.shape[1]
        us = cross_scan(u)  # (B, 4, D, L)
        dts, Bs, Cs = cross_scan(x_dbl).split((rank, states, states), 2)  # (B, 4, R | N | N, L)
        delta = torch.einsum("bkrl,kdr->bkdl", dts, dt_weight)  # (B, 4, D, L)
        y = scan(us.flatten(1, 2), delta.flatten(1, 2), -torch.exp(A_logs), Bs, Cs, Ds, dt_bias.flatten())
        return cross_merge(y.unflatten(1, (4, -1)), *u.shape[2:])  # (B, D, H, W)

    return ss2d


def mambapy_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """A selective scan by mambapy's parallel scan, as in its Mamba block; one group after the other."""
    from mambapy.pscan import pscan

    groups = B.shape[1]
    dt = F.softplus(delta + delta_bias[:, None]).unflatten(1, (groups, -1)).transpose(-1, -2)  # (B, G, L, D/G)
    x = u.unflatten(1, (groups, -1)).transpose(-1, -2)  # (B, G, L, D/G)
    A = A.unflatten(0, (groups, -1))  # (G, D/G, N)
    B, C = B.transpose(-1, -2), C.transpose(-1, -2)  # (B, G, L, N)
    ys = []
    for g in range(groups):
        decay = torch.exp(dt[:, g, ..., None] * A[g])  # (B, L, D/G, N)
        h = pscan(decay, (dt * x)[:, g, ..., None] * B[:, g, :, None])  # (B, L, D/G, N)
        ys.append((h @ C[:, g, ..., None]).squeeze(-1))  # (B, L, D/G)
    y = torch.stack(ys, 1).transpose(-1, -2).flatten(1, 2)  # (B, D, L)
    return y + D[:, None] * u


def mamba_ssm_scan(*arguments: Tensor) -> Tensor:
    """The published kernel: arguments u, delta, A, B, C, D, delta_bias."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    *tensors, delta_bias = arguments
    return selective_scan_fn(*tensors, None, delta_bias, delta_softplus=True)


def by_name(scan: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The scan with keyword arguments, as mtlkit.ops.selective_scan is called here."""
    return lambda u, delta, A, B, C, D, delta_bias: scan(u, delta, A, B, C, D, delta_bias)


def interaction(*inputs: Tensor, signals: str) -> tuple[Tensor, Tensor]:
    """mtlkit's task interaction, without returning gates and signals."""
    return mtlkit.ops.task_interaction(*inputs, signals=signals)[:2]


def eager_interaction(
    x: Tensor, f: Tensor, tim: TIMParameters, upa: UPAParameters, *, signals: str
) -> tuple[Tensor, Tensor]:
    """A level of task interaction as the official code composes it, line by line, in PyTorch."""
    context = F.relu(F.conv2d(x, tim.proj_weight[:, :, None, None], tim.proj_bias)).mean((2, 3))  # (B, P)
    context = F.relu(F.linear(context, tim.context_weight, tim.context_bias))  # (B, F)
    context = F.batch_norm(context, tim.norm_mean, tim.norm_var, tim.norm_weight, tim.norm_bias, eps=1e-3)
    f_enhanced = f + torch.sigmoid(F.linear(context, tim.clf_gate_weight, tim.clf_gate_bias)) * context
    gain = torch.sigmoid(F.linear(f, tim.gain_weight, tim.gain_bias))  # (B, C)
    gate = torch.sigmoid(F.linear(x.mean((2, 3)), tim.seg_gate_weight, tim.seg_gate_bias))  # (B, C)
    x_enhanced = x * (1 + 0.7 * gate * gain)[:, :, None, None]  # (B, C, H, W)
    spread = f_enhanced.var(1, correction=0)  # (B,)
    if signals == "variance":
        u = torch.stack((x_enhanced.var((2, 3), correction=0).mean(1), spread), 1)  # (B, 2)
        u = u / (u.mean(0) + 1e-8)
    else:
        shift, f_shift = (x_enhanced - x).mean((2, 3)), f_enhanced - f
        alignment = F.cosine_similarity(F.linear(shift, upa.seg_proj), F.linear(f_shift, upa.clf_proj))  # (B,)
        down, across = (x[:, :, 1:] - x[:, :, :-1]).abs(), (x[..., 1:] - x[..., :-1]).abs()
        energy = F.pad(down, (0, 0, 0, 1)).mean((1, 2, 3)) + F.pad(across, (0, 1)).mean((1, 2, 3))  # (B,)
        u = torch.stack((alignment, energy, torch.log1p(spread)), 1)  # (B, 3)
    logits = F.linear(F.relu(F.linear(u, upa.fc1_weight, upa.fc1_bias)), upa.fc2_weight, upa.fc2_bias)  # (B, 2)
    w = torch.softmax(logits, 1) if signals == "variance" else torch.sigmoid(logits)
    return x + w[:, 0, None, None, None] * (x_enhanced - x), f + w[:, 1:] * (f_enhanced - f)


def eager_norm_gate(x: Tensor, weight: Tensor, bias: Tensor, z: Tensor) -> Tensor:
    """F.layer_norm times F.silu."""
    return norm_gate_torch(x, weight, bias, z, 1e-5)


def ss2d_then_norm_gate(*, weight: Tensor, bias: Tensor, z: Tensor, **scan: Tensor) -> Tensor:
    """The two operators of which ss2d_norm_gate consists, in two calls."""
    return mtlkit.ops.norm_gate(mtlkit.ops.ss2d(**scan).permute(0, 2, 3, 1), weight, bias, z)


@functools.cache
def compiled(call: Callable) -> Callable:
    """torch.compile of a call, compiled for every shape.

    After a few shapes PyTorch would silently fall back to eager mode; `fullgraph` makes this an error.
    """
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1000
    return torch.compile(call, dynamic=False, fullgraph=True)


def chunked_ss2d(**inputs: Tensor) -> Tensor:
    return ss2d_torch(**inputs, out_dtype=inputs["u"].dtype)


def chunked_selective_scan(**inputs: Tensor) -> Tensor:
    return selective_scan_torch(**inputs, delta_softplus=True)[0]


# --- missing implementations ------------------------------------------------------------------------------------------


def missing(module: str, package: str) -> Callable[[], str | None]:
    """Returns a function that says why a module cannot be imported, if so."""

    @functools.cache
    def why() -> str | None:
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            if error.name == module.partition(".")[0]:
                return f"not installed (pip install {package})"
            return f"does not import: {error}"
        except Exception as error:  # a broken installation may raise anything
            return f"does not import: {type(error).__name__}: {error}"
        return None

    return why


@functools.cache
def why_no_mamba_ssm() -> str | None:
    reason = missing("mamba_ssm.ops.selective_scan_interface", "mamba-ssm; it needs nvcc")()
    if reason:
        return reason
    u = torch.rand(1, 4, 2)
    rows = torch.rand(1, 1, 2, 2)
    try:
        mamba_ssm_scan(u, u, -torch.rand(4, 2), rows, rows, u[0, :, 0], u[0, :, 0])
    except Exception as error:  # the error of a call on CPU tensors differs between versions
        return f"installed, but does not support CPU tensors: {str(error).splitlines()[0]}"
    return None


def why_no_compiler() -> str | None:
    found = any(map(shutil.which, ("c++", "g++", "clang++")))
    return None if found else "torch.compile needs a C++ compiler on the PATH"


def why_no_level(level: str) -> str | None:
    if _native.C is None:
        return _native.why_not
    if level == _native.C.cpu_isa():
        return f"{level} is what plain mtlkit runs here"
    levels = _native.C.cpu_isa_levels()
    return None if level in levels else f"this CPU has no {level}; it runs {', '.join(levels)}"


@contextmanager
def at_level(level: str) -> Iterator[None]:
    """The CPU kernels at a lower instruction-set level."""
    before = _native.C.cpu_isa()
    _native.C.set_cpu_isa(level)
    try:
        yield
    finally:
        _native.C.set_cpu_isa(before)


# --- the registry -----------------------------------------------------------------------------------------------------

MEDMAMBA_56, MEDMAMBA_14 = "medmamba_t_stage1", "medmamba_t_stage3"
LEVELS = tuple(f"busi_224_level{level}_batch8" for level in (1, 2, 3, 4))


def _fp32(workload: Workload) -> bool:
    return workload.dtype == torch.float32


def _one_image(workload: Workload) -> bool:
    return _fp32(workload) and workload.images == 1


def _torch_serves(workload: Workload) -> bool:
    affordable = workload.direction == FORWARD and workload.tokens <= 4 * 64 * 64
    return _fp32(workload) and (workload.images == 1 or affordable)


def _56_forward(workload: Workload) -> bool:
    return (
        _fp32(workload)
        and workload.op == "ss2d"
        and workload.shape_name == MEDMAMBA_56
        and workload.direction == FORWARD
    )


def _compile_serves(workload: Workload) -> bool:
    """The unrolled graph of 56 x 56 takes a minute to compile, and is slower than eager PyTorch."""
    plain = _fp32(workload) and workload.layout == "nchw"
    scan = workload.op == "ss2d" and workload.shape_name == MEDMAMBA_14 and workload.direction == FORWARD
    return plain and (scan or (workload.op == "task_interaction" and workload.shape_name in LEVELS))


def _level(level: str) -> Provider:
    return Provider(
        name=f"mtlkit-{level}",
        label=f"mtlkit, {ISA[level]} code",
        context=functools.partial(at_level, level),
        why_absent=functools.partial(why_no_level, level),
        serves=_56_forward,
    )


PROVIDERS = (
    Provider(
        name="mtlkit",
        label="mtlkit",
        dwconv_silu=mtlkit.ops.dwconv_silu,
        norm_gate=mtlkit.ops.norm_gate,
        ss2d_norm_gate=mtlkit.ops.ss2d_norm_gate,
        task_interaction=interaction,
    ),
    Provider(
        name="parts",
        label="mtlkit, ss2d then norm_gate",
        ss2d=None,
        selective_scan=None,
        ss2d_norm_gate=ss2d_then_norm_gate,
    ),
    Provider(
        name="eager",
        label="eager PyTorch",
        ss2d=None,
        selective_scan=None,
        dwconv_silu=dwconv_silu_torch,  # F.conv2d, F.silu
        norm_gate=eager_norm_gate,
        task_interaction=eager_interaction,
    ),
    _level("avx2"),
    _level("baseline"),
    Provider(
        name="torch-compile",
        label="torch.compile",
        ss2d=lambda **inputs: compiled(chunked_ss2d)(**inputs),
        selective_scan=lambda **inputs: compiled(chunked_selective_scan)(**inputs),
        task_interaction=lambda *inputs, signals: compiled(eager_interaction)(*inputs, signals=signals),
        why_absent=why_no_compiler,
        serves=_compile_serves,
        left_out="of chunked PyTorch at 14 x 14 forward only, of task interaction at the four levels of "
        "224 x 224 and batch 8 in float32 and NCHW only: seconds to a minute of compiling a shape",
    ),
    Provider(
        name="torch",
        label="chunked PyTorch",
        context=functools.partial(mtlkit.use_backend, "torch"),
        serves=_torch_serves,
        left_out="not 4 x 128 x 128, nor backward with four images: time, memory",
    ),
    Provider(
        name="mambapy",
        label="mambapy pscan",
        ss2d=composed(mambapy_scan),
        selective_scan=by_name(mambapy_scan),
        why_absent=missing("mambapy.pscan", "mambapy"),
        serves=_one_image,
        left_out="one image only: holds every state of every token in memory",
    ),
    Provider(
        name="mamba-ssm",
        label="mamba-ssm",
        ss2d=composed(mamba_ssm_scan),
        selective_scan=by_name(mamba_ssm_scan),
        why_absent=why_no_mamba_ssm,
        serves=_fp32,
    ),
    Provider(
        name="reference",
        label="PyTorch loop",
        context=functools.partial(mtlkit.use_backend, "reference"),
        serves=_one_image,
        left_out="one image only: one step a token",
    ),
)
BY_NAME = {provider.name: provider for provider in PROVIDERS}
