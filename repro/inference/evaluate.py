"""Scores of a folder of masks against ground truth."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from repro import distributed
from repro.data.mask_set import MaskSet
from repro.errors import InputError, some
from repro.metrics import confusion_matrix, summarize

log = logging.getLogger(__name__)


def evaluate_folder(
    pred_dir: str | Path, gt_paths: Sequence[str | Path], ids: Sequence[str], num_classes: int
) -> dict[str, Any]:
    """Score the masks ``<pred_dir>/<id>.png`` against ground-truth masks, in the order given.

    Args:
        pred_dir: folder of index PNGs (palette or grey).
        gt_paths: the ground-truth mask of each id; 255 is void.
        ids: the image names, without suffix.
        num_classes: C, background included.

    Returns:
        ``summarize`` of the matrix over all images; several ranks share the images, and each returns it.

    Raises:
        InputError: no ids, ground truth without any class but background, a missing or unreadable mask, a prediction
            whose size differs from the ground truth's or that holds a value outside 0…C−1 at a counted pixel; each
            names the files.
    """
    if len(gt_paths) != len(ids):
        raise InputError(f"{len(gt_paths)} ground-truth masks for {len(ids)} image names: expected one each")
    if not ids:
        raise InputError(f"no image to evaluate in {pred_dir}: the list of names is empty")
    matrix = np.zeros((num_classes, num_classes), np.int64)
    truth, predicted = MaskSet(num_classes), MaskSet(num_classes)
    same = 0
    mine = slice(distributed.rank(), None, distributed.size())
    pairs = list(zip(gt_paths[mine], ids[mine], strict=True))
    for gt_path, image_id in tqdm(
        pairs, desc="evaluate", unit="image", disable=None if distributed.is_first() else True
    ):
        pred_path = Path(pred_dir) / f"{image_id}.png"
        if not pred_path.is_file():
            raise no_prediction(pred_path, gt_path, ids)
        same += os.path.exists(gt_path) and os.path.samefile(gt_path, pred_path)
        gt, pred = truth.read(gt_path), predicted.read(pred_path)
        if gt.shape != pred.shape:
            raise InputError(f"{pred_path}: {_size(pred)} pixels, expected {_size(gt)} as {gt_path} has")
        try:
            matrix += confusion_matrix(gt, pred, num_classes)
        except InputError as error:
            raise InputError(f"{pred_path} against {gt_path}: {error}") from error
    matrix = distributed.add_up(torch.from_numpy(matrix)).numpy()
    if same := sum(distributed.gathered(same)):
        log.warning("%d of %d predictions are the files of the ground truth itself", same, len(ids))
    _together(predicted).log_lines()
    _together(truth).check()
    return summarize(matrix, len(ids))


def no_prediction(missing: Path, truth: str | Path, ids: Sequence[str]) -> InputError:
    """The error for an image without a mask: how many have none, and what the folder holds under the image's name."""
    folder = missing.parent
    if not folder.is_dir():
        return InputError(f"{folder}: no such folder of predictions")
    absent = sum(not (folder / f"{name}.png").is_file() for name in ids)
    near = sorted(path.name for path in folder.glob(f"{glob.escape(missing.stem)}*"))
    there = f"; there is {some(near, 3)}" if near else ""
    return InputError(f"{missing}: no prediction for {truth}, {absent} of {len(ids)} are missing{there}")


def _together(masks: MaskSet) -> MaskSet:
    """What all ranks have read."""
    together = MaskSet(masks.num_classes)
    for part in distributed.gathered(masks):
        together.add(part)
    return together


def _size(mask: npt.NDArray[Any]) -> str:
    return f"{mask.shape[1]}×{mask.shape[0]}"
