"""Test-time inference: the releases' test scripts as named protocols.

    protocol      script          image at                      before the softmax
    dsrg_stage1   test-ms.py      241, 321, 401 square          scores zoomed to image size, summed
    dsrg_final    test-ms-f.py    0.75, 1, 1.25 of its size     scores zoomed to image size, summed
    sec           demo.py         321 square                    softmax on the grid, probabilities zoomed
    coco_stage1   test_coco       481 square                    scores zoomed to image size
    coco_final    test_coco_f     its own size                  scores zoomed to image size
    mini_stage1   dsrg_stage1's   85, 113, 141 square           scores zoomed to image size, summed

The last has the embedded set's training square, 113, in place of 321.

Then: floor of 1e-5; dense CRF with log-probabilities on the full-size RGB image, scale 1; argmax. All zooms are
SciPy's, order 1. The release's label-restricted script (``train_gt`` in the recordings) is ``sec`` with the argmax
restricted to the image's labels and background; here any protocol takes ``labels``.

All scripts swap the colours of the image they have read, and hand it unswapped to the CRF. ``coco_final`` reads BGR, so
that its net sees RGB, as in COCO's training layer, and its CRF BGR; the others read RGB, ``coco_stage1`` among them:
there the release gives a net that was trained on RGB a BGR image. Both are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from repro.config import Config, Mark, PredictConfig, shaping
from repro.data import preprocess_zoomed
from repro.errors import InputError, meant, some
from repro.inference.memory import SMALL, crf_memory, refuse_beyond
from repro.layers import CRFParams, mean_field
from repro.layers.resize import zoom_rows
from repro.models import CaffeNet
from repro.models.weights import load_weights
from repro.precision import to_device
from weights_conversion import LoadReport
from weights_conversion.files import file_sha256

STRIP = 1 << 19  # pixels whose probabilities are made at once
_VECTOR = 16  # numbers that the widest processors take at once
FLOOR = 1e-5  # `probs[probs < 0.00001] = 0.00001` in every test script


@dataclass(frozen=True)
class Protocol:
    """One test script: its ``sizes`` (squares) or ``factors``, what it zooms back, and how it reads the image."""

    sizes: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()
    zooms_probabilities: bool = False
    reads_bgr: bool = False

    def as_read(self, image_rgb: np.ndarray) -> np.ndarray:
        """The image in the order of colours in which the script holds it."""
        return np.ascontiguousarray(image_rgb[:, :, ::-1]) if self.reads_bgr else image_rgb

    def zooms(self, height: int, width: int) -> list[tuple[float, float]]:
        """The zoom factors of height and width at each scale for an image of this size."""
        if self.sizes:
            return [(size / height, size / width) for size in self.sizes]
        return [(factor, factor) for factor in self.factors]


PROTOCOLS = {
    "dsrg_stage1": Protocol(sizes=(241, 321, 401)),
    "dsrg_final": Protocol(factors=(0.75, 1.0, 1.25)),
    "sec": Protocol(sizes=(321,), zooms_probabilities=True),
    "coco_stage1": Protocol(sizes=(481,)),
    "coco_final": Protocol(factors=(1.0,), reads_bgr=True),
    "mini_stage1": Protocol(sizes=(85, 113, 141)),
}


@torch.inference_mode()
def predict_probs(model: CaffeNet, image_rgb: np.ndarray, *, protocol: str) -> torch.Tensor:
    """Class probabilities at image size, before the floor and the CRF.

    Args:
        model: in whatever mode; it runs in evaluation mode, on its own device.
        image_rgb: (H, W, 3) uint8.
        protocol: a key of ``PROTOCOLS``.

    Returns:
        (C, H, W) in the model's dtype, on its device.

    Raises:
        InputError: an unknown protocol, or an image of another type or shape.
    """
    picture, script = _as_read(model, image_rgb, protocol), PROTOCOLS[protocol]
    return _whole(_grids(model, picture, script), script, *picture.shape[:2])


def _as_read(model: CaffeNet, image_rgb: np.ndarray, protocol: str) -> torch.Tensor:
    """The image, checked, on the model's device, its colours as the script of ``protocol`` holds them."""
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol {protocol!r}: {meant(protocol, PROTOCOLS)}")
    if image_rgb.dtype != np.uint8 or image_rgb.ndim != 3 or image_rgb.shape[2] != 3:
        raise InputError(f"image: expected uint8 (H, W, 3), found {image_rgb.dtype} {image_rgb.shape}")
    as_read = PROTOCOLS[protocol].as_read(image_rgb)
    return torch.from_numpy(np.ascontiguousarray(as_read)).to(next(model.parameters()).device)


