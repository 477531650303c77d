"""MS COCO: its 81 classes, its stage-1 data layer, and its annotation file read as a stream.

COCO numbers its 80 classes 1 to 90 with gaps; here, as in the release, they are 1 to 80 in the order of those
numbers, and 0 is background. The annotation file of the training images is half a gigabyte of JSON: it is read
piece by piece, and what is kept of it is a set of classes per image, or a compressed outline per object.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ijson
import numpy as np
from pycocotools import mask as coco_mask

from repro.constants import VOID
from repro.data.cues import planes_of_cells
from repro.data.datasets import Cued, Item, naming
from repro.data.image_list import LabelLine, Lines
from repro.data.images import MAX_PIXELS, read_image_bgr, subtract_mean
from repro.data.voc import read_mask, write_mask
from repro.errors import InputError, damaged, hint
from repro.layers.resize import zoom_to
from weights_conversion.files import check_plain, path_inside

PathLike = str | os.PathLike[str]

COCO_CLASS_NAMES = (
    "background", "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep",
    "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""The 81 classes in the order of their contiguous indices."""


@dataclass(eq=False)
class AnnotationCOCO(Cued):
    """Stage 1 on COCO: the release's layer ``AnnotationLayerCOCO``.

    The image is read as BGR, zoomed to the input size (SciPy's order 1, not OpenCV's resize), its channels are
    swapped and the mean is subtracted in the order given: the net sees **RGB** with blue's mean under red. The cues
    are a PNG of classes on the score grid, 255 where there is none, and the image's labels are the classes among them.

    Args:
        image_root, cue_root: what the two paths of a line are appended to.
        lines: image and PNG of its cues (`read_label_list`).

    Others as for `repro.data.datasets.Cued`. Raises InputError naming the list's line when a file is missing.
    """

    image_root: PathLike
    cue_root: PathLike
    lines: Lines[LabelLine]
    _: KW_ONLY
    num_classes: int = len(COCO_CLASS_NAMES)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._images, self._cues = self._located(self.image_root, 0), self._located(self.cue_root, 1)

    def item(self, index: int, rng: np.random.Generator) -> Item:
        """Line ``index`` (from 0) as ``images`` float32 (3, new_height, new_width), ``labels`` uint8 (C,),
        ``cues`` uint8 (C, rows, columns) and ``index``, the line's number from 0.

        ``rng`` decides the mirror. Raises InputError naming the line for a file that cannot be read, cues of another
        size than the grid or with a class out of range, and an image without any cue, which has no label then.
        """
        where = self.lines.where(index)
        image_path, cue_path = self._images[index], self._cues[index]
        image = naming(where, read_image_bgr, image_path).astype(np.float32)
        label = naming(where, read_mask, cue_path, self.num_classes)
        if label.shape != self.grid:
            raise InputError(
                f"{where}: {cue_path} is {label.shape[0]}x{label.shape[1]}, "
                f"cues on the net's {self.grid[0]}x{self.grid[1]} grid expected"
            )
        present = np.setdiff1d(label, [VOID])
        if not present.size:
            raise InputError(f"{where}: {cue_path} has no cue, one class or more expected")
        zoomed = zoom_to(image, self.new_height, self.new_width, axes=(0, 1))
        images = subtract_mean(zoomed[:, :, ::-1], self.mean)
        cues = planes_of_cells(label, self.num_classes)
        labels = np.zeros(self.num_classes, np.uint8)
        labels[present] = 1
        return self._item(index, rng, index, labels, images=images, cues=cues)


