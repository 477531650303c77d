"""The data layers of both stages: one list line to one item.

`CueDataset` is Caffe's layer ``ImageData`` (``images_origin``, ``image_ids``) together with the Python layer
``Annotation`` that follows it in ``train-s.prototxt``; `LabelMapDataset` is the Python layer ``ImageSegDataLayer``
that feeds the retraining. A layer holds no state of its own: which line comes when, and the generator its
random draws come from, are the loader's (`repro.data.sampler`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from repro.constants import CLASS_NAMES, MEAN_BGR, VOID
from repro.data.cues import CellTruth, CueFile
from repro.data.image_cache import KeptImages
from repro.data.image_list import CueLine, LabelLine, Lines, image_name
from repro.data.images import IMAGE_SUFFIXES, read_image_bgr, read_image_rgb, subtract_mean
from repro.data.voc import read_mask
from repro.errors import InputError
from repro.layers.resize import resize_bilinear_u8

Item = dict[str, Any]
"""Blob name to its value for one image, without the batch axis."""

T = TypeVar("T")
PathLike = str | os.PathLike[str]


class Listed:
    """What the data layers share: the lines of a list and the images that they name."""

    lines: Lines[Any]
    _images: list[str]

    def image_paths(self) -> list[str]:
        """The image of each line."""
        return self._images

    def __len__(self) -> int:
        return len(self.lines)

    def _located(self, root: PathLike, place: int) -> list[str]:
        """The file that stands at a place of each line, below ``root``."""
        names, numbers = (line[place] for line in self.lines), (line.line for line in self.lines)
        return located(root, names, self.lines.source, numbers)


@dataclass(eq=False)
class Cued(Listed):
    """What the data layers of stage 1 share: images of one size, their labels and cues.

    Args:
        grid: rows and columns of the cues.
        mirror: flip each image with its cues, on a coin.
        mean: subtracted from the channels.
        truth_root: folder of the images' masks, of which each item then has the ``truth``: pixels of each class in
            each cell, int32 (C, rows, columns), flipped with the cues.
    """

    _: KW_ONLY
    num_classes: int = len(CLASS_NAMES)
    grid: tuple[int, int] = (41, 41)
    new_height: int = 321
    new_width: int = 321
    mirror: bool = False
    mean: Sequence[float] = MEAN_BGR
    truth_root: PathLike | None = None

    def __post_init__(self) -> None:
        root = self.truth_root
        self._truth = None if root is None else CellTruth(root, self.num_classes, self.grid)

    def _item(
        self, line: int, rng: np.random.Generator, index: int, labels: np.ndarray, **planes: np.ndarray
    ) -> Item:
        """Of line ``line`` (from 0): ``index`` and ``labels``, and ``images`` and ``cues``, flipped on a coin."""
        if self._truth is not None:
            image = image_name(self.lines[line].image)
            planes["truth"] = naming(self.lines.where(line), self._truth.counts, image)
        step = mirror_step(self.mirror, rng)
        flipped = {name: tensor(plane[:, :, ::step]) for name, plane in planes.items()}
        return {**flipped, "labels": tensor(labels), "index": index}


@dataclass(eq=False)
class CueDataset(Cued):
    """Stage 1: images resized to one size, their labels and cues.

    Args:
        image_root: what the names of the list are appended to.
        lines: image and index of its cues, of a list (`CueFile.lines`) or put together.
        cues: their cue file.
        background_label: mark class 0 present in ``labels`` (DSRG does, SEC does not).

    Others as for `Cued`; the mean is subtracted from blue, green, red.
    Raises InputError naming the list's line when an image is missing or its cues are not usable. All lines are
    checked here, so that a run does not end hours later; what an image file holds is checked when it is read.
    """

    image_root: PathLike
    lines: Lines[CueLine]
    cues: CueFile
    _: KW_ONLY
    background_label: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._images = self._located(self.image_root, 0)
        self.cues.check_whole(*self.grid)
        limits = (self.num_classes, *self.grid)
        if not self.cues.all_usable([line.cue_index for line in self.lines], *limits):
            for index, line in enumerate(self.lines):
                naming(self.lines.where(index), self.cues.check, line.cue_index, *limits)
        self.keep(0)

    def item(self, index: int, rng: np.random.Generator) -> Item:
        """Line ``index`` (from 0) as ``images`` float32 (3, new_height, new_width), ``labels`` uint8 (C,),
        ``cues`` uint8 (C, rows, columns) and ``index``, the image's index in the cue file.

        ``rng`` decides the mirror. Raises InputError naming the line for an image that cannot be read.
        """
        line = self.lines[index]
        images = subtract_mean(self._kept.get(index, partial(self._resized, index)), self.mean)
        cues = self.cues.cues_blob(line.cue_index, self.num_classes, *self.grid)
        labels = self.cues.labels_blob(line.cue_index, self.num_classes, self.background_label)
        return self._item(index, rng, line.cue_index, labels, images=images, cues=cues)

    def keep(self, limit: int) -> None:
        """From now on decode and resize each image once and keep up to ``limit`` bytes (`repro.data.image_cache`)."""
        self._kept = KeptImages(len(self.lines), (self.new_height, self.new_width, 3), limit)

    def _resized(self, index: int) -> np.ndarray:
        image = naming(self.lines.where(index), read_image_bgr, self._images[index])
        return resize_bilinear_u8(image, self.new_height, self.new_width)


@dataclass(eq=False)
class LabelMapDataset(Listed):
    """Stage 2: a crop of each image and of its label map, never resized.

    Image and label map are padded at the bottom and the right to ``crop_size`` (the image with 0 after the mean
    is subtracted, the labels with 255), then cropped at a random place, then mirrored on a coin.

    Args:
        image_root, label_root: what the two paths of a line are appended to.
        lines: image and label map (`read_label_list`), PNGs of class indices, 255 = ignore.
        crop_size: rows and columns of the result.
        rgb: swap the channels, as `repro.data.coco.AnnotationCOCO` does; the mean's order stays.

    Raises InputError naming the list's line when a file is missing.
    """

    image_root: PathLike
    label_root: PathLike
    lines: Lines[LabelLine]
    _: KW_ONLY
    num_classes: int = len(CLASS_NAMES)
    crop_size: tuple[int, int] = (321, 321)
    mirror: bool = False
    rgb: bool = False
    mean: Sequence[float] = MEAN_BGR

    def __post_init__(self) -> None:
        self._images, self._labels = self._located(self.image_root, 0), self._located(self.label_root, 1)

    def label_paths(self) -> list[str]:
        """The label map of each line."""
        return self._labels

    def item(self, index: int, rng: np.random.Generator) -> Item:
        """Line ``index`` (from 0) as ``images`` float32 (3, rows, columns) and ``label`` uint8
        (1, rows, columns) of class indices, 255 where there is none.

        ``rng`` decides place and mirror. Raises InputError naming the line for a file that cannot be read, a
        class out of range, or a label map of another size than its image.
        """
        where = self.lines.where(index)
        image_path, label_path = self._images[index], self._labels[index]
        image = naming(where, read_image_rgb if self.rgb else read_image_bgr, image_path)
        label = naming(where, read_mask, label_path, self.num_classes)
        if label.shape != image.shape[:2]:
            raise InputError(
                f"{where}: {label_path} is {label.shape[0]}x{label.shape[1]}, "
                f"the {image.shape[0]}x{image.shape[1]} of {image_path} expected"
            )
        images = subtract_mean(image, self.mean)
        images, label = crop_alike(images, label, self.crop_size, VOID, mirror=self.mirror, rng=rng)
        return {"images": tensor(images), "label": tensor(label[None])}


def mirror_step(mirror: bool, rng: np.random.Generator) -> int:
    """The step between columns, -1 where an image is mirrored; with ``mirror`` a coin says so."""
    return -1 if mirror and rng.integers(2) else 1


def crop_place(
    size: Sequence[int], crop: Sequence[int], rng: np.random.Generator, training: bool
) -> tuple[slice, slice]:
    """Rows and columns of a crop: anywhere in training, else in the middle."""
    places = []
    for length, wanted in zip(size, crop, strict=True):
        first = int(rng.integers(length - wanted + 1)) if training else (length - wanted) // 2
        places.append(slice(first, first + wanted))
    return places[0], places[1]


def crop_alike(
    image: np.ndarray,
    label: np.ndarray,
    crop: Sequence[int],
    void: int,
    *,
    mirror: bool,
    rng: np.random.Generator,
    training: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """The same crop of an image (C, H, W) and of its label map (H, W), mirrored alike.

    Both are padded at the bottom and the right to the size of the crop, the image with 0, the label map with ``void``.
    """
    padding = [(0, max(0, wanted - size)) for wanted, size in zip(crop, label.shape, strict=True)]
    image, label = np.pad(image, [(0, 0), *padding]), np.pad(label, padding, constant_values=void)
    rows, columns = crop_place(label.shape, crop, rng, training)
    step = mirror_step(mirror, rng)
    return image[:, rows, columns][:, :, ::step], label[rows, columns][:, ::step]


def tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor of the array's values, which may lie in any order."""
    return torch.from_numpy(np.ascontiguousarray(array))


