"""VGG16 as an ONNX file: the initializers, read off the protobuf's wire without the onnx package.

Constant nodes, which some exporters write in their place, count as initializers. Values may lie in another file
beside it, as torch.onnx.export leaves them (``net.onnx.data``). Layers are told by the initializers'
names, torchvision's (``features.0.weight``) or those of MXNet in the ONNX model zoo (``vgg0_conv0_weight``); under
other names by the order of the 13 ``Conv`` nodes.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weights_conversion.errors import CaffeFileError
from weights_conversion.files import file_sha256, path_inside
from weights_conversion.vgg16_files import CONVOLUTIONS, FEATURES, ForeignLayers, Layers, as_caffe
from weights_conversion.wire import LEN, MAX_AXES, Field, WireFile, open_wire

# onnx.proto: ModelProto, GraphProto, NodeProto, TensorProto
_GRAPH, _OPSET = 7, 8
_NODE, _INITIALIZER = 1, 5
_INPUT, _OUTPUT, _OP_TYPE, _ATTRIBUTE = 1, 2, 4, 5
_TENSOR = 5  # of AttributeProto
_DIMS, _DATA_TYPE, _FLOAT_DATA, _NAME = 1, 2, 4, 8
_RAW_DATA, _DOUBLE_DATA, _EXTERNAL, _LOCATION = 9, 10, 13, 14
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_DTYPES = {1: "<f4", 10: "<f2", 11: "<f8"}  # FLOAT, FLOAT16, DOUBLE
_MOST_NODE = 1 << 16

_ZOO = re.compile(r"vgg\d+_conv(\d+)")


@dataclass
class _Graph:
    tensors: dict[str, Tensor] = field(default_factory=dict)
    convolutions: list[list[str]] = field(default_factory=list)  # inputs of each Conv node
    others: dict[Path, int] = field(
        default_factory=dict
    )  # files beside it that hold values: bytes not yet read


def is_onnx(file: WireFile) -> bool:
    """Whether a file is a ModelProto: like a Caffe solver state it opens with a number, but it has a graph."""
    try:
        numbers = {part.number for part in file.fields(0, file.size, "") if part.wire_type == LEN}
    except CaffeFileError:
        return False
    return _GRAPH in numbers


def read_onnx(path: str | os.PathLike[str]) -> ForeignLayers:
    """The layers of a VGG16 of ONNX under Caffe's names.

    Raises ``CaffeFileError`` for what cannot be read, for values in a file that is not beside it, and for another net.
    """
    graph, where = _Graph(), os.fspath(path)
    with open_wire(path) as file:
        for part in file.fields(0, file.size, "ONNX model"):
            if part.number == _GRAPH:
                file.expect(part, LEN, "graph")
                _read_graph(file, part, graph)
    found = _as_vgg16(graph, where)
    found.changes.extend(f"values from {other.name} (SHA-256 {file_sha256(other)})" for other in graph.others)
    return found


def _as_vgg16(graph: _Graph, where: str) -> ForeignLayers:
    layers: Layers = {}
    for name, tensor in graph.tensors.items():
        layer, kind = _split(name)
        layers.setdefault(layer, {})[kind] = tensor
    names = {f"features.{index}": name for index, name in FEATURES.items()}
    if "features.0" in layers:
        return as_caffe(layers, names, form="torchvision VGG16 as ONNX (RGB)", order="RGB", where=where)
    zoo = {
        name: CONVOLUTIONS[int(match[1])]
        for name in layers
        if (match := _ZOO.fullmatch(name)) and int(match[1]) < 13
    }
    if zoo:
        return as_caffe(layers, zoo, form="VGG16 of the ONNX model zoo (RGB)", order="RGB", where=where)
    if len(graph.convolutions) != len(CONVOLUTIONS):
        raise CaffeFileError(
            f"{where}: an ONNX file with {len(graph.convolutions)} convolutions and none of torchvision's or the model "
            "zoo's names; expected VGG16, which has 13"
        )
    named, layers = {}, {}
    for caffe, (_, *parameters) in zip(CONVOLUTIONS, graph.convolutions, strict=True):
        name = parameters[0] if parameters else caffe
        named[name] = caffe
        layers[name] = {
            blob: graph.tensors[tensor]
            for blob, tensor in zip(("weight", "bias"), parameters, strict=False)
            if tensor in graph.tensors
        }
    return as_caffe(
        layers, named, form="VGG16 as ONNX, by the order of its convolutions (RGB)", order="RGB", where=where
    )


def _split(name: str) -> tuple[str, str]:
    """Layer and blob of an initializer: ``features.0.weight``, ``vgg0_conv0_weight``."""
    match = re.fullmatch(r"(.*)[._](weight|bias)", name)
    return (match[1], match[2]) if match else (name, "values")


def _read_graph(file: WireFile, graph: Field, into: _Graph) -> None:
    for part in file.fields(graph.start, graph.stop, "graph"):
        if part.number == _NODE and part.wire_type == LEN:
            fields = list(file.fields(part.start, part.stop, "node"))
            texts = {
                number: [_text(file, each) for each in fields if each.number == number]
                for number in (_INPUT, _OUTPUT, _OP_TYPE)
            }
            if texts[_OP_TYPE] == ["Conv"]:
                into.convolutions.append(texts[_INPUT])
            elif texts[_OP_TYPE] == ["Constant"]:
                for attribute in (each for each in fields if each.number == _ATTRIBUTE):
                    file.expect(attribute, LEN, "attribute")
                    for each in file.fields(attribute.start, attribute.stop, "attribute"):
                        if each.number == _TENSOR and each.wire_type == LEN:
                            _read_tensor(file, each, into, *texts[_OUTPUT][:1])
        elif part.number == _INITIALIZER:
            file.expect(part, LEN, "initializer")
            _read_tensor(file, part, into)


def _text(file: WireFile, part: Field) -> str:
    file.expect(part, LEN, "name")
    if part.stop - part.start > _MOST_NODE:
        raise file.error("", f"a name of {part.stop - part.start} bytes")
    return file.text(file.read(part.start, part.stop), "name")


def _read_tensor(file: WireFile, tensor: Field, into: _Graph, name: str = "") -> None:
    """Add a tensor of floats, under its own name where none is given; those of other types hold no weights."""
    given, kind, dims = bool(name), 0, list[int]()
    values: list[Field] = []
    elsewhere: dict[str, str] | None = None  # location, offset and length of values in another file
    for part in file.fields(tensor.start, tensor.stop, "initializer"):
        if part.number == _NAME and not given:
            name = _text(file, part)
        elif part.number == _DATA_TYPE:
            kind = file.number(part, "initializer")
        elif part.number == _DIMS:
            dims += file.numbers(part, f"initializer {name!r}")
        elif part.number in (_RAW_DATA, _FLOAT_DATA, _DOUBLE_DATA):
            values.append(part)
        elif part.number == _EXTERNAL:
            file.expect(part, LEN, "external data")
            texts = {
                each.number: _text(file, each) for each in file.fields(part.start, part.stop, "external data")
            }
            elsewhere = {**(elsewhere or {}), texts.get(_KEY, ""): texts.get(_VALUE, "")}
    what = f"initializer {name!r}"
    if kind not in _DTYPES:
        return
    dtype = np.dtype(_DTYPES[kind])
    if len(values) > 1 or any(part.wire_type != LEN for part in values):
        raise file.error(what, "its values are not in one piece")
    if elsewhere is not None:
        into.tensors[name] = _from_beside(file, what, elsewhere, dims, dtype, into.others)
        return
    size = sum(part.stop - part.start for part in values)
    if len(dims) > MAX_AXES or math.prod(dims) * dtype.itemsize != size:
        raise file.error(what, f"shape {tuple(dims[:8])} does not fit its {size} bytes of {dtype}")
    array = (file.values(values[0], dtype) if values else np.empty(0, dtype)).reshape(dims)
    into.tensors[name] = torch.from_numpy(array.astype(dtype.newbyteorder("="), copy=False))


def _from_beside(
    file: WireFile, what: str, place: dict[str, str], dims: list[int], dtype: np.dtype, left: dict[Path, int]
) -> Tensor:
    """Values that lie in another file of the same folder, which must not change while they are in use."""
    other = path_inside(Path(file.path).parent, place.get("location"))
    if other is None or other.is_symlink() or not other.is_file():
        raise file.error(
            what, f"its values are in {place.get('location', '')[:80]!r}, a file beside this one expected"
        )
    offset, length = (place.get(key, "0") for key in ("offset", "length"))
    size = left.setdefault(other, other.stat().st_size)
    wanted = math.prod(dims) * dtype.itemsize
    if (
        len(dims) > MAX_AXES
        or not all(re.fullmatch("[0-9]{1,15}", text) for text in (offset, length))
        or int(length) not in (0, wanted)
        or int(offset) + wanted > other.stat().st_size
        or wanted > size
    ):
        raise file.error(
            what,
            f"shape {tuple(dims[:8])} does not fit its {length[:20]} bytes at {offset[:20]} of {other.name}",
        )
    left[other] -= wanted
    if not wanted:
        return torch.empty(dims, dtype=torch.float32)
    array = np.asarray(np.memmap(other, dtype, "c", int(offset), tuple(dims)))
    return torch.from_numpy(np.require(array, dtype.newbyteorder("="), "A"))
