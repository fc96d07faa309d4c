"""Decoder levels of task interaction in other codebases: TIM without UPA, and TIM followed by UPA.

They are recognised by shapes and by the names of their parts, which the published code shares with
mtlkit.nn.TaskInteraction and UncertaintyProxyAttention. With C channels of the map and F entries of the vector:

    TIM     s2c_conv C -> C / 2 (1 x 1)   s2c_dense C / 2 -> F   s2c_bn F   clf_gate F -> F   c2s_dense F -> C
            seg_gate C -> C               s2c_attn C -> 1, if there is one
    UPA     fc1 2 or 3 -> 32              fc2 32 -> 2            with three signals seg_proj C -> 64, clf_proj F -> 64
    level   tim, upa

Each takes a map (B, C, H, W) and a vector (B, F) and returns both, enhanced, as a tuple.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtlkit._accelerate._share import Plan, Shared, check_parameters, check_part, kind, require
from mtlkit.nn.interaction_level import InteractionLevel
from mtlkit.nn.task_interaction import TaskInteraction
from mtlkit.nn.uncertainty_proxy_attention import HIDDEN, PROJECTED, UncertaintyProxyAttention

TIM_PARTS = ("s2c_conv", "s2c_dense", "s2c_bn", "clf_gate", "c2s_dense", "seg_gate")
SIZE = (2, 6, 8)  # images, rows, columns of the comparison
TAU = 0.7

# --- replacements -----------------------------------------------------------------------------------------------------


class SharedTaskInteraction(Shared, TaskInteraction):
    """mtlkit's TIM with the Parameters and batch norm of the one that it replaces.

    Args:
        original: the replaced layer.

    Shape:
        Map (B, C, H, W) and vector (B, F) in and out, as a tuple.
    """

    def __init__(self, original: Any) -> None:
        dim, clf_dim = original.c2s_dense.weight.shape
        super().__init__(dim, clf_dim, _tau(original), "attention" if _has(original, "s2c_attn") else "mean", "meta")
        self.s2c_bn = original.s2c_bn  # with its statistics
        self.form = f"TIM, C={dim}, F={clf_dim}"
        self._stand_in_for(original)

    def forward(self, seg: Tensor, clf: Tensor) -> tuple[Tensor, Tensor]:
        """Enhances the map and the vector."""
        out = super().forward(seg, clf)
        return out.seg, out.clf


class _BatchUPA(UncertaintyProxyAttention):
    """UPA without running averages, which the originals do not have."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._buffers.clear()

    def track(self, _signals: object, _group: object = None) -> None:
        pass


class SharedInteractionLevel(Shared, InteractionLevel):
    """mtlkit's fused level with the Parameters and batch norm of the TIM and UPA that it replaces.

    Args:
        original: the replaced level.

    Shape:
        Map (B, C, H, W) and vector (B, F) in and out, as a tuple.
    """

    def __init__(self, original: Any) -> None:
        tim = original.tim
        dim, clf_dim = tim.c2s_dense.weight.shape
        signals = "alignment" if _has(original.upa, "seg_proj") else "variance"
        pooling = "attention" if _has(tim, "s2c_attn") else "mean"
        super().__init__(dim, clf_dim, signals, tau=_tau(tim), pooling=pooling, device="meta")
        self.tim.s2c_bn = tim.s2c_bn
        self.upa = _BatchUPA(dim, clf_dim, signals, device="meta")
        self.form = f"TIM and UPA with {'three' if signals == 'alignment' else 'two'} signals, C={dim}, F={clf_dim}"
        self._stand_in_for(original)

    def forward(self, seg: Tensor, clf: Tensor) -> tuple[Tensor, Tensor]:
        """Enhances the map and the vector."""
        out = super().forward(seg, clf)
        return out.seg, out.clf


def _has(module: nn.Module, name: str) -> bool:
    return isinstance(module._modules.get(name), nn.Module)


def _tau(module: nn.Module) -> float:
    tau = getattr(module, "tau", TAU)
    require(isinstance(tau, int | float) and tau >= 0, f"tau is {tau!r}, and TIM's a number that is at least 0")
    return float(tau)


# --- recognition ------------------------------------------------------------------------------------------------------


def resembles(module: Any) -> bool:
    """Returns whether the module has parts named as those of TIM, or consists of TIM and UPA."""
    if _has(module, "tim") and _has(module, "upa"):
        return resembles(module.tim)
    return all(_has(module, name) for name in TIM_PARTS)


