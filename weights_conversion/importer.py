"""A converted net against OpenCV's Caffe importer, an implementation of its own: blob by blob, on images.

OpenCV (``cv2.dnn``) reads the prototxt and the .caffemodel itself, so that a mistake in our readers, writers or
layers shows as a blob that differs. It names outputs by layer: a blob that in-place layers share is compared after
the last of them, as ``forward_blobs`` gives it. Its own fusing of layers is off, which would leave blobs undone.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repro.data.images import read_image_bgr, subtract_mean
from repro.errors import InputError
from repro.layers.resize import resize_bilinear_u8
from repro.models import CaffeNet
from weights_conversion.caffemodel import write_caffemodel
from weights_conversion.mapping import LoadReport
from weights_conversion.prototxt import Message, read_prototxt
from weights_conversion.shape_rules import layer_type, names, text

TOLERANCE = 1e-5
_NEEDS_DATA = ("Python", "ImageData", "ImageSegData", "Data", "HDF5Data", "WindowData", "MemoryData")


@dataclass(frozen=True)
class BlobCheck:
    """The largest differences of a blob over all images; ``relative`` to the largest value of OpenCV's.

    ``layer`` is the last to write it, ``shape`` our blob's for the first image. Where the shapes differ both
    differences are infinite. ``image`` is the one with the largest relative difference.
    """

    layer: str
    blob: str
    shape: tuple[int, ...]
    absolute: float
    relative: float
    image: str


@dataclass(frozen=True)
class CheckReport:
    """The blobs that both sides have, in the prototxt's order, and the names of those that only one has."""

    checks: list[BlobCheck]
    only_prototxt: list[str]
    only_net: list[str]
    tolerance: float

    @property
    def first_over(self) -> BlobCheck | None:
        """The first blob whose relative difference is over the tolerance (NaN is)."""
        return next((check for check in self.checks if not check.relative <= self.tolerance), None)

    def lines(self) -> list[str]:
        """The report as a table and a verdict."""
        width = max(len(check.layer) for check in self.checks) + 2
        blob_width = max(len(check.blob) for check in self.checks) + 2
        rows = [f"{'layer':<{width}}{'blob':<{blob_width}}{'shape':<18}{'absolute':>10}{'relative':>10}"]
        for check in self.checks:
            shape = "x".join(map(str, check.shape))
            over = "" if check.relative <= self.tolerance else f"  over, on {check.image}"
            rows.append(
                f"{check.layer:<{width}}{check.blob:<{blob_width}}{shape:<18}"
                f"{check.absolute:>10.2e}{check.relative:>10.2e}{over}"
            )
        for what, blobs in (("the prototxt", self.only_prototxt), ("the net", self.only_net)):
            if blobs:
                rows.append(f"only in {what}, not compared: {', '.join(blobs)}")
        first = self.first_over
        if first is None:
            worst = max(self.checks, key=lambda check: check.relative)
            rows.append(
                f"{len(self.checks)} blobs agree within {self.tolerance:g} of their largest value; "
                f"the furthest is {worst.blob}, {worst.relative:.2e}"
            )
        else:
            rows.append(f"first over {self.tolerance:g}: layer {first.layer}, blob {first.blob}")
        return rows


def check_with_opencv(
    net: CaffeNet,
    prototxt: str | os.PathLike[str],
    caffemodel: str | os.PathLike[str],
    images: Mapping[str, np.ndarray],
    *,
    tolerance: float = TOLERANCE,
) -> CheckReport:
    """Run ``net`` and OpenCV's import of the two files on the same images and compare every blob.

    Args:
        net: in whatever mode; it runs in evaluation mode, in float32, on its device.
        prototxt: of the net alone (deploy).
        caffemodel: the binary weights that OpenCV reads.
        images: by name, mean-subtracted float32 (1, 3, H, W); sizes may differ.
        tolerance: the largest relative difference that counts as equal.

    Raises:
        InputError: OpenCV is not installed, cannot import the files, or shares no blob with the net.
    """
    if not images:
        raise InputError("check: no image to run")
    description = read_prototxt(prototxt)
    writers = _last_writers(description, prototxt)
    training, device = net.training, next(net.parameters()).device
    net.eval()
    try:
        checks: dict[str, BlobCheck] = {}
        imported = _Imported(prototxt, caffemodel)
        for name, image in images.items():
            with torch.inference_mode():
                blobs = net.forward_blobs(torch.from_numpy(np.ascontiguousarray(image)).to(device))
                ours = {blob: values.cpu().numpy() for blob, values in blobs.items()}
            shared = [blob for blob in writers if blob in ours]
            theirs = imported.run(image, [writers[blob] for blob in shared])
            for blob, values in zip(shared, theirs, strict=True):
                check = _compare(writers[blob], blob, name, ours[blob], values)
                checks[blob] = _worse(checks[blob], check) if blob in checks else check
    finally:
        net.train(training)
    if not checks:
        raise InputError(f"{os.fspath(prototxt)}: none of its blobs is in {net.name}")
    only_prototxt = [blob for blob in writers if blob not in checks]
    only_net = [layer.top for layer in net.layers if layer.top not in checks]
    return CheckReport(list(checks.values()), only_prototxt, list(dict.fromkeys(only_net)), tolerance)


