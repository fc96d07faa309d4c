"""The arguments and results of a level of task interaction, and the checks of the arguments."""

import warnings
from typing import Any, NamedTuple

from torch import Tensor

from mtlkit._check import check_device, check_shape, check_tensor, fits

SIGNALS = {"variance": 2, "alignment": 3}
DIRECTIONS = ("seg_to_clf", "clf_to_seg")


def check_directions(directions: Any) -> None:
    """Raises unless these are directions of TIM, in order and at least one."""
    if not directions or tuple(one for one in DIRECTIONS if one in directions) != tuple(directions):
        raise ValueError(
            f"directions: expected one or more of {', '.join(DIRECTIONS)}, in this order, got {directions!r}"
        )


def signals_named(kind: Any) -> Any:
    """The name of UPA's signals, not checked; a name from an earlier release is translated with a warning."""
    if kind != "three":
        return kind
    warnings.warn("signals='three' is called 'alignment' now", DeprecationWarning, stacklevel=3)
    return "alignment"


# --- parameters and results -------------------------------------------------------------------------------------------


class TIMParameters(NamedTuple):
    """The parameters of TIM: weights and biases of five linear layers, batch normalisation and optional attention.

    To cut a direction, set all its fields to None: without those of seg_to_clf (proj, context, clf_gate and norm) the
    vector does not change, without those of clf_to_seg (gain and seg_gate) the map does not.

    Fields:
        proj_weight, proj_bias: projection W_p, (P, C) or (P, C, 1, 1), and (P,).
        context_weight, context_bias: context W_c, (F, P) and (F,).
        clf_gate_weight, clf_gate_bias: gate of the vector W_g, (F, F) and (F,).
        gain_weight, gain_bias: gain of the map's channels W_s, (C, F) and (C,).
        seg_gate_weight, seg_gate_bias: gate of the map W_d, (C, C) and (C,).
        norm_weight, norm_bias: scale and shift of the batch normalisation, (F,).
        norm_mean, norm_var: its running mean and variance, (F,), updated in training.
        attn_weight: attention a, (C,) or (1, C, 1, 1); None for projection pooling.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from mtlkit.ops import TIMParameters
        >>> C, P, F = 8, 4, 16
        >>> layers = nn.Conv2d(C, P, 1), nn.Linear(P, F), nn.Linear(F, F), nn.Linear(F, C), nn.Linear(C, C)
        >>> norm = nn.BatchNorm1d(F, eps=1e-3)
        >>> pairs = (t for layer in (*layers, norm) for t in (layer.weight, layer.bias))
        >>> TIMParameters(*pairs, norm.running_mean, norm.running_var).context_weight.shape
        torch.Size([16, 4])
    """

    proj_weight: Tensor | None
    proj_bias: Tensor | None
    context_weight: Tensor | None
    context_bias: Tensor | None
    clf_gate_weight: Tensor | None
    clf_gate_bias: Tensor | None
    gain_weight: Tensor | None
    gain_bias: Tensor | None
    seg_gate_weight: Tensor | None
    seg_gate_bias: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    norm_mean: Tensor | None
    norm_var: Tensor | None
    attn_weight: Tensor | None = None


class UPAParameters(NamedTuple):
    """The parameters of UPA: two linear layers, and for three signals two projections.

    Fields:
        fc1_weight, fc1_bias: (hidden, 2) for two signals, (hidden, 3) for three, and (hidden,).
        fc2_weight, fc2_bias: (2, hidden) and (2,).
        seg_proj, clf_proj: P_s, (Q, C), and P_c, (Q, F), for three signals; else None.

    Example:
        >>> import torch
        >>> from mtlkit.ops import UPAParameters
        >>> upa = UPAParameters(torch.randn(32, 2), torch.zeros(32), torch.randn(2, 32), torch.zeros(2))
        >>> upa.seg_proj is None
        True
    """

    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor
    seg_proj: Tensor | None = None
    clf_proj: Tensor | None = None


class VarianceSignals(NamedTuple):
    """UPA's two signals, (B,) each, before they are normalised.

    Example:
        >>> import torch, mtlkit
        >>> x, f = torch.ones(2, 4, 3, 3), torch.tensor([[-1.0, 1.0], [-2.0, 2.0]])
        >>> mtlkit.ops.upa_stats(x, x, f, f)
        VarianceSignals(seg=tensor([0., 0.]), clf=tensor([1., 4.]))
    """

    seg: Tensor
    clf: Tensor


class AlignmentSignals(NamedTuple):
    """UPA's three signals, (B,) each: alignment of the tasks, gradient energy of the map, spread of the vector.

    Example:
        >>> import torch, mtlkit
        >>> x, f = torch.ones(1, 4, 3, 3), torch.ones(1, 6)
        >>> mtlkit.ops.upa_stats(x, 2 * x, f, 2 * f, "alignment", torch.ones(5, 4), torch.ones(5, 6)).energy
        tensor([0.])
    """

    alignment: Tensor
    energy: Tensor
    spread: Tensor


