"""HDF5 files within the limits of the process: plain groups and datasets of the file itself."""

from __future__ import annotations

import math
import os
from typing import Any, BinaryIO

import h5py
import numpy as np

from weights_conversion.guarded.answers import MIB, RefusedError, write_head

# groups and datasets, which cost the library some time each: a ResNet-152's file has 1600
_MOST_NAMES = 5000
_MOST_DEPTH = 8
_MOST_UNPACKED = 64 * MIB  # of packed datasets together, beside 8 times the file's size
_MOST_ATTRIBUTES = 100


class _Tree:
    """The groups, datasets and root attributes of a file, checked before a value is read."""

    def __init__(self, file: h5py.File, size: int, packed: bool) -> None:
        self.file, self.packed = file, packed
        self.size = size
        self.left = 8 * size + _MOST_UNPACKED if packed else size
        self.names_left = _MOST_NAMES
        self.groups: dict[str, list[str]] = {}
        self.datasets: dict[str, dict[str, Any]] = {}

    def look(self, path: str, depth: int = 0) -> None:
        """List what is at ``path`` and below it."""
        group = self.file[path]
        self.names_left -= len(group)
        if self.names_left < 0:
            raise RefusedError(path, f"more than {_MOST_NAMES} groups and datasets in the file")
        self.groups[path] = list(group)
        for name in self.groups[path]:
            self.look_at(path, name, depth)

    def look_at(self, parent: str, name: str, depth: int) -> None:
        full = f"{parent.rstrip('/')}/{name}"
        link = self.file[parent].get(name, getlink=True)
        if link is None:
            return  # whoever needs it says that it is missing
        if not isinstance(link, h5py.HardLink):
            raise RefusedError(full, f"is a {type(link).__name__}, refused: it may lead out of the file")
        member = self.file[parent][name]
        if isinstance(member, h5py.Dataset):
            self.datasets[full] = self._described(full, member)
        elif depth < _MOST_DEPTH:
            self.look(full, depth + 1)
        else:
            self.groups[full] = []

    def _described(self, full: str, dataset: h5py.Dataset) -> dict[str, Any]:
        if dataset.is_virtual or dataset.external:
            raise RefusedError(full, "keeps its values in another file, refused")
        layout = dataset.id.get_create_plist().get_layout()
        if layout == h5py.h5d.CHUNKED and not self.packed:
            # Caffe writes plain datasets; damaged chunks are where the library dies most often
            raise RefusedError(
                full, "chunked or compressed, which Caffe's are not (h5repack -l CONTI -f NONE)"
            )
        found: dict[str, Any] = {"dtype": str(dataset.dtype), "shape": dataset.shape, "bytes": 0}
        if h5py.check_string_dtype(dataset.dtype) is not None:
            if dataset.shape in ((), (1,)):
                self._claim(full, dataset.dtype.itemsize)
                value = dataset[()] if dataset.shape == () else dataset[0]
                found["text"] = value.decode("utf-8")
        elif dataset.shape is not None and dataset.dtype.kind in "iuf" and dataset.dtype.itemsize <= 8:
            if len(dataset.shape) > 32:
                raise RefusedError(full, f"{len(dataset.shape)} axes, at most 32 expected")
            count = math.prod(dataset.shape) * dataset.dtype.itemsize
            self._claim(full, count)
            if layout != h5py.h5d.CHUNKED and dataset.id.get_storage_size() < count:
                raise RefusedError(full, f"shape {dataset.shape} claims more values than the file can hold")
            found |= {"bytes": count, "code": dataset.dtype.str}
        return found

    def _claim(self, full: str, count: int) -> None:
        self.left -= count
        if self.left < 0:
            most = f"8 times the file and {_MOST_UNPACKED}" if self.packed else "the file can hold"
            raise RefusedError(
                full, f"claims more values than {most}, with the datasets before it: {count} bytes"
            )


def read_hdf5(request: dict[str, Any], out: BinaryIO) -> None:
    """Groups, datasets and texts of the root's members in ``wanted``, and the root's attributes."""
    path = request["path"]
    with h5py.File(path, "r") as file:
        tree = _Tree(file, os.path.getsize(path), request["packed"])
        roots = list(file) if len(file) <= _MOST_NAMES else []
        for name in request["wanted"] if request["wanted"] is not None else roots:
            tree.look_at("/", name, 0)
        tree.groups["/"] = roots
        if len(file.attrs) > _MOST_ATTRIBUTES:
            raise RefusedError("/", f"{len(file.attrs)} attributes, at most {_MOST_ATTRIBUTES} expected")
        attributes = {name: _plain_attribute(value) for name, value in file.attrs.items()}
        write_head(out, groups=tree.groups, arrays=tree.datasets, attributes=attributes)
        for name, dataset in tree.datasets.items():
            if dataset["bytes"]:
                out.write(np.ascontiguousarray(file[name][()], dataset["code"]).data)


def _plain_attribute(value: Any) -> str | list[int]:
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.ndim == 1:
        numbers: list[int] = value.tolist()
        return numbers
    return value if isinstance(value, str) else f"a {type(value).__name__}"