class CocoInstances:
    """An annotation file ``instances_*.json``, read as a stream.

    Attributes:
        images: image id -> (file name, height, width), in the file's order.
        class_of: category id -> class index, of the categories that are among the classes.

    Raises InputError for a file that is no such JSON, and where no category is among ``classes``; an object of
    another category is an error when it is read.
    """

    def __init__(self, path: PathLike, classes: Sequence[str] = COCO_CLASS_NAMES) -> None:
        self.path = Path(path)
        check_plain(path)
        categories: dict[int, str] = {}
        for entry in self._stream("categories.item"):
            number, name = self._field(entry, "id", int), self._field(entry, "name", str)
            if categories.setdefault(number, name) != name:
                raise InputError(
                    f"{self.path}: category {_shown(number)} is {categories[number]!r} and {name!r}; "
                    "expected each id once"
                )
        if not categories:
            raise InputError(f"{self.path}: no categories, the instances of COCO as JSON expected")
        indices = {name: index for index, name in enumerate(classes)}
        self.class_of = {number: indices[name] for number, name in categories.items() if indices.get(name)}
        # of the others an object would be missing; a category that groups classes, as Roboflow writes one, has none
        self._others = {number: name for number, name in categories.items() if number not in self.class_of}
        self._classes = classes
        if not self.class_of:
            raise InputError(
                f"{self.path}: none of the categories {', '.join(categories.values())} is one of the classes "
                f"{', '.join(classes[1:])}"
            )
        self.images: dict[int, tuple[str, int, int]] = {}
        for entry in self._stream("images.item"):
            number = self._field(entry, "id", int)
            if number in self.images:
                raise InputError(f"{self.path}: image {_shown(number)} comes again; expected each id once")
            fields = {"file_name": str, "height": int, "width": int}
            name, height, width = (self._field(entry, key, kind) for key, kind in fields.items())
            self.images[number] = name.replace("\\", "/"), height, width  # as Windows writes paths
        named: dict[str, str] = {}  # by the name that mask and labels have: the file
        for name, height, width in self.images.values():
            if path_inside(Path(), Path(name).stem) is None:  # its mask is written under it
                raise InputError(f"{self.path}: image {name!r}: a file's name expected")
            if other := named.get(Path(name).stem):
                raise InputError(f"{self.path}: {other} and {name} would share their labels and mask")
            named[Path(name).stem] = name
            if height < 1 or width < 1 or height * width > MAX_PIXELS:
                raise InputError(
                    f"{self.path}: image {name!r} has {width}x{height} pixels, 1 to {MAX_PIXELS} expected"
                )

    def labels(self) -> dict[str, list[int]]:
        """Image name without suffix -> its classes, rising; an image without objects has none."""
        found: dict[int, set[int]] = {number: set() for number in self.images}
        for image, class_index, _ in self._objects():
            found[image].add(class_index)
        return {
            Path(file_name).stem: sorted(found[number]) for number, (file_name, *_) in self.images.items()
        }

    def write_masks(self, out_dir: Path) -> Iterator[Path]:
        """Draw every image's class mask, ``<out_dir>/<image name>.png``; gives each path when it is there.

        An object covers those of larger area, whatever their order in the file; crowds are objects of their class.
        Masks that are there are kept. What is held meanwhile is COCO's compressed outline of each object.
        """
        drawn: dict[int, list[tuple[int, int, bytes]]] = {number: [] for number in self.images}
        found = False
        for image, class_index, entry in self._objects():
            _, height, width = self.images[image]
            outline = self._outline(entry, height, width)
            found = True
            drawn[image].append((int(coco_mask.area(outline)), class_index, outline["counts"]))
        if not found:
            raise InputError(f"{self.path}: no annotations: every mask would be background, objects expected")
        for number, (file_name, height, width) in self.images.items():
            path = out_dir / f"{Path(file_name).stem}.png"
            if not path.exists():
                mask = np.zeros((height, width), np.uint8)
                for _, class_index, counts in sorted(drawn[number], key=lambda one: -one[0]):
                    mask[coco_mask.decode({"size": [height, width], "counts": counts}) > 0] = class_index
                write_mask(path, mask)
            yield path

    def _objects(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Image id, class and entry of each object."""
        for entry in self._stream("annotations.item"):
            image, category = self._field(entry, "image_id", int), self._field(entry, "category_id", int)
            if category in self._others:
                raise InputError(
                    f"{self.path}: annotation {_shown(entry.get('id'))} has category {self._others[category]!r}, "
                    f"which is not one of the classes {', '.join(self._classes[1:])}"
                    f"{hint(self._others[category], self._classes[1:])}"
                )
            if image not in self.images or category not in self.class_of:
                raise InputError(
                    f"{self.path}: annotation {entry.get('id')} has image {image} and category {category}, "
                    "both of this file expected"
                )
            yield image, self.class_of[category], entry

    def _outline(self, entry: dict[str, Any], height: int, width: int) -> dict[str, Any]:
        """COCO's compressed outline. Its C code trusts what it is given: everything is looked at before."""
        shape = entry.get("segmentation")
        where = f"{self.path}: annotation {_shown(entry.get('id'))}"
        reason = _wrong_outline(shape, height, width)
        if reason:
            raise InputError(f"{where}: {reason}, an outline of a {height}x{width} image expected")
        with damaged(where, f"an outline of a {height}x{width} image"):
            if isinstance(shape, list):
                return dict(coco_mask.merge(coco_mask.frPyObjects(shape, height, width)))
            assert isinstance(shape, dict)
            if isinstance(shape["counts"], list):
                return dict(coco_mask.frPyObjects(shape, height, width))
            return dict(shape)

    def _stream(self, prefix: str) -> Iterator[dict[str, Any]]:
        expected = "COCO's instances as JSON"
        with damaged(self.path, expected):
            file = self.path.open("rb")
        with file:
            entries = ijson.items(ShallowJson(file), prefix, use_float=True)
            while True:
                with damaged(self.path, expected):
                    entry = next(entries, StopIteration)
                if entry is StopIteration:
                    return
                if not isinstance(entry, dict):
                    raise InputError(f"{self.path}: {prefix} {_shown(entry)}, an object expected")
                yield entry

    def _field(self, entry: dict[str, Any], key: str, kind: type) -> Any:
        value = entry.get(key)
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, kind) or (kind is str and "\0" in str(value)):
            raise InputError(f"{self.path}: {key} {_shown(value)}; expected {kind.__name__}")
        return value


