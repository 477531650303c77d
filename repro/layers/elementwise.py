"""Caffe's layers that combine several blobs element by element.

Eltwise          Σ coeff·x, Π x, or max x                    eltwise_layer.cpp
Scale, Bias      x · s and x + s along a range of axes       scale_layer.cpp, bias_layer.cpp
Axpy             a·x + y, a per image and channel            axpy_layer.cpp (SENet)
SpatialProduct   x · m, one map for all channels             spatial_product_layer.cpp (DeepLab-v2)
BiasChannel      x + bias where a label names the channel    bias_channel_layer.cpp (DeepLab-v2)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def eltwise_sum(inputs: Sequence[torch.Tensor], coefficients: Sequence[float] = ()) -> torch.Tensor:
    """Σ coefficient·input from left to right; all of one shape. Without coefficients all are 1."""
    if coefficients:
        inputs = [x if c == 1.0 else c * x for x, c in zip(inputs, coefficients, strict=True)]
    result = inputs[0]
    for x in inputs[1:]:
        result = result + x
    return result


def eltwise_product(inputs: Sequence[torch.Tensor], *, stable_gradient: bool = True) -> torch.Tensor:
    """Π input. The gradient of each is the product of the others; without ``stable_gradient`` it is the result
    divided by the input, NaN at 0, as ``stable_prod_grad: false`` has it."""
    if not stable_gradient:
        return _UnstableProduct.apply(*inputs)
    result = inputs[0]
    for x in inputs[1:]:
        result = result * x
    return result


class _UnstableProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        result = eltwise_product(inputs)
        ctx.save_for_backward(result, *inputs)
        return result

    @staticmethod
    def backward(ctx: Any, top_diff: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result, *inputs = ctx.saved_tensors
        return tuple(result / x * top_diff for x in inputs)


def eltwise_max(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The largest input. Of equal values the later one gets the gradient between the first two, and from then on
    the earlier one: Caffe compares the first pair with > and each further input with the result so far.

    >>> a, b = (torch.zeros(1, requires_grad=True) for _ in range(2))
    >>> eltwise_max([a, b]).backward()
    >>> a.grad.item(), b.grad.item()
    (0.0, 1.0)
    """
    result = inputs[0] if len(inputs) == 1 else torch.where(inputs[0] > inputs[1], inputs[0], inputs[1])
    for x in inputs[2:]:
        result = torch.where(x > result, x, result)
    return result


def axpy(a: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``Axpy``: a·x + y with ``a`` (N, C) or (N, C, 1, 1), x and y (N, C, H, W)."""
    return a.reshape((*a.shape[:2], 1, 1)) * x + y


def bias_channel(
    x: torch.Tensor,
    labels: torch.Tensor,
    *,
    bg_bias: float = 0.0,
    fg_bias: float = 0.0,
    ignore_labels: Sequence[int] = (),
) -> torch.Tensor:
    """``BiasChannel`` with ``label_type: IMAGE``: raises the channels that an image's labels name.

    Args:
        x: (N, C, H, W).
        labels: (N, L, 1, 1) of class ids, filled up with -1; a label that stands twice counts twice.
        bg_bias: what channel 0 gets.
        fg_bias: what the others get.
        ignore_labels: ids that are skipped, beside -1.
    """
    ids = labels.flatten(1).long()
    used = ids != -1
    for ignored in ignore_labels:
        used &= ids != ignored
    amount = torch.where(ids == 0, bg_bias, fg_bias).to(x.dtype) * used
    per_channel = x.new_zeros(x.shape[:2]).scatter_add(1, torch.where(used, ids, 0), amount)
    return x + per_channel[:, :, None, None]
