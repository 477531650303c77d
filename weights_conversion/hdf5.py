"""The HDF5 forms of weights and solver states. The file itself is read by `weights_conversion.guard`."""

from __future__ import annotations

import os

import numpy as np

from weights_conversion import guard
from weights_conversion.errors import CaffeFileError, InputError

MAGIC = b"\x89HDF\r\n\x1a\n"


class HDF5Reader:
    """The content of a file; every method raises ``CaffeFileError`` on what it cannot accept.

    ``wanted``: names of the root's members that are read; all by default.
    """

    def __init__(self, path: str | os.PathLike[str], *wanted: str) -> None:
        self.path = os.fspath(path)
        self._content = _read(path, wanted or None)
        self.doubles = 0  # arrays read so far that were stored as doubles

    def error(self, where: str, reason: str) -> CaffeFileError:
        return CaffeFileError(f"{self.path}: {where}: {reason}" if where else f"{self.path}: {reason}")

    def groups(self, where: str) -> list[str]:
        """Names in a group that must hold groups only."""
        names = self._names(where)
        for name in names:
            self._names(f"{where}/{name}")
        return names

    def blobs(self, where: str) -> list[np.ndarray]:
        """The datasets "0", "1", … of a group, in this order, as float32."""
        names = self._names(where)
        expected = [str(index) for index in range(len(names))]
        if set(names) != set(expected):
            raise self.error(where, f"its datasets are {sorted(names)[:8]}, expected 0 to {len(names) - 1}")
        return [self.floats(f"{where}/{name}") for name in expected]

    def integer(self, name: str) -> int:
        array = self._array(f"/{name}")
        if array.shape not in ((), (1,)) or array.values is None or array.values.dtype.kind not in "iu":
            raise self.error(f"/{name}", f"{array.dtype} of shape {array.shape}, expected one integer")
        return int(array.values.reshape(-1)[0])

    def text(self, name: str) -> str:
        array = self._array(f"/{name}")
        if array.text is None:
            raise self.error(f"/{name}", f"{array.dtype} of shape {array.shape}, expected one string")
        return array.text

    def _names(self, where: str) -> list[str]:
        if where in self._content.groups:
            return self._content.groups[where]
        raise self.error(
            where, "is a Dataset, expected a Group" if where in self._content.arrays else "missing"
        )

    def _array(self, where: str) -> guard.Array:
        if where in self._content.arrays:
            return self._content.arrays[where]
        raise self.error(
            where, "is a Group, expected a Dataset" if where in self._content.groups else "missing"
        )

    def float_arrays(self) -> list[str]:
        """The paths of all datasets of floating-point numbers."""
        arrays = self._content.arrays.items()
        return [path for path, array in arrays if array.values is not None and array.values.dtype.kind == "f"]

    def floats(self, where: str) -> np.ndarray:
        """A dataset as float32."""
        array = self._array(where)
        if array.values is None or array.values.dtype.kind != "f":
            raise self.error(where, f"{array.dtype} of shape {array.shape}, expected floating point")
        self.doubles += array.values.dtype.itemsize == 8
        with np.errstate(over="ignore"):  # a double beyond float32 becomes inf, as in Caffe
            return np.asarray(array.values, dtype=np.float32)


def root_names(path: str | os.PathLike[str]) -> list[str]:
    """The names of the root's members. Raises ``CaffeFileError``."""
    return _read(path, ()).groups["/"]


def _read(path: str | os.PathLike[str], wanted: tuple[str, ...] | None) -> guard.Content:
    try:
        return guard.read_hdf5(path, wanted=wanted)
    except InputError as error:
        raise CaffeFileError(str(error)) from None