def check_conversion(
    net: CaffeNet,
    report: LoadReport,
    prototxt: str | os.PathLike[str],
    images: Mapping[str, np.ndarray],
    *,
    tolerance: float = TOLERANCE,
) -> CheckReport:
    """``check_with_opencv`` for a net that was just loaded, ``report`` being of that load.

    OpenCV reads the very file that was loaded where it can: a .caffemodel, binary, that filled every layer with the
    values it holds. Else it reads the net's weights, written to a temporary .caffemodel.
    """
    if report.form.startswith("Caffe binary") and not (report.missing or report.spread or report.changes):
        return check_with_opencv(net, prototxt, report.path, images, tolerance=tolerance)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / f"{net.name}.caffemodel"
        write_caffemodel(net, written)
        return check_with_opencv(net, prototxt, written, images, tolerance=tolerance)


def read_images(net: CaffeNet, files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    """Images from files as the net's blob ``images``: in their own size, for nets of a fixed size resized to it."""
    blobs = {}
    for name, path in files.items():
        image = read_image_bgr(path)
        if net.fixed_size:
            image = resize_bilinear_u8(image, net.input_size, net.input_size)
        blobs[name] = subtract_mean(image)[None]
    return blobs


def random_images(net: CaffeNet, seed: int = 0) -> dict[str, np.ndarray]:
    """Noise between -128 and 128 at the net's ``input_size`` and, where it takes any size, at two others."""
    side = net.input_size
    sizes = [(side, side)] if net.fixed_size else [(side, side), (97, 130), (65, 49)]
    rng = np.random.default_rng(seed)
    return {
        f"noise {height}x{width}": rng.uniform(-128, 128, (1, 3, height, width)).astype(np.float32)
        for height, width in sizes
    }


@contextmanager
def _quiet(cv2: Any) -> Iterator[None]:
    """Without what OpenCV itself logs of an error, several lines beside ours."""
    logging = cv2.utils.logging
    level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)


class _Imported:
    """OpenCV's network. Its own errors become one line."""

    def __init__(self, prototxt: str | os.PathLike[str], caffemodel: str | os.PathLike[str]) -> None:
        try:
            import cv2
        except ImportError:
            raise InputError(
                "check: needs OpenCV's Caffe importer; pip install 'sec-dsrg-repro[check]' "
                "(opencv-python-headless) brings it"
            ) from None
        self._cv2, self._what = cv2, f"{os.fspath(prototxt)}, {os.fspath(caffemodel)}"
        try:
            with _quiet(cv2):
                self._net = cv2.dnn.readNetFromCaffe(os.fspath(prototxt), os.fspath(caffemodel))
                self._net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
                self._net.enableFusion(False)
                self._net.enableWinograd(False)  # its own rounding, of up to 1e-5
        except cv2.error as error:
            raise self._refused(error) from None
        except AttributeError:
            raise InputError(
                f"check: this OpenCV ({getattr(cv2, '__version__', 'of no version')}) has no Caffe importer, which 5.0 "
                "dropped; pip install 'opencv-python-headless<5'"
            ) from None

    def run(self, image: np.ndarray, layers: list[str]) -> Sequence[np.ndarray]:
        try:
            with _quiet(self._cv2):
                self._net.setInput(image)
                return self._net.forward(layers) if layers else []
        except self._cv2.error as error:
            raise self._refused(error) from None

    def _refused(self, error: Any) -> InputError:
        reason = " ".join(str(getattr(error, "err", "") or error).split())
        return InputError(f"{self._what}: OpenCV cannot import this net: {reason}")


def _last_writers(net: Message, prototxt: str | os.PathLike[str]) -> dict[str, str]:
    """The last layer to write each blob, in the order in which the blobs appear."""
    writers: dict[str, str] = {}
    for layer in net.layers:
        if layer_type(layer) in _NEEDS_DATA:
            raise InputError(
                f"{os.fspath(prototxt)}: layer {text(layer, 'name')} is of type {layer_type(layer)}; "
                "a check takes a deploy prototxt, of the net alone"
            )
        if layer_type(layer) != "Input":
            writers.update(dict.fromkeys(names(layer, "top"), text(layer, "name")))
    return writers


def _compare(layer: str, blob: str, image: str, ours: np.ndarray, theirs: np.ndarray) -> BlobCheck:
    if ours.shape != theirs.shape:
        return BlobCheck(layer, blob, ours.shape, float("inf"), float("inf"), image)
    absolute = float(np.abs(ours.astype(np.float64) - theirs).max(initial=0.0))
    largest = float(np.abs(theirs).max(initial=0.0))
    return BlobCheck(layer, blob, ours.shape, absolute, absolute / largest if largest else absolute, image)


def _worse(first: BlobCheck, second: BlobCheck) -> BlobCheck:
    """The larger of both differences; the shape is the first's."""
    image = first.image if first.relative >= second.relative else second.image
    return BlobCheck(
        first.layer,
        first.blob,
        first.shape,
        max(first.absolute, second.absolute),
        max(first.relative, second.relative),
        image,
    )
