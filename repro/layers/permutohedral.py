"""The permutohedral lattice (Adams, Baek & Davis, Eurographics 2010): where a pixel's features lie on it.

High-dimensional Gaussian filtering in three steps, on the points of a lattice instead of between all pairs of pixels:

    splat   each pixel adds its values, by barycentric weight, to the d + 1 vertices of the simplex that holds it
    blur    along each of the d + 1 axes in turn, every vertex adds half of its two neighbours (absent ones are 0)
    slice   each pixel collects from its vertices with the same weights, times 1 / (1 + 2^-d)

The features are d = 2 coordinates x, y for the spatial kernel and d = 5, x, y and three colours, for the bilateral,
each divided by its standard deviation. They are elevated into the hyperplane sum = 0 of d + 1 dimensions,

    e_0 = Σ c_k,   e_i = Σ_{k >= i} c_k - i·c_{i-1},   c_k = f_k·(d + 1)·sqrt(2/3) / sqrt((k + 1)(k + 2))   (p. 5)

The nearest multiples of d + 1 (ties to even), brought back into the plane where the roundings do not sum to zero,
are the simplex's remainder-0 vertex v; the order of e - v gives its other vertices and the weights (p. 10).

Both engines compute this in float32, operation for operation as the densecrf library that the originals call does
(as it is compiled for x86-64), because the mean-field iteration amplifies the last bit: see docs/performance.md.
One habit of that library is visible: it reads pixels four at a time and fills the last four with points at the
origin, whose vertices then exist for the blur to pass through. :attr:`Features.points` counts one such point.

A vertex's coordinates are congruent modulo d + 1, so it is known by this remainder r and the quotients t_i,
i < d. :class:`Features` lays these out as the digits of one integer, the vertex's key:

    key = Σ_i (t_i - low_i)·stride_i + r·stride_d
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# A pixel's vertices are within 2 of its rounded coordinates, their neighbours within 3; rounding itself adds one.
MARGIN = 4
KEY_BITS = 62


@dataclass(frozen=True)
class Features:
    """The features of one kernel on images of one size, and the layout of its vertex keys.

    Attributes:
        height, width: the images' size.
        tables: per feature, c_k for each value it takes: x (width), y (height), and per colour (256); float32.
        lows, strides: the key's digits, int64 (d) and (d + 1).
        points: pixels, and one at the origin where their number is not a multiple of four.
    """

    height: int
    width: int
    tables: tuple[np.ndarray, ...]
    lows: np.ndarray
    strides: np.ndarray

    @property
    def dimension(self) -> int:
        return len(self.tables)

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def points(self) -> int:
        return self.pixels + (self.pixels % 4 > 0)

    @property
    def keys(self) -> int:
        """Every key, of a vertex or a neighbour, is below this."""
        return int(self.strides[-1]) * (self.dimension + 1)

    @property
    def alpha(self) -> np.float32:
        """Slicing's factor (p. 8 of the paper has it as a constant to be normalised away; densecrf keeps it)."""
        return np.float32(1 / (1 + 2.0**-self.dimension))


def features(height: int, width: int, sd_xy: float, sd_rgb: float | None = None) -> Features:
    """The features of the spatial kernel, or with ``sd_rgb`` of the bilateral one.

    Args:
        height, width: size of the images.
        sd_xy, sd_rgb: standard deviations in pixels and in 8-bit levels.

    Raises:
        ValueError: a standard deviation so small for the size that keys would not fit into 62 bits.
    """
    values = [(width, sd_xy), (height, sd_xy)] + [(256, sd_rgb)] * 3 * (sd_rgb is not None)
    d = len(values)
    expected_sd = np.float32(math.sqrt(2 / 3) * (d + 1))  # of the filter, in the lattice's units (p. 6)
    scales = [np.float32(1 / math.sqrt((k + 1) * (k + 2)) * float(expected_sd)) for k in range(d)]
    tables = tuple(
        np.arange(count).astype(np.float32) / np.float32(sd) * scale
        for (count, sd), scale in zip(values, scales, strict=True)
    )
    largest = [float(table[-1]) for table in tables]
    lows, strides = np.empty(d, np.int64), [1]
    for i in range(d):
        lows[i] = math.floor(-i * largest[i - 1] / (d + 1)) - MARGIN
        strides.append(strides[-1] * (math.ceil(sum(largest[i:]) / (d + 1)) + MARGIN + 1 - int(lows[i])))
    if strides[-1] * (d + 1) >= 2**KEY_BITS:
        raise ValueError(
            f"dense CRF: standard deviations {sd_xy} (pixels) and {sd_rgb} (levels) are too small for {height}x{width}"
        )
    return Features(height, width, tables, lows, np.array(strides, np.int64))


def neighbour_steps(strides: np.ndarray) -> np.ndarray:
    """What to add to a vertex's key for its neighbour before it along each axis, int64 (2, d + 1).

    That neighbour is one less in every coordinate but axis j's, where it is d more. Row 1 is for vertices with
    r > 0, whose quotients stay, but for t_j + 1; row 0 for r = 0, where the remainder wraps round to d.
    """
    d = len(strides) - 1
    own = np.append(strides[:d], 0)  # the last axis has no digit of its own
    return np.stack([own - strides[:d].sum() + d * strides[d], own - strides[d]])
