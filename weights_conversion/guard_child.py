"""Reads HDF5 files and pickles for `weights_conversion.guard`, in a process that may die of them. Run as a script.

A request is a line of JSON on standard input. Each is answered by a forked child with limits on its memory and CPU
time, so that a file over which a library crashes, loops or fills the memory costs that child alone. The answer is a
line of JSON, and the values of the arrays that the line lists, one after the other.

Nothing but NumPy and h5py is imported: the process starts in a fraction of a second.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import pickle
import re
import resource
import shutil
import signal
import sys
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import h5py
import numpy as np

MIB = 1 << 20
# Beyond what the process has: 9 times the file, and this. Both together are 10 times the file and 200 MB.
_MEMORY = 160 * MIB
_SECONDS = 2  # of CPU, and one a megabyte of file


class RefusedError(Exception):
    """``where`` in the file, ``reason``; the reader's caller puts the file's name before them."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason


# --- HDF5 -------------------------------------------------------------------------------------------------

_MOST_NAMES = (
    5000  # of groups and datasets: a ResNet-152's file has 1600, and each costs the library some time
)
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
        _head(out, groups=tree.groups, arrays=tree.datasets, attributes=attributes)
        for name, dataset in tree.datasets.items():
            if dataset["bytes"]:
                out.write(np.ascontiguousarray(file[name][()], dataset["code"]).data)


def _plain_attribute(value: Any) -> str | list[int]:
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.ndim == 1:
        numbers: list[int] = value.tolist()
        return numbers
    return value if isinstance(value, str) else f"a {type(value).__name__}"


# --- pickles ----------------------------------------------------------------------------------------------


class _Dtype:
    """Stands in for ``numpy.dtype``: plain integers, floats and booleans, and the object in which ``np.save`` wraps a
    dict, nothing else."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?([iufb][1248]|O8)", code):
            raise pickle.UnpicklingError(f"dtype {code!r:.80}")
        self.code = code
        self.dtype = np.dtype("u1") if code.endswith("O8") else np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, order, *structure = state
        if structure[:3] != [None, None, None]:
            raise pickle.UnpicklingError("a structured dtype")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands in for ``numpy.ndarray``: what it is given goes through ``frombuffer``, whose checks hold."""

    def __init__(self) -> None:
        self.array: np.ndarray = np.empty(0)
        self.wrapped: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran, data = state
        if dtype.code.endswith("O8"):
            if shape != () or len(data) != 1:
                raise pickle.UnpicklingError("dtype 'O8'")
            self.wrapped = data[0]
        else:
            self.array = _from_buffer(data, dtype, shape, "F" if fortran else "C").array


def _from_buffer(data: bytes | str, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    if dtype.code.endswith("O8"):
        raise pickle.UnpicklingError("dtype 'O8'")
    raw = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote the bytes as its str
    array = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
    if array.dtype.kind in "iu" and array.size and -(2**15) <= array.min() <= array.max() < 2**15:
        array = array.astype(
            np.int16
        )  # a quarter of the memory: what the authors' file holds are small numbers
    result = _Array()
    result.array = array
    return result


def _reconstruct(subtype: type, shape: tuple[int, ...], typecode: str) -> _Array:
    if subtype is not _Array:
        raise pickle.UnpicklingError(f"an array of type {subtype!r:.80}")
    return _Array()


def _scalar(dtype: _Dtype, data: bytes | str) -> int | float:
    return _from_buffer(data, dtype, (), "C").array.item()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # Python 3 writes bytes so under protocol 2
        raise pickle.UnpicklingError(f"bytes in {encoding!r:.80}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""  # what Python 3 writes for no bytes at all is a call of bytes()


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
}
for _module in ("__builtin__", "builtins"):  # how protocols below 4 write a set
    _ADMITTED[_module, "set"] = set
for _core in ("numpy.core", "numpy._core"):  # NumPy 2 renamed it
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise RefusedError(
                "", f"the pickle imports {module[:80]}.{name[:80]}, nothing but NumPy arrays expected"
            )
        return _ADMITTED[module, name]


class _Counted(io.RawIOBase):
    """A stream that ends in an error beyond ``most`` bytes."""

    def __init__(self, stream: Any, most: int) -> None:
        self._stream, self._most, self._left = stream, most, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read: int = self._stream.readinto(buffer)
        self._left -= read
        if self._left < 0:
            raise RefusedError("", f"unpacks to more than the {self._most} bytes expected at most")
        return read


def read_pickle(request: dict[str, Any], out: BinaryIO) -> None:
    """A dict of text to arrays of numbers, also in ``.gz`` and in the ``.npy`` that ``np.save`` makes of one."""
    path = request["path"]
    with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as stream:
        counted = io.BufferedReader(_Counted(stream, request["most"]), MIB)
        try:
            if counted.peek(6)[:6] == b"\x93NUMPY":
                _skip_npy_header(counted)
            content = _Unpickler(counted, encoding="latin1").load()  # nosec B301
        except RefusedError:
            raise
        except (OSError, zlib.error) as error:
            raise RefusedError("", f"cannot be read ({_line(error)}), a whole file expected") from error
        except EOFError as error:
            if "end-of-stream" in str(error):  # gzip's words
                raise RefusedError("", f"cannot be read ({_line(error)}), a whole file expected") from error
            raise RefusedError(
                "", f"damaged pickle ({_line(error)}), a dict of NumPy arrays expected"
            ) from error
        except MemoryError:
            raise
        except Exception as error:  # damaged or made-up opcodes raise almost anything
            raise RefusedError(
                "", f"damaged pickle ({_line(error)}), a dict of NumPy arrays expected"
            ) from error
    if isinstance(content, _Array) and content.wrapped is not None:
        content = content.wrapped
    if not isinstance(content, dict):
        raise RefusedError("", f"holds a {type(content).__name__}, {request['expected']} expected")
    if request["nested"]:
        content = _flattened(content)
    arrays: dict[str, np.ndarray] = {}
    for key, array in _arrays(content):
        if key in arrays:
            raise RefusedError("", f"key {key[:80]!r} twice, as a text and as a number")
        arrays[key] = array
    numbered = bool(content) and all(type(key) is int for key in content)
    listed = {
        key: {"dtype": str(array.dtype), "shape": array.shape, "bytes": array.nbytes, "code": array.dtype.str}
        for key, array in arrays.items()
    }
    _head(out, groups={}, arrays=listed, attributes={"keys": "int"} if numbered else {})
    for array in arrays.values():
        out.write(np.ascontiguousarray(array).data)


def _skip_npy_header(stream: BinaryIO) -> None:
    version = np.lib.format.read_magic(stream)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(stream)
    if shape != () or dtype.kind != "O":
        raise RefusedError("", f"an array of {dtype} {shape}, a dict of names to labels (np.save) expected")


def _flattened(content: dict[Any, Any]) -> dict[Any, Any]:
    """A dict of dicts as one, with the keys joined by a slash; a value that is no dict stays."""
    flat: dict[Any, Any] = {}
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, dict):
            flat |= {f"{key}/{inner}" if isinstance(inner, str) else inner: v for inner, v in value.items()}
        else:
            flat[key] = value
    return flat


