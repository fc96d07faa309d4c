"""Token blocks restated from their papers with the published names, in plain PyTorch, scanned token by token."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.mamba import restated_scan

# --- Mamba, Vision Mamba, VideoMamba, SegMamba ------------------------------------------------------------------------


def mamba_orders(layer: nn.Module, length: int) -> dict[str, list[int]]:
    """The order of tokens in each direction, by the suffix of its parameters."""
    forward = list(range(length))
    found = {"": forward}
    if layer.bimamba_type in ("v1", "v2", "v3"):
        found["_b"] = forward[::-1]
    if layer.bimamba_type == "v3":
        deep = length // layer.nslices
        found["_s"] = [i * deep + j for j in range(deep) for i in range(layer.nslices)]
    return found


def scan_of(layer: nn.Module, names: tuple[str, str, str, str], u: Tensor, bias_times: int = 1) -> Tensor:
    """The scan with the parameters of these names for x_proj, dt_proj, A_log and D: (B, L, D) to (B, L, D)."""
    x_proj, dt_proj, A_log, D = (getattr(layer, name) for name in names)
    rank, states = dt_proj.weight.shape[1], A_log.shape[1]
    dts, B, C = x_proj(u).transpose(1, 2).split((rank, states, states), 1)  # (B, R | N | N, L)
    delta = torch.einsum("dr,brl->bdl", dt_proj.weight, dts)
    y, _ = restated_scan(u.transpose(1, 2), delta, -A_log.exp(), B, C, D, None, bias_times * dt_proj.bias, True)
    return y.transpose(1, 2)


def mamba_block(layer: nn.Module, x: Tensor) -> Tensor:
    """The block as described in the papers: every direction in its own order, with its own gate."""
    length = x.shape[1]
    total = 0
    directions = mamba_orders(layer, length)
    xz = F.linear(x, layer.in_proj.weight, layer.in_proj.bias)  # (B, L, 2 D)
    for suffix, order in directions.items():
        own = "" if layer.bimamba_type == "v1" else suffix  # suffix of its parameters
        seen = directions[own]  # the order of the convolution; "v1" uses one for both directions
        u, z = xz[:, seen].chunk(2, -1)  # (B, L, D)
        u = F.silu(getattr(layer, f"conv1d{own}")(u.transpose(1, 2))[..., :length]).transpose(1, 2)
        u, z = (u, z) if seen == order else (u[:, order], z[:, order])
        out = scan_of(layer, (f"x_proj{own}", f"dt_proj{own}", f"A{suffix}_log", f"D{own}"), u) * F.silu(z)
        y = torch.empty_like(u)
        y[:, order] = out
        total = total + y
    if layer.if_divide_out and len(directions) > 1:
        total = total / len(directions)
    y = F.linear(total, layer.out_proj.weight, layer.out_proj.bias)
    return y * layer.gamma if "gamma" in layer._parameters else y


def _start(D: int, N: int) -> nn.Parameter:
    return nn.Parameter(torch.arange(1, N + 1.0).log().repeat(D, 1))


class MambaBlock(nn.Module):
    """Parts in mamba-ssm's order."""

    def __init__(
        self,
        d_model: int,
        d_state: int = 3,
        d_conv: int = 4,
        expand: float = 2,
        bimamba_type: str = "none",
        nslices: int = 5,
        if_divide_out: bool = False,
        init_layer_scale: float | None = None,
        bias: bool = False,
        conv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.d_inner, self.dt_rank = int(expand * d_model), math.ceil(d_model / 16)
        D, N, R = self.d_inner, d_state, self.dt_rank
        self.bimamba_type, self.nslices, self.if_divide_out = bimamba_type, nslices, if_divide_out
        if init_layer_scale is not None:
            self.gamma = nn.Parameter(torch.full((d_model,), init_layer_scale))
        self.in_proj = nn.Linear(d_model, 2 * D, bias=bias)
        for s in {"v2": ("", "_b"), "v3": ("", "_b", "_s")}.get(bimamba_type, ("",)):
            conv = nn.Conv1d(D, D, d_conv, padding=d_conv - 1, groups=D, bias=conv_bias)
            setattr(self, f"conv1d{s}", conv)
            if s == "":
                self.act = nn.SiLU()
            setattr(self, f"x_proj{s}", nn.Linear(D, R + 2 * N, bias=False))
            setattr(self, f"dt_proj{s}", nn.Linear(R, D))
            setattr(self, f"A{s}_log", _start(D, N))
            setattr(self, f"D{s}", nn.Parameter(torch.ones(D)))
        if bimamba_type == "v1":
            self.A_b_log = _start(D, N)
        self.out_proj = nn.Linear(D, d_model, bias=bias)

    def forward(self, hidden_states: Tensor, inference_params: object = None) -> Tensor:
        return mamba_block(self, hidden_states)


# --- MambaVision ------------------------------------------------------------------------------------------------------


class MambaVisionMixer(nn.Module):
    """Half of the channels is scanned, half only convolved; both convolutions are centred."""

    def __init__(self, d_model: int, d_state: int = 3, d_conv: int = 3, bias: bool = False, conv_bias: bool = False):
        super().__init__()
        half, R = d_model, math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * half, bias=bias)
        self.x_proj = nn.Linear(half, R + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(R, half)
        self.A_log, self.D = _start(half, d_state), nn.Parameter(torch.ones(half))
        self.out_proj = nn.Linear(2 * half, d_model, bias=bias)
        self.conv1d_x = nn.Conv1d(half, half, d_conv, groups=half, bias=conv_bias)
        self.conv1d_z = nn.Conv1d(half, half, d_conv, groups=half, bias=conv_bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        x, z = self.in_proj(hidden_states).transpose(1, 2).chunk(2, 1)  # (B, D / 2, L)
        x, z = (
            F.silu(F.conv1d(v, conv.weight, conv.bias, padding="same", groups=v.shape[1])).transpose(1, 2)
            for v, conv in ((x, self.conv1d_x), (z, self.conv1d_z))
        )
        y = scan_of(self, ("x_proj", "dt_proj", "A_log", "D"), x, bias_times=2)
        return self.out_proj(torch.cat((y, z), -1))


# --- LocalVim ---------------------------------------------------------------------------------------------------------


class MultiScan(nn.Module):
    def __init__(self, choices: tuple[str, ...], token_size: tuple[int, int]) -> None:
        super().__init__()
        self.choices, self.token_size, self.search = choices, token_size, False

    def tokens(self, choice: str) -> list[int]:
        height, width = self.token_size
        w = int(choice[1:].split("_")[0]) if choice[0] == "w" else 0
        pixels = [(i, j) for i in range(height) for j in range(width)]
        if w:
            pixels.sort(key=lambda p: (p[0] // w, p[1] // w, p[0] % w, p[1] % w))
        elif choice[0] == "v":
            pixels.sort(key=lambda p: (p[1], p[0]))
        found = [i * width + j for i, j in pixels]
        return found[::-1] if choice.endswith("flip") else found


class BiAttn(nn.Module):
    """A weight for each channel, computed from the mean of the normalised tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.global_reduce = nn.Linear(channels, channels // 4)
        self.act_fn = nn.GELU()
        self.channel_select = nn.Linear(channels // 4, channels)
        self.gate_fn = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        mean = self.act_fn(self.global_reduce(self.norm(x).mean(1, keepdim=True)))
        return x * self.gate_fn(self.channel_select(mean))


class MultiMamba(nn.Module):
    """One direction per choice; a class token stays in the middle of every order."""

    def __init__(
        self,
        d_model: int,
        directions: tuple[str, ...] = ("h", "v_flip", "w2", "w2_flip"),
        token_size: tuple[int, int] = (4, 6),
        use_middle_cls_token: bool = False,
        d_state: int = 3,
        d_conv: int = 4,
    ) -> None:
        super().__init__()
        D, R = 2 * d_model, math.ceil(d_model / 16)
        self.token_size, self.use_middle_cls_token = token_size, use_middle_cls_token
        self.in_proj = nn.Linear(d_model, 2 * D, bias=False)
        self.act = nn.SiLU()
        self.multi_scan = MultiScan(directions, token_size)
        for k in range(len(directions)):
            setattr(self, f"A_log_{k}", _start(D, d_state))
            setattr(self, f"conv1d_{k}", nn.Conv1d(D, D, d_conv, padding=d_conv - 1, groups=D))
            setattr(self, f"x_proj_{k}", nn.Linear(D, R + 2 * d_state, bias=False))
            setattr(self, f"dt_proj_{k}", nn.Linear(R, D))
            setattr(self, f"D_{k}", nn.Parameter(torch.ones(D)))
        self.out_proj = nn.Linear(D, d_model, bias=False)
        self.attn = BiAttn(D)

    def forward(self, hidden_states: Tensor, inference_params: object = None) -> Tensor:
        xz = self.in_proj(hidden_states)  # (B, L, 2 D)
        length, total = xz.shape[1], 0
        patches = list(range(length))
        if self.use_middle_cls_token:
            middle = patches.pop((length - 1) // 2)
        for k, choice in enumerate(self.multi_scan.choices):
            order = [patches[i] for i in self.multi_scan.tokens(choice)]
            if self.use_middle_cls_token:
                order.insert(middle, middle)
            x, z = xz[:, order].chunk(2, -1)
            u = F.silu(getattr(self, f"conv1d_{k}")(x.transpose(1, 2))[..., :length]).transpose(1, 2)
            out = scan_of(self, (f"x_proj_{k}", f"dt_proj_{k}", f"A_log_{k}", f"D_{k}"), u) * F.silu(z)
            y = torch.empty_like(out)
            y[:, order] = out
            total = total + self.attn(y)
        return self.out_proj(total)


# --- PlainMamba -------------------------------------------------------------------------------------------------------


def snakes(height: int, width: int) -> list[list[tuple[int, int]]]:
    """The pixels in each of the four directions: rows back and forth, reversed, columns back and forth, reversed."""
    rows = [(i, j) for i in range(height) for j in (range(width) if i % 2 == 0 else reversed(range(width)))]
    columns = [(i, j) for j in range(width) for i in (range(height) if j % 2 == 0 else reversed(range(height)))]
    return [rows, rows[::-1], columns, columns[::-1]]


MOVES = {(0, 1): 1, (0, -1): 2, (-1, 0): 3, (1, 0): 4}  # right, left, up, down


class PlainMamba2D(nn.Module):
    """Only the input follows the snakes: projections stay in image order, and the direction of each move adds to B."""

    def __init__(self, d_model: int, d_state: int = 3, conv_size: int = 3, init_layer_scale: float | None = None):
        super().__init__()
        D, R = 2 * d_model, math.ceil(d_model / 16)
        if init_layer_scale is not None:
            self.gamma = nn.Parameter(torch.full((d_model,), init_layer_scale))
        self.in_proj = nn.Linear(d_model, 2 * D, bias=False)
        self.conv2d = nn.Conv2d(D, D, conv_size, padding=conv_size // 2, groups=D)
        self.act = nn.SiLU()
        self.x_proj = nn.Linear(D, R + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(R, D)
        self.A_log, self.D = _start(D, d_state), nn.Parameter(torch.ones(D))
        self.out_proj = nn.Linear(D, d_model, bias=False)
        self.direction_Bs = nn.Parameter(0.02 * torch.randn(5, d_state))

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        x, z = self.in_proj(x).chunk(2, -1)  # (B, L, D)
        u = self.conv2d(x.transpose(1, 2).unflatten(2, tuple(hw_shape)))
        u = F.silu(u).flatten(2)  # (B, D, L)
        rank, states = self.dt_proj.weight.shape[1], self.A_log.shape[1]
        dts, B, C = self.x_proj(u.transpose(1, 2)).transpose(1, 2).split((rank, states, states), 1)
        delta = self.dt_proj(dts.transpose(1, 2)).transpose(1, 2)
        total = 0
        for snake in snakes(*hw_shape):
            order = [i * hw_shape[1] + j for i, j in snake]
            moves = [MOVES[b[0] - a[0], b[1] - a[1]] for a, b in pairwise(snake)]
            added = self.direction_Bs[[0, *moves]].t()  # (N, L)
            A, bias = -self.A_log.exp(), self.dt_proj.bias
            out, _ = restated_scan(u[..., order], delta, A, B + added, C, self.D, None, bias, True)
            y = torch.empty_like(out)
            y[..., order] = out
            total = total + y.transpose(1, 2)
        out = self.out_proj(total * F.silu(z))
        return out * self.gamma if "gamma" in self._parameters else out