def plan(module: Any) -> Plan:
    """Returns how the layer can be replaced.

    Raises:
        NotRecognised: it is neither TIM nor a level, or cannot share its parameters.
    """
    level = not _has(module, "s2c_conv")
    parts = {"tim": module.tim, "upa": module.upa} if level else {"": module}
    if level:
        for name, child in module.named_children():
            require(name in parts or isinstance(child, nn.Identity), f"it has a part that a level has not: {name}")
    dim, clf_dim = _check_tim(parts.get("tim", module))
    _tau(parts.get("tim", module))
    if level:
        _check_upa(module.upa, dim, clf_dim)
    names = {f"{prefix}.{name}".lstrip(".") for prefix, part in parts.items() for name, _ in part.named_parameters()}
    check_parameters(module, names, names, "a level")
    generator = torch.Generator().manual_seed(0)
    batch, height, width = SIZE
    seg = torch.randn(batch, dim, height, width, generator=generator, dtype=torch.float32)
    clf = torch.randn(batch, clf_dim, generator=generator, dtype=torch.float32)
    make = partial(SharedInteractionLevel if level else SharedTaskInteraction, module)
    return Plan(_random_values(module, generator), [((seg, clf), [make])], 2)


def _check_tim(module: Any) -> tuple[int, int]:
    """Checks the parts of a TIM and returns C and F."""
    channels, half = (module.s2c_conv.weight.shape[i] if _has(module, "s2c_conv") else 0 for i in (1, 0))
    require(half == channels // 2, f"s2c_conv maps {channels} to {half} channels, not to {channels // 2}")
    entries = module.s2c_dense.weight.shape[0]
    expected = {
        "s2c_conv": (nn.Conv2d, (half, channels, 1, 1)),
        "s2c_dense": (nn.Linear, (entries, half)),
        "s2c_bn": (nn.BatchNorm1d, (entries,)),
        "clf_gate": (nn.Linear, (entries, entries)),
        "c2s_dense": (nn.Linear, (channels, entries)),
        "seg_gate": (nn.Linear, (channels, channels)),
        "s2c_attn": (nn.Conv2d, (1, channels, 1, 1)),
    }
    _check_children(module, expected, biased={name for name in expected if name != "s2c_attn"})
    norm = module.s2c_bn
    usual = norm.affine and norm.track_running_stats and norm.momentum is not None
    require(usual, "s2c_bn is no BatchNorm1d with weights, running statistics and a momentum")
    return channels, entries


def _check_upa(module: Any, channels: int, entries: int) -> None:
    three = _has(module, "seg_proj")
    expected = {"fc1": (nn.Linear, (HIDDEN, 3 if three else 2)), "fc2": (nn.Linear, (2, HIDDEN))}
    if three:
        expected |= {"seg_proj": (nn.Linear, (PROJECTED, channels)), "clf_proj": (nn.Linear, (PROJECTED, entries))}
    _check_children(module, expected, biased={"fc1", "fc2"})
    missing = [name for name in expected if not _has(module, name)]
    require(not missing, f"upa lacks {', '.join(missing)}")
    require(next(module.buffers(), None) is None, "upa has buffers, and UPA's weights come from the batch alone")


def _check_children(module: nn.Module, expected: dict[str, Any], biased: set[str]) -> None:
    require(not module._parameters, f"it has parameters of its own: {', '.join(module._parameters)}")
    for name, part in module.named_children():
        if name not in expected and not part.state_dict():
            continue  # an activation
        require(name in expected, f"it has a part that a level has not: {name} ({kind(part)})")
        check_part(name, part)
        type_, shape = expected[name]
        found = tuple(getattr(part, "weight", torch.empty(0)).shape)
        require(isinstance(part, type_) and found == shape, f"{name} is a {kind(part)} of {found}, not of {shape}")
        require(
            (part.bias is not None) == (name in biased), f"{name} has {'a' if part.bias is not None else 'no'} bias"
        )


def _random_values(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    for name, tensor in [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
        if tensor.dim() > 1:
            values[name] = noise * tensor[0].numel() ** -0.5
        elif name.endswith(("bn.weight", "running_var")):
            values[name] = 1 + 0.1 * noise.abs()
        else:
            values[name] = 0.1 * noise
    return values
