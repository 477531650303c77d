"""Caffe's layers Power, Exp and Log; shapes stay as they are.

Power   (shift + scale·x)^power                        power_layer.cpp
Exp     base^(shift + scale·x), base = -1 for e        exp_layer.cpp
Log     log_base(shift + scale·x), base = -1 for e     log_layer.cpp
"""

from __future__ import annotations

import math

import torch


def power(x: torch.Tensor, *, power: float = 1.0, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """``Power``. A power of 1 is linear, one of 0 is the constant 1 with a gradient of 0."""
    inner = x if (scale, shift) == (1.0, 0.0) else shift + scale * x
    return inner if power == 1.0 else inner.pow(power)


def exponential(
    x: torch.Tensor, *, base: float = -1.0, scale: float = 1.0, shift: float = 0.0
) -> torch.Tensor:
    """``Exp``.

    >>> exponential(torch.tensor([3.0]), base=2.0).tolist()
    [8.0]
    """
    log_base = 1.0 if base == -1.0 else math.log(base)
    return torch.exp(log_base * shift + log_base * scale * x)


def logarithm(x: torch.Tensor, *, base: float = -1.0, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """``Log``.

    >>> logarithm(torch.tensor([8.0]), base=2.0).tolist()
    [3.0]
    """
    log_base = 1.0 if base == -1.0 else math.log(base)
    return torch.log(shift + scale * x) / log_base
