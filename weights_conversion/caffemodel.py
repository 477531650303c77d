"""Caffe's weight files: ``.caffemodel`` in the current, the V1 and the V0 layout, and ``.caffemodel.h5``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
from torch import Tensor, nn

from weights_conversion import caffe_pb2, hdf5
from weights_conversion.files import atomic_path
from weights_conversion.model_layers import CaffeLayerView, caffe_layers, detached
from weights_conversion.upgrade import V0_TYPES, V1_TYPES
from weights_conversion.wire import LEN, Field, WireFile, blob_field, length_prefix, open_wire

# Field numbers. NetParameter:
_NET_NAME, _NET_V1_LAYERS, _NET_LAYER = 1, 2, 100
# Those of LayerParameter, V1LayerParameter, and V0LayerParameter, which stands inside the second.
_BLOBS = 7
_FIELDS = {1: "name", 2: "type", 3: "bottom", 4: "top", _BLOBS: "blobs"}
_V1_FIELDS = {1: "V0", 2: "bottom", 3: "top", 4: "name", 5: "V1 type", 6: "blobs"}
_V0_FIELDS = {1: "name", 2: "V0 type", 50: "blobs"}


@dataclass(frozen=True, eq=False)
class CaffeLayer:
    """One layer of a weight file.

    ``blobs`` are float32 arrays in Caffe's order (weight, bias, …), in the file's shapes. ``legacy[i]`` says
    that blob i has the old shape (num, channels, height, width), where a bias of n is 1×1×1×n and an
    inner product's weight 1×1×n×k. ``type`` is the current name also for old files; HDF5 files hold no types,
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
    v0, number = False, 0
    for field in file.fields(0, file.size, ""):
        if field.number == _NET_NAME:
            file.expect(field, LEN, "")
            name = file.name(field, field.stop - field.start, "")
        elif field.number in (_NET_LAYER, _NET_V1_LAYERS):
            if layout not in (None, field.number):
                raise file.error("", f"both V1 and current layers, at byte {field.tag_at}")
            layout = field.number
            number += 1
            what = f"layer number {number} (at byte {field.tag_at})"
            parts = list(_parts(file, field, _V1_FIELDS if layout == _NET_V1_LAYERS else _FIELDS, what))
            v0 = v0 or any(kind == "V0 type" for kind, _ in parts)
            _add_layer(layers, _read_layer(file, parts, what), file)
    if not layers:
        raise file.error("", "no layers: not a .caffemodel")
    form = f"Caffe binary, V{0 if v0 else 1} layout" if layout == _NET_V1_LAYERS else "Caffe binary"
    return CaffeModel(name, layers, form, _rounding(file.doubles))


def _parts(file: WireFile, field: Field, known: Mapping[int, str], what: str) -> Iterator[tuple[str, Field]]:
    """The fields of a layer that are read, each with what it is; those of a V0 layer stand in one of them."""
    file.expect(field, LEN, what)
    for part in file.fields(field.start, field.stop, what):
        kind = known.get(part.number)
        if kind == "V0":
            yield from _parts(file, part, _V0_FIELDS, what)
        elif kind is not None:
            yield kind, part


def _read_layer(file: WireFile, parts: list[tuple[str, Field]], what: str) -> CaffeLayer:
    texts: dict[str, list[str]] = {"name": [], "type": [], "bottom": [], "top": []}
    blob_fields, size = [], 0
    for kind, part in parts:
        if kind == "blobs":
            blob_fields.append(part)
        elif kind == "V1 type":
            number = file.number(part, what)
            texts["type"].append(V1_TYPES.get(number, f"V1LayerType{number}" if number else ""))
        else:
            file.expect(part, LEN, what)
            size += part.stop - part.start
            text = file.name(part, size, what)
            if kind == "V0 type":
                kind, text = "type", V0_TYPES.get(text, text)
            texts[kind].append(text)
    name = _last(texts["name"])
    if blob_fields and not name:
        raise file.error(what, "blobs but no name")
    blobs = [
        file.blob(part, f"layer {name!r} blob {index} (at byte {part.tag_at})")
        for index, part in enumerate(blob_fields)
    ]
    values, legacy = tuple(blob.values for blob in blobs), tuple(blob.legacy for blob in blobs)
    bottoms, tops = tuple(texts["bottom"]), tuple(texts["top"])
    return CaffeLayer(name, _last(texts["type"]), bottoms, tops, values, legacy)


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
