"""Weights as NumPy's ``.npz``: one array per blob, under the names of our safetensors (``conv1_1.weight``), or those of
Frossard's ``vgg16_weights.npz`` (``conv1_1_W``, ``conv1_1_b``).
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from typing import IO

import numpy as np
import torch
from torch import Tensor

from weights_conversion.errors import CaffeFileError, line_of
from weights_conversion.files import atomic_path
from weights_conversion.pth import check_directory
from weights_conversion.vgg16_files import ForeignLayers, Layers, of_tensorflow
from weights_conversion.wire import open_wire

MAGIC = b"PK\x03\x04"
_FROSSARD = {"W": "weight", "b": "bias"}


def is_npz(head: bytes) -> bool:
    """Whether a zip's first member is an array."""
    length = int.from_bytes(head[26:28], "little")
    return head[30 : 30 + length].endswith(b".npy")


def write_npz(tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write tensors by name as float32; the file appears whole or not at all."""
    arrays = {name: tensor.detach().cpu().float().numpy() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_npz(path: str | os.PathLike[str]) -> ForeignLayers:
    """The layers of a ``.npz`` of ``np.savez``, which compresses nothing.

    Raises ``CaffeFileError`` for a damaged file, a name without a blob's, and values that are no floating point.
    """
    layers: Layers = {}
    forms: set[str] = set()
    with open_wire(path) as file:
        check_directory(file)
        try:
            with zipfile.ZipFile(file.path) as archive:
                for member in archive.infolist():
                    name = member.filename.removesuffix(".npy")
                    parts = re.fullmatch(r"(.+)(?:\.([^.]+)|_([Wb]))", name, re.DOTALL)
                    if member.compress_type != zipfile.ZIP_STORED or member.file_size > file.size:
                        raise file.error(name[:80], "compressed: np.savez, without compression, is read")
                    if parts is None:
                        raise file.error(name[:80], "expected names like conv1_1.weight or conv1_1_W")
                    with archive.open(member) as stream:
                        values = _array(stream, member.file_size)
                    if values.dtype.kind != "f":
                        raise file.error(name[:80], f"{values.dtype}, expected floating point")
                    blob = parts[2] or _FROSSARD[parts[3]]
                    forms.add("Frossard" if parts[3] else "")
                    layers.setdefault(parts[1], {})[blob] = torch.from_numpy(values.astype(np.float32))
        except CaffeFileError:
            raise
        except Exception as error:  # ValueError, EOFError, KeyError, NotImplementedError, …
            raise file.error("", f"damaged .npz file: {line_of(error, 200)}") from error
    if not layers:
        raise CaffeFileError(f"{os.fspath(path)}: no arrays")
    if forms == {"Frossard"}:
        form = "VGG16 of Frossard's vgg16_weights.npz (RGB)"
        return of_tensorflow(layers, form=form, order="RGB", where=os.fspath(path))
    return ForeignLayers(layers, "NumPy .npz", [])


def _array(stream: IO[bytes], size: int) -> np.ndarray:
    """An array of exactly the bytes that are left of its member, whatever its header claims."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    data = stream.read(size)
    if dtype.hasobject:
        raise ValueError("Python objects")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
