"""Ultrasound phantoms: layers of the breast, lesions and their shadows, with speckle.

The echo is complex Gaussian noise, scaled by the tissue's strength minus the attenuation above it and blurred by the
beam; its envelope is compressed to decibels, as in a scanner. Depth increases downwards.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from mtlkit._output import new_folder
from mtlkit.data.synthetic._fields import check_options, curve, grid, inside, outline, power_law, smooth_step

__all__ = ["draw_ultrasound", "synthesize_ultrasound"]

# fraction of each class, as in BUSI
SHARES = {"benign": 437 / 780, "malignant": 210 / 780, "normal": 133 / 780}
MARK = "synthetic.json"


# --- tissue -----------------------------------------------------------------------------------------------------------


def _layers(rng: Generator, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Echo strength in dB of skin, fat, gland, muscle and chest wall, and where gland is (0 to 1)."""
    height, width = y.shape

    def depth(low: float, high: float, wave: float) -> np.ndarray:
        return rng.uniform(low, high) + wave * curve(rng, width, rng.uniform(0.5, 1.5))

    skin = depth(0.035, 0.055, 0.003)
    fat = skin + np.abs(depth(0.10, 0.22, 0.03))
    muscle = np.maximum(fat + 0.25, depth(0.66, 0.86, 0.025))
    wall = muscle + depth(0.10, 0.16, 0.012)
    texture = power_law(rng, height, width, 1.3, stretch=2.0)

    strength = -19 + 2.0 * texture  # subcutaneous fat
    for _ in range(rng.integers(4, 9)):  # septa: bright, thin, mostly level
        line = skin + rng.uniform(0.1, 0.9) * (fat - skin) + 0.015 * curve(rng, width, rng.uniform(1, 2))
        present = smooth_step(curve(rng, width, 2.0) + 0.3, 0.6)
        strength += rng.uniform(5, 10) * present * np.exp(-(((y - line) / rng.uniform(0.003, 0.006)) ** 2))

    lobules = power_law(rng, height, width, 1.6, stretch=1.8)
    bands = power_law(rng, height, width, 1.1, stretch=4.0)
    gland = rng.uniform(-10, -6) + 2.0 * texture + 2.5 * bands - 8 * smooth_step(lobules - 0.5, 0.8)
    fibres = np.sin(2 * np.pi * (y - muscle) / rng.uniform(0.016, 0.024) + 0.8 * curve(rng, width, 1.5))
    strands = -19 + 5 * fibres * smooth_step(power_law(rng, height, width, 1.2, stretch=0.2) + 0.2, 0.8)
    is_gland = smooth_step(y - fat + 0.008 * texture, 0.03) * smooth_step(muscle - y, 0.02)
    is_muscle = smooth_step(y - muscle, 0.012)
    strength = strength + (gland - strength) * is_gland
    strength = strength + (strands - strength) * is_muscle
    strength = strength + (-30 - strength) * smooth_step(y - wall - 0.01, 0.02)
    strength += 14 * np.exp(-(((y - muscle) / 0.006) ** 2)) + 24 * np.exp(
        -(((y - wall) / 0.007) ** 2)
    )  # fascia, pleura
    is_skin = smooth_step(skin - y, 0.006)
    bright = -6 + 7 * np.exp(-(((y - skin) / 0.004) ** 2)) - 7 * np.exp(-(((y - 0.5 * skin) / 0.009) ** 2))
    return strength + (bright - strength) * is_skin, is_gland


