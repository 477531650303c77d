"""The min-prob softmax of SEC and DSRG (``SoftmaxLayer`` in both releases' ``pylayers``).

    s = exp(x) / Σ_c exp(x);   p = (s + m) / Σ_c (s + m),   m = 1e-4

The floor keeps every later logarithm finite. The backward pass is the exact derivative, which autograd gives.
"""

from __future__ import annotations

from typing import Any

import torch

MIN_PROB = 1e-4  # `min_prob` in pylayers.py of both releases


def caffe_softmax(scores: torch.Tensor) -> torch.Tensor:
    """Softmax over classes, plus ``MIN_PROB``, renormalised.

    Args:
        scores: class scores (N, C, H, W), any floating dtype.

    Returns:
        Probabilities (N, C, H, W), each at least ``MIN_PROB / (1 + C * MIN_PROB)``, summing to 1 over C.

    >>> caffe_softmax(torch.tensor([0.0, 0.0, 30.0]).view(1, 3, 1, 1)).flatten()
    tensor([9.9970e-05, 9.9970e-05, 9.9980e-01])
    """
    floored = torch.softmax(scores, dim=1) + MIN_PROB
    return floored / floored.sum(dim=1, keepdim=True)


class RaiseToFloor(torch.autograd.Function):
    """``max(probs, MIN_PROB)`` whose gradient passes unchanged, also where the value was raised.

    This is what DSRG's CRF layer does to its bottom blob in place: Caffe's diff of that blob knows nothing
    of the edit, so the gradients of all its readers arrive at the softmax as they are.
    """

    @staticmethod
    def forward(ctx: Any, probs: torch.Tensor) -> torch.Tensor:
        return probs.clamp_min(MIN_PROB)

    @staticmethod
    def backward(ctx: Any, top_diff: torch.Tensor) -> torch.Tensor:
        return top_diff
