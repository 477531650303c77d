"""Caffe's data layers that read files, as entries of the registry: ImageData, DeepLab-v2's ImageSegData, HDF5Data.

Sources: ``image_data_layer.cpp``, ``image_seg_data_layer.cpp`` and ``data_transformer.cpp`` (DeepLab-v2),
``hdf5_data_layer.cpp``. Lists are read in order, or in a new random order each time round (``shuffle``); a batch
continues at the list's start where it ends. Order and draws are those of :mod:`repro.data.sampler`, not Caffe's.

Files are opened when a shape or a batch needs them: a net whose blobs are given runs without its data.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch

from repro.data.datasets import crop_alike, crop_place, located, mirror_step, naming, stacked
from repro.data.image_list import read_text
from repro.data.image_survey import survey_images
from repro.data.images import read_image_bgr, read_image_grey, subtract_mean
from repro.data.sampler import index_at, item_rng, order, order_rng
from repro.data.voc import read_mask
from repro.errors import InputError
from repro.layers.resize import resize_bilinear_u8
from repro.models.registry import Count, DataLayer, keyed, meta, register
from weights_conversion.caffe_pb2 import BlobProto, ImageDataParameter, TransformationParameter
from weights_conversion.files import check_plain
from weights_conversion.guard import read_hdf5


@dataclass(frozen=True)
class Line:
    """A line of a list: its number, the image's path, and what follows it."""

    number: int
    path: str
    rest: str


class Transform:
    """``transform_param``: crop, mean, scale and mirror of an image (rows, columns, channels), uint8."""

    def __init__(self, layer: DataLayer, param: TransformationParameter, channels: int) -> None:
        self.crop, self.mirror, self.scale = param.crop_size, param.mirror, np.float32(param.scale)
        if param.mean_file and param.mean_value:
            layer.fail("transform_param.mean_file", "and mean_value, expected one of them")
        if len(param.mean_value) not in (0, 1, channels):
            layer.fail(
                "transform_param.mean_value", f"{len(param.mean_value)} values for {channels} channels"
            )
        values = list(param.mean_value) or [0.0]
        self.mean = np.array(values * (channels if len(values) == 1 else 1), np.float32)
        if param.mean_file:
            self.mean = _mean_image(layer, param.mean_file, channels)

    def __call__(self, image: np.ndarray, training: bool, rng: np.random.Generator) -> np.ndarray:
        """The image as float32 (channels, rows, columns)."""
        rows = columns = slice(None)
        if self.crop:
            if min(image.shape[:2]) < self.crop:
                raise InputError(
                    f"an image of {image.shape[0]}x{image.shape[1]}, a crop of {self.crop} expected to fit"
                )
            rows, columns = crop_place(image.shape[:2], (self.crop, self.crop), rng, training)
        mean = self.mean
        if mean.ndim == 3:
            if mean.shape != image.shape:
                raise InputError(f"an image of the shape {image.shape}, a mean of {mean.shape}")
            mean = mean[rows, columns]
        values = (image[rows, columns].astype(np.float32) - mean) * self.scale
        return values[:, :: mirror_step(self.mirror, rng)].transpose(2, 0, 1)


def _mean_image(layer: DataLayer, path: str, channels: int) -> np.ndarray:
    """A mean image of Caffe's ``.binaryproto``, (rows, columns, channels)."""
    check_plain(path)
    try:
        with open(path, "rb") as file:
            blob = BlobProto.FromString(file.read())
    except Exception as error:
        layer.fail(
            "transform_param.mean_file", f"{path}: cannot be read as a BlobProto ({type(error).__name__})"
        )
    shape = list(blob.shape.dim) or [blob.num, blob.channels, blob.height, blob.width]
    values = np.array(blob.data or blob.double_data, np.float32)
    if len(shape) < 3 or shape[-3] != channels or values.size != np.prod(shape, dtype=np.int64):
        layer.fail("transform_param.mean_file", f"{path}: shape {shape}, {channels} channels expected")
    return values.reshape(shape[-3:]).transpose(1, 2, 0)


class _FromList(DataLayer):
    """A layer whose ``source`` is a list of files."""

    def setup(self) -> None:
        p = self.p
        if not p.source:
            self.fail("source", "missing")
        if p.batch_size < 1:
            self.fail("batch_size", f"{p.batch_size}, expected 1 or more")
        self.batch, self.list_path, self.shuffle = p.batch_size, p.source, p.shuffle


