"""Parameters with a mark for training code, such as "no weight decay"."""

from typing import Any

from torch import nn


class Marked(nn.Module):
    """A layer whose parameters keep their marks when they are replaced.

    A subclass defines `_mark`, which sets the marks, and calls it in its constructor.
    """

    def _mark(self) -> None:
        raise NotImplementedError

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mark()  # copy.deepcopy drops attributes of a Parameter

    def _apply(self, *arguments: Any, **options: Any) -> "Marked":
        super()._apply(*arguments, **options)
        self._mark()  # to_empty has replaced the Parameters
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._mark()  # load_state_dict(assign=True) does so too
