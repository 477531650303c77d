"""The two resizings that the originals mix.

Training images go through Caffe's ``ImageData``, that is OpenCV: 8-bit BGR, bilinear in fixed point.
Test-time images, score maps and the CRF's view of the image go through ``scipy.ndimage.zoom(order=1)``
of SciPy 1.2: corner-aligned, in double precision. The two sample different places, so neither can stand
in for the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import TypeVar

import numpy as np
import torch

from repro.errors import InputError

ArrayT = TypeVar("ArrayT", np.ndarray, torch.Tensor)

# --- OpenCV's 8-bit bilinear resize -------------------------------------------------------------------------

_COEF_BITS = 11  # OpenCV: INTER_RESIZE_COEF_BITS


def resize_bilinear_u8(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """``cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)`` on uint8, bit for bit.

    Output pixel i samples (i + 0.5) · scale − 0.5 (pixel centres aligned). Coefficients have 11 bits.
    The horizontal pass keeps 32-bit sums; the vertical one drops 4 bits of each, multiplies, drops 16 and
    rounds the last 2, as OpenCV's ``VResizeLinear`` does. There is no smoothing when shrinking.

    Args:
        image: uint8 (H, W) or (H, W, K).
        height, width: size of the result, at least 1.
    Returns: uint8 (height, width) or (height, width, K).
    Raises: InputError for another dtype, rank or an empty size.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise InputError(
            f"image: {image.dtype} of shape {image.shape}, uint8 of (H, W) or (H, W, channels) expected"
        )
    if min(*image.shape[:2], height, width) < 1:
        raise InputError(
            f"image of {image.shape[0]}x{image.shape[1]} to {height}x{width}: sizes of at least 1 expected"
        )
    if image.shape[:2] == (height, width):
        return image.copy()
    if image.shape[:2] == (2 * height, 2 * width) and image.shape[2:] not in ((), (1,), (3,), (4,)):
        # OpenCV hands an exact halving to INTER_AREA. Its code for 1, 3 and 4 channels rounds halves up, as
        # the bilinear one happens to; its general code rounds them to even.
        quads = image.reshape(height, 2, width, 2, -1).sum(axis=(1, 3), dtype=np.int32)
        return np.rint(quads * 0.25).astype(np.uint8)

    left, right, x_weights = _opencv_taps(image.shape[1], width)
    top, bottom, y_weights = _opencv_taps(image.shape[0], height)
    trailing = (1,) * (image.ndim - 2)
    x_weights = x_weights.reshape(2, 1, width, *trailing)
    y_weights = y_weights.reshape(2, height, 1, *trailing)

    source = image.astype(np.int32)
    rows = source[:, left] * x_weights[0] + source[:, right] * x_weights[1]
    rows >>= 4
    result = (rows[top] * y_weights[0]) >> 16
    result += (rows[bottom] * y_weights[1]) >> 16
    return ((result + 2) >> 2).astype(np.uint8)


