"""Where an experiment's images, lists, cues and masks are: a VOC tree, the embedded set (built on demand), COCO."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repro.config import Config, Stage0Config
from repro.constants import VOID
from repro.data import CueFile, VocLayout, find_images, read_id_list, read_mask
from repro.data.image_list import CueLine, LabelLine, Lines, read_cue_indices
from repro.data.images import IMAGE_SUFFIXES
from repro.data.labels import Labels, labels_of, read_labels
from repro.data.mask_set import check_masks
from repro.data.mini import build_mini
from repro.data.voc import CUE_NAMES, INPUT_LIST_NAMES, check_unpacked, data_folder, found_beside
from repro.errors import InputError
from weights_conversion.files import no_such

log = logging.getLogger(__name__)

MINI_ROOT = Path("data") / "mini"
_VOC_HINT = (
    "it is the folder VOCdevkit/VOC2012 of VOCtrainval_11-May-2012.tar; get it, the cues and the initial weights with: "
    "make data (repro data fetch); one of your own: VOC_ROOT=FOLDER (dataset.root=FOLDER)"
)
_CUES_HINT = (
    "it comes with the SEC release; get it with: make data VOC_ROOT={root} (repro data fetch), "
    "or pass one of your own, dataset.{key}=FILE"
)


_MASKS_HINT = "make the masks with: repro data coco-masks {annotations} {out}"


@dataclass(frozen=True)
class Experiment:
    """The resolved data set of an experiment. Images are ``<id>.jpg``, ground-truth masks ``<id>.png``.

    Attributes:
        train: id -> the index of its cues in their file (VOC) or their PNG (COCO); ``""`` where they are not made yet.
        val: ids. Both in list order.
        train_root, val_root: folders of the images.
        truth_root: folder of the validation masks.
        train_truth_root: of the training images' masks, where all of them have one: for logs, never to learn from.
        cues: the cue file (VOC) or the folder of the cue PNGs (COCO); none yet with ``dataset.make_cues``.
        name: how tables call the validation set.
        num_classes: of the masks and cues, background included.
    """

    train: Mapping[str, int | str]
    val: list[str]
    train_root: Path
    val_root: Path
    truth_root: Path
    train_truth_root: Path | None
    cues: Path
    name: str
    num_classes: int

    def image(self, name: str) -> Path:
        """The image of a training or validation id."""
        return (self.train_root if name in self.train else self.val_root) / f"{name}.jpg"

    def cue_lines(self, names: Iterable[str] = ()) -> Lines[Any]:
        """The list of stage 1, of all training images or some: of an image and the index or the PNG of its cues."""
        kind: Any = LabelLine if self.cues.is_dir() else CueLine
        given = enumerate(names or self.train, start=1)
        return Lines((kind(f"{name}.jpg", self.train[name], line) for line, name in given), self._source)

    def mask_lines(self) -> Lines[LabelLine]:
        """The list of stage 2: each training image and its pseudo label, ``<id>.png``."""
        given = enumerate(self.train, start=1)
        return Lines((LabelLine(f"{name}.jpg", f"{name}.png", line) for line, name in given), self._source)

    @property
    def _source(self) -> str:
        return f"the training images of {self.train_root}"

    def truth(self, name: str) -> Path:
        """The ground-truth mask of a validation id."""
        return self.truth_root / f"{name}.png"

    def labels(self) -> Callable[[str], list[int]]:
        """A function from a training id to its class ids, as its cues name them."""
        if self.cues.is_dir():
            return lambda name: [
                int(label)
                for label in np.unique(read_mask(self.cues / str(self.train[name]), self.num_classes))
                if label != VOID
            ]
        file = CueFile.open(self.cues)
        named = {} if file.names is None else file.images()
        return lambda name: [int(label) for label in file.labels(named.get(name, int(self.train[name])))]


def open_experiment(config: Config, *, build: bool = True) -> Experiment:
    """Find every file that the experiment needs, building the embedded set if it is that.

    Args:
        build: False for a configuration that was read from a run's folder, where nothing may be written.

    Raises:
        InputError: what is missing, and how to get it.
    """
    experiment = _open_coco(config) if config.dataset.kind == "coco" else _open_voc(config, build)
    for kind, files in (
        ("training image", map(experiment.image, experiment.train)),
        ("validation image", map(experiment.image, experiment.val)),
        ("validation mask", map(experiment.truth, experiment.val)),
    ):
        if absent := next((file for file in files if not file.is_file()), None):
            hint = ""
            if config.dataset.kind == "coco" and kind == "validation mask":
                annotations = f"{config.dataset.root}/annotations/instances_{config.dataset.val}.json"
                hint = "; " + _MASKS_HINT.format(annotations=annotations, out=experiment.truth_root)
            raise InputError(
                f"{absent}: no such {kind}, though the lists of {config.dataset.root} name it{hint}"
            )
    check_masks(map(experiment.truth, experiment.val), experiment.num_classes)
    return experiment


@dataclass(frozen=True)
class LabelledSet:
    """Training images by name, and the classes of each, without background; ``source`` is where those were read."""

    images: dict[str, Path]
    labels: Labels
    source: Path


def stage0_of(config: Config) -> Stage0Config:
    """The section stage0. Raises InputError for a profile that has none."""
    if config.stage0 is None:
        raise InputError(f"the profile {config.name} has no section stage0, which makes cues")
    return config.stage0


def open_labelled(config: Config) -> LabelledSet:
    """The images and image-level labels that stage 0 learns from.

    Raises:
        InputError: a profile without stage 0, images or labels that are missing, an image that has no label.
    """
    data, dataset = stage0_of(config).data, config.dataset
    listed = Path(data.list) if data.list else None
    input_list = None
    if data.image_root is not None:
        if data.labels is None:
            raise InputError(
                "stage0.data.labels: not given; add data.labels=FILE, such as a CSV of image and class names"
            )
        found = find_images(data.image_root)
        source = Path(data.labels)
    elif dataset.kind == "coco":
        root = _coco_root(config)
        source = Path(data.labels or root / "annotations" / f"instances_{dataset.train}.json")
        found = find_images(root / dataset.train)
    else:
        layout = _voc_layout(config)
        if listed is None and layout.image_set(dataset.train).is_file():
            listed = layout.image_set(dataset.train)
        source = Path(data.labels or layout.root / "Annotations")
        # the labels of a cue file first: they are those that the papers' nets were trained on
        has_cues = dataset.cues or found_beside(layout.root, CUE_NAMES)
        if data.labels is None and (has_cues or not source.is_dir()):
            source = _found(dataset.cues, "cues", CUE_NAMES, layout.root)
            input_list = _found(dataset.input_list, "input_list", INPUT_LIST_NAMES, layout.root)
        found = find_images(layout.images)

    labels = read_labels(source, dataset.classes, input_list=input_list or dataset.input_list)
    if listed is not None:
        names = read_id_list(listed)
        if absent := [name for name in names if name not in found]:
            raise InputError(f"{listed}: {absent[0]} has no image in {data.image_root or dataset.root}")
    elif data.image_root is not None:
        names = list(found)
        if absent := [name for name in labels if name not in found]:
            what = "%s: %d of %d labelled images are not in %s; the first: %s"
            log.warning(what, source, len(absent), len(labels), data.image_root, absent[0])
    else:  # a tree that holds other images, too, or images that show none of the classes
        names = [name for name in found if labels.get(name)]
        log.info("%d of %d images have labels in %s", len(names), len(found), source)
    names = names[: dataset.train_limit]
    return LabelledSet({name: found[name] for name in names}, labels_of(names, labels, source), source)


def _voc_layout(config: Config, build: bool = True) -> VocLayout:
    dataset = config.dataset
    if dataset.kind == "mini":
        root = Path(dataset.root) if dataset.root else MINI_ROOT
        if build:
            build_mini(root)  # each rank: it copes with others that do the same
    elif dataset.root is None:
        raise InputError(f"dataset.root: no VOC 2012 given; {_VOC_HINT}")
    else:
        root = Path(dataset.root)
        if not root.exists():
            raise InputError(f"dataset.root: no such folder: {root}; {_VOC_HINT}")
    return VocLayout.open(root)


def _open_voc(config: Config, build: bool) -> Experiment:
    dataset, layout = config.dataset, _voc_layout(config, build)
    if dataset.make_cues:
        return _voc_experiment(config, layout, dict.fromkeys(open_labelled(config).images, ""), Path())
    cues = _found(dataset.cues, "cues", CUE_NAMES, layout.root)
    input_list = (
        Path(dataset.input_list) if dataset.input_list else found_beside(layout.root, INPUT_LIST_NAMES)
    )
    named = CueFile.open(cues) if input_list is None else None
    if named is None or named.names is None:
        input_list = _found(dataset.input_list, "input_list", INPUT_LIST_NAMES, layout.root)
        found = read_cue_indices(input_list)
    else:
        input_list, found = cues, named.images()
    train_list = layout.image_set(dataset.train)
    if train_list.is_file():
        names = read_id_list(train_list)
        if unknown := [name for name in names if name not in found]:
            raise InputError(f"{train_list}: {unknown[0]} is not in {input_list}, so it has no cues")
    elif dataset.train != "train_aug":  # which VOC's own archive has not: its images are those with cues
        raise InputError(f"dataset.train {dataset.train!r}: no such list: {train_list}")
    else:
        log.info("%s is not there: training on all %d images of %s", train_list, len(found), input_list)
        names = list(found)
    return _voc_experiment(config, layout, {name: found[name] for name in names[: dataset.train_limit]}, cues)


def _voc_experiment(
    config: Config, layout: VocLayout, train: Mapping[str, int | str], cues: Path
) -> Experiment:
    dataset = config.dataset
    return Experiment(
        train=train,
        val=read_id_list(layout.image_set(dataset.val))[: dataset.val_limit],
        train_root=layout.images,
        val_root=layout.images,
        truth_root=layout.root / dataset.masks,
        train_truth_root=_masks_of(train, layout.root, dataset.train_masks),
        cues=cues,
        name="mini" if dataset.kind == "mini" else f"voc2012-{dataset.val}",
        num_classes=config.model.num_classes,
    )


def _open_coco(config: Config) -> Experiment:
    """COCO's own folders: images in ``<root>/<split>``; beside them cue PNGs and masks, which COCO does not have."""
    dataset, root = config.dataset, _coco_root(config)
    if dataset.input_list is not None:
        raise InputError(
            "dataset.input_list: COCO's training images are those with a PNG in dataset.cues; leave it out"
        )
    cues = Path(dataset.cues) if dataset.cues else root / "cues" / dataset.train
    if dataset.make_cues:
        train, cues = list(open_labelled(config).images), Path()
    else:
        train = _named(cues, ".png", "dataset.train: no cues (*.png; repro seeds make makes them) in")
    val = _named(root / dataset.val, ".jpg", "dataset.val: no images (*.jpg) in")
    return Experiment(
        train={name: f"{name}.png" for name in train[: dataset.train_limit]},
        val=val[: dataset.val_limit],
        train_root=root / dataset.train,
        val_root=root / dataset.val,
        truth_root=root / dataset.masks / dataset.val,
        train_truth_root=_masks_of(train[: dataset.train_limit], root / dataset.masks, dataset.train),
        cues=cues,
        name=f"coco-{dataset.val}",
        num_classes=config.model.num_classes,
    )


