"""What kind of file a path holds, told from its first bytes as far as they tell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from weights_conversion import hdf5, keras_files, npy_files, npz_files, onnx_files
from weights_conversion.wire import WireFile, open_wire

Kind = Literal["caffemodel", "solverstate", "safetensors", "pth", "keras", "onnx", "npy", "npz", "prototxt"]

_ZIP = b"PK\x03\x04"
_PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch.save before 1.6: a row of pickles


def file_kind(path: str | os.PathLike[str]) -> Kind:
    """The kind of a file: Caffe's weights or solver state (binary or HDF5), safetensors, ``torch.save``, Keras' HDF5,
    ONNX, NumPy's ``.npy`` and ``.npz``, or text.

    Nothing but the kind is checked: the readers do the rest. Raises ``CaffeFileError`` if the file cannot be
    opened or is empty.
    """
    with open_wire(path) as file:
        if file.head.startswith(hdf5.MAGIC):
            return _hdf5_kind(path)
        if file.head.startswith(npz_files.MAGIC) and npz_files.is_npz(file.head):
            return "npz"
        if file.head.startswith((_ZIP, *_PICKLE)):
            return "pth"
        if file.head.startswith(npy_files.MAGIC):
            return "npy"
        if _is_safetensors(file):
            return "safetensors"
        if not file.head:
            raise file.error("", "an empty file")
        if file.is_text():
            return "prototxt"
        # A solver state opens with its iteration, a net with a string: its name or its first layer.
        if file.head[0] == 0x08 and (Path(path).suffix == ".onnx" or onnx_files.is_onnx(file)):
            return "onnx"
        is_state = file.head[0] == 0x08 or Path(path).suffix == ".solverstate"
        return "solverstate" if is_state else "caffemodel"


def _is_safetensors(file: WireFile) -> bool:
    """Such a file opens with the length of its JSON header; in Caffe's files these bytes are no such length."""
    length = int.from_bytes(file.head[:8], "little")
    return Path(file.path).suffix == ".safetensors" or (length <= file.size - 8 and file.head[8:9] == b"{")


def _hdf5_kind(path: str | os.PathLike[str]) -> Kind:
    names = hdf5.root_names(path)
    if "data" not in names and keras_files.is_keras(names):
        return "keras"
    return "solverstate" if "history" in names and "data" not in names else "caffemodel"