@lru_cache(maxsize=1024)
def _opencv_taps(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both source indices and both int32 weights, (2, size_out), of each output pixel along one axis."""
    # OpenCV inverts the inverse scale, which is not always size_in / size_out to the last bit.
    scale = 1.0 / (size_out / size_in)
    place = ((np.arange(size_out) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int64)
    fraction = place - first.astype(np.float32)
    weights = np.stack([np.float32(1) - fraction, fraction]) * np.float32(1 << _COEF_BITS)
    # Clamped indices: beyond an edge both taps read the edge pixel. OpenCV clamps so only along y; along x it
    # sets the fraction to zero. As the two weights sum to 2048 either way, the sums are the same.
    last = size_in - 1
    return first.clip(0, last), (first + 1).clip(0, last), np.rint(weights).astype(np.int32)


# --- SciPy's order-1 zoom -----------------------------------------------------------------------------------


def zoom_linear(array: ArrayT, factors: Sequence[float]) -> ArrayT:
    """``scipy.ndimage.zoom(array, factors, order=1)`` as SciPy 1.2 under Python 2 computed it.

    An axis of n becomes n · factor rounded half **up** (150 · 0.75 → 113; today's SciPy says 112). Corners of
    input and output coincide: output i samples i · (n_in − 1)/(n_out − 1), in double precision. An output
    axis of 1 takes the first sample. Where rounding puts the last place a hair beyond the last sample (125 to
    241, say), SciPy takes it for outside and writes 0; so does this, and so it stands in the recordings.

    Args:
        array: floating NumPy array or torch tensor of any rank and device. Not differentiable.
        factors: one positive factor per axis.
    Returns: the same kind, dtype and device, resized; the last bit is SciPy's too.
    Raises: InputError for a non-float dtype, a wrong number of factors or an axis that would be empty.
    """
    if len(factors) != array.ndim:
        raise InputError(f"zoom factors {tuple(factors)}: one for each of {array.ndim} axes expected")
    return _zoom_axes(array, [_round_half_up(n * f) for n, f in zip(array.shape, factors, strict=True)])


def zoom_to(array: ArrayT, height: int, width: int, *, axes: tuple[int, int] = (-2, -1)) -> ArrayT:
    """`zoom_linear` with the two spatial ``axes`` given their new sizes, the other axes unchanged.

    Serves (N, C, h, w) and (C, h, w) as they are and (h, w, C) images with ``axes=(0, 1)``.
    """
    sizes = list(array.shape)
    sizes[axes[0]], sizes[axes[1]] = height, width
    return _zoom_axes(array, sizes)


def zoom_rows(scores: torch.Tensor, height: int, width: int, rows: slice) -> torch.Tensor:
    """``zoom_to(scores, height, width)[:, rows]`` of (C, h, w), to the bit, without the memory for all rows."""
    return _zoom_double(scores.detach(), [len(scores), height, width], rows).to(scores.dtype, copy=True)


def _round_half_up(value: float) -> int:
    if not math.isfinite(value):
        raise InputError(f"zoom to {value} samples: a finite size expected")
    below = math.floor(value)
    return below + (value - below >= 0.5)


def _zoom_axes(array: ArrayT, sizes: Sequence[int]) -> ArrayT:
    if min(*array.shape, *sizes, 1) < 1:
        raise InputError(f"zoom of {tuple(array.shape)} to {tuple(sizes)}: sizes of at least 1 expected")
    if isinstance(array, torch.Tensor):
        if not array.is_floating_point():
            raise InputError(f"zoom of {array.dtype}: a floating type expected")
        # the weights are doubles, so all is computed in them, after the samples have been picked
        return _zoom_double(array.detach(), sizes).to(array.dtype, copy=True)
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"zoom of {array.dtype}: a floating type expected")
    double = torch.from_numpy(np.array(array, dtype=np.float64))
    return _zoom_double(double, sizes).numpy().astype(array.dtype)


def _zoom_double(values: torch.Tensor, sizes: Sequence[int], rows: slice | None = None) -> torch.Tensor:
    """``rows``: of the last axis but one, the places of the result that are wanted."""
    # One term for each corner of the surrounding cell, its weights multiplied in axis by axis, the terms
    # summed in index order: SciPy's arithmetic to the last bit, which blending axis after axis is not.
    terms = [values]
    for axis, (size_in, size_out) in enumerate(zip(values.shape, sizes, strict=True)):
        part = rows if rows is not None and axis == values.ndim - 2 else slice(None)
        if size_in == size_out:
            terms = [term[..., part, :] for term in terms] if part != slice(None) else terms
            continue
        column = (-1,) + (1,) * (values.ndim - 1 - axis)
        taps = [
            (places[part], weights[part].view(column))
            for places, weights in _scipy_taps(size_in, size_out, values.device)
        ]
        terms = [term.index_select(axis, places) * weights for term in terms for places, weights in taps]
    return reduce(torch.add, terms)


@lru_cache(maxsize=1024)  # on the device: copying them there would wait for all that it has been given to do
def _scipy_taps(
    size_in: int, size_out: int, device: torch.device
) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Source indices and float64 weights of the lower and the upper tap of each output sample on one axis."""
    step = (size_in - 1) / (size_out - 1) if size_out > 1 else 1.0
    place = np.arange(size_out) * step
    low = np.floor(place).astype(np.int64)
    lower = 1.0 - (place - low)
    upper = 1.0 - lower  # not place − low: SciPy rounds twice here
    outside = place > size_in - 1
    lower[outside] = upper[outside] = 0.0  # mode='constant', cval=0
    last = size_in - 1
    return (
        (torch.from_numpy(low.clip(max=last)).to(device), torch.from_numpy(lower).to(device)),
        (torch.from_numpy((low + 1).clip(max=last)).to(device), torch.from_numpy(upper).to(device)),
    )
