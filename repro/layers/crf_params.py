"""The parameters of the dense CRF."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CRFParams:
    """Parameters of the dense CRF; the defaults are krahenbuhl2013's, used by both releases.

    Attributes:
        iterations: mean-field updates.
        bilateral_weight, bilateral_xy, bilateral_rgb: weight and standard deviations (pixels, 8-bit levels).
        spatial_weight, spatial_xy: weight and standard deviation (pixels).
        scale: both spatial standard deviations are divided by it.

    >>> params = CRFParams(scale=12)
    >>> round(params.bilateral_xy / params.scale, 2)  # the standard deviation, in cells of the grid
    6.67
    """

    iterations: int = 10
    bilateral_weight: float = 10.0
    bilateral_xy: float = 80.0
    bilateral_rgb: float = 13.0
    spatial_weight: float = 3.0
    spatial_xy: float = 3.0
    scale: float = 1.0
