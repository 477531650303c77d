"""Caffe's own losses, with its normalisation modes (``loss_layer.cpp`` and a file per loss).

A softmax or sigmoid loss is a sum over cells, divided by

    FULL         images · cells               VALID   cells whose label is not ``ignore_label``
    BATCH_SIZE   images                       NONE    1

but never by less than 1. The old ``normalize: true`` is VALID, ``false`` BATCH_SIZE. All others divide by the number
of images (Euclidean and contrastive by twice that). Every loss is a scalar, before ``loss_weight``; the gradient is
what Caffe's backward pass gives, also where that is not the derivative.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F

Normalization = Literal["FULL", "VALID", "BATCH_SIZE", "NONE"]
_LOG_FLT_MIN = math.log(torch.finfo(torch.float32).tiny)  # SoftmaxWithLoss: log(max(p, FLT_MIN))
_LOG_THRESHOLD = 1e-20  # kLOG_THRESHOLD of loss_layer.hpp
_CONTRASTIVE_EPS = 1e-4  # contrastive_loss_layer.cpp, in the gradient alone


def normalizer(
    mode: Normalization, labels: torch.Tensor, *, images: int, ignore_label: int | None = None
) -> torch.Tensor | int:
    """What a loss over ``labels`` (any shape) of ``images`` images is divided by, at least 1.

    >>> normalizer("FULL", torch.zeros(2, 1, 3, 3), images=2), normalizer("BATCH_SIZE", torch.zeros(2, 5), images=2)
    (18, 2)
    """
    if mode == "VALID" and ignore_label is not None:
        return (labels != ignore_label).sum().clamp_min(1)
    cells = {"FULL": labels.numel(), "VALID": labels.numel(), "BATCH_SIZE": images, "NONE": 1}
    return max(cells[mode], 1)


def softmax_loss(
    scores: torch.Tensor,
    labels: torch.Tensor,
    *,
    axis: int = 1,
    ignore_label: int | None = None,
    normalization: Normalization = "VALID",
) -> torch.Tensor:
    """``SoftmaxWithLoss``: -Σ log max(softmax(scores)[label], FLT_MIN) / normalizer.

    Args:
        scores: (N, C, …), classes along ``axis``.
        labels: as many class ids as there are cells, float or integer.
        ignore_label: cells that count nothing.
        normalization: the mode.

    Raises:
        IndexError: a label that is no class (on the CPU).

    >>> round(softmax_loss(torch.zeros(1, 4, 2, 2), torch.zeros(1, 1, 2, 2)).item(), 4)  # log 4
    1.3863
    """
    axis %= scores.dim()
    outer, inner = scores.shape[:axis].numel(), scores.shape[axis + 1 :].numel()
    ids = labels.reshape(outer, inner).long()
    log_probs = _Floor.apply(F.log_softmax(scores.reshape(outer, -1, inner), dim=1), _LOG_FLT_MIN)
    ignored = -100 if ignore_label is None else ignore_label
    summed = F.nll_loss(log_probs, ids, ignore_index=ignored, reduction="sum")
    return summed / normalizer(normalization, ids, images=outer, ignore_label=ignore_label)


class _Floor(torch.autograd.Function):
    """max(x, floor); the gradient is passed on everywhere, as SoftmaxWithLoss's backward pass knows no floor."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, floor: float) -> torch.Tensor:
        return x.clamp_min(floor)

    @staticmethod
    def backward(ctx: Any, diff: torch.Tensor) -> tuple[torch.Tensor, None]:
        return diff, None


def sigmoid_cross_entropy_loss(
    scores: torch.Tensor,
    targets: torch.Tensor,
    *,
    ignore_label: int | None = None,
    normalization: Normalization = "BATCH_SIZE",
) -> torch.Tensor:
    """``SigmoidCrossEntropyLoss``: Σ of the binary cross entropies of sigmoid(scores) and targets / normalizer.

    Args:
        scores: (N, …), before the sigmoid.
        targets: as many, in [0, 1] or ``ignore_label``. No gradient flows into them.
        ignore_label: targets that count nothing.
        normalization: the mode. Unlike the softmax loss's, the default is the number of images, in every Caffe;
            PyTorch's mean divides by the number of classes as well.

    >>> round(sigmoid_cross_entropy_loss(torch.zeros(2, 3), torch.ones(2, 3)).item(), 4)  # 3 log 2
    2.0794
    """
    targets = targets.detach().reshape(scores.shape)
    if ignore_label is None:
        summed = F.binary_cross_entropy_with_logits(scores, targets, reduction="sum")
    else:
        used = (targets != ignore_label).to(scores.dtype)
        summed = F.binary_cross_entropy_with_logits(scores, targets * used, used, reduction="sum")
    return summed / normalizer(normalization, targets, images=len(scores), ignore_label=ignore_label)


