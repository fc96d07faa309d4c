"""Draws masks onto images."""

import numpy as np

__all__ = ["draw_overlay"]

LINE, HALO = (230, 159, 0), (0, 0, 0)  # orange, which differs from grey and from Doppler's red and blue


def draw_overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Draws the outline of a mask onto an image, as a coloured line between two dark ones.

    The line follows the inside of the mask, with a dark halo on both sides, so that it is visible on any background. It
    is one pixel wide per 250 pixels of the image's shorter side.

    Args:
        image: (H, W, 3), uint8.
        mask: (H, W), bool.

    Returns:
        (H, W, 3), uint8.

    Raises:
        ValueError: mask and image have different sizes.

    Example:
        >>> import numpy as np
        >>> from mtlkit.inference import draw_overlay
        >>> mask = np.zeros((9, 9), dtype=bool)
        >>> mask[2:7, 2:7] = True
        >>> draw_overlay(np.full((9, 9, 3), 128, np.uint8), mask)[2, 2].tolist()
        [230, 159, 0]
    """
    if image.shape[:2] != mask.shape:
        raise ValueError(f"mask: expected shape {image.shape[:2]}, that of the image, got {mask.shape}")
    width = max(1, round(min(mask.shape) / 250))
    line = mask & _grown(~mask, width)  # not along the image's border
    band = _grown(line, width) & ~line
    drawn = image.copy()
    drawn[band] = (0.45 * image[band] + 0.55 * np.array(HALO)).astype(np.uint8)
    drawn[line] = LINE
    return drawn


def _grown(pixels: np.ndarray, steps: int) -> np.ndarray:
    """Returns the pixels that are at most `steps` rows and columns away from a set pixel."""
    for axis in (0, 1):
        whole = pixels.swapaxes(0, axis).copy()
        pixels = whole.copy()
        for step in range(1, steps + 1):
            pixels[step:] |= whole[:-step]
            pixels[:-step] |= whole[step:]
        pixels = pixels.swapaxes(0, axis)
    return pixels
