"""Whether a layer and its replacement compute the same.

Parameters do not tell in which order a layer scans, so both are run on a small random image and must agree. They run in
float32 with the same random parameters: those of a layer that are still at their start, or zero, would hide a
difference.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtlkit._accelerate._share import NotRecognised, require
from mtlkit._accelerate._ss2d import Form, SharedSS2D

SIZE = (2, 6, 8)  # images, rows, columns; even, for layers that halve their maps
# Float32 on both sides: sums in another order differ by 1e-6; another scan order by 1e-1. GPUs may convolve in TF32.
BOUND = {"cpu": 1e-4}
BOUND_ELSEWHERE = 5e-3


class _Bare(nn.Module):
    """Calls the forward of a layer without its hooks."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.forward(x)


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    modes = {child: child.training for child in module.modules()}
    try:
        for child in modes:
            child.training = False
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


def compare(original: nn.Module, forms: list[Form]) -> tuple[SharedSS2D, float]:
    """The first form that computes what the original does, and by how much they differ.

    Both run in float32 on the same random image with the same random parameters: a layer whose own parameters are
    still at their start, or zero, would hide a difference.

    Raises:
        NotRecognised: none does, or the original does not run.
    """
    device = original.A_logs.device
    require(device.type != "meta", "it is on the meta device, where nothing can be compared; check=False swaps it")
    values = {name: value.to(device) for name, value in _random_parameters(original, forms[0]).items()}
    failure, least = None, float("inf")
    for first in dict.fromkeys(form.channels_first for form in forms):
        x = _random_image(forms[0].d_model, first).to(device)
        try:
            exact = _run(original, values, x)
        except Exception as error:  # whatever a foreign layer raises on an image that it cannot take
            failure = failure or f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            continue
        for form in (form for form in forms if form.channels_first == first):
            ours = SharedSS2D(original, form)
            got = _run(ours, values, x)
            error = _difference(got, exact)
            if error <= BOUND.get(device.type, BOUND_ELSEWHERE):
                return ours, error
            least = min(least, error)
            failure = failure or "its output has another shape, or is not finite"
    if least < float("inf"):
        raise NotRecognised(f"it computes something else: on random input the outputs differ by {least:.0%}")
    raise NotRecognised(
        f"it does not run here ({failure}), so that nothing can be compared; where its scan is missing, "
        "mtlkit.compat.install_mamba_ssm() before the import supplies one, and check=False swaps by structure alone"
    )


def _run(layer: nn.Module, values: dict[str, Tensor], x: Tensor) -> Tensor:
    parameters = {f"layer.{name}": value for name, value in values.items()}
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False), _in_eval_mode(layer):
        y = functional_call(_Bare(layer), parameters, (x,), tie_weights=False)
    if not isinstance(y, Tensor):
        raise NotRecognised(f"it returns a {type(y).__name__}, and SS2D a tensor")
    return y


def _difference(got: Tensor, exact: Tensor) -> float:
    """|got - exact| / |exact| in the 2-norm; infinite where that is no number."""
    if got.shape != exact.shape:
        return float("inf")
    error = ((got - exact).double().norm() / exact.double().norm()).item()
    return error if error < float("inf") else float("inf")


def _random_image(channels: int, channels_first: bool) -> Tensor:
    batch, height, width = SIZE
    x = torch.randn(batch, height, width, channels, generator=torch.Generator().manual_seed(0))
    return x.permute(0, 3, 1, 2).contiguous() if channels_first else x


def _random_parameters(original: nn.Module, form: Form) -> dict[str, Tensor]:
    """Values with which every parameter shows in the output, by name."""
    generator = torch.Generator().manual_seed(1)
    states = torch.arange(1, form.d_state + 1).log()
    centres: dict[str, Callable[[Tensor], Tensor]] = {
        "A_logs": lambda noise: states + 0.1 * noise,
        "dt_projs_bias": lambda noise: 0.5 * noise - 1,
        "Ds": lambda noise: 0.5 * noise,
        "out_norm.weight": lambda noise: 1 + 0.1 * noise,
        "conv2d.weight": lambda noise: noise / form.d_conv,
        "x_proj_weight": lambda noise: noise * form.d_inner**-0.5,
        "dt_projs_weight": lambda noise: noise * form.dt_rank**-0.5,
        "in_proj.weight": lambda noise: noise * form.d_model**-0.5,
        "out_proj.weight": lambda noise: noise * form.d_inner**-0.5,
    }
    values = {}
    for name, parameter in original.named_parameters(remove_duplicate=False):
        noise = torch.randn(parameter.shape, generator=generator)
        values[name] = centres[name](noise) if name in centres else 0.1 * noise
    return values
