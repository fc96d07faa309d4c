"""Several passes of a network for one image: the mean over its mirror images, and windows over a large image.

    p(x)    = mean over flips f of f^-1(network(f(x)))
    m(y, x) = sum over windows w of g_w(y, x) network(w)(y, x)      g_w >= 0, and they sum to 1 at every pixel

A window has the size of the training images. Windows overlap by at least half, and the distances between neighbours
differ by at most one pixel. g is a Gaussian around the centre of a window with a deviation of 1/8 of its size, divided
by the sum over the windows. Windows form a grid, so that g is a product of weights for rows and for columns.

Everything is NumPy, so that any engine can run the passes.

Source: Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation"
(Nature Methods 18, 2021), which blends windows and averages over flips in this way.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from mtlkit.data.items import to_range
from mtlkit.inference.networks import OpenNetwork

__all__ = ["EXAM_FLIPS", "IMAGE_FLIPS", "flip_average", "slide"]

Axes = tuple[int, ...]

IMAGE_FLIPS: tuple[Axes, ...] = ((), (-1,), (-2,), (-2, -1))
EXAM_FLIPS: tuple[Axes, ...] = ((), (-1,))
OVERLAP, DEVIATION = 0.5, 0.125  # fractions of the window's length


# --- flips ------------------------------------------------------------------------------------------------------------


def flip_average(
    network: Callable[[dict[str, Any]], Mapping[str, np.ndarray]],
    inputs: Mapping[str, Any],
    flips: Sequence[Axes] = IMAGE_FLIPS,
) -> dict[str, np.ndarray]:
    """Returns the mean of a network's predictions for images and their mirror images.

    Predicted masks are flipped back first. In an exam each view is flipped separately; views and breasts keep their
    places, so left and right are not swapped. Mammograms are not flipped vertically: see `EXAM_FLIPS`.

    Args:
        network: inputs to outputs, by name, as `open_network` returns it.
        inputs: arrays; those with rows and columns, (B, ..., H, W) of at least 4 dimensions, are flipped.
        flips: axes of each flip; () is the original image.

    Example:
        >>> import numpy as np
        >>> from mtlkit.inference import flip_average
        >>> def network(inputs):
        ...     images = inputs["images"]
        ...     return {"mask": images, "class": images[:, 0, 0]}  # the class depends on the first row
        >>> found = flip_average(network, {"images": np.array([[[[0.0, 0.2], [0.4, 0.6]]]])})
        >>> found["mask"].ravel().tolist(), found["class"].round(2).tolist()
        ([0.0, 0.2, 0.4, 0.6], [[0.3, 0.3]])
    """
    sums: dict[str, np.ndarray] = {}
    for axes in flips:
        turned = {k: _flipped(v, axes) if getattr(v, "ndim", 0) >= 4 else v for k, v in inputs.items()}
        for name, value in network(turned).items():
            value = _flipped(value, axes) if name == "mask" else value
            sums[name] = value if name not in sums else sums[name] + value
    return {name: value / len(flips) for name, value in sums.items()}


def _flipped(values: np.ndarray, axes: Axes) -> np.ndarray:
    return np.ascontiguousarray(np.flip(values, axes)) if axes else values


# --- windows ----------------------------------------------------------------------------------------------------------


def window_starts(length: int, window: int) -> list[int]:
    """Returns where windows begin along an axis, which is at least as long as a window."""
    steps = -(-(length - window) // max(1, int(window * (1 - OVERLAP))))
    return [round(i * (length - window) / steps) if steps else 0 for i in range(steps + 1)]


def blending_weights(length: int, window: int) -> np.ndarray:
    """Returns the weights of windows along an axis, which sum to 1 at every pixel.

    Args:
        length: length of the axis, at least `window`.
        window: length of a window.

    Returns:
        (windows, length), float32; 0 outside a window.

    Example:
        >>> from mtlkit.inference.passes import blending_weights
        >>> blending_weights(6, 4).sum(0).tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    starts = window_starts(length, window)
    shape = np.exp(-0.5 * ((np.arange(window) - (window - 1) / 2) / (DEVIATION * window)) ** 2)
    weights = np.zeros((len(starts), length))
    for row, start in zip(weights, starts, strict=True):
        row[start : start + window] = shape
    return (weights / weights.sum(0)).astype(np.float32)


def count_windows(shape: Sequence[int], window: int) -> int:
    """Returns the number of windows for an image (H, W, ...); 0 if the image is not larger than a window."""
    height, width = shape[:2]
    if height <= window and width <= window:
        return 0
    return len(window_starts(max(height, window), window)) * len(window_starts(max(width, window), window))