class ListedImages(_FromList):
    """What ImageData and ImageSegData share: the list, its order, reading and resizing."""

    field = "image_data_param"
    pairs: ClassVar[bool] = False
    remedy: ClassVar[str]  # for images of several sizes
    keys: ClassVar[Mapping[str, str]] = keyed(
        *("batch_size", "shuffle", "new_height", "new_width"), image_root="root_folder", list="source"
    )

    def setup(self) -> None:
        super().setup()
        p = self.p
        if bool(p.new_height) != bool(p.new_width):
            self.fail("new_height", "and new_width: expected both or none")
        self.refuse("scale", "mean_file", "crop_size", "mirror")  # transform_param has them since 2013
        self.size = p.new_height, p.new_width
        self.channels = 3 if p.is_color else 1
        self.transform = Transform(self, self.layer.transform_param, self.channels)
        self.root, self.skip = p.root_folder, p.rand_skip

    @cached_property
    def lines(self) -> list[Line]:
        """The list, every line of it as the layer wants it."""
        lines = []
        for number, content in enumerate(read_text(self.list_path, "an image path").split("\n"), start=1):
            text = content.strip()
            if not text:
                continue
            # ImageData's path ends at the last blank, and may hold others; ImageSegData's at the first
            path, _, rest = text.partition(" ") if self.pairs else text.rpartition(" ")
            lines.append(Line(number, path or rest, rest.strip() if path else ""))
            if problem := self.problem(lines[-1].rest):
                raise InputError(f"{self.list_path}:{number}: {lines[-1].rest[:40]!r}; expected {problem}")
        if not lines:
            raise InputError(f"{self.list_path}: empty, one image path per line expected")
        return lines

    def problem(self, rest: str) -> str:
        """What should stand behind the path, if ``rest`` is not it."""
        raise NotImplementedError

    @cached_property
    def paths(self) -> list[str]:
        """The images' paths; InputError names the list's line of one that is not there."""
        return self.located([line.path for line in self.lines])

    def located(self, names: Sequence[str]) -> list[str]:
        return located(self.root or ".", names, self.list_path, [line.number for line in self.lines])

    def index_at(self, position: int) -> int:
        """The list's line at a place of the stream."""
        count = len(self.lines)
        if self.skip:
            position += int(order_rng(self.stream_seed, 2**63).integers(min(self.skip, count)))
        return index_at(position, count, self.shuffle, self.stream_seed)

    def check(self) -> None:
        survey_images(self.paths)

    def read(self, path: str) -> np.ndarray:
        """An image as uint8 (rows, columns, channels), blue first, resized if the layer does."""
        image = read_image_bgr(path) if self.channels == 3 else read_image_grey(path)[:, :, None]
        return resize_bilinear_u8(image, *self.size) if self.size[0] else image

    def image_size(self) -> tuple[int, int]:
        """Rows and columns of the blob; the first image's where the layer sets none."""
        if self.transform.crop:
            return self.transform.crop, self.transform.crop
        if self.size[0]:
            return self.size
        high, wide = naming(f"{self.list_path}:{self.lines[0].number}", self.read, self.paths[0]).shape[:2]
        return high, wide

    def top_shapes(self) -> list[tuple[int, ...]]:
        """Of all tops that there may be."""
        raise NotImplementedError

    def item(self, index: int, rng: np.random.Generator) -> Sequence[np.ndarray]:
        """A line's part of each top."""
        raise NotImplementedError

    def infer(self) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return tuple(map(meta, self.top_shapes()[: len(self.layer.top)]))

    def make(self) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        items: list[Sequence[np.ndarray]] = []
        for position in self.positions():
            index = self.index_at(position)
            where = f"{self.list_path}:{self.lines[index].number}"
            items.append(naming(where, self.item, index, item_rng(self.stream_seed, position)))
            size, first = (item[0].shape[1:] for item in (items[-1], items[0]))
            if size != first:
                raise InputError(
                    f"{where}: an image of {size[0]}x{size[1]} in a batch of {first[0]}x{first[1]}; set {self.remedy}, "
                    "or batch_size: 1"
                )
        tops = tuple(stacked(arrays) for arrays in zip(*items, strict=True))
        return tops[: len(self.layer.top)]


@register("ImageData")
class ImageData(ListedImages):
    """Images of a list, and the number behind each: (N, C, H, W) and (N).

    Without ``new_height`` and ``crop_size`` images keep their size, which must then be equal within a batch.
    """

    top_counts: ClassVar[Count] = (1, 2)
    remedy = "new_height and new_width"

    def problem(self, rest: str) -> str:
        return "" if len(self.layer.top) == 1 or rest.lstrip("-").isdigit() else "a whole number as label"

    def top_shapes(self) -> list[tuple[int, ...]]:
        return [(self.batch, self.channels, *self.image_size()), (self.batch,)]

    def item(self, index: int, rng: np.random.Generator) -> Sequence[np.ndarray]:
        label = float(self.lines[index].rest) if len(self.layer.top) > 1 else 0.0
        image = self.transform(self.read(self.paths[index]), self.training, rng)
        return image, np.array(label, np.float32)


