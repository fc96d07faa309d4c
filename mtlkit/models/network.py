"""What a network says of itself, so that training, evaluation and inference need not guess."""

from collections.abc import Mapping
from typing import Any, NamedTuple, get_type_hints

from torch import Tensor, nn


class ClassMap(NamedTuple):
    """A feature map that a class comes from, and whose it is: what `mtlkit.evaluation.grad_cam` looks at.

    Example:
        >>> from mtlkit.models import create_model
        >>> network = create_model("csa_moe")
        >>> [one.names for one in network.class_maps]
        [('image',), ('tumor',), ('boundary',)]
    """

    module: nn.Module  # returns it, or several maps of which it is the last
    names: tuple[str, ...]  # of the maps that each row of a batch has there, one after the other along the batch
    channels_last: bool = False  # (B, H, W, C)
    multiple: int = 1  # of pixels, to which the network fills up the image at the bottom and on the right


class Network(nn.Module):
    """Base of the networks: what a network takes and returns, by name.

    The names are those in the annotations of `forward`, whose arguments are

        images           (B, C, H, W)
        masks            (B, 1, H, W), of lesions that are known
        views, present   (B, 4, C, H, W) and (B, 4), four-view mammograms and which of the views there are

    and which returns a NamedTuple with some of the fields

        seg_logits                   (B, 1, H, W), of the lesion's mask
        cls_logits                   (B, K), of the class of the image
        label_logits, birads_logits  (B, 2, K), of the left and the right breast
        gates                        (B, ...), named by `gate_names`
        stages                       (B, ...), named by `stage_names`

    A field that an option leaves out is None. `inspect` looks further inside. Its options are its constructor's first
    argument, and kept as `options`.

    Example:
        >>> from mtlkit.models import create_model
        >>> network = create_model("btinet", encoder="resnet18", levels=(2, 3))
        >>> network.returns, network.gate_names
        (('seg_logits', 'cls_logits', 'gates'), ('seg_level2', 'clf_level2', 'seg_level3', 'clf_level3'))
    """

    options: Any

    @property
    def returns(self) -> tuple[str, ...]:
        """The fields of its output that are not None."""
        output = get_type_hints(type(self).forward).get("return")
        named = {"gates": self.gate_names, "stages": self.stage_names}
        return tuple(name for name in getattr(output, "_fields", ()) if named.get(name, True))

    @property
    def gate_names(self) -> tuple[str, ...]:
        """Its gates, in the order in which they lie in `gates`; by default it has none."""
        return ()

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages of its encoders that it weighs, in the order in which they lie in `stages`; by default none."""
        return ()

    @property
    def signal_names(self) -> tuple[str, ...]:
        """What its gates come from, in the order in which they lie in `signals` of `inspect`; unknown by default."""
        return ()

    @property
    def interaction_levels(self) -> tuple[int, ...]:
        """The numbers of the decoder levels at which the tasks interact; by default there are none."""
        return ()

    @property
    def needs_masks(self) -> bool:
        """Whether it needs `masks`."""
        return False

    @property
    def depends_on_batch(self) -> bool:
        """Whether in eval mode its answer to an image depends on the others of the batch."""
        return False

    @property
    def last_layer(self) -> nn.Linear | None:
        """The last linear layer of its classifier, whose input is what it knows of an image; by default not known."""
        return None

    @property
    def class_maps(self) -> tuple[ClassMap, ...]:
        """The last feature maps that the class comes from, of each expert or view; unknown by default."""
        return ()

    def inspect(self, *inputs: Tensor, gates: Mapping[str, float | Tensor] | None = None) -> Any:
        """The output of `forward`, with `signals` (B, ...) where the network can tell them.

        Args:
            inputs: as `forward` takes them.
            gates: weights that stand in for the network's own, by the names in `gate_names`.

        Raises:
            ValueError: it has no gates that can be given.
        """
        if gates:
            raise ValueError(f"gates: expected None, as those of {type(self).__name__} cannot be given, got {gates}")
        return self(*inputs)

    def stage2_parameters(self) -> list[nn.Parameter]:
        """The parameters of the gates, where these are trained alone in a second stage.

        Raises:
            ValueError: it has no such gates.
        """
        raise ValueError(f"stage2_parameters: {type(self).__name__} has no gates that learn alone")


def takes(network: nn.Module) -> tuple[str, ...]:
    """The names of what a network's forward takes, of those in its annotations.

    Example:
        >>> from mtlkit.models import create_model
        >>> from mtlkit.models.network import takes
        >>> takes(create_model("csa_moe"))
        ('images', 'masks')
    """
    return tuple(name for name in get_type_hints(type(network).forward) if name != "return")


def last_linear(module: nn.Module) -> nn.Linear:
    """The last linear layer within a module."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
