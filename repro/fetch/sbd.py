"""The Semantic Boundaries Dataset (Hariharan et al., ICCV 2011): more masks for VOC's images.

It has a ``cls/<id>.mat`` for 11,355 images, whose struct ``GTcls`` holds the mask as ``Segmentation``. All papers in
this field train on ``train_aug``, the 10,582 images of VOC's train, SBD's train and SBD's val without VOC's val.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from repro.constants import CLASS_NAMES, VOID
from repro.data.image_list import list_line, read_id_list
from repro.data.voc import VocLayout, check_unpacked, read_mask, write_mask
from repro.errors import InputError, line_of
from repro.fetch.parallel import mapped
from weights_conversion import guard
from weights_conversion.files import make_folder, write_text

TRAIN_AUG = 10582
"""Images of the list ``train_aug`` of the full sets."""

_NO_MASK = "{}: no SBD mask ({}), a struct GTcls with Segmentation expected"
_MOST_FILE = 16 << 20  # bytes; SBD's files have some 10,000
_MOST_UNPACKED = 64 << 20  # the largest mask, 500×500 doubles, has 2 MB


class SbdResult(NamedTuple):
    """Masks written, masks that were there, and the list."""

    written: int
    kept: int
    list_path: Path


def find_sbd(folder: Path) -> Path:
    """The folder with ``cls`` and the lists: ``folder``, or ``benchmark_RELEASE/dataset`` or ``dataset`` in it.

    Raises InputError when none of them is.
    """
    check_unpacked(folder)
    for candidate in (folder, folder / "dataset", folder / "benchmark_RELEASE" / "dataset"):
        if (candidate / "cls").is_dir():
            return candidate
    raise InputError(
        f"{folder}: no SBD, a folder with cls, train.txt and val.txt expected (benchmark_RELEASE/dataset)"
    )


def build_train_aug(sbd: Path, layout: VocLayout, *, expected: int = TRAIN_AUG) -> SbdResult:
    """Write ``SegmentationClassAug/<id>.png`` for train_aug and val, then ``ImageSets/Segmentation/train_aug.txt``.

    VOC's own mask is taken where it has one (it marks the objects' borders as void), SBD's elsewhere. Masks that
    are there stay, so that a call resumes where another was ended. The list comes last; one of the same images stays.

    Args:
        sbd: from `find_sbd`.
        layout: VOC 2012 with its masks and lists.
        expected: how many images the list must have.

    Raises InputError for a list that is missing, a count that differs, a mask that is missing or damaged, or one
    whose size differs from its image's.
    """
    train = read_id_list(layout.image_set("train"))
    val = read_id_list(layout.image_set("val"))
    extra = {*read_id_list(sbd / "train.txt"), *read_id_list(sbd / "val.txt")}
    train_aug = sorted({*train, *extra} - set(val))
    if len(train_aug) != expected:
        raise InputError(
            f"{sbd} and {layout.root}: VOC's train ({len(train)}), SBD's train and val ({len(extra)}) without VOC's "
            f"val ({len(val)}) are {len(train_aug)} images; expected {expected}"
        )
    training_list = layout.image_set("train_aug")
    if training_list.exists() and (other := {*read_id_list(training_list)} ^ {*train_aug}):
        raise InputError(
            f"{training_list}: exists with other images than these {expected}, such as {min(other)}; move it away"
        )
    try:
        make_folder(layout.masks_aug)
    except OSError as error:
        raise InputError(f"{layout.masks_aug}: cannot be made ({error.strerror})") from None
    missing = [name for name in (*train_aug, *val) if not layout.mask_aug(name).is_file()]
    own = {*train, *val}
    sources = [
        (layout.mask(name) if name in own else sbd / "cls" / f"{name}.mat", layout.mask_aug(name))
        for name in missing
    ]
    for _ in mapped(partial(_convert, layout), sources, "SegmentationClassAug"):
        pass
    if not training_list.exists():
        write_text(training_list, "".join(map(list_line, train_aug)))
    return SbdResult(len(missing), len(train_aug) + len(val) - len(missing), training_list)


def _convert(layout: VocLayout, paths: tuple[Path, Path]) -> None:
    source, target = paths
    write_mask(target, read_mask(source) if source.suffix == ".png" else read_sbd_mask(source))


def read_sbd_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """The class indices of an SBD file, uint8 (H, W), 0 to 20; SBD marks no pixel void.

    A .mat file of MATLAB 5 holds arrays and no code; SciPy's reader makes arrays of them, in a process of its own, as
    damage can crash it. What can be claimed is bounded before: the file to 16 MB, what its parts unpack to to 64 MB.

    Raises InputError naming the file: missing, too large, damaged, of MATLAB 7.3, without ``GTcls.Segmentation``,
    or with anything but a 2-d array of whole numbers 0 to 20 or 255.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise InputError(f"{name}: no such file, SBD's mask of the image expected")
    if (size := os.path.getsize(name)) > _MOST_FILE:
        raise InputError(f"{name}: {size} bytes, at most {_MOST_FILE} expected")
    try:
        _bound_unpacked(name)
    except InputError:
        raise
    except (OSError, zlib.error, struct.error) as error:
        raise InputError(_NO_MASK.format(name, line_of(error, 200))) from None
    try:
        mask = guard.read_matlab(name, "GTcls", "Segmentation")
    except InputError as error:
        raise InputError(_NO_MASK.format(name, str(error).removeprefix(f"{name}: "))) from None
    if mask.ndim != 2 or mask.dtype.kind not in "uif" or not mask.size:
        raise InputError(f"{name}: Segmentation is {mask.dtype} of shape {mask.shape}, a 2-d mask expected")
    indices = mask.astype(np.uint8) if np.isfinite(mask).all() else np.zeros_like(mask, np.uint8)
    if not np.array_equal(indices, mask) or ((indices >= len(CLASS_NAMES)) & (indices != VOID)).any():
        raise InputError(
            f"{name}: Segmentation holds other values than the classes 0 to {len(CLASS_NAMES) - 1}"
        )
    return indices


def _bound_unpacked(name: str) -> None:
    """Go through the top elements (MAT-File Format, MATLAB 5: type, bytes; type 15 is a zlib stream) unpacking them."""
    left = _MOST_UNPACKED
    with open(name, "rb") as file:
        header = file.read(128)
        if len(header) < 128 or header[126:128] not in (b"IM", b"MI"):
            raise InputError(f"{name}: no MATLAB 5 file, SBD's mask of the image expected")
        if header[124:126] in (b"\x00\x02", b"\x02\x00"):
            raise InputError(f"{name}: a MATLAB 7.3 file, one of MATLAB 5 expected")
        order = "<" if header[126:128] == b"IM" else ">"
        while tag := file.read(8):
            if len(tag) < 8:
                raise OSError(errno.EIO, "ends in the middle")
            kind, size = struct.unpack(f"{order}II", tag)
            data = file.read(min(size, _MOST_FILE))
            if len(data) < size:
                raise OSError(errno.EIO, "ends in the middle")
            unpacked = len(zlib.decompressobj().decompress(data, left + 1)) if kind == 15 else size
            left -= unpacked
            if left < 0:
                raise InputError(f"{name}: unpacks to more than the {_MOST_UNPACKED} bytes expected at most")
