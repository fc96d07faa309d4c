"""Layers for inference on a CPU with weights packed for oneDNN; each can replace the layer that it is made from.

PyTorch rearranges the weights of a convolution in every call, takes a slower path for small inputs (one image of at
most 20,480 numbers, kernels of at most 3 x 3, no groups), and does four times the necessary multiplications in a
transposed convolution of stride 2. With gradients, under torch.compile, on other devices, and in dtypes that oneDNN
cannot run on this CPU, these layers run PyTorch's own code.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 8  # rows of the input from which packed weights make a linear layer faster


def _dtypes() -> tuple[torch.dtype, ...]:
    if not torch.backends.mkldnn.is_available():
        return ()
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # not on x86 CPUs with AVX2 alone
    return (torch.float32, torch.bfloat16) if has_bfloat16 else (torch.float32,)


DTYPES = _dtypes()  # those in which oneDNN runs on this CPU

Name = tuple[str, list[float | None], str]  # oneDNN's name of an activation, its parameters, its variant

_NAMES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.SiLU: "swish",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.Hardswish: "hardswish",
}


def fused_name(layer: nn.Module) -> Name | None:
    """Returns the arguments by which oneDNN fuses an activation with a convolution; None if it cannot."""
    if isinstance(layer, nn.GELU):
        return "gelu", [], layer.approximate
    if isinstance(layer, nn.LeakyReLU):
        return "leaky_relu", [layer.negative_slope], ""
    if isinstance(layer, nn.Hardtanh):  # ReLU6 is one
        return "hardtanh", [layer.min_val, layer.max_val], ""
    name = _NAMES.get(type(layer))
    return None if name is None else (name, [], "")


class Packed(nn.Module):
    """Base class: packed weights, which are made on demand, and a fused activation."""

    weight: Tensor

    def __init__(self, layer: nn.Module) -> None:
        nn.Module.__init__(self)
        held = layer.__dict__.items()
        self.__dict__.update((name, value.copy() if isinstance(value, dict) else value) for name, value in held)
        self.activation: nn.Module | None = None
        self.name: Name = "none", [], ""
        self._packed: tuple[tuple[Any, ...], Any] = (), None

    def fuse(self, activation: nn.Module) -> None:
        """Fuses an activation for which `fused_name` is not None."""
        self.activation, self.name = activation, fused_name(activation) or self.name

    def plain(self) -> Any:
        """Returns the unpacked weights, in the form that `pack` returns."""
        return self.weight

    def pack(self, x: Tensor) -> Any:
        """Returns the weights packed for inputs of this size."""
        raise NotImplementedError

    def weights(self, x: Tensor) -> Any:
        """Returns the weights, packed from the second call in a row with this size of input.

        The packed layout depends on the size, and packing takes as long as a call.
        """
        now = id(self.weight), self.weight.data_ptr(), self.weight._version, x.shape
        before, packed = self._packed
        if before != now:
            packed = None
            self._packed = now, packed
        elif packed is None:
            packed = self.pack(x)
            self._packed = now, packed
        return self.plain() if packed is None else packed

    def serves(self, x: Tensor) -> bool:
        """Returns whether oneDNN can run this call."""
        plain = x.device.type == "cpu" and x.dtype == self.weight.dtype and x.dtype in DTYPES and x.numel() > 0
        wanted = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        return plain and not (wanted or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"))

    def activate(self, y: Tensor) -> Tensor:
        """Applies PyTorch's activation, if there is one."""
        return y if self.activation is None else self.activation(y)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": ((), None)}


