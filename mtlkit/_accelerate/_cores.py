"""Modules of the SS2D family that are not a standard SS2D layer: how they are recognised, and their replacements.

    SegMAN          only the scan of a map in four directions, between proj and yproj if it has more channels than the
                    map
    MambaIRv2       only the scan of tokens sorted by meaning, with a prompt added to C
    MSVMamba        conv2d_b1 halves the map: its tokens backwards, by columns and by columns backwards form one
                    sequence, the full map by rows another; se weights the channels of their sum
    Sigma           in_proj_modalx, conv2d_modalx: the tokens of two images form one sequence, scanned both ways;
                    x_proj_1, x_proj_2: two sequences, each with the C of the other

A replacement calls the other parts of the original unchanged; only the scan is mtlkit's.

Source: Fu et al., "SegMAN" (2024); Guo et al., "MambaIRv2" (2024); Shi et al., "Multi-Scale VMamba" (2024); Wan et al.,
"Sigma" (2024).
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit import ops
from mtlkit._accelerate._scans import COLUMNS, ROWS, Scan, reversed_scan
from mtlkit._accelerate._share import Plan, Shared, check_parameters, kind, require
from mtlkit._check import check_tensor
from mtlkit.operators.pixel_linear import pixel_linear

SCAN_PARAMETERS = ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds")
CROSS_PARAMETERS = ("A_log_1", "A_log_2", "D_1", "D_2")
SIZE = (2, 6, 8)  # images, rows, columns of the comparison
THIRDS = (reversed_scan(ROWS), COLUMNS, reversed_scan(COLUMNS))  # the directions of MSVMamba's map of half the size

# --- replacements -----------------------------------------------------------------------------------------------------


class _SharedCore(Shared):
    """A module that replaces another one and holds its Parameters and parts.

    Args:
        original: the replaced module, which `restore` puts back.
    """

    name = ""
    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # parts and Parameters are the original's

    def __init__(self, original: Any) -> None:
        super().__init__()
        self._modules.update(original._modules)
        self._parameters.update(original._parameters)
        self.form = self.name
        self._stand_in_for(original)

    def _projections(self, u: Tensor) -> Tensor:
        """Projects tokens (B, L, D) to x_dbl of all directions, (B, K, R + 2 N, L), in the order of the tokens."""
        directions = self.dt_projs_weight.shape[0]
        rows = F.linear(u, self.x_proj_weight.reshape(-1, u.shape[-1]))  # (B, L, K (R + 2 N))
        return rows.unflatten(-1, (directions, -1)).permute(0, 2, 3, 1)

    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.dt_projs_weight, self.dt_projs_bias, self.A_logs, self.Ds


class SharedBareScan(_SharedCore):
    """SegMAN's scan in four directions: (B, C, H, W) to (B, C, L), float32 unless `to_dtype`."""

    name = "bare scan, cross"

    def forward(self, x: Tensor, to_dtype: bool = False, force_fp32: bool = False) -> Tensor:
        """Scans a map."""
        check_tensor("x", x, 4)
        pixels = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        wider = "proj" in self._modules
        u = self.proj(pixels) if wider else pixels  # (B, H, W, D)
        rows = pixel_linear(u, self.x_proj_weight.reshape(-1, u.shape[-1]))
        x_dbl = rows.unflatten(-1, (4, -1)).permute(0, 3, 4, 1, 2)  # (B, 4, R + 2 N, H, W)
        wide = torch.promote_types(x.dtype, torch.float32)
        y = ops.ss2d(u.permute(0, 3, 1, 2), x_dbl, *self._weights(), out_dtype=wide)  # (B, D, H, W)
        y = self.yproj(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if wider else y
        return (y.to(x.dtype) if to_dtype else y).flatten(2)


class SharedPromptedScan(_SharedCore):
    """MambaIRv2's scan: tokens (B, L, D) and a prompt for C (B, L, N) to tokens (B, L, D) in float32."""

    name = "prompted scan of sorted tokens"

    def forward(self, x: Tensor, prompt: Tensor, **_: object) -> Tensor:
        """Scans tokens."""
        check_tensor("x", x, 3)
        x_dbl = self._projections(x)
        states = self.A_logs.shape[-1]
        rows = x_dbl.split((x_dbl.shape[2] - states, states), 2)
        x_dbl = torch.cat((rows[0], rows[1] + prompt.transpose(1, 2).unsqueeze(1)), 2)
        wide = torch.promote_types(x.dtype, torch.float32)
        order = ops.orders.forward(x.shape[1])
        return ops.directional_scan(x.transpose(1, 2), x_dbl, *self._weights(), order=order, out_dtype=wide).mT


class SharedMultiScale(_SharedCore):
    """MSVMamba's layer: (B, H, W, C) in and out."""

    name = "multi-scale scan"

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        """Scans a map at full and at half size."""
        check_tensor("x", x, 4)
        height, width = x.shape[1:3]
        x, z = self.in_proj(x).chunk(2, -1)
        z = z if getattr(self.original, "disable_z_act", False) else self.act(z)
        x = x.permute(0, 3, 1, 2)
        whole, half = self.act(self.conv2d(x)), self.act(self.conv2d_b1(x))
        y = self._scan_norm(1, (ROWS,), whole)
        few = self._scan_norm(0, THIRDS, half).permute(0, 3, 1, 2)  # (B, D, h, w)
        y = y + F.interpolate(few, size=(height, width), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
        if "se" in self._modules:
            y = self.se(y.permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1)
        return self.dropout(self.out_proj(y * z))

    def _scan_norm(self, k: int, scans: tuple[Scan, ...], u: Tensor) -> Tensor:
        """Scans the directions as one sequence, adds them up and normalises the sum: (B, D, h, w) to (B, h, w, D)."""
        batch, inner, height, width = u.shape
        u = u.permute(0, 2, 3, 1).flatten(1, 2)  # (B, L, D)
        rows = F.linear(u, self.x_proj_weight[k])
        length, parts = height * width, len(scans)
        orders = [scan.order(height, width).table(u.device) + i * length for i, scan in enumerate(scans)]
        order = ops.orders.permutation(torch.cat(orders, 1), check=False)
        weights = self.dt_projs_weight[k : k + 1], self.dt_projs_bias[k : k + 1]
        each = slice(k * inner, (k + 1) * inner)
        y = ops.directional_scan(
            u.repeat(1, parts, 1).mT,
            rows.repeat(1, parts, 1).mT.unsqueeze(1),
            *weights,
            self.A_logs[each],
            self.Ds[each],
            order=order,
            out_dtype=torch.float32 if u.dtype == torch.float16 else None,
        ).mT  # (B, parts L, D)
        norm = self._modules.get(f"out_norm{k}", self.out_norm)
        assert norm is not None
        y = norm(y).to(u.dtype)
        return y.view(batch, parts, height, width, inner).sum(1)


class SharedJoinedScan(_SharedCore):
    """Sigma's fusion of two images in one sequence: from two maps (B, H, W, C) to one."""

    name = "scan of two images, both ways"

    def forward(self, x_rgb: Tensor, x_e: Tensor) -> Tensor:
        """Fuses two maps."""
        check_tensor("x_rgb", x_rgb, 4)
        height, width = x_rgb.shape[1:3]
        one, other = self.in_proj(x_rgb).permute(0, 3, 1, 2), self.in_proj_modalx(x_e).permute(0, 3, 1, 2)
        maps = self.act(self.conv2d(one)), self.act(self.conv2d_modalx(other))
        u = torch.cat([y.flatten(2).mT for y in maps], 1)  # (B, 2 L, D)
        order = ops.orders.both(u.shape[1])
        wide = torch.promote_types(u.dtype, torch.float32)
        y = ops.directional_scan(u.mT, self._projections(u), *self._weights(), order=order, out_dtype=wide).mT
        y_rgb, y_e = y.unflatten(1, (2, height, width)).unbind(1)  # (B, H, W, D) each
        y_rgb, y_e = self.out_norm1(y_rgb).to(u.dtype), self.out_norm2(y_e).to(u.dtype)
        means = self.fc1(one.mean((2, 3))), self.fc2(other.mean((2, 3)))  # (B, D) each
        y = torch.cat((y_rgb * means[1][:, None, None], y_e * means[0][:, None, None]), -1)
        return self.dropout(self.out_proj(y))


class SharedCrossScan(_SharedCore):
    """Sigma's scan of two sequences (B, L, D), each with the C of the other; returns two."""

    name = "two scans, each read through the C of the other"

    def forward(self, x_rgb: Tensor, x_e: Tensor) -> tuple[Tensor, Tensor]:
        """Scans two sequences."""
        check_tensor("x_rgb", x_rgb, 3)
        states = self.A_log_1.shape[1]
        one, other = self.x_proj_1(x_rgb), self.x_proj_2(x_e)  # (B, L, R + 2 N)
        (one, c_one), (other, c_other) = (x.split((x.shape[-1] - states, states), -1) for x in (one, other))
        x_dbl = torch.stack((torch.cat((one, c_other), -1), torch.cat((other, c_one), -1)), 1).mT  # (B, 2, M, L)
        order = ops.orders.forward(x_rgb.shape[1])
        y = ops.directional_scan(
            torch.stack((x_rgb, x_e), 1).mT,
            x_dbl,
            torch.stack((self.dt_proj_1.weight, self.dt_proj_2.weight)),
            torch.stack((self.dt_proj_1.bias, self.dt_proj_2.bias)),
            torch.cat((self.A_log_1, self.A_log_2)),
            torch.cat((self.D_1, self.D_2)),
            order=ops.orders.join(order, order),
            merge=False,
        ).mT  # (B, 2, L, D)
        return self.out_norm_1(y[:, 0]), self.out_norm_2(y[:, 1])


# --- recognition ------------------------------------------------------------------------------------------------------


def _has(module: nn.Module, *names: str) -> bool:
    return all(isinstance(module._modules.get(name), nn.Module) for name in names)


def _maker(module: nn.Module) -> type[_SharedCore] | None:
    """Returns the class that may replace a module, by the names of its parts; None if there is none."""
    if all(name in module._parameters for name in SCAN_PARAMETERS):
        if _has(module, "in_proj", "in_proj_modalx", "conv2d", "conv2d_modalx", "out_norm1", "out_norm2", "fc1", "fc2"):
            return SharedJoinedScan
        if _has(module, "in_proj", "conv2d", "conv2d_b1", "out_norm", "out_proj"):
            return SharedMultiScale
        if not (module._modules.keys() - {"proj", "yproj"}):
            return SharedPromptedScan if len(module.dt_projs_weight) == 1 else SharedBareScan  # pyright: ignore
    parts = ("x_proj_1", "x_proj_2", "dt_proj_1", "dt_proj_2", "out_norm_1", "out_norm_2")
    crossed = all(name in module._parameters for name in CROSS_PARAMETERS) and _has(module, *parts)
    return SharedCrossScan if crossed else None


def resembles(module: nn.Module) -> bool:
    """Returns whether the module has the parts of one of the modules above."""
    return _maker(module) is not None


def plan(module: Any) -> Plan:
    """Returns how the module can be replaced.

    Raises:
        NotRecognised: its parameters do not fit together.
    """
    make = _maker(module)
    assert make is not None
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    check_parameters(module, names, names, "it")
    require(next(module.buffers(), None) is None, "it has buffers")
    if make is SharedMultiScale:
        _check_multi_scale(module)
    inputs, outputs = _inputs(module, make)
    values = _random_parameters(module)
    return Plan(values, [(inputs, [partial(make, module)])], outputs, published=make is SharedBareScan)


def _inputs(module: Any, make: Callable[..., Any]) -> tuple[tuple[Tensor, ...], int]:
    batch, height, width = SIZE
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    tokens = height * width
    if make is SharedCrossScan:
        inner = module.A_log_1.shape[0]
        return (draw(batch, tokens, inner), draw(batch, tokens, inner)), 2
    directions, inner, rank = module.dt_projs_weight.shape
    states = module.A_logs.shape[-1]
    require(module.x_proj_weight.numel() == directions * (rank + 2 * states) * inner, "x_proj_weight has another size")
    if make is SharedPromptedScan:
        return (draw(batch, tokens, inner), draw(batch, tokens, states)), 1
    if make is SharedBareScan:
        require(directions == 4, f"it scans in {directions} directions, and SegMAN in 4")
        channels = module.proj.in_features if _has(module, "proj") else inner
        return (draw(batch, channels, height, width),), 1
    require(isinstance(module.in_proj, nn.Linear), f"in_proj is no linear layer ({kind(module.in_proj)})")
    channels = module.in_proj.in_features
    maps = 2 if make is SharedJoinedScan else 1
    return tuple(draw(batch, height, width, channels) for _ in range(maps)), 1


def _check_multi_scale(module: Any) -> None:
    directions = len(module.dt_projs_weight)
    require(directions == 2, f"it has {directions} sequences, and MSVMamba 2")
    rest = module._modules.keys() - {"in_proj", "act", "conv2d", "conv2d_b1", "se", "out_proj", "dropout"}
    rest -= {"out_norm", "out_norm0", "out_norm1"}
    require(not rest, f"it has parts that MSVMamba has not: {', '.join(sorted(rest))}")


def _random_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Returns random values by name, such that every parameter affects the output."""
    generator = torch.Generator().manual_seed(1)
    values: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        if name.startswith("A_log"):
            values[name] = torch.arange(1, parameter.shape[-1] + 1, dtype=torch.float32).log() + 0.1 * noise
        elif parameter.dim() > 1:
            fan_in = parameter.shape[1] if name == "x_proj_weight" and parameter.shape[-1] == 1 else parameter.shape[-1]
            values[name] = noise * (parameter[0].numel() if parameter.dim() == 4 else fan_in) ** -0.5
        elif "norm" in name and name.endswith("weight"):
            values[name] = 1 + 0.1 * noise
        else:
            values[name] = 0.5 * noise
    return values
