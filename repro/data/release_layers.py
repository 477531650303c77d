"""The releases' Python data layers as entries of the registry: AnnotationLayer, AnnotationLayerCOCO, ImageSegDataLayer.

Sources: ``pylayers.py`` of SEC and DSRG, ``layer.py`` of DSRG's retraining. Their ``param_str`` has paths and sizes.
Of ours are ``num_classes`` where it is not the data set's, ``label_root`` and ``shuffle`` of ImageSegDataLayer,
``cues`` of AnnotationLayerCOCO (where its label maps lie), and ``truth_root``: masks that a log of the seeds' quality
is made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch

from repro.constants import MEAN_BGR
from repro.data.coco import COCO_CLASS_NAMES, AnnotationCOCO
from repro.data.cues import CellTruth, CueFile
from repro.data.data_layers import ListedImages
from repro.data.datasets import LabelMapDataset, mirror_step, naming, stacked
from repro.data.image_list import image_name, read_label_list
from repro.data.image_survey import survey_images
from repro.data.mask_set import check_masks
from repro.data.sampler import index_at, item_rng
from repro.data.voc import CLASS_NAMES
from repro.models.registry import Count, DataLayer, keyed, meta, register

SEC_CUES = "localization_cues/localization_cues.pickle"  # which SEC's AnnotationLayer opens


def grid_size(size: int) -> int:
    """Rows of the papers' score grid for so many of the image: halved three times, rounded up (321 -> 41)."""
    for _ in range(3):
        size = -(-(size - 1) // 2) + 1
    return size


_KINDS: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(("source", "root", "root_folder", "cues", "label_root", "truth_root"), (str, "text")),
    **dict.fromkeys(("batch_size", "num_classes"), (int, "a whole number")),
    **dict.fromkeys(("mean", "new_size", "crop_size"), ((tuple, list), "a tuple")),
    **dict.fromkeys(("mirror", "shuffle"), ((bool, int), "True or False")),
}
"""The kind of each setting, and how messages name it."""

_OF_ITEMS = ("batch_size", "mean", "mirror", "num_classes")


class _Settings(DataLayer):
    """A Python layer with some of the settings above."""

    known: ClassVar[tuple[str, ...]] = ()

    def setup(self) -> None:
        self.given = self.settings()
        for name, value in self.given.items():
            if name not in self.known:
                self._wrong(name, f"is not a setting of this layer; it has {', '.join(self.known)}")
            kind, words = _KINDS[name]
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
                self._wrong(name, f"{value!r}, expected {words}")
            if kind is int and self.given[name] < 1:
                self._wrong(name, f"{value}, expected 1 or more")
        self.mirror = bool(self.given.get("mirror", False))

    def _wrong(self, name: str, reason: str) -> NoReturn:
        self.fail("python_param.param_str", f"{name}: {reason}")

    def needed(self, name: str) -> Any:
        if name not in self.given:
            self._wrong(name, "missing")
        return self.given[name]

    def pair(self, name: str) -> tuple[int, int]:
        """Two whole numbers of 1 or more."""
        found = tuple(self.needed(name))
        if len(found) != 2 or any(type(size) is not int or size < 1 for size in found):
            self._wrong(name, f"{found}, expected (rows, columns)")
        return found[0], found[1]

    def mean(self) -> tuple[float, ...]:
        mean = tuple(self.given.get("mean", MEAN_BGR))
        if len(mean) != 3 or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in mean):
            self._wrong("mean", f"{mean}, expected three numbers")
        return mean


