"""The images that calibrate a file in 8 bits."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Calibration:
    """The images that calibrated a file in 8 bits.

    Args:
        images: their number.
        sha256: hexadecimal SHA-256 of all batches, in the form in which the network received them.

    Example:
        >>> import mtlkit
        >>> mtlkit.deploy.Calibration(64, "5d41").images
        64
    """

    images: int
    sha256: str


class Reader:
    """Passes batches to ONNX Runtime's tools, and counts and hashes them."""

    def __init__(self, inputs: Sequence[str], batches: Iterable[Tensor | Sequence[Tensor]]) -> None:
        self._inputs, self._batches = inputs, iter(batches)
        self._images, self._hash = 0, hashlib.sha256()

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the next batch by the names of the inputs, or None after the last."""
        batch = next(self._batches, None)
        if batch is None:
            self.calibration()  # raises if there was no batch
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
        """Returns the count and hash of the batches so far.

        Raises:
            ValueError: there was no batch.
        """
        if not self._images:
            raise ValueError("int8: expected at least one batch of images, got none")
        return Calibration(self._images, self._hash.hexdigest())
