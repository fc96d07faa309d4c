"""BTI-Net: MBDI with gates that depend on three signals and not on the other images of the batch.

It differs from MBDI in UPA: a small perceptron with two independent sigmoids computes the gates from the alignment of
the two tasks, the gradient energy of the decoder's map and the spread of the vector
(mtlkit.nn.UncertaintyProxyAttention, `signals="alignment"`). After the network has been trained, a second stage trains
only these gates to predict the difficulty of each image, so that they can serve as failure scores.

Source: "Bidirectional Decoder-Level Task Interaction via Uncertainty-Aware Gating" (arXiv 2606.29102) and its published
code.
"""

from dataclasses import dataclass

from torch import nn

from mtlkit.models.mbdi import MBDI, InteractionOptions
from mtlkit.models.registry import register
from mtlkit.nn import InteractionLevel


@dataclass(frozen=True)
class BTINetOptions(InteractionOptions):
    """Options of BTI-Net: those of InteractionOptions.

    Example:
        >>> from mtlkit.models import BTINetOptions
        >>> BTINetOptions(num_classes=2).tau
        0.7
    """


@register("btinet", BTINetOptions())
class BTINet(MBDI):
    """BTI-Net: images to the logits of a mask and of a class, and the gates of each level.

    Arguments, shapes and errors are those of MBDI; `options` defaults to BTINetOptions().

    Source: arXiv 2606.29102.

    Example:
        >>> import torch, mtlkit
        >>> options = mtlkit.models.BTINetOptions(encoder="resnet18", decoder_dims=(32, 24, 16, 12))
        >>> model = mtlkit.models.BTINet(options).eval()
        >>> model(torch.rand(2, 3, 64, 64)).gates.shape
        torch.Size([2, 4, 2])
        >>> optimizer = torch.optim.Adam(model.stage2_parameters(), lr=3e-4)
    """

    signals = "alignment"
    defaults = BTINetOptions()

    def stage2_parameters(self) -> list[nn.Parameter]:
        """The parameters of the gates, the only ones that the second stage trains.

        Raises:
            ValueError: the network has no gates.
        """
        if not self.gate_names:
            raise ValueError(f"stage2_parameters: the network has no gates with {self.options}")
        levels = (module for module in self.modules() if isinstance(module, InteractionLevel))
        return [parameter for level in levels for parameter in level.upa.parameters()]
