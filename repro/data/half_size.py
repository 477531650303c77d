"""A VOC tree at half its size, on which a net of full width trains on a CPU: a quarter of the multiplications.

An image is scaled to half its width and height (rounded up), a mask keeps every second pixel, and cues every second
cell: a 41x41 grid over 321x321 pixels becomes 21x21 over 161x161, which the nets have there.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from repro.data.cues import CueFile, write_cues
from repro.data.image_list import read_id_list
from repro.data.images import read_image_rgb
from repro.data.voc import CUE_NAMES, INPUT_LIST_NAMES, VocLayout, found_beside, read_mask, write_mask
from repro.errors import InputError
from repro.files import temporary_folder
from weights_conversion.files import make_folder

_QUALITY = 95  # of the JPEGs


def halve_voc(
    root: Path,
    target: Path,
    *,
    image_sets: Sequence[str] = ("train_aug", "val"),
    cues: Path | None = None,
    input_list: Path | None = None,
) -> Path:
    """Write a VOC tree at half its size, the cues and their list in it, all or nothing.

    Args:
        root: the tree, with the lists of ``image_sets``.
        target: a new folder.
        cues: their file; ``localization_cues`` beside VOCdevkit by default, and none where none is.
        input_list: the list of the cues' indices; the one beside VOCdevkit by default.

    Returns:
        ``target``.

    Raises:
        InputError: a target that is there, a list, image or cue file that cannot be read.
    """
    source = VocLayout.open(root)
    if target.exists():
        raise InputError(f"{target}: exists already, a new folder expected")
    names = list(dict.fromkeys(name for each in image_sets for name in read_id_list(source.image_set(each))))
    make_folder(target.parent)
    with temporary_folder(target.parent) as folder:
        half = VocLayout(folder / target.name)
        half.root.mkdir()
        if cues := cues or found_beside(root, CUE_NAMES):
            _halve_cues(cues, half.root / "localization_cues.h5")
        for each in image_sets:
            half.image_set(each).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.image_set(each), half.image_set(each))
        for name in tqdm(names, desc=f"{root}", unit="image", disable=None, leave=False):
            _halve_image(source.image(name), half.image(name))
            for whole, smaller in (
                (source.mask(name), half.mask(name)),
                (source.mask_aug(name), half.mask_aug(name)),
            ):
                if whole.is_file():
                    write_mask(smaller, read_mask(whole)[::2, ::2])
        if input_list := input_list or found_beside(root, INPUT_LIST_NAMES):
            shutil.copyfile(input_list, half.root / "input_list.txt")
        half.root.rename(target)
    return target


def _halve_image(source: Path, target: Path) -> None:
    image = Image.fromarray(read_image_rgb(source))
    size = ((image.width + 1) // 2, (image.height + 1) // 2)
    target.parent.mkdir(exist_ok=True)
    image.resize(size, Image.Resampling.LANCZOS).save(target, quality=_QUALITY)


def _halve_cues(source: Path, target: Path) -> None:
    file = CueFile.open(source)
    entries = {}
    for index in file.indices.tolist():
        cues = file.cues(index)
        kept = cues[:, (cues[1:] % 2 == 0).all(axis=0)]
        entries[index] = (file.labels(index), kept // np.array([[1], [2], [2]], kept.dtype))
    grid = None if file.grid is None else ((file.grid[0] + 1) // 2, (file.grid[1] + 1) // 2)
    write_cues(target, entries, grid, file.names)
