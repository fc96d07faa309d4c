"""The package `causal_conv1d`, and its extension `causal_conv1d_cuda` with the arguments of all its versions.

In version 1.0 of the package the fourth argument was the activation, now it is `seq_idx`; a string is an activation.
"""

from typing import Any

import torch
from torch import Tensor

from mtlkit import ops

__all__ = ["MODULES"]


# --- the package ------------------------------------------------------------------------------------------------------


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | str | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Calls `mtlkit.ops.causal_conv1d`; writes the final states to `final_states_out` if given."""
    if isinstance(seq_idx, str):
        seq_idx, activation = None, seq_idx
    found = ops.causal_conv1d(
        x,
        weight,
        bias,
        seq_idx=seq_idx,
        initial_states=initial_states,
        return_final_states=return_final_states,
        activation=activation,
    )
    if isinstance(found, tuple) and final_states_out is not None:
        return found[0], final_states_out.copy_(found[1])
    return found


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | str | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Computes the same in plain PyTorch."""
    if isinstance(initial_states, str):
        initial_states, activation = None, initial_states
    with ops.use_backend("reference"):
        return causal_conv1d_fn(
            x, weight, bias, None, initial_states, return_final_states, final_states_out, activation
        )


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Calls `mtlkit.ops.causal_conv1d_update`."""
    return ops.causal_conv1d_update(
        x,
        conv_state,
        weight,
        bias,
        activation=activation,
        cache_seqlens=cache_seqlens,
        conv_state_indices=conv_state_indices,
    )


def causal_conv1d_update_ref(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
) -> Tensor:
    """Computes the same in plain PyTorch."""
    with ops.use_backend("reference"):
        return causal_conv1d_update(x, conv_state, weight, bias, activation, cache_seqlens)


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """Returns the last tokens of each sequence, padded with zeros in front: x (T, D) to (B, D, state_len)."""
    starts, ends = cu_seqlens[:-1, None], cu_seqlens[1:, None]
    places = ends + torch.arange(-state_len, 0, device=x.device)  # (B, state_len)
    states = x[places.clamp(min=0)].masked_fill((places < starts)[..., None], 0)  # (B, state_len, D)
    return states.transpose(1, 2)


# --- the extension ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def _fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    final_states_out: Tensor | None,
    silu_activation: bool,
) -> Tensor:
    found = causal_conv1d_fn(
        x,
        weight,
        bias,
        seq_idx,
        initial_states,
        final_states_out is not None,
        final_states_out,
        _named(silu_activation),
    )
    return found[0] if isinstance(found, tuple) else found


def _bwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    dfinal_states: Tensor | None,
    dx: Tensor | None,
    return_dinitial_states: bool,
    silu_activation: bool,
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of x (written to `dx` if given), weight, bias and the initial states."""
    leaves: list[Any] = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias, initial_states)]
    with torch.enable_grad():
        found = causal_conv1d_fn(
            leaves[0],
            leaves[1],
            leaves[2],
            seq_idx,
            leaves[3],
            dfinal_states is not None,
            None,
            _named(silu_activation),
        )
    wanted = [t for t in leaves if t is not None]
    outputs = found if isinstance(found, tuple) else (found,)
    present = iter(torch.autograd.grad(outputs, wanted, (dout, dfinal_states)[: len(outputs)]))
    found_x, found_weight, found_bias, found_initial = (None if t is None else next(present) for t in leaves)
    found_x = found_x if dx is None or found_x is None else dx.copy_(found_x)
    return found_x, found_weight, found_bias, found_initial if return_dinitial_states else None


def _update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu_activation: bool,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    return causal_conv1d_update(x, conv_state, weight, bias, _named(silu_activation), cache_seqlens, conv_state_indices)


def _named(silu: bool) -> str | None:
    return "silu" if silu else None


