"""Why a score differs from another: the same predictions under the mistakes that the field makes.

Each mistake is another matrix of the same masks, or another mean of it. Mean IoU under all of them, beside the right
one, says where points can come from; it does not say that somebody made the mistake. Causes and sizes: docs/why.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from repro.constants import VOID
from repro.data.mask_set import MaskSet
from repro.data.voc import colour_palette
from repro.errors import InputError
from repro.inference.evaluate import no_prediction
from repro.metrics import mean_iou, per_class_iou

Values = tuple[np.ndarray, np.ndarray]

UNTOLD = (
    "Predictions made of images with red and blue swapped look like others: a score cannot tell. Swapped images cost "
    "some points; look at the reading of images first (repro predict reads RGB and swaps as the protocol wants)."
)


@dataclass(frozen=True)
class Score:
    """Mean IoU, 0–1, under a name. ``right`` is the mean over the classes that
    the truth shows, of void-free pixels, which is VOC's own where all classes occur."""

    name: str
    mean_iou: float
    right: bool = False


def _grey_of_colours() -> np.ndarray:
    """ITU-R 601 grey of VOC's colours, as Pillow and OpenCV compute it, uint8 (256,)."""
    return np.rint(colour_palette() @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)


def _one_class(counts: np.ndarray, classes: int) -> np.ndarray:
    """Predictions of objects alone: what was background is whatever object is in the image, most of all."""
    objects = counts.sum(axis=0)[:classes]
    objects[0] = 0
    return np.where(_VALUES == 0, int(objects.argmax()) or 1, _VALUES)


_VALUES = np.arange(256)

# what each mistake makes of the values of truth and prediction, from an image's counts and the number of classes
_MISTAKES: dict[str, Callable[[np.ndarray, int], Values]] = {
    "void counted as background": lambda counts, classes: (np.where(_VALUES == VOID, 0, _VALUES), _VALUES),
    "background left out of the truth": lambda counts, classes: (
        np.where(_VALUES == 0, VOID, _VALUES),
        _VALUES,
    ),
    "predictions without background": lambda counts, classes: (_VALUES, _one_class(counts, classes)),
    "truth's palette read as grey values": lambda counts, classes: (_grey_of_colours(), _VALUES),
    "predictions' palette read as grey values": lambda counts, classes: (_VALUES, _grey_of_colours()),
    # background becomes void, and each class the one before (reduce_zero_label)
    "classes of the truth one too low": lambda counts, classes: (
        np.r_[VOID, _VALUES[: VOID - 1], VOID],
        _VALUES,
    ),
    "classes of the predictions one too low": lambda counts, classes: (_VALUES, np.maximum(_VALUES - 1, 0)),
    "classes of the predictions one too high": lambda counts, classes: (
        _VALUES,
        np.minimum(_VALUES + 1, classes - 1),
    ),
}