def _ligaments(rng: Generator, y: np.ndarray, x: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Oblique bright strands through fat and gland."""
    span = float(x.max())
    for _ in range(rng.integers(3, 8)):
        x0, slope = rng.uniform(0, span), rng.uniform(-1.2, 1.2)
        line = x0 + slope * (y - 0.15) + 0.02 * curve(rng, y.shape[0], 1.5)[:, None]
        along = smooth_step(y - rng.uniform(0.06, 0.2), 0.05) * smooth_step(rng.uniform(0.3, 0.6) - y, 0.08)
        strength = strength + rng.uniform(3, 7) * along * np.exp(-(((x - line) / rng.uniform(0.003, 0.006)) ** 2))
    return strength


def _fat_lobule(rng: Generator, y: np.ndarray, x: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """A grey oval with a bright rim in the gland, which resembles a lesion but is not one."""
    centre = (rng.uniform(0.25, 0.55), rng.uniform(0.1, 0.9) * float(x.max()))
    axes = (rng.uniform(0.02, 0.045), rng.uniform(0.06, 0.12))
    depth = inside(y, x, centre, axes, rng.uniform(-0.3, 0.3), outline(rng, 0.08, range(2, 5)))
    strength = strength + (-13 - strength) * smooth_step(depth, 0.3) * 0.8
    return strength + 4 * np.exp(-((depth / 0.12) ** 2))


# --- lesions ----------------------------------------------------------------------------------------------------------


def _benign(rng: Generator, y: np.ndarray, x: np.ndarray, centre: tuple[float, float], strength: np.ndarray):
    """A smooth oval, wider than tall, even inside, with a thin bright capsule; brighter behind."""
    tall = rng.uniform(0.05, 0.13)
    axes = (tall, tall * rng.uniform(1.25, 2.0))
    shape = outline(rng, rng.choice([0.03, 0.06, 0.10]), range(2, 5))
    depth = inside(y, x, centre, axes, rng.uniform(-0.25, 0.25), shape)
    core = rng.uniform(-30, -21) + 1.8 * power_law(rng, y.shape[0], y.shape[1], 1.2, stretch=1.5)
    strength = strength + (core - strength) * smooth_step(depth, rng.uniform(0.06, 0.2))
    rim = (
        np.exp(-(((depth + 0.04) / 0.06) ** 2)) * np.abs(y - centre[0]) / axes[0]
    )  # seen where the beam meets it square
    strength += rng.uniform(3, 8) * rim
    loss = -rng.uniform(10, 40) * smooth_step(depth, 0.06)  # dB per unit of depth: through transmission
    sides = np.exp(-(((np.abs(x - centre[1]) - 0.97 * axes[1]) / 0.012) ** 2)) * (np.abs(y - centre[0]) < 0.03)
    return strength, loss + rng.uniform(0, 90) * sides, depth > 0  # and thin shadows of the edges


def _malignant(rng: Generator, y: np.ndarray, x: np.ndarray, centre: tuple[float, float], strength: np.ndarray):
    """An irregular mass, as tall as wide or taller, with spicules and a bright halo, uneven inside; dark behind."""
    wide = rng.uniform(0.06, 0.13)
    axes = (wide * rng.uniform(0.9, 1.5), wide)
    tilt = rng.uniform(-0.5, 0.5)
    state = rng.bit_generator.state
    rough = outline(rng, rng.uniform(0.10, 0.18), range(2, 10))
    rng.bit_generator.state = state  # the spiculated outline is the same one, with spikes
    spiked = outline(rng, rng.uniform(0.10, 0.18), range(2, 10), spikes=int(rng.integers(7, 14)), spike=0.75)
    mass, spicules = (inside(y, x, centre, axes, tilt, radius) for radius in (rough, spiked))
    core = rng.uniform(-30, -23) + 3.5 * power_law(rng, y.shape[0], y.shape[1], 1.0)
    halo = smooth_step(spicules + 0.4, 0.5) * rng.uniform(2, 6)
    strength = strength + halo
    strength = strength + (core - strength) * (rng.uniform(0.4, 0.7) * smooth_step(spicules, 0.25))
    strength = strength + (core - strength) * smooth_step(mass, rng.uniform(0.15, 0.35))
    for _ in range(rng.integers(0, 9) if rng.random() < 0.5 else 0):  # microcalcifications
        angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.6)
        spot = (centre[0] + far * axes[0] * np.sin(angle), centre[1] + far * axes[1] * np.cos(angle))
        strength = strength + 22 * np.exp(-((y - spot[0]) ** 2 + (x - spot[1]) ** 2) / (2 * 0.0035**2))
    loss = rng.uniform(25, 90) * smooth_step(mass, 0.15)
    # readers outline the mass with the roots of its spicules
    return strength, loss, np.maximum(mass, inside(y, x, centre, axes, tilt, 0.6 * rough + 0.4 * spiked)) > 0


# --- the scanner ------------------------------------------------------------------------------------------------------


def _scan(rng: Generator, strength: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """The image of a tissue with this strength (dB) and extra attenuation (dB per unit of depth)."""
    height, width = strength.shape
    spread = max(height / 256, 0.5)
    lost = gaussian_filter1d(np.cumsum(loss, 0) / height, 3.0 * spread, axis=1)
    gain = 1.5 * power_law(rng, height, width, 1.8) - 2.0 * (np.linspace(0, 1, height)[:, None] - 0.3)
    coupling = -9 * smooth_step(np.abs(np.linspace(-1, 1, width)) - rng.uniform(0.9, 1.1), 0.15)
    level = strength - lost + gain + coupling
    noise = rng.standard_normal((2, height, width))
    near, far = (
        gaussian_filter(noise, (0, 0.7 * spread, lateral * spread), mode="wrap") * np.sqrt(lateral)
        for lateral in (1.3, 2.5)
    )
    share = np.linspace(0, 1, height)[:, None]  # the beam widens with depth
    field = (1 - share) * near + share * far
    field /= field.std((0, 2), keepdims=True)
    envelope = np.hypot(*field) * 10 ** (level / 20)
    envelope += 10 ** ((-44 + 6 * share) / 20) * np.abs(rng.standard_normal((height, width)))  # amplifier noise
    decibels = 20 * np.log10(gaussian_filter(envelope, 0.5 * spread) + 1e-6)
    bottom, top = rng.uniform(-37, -32), rng.uniform(6, 12)
    return np.clip((decibels - bottom) / (top - bottom), 0, 1) ** rng.uniform(0.9, 1.2)


def draw_ultrasound(
    kind: str, size: int | tuple[int, int] = 256, seed: int | Generator = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one ultrasound phantom.

    Args:
        kind: "benign", "malignant" or "normal".
        size: pixels per side, or (height, width).
        seed: random seed; the same seed gives the same phantom.

    Returns:
        The image (H, W) and the mask of the lesion (H, W), both uint8, 0 to 255.

    Raises:
        ValueError: there is no such kind.

    Example:
        >>> from mtlkit.data.synthetic import draw_ultrasound
        >>> image, mask = draw_ultrasound("malignant", size=96, seed=3)
        >>> image.shape, sorted(set(mask.flat))
        ((96, 96), [np.uint8(0), np.uint8(255)])
    """
    if kind not in SHARES:
        raise ValueError(f"kind: expected one of {', '.join(SHARES)}, got {kind!r}")
    rng = np.random.default_rng(seed)
    height, width = (size, size) if isinstance(size, int) else size
    y, x = grid(height, width)
    strength, _ = _layers(rng, y, x)
    strength = _ligaments(rng, y, x, strength)
    for _ in range(rng.integers(0, 3)):
        strength = _fat_lobule(rng, y, x, strength)
    loss, mask = np.zeros_like(strength), np.zeros(strength.shape, dtype=bool)
    if rng.random() < 0.5:  # strands cast shadows, with or without a lesion
        place, broad = rng.uniform(0, 1) * float(x.max()), rng.uniform(0.01, 0.03)
        loss += rng.uniform(5, 14) * np.exp(-(((x - place) / broad) ** 2)) * (y > rng.uniform(0.05, 0.2))
    if kind != "normal":
        draw = _benign if kind == "benign" else _malignant
        centre = (rng.uniform(0.28, 0.55), rng.uniform(0.25, 0.75) * float(x.max()))
        strength, more, mask = draw(rng, y, x, centre, strength)
        loss = loss + more
    image = _scan(rng, strength, loss)
    return (255 * image).round().astype(np.uint8), mask.astype(np.uint8) * 255


def class_counts(cases: int) -> dict[str, int]:
    """Number of cases per class, in BUSI's proportions, at least one each."""
    exact = {name: cases * share for name, share in SHARES.items()}
    counts = {name: max(1, int(value)) for name, value in exact.items()}
    for name in sorted(exact, key=lambda name: int(exact[name]) - exact[name]):
        if sum(counts.values()) < cases:
            counts[name] += 1
    counts["benign"] += cases - sum(counts.values())
    return counts


def synthesize_ultrasound(
    path: str | Path,
    cases: int = 200,
    size: int = 256,
    seed: int = 0,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes a data set of ultrasound phantoms in BUSI's layout, with the three classes in BUSI's proportions.

    The folder is written atomically; images are between 1 and 1.35 times as wide as high.

    Args:
        path: folder to create.
        cases: number of images, at least 3.
        size: height of the images in pixels, 64 to 4096.
        seed: random seed; the same seed gives the same files.
        force: whether to overwrite the result of an earlier run.
        progress: called with the number of processed cases and the total.

    Raises:
        ValueError: an option is out of range.
        DataError: `path` exists already, or cannot be written.

    Example:
        >>> import tempfile
        >>> from mtlkit.data import open_dataset, synthesize_ultrasound
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     synthesize_ultrasound(f"{folder}/busi", cases=3, size=64)
        ...     len(open_dataset(f"{folder}/busi"))
        3
    """
    check_options(cases, size, seed, least_cases=3)
    done = 0
    with new_folder(path, "phantoms", force=force) as folder:
        for number, (kind, count) in enumerate(class_counts(cases).items()):
            for i in range(1, count + 1):
                rng = np.random.default_rng([seed, number, i])
                image, mask = draw_ultrasound(kind, (size, round(size * rng.uniform(1, 1.35))), rng)
                for name, pixels in ((f"{kind} ({i}).png", image), (f"{kind} ({i})_mask.png", mask)):
                    with folder.file(f"{kind}/{name}") as file:
                        Image.fromarray(pixels).save(file)
                done += 1
                if progress is not None:
                    progress(done, cases)
        folder.write_json(MARK, {"phantoms": "ultrasound", "cases": cases, "size": size, "seed": seed})
