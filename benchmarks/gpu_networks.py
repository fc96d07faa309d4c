"""Training steps of complete networks on a GPU, with mtlkit's kernels and in plain PyTorch."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import gpu
import torch
from gpu_providers import why_no_backend
from torch import Tensor, nn

import mtlkit
from mtlkit.operators.floors import Limits
from mtlkit.testing import relative_error

BATCH, SIZE = 32, 224
DTYPES = (torch.float32, torch.bfloat16)  # bfloat16 under autocast
NETWORKS: dict[str, dict[str, Any]] = {  # without random layers; the first two need no other package
    "medmamba_t": {"num_classes": 2, "drop_path_rate": 0.0},
    "vmamba_t_s1l8": {"num_classes": 2, "drop_path_rate": 0.0},
    "mbdi": {"dropout": 0.0},
}
TRAINING = "training_step"
# Bound for logits and gradients, relative to plain PyTorch's in the same dtype; it detects wrong wiring. The policy is
# in tests/gpu/test_layers.py; here, errors of some sixty layers and jumps at ReLUs add up.
BOUNDS = {torch.float32: (1e-3, 5e-2), torch.bfloat16: (0.1, 0.3)}

Tensors = dict[str, Tensor]


class NetworkGiven(NamedTuple):
    """Inputs of a training step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    images: Tensor


@dataclass(frozen=True)
class NetworkProvider:
    """Which kernels a network uses."""

    name: str
    label: str
    context: Callable[[], AbstractContextManager]
    why_absent: Callable[[], str | None] = lambda: None
    own: bool = False


NETWORK_PROVIDERS = (
    *(
        NetworkProvider(
            f"mtlkit-{backend}",
            f"mtlkit, {label}",
            functools.partial(mtlkit.use_backend, backend),
            functools.partial(why_no_backend, backend),
            own=True,
        )
        for backend, label in (("cuda", "CUDA"), ("triton", "Triton"))
    ),
    NetworkProvider("torch", "plain PyTorch", functools.partial(mtlkit.use_backend, "torch")),
)


class NetworkCase(NamedTuple):
    """A benchmark row."""

    op: str  # the network's name
    dtype: torch.dtype
    provider: NetworkProvider
    direction: str = TRAINING

    def __str__(self) -> str:
        return f"{self.group}-{self.provider.name}"

    @property
    def batch(self) -> int:
        return BATCH

    @property
    def shape_name(self) -> str:
        return f"image_{SIZE}"

    @property
    def group(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.op}-{self.shape_name}-batch{self.batch}-{dtype}-{self.direction}"

    @property
    def unit(self) -> tuple[str, int]:
        return "images", self.batch

    def floor(self, limits: Limits) -> None:
        """There is none for a complete network."""

    def problem(self) -> NetworkGiven:
        torch.manual_seed(0)
        model = mtlkit.models.create_model(self.op, **NETWORKS[self.op]).train().to(gpu.device())
        images = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).to(gpu.device())
        # the optimizer does its work but changes no weight, so that all steps are the same
        return NetworkGiven(model, torch.optim.AdamW(model.parameters(), lr=0.0), images)

    def run(self, given: NetworkGiven) -> Tensors:
        """Runs one step; returns the logits and the gradient of every parameter."""
        model, optimizer, images = given
        optimizer.zero_grad()
        with torch.autocast(gpu.device().type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            output = model(images)
        logits = [output] if isinstance(output, Tensor) else [output.seg_logits, output.cls_logits]
        torch.stack([t.float().logsumexp(1).mean() for t in logits]).sum().backward()
        optimizer.step()
        found = {f"logits {i}": t.detach() for i, t in enumerate(logits)}
        return found | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    def another(self, given: NetworkGiven) -> NetworkGiven:
        return given._replace(images=given.images.clone())

    def nbytes(self, given: NetworkGiven) -> int:
        return given.images.nbytes

    def check(self, results: Tensors) -> tuple[float, float]:
        """Checks both; returns the gradients' error relative to their norm, and the logits' largest error."""
        wanted = plain_results(self.op, self.dtype)
        assert results.keys() == wanted.keys(), "plain PyTorch has the gradients of other parameters"
        errors, pairs = [], []
        for what, bound in zip(("logits", "gradients"), BOUNDS[self.dtype], strict=True):
            names = [name for name in wanted if name.startswith("logits ") == (what == "logits")]
            pairs.append([torch.cat([of[name].float().flatten() for name in names]) for of in (results, wanted)])
            errors.append(relative_error(*(t.cpu() for t in pairs[-1])))
            assert errors[-1] <= bound, f"{what}: relative error {errors[-1]:.1e} is beyond {bound:.0e}"
        logits, plain = pairs[0]
        return errors[1], (logits - plain).abs().max().item()


@functools.lru_cache(maxsize=1)
def plain_results(network: str, dtype: torch.dtype) -> Tensors:
    plain = next(provider for provider in NETWORK_PROVIDERS if provider.name == "torch")
    case = NetworkCase(network, dtype, plain)
    with plain.context():
        return {name: t.clone() for name, t in case.run(case.problem()).items()}


def cases() -> list[NetworkCase]:
    """All rows whose provider is installed; rows with the same plain results are adjacent."""
    if not torch.cuda.is_available():
        return []
    names = [name for name in NETWORKS if name != "mbdi" or find_spec("timm")]
    present = [provider for provider in NETWORK_PROVIDERS if not provider.why_absent()]
    return [NetworkCase(name, dtype, provider) for name in names for dtype in DTYPES for provider in present]
