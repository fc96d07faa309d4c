"""What a file in 8 bits is calibrated with."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Calibration:
    """What a file was calibrated with.

    Args:
        images: how many.
        sha256: of their numbers, as the network takes them.

    Example:
        >>> import mtlkit
        >>> mtlkit.deploy.Calibration(64, "5d41").images
        64
    """

    images: int
    sha256: str


class Reader:
    """Batches as the tools ask for them, and what is remembered of them."""

    def __init__(self, inputs: Sequence[str], batches: Iterable[Tensor | Sequence[Tensor]]) -> None:
        self._inputs, self._batches = inputs, iter(batches)
        self._images, self._hash = 0, hashlib.sha256()

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch by the names of the inputs; None after the last."""
        batch = next(self._batches, None)
        if batch is None:
            self.calibration()  # raises where there was none
            return None
        given = (batch,) if isinstance(batch, Tensor) else tuple(batch)
        if len(given) != len(self._inputs) or not all(isinstance(one, Tensor) for one in given):
            got = ", ".join(str(tuple(one.shape)) if isinstance(one, Tensor) else type(one).__name__ for one in given)
            raise TypeError(f"int8: expected batches of tensors for {', '.join(self._inputs)}, got {got}")
        arrays = {name: one.detach().cpu().numpy() for name, one in zip(self._inputs, given, strict=True)}
        for array in arrays.values():
            self._hash.update(np.ascontiguousarray(array).tobytes())
        self._images += len(given[0])
        return arrays

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(self.get_next, None)

    def calibration(self) -> Calibration:
        """What there was; at least one batch."""
        if not self._images:
            raise ValueError("int8: expected at least one batch of images, got none")
        return Calibration(self._images, self._hash.hexdigest())
