r"""Mamba, the block around the 1-D selective scan, in one direction or several.

B sequences, L tokens, C channels of the block, D = expand C of the scan, N states, R rank of the time step, w taps of
the convolution.

    x, z       = split(X W_in)                                   (B, L, D) each
    u_k        = SiLU(causal_conv1d_k(P_k x))                    token t of the order sees x_{t-w+1} .. x_t
    dts, B, C  = split(u_k W_x,k)                                R | N | N
    y_k        = selective_scan(u_k, softplus(dts W_dt,k + b_k), -exp(A_log_k), B, C, D_k)
    out        = (sum_k P_k^-1 y_k) SiLU(z) W_out gamma          gamma is optional (init_layer_scale)

P_k arranges the tokens in the order of direction k: first to last, last to first, or across n slices of m = L / n
tokens, which puts token i m + j at place j n + i. The gate is applied per token after the sum.

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023), figure 3; Zhu et al.,
"Vision Mamba" (2024), algorithm 1; Xing et al., "SegMamba" (2024), section 2.3.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit import ops
from mtlkit._check import check_choice, check_positive, check_tensor
from mtlkit._factory import Factory
from mtlkit._text import shown
from mtlkit.nn._marked import Marked
from mtlkit.operators.pixel_linear import PixelLinear, pixel_linear
from mtlkit.ops import orders

BIMAMBA_TYPES = (None, "none", "v1", "v2", "v3")
# suffixes of the parameters of each direction
SUFFIXES: dict[str, tuple[str, ...]] = {"v2": ("", "_b"), "v3": ("", "_b", "_s")}
UNDECAYED = ("A_log", "D", "A_b_log", "D_b", "A_s_log", "D_s")


class Direction(NamedTuple):
    """The parameters of one direction, with the letters above."""

    conv_weight: Tensor | None  # (D, 1, w); None if the input is already convolved
    conv_bias: Tensor | None  # (D,)
    x_proj: Tensor  # (R + 2 N, D)
    dt_weight: Tensor  # (D, R)
    dt_bias: Tensor  # (D,)
    A_log: Tensor  # (D, N)
    D: Tensor  # (D,)


class Mamba(Marked):
    """The block of Mamba, Vision Mamba, VideoMamba and SegMamba, with the arguments and parameters of mamba-ssm's.

    Parameters have the original names and shapes, so that checkpoints load unchanged: in_proj, conv1d, x_proj, dt_proj,
    A_log (D, N), D (D,), out_proj; two directions with separate weights add conv1d_b, x_proj_b, dt_proj_b, A_b_log and
    D_b, three add conv1d_s, x_proj_s, dt_proj_s, A_s_log and D_s too. The same seed gives the same initial values as in
    mamba-ssm. The parameters A and D are created in at least float32 and have the attribute `_no_weight_decay = True`;
    dt_proj's bias has `_no_reinit = True`.

    Args:
        d_model: input and output channels, C.
        d_state: states of each channel, N.
        d_conv: taps of the causal convolution, w.
        expand: ratio of the scan's channels to the block's, D / C.
        dt_rank: rank of the time step, R; "auto" is C / 16, rounded up.
        dt_min: smallest initial time step.
        dt_max: largest initial time step; steps are log-uniform in between.
        dt_init: initial weights of the time step: "random" is uniform, "constant" uses the bound of that distribution.
        dt_scale: factor of that bound, R^-0.5.
        dt_init_floor: lower limit of the initial time step.
        conv_bias: whether the convolution has a bias.
        bias: whether the two projections have a bias.
        use_fast_path: accepted for compatibility; the block chooses its kernels itself.
        layer_idx: key of this block's states in the cache of `inference_params`.
        device: device of the parameters.
        dtype: dtype of the parameters.
        bimamba_type: directions. None or "none": forward. "v1": both, sharing everything except the state matrix
            (A_b_log).
            "v2": both, each with its own convolution and scan. "v3": as "v2", and one across the slices of a volume.
        nslices: slices of "v3", n; L must be a multiple of it.
        if_divide_out: whether "v2" and "v3" use the mean of the directions instead of their sum.
        init_layer_scale: initial value of a parameter `gamma` (C,) that multiplies the output; None for no such
            parameter.

    Shape:
        (B, L, C) in and out. B may be 0.

    Raises:
        ValueError: an option is out of range, the input has another shape, or decoding is used with several directions.
        TypeError: an input is not a floating-point tensor.

    Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023), figure 3; Zhu et al.,
    "Vision Mamba" (2024), algorithm 1; Xing et al., "SegMamba" (2024), section 2.3.

    Example:
        >>> import torch, mtlkit
        >>> block = mtlkit.nn.Mamba(d_model=32)
        >>> block(torch.randn(2, 50, 32)).shape
        torch.Size([2, 50, 32])
        >>> volume = mtlkit.nn.Mamba(d_model=32, bimamba_type="v3", nslices=4)
        >>> volume(torch.randn(2, 4 * 6 * 5, 32)).shape
        torch.Size([2, 120, 32])
    """

    conv1d: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    A_log: nn.Parameter
    D: nn.Parameter

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        bimamba_type: Literal["none", "v1", "v2", "v3"] | None = None,
        nslices: int = 5,
        if_divide_out: bool = False,
        init_layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        inner = int(expand * d_model)
        check_positive(
            d_model=d_model, d_state=d_state, d_conv=d_conv, dt_rank=rank, dt_min=dt_min, dt_scale=dt_scale,
            dt_init_floor=dt_init_floor, nslices=nslices,
        )  # fmt: skip
        if dt_max < dt_min:
            raise ValueError(f"dt_max: expected at least dt_min = {dt_min}, got {dt_max}")
        if inner < 1:
            raise ValueError(f"expand: expected at least one channel for the scan, got {expand} of {d_model}")
        check_choice("dt_init", dt_init, ("random", "constant"))
        check_choice("bimamba_type", bimamba_type, BIMAMBA_TYPES)
        self.d_model, self.d_inner, self.d_state, self.dt_rank = d_model, inner, d_state, rank
        self.d_conv, self.expand, self.layer_idx, self.use_fast_path = d_conv, expand, layer_idx, use_fast_path
        self.bimamba_type, self.nslices = bimamba_type, nslices
        self.if_divide_out, self.init_layer_scale = if_divide_out, init_layer_scale

        factory = Factory(device=device, dtype=dtype)
        wide = Factory(device=device, dtype=torch.promote_types(dtype or torch.get_default_dtype(), torch.float32))
        if init_layer_scale is not None:
            self.gamma = nn.Parameter(torch.full((d_model,), float(init_layer_scale), **wide))
        self.in_proj = PixelLinear(d_model, 2 * inner, bias=bias, **factory)
        for suffix in SUFFIXES.get(bimamba_type or "", ("",)):
            conv = nn.Conv1d(inner, inner, d_conv, padding=d_conv - 1, groups=inner, bias=conv_bias, **factory)
            self.add_module(f"conv1d{suffix}", conv)
            self.add_module(f"x_proj{suffix}", nn.Linear(inner, rank + 2 * d_state, bias=False, **factory))
            self.add_module(f"dt_proj{suffix}", nn.Linear(rank, inner, **factory))
            if not suffix:  # the other directions use the default initialisation of linear layers, as published
                self._start_time_step(dt_min, dt_max, dt_init, dt_scale, dt_init_floor)
            self._add_states(suffix, wide)
        if bimamba_type == "v1":
            self.A_b_log = nn.Parameter(self.A_log.detach().clone())
        self._mark()
        self.out_proj = PixelLinear(inner, d_model, bias=bias, **factory)

    @torch.no_grad()
    def _start_time_step(self, least: float, most: float, init: str, scale: float, floor: float) -> None:
        weight, bias = self.dt_proj.weight, self.dt_proj.bias
        bound = scale * self.dt_rank**-0.5
        if init == "random":
            weight.uniform_(-bound, bound)
        else:
            weight.fill_(bound)
        step = torch.rand_like(bias) * (math.log(most) - math.log(least)) + math.log(least)  # (D,)
        step = step.exp().clamp(min=floor)
        bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus

    def _add_states(self, suffix: str, wide: Factory) -> None:
        states = torch.arange(1, self.d_state + 1, **wide).log().expand(self.d_inner, -1)
        self.register_parameter(_log_name(suffix), nn.Parameter(states.contiguous()))
        self.register_parameter(f"D{suffix}", nn.Parameter(torch.ones(self.d_inner, **wide)))

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        """Mixes the tokens: (B, L, C) to (B, L, C).

        Args:
            hidden_states: the tokens; if the cache has states of earlier tokens, one token per sequence.
            inference_params: cache for the states between calls: an object with `seqlen_offset`, the number of earlier
                tokens, and `key_value_memory_dict`, a dictionary. The first call, at offset 0, fills it.
        """
        _check_tokens(hidden_states, self.d_model)
        states = None
        if inference_params is not None:
            self._check_decoding()
            states = self._states(inference_params, hidden_states.shape[0])
            if inference_params.seqlen_offset > 0:
                return self.step(hidden_states, *states)[0]
        x, z = self.in_proj(hidden_states).chunk(2, -1)  # (B, L, D) each, views
        if states is None:
            y = self._scan(x)  # (B, L, D)
        else:
            conv_state, ssm_state = states
            conv_state.copy_(F.pad(x.transpose(1, 2), (self.d_conv - x.shape[1], 0)))
            y, last = _scan(x, self._direction(""))
            ssm_state.copy_(last)
        return self._project_out(gate(y, z))

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Processes the next token of every sequence.

        Args:
            hidden_states: the tokens, (B, 1, C).
            conv_state: earlier inputs of the convolution, (B, D, w); updated in place.
            ssm_state: the state of the scan, (B, D, N); updated in place.

        Returns:
            The output, (B, 1, C), and the two states.
        """
        _check_tokens(hidden_states, self.d_model)
        self._check_decoding()
        if hidden_states.shape[1] != 1:
            raise ValueError(f"hidden_states: expected one token per sequence, got {hidden_states.shape[1]}")
        x, z = self.in_proj(hidden_states)[:, 0].chunk(2, -1)  # (B, D) each
        _, _, x_proj, dt_weight, dt_bias, A_log, D = self._direction("")
        u = self._step_conv(x, conv_state)  # (B, D)
        dts, B, C = F.linear(u, x_proj).split((self.dt_rank, self.d_state, self.d_state), -1)
        dt, A = F.linear(dts, dt_weight), -A_log.exp()  # (B, D), (D, N)
        y = ops.selective_state_update(ssm_state, u, dt, A, B, C, D, z, dt_bias, dt_softplus=True)
        return self._project_out(y[:, None]), conv_state, ssm_state

    def _step_conv(self, x: Tensor, conv_state: Tensor) -> Tensor:
        """One token of the convolution and SiLU: (B, D) to (B, D)."""
        weight, bias = self.conv1d.weight[:, 0], self.conv1d.bias
        if 2 <= self.d_conv <= 4:
            return ops.causal_conv1d_update(x, conv_state, weight, bias, activation="silu")
        conv_state.copy_(conv_state.roll(-1, -1))
        conv_state[..., -1] = x
        u = (conv_state * weight).sum(-1).to(x.dtype)
        return F.silu(u if bias is None else u + bias)

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The initial states for `step`: (B, D, w) of the convolution and (B, D, N) of the scan.

        Args:
            batch_size: number of sequences, B.
            max_seqlen: accepted for compatibility; the size of the states does not depend on it.
            dtype: dtype of the states; that of the parameters if None.
            kwargs: accepted for compatibility.
        """
        self._check_decoding()
        conv, scan = self.conv1d.weight, self.dt_proj.weight
        return (
            conv.new_zeros(batch_size, self.d_inner, self.d_conv, dtype=dtype),
            scan.new_zeros(batch_size, self.d_inner, self.d_state, dtype=dtype),
        )

    def _states(self, inference_params: Any, batch: int) -> tuple[Tensor, Tensor]:
        """The states in the cache; new ones if it has none."""
        if self.layer_idx is None:
            raise ValueError("layer_idx: expected the key of this block in the cache of inference_params, got None")
        cache = inference_params.key_value_memory_dict
        if self.layer_idx not in cache:
            cache[self.layer_idx] = self.allocate_inference_cache(batch, 0)
        states = cache[self.layer_idx]
        if states[0].shape[0] != batch:
            raise ValueError(
                f"hidden_states: expected the {states[0].shape[0]} sequences whose states inference_params has, "
                f"got {batch}"
            )
        return states

    def _check_decoding(self) -> None:
        if self.bimamba_type not in (None, "none"):
            raise ValueError(
                f"bimamba_type: expected None for decoding token by token, got {self.bimamba_type!r}, in which each "
                "token depends on later ones"
            )

    def _direction(self, suffix: str) -> Direction:
        conv, dt = getattr(self, f"conv1d{suffix}"), getattr(self, f"dt_proj{suffix}")
        x_proj, A_log, D = (getattr(self, name) for name in (f"x_proj{suffix}", _log_name(suffix), f"D{suffix}"))
        return Direction(conv.weight, conv.bias, x_proj.weight, dt.weight, dt.bias, A_log, D)

    def _scan(self, x: Tensor) -> Tensor:
        """The sum over the directions: (B, L, D) to (B, L, D)."""
        if self.bimamba_type == "v1":
            return scan_both(x, self._direction(""), self.A_b_log)
        y = scan_tokens(x, self._direction(""))
        if self.bimamba_type in ("v2", "v3"):
            y = accumulate(y, scan_tokens(x, self._direction("_b"), backwards=True))
        if self.bimamba_type == "v3":
            if x.shape[1] % self.nslices:
                raise ValueError(
                    f"hidden_states: expected a multiple of nslices = {self.nslices} tokens, got {x.shape[1]}"
                )
            across = x.unflatten(1, (self.nslices, -1)).transpose(1, 2)  # (B, m, n, D)
            y_s = scan_tokens(across.flatten(1, 2), self._direction("_s")).view_as(across).transpose(1, 2)
            y = accumulate(y.unflatten(1, (self.nslices, -1)), y_s).flatten(1, 2)
        if self.if_divide_out and self.bimamba_type in ("v2", "v3"):
            count = len(SUFFIXES[self.bimamba_type])
            y = y / count if y.requires_grad else y.div_(count)
        return y

    def _project_out(self, y: Tensor) -> Tensor:
        out = self.out_proj(y)  # (B, L, C)
        return out if self.init_layer_scale is None else out * self.gamma

    def _mark(self) -> None:
        """Marks parameters that training code must exclude from weight decay and from reinitialisation."""
        for parameter in (self._parameters[name] for name in UNDECAYED if name in self._parameters):
            parameter._no_weight_decay = True  # pyright: ignore - read by training code
        self.dt_proj.bias._no_reinit = True  # pyright: ignore - as above

    def extra_repr(self) -> str:
        """The options, for repr."""
        shown_type = "" if self.bimamba_type in (None, "none") else f", bimamba_type={self.bimamba_type!r}"
        return (
            f"d_model={self.d_model}, d_inner={self.d_inner}, d_state={self.d_state}, dt_rank={self.dt_rank}, "
            f"d_conv={self.d_conv}{shown_type}"
        )


# --- one direction ----------------------------------------------------------------------------------------------------


def _log_name(suffix: str) -> str:
    return f"A{suffix}_log"


def _check_tokens(x: Tensor, channels: int) -> None:
    check_tensor("hidden_states", x, 3)
    if x.shape[1] < 1 or x.shape[2] != channels:
        raise ValueError(
            f"hidden_states: expected shape (B, L, {channels}) with L at least 1, got {shown(tuple(x.shape))}"
        )


def conv_silu(x: Tensor, weight: Tensor, bias: Tensor | None, backwards: bool = False) -> Tensor:
    """The causal convolution along the tokens, forwards or backwards, and SiLU: (B, L, D) to (B, L, D)."""
    taps = weight.shape[-1]
    if backwards:  # earlier tokens are later in memory, so the taps are reversed and look ahead
        return conv_silu(F.pad(x, (0, 0, 0, taps - 1)), weight.flip(-1), bias)[:, taps - 1 :]
    if 2 <= taps <= 4:
        return ops.causal_conv1d(x.transpose(1, 2), weight[:, 0], bias, activation="silu").transpose(1, 2)
    padded = F.pad(x.transpose(1, 2), (taps - 1, 0))  # (B, D, L + w - 1)
    return F.silu(F.conv1d(padded, weight, bias, groups=weight.shape[0])).transpose(1, 2)


def scan_tokens(x: Tensor, direction: Direction, backwards: bool = False) -> Tensor:
    """From the input of the convolution to the output of the scan, along the tokens in memory order.

    Args:
        x: input, (B, L, D).
        direction: the parameters.
        backwards: whether to start at the last token.

    Returns:
        The output, (B, L, D).
    """
    return _scan(x, direction, backwards)[0]


def _scan(x: Tensor, direction: Direction, backwards: bool = False) -> tuple[Tensor, Tensor]:
    """The output (B, L, D), and the state after the last token (B, D, N)."""
    conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A_log, D = direction
    u = x if conv_weight is None else conv_silu(x, conv_weight, conv_bias, backwards)  # (B, L, D)
    order = orders.forward(x.shape[1])
    y, last = ops.directional_scan(
        u.transpose(1, 2),
        pixel_linear(u, x_proj).unflatten(-1, (1, -1)).permute(0, 2, 3, 1),  # (B, 1, R + 2 N, L)
        dt_weight[None],
        dt_bias[None],
        A_log,
        D,
        orders.reverse(order) if backwards else order,
        return_last_state=True,
    )
    return y.transpose(1, 2), last[:, 0]


def scan_both(x: Tensor, direction: Direction, A_b_log: Tensor) -> Tensor:
    """The sum of both scans, which share everything except the state matrix: (B, L, D) to (B, L, D)."""
    conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A_log, D = direction
    u = x if conv_weight is None else conv_silu(x, conv_weight, conv_bias)  # (B, L, D)
    y = ops.directional_scan(
        u.transpose(1, 2),
        pixel_linear(u, x_proj).transpose(1, 2)[:, None].expand(-1, 2, -1, -1),  # (B, 2, R + 2 N, L)
        dt_weight.expand(2, -1, -1),
        dt_bias.expand(2, -1),
        torch.cat((A_log, A_b_log)),
        D.repeat(2),
        orders.both(x.shape[1]),
    )
    return y.transpose(1, 2)


def accumulate(y: Tensor, other: Tensor) -> Tensor:
    """The sum y + other, in place if no gradient is needed."""
    return y + other if y.requires_grad or other.requires_grad else y.add_(other)


def gate(y: Tensor, z: Tensor) -> Tensor:
    """The product y SiLU(z), in place if no gradient is needed."""
    z = z.contiguous()  # PyTorch's SiLU is several times slower on rows that are not contiguous
    return y * F.silu(z) if y.requires_grad or z.requires_grad else y.mul_(F.silu(z))
