"""Any network of timm with its own classifier, such as the ResNet-18, DenseNet-121 and VGG-16 in CSA-MoE-Net's paper.

Source: "Cross-Stage Attention Multi-Expert Network for Radiologist-Inspired Breast Ultrasound Diagnosis"
(arXiv 2605.25518), table IV.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtlkit._check import check_choice
from mtlkit.models._common import check_at_least_one, check_images
from mtlkit.models.encoders import STRIDE, check_encoder, make_network
from mtlkit.models.network import last_linear
from mtlkit.models.pretrained import Pretrained
from mtlkit.models.registry import register


@dataclass(frozen=True)
class ImageClassifierOptions:
    """Options of a network of timm as a classifier.

    Attributes:
        num_classes: number of classes.
        in_chans: channels of the images, 1 or 3.
        encoder: any network of timm; the paper uses resnet18, vgg16 and densenet121.
        pretrained: whether all layers except the classifier's last one start from ImageNet weights.

    Example:
        >>> import mtlkit
        >>> mtlkit.models.ImageClassifierOptions().encoder
        'resnet18.tv_in1k'
    """

    num_classes: int = 2
    in_chans: int = 3
    encoder: str = "resnet18.tv_in1k"
    pretrained: bool = False

    def __post_init__(self) -> None:
        check_at_least_one(num_classes=self.num_classes)
        check_choice("in_chans", self.in_chans, (1, 3))
        check_encoder(self.encoder)


class ImageClassifierOutput(NamedTuple):
    """The output of an image classifier.

    Example:
        >>> import torch
        >>> from mtlkit.models import ImageClassifierOutput
        >>> ImageClassifierOutput(torch.zeros(1, 2)).cls_logits.softmax(1)
        tensor([[0.5000, 0.5000]])
    """

    cls_logits: Tensor  # (B, num_classes)


@register("image_classifier", ImageClassifierOptions())
class ImageClassifier(Pretrained):
    """A network of timm: images to the logits of a class.

    It accepts masks, as other networks for this task do, and ignores them.

    Args:
        options: options of the network.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-first images (B, in_chans, H, W), H and W at least 32, in; ImageClassifierOutput out.

    Raises:
        ImportError: timm is not installed.
        ValueError: an option is out of range, or the images have another shape or are too small.
        TypeError: the images are not a floating-point tensor.

    Example:
        >>> import torch, mtlkit
        >>> model = mtlkit.models.create_model("image_classifier", num_classes=3).eval()
        >>> model(torch.rand(2, 3, 64, 64)).cls_logits.shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        options: ImageClassifierOptions | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.options = o = options or ImageClassifierOptions()
        with nullcontext() if device is None else torch.device(device):
            self.net = make_network(o.encoder, o.pretrained, num_classes=o.num_classes, in_chans=o.in_chans)
        self.net.to(dtype=dtype)

    @property
    def last_layer(self) -> nn.Linear:
        """The last layer of the classifier."""
        return last_linear(self.net)

    def forward(self, images: Tensor, masks: Tensor | None = None) -> ImageClassifierOutput:
        """Logits: (B, in_chans, H, W) to ImageClassifierOutput."""
        check_images(images, self.options.in_chans, STRIDE)
        return ImageClassifierOutput(self.net(images))