Signals = VarianceSignals | AlignmentSignals


class TIMOutput(NamedTuple):
    """The enhanced map and vector, and the factor of each channel.

    Fields:
        seg: enhanced map D~, (B, C, H, W).
        clf: enhanced vector f~, (B, F).
        mu: factors, (B, C), between 1 and 1 + tau.

    Example:
        >>> import torch
        >>> from mtlkit.ops import TIMOutput
        >>> TIMOutput(torch.ones(1, 2, 3, 3), torch.ones(1, 4), torch.ones(1, 2)).mu.shape
        torch.Size([1, 2])
    """

    seg: Tensor
    clf: Tensor
    mu: Tensor


class InteractionOutput(NamedTuple):
    """The results of a level of interaction.

    Fields:
        seg: final map D^, (B, C, H, W).
        clf: final vector f^, (B, F).
        gates: w_seg and w_clf, (B, 2), including given ones.
        stats: the signals from which the gates are computed.
        enhanced_clf: enhanced vector f~, (B, F).
        enhanced_seg: enhanced map D~, (B, C, H, W), or None if it was not requested.

    Example:
        >>> import torch, mtlkit
        >>> from mtlkit.ops import UPAParameters
        >>> x, f = torch.randn(2, 4, 3, 3), torch.randn(2, 6)
        >>> upa = UPAParameters(torch.randn(32, 2), torch.zeros(32), torch.randn(2, 32), torch.zeros(2))
        >>> out = mtlkit.ops.upa(x, 2 * x, f, 2 * f, upa)
        >>> out.gates.shape, out.stats.seg.shape
        (torch.Size([2, 2]), torch.Size([2]))
    """

    seg: Tensor
    clf: Tensor
    gates: Tensor
    stats: Signals
    enhanced_clf: Tensor
    enhanced_seg: Tensor | None = None


# --- shape rule -------------------------------------------------------------------------------------------------------


def check_map(name: str, x: Tensor) -> None:
    """Raises unless `x` is a map with at least one pixel."""
    check_tensor(name, x, 4)
    if min(x.shape[1:]) < 1:
        raise ValueError(f"{name}: expected shape (B, C, H, W) with C, H and W at least 1, got {tuple(x.shape)}")


def check_vector(f: Tensor, x: Tensor) -> None:
    """Raises unless `f` has a vector for each image of `x`."""
    check_tensor("f", f, 2)
    if f.shape[1] < 1:
        raise ValueError(f"f: expected shape (B, F) with F at least 1, got {tuple(f.shape)}")
    check_shape("f", f, "(B, F), with as many rows as x has images,", x.shape[0], f.shape[1])
    check_device(x=x, f=f)


def check_enhanced(x: Tensor, x_enhanced: Tensor, f: Tensor, f_enhanced: Tensor) -> None:
    """Raises unless the enhanced map and vector have the shapes of their bases."""
    for name, tensor, base, letters in (
        ("x_enhanced", x_enhanced, x, "(B, C, H, W), that of x,"),
        ("f_enhanced", f_enhanced, f, "(B, F), that of f,"),
    ):
        check_tensor(name, tensor, base.dim())
        check_shape(name, tensor, letters, *base.shape)
    check_device(x=x, x_enhanced=x_enhanced, f_enhanced=f_enhanced)


def check_projection(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, attn: Tensor | None, where: str = ""
) -> None:
    """Raises unless a projection fits the map; `where` is a prefix for names in messages, for example "tim.proj_"."""
    channels = x.shape[1]
    check_tensor(f"{where}weight", weight, (2, 4))
    check_tensor(f"{where}bias", bias, 1)
    assert weight is not None  # check_tensor rejects None
    assert bias is not None
    sizes = (channels, 1, 1)[: weight.dim() - 1]
    letters = "(P, C)" if weight.dim() == 2 else "(P, C, 1, 1)"
    check_shape(f"{where}weight", weight, letters, weight.shape[0], *sizes)
    if weight.shape[0] < 1:
        raise ValueError(f"{where}weight: expected P, the projected channels, at least 1, got 0")
    check_shape(f"{where}bias", bias, "(P,)", weight.shape[0])
    check_device(x=x, **{f"{where}weight": weight, f"{where}bias": bias})
    if attn is not None:
        name = f"{where.removesuffix('proj_')}attn_weight"
        check_tensor(name, attn, (1, 4))
        wanted = ("(C,)", (channels,)) if attn.dim() == 1 else ("(1, C, 1, 1)", (1, channels, 1, 1))
        check_shape(name, attn, wanted[0], *wanted[1])
        check_device(x=x, **{name: attn})


Shapes = dict[str, tuple[str, tuple[int, ...]]]  # field -> its letters and its sizes


