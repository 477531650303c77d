"""Caffe's six solvers: how each makes the values that it subtracts from the weights (``ComputeUpdateValue``).

g is the gradient as ``repro/solver/base.py`` leaves it, r the rate with ``lr_mult``; squares and roots are element by
element. ``torch.optim`` has the rate outside SGD's momentum, adds Adam's ``eps`` after the correction of the bias, and
decays and clips elsewhere.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from repro.solver.base import CaffeSolver


def _float32(value: float) -> float:
    """A field as Caffe holds it: 1 - 0.999 is 0.00099999 there."""
    return float(np.float32(value))


class CaffeSGD(CaffeSolver):
    """h <- momentum·h + r·g, the update is h.

    The rate sits inside the history: after a step down, the momentum still carries the old rate.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> solver = CaffeSGD([{"params": [weight], "lr_mult": 2}], {"base_lr": 0.25, "lr_policy": "fixed"})
    >>> weight.grad = torch.ones(1)
    >>> solver.step()
    >>> weight.item(), solver.param_groups[0]["lr"]
    (0.5, 0.5)
    """

    type = "SGD"

    def values(self, rate: float, gradients: list[Tensor], *histories: list[Tensor]) -> list[Tensor]:
        (history,) = histories
        torch._foreach_mul_(history, self.config.momentum)
        torch._foreach_add_(history, gradients, alpha=rate)
        return history


class CaffeNesterov(CaffeSolver):
    """h <- momentum·h + r·g as in SGD, the update is (1 + momentum)·h - momentum·(h before)."""

    type = "Nesterov"

    def values(self, rate: float, gradients: list[Tensor], *histories: list[Tensor]) -> list[Tensor]:
        (history,) = histories
        momentum = _float32(self.config.momentum)
        torch._foreach_mul_(history, momentum)
        before = torch._foreach_clone(history)
        torch._foreach_add_(history, gradients, alpha=rate)
        torch._foreach_copy_(gradients, history)
        torch._foreach_mul_(gradients, 1 + momentum)
        torch._foreach_sub_(gradients, before)
        return gradients


class CaffeAdaGrad(CaffeSolver):
    """h <- h + g², the update is r·g / (√h + delta)."""

    type = "AdaGrad"

    def values(self, rate: float, gradients: list[Tensor], *histories: list[Tensor]) -> list[Tensor]:
        (history,) = histories
        torch._foreach_addcmul_(history, gradients, gradients)
        _divide_by_roots(gradients, history, self.config.delta)
        torch._foreach_mul_(gradients, rate)
        return gradients


class CaffeRMSProp(CaffeSolver):
    """h <- rms_decay·h + (1 - rms_decay)·g², the update is r·g / (√h + delta)."""

    type = "RMSProp"

    def values(self, rate: float, gradients: list[Tensor], *histories: list[Tensor]) -> list[Tensor]:
        (history,) = histories
        _average_squares(history, gradients, _float32(self.config.rms_decay))
        _divide_by_roots(gradients, history, self.config.delta)
        torch._foreach_mul_(gradients, rate)
        return gradients


class CaffeAdaDelta(CaffeSolver):
    """h <- momentum·h + (1 - momentum)·g², v = g·√((u + delta) / (h + delta)), u <- momentum·u + (1 - momentum)·v²,
    the update is r·v.

    u is brought up to date without the rate: it averages what a rate of 1 would have done.
    """

    type = "AdaDelta"
    histories = ("history", "update_history")

    def values(self, rate: float, gradients: list[Tensor], *histories: list[Tensor]) -> list[Tensor]:
        squares, updates = histories
        momentum, delta = _float32(self.config.momentum), _float32(self.config.delta)
        _average_squares(squares, gradients, momentum)
        ratios = torch._foreach_add(updates, delta)
        torch._foreach_div_(ratios, torch._foreach_add(squares, delta))
        torch._foreach_sqrt_(ratios)
        torch._foreach_mul_(gradients, ratios)
        _average_squares(updates, gradients, momentum)
        torch._foreach_mul_(gradients, rate)
        return gradients


class CaffeAdam(CaffeSolver):
    """m <- momentum·m + (1 - momentum)·g, v <- momentum2·v + (1 - momentum2)·g², the update is
    r·√(1 - momentum2^t) / (1 - momentum^t) · m / (√v + delta), t from 1.

    The correction of the bias is in the rate, so that delta is added to the root of the v that is not corrected.
    """

    type = "Adam"
    histories = ("m", "v")

    def values(self, rate: float, gradients: list[Tensor], *histories: list[Tensor]) -> list[Tensor]:
        means, squares = histories
        momentum, momentum2 = _float32(self.config.momentum), _float32(self.config.momentum2)
        torch._foreach_mul_(means, momentum)
        torch._foreach_add_(means, gradients, alpha=1 - momentum)
        _average_squares(squares, gradients, momentum2)
        t = self.iteration + 1
        correction = math.sqrt(1 - momentum2**t) / (1 - momentum**t)
        torch._foreach_copy_(gradients, means)
        _divide_by_roots(gradients, squares, self.config.delta)
        torch._foreach_mul_(gradients, rate * correction)
        return gradients


def _average_squares(averages: list[Tensor], values: list[Tensor], decay: float) -> None:
    """averages <- decay·averages + (1 - decay)·values²."""
    torch._foreach_mul_(averages, decay)
    torch._foreach_addcmul_(averages, values, values, value=1 - decay)


def _divide_by_roots(values: list[Tensor], squares: list[Tensor], delta: float) -> None:
    """values <- values / (√squares + delta)."""
    roots = torch._foreach_sqrt(squares)
    torch._foreach_add_(roots, _float32(delta))
    torch._foreach_div_(values, roots)
