"""How far an exported model is from the PyTorch net that it was made of, image by image.

Masks are the argmax before the dense CRF, for ``scores`` on its grid: the CRF would hide small differences.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from repro.data import read_image_rgb, read_mask, resize_bilinear_u8, subtract_mean
from repro.errors import InputError
from repro.inference.predict import FLOOR, predict_probs
from repro.layers.resize import zoom_to
from repro.metrics import confusion_matrix, mean_iou, per_class_iou
from repro.models import CaffeNet

if TYPE_CHECKING:
    from repro.export.runtime import OnnxSession  # needs onnxruntime

MASK_BOUND = 1e-4  # share of the pixels in which a float32 export may differ


@dataclass(frozen=True)
class ImageAgreement:
    """One image: its size, the largest difference of the result relative to PyTorch's largest value, and of
    ``pixels`` the number that are of another class."""

    name: str
    height: int
    width: int
    difference: float
    differing: int
    pixels: int


@dataclass(frozen=True)
class Agreement:
    """``mean_iou``: of the export's masks with PyTorch's as truth, 0–1, over the classes that occur in either.
    ``scores``: where there is ground truth, the mean IoU (rule ``voc``) of PyTorch's and of the export's masks."""

    images: list[ImageAgreement]
    mean_iou: float
    scores: tuple[float, float] | None = None

    @property
    def pixel_agreement(self) -> float:
        return 1 - sum(row.differing for row in self.images) / sum(row.pixels for row in self.images)

    @property
    def difference(self) -> float:
        return max(row.difference for row in self.images)

    def summary(self) -> str:
        """One line."""
        count = len(self.images)
        text = (
            f"on {count} image{'s' * (count > 1)} {100 * self.pixel_agreement:.4f} % of the pixels agree with "
            f"PyTorch in float32, mean IoU with its masks {100 * self.mean_iou:.2f}"
        )
        if self.scores:
            ours, theirs = self.scores[1], self.scores[0]
            text += (
                f"; mean IoU with the ground truth {100 * ours:.2f} instead of {100 * theirs:.2f} "
                f"({100 * (ours - theirs):+.2f})"
            )
        return text

    def lines(self) -> list[str]:
        """One line per image, and the summary."""
        width = max(len("image"), *(len(row.name) for row in self.images))
        lines = [f"{'image':<{width}}  {'size':>11}  {'largest difference':>18}  {'pixels that differ':>20}"]
        for row in self.images:
            share = 100 * row.differing / row.pixels
            lines.append(
                f"{row.name:<{width}}  {f'{row.width}x{row.height}':>11}  {row.difference:>18.1e}  "
                f"{f'{row.differing} ({share:.4f} %)':>20}"
            )
        return [*lines, self.summary()]

    def as_json(self) -> str:
        """For a model's metadata."""
        content = {
            "images": len(self.images),
            "pixel_agreement": self.pixel_agreement,
            "mean_iou": self.mean_iou,
            "summary": self.summary(),
        }
        return json.dumps(content)


def measure(
    model: CaffeNet, session: OnnxSession, images: Mapping[str, Path], truth: Path | None = None
) -> Agreement:
    """Run both on images.

    Args:
        model: in evaluation mode, float32.
        session: of an export of it.
        images: name -> path; at least one.
        truth: folder of ground-truth masks ``<stem of the image>.png``, for graphs whose result has the image's size.

    Raises:
        InputError: an image or a mask that cannot be read, or truth for another graph.
    """
    if truth is not None and session.graph == "scores":
        raise InputError("graph 'scores' gives no masks of the images' size to compare with ground truth")
    classes = len(session.classes)
    rows, matrix = [], np.zeros((classes, classes), np.int64)
    true_matrices = [np.zeros_like(matrix) for _ in range(2)]
    for name, path in images.items():
        picture = read_image_rgb(path)
        want, got = _both(model, session, picture)
        difference = float((got - want).abs().max() / want.abs().max().clamp_min(1e-30))
        masks = [result.argmax(dim=1)[0].cpu().numpy() for result in (want, got)]
        rows.append(
            ImageAgreement(
                name=name,
                height=picture.shape[0],
                width=picture.shape[1],
                difference=difference if np.isfinite(difference) else float("inf"),
                differing=int((masks[0] != masks[1]).sum()),
                pixels=masks[0].size,
            )
        )
        matrix += confusion_matrix(masks[0], masks[1], classes)
        if truth is not None:
            file = truth / f"{path.stem}.png"
            mask = read_mask(file, classes)
            if mask.shape != masks[0].shape:
                raise InputError(f"{file}: mask of {mask.shape}, the image is {masks[0].shape}")
            for total, predicted in zip(true_matrices, masks, strict=True):
                total += confusion_matrix(mask, predicted, classes)
    scores = (mean_iou(true_matrices[0], "voc"), mean_iou(true_matrices[1], "voc")) if truth else None
    return Agreement(rows, float(np.nanmean(per_class_iou(matrix))), scores)


@torch.inference_mode()
def _both(model: CaffeNet, session: OnnxSession, picture: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """PyTorch's result and the export's for one image, (1, C, rows, columns) on the session's device."""
    if session.graph == "multiscale":
        probs = predict_probs(model, picture, protocol=session.metadata["protocol"])
        want = probs.clamp_min(FLOOR)[None]
        images = torch.from_numpy(picture[None])
    else:
        if model.fixed_size:
            picture = resize_bilinear_u8(picture, model.input_size, model.input_size)
        images = torch.from_numpy(subtract_mean(picture[:, :, ::-1])[None])
        want = model(images.to(next(model.parameters()).device))
        if session.graph == "probs":
            want = torch.softmax(zoom_to(want, *picture.shape[:2]), dim=1)
    got = session.run(images, want.shape)
    if want.ndim == 2:  # a classifier's: one cell
        want, got = want[:, :, None, None], got[:, :, None, None]
    return want.to(got.device), got