def _arrays(content: dict[Any, Any]) -> Iterator[tuple[str, np.ndarray]]:
    for given, value in content.items():
        key = str(given) if type(given) is int and abs(given) < 10**18 else given
        if not isinstance(key, str):
            raise RefusedError("", f"key {f'of type {type(key).__name__}'!r}, text expected")
        if isinstance(value, set | frozenset):
            value = list(value)
        if isinstance(value, int | float):
            value = [value]
        if not isinstance(value, _Array | list | tuple) or getattr(value, "wrapped", None) is not None:
            kind = type(value).__name__
            raise RefusedError("", f"{key[:80]} is a {kind}, an array of numbers expected")
        try:
            array = np.asarray(_plain(value))
        except ValueError as error:
            reason = "nested lists of unequal lengths, an array of numbers expected"
            raise RefusedError(key[:80], reason) from error
        if array.dtype.kind not in "iufb":
            raise RefusedError(key[:80], f"{array.dtype}, integers expected")
        yield key, array


def _plain(value: Any) -> Any:
    """The array of a stand-in, also in a list or tuple of them, as ``np.where`` gives."""
    if isinstance(value, _Array):
        return value.array
    return [item.array if isinstance(item, _Array) else item for item in value]


# --- the process ------------------------------------------------------------------------------------------

_READERS = {"hdf5": read_hdf5, "pickle": read_pickle}


def _head(out: BinaryIO, **fields: Any) -> None:
    out.write(json.dumps(fields).encode() + b"\n")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _answer(request: dict[str, Any], out: BinaryIO) -> None:
    """Read within the limits; what goes wrong becomes the answer."""
    size = os.path.getsize(request["path"])
    with open("/proc/self/statm") as file:
        present = int(file.read().split()[0]) * resource.getpagesize()
    memory, seconds = present + 9 * size + _MEMORY, _SECONDS + size // 10**6
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    try:
        _READERS[request["reader"]](request, out)
    except RefusedError as error:
        _replace(out, error.where, error.reason)
    except MemoryError:
        _replace(out, "", _TOO_LARGE)
    except Exception as error:  # on a damaged file h5py raises OSError, RuntimeError, KeyError, ValueError, …
        _replace(out, "", f"damaged {request['reader'].upper()} file: {_line(error)}")


_TOO_LARGE = f"takes more memory to read than 9 times its size and {_MEMORY} bytes"


def _replace(out: BinaryIO, where: str, reason: str) -> None:
    out.seek(0)
    out.truncate()
    _head(out, error=[where, reason])


def _death(status: int) -> str:
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number in (signal.SIGXCPU, signal.SIGKILL):
        return "reading it does not come to an end"
    return f"reading it crashes the library ({signal.Signals(number).name if number else 'exit'})"


def main() -> None:
    """Answer requests until standard input ends."""
    while line := sys.stdin.buffer.readline():
        with tempfile.TemporaryFile() as out:
            process = os.fork()
            if process == 0:
                status = 1
                try:
                    _answer(json.loads(line), out)
                    out.flush()
                    status = 0
                finally:
                    os._exit(status)
            if status := os.waitpid(process, 0)[1]:
                _replace(out, "", _death(status))
            out.seek(0)
            shutil.copyfileobj(out, sys.stdout.buffer, MIB)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