def stacked(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    """A batch of equal arrays, in memory of PyTorch's.

    NumPy's begins where it may, PyTorch's at a multiple of 64 bytes. MKL's matrix products differ in their last bits
    with that, so that a batch on NumPy's memory would train to other bits from process to process.
    """
    return torch.from_numpy(np.stack(arrays)).clone()


def located(root: PathLike, names: Iterable[str], list_path: str, lines: Iterable[int]) -> list[str]:
    """``root`` + name as text of each name, which is what Caffe does; a folder need not end in a slash.

    A name that is no file may lack its suffix: an image's is tried.
    Raises InputError naming list and line of the first that is no file. Folders are listed once: asked for one by one,
    80,000 files take seconds, and minutes on a network.
    """
    prefix = os.fspath(root)
    is_folder = os.path.isdir(prefix)
    listed: dict[str, frozenset[str]] = {}
    paths = []
    for name, line in zip(names, lines, strict=True):
        path = os.path.join(prefix, name.lstrip("/")) if is_folder else prefix + name
        folder, _, own = path.rpartition("/")
        if folder not in listed:
            listed[folder] = _files_in(folder)
        # the file system may take other spellings, too
        if own not in listed[folder] and not os.path.isfile(path):
            suffix = next((end for end in IMAGE_SUFFIXES if f"{own}{end}" in listed[folder]), None)
            if suffix is None:
                raise InputError(f"{list_path}:{line}: no such file: {path}")
            path += suffix
        paths.append(path)
    return paths


def _files_in(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except OSError:
        return frozenset()


def naming(where: str, function: Callable[..., T], *arguments: Any) -> T:
    """Call ``function``, putting ``where`` before the message of an InputError."""
    try:
        return function(*arguments)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
