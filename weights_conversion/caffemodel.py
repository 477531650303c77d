"""Caffe's weight files: ``.caffemodel`` in the current and the V1 layout, and ``.caffemodel.h5``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
from torch import Tensor, nn

from weights_conversion import caffe_pb2, hdf5
from weights_conversion.files import atomic_path
from weights_conversion.model_layers import CaffeLayerView, caffe_layers, detached
from weights_conversion.upgrade import V1_TYPES
from weights_conversion.wire import LEN, Field, WireFile, blob_field, length_prefix, open_wire

# Field numbers. NetParameter:
_NET_NAME, _NET_V1_LAYERS, _NET_LAYER = 1, 2, 100
# LayerParameter: name, type, bottom, top; blobs. V1LayerParameter: bottom, top, name, type; blobs.
_HEADER, _BLOBS = {1, 2, 3, 4}, 7
_V1_HEADER, _V1_TYPE, _V1_BLOBS = {2, 3, 4}, 5, 6
_V0_LAYER = 1  # of V1LayerParameter: the layout before V1


@dataclass(frozen=True, eq=False)
class CaffeLayer:
    """One layer of a weight file.

    ``blobs`` are float32 arrays in Caffe's order (weight, bias, …), in the file's shapes. ``legacy[i]`` says
    that blob i has the old shape (num, channels, height, width), where a bias of n is 1×1×1×n and an
    inner product's weight 1×1×n×k. ``type`` is the current name also for V1 files; HDF5 files hold no types,
    bottoms and tops.
    """

    name: str
    type: str
    bottoms: tuple[str, ...] = ()
    tops: tuple[str, ...] = ()
    blobs: tuple[np.ndarray, ...] = ()
    legacy: tuple[bool, ...] = ()


@dataclass(frozen=True, eq=False)
class CaffeModel:
    """A weight file: the net's name ("" in HDF5 files) and its layers by name, in the file's order.

    ``form`` names the file's layout, ``changes`` says what reading did to its values.
    """

    name: str
    layers: dict[str, CaffeLayer]
    form: str = ""
    changes: tuple[str, ...] = ()


def read_caffemodel(path: str | os.PathLike[str]) -> CaffeModel:
    """Read a weight file of Caffe; its form is told from its first bytes, not from its name.

    Layers without blobs are kept. Of several layers of one name (Caffe allows them for different phases)
    the one with blobs is kept. Values stored as doubles become float32.

    Raises ``CaffeFileError`` (a ``ValueError``) if the file cannot be opened, is damaged, is of another
    kind, has no layers, or has two layers with blobs under one name.
    """
    with open_wire(path) as file:
        if not file.head.startswith(hdf5.MAGIC):
            return _read_binary(file)
    return _read_hdf5(path)


def _read_binary(file: WireFile) -> CaffeModel:
    file.check_binary(".caffemodel")
    name = ""
    layers: dict[str, CaffeLayer] = {}
    layout = None
    number = 0
    for field in file.fields(0, file.size, ""):
        if field.number == _NET_NAME:
            file.expect(field, LEN, "")
            name = file.name(field, field.stop - field.start, "")
        elif field.number in (_NET_LAYER, _NET_V1_LAYERS):
            if layout not in (None, field.number):
                raise file.error("", f"both V1 and current layers, at byte {field.tag_at}")
            layout = field.number
            number += 1
            layer = _read_layer(file, field, f"layer number {number} (at byte {field.tag_at})")
            _add_layer(layers, layer, file)
    if not layers:
        raise file.error("", "no layers: not a .caffemodel")
    form = "Caffe binary, V1 layout" if layout == _NET_V1_LAYERS else "Caffe binary"
    return CaffeModel(name, layers, form, _rounding(file.doubles))


def _read_layer(file: WireFile, field: Field, what: str) -> CaffeLayer:
    file.expect(field, LEN, what)
    v1 = field.number == _NET_V1_LAYERS
    header_numbers, blobs_number = (_V1_HEADER, _V1_BLOBS) if v1 else (_HEADER, _BLOBS)
    texts: dict[int, list[str]] = {number: [] for number in header_numbers}
    blob_fields, size, number = [], 0, 0
    for part in file.fields(field.start, field.stop, what):
        if part.number == blobs_number:
            blob_fields.append(part)
        elif v1 and part.number == _V1_TYPE:
            number = file.number(part, what)
        elif part.number in header_numbers:
            file.expect(part, LEN, what)
            size += part.stop - part.start
            texts[part.number].append(file.name(part, size, what))
        elif v1 and part.number == _V0_LAYER:
            raise file.error(
                what, "a layer in the V0 layout; upgrade the file with Caffe's upgrade_net_proto_binary"
            )
    name_number, bottom_number, top_number = (4, 2, 3) if v1 else (1, 3, 4)
    type_ = V1_TYPES.get(number, f"V1LayerType{number}" if number else "") if v1 else _last(texts[2])
    name = _last(texts[name_number])
    if blob_fields and not name:
        raise file.error(what, "blobs but no name")
    bottoms, tops = tuple(texts[bottom_number]), tuple(texts[top_number])
    blobs = [
        file.blob(part, f"layer {name!r} blob {index} (at byte {part.tag_at})")
        for index, part in enumerate(blob_fields)
    ]
    values, legacy = tuple(blob.values for blob in blobs), tuple(blob.legacy for blob in blobs)
    return CaffeLayer(name, type_, bottoms, tops, values, legacy)


def _last(texts: list[str]) -> str:
    """Where a field that is not repeated stands several times, the last one counts."""
    return texts[-1] if texts else ""


def _add_layer(layers: dict[str, CaffeLayer], layer: CaffeLayer, file: WireFile) -> None:
    known = layers.get(layer.name)
    if known is None or not known.blobs:
        layers[layer.name] = layer
    elif layer.blobs:
        raise file.error(f"layer {layer.name!r}", "occurs twice with blobs")


def _read_hdf5(path: str | os.PathLike[str]) -> CaffeModel:
    layers = {}
    file = hdf5.HDF5Reader(path, "data")
    for name in file.groups("/data"):
        blobs = tuple(file.blobs(f"/data/{name}"))
        layers[name] = CaffeLayer(name, "", blobs=blobs, legacy=(False,) * len(blobs))
    if not layers:
        raise file.error("/data", "no layers")
    return CaffeModel("", layers, "Caffe HDF5", _rounding(file.doubles))


def _rounding(doubles: int) -> tuple[str, ...]:
    return (f"{doubles} blobs of doubles rounded to float32",) if doubles else ()


def write_caffemodel(model: nn.Module | Mapping[str, CaffeLayerView], path: str | os.PathLike[str]) -> None:
    """Write the weights of ``model``, or layers, as float32 in Caffe's current layout, or as HDF5 if ``path`` ends in
    .h5.

    Layers, their names, types and blobs are those of ``caffe_layers(model)``. The file appears whole or not
    at all. Raises ``ValueError`` for a model without blobs and for a layer name that HDF5 cannot hold.

    >>> import tempfile
    >>> net = nn.Sequential()
    >>> net.add_module("conv", nn.Conv2d(3, 4, 1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_caffemodel(net, f"{folder}/net.caffemodel")
    ...     layers = read_caffemodel(f"{folder}/net.caffemodel").layers
    >>> [(name, layer.blobs[0].shape) for name, layer in layers.items()]
    [('conv', (4, 3, 1, 1))]
    """
    views = caffe_layers(model) if isinstance(model, nn.Module) else dict(model)
    if not views:
        raise ValueError(f"{type(model).__name__} has no layers with blobs to write")
    with atomic_path(path) as temporary:
        if temporary.suffix == ".h5":
            _write_hdf5(views, temporary)
        else:
            with temporary.open("wb") as file:
                _write_binary(str(getattr(model, "name", "")), views, file)


def _write_binary(net_name: str, views: dict[str, CaffeLayerView], file: BinaryIO) -> None:
    # Lengths come first on the wire; the floats go out from where they are, one layer at a time.
    file.write(caffe_pb2.NetParameter(name=net_name).SerializeToString())
    for name, view in views.items():
        message = caffe_pb2.LayerParameter(name=name, type=view.type)
        header = message.SerializeToString()
        blobs = [blob_field(_BLOBS, _float32(tensor)) for tensor in view.tensors.values()]
        length = len(header) + sum(len(head) + floats.nbytes for head, floats in blobs)
        file.write(length_prefix(_NET_LAYER, length) + header)
        for head, floats in blobs:
            file.write(head)
            file.write(floats.data)


def _write_hdf5(views: dict[str, CaffeLayerView], path: Path) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for name, view in views.items():
            if "/" in name or name in ("", "."):
                raise ValueError(f"layer name {name!r} cannot be written as HDF5")
            group = data.create_group(name)
            for index, tensor in enumerate(view.tensors.values()):
                group.create_dataset(str(index), data=_float32(tensor))


def _float32(tensor: Tensor) -> np.ndarray:
    return detached(tensor).float().numpy()
