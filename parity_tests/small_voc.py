"""A VOC tree, SBD and cues of a dozen small images, laid out as the real ones are."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from repro.data import VocLayout, write_cues, write_mask

TRAIN = ["2007_000001", "2007_000002", "2007_000003"]
VAL = ["2008_000001", "2008_000002"]
SBD_ONLY = ["2009_000001", "2009_000002", "2009_000003", "2009_000004"]
TRAIN_AUG = sorted([*TRAIN, *SBD_ONLY])
CLASS = {name: 1 + number for number, name in enumerate((*TRAIN, *VAL, *SBD_ONLY))}
SHAPE = (30, 40)


def mask_of(name: str, *, void: bool) -> np.ndarray:
    """A square of the image's class; VOC marks its border as void, SBD does not."""
    mask = np.zeros(SHAPE, np.uint8)
    if void:
        mask[8:22, 8:22] = 255
    mask[10:20, 10:20] = CLASS[name]
    return mask


def write_voc(root: Path) -> VocLayout:
    """VOC 2012 as its archive has it: no train_aug, no SegmentationClassAug."""
    layout = VocLayout(root)
    layout.images.mkdir(parents=True)
    layout.image_set("train").parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in CLASS:
        Image.fromarray(rng.integers(0, 256, (*SHAPE, 3), np.uint8)).save(layout.image(name))
    for list_name, names in {"train": TRAIN, "val": VAL, "trainval": TRAIN + VAL}.items():
        layout.image_set(list_name).write_text("".join(f"{name}\n" for name in names))
    for name in TRAIN + VAL:
        write_mask(layout.mask(name), mask_of(name, void=True))
    return layout


def write_sbd(folder: Path) -> Path:
    """``benchmark_RELEASE/dataset``: one image of VOC's train and one of its val are in SBD as well."""
    (folder / "cls").mkdir(parents=True)
    train, val = [*SBD_ONLY[:2], VAL[0]], [*SBD_ONLY[2:], TRAIN[0]]
    for name in train + val:
        write_mat(folder / "cls" / f"{name}.mat", mask_of(name, void=False))
    (folder / "train.txt").write_text("\n".join(train))
    (folder / "val.txt").write_text("\n".join(val))
    return folder


def write_mat(path: Path, mask: np.ndarray, field: str = "Segmentation") -> None:
    boundaries = np.empty((20, 1), object)
    boundaries[:, 0] = [np.zeros((2, 2), np.uint8) for _ in range(20)]
    scipy.io.savemat(
        path, {"GTcls": {"Boundaries": boundaries, field: mask, "CategoriesPresent": 1}}, do_compression=True
    )


def write_cue_files(folder: Path, cues: str = "localization_cues.pickle") -> None:
    """The cue file and ``input_list.txt``."""
    entries = {
        index: (np.array([CLASS[name]]), np.array([[0, CLASS[name]], [1, 20], [1, 20]]))
        for index, name in enumerate(TRAIN_AUG)
    }
    write_cues(folder / cues, entries)
    lines = (f"{name}.jpg {index}\n" for index, name in enumerate(TRAIN_AUG))
    (folder / "input_list.txt").write_text("".join(lines))


def packed(path: Path, folder: Path, name: str, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        archive.add(folder, name)
    return path
