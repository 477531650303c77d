"""Caffe layers that PyTorch has in another form: BatchNorm, Scale, Eltwise and InnerProduct.

BatchNorm (``batch_norm_layer.cpp``) keeps three blobs: mean and variance, both multiplied by a factor, and the
factor. With ``use_global_stats`` it computes, per channel,

    y = (x - mean / factor) / sqrt(variance / factor + eps),   eps = 1e-5,   0 for both where the factor is 0

and knows no gain and bias: those are a Scale layer's (``scale_layer.cpp``, ``bias_term: true``), y = weight·x + bias.
Networks with global statistics learn neither: DeepLab-v2's ResNet-101 prototxts give all five blobs ``lr_mult: 0``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn

BATCH_NORM_EPS = 1e-5  # BatchNormParameter.eps


class BatchNorm(nn.Module):
    """``batch_norm_param { use_global_stats: true }``: (N, C, H, W) -> (N, C, H, W), in training too.

    The blobs are held as Caffe stores them, so that they go from file to file bit for bit. A new layer has mean 0,
    variance 1, factor 1 (Caffe's has zeros throughout, which would multiply by 316).
    """

    caffe_type = "BatchNorm"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.variance = nn.Parameter(torch.ones(channels), requires_grad=False)
        self.factor = nn.Parameter(torch.ones(1), requires_grad=False)

    def caffe_blobs(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean, "variance": self.variance, "factor": self.factor}

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance (C), divided by the factor."""
        scale = torch.where(self.factor == 0, self.factor, 1 / self.factor)
        return self.mean * scale, self.variance * scale

    def gain_and_bias(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer as y = gain·x + bias, both (C)."""
        mean, variance = self.statistics()
        gain = (variance + BATCH_NORM_EPS).rsqrt()
        return gain, -mean * gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _affine(x, *self.gain_and_bias())


class Scale(nn.Module):
    """``scale_param { bias_term: true }``: weight·x + bias per channel, (N, C, H, W) -> (N, C, H, W)."""

    caffe_type = "Scale"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(channels), requires_grad=False)

    def caffe_blobs(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight, "bias": self.bias}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _affine(x, self.weight, self.bias)


def _affine(x: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """gain·x + bias. Where neither is learnt the backward pass needs no x, which ``batch_norm`` would keep."""
    gain, bias = gain[:, None, None], bias[:, None, None]
    if x.dtype == gain.dtype or gain.requires_grad or bias.requires_grad:
        return torch.addcmul(bias, x, gain)
    return _MixedAffine.apply(x, gain, bias)


class _MixedAffine(torch.autograd.Function):
    """gain·x + bias of an x of lower precision, computed in that of gain and bias, which are not learnt here, and
    rounded to x's. Under autocast PyTorch's own would return float32, twice the memory until the next convolution."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gain)
        return torch.addcmul(bias, x, gain, out=torch.empty_like(x))

    @staticmethod
    def backward(ctx: Any, top_diff: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gain,) = ctx.saved_tensors
        return torch.mul(top_diff, gain, out=torch.empty_like(top_diff)), None, None


class EltwiseSum(nn.Module):
    """``eltwise_param { operation: SUM }``: adds its inputs, all of one shape, from left to right."""

    def forward(self, first: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        for other in others:
            first = first + other
        return first


class InnerProduct(nn.Linear):
    """``inner_product_param``: flattens (N, …) to (N, K), then weight (outputs, K) and bias."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(1))