def _check_fields(parameters: NamedTuple, where: str, x: Tensor, shapes: Shapes) -> None:
    device = x.device
    for field, (letters, sizes) in shapes.items():
        value = getattr(parameters, field)
        if fits(value, sizes, device):
            continue
        name = f"{where}.{field}"
        check_tensor(name, value, len(sizes))
        check_shape(name, value, letters, *sizes)
        check_device(x=x, **{name: value})


def check_tim(x: Tensor, f: Tensor, p: object, tau: object) -> None:
    """Raises unless TIM's parameters fit map and vector, and each direction has all of them or none."""
    if not isinstance(p, TIMParameters):
        raise TypeError(f"tim: expected TIMParameters, got {type(p).__name__}")
    C, N = x.shape[1], f.shape[1]
    back = p.gain_weight, p.gain_bias, p.seg_gate_weight, p.seg_gate_bias
    forth = p.proj_weight, p.proj_bias, *p[2:6], *p[10:]  # all but gain and seg_gate
    cut = all(value is None for value in forth)
    shapes: Shapes = {}
    if not cut:
        check_projection(x, p.proj_weight, p.proj_bias, p.attn_weight, "tim.proj_")
        assert p.proj_weight is not None  # check_projection rejects that
        shapes |= {
            "context_weight": ("(F, P)", (N, p.proj_weight.shape[0])),
            "context_bias": ("(F,)", (N,)),
            "clf_gate_weight": ("(F, F)", (N, N)),
            "clf_gate_bias": ("(F,)", (N,)),
        }
        shapes |= dict.fromkeys(("norm_weight", "norm_bias", "norm_mean", "norm_var"), ("(F,)", (N,)))
    if cut or any(value is not None for value in back):
        shapes |= {
            "gain_weight": ("(C, F)", (C, N)),
            "gain_bias": ("(C,)", (C,)),
            "seg_gate_weight": ("(C, C)", (C, C)),
            "seg_gate_bias": ("(C,)", (C,)),
        }
    _check_fields(p, "tim", x, shapes)
    check_tau(tau)


def check_gates(x: Tensor, gates: Tensor | None) -> None:
    """Raises unless `gates` are weights for each image of `x`, or None."""
    if gates is not None:
        check_tensor("gates", gates, 2)
        check_shape("gates", gates, "(B, 2), with as many rows as x has images,", x.shape[0], 2)
        check_device(x=x, gates=gates)


def check_tau(tau: object) -> None:
    """Raises unless `tau` is a number."""
    if not isinstance(tau, (int, float)):
        raise TypeError(f"tau: expected a number, got {type(tau).__name__}")


def check_signals(
    x: Tensor, f: Tensor, kind: str, seg_proj: Tensor | None, clf_proj: Tensor | None, where: str = ""
) -> None:
    """Raises unless the signals exist and have exactly the projections they need."""
    if kind not in SIGNALS:
        raise ValueError(f"signals: expected one of {', '.join(map(repr, SIGNALS))}, got {kind!r}")
    projections: dict[str, tuple[Any, str, Tensor]] = {
        f"{where}seg_proj": (seg_proj, "C", x),
        f"{where}clf_proj": (clf_proj, "F", f),
    }
    for name, (value, letter, wide) in projections.items():
        if kind == "variance":
            if value is not None:
                raise ValueError(f"{name}: expected None with signals='variance', got {type(value).__name__}")
            continue
        check_tensor(name, value, 2)
        rows = projections[f"{where}seg_proj"][0].shape[0]
        check_shape(name, value, f"(Q, {letter})", rows, wide.shape[1])
        check_device(x=x, **{name: value})


def check_upa(x: Tensor, f: Tensor, p: object, kind: str, normaliser: Tensor | None) -> None:
    """Raises unless UPA's parameters fit map, vector and signals."""
    if not isinstance(p, UPAParameters):
        raise TypeError(f"upa: expected UPAParameters, got {type(p).__name__}")
    check_signals(x, f, kind, p.seg_proj, p.clf_proj, "upa.")
    check_tensor("upa.fc1_weight", p.fc1_weight, 2)
    hidden, count = p.fc1_weight.shape[0], SIGNALS[kind]
    shapes: Shapes = {
        "fc1_weight": (f"(hidden, {count}) for signals={kind!r}", (hidden, count)),
        "fc1_bias": ("(hidden,)", (hidden,)),
        "fc2_weight": ("(2, hidden)", (2, hidden)),
        "fc2_bias": ("(2,)", (2,)),
    }
    _check_fields(p, "upa", x, shapes)
    if normaliser is None:
        return
    if kind != "variance":
        raise ValueError("normaliser: expected None with signals='alignment', which are not normalised, got a tensor")
    check_tensor("normaliser", normaliser, 1)
    check_shape("normaliser", normaliser, "(2,)", 2)
    check_device(x=x, normaliser=normaliser)