def multinomial_logistic_loss(probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``MultinomialLogisticLoss``: -Σ log max(p[label], 1e-20) / N of probabilities (N, C, …), one label per image."""
    picked = probs.flatten(1).gather(1, labels.reshape(len(probs), 1).long())
    return -_SafeLog.apply(picked).sum() / len(probs)


def infogain_loss(probs: torch.Tensor, labels: torch.Tensor, infogain: torch.Tensor) -> torch.Tensor:
    """``InfogainLoss``: -Σ_n Σ_k H[label_n, k]·log max(p_nk, 1e-20) / N of probabilities (N, K).

    This is the layer up to DeepLab-v2. Caffe 1.0's takes scores and applies a softmax of its own.

    Args:
        probs: (N, K).
        labels: N class ids.
        infogain: K·K values in any shape, row by true class.
    """
    classes = probs.flatten(1).shape[1]
    rows = infogain.reshape(classes, classes)[labels.reshape(-1).long()]
    return -(rows * _SafeLog.apply(probs.flatten(1))).sum() / len(probs)


class _SafeLog(torch.autograd.Function):
    """log max(p, 1e-20) with the gradient 1 / max(p, 1e-20), below the threshold too."""

    @staticmethod
    def forward(ctx: Any, probs: torch.Tensor) -> torch.Tensor:
        floored = probs.clamp_min(_LOG_THRESHOLD)
        ctx.save_for_backward(floored)
        return floored.log()

    @staticmethod
    def backward(ctx: Any, diff: torch.Tensor) -> torch.Tensor:
        (floored,) = ctx.saved_tensors
        return diff / floored


def hinge_loss(
    scores: torch.Tensor, labels: torch.Tensor, *, norm: Literal["L1", "L2"] = "L1"
) -> torch.Tensor:
    """``HingeLoss``: Σ max(0, 1 - t·s)^p / N, one against all: t is 1 for the label's score, -1 for the others.

    ``scores`` (N, C), ``labels`` N class ids.

    >>> hinge_loss(torch.tensor([[2.0, 0.5]]), torch.tensor([0])).item()
    1.5
    """
    flat = scores.flatten(1)
    sign = torch.ones_like(flat).scatter(1, labels.reshape(-1, 1).long(), -1.0)
    margins = (1 + sign * flat).clamp_min(0)
    return (margins if norm == "L1" else margins.square()).sum() / len(scores)


def euclidean_loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """``EuclideanLoss``: Σ (first - second)² / 2N; both get a gradient.

    >>> euclidean_loss(torch.tensor([[3.0], [1.0]]), torch.zeros(2, 1)).item()
    2.5
    """
    return (first - second.reshape(first.shape)).square().sum() / (2 * len(first))


def contrastive_loss(
    first: torch.Tensor,
    second: torch.Tensor,
    similar: torch.Tensor,
    *,
    margin: float = 1.0,
    legacy_version: bool = False,
) -> torch.Tensor:
    """``ContrastiveLoss``: Σ [similar·d² + (1 - similar)·max(margin - d, 0)²] / 2N, d the Euclidean distance.

    ``legacy_version`` has max(margin - d², 0) for pairs that are not similar. The gradient divides by d + 1e-4.

    Args:
        first, second: (N, C) or (N, C, 1, 1).
        similar: N values, 0 or 1.
        margin: as above.
        legacy_version: as above.
    """
    return _Contrastive.apply(first, second, similar, margin, legacy_version)


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        first: torch.Tensor,
        second: torch.Tensor,
        similar: torch.Tensor,
        margin: float,
        legacy: bool,
    ) -> torch.Tensor:
        difference = (first - second).flatten(1)
        squared = difference.square().sum(dim=1)
        distance = squared.sqrt()
        alike = similar.reshape(-1) != 0
        room = (margin - (squared if legacy else distance)).clamp_min(0)
        # the slope along the difference, times N
        apart = -(room > 0).to(room.dtype) if legacy else -room / (distance + _CONTRASTIVE_EPS)
        ctx.save_for_backward(torch.where(alike, torch.ones_like(room), apart)[:, None] * difference)
        ctx.shape = first.shape
        return torch.where(alike, squared, room if legacy else room.square()).sum() / (2 * len(first))

    @staticmethod
    def backward(ctx: Any, top_diff: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:
        (direction,) = ctx.saved_tensors
        diff = (top_diff / len(direction) * direction).reshape(ctx.shape)
        return diff, -diff, None, None, None