@register("ImageSegData")
class ImageSegData(ListedImages):
    """DeepLab-v2's images and label maps: (N, C, H, W), (N, 1, H, W), and as a third top rows and columns (N, 1, 1, 2).

    Both are padded at the bottom and the right to the crop, the image with its mean, the labels with ``ignore_label``,
    then cropped alike and mirrored alike. ``label_type`` IMAGE fills the map with the number in the list, NONE with
    ``ignore_label``. Labels are resized as images are, which blends classes.
    """

    pairs, remedy = True, "crop_size"
    top_counts: ClassVar[Count] = (2, 3)

    def setup(self) -> None:
        super().setup()
        if self.layer.transform_param.mean_file:
            self.fail("transform_param.mean_file", "not for ImageSegData")
        self.kind, self.ignored = self.p.label_type, self.p.ignore_label

    def problem(self, rest: str) -> str:
        if self.kind == ImageDataParameter.IMAGE:
            return "" if rest.isdigit() else "a class"
        return "" if rest or self.kind == ImageDataParameter.NONE else "a label map"

    @cached_property
    def labels(self) -> list[str]:
        """The label maps' paths."""
        return self.located([line.rest for line in self.lines])

    def top_shapes(self) -> list[tuple[int, ...]]:
        size = self.image_size()
        return [(self.batch, self.channels, *size), (self.batch, 1, *size), (self.batch, 1, 1, 2)]

    def item(self, index: int, rng: np.random.Generator) -> Sequence[np.ndarray]:
        image, crop, mirror = self.read(self.paths[index]), self.transform.crop, self.transform.mirror
        label = self._label(index, image.shape[:2])
        dims = np.array([[[min(size, crop or size) for size in label.shape]]], np.float32)
        values = subtract_mean(image, self.transform.mean) * self.transform.scale
        size = (crop, crop) if crop else label.shape
        values, label = crop_alike(
            values, label, size, self.ignored, mirror=mirror, rng=rng, training=self.training
        )
        return values, label[None].astype(np.float32), dims

    def _label(self, index: int, size: Sequence[int]) -> np.ndarray:
        if self.kind != ImageDataParameter.PIXEL:
            value = int(self.lines[index].rest) if self.kind == ImageDataParameter.IMAGE else self.ignored
            return np.full(size, value, np.int64)
        label = read_mask(self.labels[index], 256)
        if self.size[0]:
            label = resize_bilinear_u8(label, *self.size)
        if label.shape != tuple(size):
            raise InputError(
                f"{self.labels[index]} is {label.shape[0]}x{label.shape[1]}; expected {size[0]}x{size[1]}"
            )
        return label


@register("HDF5Data")
class HDF5Data(_FromList):
    """Rows of HDF5 datasets, one per top, by the top's name; ``source`` lists the files, read one after the other."""

    field = "hdf5_data_param"
    keys: ClassVar[Mapping[str, str]] = keyed("batch_size", "shuffle", list="source")

    def setup(self) -> None:
        super().setup()
        self._loaded: tuple[int, list[np.ndarray]] | None = None

    @cached_property
    def files(self) -> list[str]:
        """The files of the list."""
        files = [line.strip() for line in read_text(self.list_path, "a path").splitlines() if line.strip()]
        if not files:
            raise InputError(f"{self.list_path}: empty, one path of an HDF5 file per line expected")
        return files

    @cached_property
    def first(self) -> list[np.ndarray]:
        """The datasets of the first file, which give the shapes."""
        return self._load(self.files[0])

    def infer(self) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return tuple(meta((self.batch, *array.shape[1:])) for array in self.first)

    @cached_property
    def rows(self) -> list[int]:
        """How many rows each file has."""
        return [len(self._file(index)[0]) for index in range(len(self.files))]

    def make(self) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        rows = [self._row(position) for position in self.positions()]
        return tuple(stacked(values) for values in zip(*rows, strict=True))

    def _row(self, position: int) -> list[np.ndarray]:
        """Files in the order of the pass, each one's rows in an order of their own."""
        passes, place = divmod(position, sum(self.rows))
        for index in order(len(self.files), self.shuffle, self.stream_seed, passes).tolist():
            if place < self.rows[index]:
                break
            place -= self.rows[index]
        within = order(
            self.rows[index], self.shuffle, self.stream_seed, (passes + 1) * len(self.files) + index
        )
        return [array[within[place]] for array in self._file(index)]

    def _file(self, index: int) -> list[np.ndarray]:
        """The datasets of a file; the one read last is kept."""
        if index == 0 and len(self.files) == 1:
            return self.first
        if self._loaded is None or self._loaded[0] != index:
            arrays = self._load(self.files[index])
            for array, first in zip(arrays, self.first, strict=True):
                if array.shape[1:] != first.shape[1:]:
                    raise InputError(
                        f"{self.files[index]}: rows of {array.shape[1:]}, {first.shape[1:]} in {self.files[0]}"
                    )
            self._loaded = index, arrays
        return self._loaded[1]

    def check(self) -> None:
        len(self.rows)

    def _load(self, path: str) -> list[np.ndarray]:
        name, tops = os.fspath(path), list(self.layer.top)
        content = read_hdf5(name, wanted=tops, packed=True).arrays
        arrays = []
        for top in tops:
            found = content.get(f"/{top}")
            if found is None or found.values is None or found.values.ndim < 1 or not len(found.values):
                raise InputError(f"{name}: no dataset {top!r} of rows of numbers, which {self} reads")
            arrays.append(found.values.astype(np.float32))
        if len({len(array) for array in arrays}) > 1:
            raise InputError(
                f"{name}: datasets of {', '.join(str(len(a)) for a in arrays)} rows, the same number in each expected"
            )
        return arrays
