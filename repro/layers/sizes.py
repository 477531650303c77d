"""Caffe's output sizes along one axis (``conv_layer.cpp``, ``pooling_layer.cpp``, ``interp_layer.cpp``)."""

from __future__ import annotations


def convolved_size(size: int, kernel: int, stride: int = 1, pad: int = 0, dilation: int = 1) -> int:
    """Cells that a convolution, which rounds down, makes of ``size``; below 1 where the kernel does not fit."""
    return (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1


def pooled_size(size: int, kernel: int, stride: int = 1, pad: int = 0) -> int:
    """Cells that a pooling, which rounds up, makes of ``size``; below 1 where the kernel does not fit.

    With padding, a last window that would start beyond the input is dropped; without, Caffe does not look.
    """
    pooled = -((size + 2 * pad - kernel) // -stride) + 1
    if pad and (pooled - 1) * stride >= size + pad:
        pooled -= 1
    return pooled


def interpolated_size(size: int, zoom_factor: int = 1, shrink_factor: int = 1) -> int:
    """Cells that Interp makes of ``size``: first it shrinks, then it zooms, corners on corners both times."""
    shrunk = (size - 1) // shrink_factor + 1
    return shrunk + (shrunk - 1) * (zoom_factor - 1)