def _extension_fwd(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor | None:
    """Takes the arguments of all versions of the forward.

    `rest` is, by version:

        silu
        seq_idx, silu
        seq_idx, initial_states, final_states_out, silu
        seq_idx, initial_states, out, final_states_out, silu
    """
    _check_count("causal_conv1d_fwd", rest, (1, 2, 4, 5), 3)
    given, silu = dict(zip(("seq_idx", "initial_states"), rest[:-1], strict=False)), rest[-1]
    final_states_out = rest[-2] if len(rest) >= 4 else None
    out = _fwd(x, weight, bias, given.get("seq_idx"), given.get("initial_states"), final_states_out, silu)
    if len(rest) == 5:
        rest[2].copy_(out)
        return None
    return out


def _extension_bwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, dout: Tensor, *rest: Any
) -> tuple[Tensor | None, ...] | None:
    """Takes the arguments of all versions of the backward.

    `rest` is, by version:

        dx, silu
        seq_idx, dx, silu
        seq_idx, initial_states, dfinal_states, dx, return_dinitial_states, silu
        seq_idx, initial_states, dfinal_states, dx, dweight, dbias, dinitial_states, silu
    """
    _check_count("causal_conv1d_bwd", rest, (2, 3, 6, 8), 4)
    given: list[Any] = list(rest)
    if len(given) <= 3:
        seq_idx = given[0] if len(given) == 3 else None
        return _bwd(x, weight, bias, dout, seq_idx, None, None, given[-2], False, given[-1])[:3]
    if len(given) == 6:
        return _bwd(x, weight, bias, dout, given[0], given[1], given[2], given[3], given[4], given[5])
    places, silu = given[3:7], given[7]
    found = _bwd(x, weight, bias, dout, given[0], given[1], given[2], None, places[-1] is not None, silu)
    for place, gradient in zip(places, found, strict=True):
        if place is not None:
            place.copy_(gradient)
    return None


def _extension_update(x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor | None:
    """Takes the arguments of all versions of the update.

    `rest` is, by version:

        silu
        silu, cache_seqlens
        silu, cache_seqlens, conv_state_indices
        out, silu, cache_seqlens, conv_state_indices
    """
    _check_count("causal_conv1d_update", rest, (1, 2, 3, 4), 4)
    indices: tuple[Any, ...] = rest[-3:] if len(rest) == 4 else (*rest, None, None)[:3]
    out = _update(x, conv_state, weight, bias, indices[0], indices[1], indices[2])
    if len(rest) == 4:
        rest[0].copy_(out)
        return None
    return out


def _check_count(name: str, rest: tuple[Any, ...], counts: tuple[int, ...], before: int) -> None:
    if len(rest) not in counts:
        known = ", ".join(str(before + count) for count in counts)
        raise TypeError(
            f"{name}: expected the arguments of a published version, {known} of them, got {before + len(rest)}"
        )


_FUNCTIONS: dict[str, Any] = {"causal_conv1d_fn": causal_conv1d_fn, "causal_conv1d_update": causal_conv1d_update}
MODULES: dict[str, dict[str, Any]] = {
    "causal_conv1d": {"__version__": "1.6.1"} | _FUNCTIONS,
    "causal_conv1d.causal_conv1d_interface": _FUNCTIONS
    | {"causal_conv1d_ref": causal_conv1d_ref, "causal_conv1d_update_ref": causal_conv1d_update_ref},
    "causal_conv1d.causal_conv1d_varlen": {
        "causal_conv1d_varlen_states": causal_conv1d_varlen_states,
        "causal_conv1d_varlen_states_ref": causal_conv1d_varlen_states,
    },
    "causal_conv1d.cpp_functions": {
        "causal_conv1d_fwd_function": _fwd,
        "causal_conv1d_bwd_function": _bwd,
        "causal_conv1d_update_function": _update,
    },
    "causal_conv1d_cuda": {
        "causal_conv1d_fwd": _extension_fwd,
        "causal_conv1d_bwd": _extension_bwd,
        "causal_conv1d_update": _extension_update,
    },
}
