"""Localization cues: which grid cells of a training image are seeds of which class.

The originals keep them in one Python 2 pickle of ``"<index>_labels"`` (class ids of the image, background not
listed) and ``"<index>_cues"`` (int array (3, K) of class, row, column on the grid). It takes 100 MB of memory
and a trusting reader; `convert_cues` makes an HDF5 file of it that opens at once. Either gives a `CueFile`.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import ArrayLike

from repro.constants import VOID
from repro.data.image_list import CueLine, Lines, ListLine, image_name, read_image_list, read_pairs_list
from repro.data.voc import read_mask
from repro.errors import InputError, damaged
from weights_conversion import guard
from weights_conversion.files import atomic_path, check_plain

log = logging.getLogger(__name__)

MAX_BYTES = 1 << 30
"""A cue file that unpacks to more than this is refused (the SEC authors' file for VOC unpacks to 104 MB)."""

HDF5_SUFFIXES = (".h5", ".hdf5")
PICKLE_SUFFIXES = (".pickle", ".pkl", ".pickle.gz", ".pkl.gz")

_PICKLED = "a dict of '<index>_labels' and '<index>_cues'"
_KEY = re.compile(r"(.+)[_/](labels|cues)", re.DOTALL)
_INDEX = re.compile(r"0|[1-9][0-9]{0,17}")  # with zeros before it, it is a name, as COCO's are
_FORMAT = "repro-cues-1"
_MAX_VALUE = np.iinfo(np.int16).max
_KEY_STEP = 1 << 16  # more than any class


@dataclass(frozen=True, eq=False)
class CueFile:
    """All entries of a cue file, in memory (25 MB for VOC). Holds no open file: it may be forked and pickled.

    The arrays of all images lie one after the other, sorted by index; those of the image at position i are
    ``[offsets[i]:offsets[i + 1]]``.
    """

    path: str
    indices: np.ndarray
    """int64 (n,), rising: the image indices that have an entry."""
    label_offsets: np.ndarray
    flat_labels: np.ndarray
    cue_offsets: np.ndarray
    flat_cues: np.ndarray
    grid: tuple[int, int] | None = None
    """Rows and columns of the grid that the cues were made on, where the file says so."""
    names: tuple[str, ...] | None = None
    """The images' names, in the order of the indices, where the file has them."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> CueFile:
        """Read a cue file: ``.pickle``, ``.pkl``, either with ``.gz``, or ``.h5``, ``.hdf5``.

        A pickle is read by an unpickler that admits integer and float NumPy arrays and plain containers.
        Raises InputError naming file and, where there is one, index: for another suffix, a missing, damaged
        or oversized file, a pickle that imports anything else, and entries of a wrong name, dtype or shape.
        """
        name = os.fspath(path)
        check_plain(name)
        if not os.path.isfile(name):
            raise InputError(f"{name}: no such cue file")
        if name.endswith(HDF5_SUFFIXES):
            return _read_hdf5(name)
        if name.endswith(PICKLE_SUFFIXES):
            content = guard.read_pickle(name, most=MAX_BYTES, expected=_PICKLED, nested=True)
            return cls.of_pickle(name, content)
        raise InputError(f"{name}: unknown kind of cue file, .pickle, .pickle.gz or .h5 expected")

    @classmethod
    def of_pickle(cls, name: str, content: guard.Content) -> CueFile:
        """From the content of a pickle. Keys begin with an index, as the originals' do, or with an image's name."""
        kinds: dict[str, dict[str, np.ndarray]] = {"labels": {}, "cues": {}}
        for key, array in content.arrays.items():
            match = _KEY.fullmatch(key)
            if match is None or not (image := image_name(match[1])):
                raise InputError(f"{name}: key {key[:80]!r}; expected '<index>_labels' or '<index>_cues'")
            assert array.values is not None
            if image in kinds[match[2]]:
                raise InputError(
                    f"{name}: key {key[:80]!r}: {match[2]} of {image!r} come again; expected each once"
                )
            kinds[match[2]][image] = array.values
        labels, cues = kinds["labels"], kinds["cues"]
        if lonely := labels.keys() ^ cues.keys():
            first = min(lonely)
            who = f"index {first}" if _INDEX.fullmatch(first) else f"image {first}"
            raise InputError(f"{name}: {who} has only one of '_labels' and '_cues'; expected both")
        if all(map(_INDEX.fullmatch, labels)):
            return cls.from_entries(name, {int(index): (labels[index], cues[index]) for index in labels})
        return cls.from_entries(
            name, {at: (labels[image], cues[image]) for at, image in enumerate(labels)}, names=list(labels)
        )

    @classmethod
    def from_entries(
        cls,
        name: str,
        entries: Mapping[int, tuple[ArrayLike, ArrayLike]],
        grid: tuple[int, int] | None = None,
        names: Sequence[str] | None = None,
    ) -> CueFile:
        """Build from ``{index: (labels, cues)}``; ``name`` stands for the file in messages.

        With ``names`` the indices are 0, 1, … and each has its image's name.
        """
        indices = np.array(sorted(entries), dtype=np.int64)
        who = [f"index {i}" if names is None else f"image {names[i]}" for i in indices.tolist()]
        labels, cues = (
            [
                _integers(entries[i][rank - 1], rank, f"{name}: {kind} of {one}")
                for i, one in zip(indices.tolist(), who, strict=True)
            ]
            for kind, rank in (("labels", 1), ("cues", 2))
        )
        return cls(
            name,
            indices,
            _offsets([len(entry) for entry in labels]),
            np.concatenate([np.empty(0, np.int16), *labels]),
            _offsets([entry.shape[1] for entry in cues]),
            np.concatenate([np.empty((3, 0), np.int16), *cues], axis=1),
            grid,
            None if names is None else tuple(names),
        )

    def images(self, list_path: str | os.PathLike[str] | None = None) -> dict[str, int]:
        """Image name -> its index, of the images of a list; of all where the file names them and no list is given.

        Errors as `lines`; InputError where names are neither here nor there.
        """
        if list_path is not None:
            return {image_name(line.image): line.cue_index for line in self.lines(list_path)}
        if self.names is None:
            raise InputError(
                f"{self.path}: a cue file that knows its images by number; give the input_list.txt beside it, too"
            )
        return {name: index for index, name in enumerate(self.names)}

    def lines(self, list_path: str | os.PathLike[str]) -> Lines[CueLine]:
        """The lines of a list with the index of each image; a file that names its images goes by their names, and the
        list may then have any form. Raises InputError as the lists' readers do, and for an image without cues."""
        if self.names is None:
            return read_pairs_list(list_path)
        return self.named(read_image_list(list_path), list_path)

    def named(self, lines: Iterable[ListLine | CueLine], source: str | os.PathLike[str]) -> Lines[CueLine]:
        """The lines with the index that each image has in a file that names its images. Raises InputError for an image
        without cues."""
        indices = self.images()
        found: Lines[CueLine] = Lines([], source)
        for line in lines:
            name = image_name(line.image)
            if name not in indices:
                raise InputError(f"{found.source}:{line.line}: image {name} has no cues in {self.path}")
            found.append(CueLine(line.image, indices[name], line.line))
        return found

    def __len__(self) -> int:
        return len(self.indices)

    def labels(self, index: int) -> np.ndarray:
        """The class ids of the image, int16 (L,). Raises InputError for an index without an entry."""
        at = self._position(index)
        return self.flat_labels[self.label_offsets[at] : self.label_offsets[at + 1]]

    def cues(self, index: int) -> np.ndarray:
        """The cues of the image, int16 (3, K) of class, row, column. Errors as `labels`."""
        at = self._position(index)
        return self.flat_cues[:, self.cue_offsets[at] : self.cue_offsets[at + 1]]

    def grid_doubt(self, height: int, width: int) -> str:
        """What speaks against cues that were made on a height x width grid; empty where nothing does.

        A file that does not say its grid is judged by its largest row and column: cues of a 21x21 grid would all
        lie in the top left quarter of a 41x41 one. Raises InputError where the file names another grid.
        """
        if self.grid is not None:
            if self.grid != (height, width):
                raise InputError(
                    f"{self.path}: cues of a {self.grid[0]}x{self.grid[1]} grid, "
                    f"the net's {height}x{width} grid expected"
                )
            return ""
        if not self.flat_cues.size:
            return ""
        for axis, last, size in zip(
            ("row", "column"), self.flat_cues[1:].max(axis=1).tolist(), (height, width), strict=True
        ):
            if 2 * last <= size - 1 and size > 1:
                return (
                    f"{self.path}: no cue beyond {axis} {last} of the net's {height}x{width} grid; "
                    "were the cues made on a smaller grid?"
                )
        return ""

    def label_doubt(self) -> str:
        """What is to be said of images with cues of a class that their labels lack; empty where there are none.

        Such cells are seeds all the same, of a class that the losses and the growing take for absent.
        """
        classes, label_image = self.flat_cues[0], np.repeat(np.arange(len(self)), np.diff(self.label_offsets))
        # cells in runs of one image and class, of which a file has a hundredth as many
        starts = np.union1d(np.flatnonzero(np.diff(classes)) + 1, self.cue_offsets[:-1])
        starts = starts[starts < len(classes)]
        image = np.searchsorted(self.cue_offsets, starts, side="right") - 1
        found, cells = classes[starts].astype(np.int64), np.diff(starts, append=len(classes))
        labelled = np.isin(image * _KEY_STEP + found, label_image * _KEY_STEP + self.flat_labels)
        wrong = (found > 0) & ~labelled
        if not wrong.any():
            return ""
        first = int(wrong.argmax())
        at = int(image[first])
        index = int(self.indices[at])
        who = f"index {index}" if self.names is None else f"image {self.names[index]}"
        labels = ", ".join(map(str, self.labels(index).tolist())) or "none"
        return (
            f"{self.path}: {len(np.unique(image[wrong]))} of {len(self)} images have cues of a class that their labels "
            f"lack, {int(cells[wrong].sum())} of {len(classes)} cells in all; {who} has class {int(found[first])}, "
            f"its labels are {labels}"
        )

    def check_grid(self, height: int, width: int) -> None:
        """Log the `grid_doubt`, if there is one. Raises InputError where the file names another grid."""
        if doubt := self.grid_doubt(height, width):
            log.warning("%s", doubt)

    def check_whole(self, height: int, width: int) -> None:
        """Log `grid_doubt` and `label_doubt`. Raises InputError where the file names another grid."""
        self.check_grid(height, width)
        if doubt := self.label_doubt():
            log.warning("%s", doubt)

    def check(self, index: int, num_classes: int, height: int, width: int) -> None:
        """Raise the InputError that `labels_blob` or `cues_blob` would, without making the blobs."""
        self._checked_labels(index, num_classes)
        self._checked_cues(index, num_classes, height, width)

    def all_usable(self, indices: Sequence[int], num_classes: int, height: int, width: int) -> bool:
        """Whether `check` would pass for each of these indices, without saying which not; False when in doubt.

        One look at all arrays: for 80,000 images `check` one by one takes seconds.
        """
        limits = np.array([[num_classes], [height], [width]])
        return bool(
            np.isin(np.asarray(indices, np.int64), self.indices).all()
            and (np.diff(self.label_offsets) > 0).all()
            and ((self.flat_labels >= 1) & (self.flat_labels < num_classes)).all()
            and ((self.flat_cues >= 0) & (self.flat_cues < limits)).all()
        )

    def labels_blob(self, index: int, num_classes: int, background: bool) -> np.ndarray:
        """The ``labels`` blob of one image: uint8 (C,), 1 for each class present.

        ``background`` marks class 0 present as well: DSRG's annotation layer does, SEC's does not.
        Raises InputError for an unknown index, no class at all, or a class outside 1…C−1.
        """
        blob = np.zeros(num_classes, np.uint8)
        blob[self._checked_labels(index, num_classes)] = 1
        if background:
            blob[0] = 1
        return blob

    def cues_blob(self, index: int, num_classes: int, height: int, width: int) -> np.ndarray:
        """The ``cues`` blob of one image: uint8 (C, height, width), 1 where a cell is a seed of the class.

        Raises InputError for an unknown index, a class outside 0…C−1 or a cell outside the grid.
        """
        blob = np.zeros((num_classes, height, width), np.uint8)
        blob[tuple(self._checked_cues(index, num_classes, height, width))] = 1
        return blob

    def _position(self, index: int) -> int:
        at = int(np.searchsorted(self.indices, index))
        if at == len(self.indices) or self.indices[at] != index:
            extent = f"{self.indices[0]} to {self.indices[-1]}" if len(self.indices) else "none"
            raise InputError(
                f"{self.path}: no entry for image index {index}, one of its {len(self)} indices ({extent}) expected"
            )
        return at

    def _checked_labels(self, index: int, num_classes: int) -> np.ndarray:
        labels = self.labels(index)
        if labels.size == 0:
            raise InputError(
                f"{self.path}: index {index} has labels without any present class, one or more expected"
            )
        wrong = labels[(labels < 1) | (labels >= num_classes)]
        if wrong.size:
            raise InputError(
                f"{self.path}: index {index} has label {wrong[0]}; expected classes 1 to {num_classes - 1}"
            )
        return labels

    def _checked_cues(self, index: int, num_classes: int, height: int, width: int) -> np.ndarray:
        cues = self.cues(index)
        size = np.array([[num_classes], [height], [width]])
        wrong = ((cues < 0) | (cues >= size)).any(axis=0)
        if wrong.any():
            at = tuple(int(value) for value in cues[:, wrong.argmax()])
            raise InputError(
                f"{self.path}: index {index} has a cue (class, row, column) = {at}, "
                f"classes below {num_classes} on a {height}x{width} grid expected"
            )
        return cues


def holds_cues(content: guard.Content) -> bool:
    """Whether a pickle's keys are those of cues."""
    return bool(content.arrays) and all(map(_KEY.fullmatch, content.arrays))


def is_cue_file(path: Path) -> bool:
    """Whether a file is one that `CueFile.open` reads."""
    try:
        CueFile.open(path)
    except InputError:
        return False
    return True


def convert_cues(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Write the cue file ``source`` as HDF5 to ``target``, atomically.

    Errors as `CueFile.open`; InputError, too, for a target that does not end in ``.h5`` or ``.hdf5``: it may be the
    source.
    """
    if not os.fspath(target).endswith(HDF5_SUFFIXES):
        raise InputError(f"{os.fspath(target)}: expected a name that ends in {' or '.join(HDF5_SUFFIXES)}")
    file = CueFile.open(source)
    if doubt := file.label_doubt():
        log.warning("%s", doubt)
    _write_hdf5(target, file)


def write_cues(
    path: str | os.PathLike[str],
    entries: Mapping[int, tuple[ArrayLike, ArrayLike]],
    grid: tuple[int, int] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Write ``{index: (labels, cues)}`` atomically: HDF5, or the originals' layout when ``path`` is a ``.pickle``.

    HDF5 holds the ``grid`` of the cues, too (rows, columns), and the ``names`` of the images with the indices 0, 1, …;
    the originals' layout has no place for them.
    Raises InputError as `CueFile.open` does for what it would not read back.
    """
    name = os.fspath(path)
    file = CueFile.from_entries(name, entries, grid, names)
    if name.endswith(HDF5_SUFFIXES):
        _write_hdf5(path, file)
    elif name.endswith(".pickle"):
        keyed = {f"{index}_labels": file.labels(index).astype(np.int64) for index in file.indices.tolist()}
        keyed |= {f"{index}_cues": file.cues(index).astype(np.int64) for index in file.indices.tolist()}
        with atomic_path(path) as temporary:
            temporary.write_bytes(pickle.dumps(keyed, protocol=2))
    else:
        raise InputError(f"{name}: unknown kind of cue file, .pickle or .h5 expected")


def cues_of_cells(cells: np.ndarray) -> np.ndarray:
    """The cues, int64 (3, K) of class, row, column, of a grid of classes that is 255 where there is none."""
    rows, columns = np.nonzero(cells != VOID)
    return np.stack([cells[rows, columns].astype(np.int64), rows, columns])


def planes_of_cells(cells: np.ndarray, num_classes: int) -> np.ndarray:
    """Of the same grid the ``cues`` blob, uint8 (C, rows, columns)."""
    return (cells == np.arange(num_classes, dtype=np.uint8)[:, None, None]).astype(np.uint8)


def cell_counts(mask: np.ndarray, num_classes: int, height: int, width: int) -> np.ndarray:
    """How many pixels of each class each cell of a grid covers, when the grid is enlarged to the mask's size by nearest
    neighbour (pixel centres: row i falls into cell ⌊(i + ½)·height/H⌋).

    Args:
        mask: uint8 (H, W) of classes; what is not below ``num_classes`` is void.

    Returns: int32 (C, height, width).
    """
    rows, columns = (
        ((np.arange(size) + 0.5) * cells / size).astype(np.int64)
        for size, cells in zip(mask.shape, (height, width), strict=True)
    )
    cell = rows[:, None] * width + columns
    counted = mask < num_classes
    flat = mask[counted].astype(np.int64) * (height * width) + cell[counted]
    counts = np.bincount(flat, minlength=num_classes * height * width)
    return counts.reshape(num_classes, height, width).astype(np.int32)


class CellTruth:
    """Masks as `cell_counts`, each read once and then kept in a few kilobytes by the process that read it.

    Args:
        root: folder of masks, ``<name>.png``.
        grid: rows and columns.
    """

    def __init__(self, root: str | os.PathLike[str], num_classes: int, grid: tuple[int, int]) -> None:
        self.root, self.num_classes, self.grid = Path(root), num_classes, grid
        self._kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def counts(self, name: str) -> np.ndarray:
        """int32 (C, rows, columns). Raises InputError as `read_mask`."""
        if name not in self._kept:
            mask = read_mask(self.root / f"{name}.png", self.num_classes)
            found = cell_counts(mask, self.num_classes, *self.grid)
            classes = np.flatnonzero(found.any(axis=(1, 2)))
            self._kept[name] = classes, found[classes]
        classes, kept = self._kept[name]
        counts = np.zeros((self.num_classes, *self.grid), np.int32)
        counts[classes] = kept
        return counts


def _offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _integers(values: ArrayLike, rank: int, what: str) -> np.ndarray:
    """As int16, of shape (L,) or (3, K). Whether classes and cells are in range shows when they are used."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InputError(f"{what}: nested lists of unequal lengths, an integer array expected") from error
    if array.size and array.dtype.kind not in "iu":
        raise InputError(f"{what}: {array.dtype}; expected integers")
    if array.ndim != rank or (rank == 2 and array.shape[0] != 3):
        raise InputError(f"{what}: shape {array.shape}; expected {'(3, K)' if rank == 2 else '(L,)'}")
    if array.size and not 0 <= array.min() <= array.max() <= _MAX_VALUE:
        raise InputError(f"{what}: values {array.min()} to {array.max()}; expected 0 to {_MAX_VALUE}")
    return array.astype(np.int16)


# --- HDF5 ---------------------------------------------------------------------------------------------------

_DATASETS = {  # name in the file and the field: rank and dtype
    "indices": (1, np.int64),
    "label_offsets": (1, np.int64),
    "flat_labels": (1, np.int16),
    "cue_offsets": (1, np.int64),
    "flat_cues": (2, np.int16),
}


def _write_hdf5(path: str | os.PathLike[str], file: CueFile) -> None:
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as target:
        target.attrs["format"] = _FORMAT
        if file.grid is not None:
            target.attrs["grid"] = np.array(file.grid, np.int64)
        if file.names is not None:
            text = json.dumps(file.names).encode("ascii")
            target.create_dataset("names", data=text, dtype=h5py.string_dtype("ascii", max(len(text), 1)))
        for name in _DATASETS:
            values = getattr(file, name)
            packing = {"compression": "gzip", "compression_opts": 4, "shuffle": True} if values.size else {}
            target.create_dataset(name, data=values, **packing)


def _read_hdf5(name: str) -> CueFile:
    content = guard.read_hdf5(name, wanted=[*_DATASETS, "names"], packed=True)
    if content.attributes.get("format") != _FORMAT:
        raise InputError(f"{name}: no cue file, an HDF5 file with the attribute format={_FORMAT!r} expected")
    grid = _stored_grid(name, content.attributes.get("grid"))
    arrays: dict[str, np.ndarray] = {}
    for key, (rank, dtype) in _DATASETS.items():
        found = content.arrays.get(f"/{key}")
        if (
            found is None
            or found.values is None
            or found.values.dtype.kind != "i"
            or found.values.ndim != rank
        ):
            raise InputError(f"{name}: damaged, a dataset {key!r} of {rank}-d integers expected")
        if found.values.dtype.itemsize > np.dtype(dtype).itemsize:
            raise InputError(f"{name}: {key!r} is of {found.dtype}; expected {np.dtype(dtype)}")
        # narrower ones are widened: sums of offsets, and differences of indices, would wrap in them
        arrays[key] = found.values.astype(dtype, copy=False)
    indices, labels, cues = arrays["indices"], arrays["flat_labels"], arrays["flat_cues"]
    sound = (
        (np.diff(indices) > 0).all()
        and _spans(arrays["label_offsets"], len(indices), len(labels))
        and cues.shape[0] == 3
        and _spans(arrays["cue_offsets"], len(indices), cues.shape[1])
    )
    if not sound:
        raise InputError(f"{name}: damaged, rising indices and offsets that span the arrays expected")
    return CueFile(name, **arrays, grid=grid, names=_stored_names(name, content, indices))


def _stored_names(name: str, content: guard.Content, indices: np.ndarray) -> tuple[str, ...] | None:
    if (found := content.arrays.get("/names")) is None:
        return None
    with damaged(name, "a list of the images' names"):
        names = json.loads(found.text or "")
    sound = isinstance(names, list) and all(isinstance(one, str) for one in names)
    if not sound or len(set(names)) != len(names) or indices.tolist() != list(range(len(names))):
        raise InputError(f"{name}: damaged, as many different names as indices expected, which are 0, 1, …")
    return tuple(names)


def _stored_grid(name: str, value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    sizes = np.asarray(value)
    if sizes.shape != (2,) or sizes.dtype.kind not in "iu" or sizes.min() < 1:
        raise InputError(f"{name}: damaged, an attribute 'grid' of rows and columns expected")
    return int(sizes[0]), int(sizes[1])


def _spans(offsets: np.ndarray, count: int, length: int) -> bool:
    return bool(
        len(offsets) == count + 1
        and offsets[0] == 0
        and offsets[-1] == length
        and (np.diff(offsets) >= 0).all()
    )
