"""PyTorch's tensors in a plain pickle, as ``np.save`` writes a dict of them: stand-ins that make NumPy arrays.

Such a pickle holds each storage as the bytes of ``torch.save`` in its form before 1.6: a row of pickles (magic number,
protocol, system, the storage, the list of keys), then of each storage the number of values and the values. PyTorch
itself would unpickle these without any restriction. Here the storage is read by names and bytes alone.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py, MAGIC_NUMBER
_DTYPES = {
    "Float": "<f4",
    "Double": "<f8",
    "Half": "<f2",
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "<i1",
    "Byte": "<u1",
    "Bool": "|b1",
}


class _Storage(pickle.Unpickler):
    """Reads a storage's description: a persistent reference with its type, key and number of values."""

    def find_class(self, module: str, name: str) -> Any:
        kind = name.removesuffix("Storage")
        if module != "torch" or kind not in _DTYPES or kind == name:
            raise pickle.UnpicklingError(f"a storage of {module[:80]}.{name[:80]}")
        return _DTYPES[kind]

    def persistent_load(self, reference: Any) -> tuple[np.dtype, int]:
        kind, code, _key, _location, count, *view = reference
        if kind != "storage" or type(count) is not int or view not in ([], [None]):
            raise pickle.UnpicklingError(f"a reference {reference!r:.80}")
        return np.dtype(code), count


def load_storage(data: bytes) -> np.ndarray:
    """The values of ``torch.storage._load_from_bytes(data)``, one-dimensional."""
    stream = io.BytesIO(data)
    magic, _protocol, _system = (_Storage(stream).load() for _ in range(3))
    if magic != _MAGIC:
        raise pickle.UnpicklingError("no storage of PyTorch's")
    dtype, count = _Storage(stream).load()
    keys = _Storage(stream).load()
    values = data[stream.tell() + 8 :]
    if len(keys) != 1 or not 0 <= count * dtype.itemsize <= len(values):
        raise pickle.UnpicklingError(f"a storage of {count} values in {len(values)} bytes")
    return np.frombuffer(values, dtype, count)


def rebuild(storage: np.ndarray, offset: int, size: Sequence[int], stride: Sequence[int]) -> np.ndarray:
    """The tensor of ``torch._utils._rebuild_tensor``, C-contiguous: no more values than its storage has."""
    numbers = [offset, *size, *stride]
    if not all(type(number) is int and 0 <= number <= len(storage) for number in numbers) or len(size) > 32:
        raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)!r:.80}")
    count = 1
    for length in size:
        count *= length
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if count > len(storage) or (count and last >= len(storage)):
        raise pickle.UnpicklingError(f"a tensor of {count} values on a storage of {len(storage)}")
    steps = [step * storage.itemsize for step in stride]
    view = (
        np.lib.stride_tricks.as_strided(storage[offset:], size, steps)
        if count
        else np.empty(size, storage.dtype)
    )
    return np.ascontiguousarray(view).reshape(size)
