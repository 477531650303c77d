"""Caffe's normalisations of one blob by itself: LRN and MVN (``lrn_layer.cpp``, ``mvn_layer.cpp``), and SSD's
Normalize (``normalize_layer.cpp``). All take float (N, C, …) and keep its shape.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def lrn_across(x: torch.Tensor, *, size: int, alpha: float, beta: float, k: float = 1.0) -> torch.Tensor:
    """``LRN``, ``ACROSS_CHANNELS``: x / (k + alpha/size · Σ x² over the ``size`` nearest channels)^beta.

    >>> lrn_across(torch.ones(1, 5, 1, 1), size=5, alpha=5.0, beta=1.0).flatten()[2].item()
    0.1666666716337204
    """
    return F.local_response_norm(x, size, alpha=alpha, beta=beta, k=k)


def lrn_within(x: torch.Tensor, *, size: int, alpha: float, beta: float) -> torch.Tensor:
    """``LRN``, ``WITHIN_CHANNEL``: x / (1 + alpha · mean of x² over size x size)^beta, zeros beyond the border.

    Caffe builds it from other layers and reads no k there.
    """
    squares = F.avg_pool2d(x * x, size, stride=1, padding=(size - 1) // 2, count_include_pad=True)
    return x * (1 + alpha * squares).pow(-beta)


def mvn(
    x: torch.Tensor, *, normalize_variance: bool = True, across_channels: bool = False, eps: float = 1e-9
) -> torch.Tensor:
    """``MVN``: (x - mean) / (sqrt(variance) + eps), per image and channel, or per image; 0 for a channel of one value.

    The gradient is Caffe's: (g - mean g - y·mean(g·y)) / (sqrt(variance) + eps), where the true one divides its last
    term by sqrt(variance) alone.
    """
    if x.dim() == 2 and not across_channels:  # PyTorch takes no axes for all axes
        return mvn(x[..., None], normalize_variance=normalize_variance, eps=eps)[..., 0]
    return _MVN.apply(x, normalize_variance, 1 if across_channels else 2, eps)


class _MVN(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, normalize_variance: bool, first: int, eps: float) -> torch.Tensor:
        ctx.axes = tuple(range(first, x.dim()))
        centred = x - x.mean(dim=ctx.axes, keepdim=True)
        ctx.scaled = normalize_variance
        if not normalize_variance:
            return centred
        deviation = centred.square().mean(dim=ctx.axes, keepdim=True).sqrt() + eps
        y = centred / deviation
        ctx.save_for_backward(y, deviation)
        return y

    @staticmethod
    def backward(ctx: Any, top_diff: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        diff = top_diff - top_diff.mean(dim=ctx.axes, keepdim=True)
        if ctx.scaled:
            y, deviation = ctx.saved_tensors
            diff = (diff - y * (top_diff * y).mean(dim=ctx.axes, keepdim=True)) / deviation
        return diff, None, None, None


def normalize(
    x: torch.Tensor, gain: torch.Tensor, *, across_spatial: bool = True, eps: float = 1e-10
) -> torch.Tensor:
    """SSD's ``Normalize``: gain · x / sqrt(Σ x² + eps), over an image or over the channels of each cell.

    ``gain`` is (C), or a scalar for ``channel_shared``.
    """
    axes = tuple(range(1, x.dim())) if across_spatial else (1,)
    norm = (x.square().sum(dim=axes, keepdim=True) + eps).sqrt()
    return x / norm * gain.reshape((-1,) + (1,) * (x.dim() - 2))
