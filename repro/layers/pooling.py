"""Caffe's spatial pooling (``pooling_layer.cpp``).

Caffe rounds the output size up and then drops a last window that would start in the right or bottom padding:

    out = ceil((in + 2·pad - kernel) / stride) + 1;   if (out - 1)·stride >= in + pad: out -= 1

PyTorch's ``ceil_mode=True`` states the same rule. AVE divides by the window's size clipped to the *padded*
input, so border windows of a 3x3 kernel with pad 1 still divide by 9: ``count_include_pad=True``.
MAX never sees the padding. Both are thin here so that a net reads like its prototxt.
"""

from __future__ import annotations

import torch.nn as nn


class CaffeMaxPool(nn.MaxPool2d):
    """``pooling_param { pool: MAX }``: (N, C, H, W) -> (N, C, H', W') with Caffe's output size."""

    def __init__(self, kernel_size: int, stride: int, pad: int = 0) -> None:
        super().__init__(kernel_size, stride=stride, padding=pad, ceil_mode=True)


class CaffeAvePool(nn.AvgPool2d):
    """``pooling_param { pool: AVE }``: (N, C, H, W) -> (N, C, H', W') with Caffe's output size and divisor."""

    def __init__(self, kernel_size: int, stride: int, pad: int = 0) -> None:
        super().__init__(kernel_size, stride=stride, padding=pad, ceil_mode=True, count_include_pad=True)
