"""Layers and networks of other codebases, restated with the published names, and helpers for tests of `accelerate`."""

import functools
import math
from collections.abc import Callable

import plain_medmamba
import torch
import torch.nn.functional as F
from plain_medmamba import MedMamba, scan_token_by_token
from torch import Tensor, nn

import mtlkit

# --- VMamba's second version ------------------------------------------------------------------------------------------


class Linear2d(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"].view(self.weight.shape)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SpatialSoftmax(nn.Module):
    """Softmax over the pixels of a map, whether channels are first or last."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).softmax(-1).view(x.shape) if self.first else x.flatten(1, 2).softmax(1).view(x.shape)


def convolved(first: bool, norm: bool, dim: int) -> nn.Module:
    """VMamba's norms with a depthwise convolution, after a LayerNorm or without it."""
    conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
    if first:
        return nn.Sequential(LayerNorm2d(dim) if norm else nn.Identity(), conv)
    last = nn.Sequential(mtlkit.nn.Permute(0, 3, 1, 2), conv, mtlkit.nn.Permute(0, 2, 3, 1))
    return nn.Sequential(nn.LayerNorm(dim), *last) if norm else last


class VMambaSS2D(nn.Module):
    """Parts in VMamba's order; options are arguments, where VMamba parses them from a string."""

    def __init__(
        self,
        d_model: int,
        d_state: int = 1,
        ssm_ratio: float = 2.0,
        channel_first: bool = False,
        disable_z: bool = True,
        disable_z_act: bool = False,
        oact: bool = False,
        norm: Callable[[int], nn.Module] | None = nn.LayerNorm,
        d_conv: int = 3,
        bias: bool = False,
        conv_bias: bool = False,
        dropout: float = 0.0,
        directions: int = 4,
        linear: type[nn.Module] | None = None,
        says: bool = True,
        orders: str = "cross",
        act: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.dt_rank = int(ssm_ratio * d_model), d_state, math.ceil(d_model / 16)
        D, N, R, K = self.d_inner, d_state, self.dt_rank, directions
        self.disable_z, self.disable_z_act, self.orders = disable_z, disable_z_act, orders
        self.first = channel_first
        if says:
            self.channel_first = channel_first
        linear = linear or (Linear2d if channel_first else nn.Linear)
        self.forward = self.forwardv2
        if norm is nn.LayerNorm and channel_first:
            norm = LayerNorm2d
        self.out_norm = nn.Identity() if norm is None else norm(D)
        self.forward_core = functools.partial(self.forward_corev2, scan=scan_token_by_token)
        self.in_proj = linear(d_model, D if disable_z else 2 * D, bias=bias)
        self.act = act()
        if d_conv > 1:
            self.conv2d = nn.Conv2d(D, D, d_conv, padding=(d_conv - 1) // 2, groups=D, bias=conv_bias)
        self.out_act = nn.GELU() if oact else nn.Identity()
        self.x_proj_weight = nn.Parameter(torch.randn(K, R + 2 * N, D) * D**-0.5)
        self.out_proj = linear(D, d_model, bias=bias)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.Ds = nn.Parameter(torch.ones(K * D))
        self.A_logs = nn.Parameter(torch.zeros(K * D, N))
        self.dt_projs_weight = nn.Parameter(0.1 * torch.rand(K, D, R))
        self.dt_projs_bias = nn.Parameter(0.1 * torch.rand(K, D))

    def orders_of(self, height: int, width: int) -> list[Tensor]:
        rows = torch.arange(height * width)
        columns = rows.view(height, width).t().flatten()
        every = {
            "cross": [rows, columns, rows.flip(0), columns.flip(0)],
            "rows": [rows, rows, rows.flip(0), rows.flip(0)],
            "swapped": [columns, rows, columns.flip(0), rows.flip(0)],
            "one": [rows] * 4,
            "atrous": _atrous(rows.view(height, width)),
        }
        return every[self.orders][: len(self.dt_projs_weight)]

    def forward_corev2(self, x: Tensor, scan) -> Tensor:
        if self.orders == "atrous":
            x, (height, width) = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)), x.shape[2:]
            return self.out_norm(self.scanned(x, scan)[:, :, :height, :width].permute(0, 2, 3, 1))
        y = self.scanned(x, scan)
        return self.out_norm(y if self.first else y.permute(0, 2, 3, 1))

    def scanned(self, x: Tensor, scan) -> Tensor:
        batch, D, height, width = x.shape
        orders = self.orders_of(height, width)
        xs = torch.stack([x.flatten(2)[..., order] for order in orders], 1)  # (B, K, D, L)
        x_dbl = torch.einsum("bkdl,kcd->bkcl", xs, self.x_proj_weight)
        dts, Bs, Cs = x_dbl.split((self.dt_rank, self.d_state, self.d_state), 2)
        dts = torch.einsum("bkrl,kdr->bkdl", dts, self.dt_projs_weight)
        A, bias = -torch.exp(self.A_logs), self.dt_projs_bias.flatten()
        ys = scan(xs.flatten(1, 2), dts.flatten(1, 2), A, Bs, Cs, self.Ds, bias).unflatten(1, (len(orders), D))
        return self.merged(ys, orders).view(batch, D, height, width)

    def merged(self, ys: Tensor, orders: list[Tensor]) -> Tensor:
        """(B, K, D, T) in scan order to (B, D, L) in pixel order."""
        y = ys.new_zeros(ys.shape[0], ys.shape[2], int(max(order.max() for order in orders)) + 1)
        return sum((y.index_copy(2, order, ys[:, k]) for k, order in enumerate(orders)), y)

    def forwardv2(self, x: Tensor) -> Tensor:
        x = self.in_proj(x)
        if not self.disable_z:
            x, z = x.chunk(2, 1 if self.first else -1)
            z = z if self.disable_z_act else self.act(z)
        x = x if self.first else x.permute(0, 3, 1, 2).contiguous()
        y = self.out_act(self.forward_core(self.act(self.conv2d(x) if hasattr(self, "conv2d") else x)))
        return self.dropout(self.out_proj(y if self.disable_z else y * z))


def _atrous(tokens: Tensor) -> list[Tensor]:
    """EfficientVMamba: each direction has another quarter of the pixels, two of them column by column."""
    quarters = [(0, 0, False), (1, 0, True), (0, 1, False), (1, 1, True)]
    parts = [(tokens[i::2, j::2], across) for i, j, across in quarters]
    return [(part.t() if across else part).flatten() for part, across in parts]


# --- LocalMamba -------------------------------------------------------------------------------------------------------


class BiAttn(nn.Module):
    """Weights the channels of a direction's tokens by their mean."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.global_reduce = nn.Linear(dim, dim // 4)
        self.act_fn = nn.GELU()
        self.channel_select = nn.Linear(dim // 4, dim)
        self.gate_fn = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        mean = self.norm(x).mean(1, keepdim=True)  # (B, 1, D)
        return x * self.gate_fn(self.channel_select(self.act_fn(self.global_reduce(mean))))


class MultiScan(nn.Module):
    def __init__(self, dim: int, choices: tuple[str, ...]) -> None:
        super().__init__()
        self.choices = choices
        self.attn = BiAttn(dim)

    def order(self, name: str, height: int, width: int) -> tuple[Tensor, tuple[int, int]]:
        """The tokens of a direction, and the map with their indices, padded to complete windows."""
        stem, _, flip = name.partition("_")
        window = int(stem[1:] or 1)
        tall, wide = (-(-size // window) * window for size in (height, width))
        tokens = torch.arange(tall * wide).view(tall, wide)
        if stem == "v":
            order = tokens.t().flatten()
        else:
            order = tokens.unflatten(1, (-1, window)).unflatten(0, (-1, window)).transpose(1, 2).flatten()
        return (order.flip(0) if flip else order), (tall, wide)


class LocalSS2D(VMambaSS2D):
    """Each direction is scanned and weighted separately, then added; for square maps."""

    def __init__(self, d_model: int, choices: tuple[str, ...], d_state: int = 2) -> None:
        super().__init__(d_model, d_state, disable_z=False, conv_bias=True, directions=len(choices))
        self.multi_scan = MultiScan(self.d_inner, choices)

    def forward_corev2(self, x: Tensor, scan) -> Tensor:
        height, width = x.shape[2:]
        y = x.new_zeros(len(x), height, width, self.d_inner)
        D = self.d_inner
        for k, name in enumerate(self.multi_scan.choices):
            order, (tall, wide) = self.multi_scan.order(name, height, width)
            xs = F.pad(x, (0, wide - width, 0, tall - height)).flatten(2)[..., order]  # (B, D, L)
            dts, Bs, Cs = (self.x_proj_weight[k] @ xs).split((self.dt_rank, self.d_state, self.d_state), 1)
            rows = slice(k * D, (k + 1) * D)
            weights = -torch.exp(self.A_logs[rows]), Bs[:, None], Cs[:, None], self.Ds[rows], self.dt_projs_bias[k]
            found = scan(xs, self.dt_projs_weight[k] @ dts, *weights)[..., order.argsort()].unflatten(2, (tall, wide))
            found = found[:, :, :height, :width].flatten(2).transpose(1, 2)
            y = y + self.multi_scan.attn(found).view(y.shape)
        return self.out_norm(y)


# --- VM-UNet ----------------------------------------------------------------------------------------------------------


class VSSBlock(nn.Module):
    """The block of VM-UNet and of the first VMamba."""

    def __init__(self, dim: int, d_state: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.self_attention = plain_medmamba.SS2D(dim, d_state)
        self.drop_path = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.self_attention(self.ln_1(x)))


class VMUNet(nn.Module):
    """One level down and up again."""

    def __init__(self, dim: int = 8, d_state: int = 4) -> None:
        super().__init__()
        self.vmunet = nn.Module()
        self.vmunet.patch_embed = nn.Conv2d(3, dim, 4, 4)
        stages = (
            nn.ModuleList([VSSBlock(dim, d_state), VSSBlock(dim, d_state)]),
            nn.ModuleList([VSSBlock(2 * dim, d_state)]),
        )
        self.vmunet.layers = nn.ModuleList([nn.Module(), nn.Module()])
        for stage, blocks in zip(self.vmunet.layers, stages, strict=True):
            stage.blocks = blocks
        self.vmunet.layers[0].downsample = plain_medmamba.PatchMerging2D(dim)
        self.vmunet.expand = nn.Linear(2 * dim, 4 * dim, bias=False)
        self.vmunet.up = VSSBlock(dim, d_state)
        self.vmunet.final_conv = nn.Conv2d(dim, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        net = self.vmunet
        x = skip = nn.Sequential(*net.layers[0].blocks)(net.patch_embed(images).permute(0, 2, 3, 1))
        x = net.layers[1].blocks[0](net.layers[0].downsample(x))
        x = F.pixel_shuffle(net.expand(x).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1) + skip
        return net.final_conv(net.up(x).permute(0, 3, 1, 2))


conv_1x1 = functools.partial(nn.Conv2d, kernel_size=1)
plain_norm = functools.partial(nn.LayerNorm, elementwise_affine=False, eps=1e-3)
LAYERS = {
    "medmamba": lambda: plain_medmamba.SS2D(6, 3),
    "medmamba_dropout": lambda: plain_medmamba.SS2D(6, 3, expand=1, dropout=0.3),
    "vmamba": lambda: VMambaSS2D(6),
    "vmamba_first": lambda: VMambaSS2D(6, channel_first=True),
    "vmamba_first_unsaid": lambda: VMambaSS2D(6, channel_first=True, says=False, disable_z=False),
    "vmamba_last_unsaid": lambda: VMambaSS2D(6, 2, says=False, disable_z=False),
    "vmamba_1x1": lambda: VMambaSS2D(6, channel_first=True, says=False, linear=conv_1x1),
    "vmamba_gated": lambda: VMambaSS2D(6, 2, 1.5, disable_z=False, conv_bias=True),
    "vmamba_nozact": lambda: VMambaSS2D(6, 2, disable_z=False, disable_z_act=True, bias=True),
    "vmamba_oact": lambda: VMambaSS2D(6, channel_first=True, oact=True, dropout=0.2),
    "vmamba_no_norm": lambda: VMambaSS2D(6, norm=None),
    "vmamba_plain_norm": lambda: VMambaSS2D(6, norm=plain_norm),
    "vmamba_no_conv": lambda: VMambaSS2D(6, d_conv=1),
    "vmamba_conv_5": lambda: VMambaSS2D(6, d_conv=5, conv_bias=True),
    "vmamba_gelu": lambda: VMambaSS2D(6, 2, channel_first=True, disable_z=False, linear=conv_1x1, act=nn.GELU),
    "vmamba_relu_no_conv": lambda: VMambaSS2D(6, d_conv=1, act=nn.ReLU),
    "vmamba_softmax": lambda: VMambaSS2D(6, channel_first=True, norm=lambda _: SpatialSoftmax(True), oact=True),
    "vmamba_softmax_last": lambda: VMambaSS2D(6, 2, norm=lambda _: SpatialSoftmax(False), disable_z=False),
    "vmamba_sigmoid": lambda: VMambaSS2D(6, 2, norm=lambda _: nn.Sigmoid(), disable_z=False, disable_z_act=True),
    "vmamba_dwconv": lambda: VMambaSS2D(6, channel_first=True, norm=functools.partial(convolved, True, False)),
    "vmamba_cnorm": lambda: VMambaSS2D(6, norm=functools.partial(convolved, False, True)),
    "vmamba_both_ways": lambda: VMambaSS2D(6, channel_first=True, orders="rows"),
    "vmamba_one_way": lambda: VMambaSS2D(6, 2, orders="one", oact=True, disable_z=False, norm=None),
    "vmamba_one_way_gated": lambda: VMambaSS2D(6, 2, orders="one", disable_z=False),
    "vmamba_two": lambda: VMambaSS2D(6, directions=2, disable_z=False, act=nn.GELU),
    "efficientvmamba": lambda: VMambaSS2D(6, 3, disable_z=False, orders="atrous"),
    "localmamba": lambda: LocalSS2D(6, ("h", "v_flip", "w2", "w7_flip")),
    "localmamba_windows": lambda: LocalSS2D(6, ("w2", "w2_flip")),
}  # fmt: skip
TRIED = {
    "vmamba_two",
    "vmamba_one_way_gated",
    "vmamba_both_ways",
    "vmamba_one_way",
    "efficientvmamba",
}  # their order can only be found by comparing outputs
NETWORKS = {
    "medmamba": lambda: MedMamba(3, (1, 2), (8, 16), 4),
    "vmunet": VMUNet,
    "vmamba": lambda: vmamba(),
}


def vmamba(dim: int = 8) -> nn.Module:
    """A layer of each layout."""
    return nn.Sequential(
        nn.Conv2d(3, dim, 4, 4),
        VMambaSS2D(dim, channel_first=True),
        mtlkit.nn.Permute(0, 2, 3, 1),
        VMambaSS2D(dim, 2),
    )


def perturbed(module: nn.Module) -> nn.Module:
    """The model with all parameters moved, so that none is 0, 1 or constant over the channels."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def wrapped(name: str) -> nn.Module:
    """A model around one layer."""
    return nn.Sequential(perturbed(LAYERS[name]()))


def accelerated(model: nn.Module, **options) -> nn.Module:
    report = mtlkit.accelerate(model, **options)
    assert report.replaced
    assert not report.left, str(report)
    return model
