"""caffe-tensorflow's ``.npy``: a pickled dict of layers, in each ``weights`` and ``biases``, under Caffe's names."""

from __future__ import annotations

import os

import torch

from weights_conversion import guard
from weights_conversion.errors import CaffeFileError, InputError
from weights_conversion.vgg16_files import CONVOLUTIONS, ForeignLayers, Layers, as_caffe

MAGIC = b"\x93NUMPY"
_BLOBS = {"weights": "weight", "biases": "bias"}
_HEAD = ("fc6", "fc7")


def read_npy(path: str | os.PathLike[str]) -> ForeignLayers:
    """The layers of a VGG16 that caffe-tensorflow has converted, in Caffe's order of axes.

    Nothing but NumPy arrays and plain containers is unpickled. Raises ``CaffeFileError`` for anything else, for what
    cannot be read, and for another net.
    """
    where = os.fspath(path)
    try:
        content = guard.read_pickle(
            path, most=os.path.getsize(path), expected="a dict of layers with weights and biases", nested=True
        )
    except InputError as error:
        raise CaffeFileError(str(error)) from None
    layers: Layers = {}
    for key, array in content.arrays.items():
        layer, _, name = key.rpartition("/")
        if array.values is None or array.values.dtype.kind != "f":
            raise CaffeFileError(f"{where}: {key}: {array.dtype}, expected floating point")
        blob = _BLOBS.get(name, name)
        layers.setdefault(layer, {})[blob] = torch.from_numpy(array.values)
    if "conv1_1" not in layers:
        raise CaffeFileError(
            f"{where}: no layer conv1_1; its keys are {', '.join(map(repr, list(content.arrays)[:3]))}, …; expected "
            "caffe-tensorflow's VGG16"
        )
    names = {name: name for name in CONVOLUTIONS}
    for name in list(layers):
        weight = layers[name].get("weight")
        if weight is not None and weight.dim() == 4:  # DeepLab's fc6 and fc7
            names[name] = name
        elif name in _HEAD:  # of the classifier, whose fc6 reads 25088 values: not the fc6 of these nets
            layers[f"{name} (classifier)"] = layers.pop(name)
    return as_caffe(
        layers, names, form="VGG16 of caffe-tensorflow (BGR)", order="BGR", where=where, transpose=True
    )
