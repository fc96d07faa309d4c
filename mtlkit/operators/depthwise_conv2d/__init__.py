r"""depthwise_conv2d: depthwise convolution, bias and SiLU in one pass over the image.

B images, D channels, H x W pixels, a filter of k x k for each channel; pixels beyond the border are 0.

    a[b, d, h, w] = bias[d] + sum_ij weight[d, 0, i, j] x[b, d, s h + e i - top, s w + e j - left],   i, j in 0 .. k - 1
    y = SiLU(a) = a / (1 + exp(-a))          or y = a

with stride s and dilation e. It is the spatial part of the separable convolutions of MobileNet, EfficientNet and
ConvNeXt.

Source: Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications" (2017).
"""

from torch import Tensor

from mtlkit._check import check_choice, check_tensor
from mtlkit.operators._operator import Operator
from mtlkit.operators.depthwise_conv2d import cpu
from mtlkit.operators.depthwise_conv2d.reference import depthwise_conv2d_reference, depthwise_conv2d_torch
from mtlkit.operators.depthwise_conv2d.signature import Inputs, Options, check, new_outputs

ACTIVATIONS = (None, "silu")

OPERATOR = Operator(
    "depthwise_conv2d",
    inputs=Inputs,
    options=Options,
    check=check,
    new_outputs=new_outputs,
    reference=depthwise_conv2d_reference,
    torch_form=depthwise_conv2d_torch,
    backends={"cpu": cpu},
)


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int | tuple[int, int, int, int] | None = None,
    dilation: int = 1,
    activation: str | None = None,
) -> Tensor:
    """Depthwise convolution, plus a bias and optionally SiLU.

    Inputs may be float32, float64, bfloat16 or float16, in any combination, with any strides; pixels with contiguous
    channels are the fast case, whatever the strides between pixels. Sums are float32 (float64 if x is). First-order
    gradients flow to every tensor; with SiLU the backward pass recomputes the convolution instead of storing it.
    Results are bitwise reproducible on the same machine, for any number of threads.

    On the CPU a compiled kernel runs windows of 3, 5 and 7 with stride 1, or 2 without dilation. Everything else runs
    PyTorch's convolution.

    Args:
        x: input, (B, D, H, W).
        weight: one filter per channel, (D, 1, k, k).
        bias: added before the activation, (D,).
        stride: pixels between neighbouring windows.
        padding: zeros on each side, or (left, right, top, bottom) as in F.pad; None for dilation * (k - 1) // 2.
        dilation: pixels between neighbouring taps.
        activation: None or "silu".

    Returns:
        The output, (B, D, H', W') in the dtype of x: channels-last if x is, otherwise contiguous.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices do not fit together, or the requested backend cannot run this call.

    Example:
        >>> import torch, mtlkit
        >>> x = torch.randn(1, 8, 7, 6).to(memory_format=torch.channels_last)
        >>> mtlkit.ops.depthwise_conv2d(x, torch.randn(8, 1, 5, 5), stride=2, activation="silu").shape
        torch.Size([1, 8, 4, 3])
    """
    check_choice("activation", activation, ACTIVATIONS)
    check_tensor("weight", weight, 4)
    sides = dilation * (weight.shape[-1] - 1) // 2 if padding is None else padding
    sides = sides if isinstance(sides, tuple) else (sides,) * 4
    return OPERATOR(Inputs(x, weight, bias), Options(stride, sides, dilation, activation is not None))[0]
