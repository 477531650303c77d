"""Pickles of dicts of numbers: nothing is imported but stand-ins for NumPy's arrays and PyTorch's tensors."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from weights_conversion.errors import line_of
from weights_conversion.guarded.answers import MIB, RefusedError, write_head
from weights_conversion.guarded.tensors import load_storage, rebuild


class _Dtype:
    """Stands in for ``numpy.dtype``: plain integers, floats, booleans and text, and the object in which ``np.save``
    wraps a dict, nothing else."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?([iufb][1248]|U[0-9]{1,3}|O8)", code):
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
    return _wrapped(np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if order == "F" else "C"))


def _wrapped(array: np.ndarray) -> _Array:
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


def _scalar(dtype: _Dtype, data: bytes | str) -> Any:
    return _from_buffer(data, dtype, (), "C").array.item()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # Python 3 writes bytes so under protocol 2
        raise pickle.UnpicklingError(f"bytes in {encoding!r:.80}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""  # what Python 3 writes for no bytes at all is a call of bytes()


def _storage(data: bytes) -> _Array:
    return _wrapped(load_storage(data))


def _tensor(
    storage: _Array, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *gradient: Any
) -> _Array:
    return _wrapped(rebuild(storage.array, offset, size, stride))


def _parameter(tensor: _Array, requires_gradient: bool, hooks: object) -> _Array:
    return tensor


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
}
for _module in ("__builtin__", "builtins"):  # how protocols below 4 write a set
    _ADMITTED[_module, "set"] = set
    for _default in ("list", "dict", "int"):  # of a defaultdict; not to be called
        _ADMITTED[_module, _default] = None
for _core in ("numpy.core", "numpy._core"):  # NumPy 2 renamed it
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _from_buffer


_ADMITTED |= {
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): dict,  # a tensor's hooks, which are none
    ("collections", "defaultdict"): lambda *default: {},
}


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
    """A dict of text to arrays of numbers, or to texts, also in ``.gz`` and in the ``.npy`` that ``np.save`` makes of
    one."""
    path = request["path"]
    with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as stream:
        counted = io.BufferedReader(_Counted(stream, request["most"]), MIB)
        try:
            if counted.peek(6)[:6] == b"\x93NUMPY":
                _skip_npy_header(counted, request["expected"])
            content = _Unpickler(counted, encoding="latin1").load()  # nosec B301
        except (RefusedError, MemoryError):
            raise
        except Exception as error:  # damaged or made-up opcodes raise almost anything
            ends = isinstance(error, EOFError) and "end-of-stream" in str(error)  # gzip's words
            if ends or isinstance(error, (OSError, zlib.error)):
                reason = f"cannot be read ({line_of(error)}), a whole file expected"
            else:
                reason = f"damaged pickle ({line_of(error)}), a dict of NumPy arrays expected"
            raise RefusedError("", reason) from error
    if isinstance(content, _Array) and content.wrapped is not None:
        content = content.wrapped
    if not isinstance(content, dict):
        raise RefusedError("", f"holds a {type(content).__name__}, {request['expected']} expected")
    renamed = {_key(key): value for key, value in content.items()}
    if len(renamed) < len(content):
        raise RefusedError("", "a key twice, as a text and as bytes or a tensor")
    content = _flattened(renamed) if request["nested"] else renamed
    arrays: dict[str, np.ndarray] = {}
    texts: dict[str, list[str]] = {}
    for key, array in _arrays(content, request["texts"]):
        if key in arrays:
            raise RefusedError("", f"key {key[:80]!r} twice, as a text and as a number")
        if array.dtype.kind == "U":
            texts[key] = array.ravel().tolist()
            array = np.empty(0)
        arrays[key] = array
    numbered = bool(content) and all(type(key) is int for key in content)
    listed = {
        key: {
            "dtype": str(array.dtype),
            "shape": array.shape,
            "bytes": array.nbytes,
            "code": array.dtype.str,
            "texts": texts.get(key),
        }
        for key, array in arrays.items()
    }
    write_head(out, groups={}, arrays=listed, attributes={"keys": "int"} if numbered else {})
    for array in arrays.values():
        out.write(np.ascontiguousarray(array).data)


def _skip_npy_header(stream: BinaryIO, expected: str) -> None:
    version = np.lib.format.read_magic(stream)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(stream)
    if shape != () or dtype.kind != "O":
        raise RefusedError("", f"a .npy, an array of {dtype} {shape}; {expected} expected")


def _key(key: Any) -> Any:
    """A key as it is; of a tensor of one whole number that number, of bytes, as Python 2's texts come, their text."""
    if isinstance(key, bytes):
        return key.decode("latin1")
    is_number = isinstance(key, _Array) and key.array.size == 1 and key.array.dtype.kind in "iu"
    return key.array.item() if is_number else key


def _flattened(content: dict[Any, Any]) -> dict[Any, Any]:
    """A dict of dicts, or of lists of arrays of several ranks, as one, with the keys joined by a slash, the place in a
    list as its key; a value that is neither stays."""
    flat: dict[Any, Any] = {}
    for key, value in content.items():
        if isinstance(value, list) and len({one.array.ndim for one in value if isinstance(one, _Array)}) > 1:
            value = dict(enumerate(value))
        if isinstance(key, str | int) and isinstance(value, dict):
            flat |= {f"{key}/{_key(inner)}": v for inner, v in value.items()}
        else:
            flat[key] = value
    return flat


def _arrays(content: dict[Any, Any], texts: bool) -> Iterator[tuple[str, np.ndarray]]:
    for given, value in content.items():
        key = str(given) if type(given) is int and abs(given) < 10**18 else given
        if not isinstance(key, str):
            raise RefusedError("", f"key {f'of type {type(key).__name__}'!r}, text expected")
        if isinstance(value, set | frozenset):
            value = list(value)
        if isinstance(value, int | float) or (texts and isinstance(value, str)):
            value = [value]
        if not isinstance(value, _Array | list | tuple) or getattr(value, "wrapped", None) is not None:
            kind = type(value).__name__
            raise RefusedError("", f"{key[:80]} is a {kind}, an array of numbers expected")
        try:
            array = np.asarray(_plain(value))
        except ValueError as error:
            reason = "nested lists of unequal lengths, an array of numbers expected"
            raise RefusedError(key[:80], reason) from error
        if array.dtype.kind not in ("iufbU" if texts else "iufb"):
            raise RefusedError(key[:80], f"{array.dtype}; expected integers")
        yield key, array


def _plain(value: Any) -> Any:
    """The array of a stand-in, also in a list or tuple of them, as ``np.where`` gives."""
    if isinstance(value, _Array):
        return value.array
    return [item.array if isinstance(item, _Array) else item for item in value]