@register("pylayers.AnnotationLayer")
class AnnotationLayer(_Settings):
    """Labels (N, 1, 1, C) and cues (N, C, H, W) of the images that an ImageData layer gives, from a cue file.

    DSRG's has the images as a second bottom and a third top, each of which it mirrors with its cues on a coin, and
    marks background present. SEC's has neither, and one cue file.
    """

    counts: ClassVar[Count] = (1, 2)
    top_counts: ClassVar[Count] = (2, 3)
    known = ("cues", "mirror", "num_classes", "truth_root")
    keys: ClassVar[Mapping[str, str]] = keyed("cues", "mirror", "truth_root")

    def setup(self) -> None:
        super().setup()
        self.is_sec = len(self.bottoms) == 1
        if len(self.layer.top) != (2 if self.is_sec else 3):
            self.fail("top", f"{len(self.layer.top)} tops for {len(self.bottoms)} bottoms")
        maker = self.bottoms[0].maker
        if not isinstance(maker, ListedImages) or maker.layer.top[1:2] != [self.bottoms[0].name]:
            self.fail("bottom", f"{self.bottoms[0].name!r}: expected the second top of an ImageData layer")
        self.images: ListedImages = maker
        self.batch = maker.batch
        if self.mirror and self.is_sec:
            self._wrong("mirror", "SEC's layer, of one bottom, has no images to mirror")
        self.classes = self.given.get("num_classes", len(CLASS_NAMES))
        rows, columns = maker.image_size()
        self.grid = (grid_size(rows), grid_size(columns))

    @cached_property
    def cues(self) -> CueFile:
        return CueFile.open(self.given.get("cues", SEC_CUES) if self.is_sec else self.needed("cues"))

    @cached_property
    def truth(self) -> CellTruth | None:
        root = self.given.get("truth_root")
        return None if root is None else CellTruth(root, self.classes, self.grid)

    def infer(self, *bottoms: torch.Tensor) -> tuple[torch.Tensor, ...]:
        labels, cues = (self.batch, 1, 1, self.classes), (self.batch, self.classes, *self.grid)
        return (meta(labels), meta(cues), *(meta(images.shape) for images in bottoms[1:]))

    def make(self, *bottoms: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Mirrored as :class:`repro.data.datasets.CueDataset` does."""
        indices = [int(index) for index in bottoms[0].tolist()]
        labels = [self.cues.labels_blob(index, self.classes, not self.is_sec) for index in indices]
        cues = [self.cues.cues_blob(index, self.classes, *self.grid) for index in indices]
        seed, positions = self.stream_seed, self.positions()
        steps = [mirror_step(self.mirror, item_rng(seed, at)) for at in positions]
        if self.truth is not None:
            lines = [self.images.lines[self.images.index_at(at)] for at in positions]
            counts = [
                naming(f"{self.images.list_path}:{line.number}", self.truth.counts, image_name(line.path))
                for line in lines
            ]
            self.extras = {"truth": _flipped(counts, steps)}
        labels_blob = stacked(labels).float().reshape(len(labels), 1, 1, self.classes)
        images = [_flipped(blob.numpy(), steps) for blob in bottoms[1:]]
        return (labels_blob, _flipped(cues, steps).float(), *images)

    def check(self) -> None:
        self.cues.check_whole(*self.grid)
        for line in self.images.lines:
            where = f"{self.images.list_path}:{line.number}"
            naming(where, self.cues.check, int(line.rest), self.classes, *self.grid)
        if (root := self.given.get("truth_root")) is not None:
            names = (image_name(line.path) for line in self.images.lines)
            check_masks((Path(root) / f"{name}.png" for name in names), self.classes)

    def without_cues(self) -> str | None:
        """The first image of the list that has no cue cell."""
        lines = ((line, int(line.rest)) for line in self.images.lines)
        return next((f"image {i} ({line.path})" for line, i in lines if not self.cues.cues(i).size), None)


def _flipped(arrays: Iterable[np.ndarray], steps: list[int]) -> torch.Tensor:
    return stacked([array[:, :, ::step] for array, step in zip(arrays, steps, strict=True)])


class _Items(_Settings):
    """A layer whose items one of :mod:`repro.data.datasets`' data layers gives."""

    names: ClassVar[tuple[str, ...]] = ()  # of an item's entries, a top each
    shuffle = True

    def setup(self) -> None:
        super().setup()
        self.batch = self.needed("batch_size")
        self.mean()

    @cached_property
    def dataset(self) -> AnnotationCOCO | LabelMapDataset:
        raise NotImplementedError

    def make(self, *bottoms: torch.Tensor) -> tuple[torch.Tensor, ...]:
        items = []
        for at in self.positions():
            index = index_at(at, len(self.dataset), self.shuffle, self.stream_seed)
            items.append(self.dataset.item(index, item_rng(self.stream_seed, at)))
        if "truth" in items[0]:
            self.extras = {"truth": torch.stack([item["truth"] for item in items])}
        return tuple(torch.stack([item[name] for item in items]).float() for name in self.names)

    def check(self) -> None:
        survey_images(self.dataset.image_paths())


@register("pylayers.AnnotationLayerCOCO")
class AnnotationLayerCOCO(_Items):
    """Labels (N, 1, 1, C), cues and images of a list of images and cue PNGs; see :class:`AnnotationCOCO`."""

    top_counts: ClassVar[Count] = 3
    names = ("labels", "cues", "images")
    known = ("source", "root", "cues", "truth_root", *_OF_ITEMS, "new_size")
    keys: ClassVar[Mapping[str, str]] = keyed(
        *("cues", "batch_size", "mirror", "truth_root"), list="source", image_root="root"
    )

    def setup(self) -> None:
        super().setup()
        self.classes = self.given.get("num_classes", len(COCO_CLASS_NAMES))
        self.size = self.pair("new_size") if "new_size" in self.given else (321, 321)
        self.grid = (grid_size(self.size[0]), grid_size(self.size[1]))

    @cached_property
    def dataset(self) -> AnnotationCOCO:
        root = self.given.get("root", "")
        return AnnotationCOCO(
            root,
            self.given.get("cues", root),
            read_label_list(self.needed("source")),
            num_classes=self.classes,
            grid=self.grid,
            new_height=self.size[0],
            new_width=self.size[1],
            mirror=self.mirror,
            mean=self.mean(),
            truth_root=self.given.get("truth_root"),
        )

    def infer(self) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        n, classes = self.batch, self.classes
        return meta((n, 1, 1, classes)), meta((n, classes, *self.grid)), meta((n, 3, *self.size))

    def make(self, *bottoms: torch.Tensor) -> tuple[torch.Tensor, ...]:
        labels, cues, images = super().make()
        return labels[:, None, None], cues, images


@register("layer.ImageSegDataLayer")
class ImageSegDataLayer(_Items):
    """Crops of images and of their label maps, (N, 3, H, W) and (N, 1, H, W); see :class:`LabelMapDataset`.

    The release's reads its list in order.
    """

    top_counts: ClassVar[Count] = 2
    names = ("images", "label")
    known = ("source", "root_folder", "label_root", *_OF_ITEMS, "crop_size", "shuffle")
    keys: ClassVar[Mapping[str, str]] = keyed(
        *("label_root", "batch_size", "mirror", "shuffle"), list="source", image_root="root_folder"
    )

    def setup(self) -> None:
        super().setup()
        self.crop = self.pair("crop_size")
        self.classes = self.given.get("num_classes", len(CLASS_NAMES))
        self.shuffle = bool(self.given.get("shuffle", False))

    @cached_property
    def dataset(self) -> LabelMapDataset:
        root = self.given.get("root_folder", "")
        return LabelMapDataset(
            root,
            self.given.get("label_root", root),
            read_label_list(self.needed("source")),
            num_classes=self.classes,
            crop_size=self.crop,
            mirror=self.mirror,
            mean=self.mean(),
        )

    def infer(self) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return meta((self.batch, 3, *self.crop)), meta((self.batch, 1, *self.crop))

    def check(self) -> None:
        super().check()
        check_masks(self.dataset.label_paths(), self.classes, are_predicted=True)
