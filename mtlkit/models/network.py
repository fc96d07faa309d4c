"""What a network declares about itself, so that training, evaluation and inference do not have to guess."""

from collections.abc import Mapping
from typing import Any, NamedTuple, get_type_hints

from torch import Tensor, nn


class ClassMap(NamedTuple):
    """A feature map that a classifier uses, and the expert or view it belongs to, for `mtlkit.evaluation.grad_cam`.

    Example:
        >>> from mtlkit.models import create_model
        >>> network = create_model("csa_moe")
        >>> [one.names for one in network.class_maps]
        [('image',), ('tumor',), ('boundary',)]
    """

    module: nn.Module  # module that returns it, or several maps with it as the last
    names: tuple[str, ...]  # names of the maps of each row of a batch, concatenated along the batch
    channels_last: bool = False  # (B, H, W, C)
    multiple: int = 1  # the network pads the image to a multiple of this many pixels, at the bottom and on the right


class Network(nn.Module):
    """Base of the networks; it names what a network takes and returns.

    The names are those in the annotations of `forward`, whose arguments are

        images           (B, C, H, W)
        masks            (B, 1, H, W), known lesion masks
        views, present   (B, 4, C, H, W) and (B, 4), four-view mammograms and which of the views are present

    and which returns a NamedTuple with some of the fields

        seg_logits                   (B, 1, H, W), of the lesion's mask
        cls_logits                   (B, K), of the class of the image
        label_logits, birads_logits  (B, 2, K), of the left and the right breast
        gates                        (B, ...), named by `gate_names`
        stages                       (B, ...), named by `stage_names`

    A field that the options leave out is None. `inspect` returns more of the internals. The options are the first
    argument of the constructor and the attribute `options`.

    Example:
        >>> from mtlkit.models import create_model
        >>> network = create_model("btinet", encoder="resnet18", levels=(2, 3))
        >>> network.returns, network.gate_names
        (('seg_logits', 'cls_logits', 'gates'), ('seg_level2', 'clf_level2', 'seg_level3', 'clf_level3'))
    """

    options: Any

    @property
    def returns(self) -> tuple[str, ...]:
        """The fields of the output that are not None."""
        output = get_type_hints(type(self).forward).get("return")
        named = {"gates": self.gate_names, "stages": self.stage_names}
        return tuple(name for name in getattr(output, "_fields", ()) if named.get(name, True))

    @property
    def gate_names(self) -> tuple[str, ...]:
        """The names of the gates, in the order of `gates`; empty by default."""
        return ()

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The names of the weighted encoder stages, in the order of `stages`; empty by default."""
        return ()

    @property
    def signal_names(self) -> tuple[str, ...]:
        """The names of the gates' signals, in the order of `signals` of `inspect`; empty by default."""
        return ()

    @property
    def interaction_levels(self) -> tuple[int, ...]:
        """The numbers of the decoder levels at which the tasks interact; empty by default."""
        return ()

    @property
    def needs_masks(self) -> bool:
        """Whether the network needs `masks`."""
        return False

    @property
    def depends_on_batch(self) -> bool:
        """Whether the output for an image in eval mode depends on the other images of the batch."""
        return False

    @property
    def last_layer(self) -> nn.Linear | None:
        """The last linear layer of the classifier, whose input is the feature vector of an image; None by default."""
        return None

    @property
    def class_maps(self) -> tuple[ClassMap, ...]:
        """The last feature maps before the classifier, for each expert or view; empty by default."""
        return ()

    def inspect(self, *inputs: Tensor, gates: Mapping[str, float | Tensor] | None = None) -> Any:
        """The output of `forward`, with `signals` (B, ...) if the network provides them.

        Args:
            inputs: the arguments of `forward`.
            gates: weights that replace the network's own, by the names in `gate_names`.

        Raises:
            ValueError: the network has no gates that can be replaced.
        """
        if gates:
            raise ValueError(f"gates: expected None, as {type(self).__name__} has no gates to replace, got {gates}")
        return self(*inputs)

    def stage2_parameters(self) -> list[nn.Parameter]:
        """The parameters of the gates, if a second stage trains only these.

        Raises:
            ValueError: the network has no such gates.
        """
        raise ValueError(f"stage2_parameters: {type(self).__name__} has no gates to train in a second stage")


def takes(network: nn.Module) -> tuple[str, ...]:
    """The names of the inputs that a network's forward takes.

    Example:
        >>> from mtlkit.models import create_model
        >>> from mtlkit.models.network import takes
        >>> takes(create_model("csa_moe"))
        ('images', 'masks')
    """
    return tuple(name for name in get_type_hints(type(network).forward) if name != "return")


def last_linear(module: nn.Module) -> nn.Linear:
    """The last linear layer in a module."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
