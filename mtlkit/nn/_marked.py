"""Parameters that carry a mark for training code, such as one that asks for no weight decay."""

from typing import Any

from torch import nn


class Marked(nn.Module):
    """A layer whose parameters keep their marks wherever others are put in their place.

    A subclass has `_mark`, which sets them, and calls it when it is made.
    """

    def _mark(self) -> None:
        raise NotImplementedError

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mark()  # copy.deepcopy takes no attributes of a Parameter along

    def _apply(self, *arguments: Any, **options: Any) -> "Marked":
        super()._apply(*arguments, **options)
        self._mark()  # to_empty has put new Parameters in their place
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._mark()  # load_state_dict(assign=True) does so too