def _shown(value: object) -> str:
    """A value in a message, whatever its size."""
    if isinstance(value, int | float | str | None):
        return repr(value)[:80] if not isinstance(value, int) or abs(value) < 10**18 else "a huge number"
    return f"a {type(value).__name__}"


_MOST_DEPTH = 50  # of lists and objects in each other; COCO's have 5
_OPENING, _CLOSING = np.array([91, 123], np.uint8), np.array([93, 125], np.uint8)  # [ { and ] }


class ShallowJson:
    """A JSON file for ijson, which takes memory with the square of the depth: deeper ones end in an error. A mark of
    UTF-8 at its beginning, which ijson refuses, is left out."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._depth = 0
        self._in_text = self._escaped = False
        self._begins = True

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        if self._begins and block:
            block, self._begins = block.removeprefix(codecs.BOM_UTF8), False
        self._follow(block)
        return block

    def _follow(self, block: bytes) -> None:
        if self._escaped:  # by the last byte of the block before
            block = b"." + block[1:]
        self._escaped = False
        if b"\\" in block:
            block = re.sub(rb"\\.", b"..", block, flags=re.DOTALL)
            self._escaped = block.endswith(b"\\")
        letters = np.frombuffer(block, np.uint8)
        in_text = (np.cumsum(letters == 34) + self._in_text) % 2 == 1
        steps = np.isin(letters, _OPENING).astype(np.int64) - np.isin(letters, _CLOSING)
        depths = self._depth + np.cumsum(np.where(in_text, 0, steps))
        if len(depths):
            self._depth, self._in_text = int(depths[-1]), bool(in_text[-1])
            if depths.max() > _MOST_DEPTH:
                raise ValueError(f"lists and objects nest deeper than {_MOST_DEPTH}")


def _wrong_outline(shape: object, height: int, width: int) -> str:
    """Why a segmentation is no outline of an image of this size; empty where it is one.

    Points may lie as far outside of the image as it is large, and a polygon be 64 times as long as the image's edge.
    """
    if isinstance(shape, list):
        if not shape:
            return "no polygon"
        for polygon in shape:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                return "a polygon that is no list of three points or more"
            if not all(isinstance(value, int | float) and abs(value) < 1e6 for value in polygon):
                return "a point that is no pair of numbers, or far outside"
            points = np.array(polygon, np.float64).reshape(-1, 2)
            size = np.array([width, height])
            if (points < -size).any() or (points > 2 * size).any():
                return "a point that lies farther outside than the image is large"
            if np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum() > 64 * size.sum():
                return "a polygon longer than 64 times the image's edge"
        return ""
    if shape is None:
        return "no segmentation"
    if not isinstance(shape, dict) or shape.get("size") != [height, width]:
        return "neither polygons nor runs of the image's size"
    counts = shape.get("counts")
    runs = counts if isinstance(counts, list) else runs_of(counts) if isinstance(counts, str) else []
    if not runs or not all(type(run) is int and 0 <= run <= height * width for run in runs):
        return "runs that are no whole numbers"
    return "" if sum(runs) == height * width else f"runs of {sum(runs)} pixels together"


def runs_of(text: str) -> list[int]:
    """The runs of COCO's compressed text (maskApi.c, rleFrString): five bits per letter, the lowest first; the sixth
    says that more follow. From the fourth run on it is the difference to the run before the last. Empty where it is
    none."""
    runs: list[int] = []
    value = shift = 0
    for letter in text.encode("latin1", "replace"):
        bits = letter - 48
        if not 0 <= bits < 64 or shift > 25:
            return []
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return [] if shift else runs
