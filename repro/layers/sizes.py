"""Caffe's output sizes along one axis (``conv_layer.cpp``, ``pooling_layer.cpp``): pooling rounds up."""

from __future__ import annotations


def convolved_size(size: int, kernel: int, stride: int = 1, pad: int = 0, dilation: int = 1) -> int:
    """Cells that a convolution makes of ``size``; below 1 where the kernel does not fit."""
    return (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1


def pooled_size(size: int, kernel: int, stride: int = 1, pad: int = 0) -> int:
    """Cells that a pooling makes of ``size``; below 1 where the kernel does not fit.

    With padding, a last window that would start beyond the input is dropped; without, Caffe does not look.
    """
    pooled = -((size + 2 * pad - kernel) // -stride) + 1
    if pad and (pooled - 1) * stride >= size + pad:
        pooled -= 1
    return pooled
