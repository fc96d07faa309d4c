"""Building blocks of both phantoms: coordinates, random fields, outlines, and checks of options."""

import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter1d


def check_options(cases: int, size: int, seed: int, least_cases: int) -> None:
    """Raises a ValueError unless a data set can be drawn with these options."""
    for name, value, least in (("cases", cases, least_cases), ("size", size, 64), ("seed", seed, 0)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an integer that is at least {least}, got {value!r}")
    if size > 4096:
        raise ValueError(f"size: expected at most 4096 pixels, got {size}")


def grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Y and x of the pixel centres as fractions of the height, so that circles are round."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return (y + 0.5) / height, (x + 0.5) / height


def curve(rng: Generator, length: int, waves: float) -> np.ndarray:
    """A smooth random line with standard deviation 1 and about this many waves."""
    padding = length
    line = gaussian_filter1d(rng.standard_normal(length + 2 * padding), length / (4 * waves))[padding:-padding]
    return (line - line.mean()) / (line.std() + 1e-9)


def power_law(rng: Generator, height: int, width: int, exponent: float, stretch: float = 1.0) -> np.ndarray:
    """Noise with standard deviation 1 and amplitude frequency^-exponent; `stretch` widens it horizontally."""
    fy = np.fft.fftfreq(2 * height)[:, None] * 2 * height
    fx = np.fft.rfftfreq(2 * width)[None] * 2 * width * stretch * (height / width)
    amplitude = np.maximum(fy**2 + fx**2, 1.0) ** (-exponent / 2)
    amplitude[0, 0] = 0
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((2 * height, 2 * width))) * amplitude)[:height, :width]
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def outline(rng: Generator, roughness: float, orders: range, spikes: int = 0, spike: float = 0.0) -> np.ndarray:
    """Radius by angle in 720 steps, mean about 1, from harmonics of these orders and narrow spikes."""
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    radius = np.ones_like(angle)
    for k in orders:
        radius += roughness / k**0.7 * rng.standard_normal() * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    for _ in range(spikes):
        offset = np.angle(np.exp(1j * (angle - rng.uniform(0, 2 * np.pi))))
        radius += spike * rng.uniform(0.4, 1.0) * np.exp(-((offset / rng.uniform(0.05, 0.11)) ** 2))
    return np.maximum(radius, 0.35)


def inside(
    y: np.ndarray,
    x: np.ndarray,
    centre: tuple[float, float],
    axes: tuple[float, float],
    tilt: float,
    radius: np.ndarray,
) -> np.ndarray:
    """Depth of each pixel inside a deformed ellipse: 1 at the centre, 0 on the outline, negative outside."""
    dy, dx = y - centre[0], x - centre[1]
    c, s = np.cos(tilt), np.sin(tilt)
    v, u = (c * dy - s * dx) / axes[0], (s * dy + c * dx) / axes[1]
    angle = np.arctan2(v, u) % (2 * np.pi)
    steps = np.linspace(0, 2 * np.pi, len(radius) + 1)
    return 1 - np.hypot(u, v) / np.interp(angle, steps, np.append(radius, radius[0]))


def smooth_step(value: np.ndarray, width: float) -> np.ndarray:
    """0 well below zero, 1 well above, over about `width`."""
    return 1 / (1 + np.exp(-np.clip(4 * value / width, -30, 30)))