def slide(
    network: Callable[[np.ndarray], np.ndarray],
    pixels: np.ndarray,
    window: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int = 1,
) -> np.ndarray:
    """Returns the mask of an image, blended from the masks of windows at full resolution.

    Args:
        network: images (B, 3, window, window), float32, to probabilities (B, 1, window, window).
        pixels: (H, W, 3), uint8. A side shorter than a window is extended by repeating its last pixels.
        window: pixels per side.
        mean: mean for normalisation; None keeps images in [0, 1].
        std: standard deviation for normalisation.
        batch_size: windows per batch.

    Returns:
        (H, W), float32; for an image of a window's size, exactly the network's output.

    Raises:
        ValueError: `window` or `batch_size` is below 1.

    Example:
        >>> import numpy as np
        >>> from mtlkit.inference import slide
        >>> image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
        >>> found = slide(lambda images: images.mean(1, keepdims=True), image, window=32)  # how bright a pixel is
        >>> bool(np.allclose(found, image.mean(2) / 255, atol=1e-6))
        True
    """
    for name, value in {"window": window, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    height, width = pixels.shape[:2]
    below, right = max(0, window - height), max(0, window - width)
    whole = np.pad(pixels, ((0, below), (0, right), (0, 0)), mode="edge").transpose(2, 0, 1)  # (3, H', W')
    lines = [list(zip(window_starts(n, window), blending_weights(n, window), strict=True)) for n in whole.shape[1:]]
    grid = list(product(*lines))
    blended = np.zeros(whole.shape[1:], np.float32)
    for first in range(0, len(grid), batch_size):
        batch = grid[first : first + batch_size]
        cuts = [(slice(y, y + window), slice(x, x + window)) for (y, _), (x, _) in batch]
        found = network(np.stack([to_range(whole[:, rows, columns], mean, std) for rows, columns in cuts]))
        for (rows, columns), ((_, down), (_, across)), one in zip(cuts, batch, found, strict=True):
            blended[rows, columns] += down[rows, None] * across[columns] * one[0]
    return blended[:height, :width]


# --- costs ------------------------------------------------------------------------------------------------------------


def check_windows(network: Any, takes: Sequence[str]) -> None:
    """Raises a ValueError unless the network predicts masks from images, as `sliding_window` requires.

    Args:
        network: its name in the error.
        takes: names of its inputs.
    """
    if tuple(takes) != ("images",):
        raise ValueError(f"sliding_window: expected a network that predicts masks, which that of {network} does not")


def cost_in_words(passes: float, seconds: float, *, tta: bool, sliding_window: bool) -> str:
    """Returns a sentence on how often the network ran for each image, and how long that took."""
    ways = [words for words, on in (("flips averaged", tta), ("windows blended", sliding_window)) if on]
    count = f"{passes:.0f}" if passes == round(passes) else f"{passes:.1f}"
    return f"{' and '.join(ways)}: {count} passes of the network for each, {seconds:.2g} s"


class Ways(NamedTuple):
    """The options that make a network run more than once for an image."""

    sliding_window: bool
    tta: bool
    batch_size: int  # windows per batch

    @property
    def several(self) -> bool:
        """Whether one of them is set."""
        return self.sliding_window or self.tta

    def answer(self, network: OpenNetwork, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the network's predictions for a batch."""
        return flip_average(network, inputs, _flips(network)) if self.tta else network(inputs)

    def mask(self, network: OpenNetwork, pixels: np.ndarray | None) -> tuple[np.ndarray | None, int]:
        """Returns the mask (1, H, W) of an image (H, W, 3) that needs windows, else None; and the number of passes.

        The number includes the passes of `answer`.
        """
        facts, flips = network.facts, len(_flips(network)) if self.tta else 1
        windows = count_windows(pixels.shape, facts.size) if self.sliding_window and pixels is not None else 0
        if not windows or pixels is None:
            return None, flips

        def draw(images: np.ndarray) -> np.ndarray:
            return self.answer(network, {"images": images})["mask"]

        mask = slide(draw, pixels, facts.size, mean=facts.mean, std=facts.std, batch_size=self.batch_size)
        return mask[None], flips * (1 + windows)

    def remarks(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Returns a remark on the costs, if there are several passes."""
        if not self.several:
            return []
        passes, seconds = (sum(row[name] for row in rows) / len(rows) for name in ("passes", "seconds"))
        return [cost_in_words(passes, seconds, tta=self.tta, sliding_window=self.sliding_window)]


def _flips(network: OpenNetwork) -> tuple[Axes, ...]:
    return EXAM_FLIPS if network.facts.takes_exams else IMAGE_FLIPS