class PackedConv2d(Packed, nn.Conv2d):
    """A convolution with the activation after it.

    Args:
        layer: nn.Conv2d with padding by zeros, given as integers; its parameters are shared.
        same: whether it pads as TensorFlow does (timm's Conv2dSame).
    """

    def __init__(self, layer: nn.Conv2d, same: bool = False) -> None:
        super().__init__(layer)
        self.same = same

    def pack(self, x: Tensor) -> Any:
        """Returns the weights packed for inputs of this size."""
        sizes = list(self.padding), list(self.stride), list(self.dilation), self.groups, list(x.shape)
        return torch.ops.aten.mkldnn_reorder_conv2d_weight(self.weight.detach().to_mkldnn(), *sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Convolves as nn.Conv2d does; the output is channels-last."""
        if self.same:
            x = self._padded(x)
        if x.dim() != 4 or not self.serves(x):
            return self.activate(super().forward(x))
        if self.kernel_size == x.shape[2:] == (1, 1) and self.groups == 1 and self.padding == (0, 0):
            y = F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]
            return self.activate(y)
        x = x.contiguous(memory_format=torch.channels_last)
        sizes = list(self.padding), list(self.stride), list(self.dilation), self.groups
        return torch.ops.mkldnn._convolution_pointwise(x, self.weights(x), self.bias, *sizes, *self.name)

    def _padded(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for i in (1, 0):
            size, step, reach = x.shape[2 + i], self.stride[i], self.dilation[i] * (self.kernel_size[i] - 1) + 1
            extra = max(((size + step - 1) // step - 1) * step + reach - size, 0)
            pads += [extra // 2, extra - extra // 2]
        return F.pad(x, pads) if any(pads) else x


class PhasedConvTranspose2d(Packed, nn.ConvTranspose2d):
    """A transposed convolution of stride 2 that runs as four convolutions, one for each phase.

    Before cropping, output pixel 2 m + a is the sum over j of x[m - j] times tap a + 2 j, where that tap exists.

    Args:
        layer: nn.ConvTranspose2d; its parameters are shared.
        crop: number of rows and columns to drop at the end of its output.
    """

    def __init__(self, layer: nn.ConvTranspose2d, crop: int = 0) -> None:
        super().__init__(layer)
        self.crop = crop

    @staticmethod
    def can_serve(layer: nn.ConvTranspose2d) -> bool:
        """Returns whether a layer has four phases, and its output lies within theirs."""
        plain = layer.stride == (2, 2) and layer.dilation == (1, 1) and layer.groups == 1
        crops = all(extra <= int(pad) for extra, pad in zip(layer.output_padding, layer.padding, strict=True))
        return plain and crops and min(layer.kernel_size) >= 2

    def plain(self) -> list[tuple[Tensor, list[int]]]:
        """Returns weights and padding of the phases (0, 0), (0, 1), (1, 0), (1, 1)."""
        found = []
        for a in range(2):
            for b in range(2):
                taps = self.weight.detach()[:, :, a::2, b::2].flip(2, 3).transpose(0, 1).contiguous()
                found.append((taps, [taps.shape[2] - 1, taps.shape[3] - 1]))
        return found

    def pack(self, x: Tensor) -> list[tuple[Tensor, list[int]]]:
        """Returns the same with the weights packed for inputs of this size."""
        reorder = torch.ops.aten.mkldnn_reorder_conv2d_weight
        sizes = [1, 1], [1, 1], 1, list(x.shape)
        return [(reorder(taps.to_mkldnn(), pads, *sizes), pads) for taps, pads in self.plain()]

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolves as nn.ConvTranspose2d does, then crops; the output is channels-last."""
        if output_size is not None or x.dim() != 4 or not self.serves(x):
            y = super().forward(x, output_size)
            return self.activate(y[:, :, : y.shape[2] - self.crop, : y.shape[3] - self.crop])
        x = x.contiguous(memory_format=torch.channels_last)
        rows, columns = (2 * (x.shape[2 + i] - 1) + self.kernel_size[i] for i in range(2))
        whole = x.new_empty(x.shape[0], rows, columns, self.out_channels).permute(0, 3, 1, 2)
        for i, (taps, pads) in enumerate(self.weights(x)):
            y = torch.ops.mkldnn._convolution_pointwise(x, taps, self.bias, pads, [1, 1], [1, 1], 1, *self.name)
            whole[:, :, i // 2 :: 2, i % 2 :: 2] = y
        ends = [
            size - int(self.padding[i]) + self.output_padding[i] - self.crop for i, size in enumerate((rows, columns))
        ]
        return whole[:, :, self.padding[0] : ends[0], self.padding[1] : ends[1]]


class PackedLinear(Packed, nn.Linear):
    """A linear layer over pixels or tokens.

    Args:
        layer: nn.Linear; its parameters are shared.
    """

    def pack(self, x: Tensor) -> Any:
        """Returns the weights packed for inputs of this size."""
        return torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), x.numel() // self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer as nn.Linear does."""
        few = x.numel() < ROWS * self.in_features
        if few or x.dim() < 2 or x.shape[-1] != self.in_features or not self.serves(x):
            return self.activate(super().forward(x))
        return torch.ops.mkldnn._linear_pointwise(x, self.weights(x), self.bias, *self.name)