def _masks_of(names: Iterable[str], root: Path, folder: str | None) -> Path | None:
    """``root/folder`` if it has a mask for each name."""
    if folder is None or not (root / folder).is_dir():
        return None
    return root / folder if all((root / folder / f"{name}.png").is_file() for name in names) else None


def _named(folder: Path, suffix: str, none: str) -> list[str]:
    """The names of a folder's files of one kind, sorted. InputError (``none``, the folder) for none."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [path.stem for path in files if path.suffix == suffix and not path.name.startswith(".")]
    if not found:
        raise InputError(f"{none} {folder}")
    others = [path for path in files if path.suffix != suffix and path.suffix.lower() in IMAGE_SUFFIXES]
    if others:
        left_out = "%s: %d images that are no *%s are left out; the first: %s"
        log.warning(left_out, folder, len(others), suffix, others[0])
    return found


def _coco_root(config: Config) -> Path:
    root = config.dataset.root
    if root is not None:
        check_unpacked(Path(root))
    if root is None or not Path(root).is_dir():
        raise InputError(
            f"dataset.root: no such folder: {root}; the folder of COCO's train2014, val2014 and annotations "
            "(cocodataset.org) expected"
        )
    return Path(root)


def _found(given: str | None, key: str, names: tuple[str, ...], root: Path) -> Path:
    """The file given, or the first of ``names`` in ``root`` or beside ``VOCdevkit``."""
    if given is not None:
        if not Path(given).is_file():
            raise InputError(f"dataset.{key}: {no_such('file', given)}")
        return Path(given)
    if found := found_beside(root, names):
        return found
    hint = _CUES_HINT.format(key=key, root=root)
    raise InputError(f"dataset.{key}: no {' or '.join(names)} in {root} or {data_folder(root)}; {hint}")
