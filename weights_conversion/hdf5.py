"""The HDF5 forms of weights and solver states: opened with care, since HDF5 can point outside its file."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import h5py
import numpy as np

from weights_conversion.errors import CaffeFileError
from weights_conversion.wire import MAX_AXES

# of groups and datasets: a ResNet-152's file has 1600, and each costs the library some time
_MOST_NAMES = 5000

MAGIC = b"\x89HDF\r\n\x1a\n"


class HDF5Reader:
    """An open file; every method raises ``CaffeFileError`` on what it cannot accept."""

    def __init__(self, file: h5py.File, path: str | os.PathLike[str]) -> None:
        self._file = file
        self.path = os.fspath(path)
        # One dataset linked many times and fill values can claim any amount: beyond the file's size it is refused.
        self._left = os.path.getsize(path)
        self._names_left = _MOST_NAMES
        self.doubles = 0  # arrays read so far that were stored as doubles

    def error(self, where: str, reason: str) -> CaffeFileError:
        return CaffeFileError(f"{self.path}: {where}: {reason}" if where else f"{self.path}: {reason}")

    def groups(self, where: str) -> list[str]:
        """Names in a group that must hold groups only."""
        names = self._names(where)
        for name in names:
            self._member(where, name, h5py.Group)
        return names

    def blobs(self, where: str) -> list[np.ndarray]:
        """The datasets "0", "1", … of a group, in this order, as float32."""
        names = self._names(where)
        expected = [str(index) for index in range(len(names))]
        if set(names) != set(expected):
            raise self.error(where, f"its datasets are {sorted(names)[:8]}, expected 0 to {len(names) - 1}")
        return [self._array(where, name) for name in expected]

    def integer(self, name: str) -> int:
        dataset = self._dataset("/", name)
        if dataset.shape not in ((), (1,)) or dataset.dtype.kind not in "iu":
            raise self.error(f"/{name}", f"{dataset.dtype} of shape {dataset.shape}, expected one integer")
        return int(np.ravel(dataset[()])[0])

    def text(self, name: str) -> str:
        dataset = self._dataset("/", name)
        kind = h5py.check_string_dtype(dataset.dtype)
        if dataset.shape not in ((), (1,)) or kind is None:
            raise self.error(f"/{name}", f"{dataset.dtype} of shape {dataset.shape}, expected one string")
        if kind.length is None:
            return self._heap_string(dataset, f"/{name}").decode("utf-8")
        if dataset.dtype.itemsize > self._left:
            raise self.error(f"/{name}", f"a string of {dataset.dtype.itemsize} bytes is more than the file")
        value = dataset[()] if dataset.shape == () else dataset[0]
        return value.decode("utf-8")

    def _heap_string(self, dataset: h5py.Dataset, where: str) -> bytes:
        """One string of variable length, from the file itself: over a damaged heap the library loops for ever.

        A dataset holds the string's length and its heap's address and number in it; a heap is a list of
        (number, size, bytes) after a header (HDF5 File Format Specification, Level 1E, Global Heap).
        """
        plist = self._file.id.get_create_plist()
        at = dataset.id.get_offset()
        if at is None or plist.get_sizes() != (8, 8) or plist.get_userblock():
            raise self.error(where, "a string stored in a way that is not supported")
        with open(self.path, "rb") as raw:
            raw.seek(at)
            length, heap, wanted = struct.unpack("<IQI", raw.read(16))
            if length == 0:
                return b""
            raw.seek(heap if heap < 2**63 else 0)
            signature, size = struct.unpack("<4s4xQ", raw.read(16))
            size = min(size, os.path.getsize(self.path)) - 16  # the header counts
            objects = raw.read(size) if signature == b"GCOL" and size > 0 else b""
        position = 0
        while position + 16 <= len(objects):
            index, stored = struct.unpack_from("<H6xQ", objects, position)
            position += 16
            if index == wanted and length <= stored:
                return objects[position : position + length]
            position += (stored + 7) // 8 * 8
        raise self.error(where, "the string is not in the file")

    def _names(self, where: str) -> list[str]:
        parent, _, name = where.rpartition("/")
        group = self._member(parent or "/", name, h5py.Group)
        self._names_left -= len(group)
        if self._names_left < 0:
            raise self.error(where, f"more than {_MOST_NAMES} groups and datasets in the file")
        return list(group)

    def _member(self, where: str, name: str, kind: type) -> h5py.Group | h5py.Dataset:
        group = self._file[where]
        link = group.get(name, getlink=True)
        full = f"{where.rstrip('/')}/{name}"
        if link is None:
            raise self.error(full, "missing")
        if not isinstance(link, h5py.HardLink):
            raise self.error(full, f"is a {type(link).__name__}, refused: it may lead out of the file")
        member = group[name]
        if not isinstance(member, kind):
            raise self.error(full, f"is a {type(member).__name__}, expected a {kind.__name__}")
        return member

    def _dataset(self, where: str, name: str) -> h5py.Dataset:
        dataset = self._member(where, name, h5py.Dataset)
        full = f"{where.rstrip('/')}/{name}"
        if dataset.is_virtual or dataset.external:
            raise self.error(full, "keeps its values in another file, refused")
        # Caffe writes plain datasets. Over damaged chunks the library dies of a segmentation fault, and compressed
        # ones claim any amount.
        if dataset.id.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS:
            raise self.error(full, "chunked or compressed, which Caffe's are not (h5repack -l CONTI -f NONE)")
        return dataset

    def _array(self, where: str, name: str) -> np.ndarray:
        dataset = self._dataset(where, name)
        full = f"{where}/{name}"
        if dataset.shape is None or dataset.dtype.kind != "f" or dataset.dtype.itemsize not in (4, 8):
            raise self.error(full, f"{dataset.dtype} of shape {dataset.shape}, expected float32 or float64")
        if dataset.ndim > MAX_AXES:
            raise self.error(full, f"{dataset.ndim} axes, at most {MAX_AXES}")
        self._left -= dataset.nbytes
        stored = dataset.id.get_storage_size()
        if self._left < 0 or stored < dataset.nbytes:
            raise self.error(full, f"shape {dataset.shape} claims more values than the file can hold")
        self.doubles += dataset.dtype.itemsize == 8
        with np.errstate(over="ignore"):  # a double beyond float32 becomes inf, as in Caffe
            return np.asarray(dataset[()], dtype=np.float32)


@contextmanager
def open_hdf5(path: str | os.PathLike[str]) -> Iterator[HDF5Reader]:
    """Open an HDF5 file for reading; whatever the library raises inside comes out as ``CaffeFileError``."""
    try:
        with h5py.File(path, "r") as file:
            yield HDF5Reader(file, path)
    except CaffeFileError:
        raise
    except Exception as error:  # on a damaged file h5py raises OSError, RuntimeError, KeyError, ValueError, …
        reason = " ".join(str(error).split())
        raise CaffeFileError(f"{os.fspath(path)}: damaged HDF5 file: {reason}") from error
