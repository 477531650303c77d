"""Scores of masks against ground truth: confusion matrix, intersection over union, quality of seeds.

The originals fill one matrix over all images (rows: ground truth, columns: prediction) from the pixels whose
ground truth is a class, so that void (255) counts nowhere, and differ in what they average:

- ``released``: the DSRG release's script averages IoU over the classes with **at least one correct pixel**;
  a class that was missed altogether drops out of the mean instead of counting as zero.
- ``voc``: the mean over all classes, as the VOC benchmark has it.
- ``present``, which is ours: the mean over the classes that occur in the ground truth. A class that no mask shows
  does not count as zero, one that was missed does.

The rules agree as soon as every class has a correct pixel, which is the rule on the full VOC set and the
exception on small samples. Fractions are 0–1 here; tables turn them into percent.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from repro.errors import InputError, chosen

Rule = Literal["released", "voc", "present"]
RULES: tuple[Rule, ...] = get_args(Rule)


def confusion_matrix(gt: npt.ArrayLike, pred: npt.ArrayLike, num_classes: int) -> npt.NDArray[np.int64]:
    """Count pixels by true and predicted class.

    Args:
        gt: integer array of any shape, or a list of arrays whose shapes may differ (one per image). Values
            from ``num_classes`` up are void and not counted.
        pred: the same shape(s); values 0…C−1 wherever ``gt`` is counted, anything where it is not.
        num_classes: C, background included.

    Returns:
        (C, C) int64; ``matrix[t, p]`` pixels have true class t and predicted class p.

    Raises:
        InputError: shapes or numbers of images that differ, values that are not integers or negative,
            a prediction outside 0…C−1 at a counted pixel.

    >>> confusion_matrix([0, 0, 1, 255], [0, 1, 1, 0], 2).tolist()
    [[1, 1], [0, 1]]
    """
    true_images, predicted_images = _images(gt), _images(pred)
    if len(true_images) != len(predicted_images):
        raise InputError(f"{len(predicted_images)} predictions for {len(true_images)} ground-truth masks")
    flat = np.zeros(num_classes**2, np.int64)
    for number, (true, predicted) in enumerate(zip(true_images, predicted_images, strict=True)):
        where = f"image {number}: " if len(true_images) > 1 else ""
        if true.shape != predicted.shape:
            raise InputError(f"{where}prediction of shape {predicted.shape}, ground truth {true.shape}")
        for name, array in (("ground truth", true), ("prediction", predicted)):
            if not np.issubdtype(array.dtype, np.integer):
                raise InputError(f"{where}{name} of type {array.dtype}, expected integers")
        if true.min(initial=0) < 0:
            raise InputError(f"{where}ground truth {true.min()}, expected a class from 0 or void (255)")
        counted = true < num_classes
        t, p = true[counted].astype(np.int64), predicted[counted].astype(np.int64)
        outside = p[(p < 0) | (p >= num_classes)]
        if outside.size:
            raise InputError(f"{where}prediction {outside[0]} where it counts, expected 0…{num_classes - 1}")
        flat += np.bincount(t * num_classes + p, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def per_class_iou(matrix: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Intersection over union of each class, (C,) float64 in 0–1.

    NaN for a class that is neither in the ground truth nor in the predictions (0 of 0 pixels).

    >>> per_class_iou([[3, 1, 0], [0, 2, 0], [0, 0, 0]]).round(3).tolist()
    [0.75, 0.667, nan]
    """
    counts = _square(matrix)
    correct = np.diagonal(counts)
    return _fraction(correct, counts.sum(0) + counts.sum(1) - correct)


def mean_iou(matrix: npt.ArrayLike, rule: str) -> float:
    """Mean of ``per_class_iou``, 0–1.

    Args:
        matrix: (C, C) counts, rows are ground truth.
        rule: ``released`` averages the classes with at least one correct pixel (0.0 if there is none);
            ``voc`` averages all C, where a class that occurs nowhere counts as zero; ``present`` averages the
            classes that occur in the ground truth (0.0 if there is none).

    Example:
        >>> matrix = [[8, 0, 0], [2, 2, 0], [0, 0, 0]]  # class 2 occurs nowhere
        >>> round(mean_iou(matrix, "voc"), 3), round(mean_iou(matrix, "present"), 3)
        (0.433, 0.65)

    Raises:
        InputError: any other rule, or a matrix that is not square.
    """
    chosen("averaging rule", rule, RULES)
    iou = np.nan_to_num(per_class_iou(matrix))
    if rule == "voc":
        return float(iou.mean())
    counts = _square(matrix)
    counted = (counts.sum(axis=1) if rule == "present" else np.diagonal(counts)) > 0
    return float(iou[counted].mean()) if counted.any() else 0.0


def pixel_accuracy(matrix: npt.ArrayLike) -> float:
    """Share of the counted pixels whose class is right, 0–1; NaN if no pixel was counted.

    >>> pixel_accuracy([[3, 1], [0, 4]])
    0.875
    """
    counts = _square(matrix)
    return float(_fraction(np.trace(counts), counts.sum()))