def explain(pred_dir: Path, gt_paths: Sequence[Path], ids: Sequence[str], num_classes: int) -> list[Score]:
    """Mean IoU of the same masks under each rule and each mistake; the right one first.

    Where a prediction has another size than its truth, both ways of resizing one to the other (nearest) are scored,
    and there is no right one: `repro.inference.evaluate.evaluate_folder` refuses such masks.

    Args:
        pred_dir, gt_paths, ids, num_classes: as for `evaluate_folder`.

    Raises InputError as `evaluate_folder` does, other sizes excepted.
    """
    if not ids:
        raise InputError(f"no image to evaluate in {pred_dir}: the list of names is empty")
    truths, predictions = MaskSet(num_classes), MaskSet(num_classes)
    matrices: dict[str, np.ndarray] = {}
    per_image: list[float] = []
    differ = False
    for gt_path, name in tqdm(
        zip(gt_paths, ids, strict=True), desc="explain", total=len(ids), unit="image", disable=None
    ):
        pred_path = pred_dir / f"{name}.png"
        if not pred_path.is_file():
            raise no_prediction(pred_path, gt_path, ids)
        truth, pred = truths.read(gt_path), predictions.read(pred_path)
        differ = differ or truth.shape != pred.shape
        to_truth = _resized(pred, *truth.shape)
        counts = _counts(truth, to_truth)
        matrix = _matrix(counts, num_classes)
        per_image.append(mean_iou(matrix, "present"))
        _add(matrices, "", matrix)
        if truth.shape != pred.shape:
            matrix = _matrix(_counts(_resized(truth, *pred.shape), pred), num_classes)
        _add(matrices, _TO_PREDICTIONS, matrix)
        for mistake, values in _MISTAKES.items():
            _add(matrices, mistake, _matrix(counts, num_classes, *values(counts, num_classes)))
        grid = [max(1, -(-size // 8)) for size in truth.shape]  # as they leave the net
        at_grid = _counts(_resized(truth, *grid), _resized(to_truth, *grid))
        _add(matrices, "scored at an eighth of the size", _matrix(at_grid, num_classes))
    truths.check()
    resized = matrices.pop(_TO_PREDICTIONS)
    straight = matrices.pop("")
    right = "predictions resized to the truth" if differ else _RIGHT
    of_each = per_class_iou(straight)[:-1]
    scores = [Score(right, mean_iou(straight, "present"), not differ)]
    if differ:
        scores.append(Score(_TO_PREDICTIONS, mean_iou(resized, "present")))
    scores += [
        Score("the release's rule: classes without a correct pixel left out", mean_iou(straight, "released")),
        Score("absent classes counted as 0", float(np.nan_to_num(of_each).mean())),
        Score("absent classes counted as 1", float(np.nan_to_num(of_each, nan=1.0).mean())),
        Score("without the background's IoU", _without_background(straight)),
        Score("mean over images, not over one matrix", float(np.mean(per_image))),
    ]
    return scores + [Score(name, mean_iou(matrix, "present")) for name, matrix in matrices.items()]


def nearest(scores: Sequence[Score], expected: float) -> list[Score]:
    """The three scores that come nearest to another mean IoU (0–1), the nearest first."""
    return sorted(scores, key=lambda score: abs(score.mean_iou - expected))[:3]


_RIGHT = "mean over the classes that the truth shows"
_TO_PREDICTIONS = "truth resized to the predictions"


def _counts(truth: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """How many pixels hold each pair of values, (256, 256); whole numbers in float64, which multiply fast."""
    pairs = truth.ravel().astype(np.int64) * 256 + pred.ravel()
    return np.bincount(pairs, minlength=256 * 256).reshape(256, 256).astype(np.float64)


def _matrix(
    counts: np.ndarray, classes: int, truth: np.ndarray = _VALUES, pred: np.ndarray = _VALUES
) -> np.ndarray:
    """Counts (C + 1, C + 1) of what the values stand for: the last class is what is predicted to be none, which is
    wrong; no pixel is of it."""
    kinds = np.arange(classes + 1)[:, None]
    rows = (kinds == truth) & (kinds < classes)
    return rows.astype(np.float64) @ counts @ (kinds == np.minimum(pred, classes)).T.astype(np.float64)


def _add(matrices: dict[str, np.ndarray], name: str, matrix: np.ndarray) -> None:
    matrices[name] = matrices[name] + matrix if name in matrices else matrix


def _without_background(matrix: np.ndarray) -> float:
    """Mean over the classes that the truth shows but background; 0 where there is none."""
    shown = per_class_iou(matrix)[1:][matrix.sum(axis=1)[1:] > 0]
    return float(shown.mean()) if len(shown) else 0.0


def _resized(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """To the nearest pixel by centres."""
    if mask.shape == (height, width):
        return mask
    rows, columns = (
        ((np.arange(size) + 0.5) * of / size).astype(np.int64)
        for size, of in zip((height, width), mask.shape, strict=True)
    )
    return mask[rows[:, None], columns]