def _strips(height: int, width: int) -> list[slice]:
    """Rows of an image in strips: zooming takes 40 times the image's memory for 21 classes, and each row is its own.

    PyTorch's softmax on the CPU goes by vectors of up to 16 pixels, and its exponential for the pixels left over is
    another. So strips are of whole vectors, and those pixels are the whole image's, too.
    """
    step = max(_VECTOR, STRIP // width // _VECTOR * _VECTOR)
    return [slice(first, min(first + step, height)) for first in range(0, height, step)]


def _whole(grids: list[torch.Tensor], script: Protocol, height: int, width: int) -> torch.Tensor:
    """The probabilities (C, H, W) at image size, made in strips."""
    probs = grids[0].new_empty(len(grids[0]), height, width)
    for rows in _strips(height, width):
        probs[:, rows] = zoomed_probs(grids, script, height, width, rows)
    return probs


def zoomed_probs(
    grids: list[torch.Tensor], script: Protocol, height: int, width: int, rows: slice
) -> torch.Tensor:
    """The probabilities (C, rows, W) at image size of each scale's scores, or probabilities, (C, h, w) on the grid."""
    total = reduce(torch.add, (zoom_rows(grid, height, width, rows) for grid in grids))
    return total if script.zooms_probabilities else torch.softmax(total, dim=0)


def _grids(model: CaffeNet, picture: torch.Tensor, script: Protocol) -> list[torch.Tensor]:
    height, width = picture.shape[:2]
    parameter = next(model.parameters())
    was_training = model.training
    model.eval()
    try:
        grids = []
        for factors in script.zooms(height, width):
            blob = preprocess_zoomed(picture, factors)[None].to(parameter.dtype)
            grid = model(blob)
            if script.zooms_probabilities:
                grid = torch.softmax(grid, dim=1)
            grids.append(grid[0])
    finally:
        model.train(was_training)
    return grids


@torch.inference_mode()
def predict_mask(
    model: CaffeNet,
    image_rgb: np.ndarray,
    *,
    protocol: str,
    crf: bool = True,
    labels: Sequence[int] | None = None,
) -> np.ndarray:
    """Segment one image as the release's test script does.

    Args:
        model: a segmentation net.
        image_rgb: (H, W, 3) uint8.
        protocol: a key of ``PROTOCOLS``.
        crf: run the dense CRF; without it the argmax of the probabilities.
        labels: class ids of the image; where given, only they and background (0) can win.

    Returns:
        (H, W) uint8 class indices.

    Raises:
        InputError: an unknown protocol, an image of another type or shape, a label outside the classes.
    """
    # to the device once: a copy in between would wait there for the net, and the CRF's launches with it
    picture = _as_read(model, image_rgb, protocol)
    script = PROTOCOLS[protocol]
    return mask_of_grids(_grids(model, picture, script), picture, script, crf=crf, labels=labels)


@torch.inference_mode()
def mask_of_grids(
    grids: list[torch.Tensor],
    picture: torch.Tensor,
    script: Protocol,
    *,
    crf: bool,
    labels: Sequence[int] | None = None,
) -> np.ndarray:
    """What a test script does after its net: zoom, softmax, floor, dense CRF, argmax.

    Args:
        grids: of each scale the scores, or the probabilities where ``script`` zooms those, (C, h, w).
        picture: (H, W, 3) uint8, its colours as the script holds them, on the device of ``grids``.
        crf, labels: as for `predict_mask`.

    Returns:
        (H, W) uint8 class indices.

    Raises:
        InputError: a label outside the classes.
    """
    height, width = picture.shape[:2]
    of_image = None if labels is None else [labels]
    if crf:
        probs = _whole(grids, script, height, width)
        return decide(probs[None], picture[None], crf=True, labels=of_image)[0]
    # without a CRF a pixel's class depends on its own probabilities alone
    return np.concatenate(
        [
            decide(
                zoomed_probs(grids, script, height, width, rows)[None],
                picture[None, rows],
                crf=False,
                labels=of_image,
            )[0]
            for rows in _strips(height, width)
        ]
    )


@torch.inference_mode()
def decide(
    probs: torch.Tensor,
    images_u8: torch.Tensor,
    *,
    crf: bool,
    labels: Sequence[Sequence[int]] | None = None,
) -> np.ndarray:
    """What every test script does with its probabilities: floor, dense CRF on the full-size image, argmax.

    Args:
        probs: (N, C, H, W), on any device; the CRF runs there.
        images_u8: (N, H, W, 3) uint8, colours as the script holds them (``Protocol.as_read``).
        crf: run the dense CRF; without it the argmax of the probabilities.
        labels: class ids of each image; where given, only they and background (0) can win.

    Returns:
        (N, H, W) uint8 class indices.

    Raises:
        InputError: a label outside the classes, or probabilities that are NaN, of which argmax makes a class.
    """
    if not probs.sum().isfinite():
        raise InputError(
            "the net's probabilities are NaN; its weights, or half precision, make numbers too large"
        )
    probs = probs.clamp_min(FLOOR)
    if crf:
        probs = mean_field(images_u8.to(probs.device), probs.log(), CRFParams())
    if labels is not None:
        classes = probs.shape[1]
        allowed = torch.zeros(len(labels), classes, dtype=torch.bool)
        allowed[:, 0] = True
        for row, of_image in zip(allowed, labels, strict=True):
            for label in of_image:
                if not 0 <= label < classes:
                    raise InputError(f"label {label}: expected a class of 0 to {classes - 1}")
                row[label] = True
        probs = probs.masked_fill(~allowed.to(probs.device)[:, :, None, None], -1.0)
    return probs.argmax(dim=1).to(torch.uint8).cpu().numpy()


@contextmanager
def refuse_beyond_memory(images: np.ndarray) -> Iterator[None]:
    """Turn running out of memory in the block into an InputError that names the images' size, (N, H, W, 3)."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # PyTorch's for the CPU has no type of its own
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not known and "allocate memory" not in str(error):
            raise
        count, height, width = images.shape[:3]
        raise InputError(
            f"{count} image{'s' * (count > 1)} of {width}x{height} pixels: more memory needed than there is; a CRF of "
            f"21 classes takes {crf_memory(images.shape, 21) / 1e9:.1f} GB or more; inference.crf=false takes little "
            "more than the net"
        ) from error


@dataclass(frozen=True)
class TorchSegmenter:
    """A PyTorch net as an engine of ``predict_folder``, one image at a time."""

    model: CaffeNet
    settings: PredictConfig
    batch_size: int = field(default=1, init=False)

    def masks(self, images: np.ndarray, labels: Sequence[Sequence[int]] | None = None) -> np.ndarray:
        """``predict_mask`` of each image. Raises InputError, for images beyond the device's memory as well."""
        script = self.settings
        self._check_memory(images.shape)
        with refuse_beyond_memory(images):
            return np.stack(
                [
                    predict_mask(
                        self.model,
                        image,
                        protocol=script.protocol,
                        crf=script.crf,
                        labels=labels[index] if labels else None,
                    )
                    for index, image in enumerate(images)
                ]
            )

    def _check_memory(self, shape: tuple[int, ...]) -> None:
        """Raise InputError for images whose largest blob, or CRF, needs more memory than there is."""
        parameter = next(self.model.parameters())
        script = PROTOCOLS[self.settings.protocol]
        height, width = shape[1:3]
        if height * width < SMALL:
            return
        blobs: list[int] = []
        for rows, columns in script.zooms(height, width):
            shapes = self.model.shapes_for(round(height * rows), round(width * columns))
            blobs += [math.prod(blob) // blob[0] for blob in shapes.values() if blob]
        net = parameter.element_size() * max(blobs)
        classes = self.model.shapes[self.model.scores_blob][1]
        crf = crf_memory((1, *shape[1:]), classes) if self.settings.crf else 0
        refuse_beyond(net, crf, shape, parameter.device)


def describe(config: Config, weights: Path, settings: PredictConfig) -> dict[str, Any]:
    """What decides an image's mask: the net, its weights, the protocol."""
    return {
        "model": shaping(config.model, Mark.TRAINING),
        "weights_sha256": file_sha256(weights),
        "precision": config.precision,
        **shaping(settings),
    }


def load_every_layer(model: nn.Module, weights: str | Path, name: str) -> LoadReport:
    """`load_weights` of a file that has to hold every layer of ``model``, called ``name`` in the error.

    Raises:
        InputError: as `load_weights`, and a file that lacks a layer.
    """
    report = load_weights(model, weights)
    if report.missing:
        raise InputError(f"{weights}: has no weights for {some(report.missing)} of {name}")
    return report


def load_model(
    config: Config, weights: Path, device: torch.device, classifier: str | None = None
) -> CaffeNet:
    """The config's net or its classifier, with all its weights from a file, on a device, in evaluation mode.

    Raises:
        InputError: as `load_every_layer`.
    """
    model = config.build_net(classifier)
    load_every_layer(model, weights, model.name)
    return to_device(model, config, device, one_size=classifier is not None).eval()
