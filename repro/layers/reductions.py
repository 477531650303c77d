"""Caffe's ArgMax, Reduction, Accuracy, and DeepLab-v2's SegAccuracy.

ArgMax and Accuracy rank (value, index) pairs from the largest down (``argmax_layer.cpp``, ``accuracy_layer.cpp`` up
to DeepLab-v2): of equal values the one with the **larger** index comes first, where PyTorch names the smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

Operation = Literal["SUM", "ASUM", "SUMSQ", "MEAN"]


def reduction(
    x: torch.Tensor, operation: Operation = "SUM", *, axis: int = 0, coeff: float = 1.0
) -> torch.Tensor:
    """``Reduction``: coeff times the sum, sum of absolute values, sum of squares or mean of all axes from ``axis`` on.

    >>> reduction(torch.tensor([[1.0, -3.0]]), "ASUM", axis=1, coeff=2.0).tolist()
    [8.0]
    """
    flat = x.flatten(axis if axis >= 0 else x.dim() + axis) if x.dim() else x.reshape(1)
    values = {"ASUM": torch.abs, "SUMSQ": torch.square}.get(operation, lambda kept: kept)(flat)
    reduced = values.mean(dim=-1) if operation == "MEAN" else values.sum(dim=-1)
    return reduced if coeff == 1.0 else coeff * reduced


def argmax(
    x: torch.Tensor, *, top_k: int = 1, out_max_val: bool = False, axis: int | None = None
) -> torch.Tensor:
    """``ArgMax``, as float in the type of x; no gradient.

    Returns:
        With ``axis``: x's shape with ``top_k`` there, indices, or the values if ``out_max_val``. Without: all axes
        but the first are one, and the result is (N, 1, top_k, 1) indices, or (N, 2, top_k, 1) indices and values
        if ``out_max_val``. Blobs of fewer than three axes keep at least three: (N, 1, top_k).

    >>> argmax(torch.tensor([[1.0, 5.0, 5.0]])).flatten().tolist()
    [2.0]
    """
    x = x.detach()
    flat = x.flatten(1) if axis is None else x
    along = 1 if axis is None else axis % x.dim()
    size = flat.shape[along]
    if top_k > size:
        raise ValueError(f"top_k {top_k} of {size} values")
    ranked = flat.flip(along).sort(dim=along, descending=True, stable=True)
    values = ranked.values.narrow(along, 0, top_k)
    index = (size - 1 - ranked.indices.narrow(along, 0, top_k)).to(x.dtype)
    if axis is not None:
        return values if out_max_val else index
    result = torch.stack([index, values], dim=1) if out_max_val else index[:, None]
    return result.reshape(result.shape + (1,) * max(x.dim() - 3, 0))


def accuracy(
    scores: torch.Tensor,
    labels: torch.Tensor,
    *,
    axis: int = 1,
    top_k: int = 1,
    ignore_label: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``Accuracy``: the share of cells whose label is among the ``top_k`` scores, and the same by class.

    Args:
        scores: (N, C, …), classes along ``axis``.
        labels: as many class ids as there are cells, float or integer.
        axis, top_k: as above.
        ignore_label: cells that count nothing.

    Returns:
        A scalar and (C), 0 for classes that no label names. Both NaN-free unless no cell counts at all, where the
        scalar is NaN as in Caffe.
    """
    axis %= scores.dim()
    outer, classes = scores.shape[:axis].numel(), scores.shape[axis]
    flat = scores.detach().reshape(outer, classes, -1).transpose(1, 2).reshape(-1, classes)
    ids = labels.reshape(-1).long()
    used = ids != ignore_label if ignore_label is not None else torch.ones_like(ids, dtype=torch.bool)
    ids = torch.where(used, ids, 0)
    own = flat.gather(1, ids[:, None])
    later = torch.arange(classes, device=flat.device) > ids[:, None]
    ahead = ((flat > own) | ((flat == own) & later)).sum(dim=1)
    right = ((ahead < top_k) & used).to(flat.dtype)
    used = used.to(flat.dtype)
    rights = flat.new_zeros(classes).scatter_add(0, ids, right)
    counts = flat.new_zeros(classes).scatter_add(0, ids, used)
    return right.sum() / used.sum(), rights / counts.clamp_min(1)


def confusion(
    scores: torch.Tensor, labels: torch.Tensor, *, ignore_labels: Sequence[int] = ()
) -> torch.Tensor:
    """Cells by true and winning class, (C, C) int64.

    Args:
        scores: (N, C, H, W).
        labels: (N, 1, H, W) class ids, float or integer.
        ignore_labels: labels of cells that count nothing; those that are no class do not either.
    """
    classes = scores.shape[1]
    ids = labels.reshape(len(scores), *scores.shape[2:]).long()
    valid = (ids >= 0) & (ids < classes)
    for ignored in ignore_labels:
        valid &= ids != ignored
    # what does not count goes into a row of its own that is cut off
    place = (torch.where(valid, ids, classes) * classes + scores.detach().argmax(dim=1)).flatten()
    counts = place.new_zeros((classes + 1) * classes)  # not bincount, which waits for the device
    counts.scatter_add_(0, place, torch.ones_like(place))
    return counts[: classes * classes].reshape(classes, classes)


def seg_scores(counts: torch.Tensor) -> torch.Tensor:
    """DeepLab-v2's ``SegAccuracy``, (1, 1, 1, 3), of a confusion matrix (C, C): the share of right cells, the mean
    recall over the classes that occur in the labels, and the mean intersection over union over **all** classes, where
    one that occurs neither in the labels nor in the prediction counts as 1."""
    matrix = counts.float()
    correct, actual = matrix.diagonal(), matrix.sum(dim=1)
    union = actual + matrix.sum(dim=0) - correct
    right = correct.sum() / actual.sum().clamp_min(1)
    recall = (correct / actual.clamp_min(1)).sum() / (actual > 0).sum().clamp_min(1)
    jaccard = torch.where(union > 0, correct / union.clamp_min(1), 1.0).mean()
    return torch.stack([right, recall, jaccard]).reshape(1, 1, 1, 3)