def seed_matrix(truth: torch.Tensor, cues: torch.Tensor) -> torch.Tensor:
    """Count pixels by true class and seed, on the tensors' device and without waiting for it.

    Args:
        truth: (N, C, H, W), pixels of each class in each cell (``repro.data.cues.cell_counts``).
        cues: (N, C, H, W) in {0, 1}. A cell of several classes counts as the highest, as in region growing.

    Returns:
        (C, C + 1) float64 of whole numbers; column C is the pixels without a seed.

    >>> truth = torch.tensor([[[[4, 1]], [[0, 3]]]])  # pixels of two classes in two cells
    >>> seed_matrix(truth, torch.tensor([[[[1, 0]], [[0, 0]]]])).tolist()
    [[4.0, 0.0, 1.0], [0.0, 0.0, 3.0]]
    """
    classes = truth.shape[1]
    numbered = cues * torch.arange(1, classes + 1, device=cues.device, dtype=cues.dtype)[:, None, None]
    seeds = numbered.amax(dim=1).long() - 1
    column = torch.where(seeds < 0, classes, seeds)[:, None]
    columns = column == torch.arange(classes + 1, device=cues.device)[:, None, None]
    return torch.einsum("nchw,nshw->cs", truth.double(), columns.double())


def seed_metrics(matrix: npt.ArrayLike) -> dict[str, Any]:
    """Quality of seeds as Fig. 4 of the DSRG paper has it, from a (C, C + 1) matrix of ``seed_matrix``.

    Returns:
        ``labelled``: the share of the pixels that have a seed. ``precision``, ``recall``, ``iou``: means over the
        classes that occur in the ground truth, where a class without seeds counts as zero. ``released``: the three
        as the release's script averages them, oddities included: precision and recall over all C + 1 classes, where 0
        of 0 counts as zero (so does the class of pixels without a seed, which no ground truth has); IoU over the
        classes with a correct pixel. ``per_class``: the three of each class, ``None`` for one that does not occur.

    Raises:
        InputError: a matrix without a pixel.

    >>> found = seed_metrics([[4, 0, 1], [0, 0, 3]])
    >>> found["labelled"], found["precision"], found["recall"]
    (0.5, 0.5, 0.4)
    """
    counts = np.asarray(matrix).astype(np.int64)
    classes = len(counts)
    occurring = counts.sum(1) > 0
    if not occurring.any():
        raise InputError("quality of seeds: all void, expected pixels to score")
    correct, seeded = np.diagonal(counts), counts.sum(0)[:classes]
    metrics = {
        "precision": np.nan_to_num(_fraction(correct, seeded)),
        "recall": np.nan_to_num(_fraction(correct, counts.sum(1))),
        "iou": np.nan_to_num(_fraction(correct, seeded + counts.sum(1) - correct)),
    }
    hit = metrics["iou"][correct > 0]
    released = {name: float(np.append(metrics[name], 0).mean()) for name in ("precision", "recall")}
    return {
        "labelled": float(seeded.sum() / counts.sum()),
        **{name: float(values[occurring].mean()) for name, values in metrics.items()},
        "released": {**released, "iou": float(hit.mean()) if hit.size else 0.0},
        "per_class": [
            {name: float(values[index]) for name, values in metrics.items()} if occurring[index] else None
            for index in range(classes)
        ],
    }


def summarize(matrix: npt.ArrayLike, images: int) -> dict[str, Any]:
    """All scores of a confusion matrix as a dict that JSON can hold.

    Keys: ``images``; ``mean_iou`` with all rules; ``classes_counted``, the number of classes with a correct pixel,
    which rule ``released`` averages; ``absent_classes``, indices of those that no ground truth shows;
    ``per_class_iou``, C numbers or ``None`` for a class that occurs nowhere; ``pixel_accuracy`` (``None`` without a
    counted pixel); ``matrix``.

    >>> summarize([[3, 1], [0, 4]], images=2)["mean_iou"]["voc"]
    0.775
    """
    counts = _square(matrix)
    accuracy = pixel_accuracy(counts)
    return {
        "images": images,
        "mean_iou": {rule: mean_iou(counts, rule) for rule in RULES},
        "classes_counted": int((np.diagonal(counts) > 0).sum()),
        "absent_classes": np.flatnonzero(counts.sum(axis=1) == 0).tolist(),
        "per_class_iou": [None if np.isnan(iou) else float(iou) for iou in per_class_iou(counts)],
        "pixel_accuracy": None if np.isnan(accuracy) else accuracy,
        "matrix": counts.tolist(),
    }


def _images(masks: npt.ArrayLike) -> list[npt.NDArray[Any]]:
    if isinstance(masks, (list, tuple)):
        return [np.asarray(mask) for mask in masks]
    return [np.asarray(masks)]


def _square(matrix: npt.ArrayLike) -> npt.NDArray[Any]:
    counts = np.asarray(matrix)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise InputError(f"confusion matrix of shape {counts.shape}, expected (C, C)")
    return counts


def _fraction(part: npt.ArrayLike, whole: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """``part / whole`` in float64, NaN for 0 of 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
