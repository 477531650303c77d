"""caffe-tensorflow's ``.npy``: a pickled dict of layers, in each ``weights`` and ``biases``, under Caffe's names.

Its first releases wrote a list of the two, as ``vgg16.npy`` of tensorflow-vgg has them.
"""

from __future__ import annotations

import os

import torch

from weights_conversion import guard
from weights_conversion.errors import CaffeFileError, InputError
from weights_conversion.vgg16_files import ForeignLayers, Layers, of_tensorflow

MAGIC = b"\x93NUMPY"
_BLOBS = {"weights": "weight", "biases": "bias", "0": "weight", "1": "bias"}


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
    return of_tensorflow(layers, form="VGG16 of caffe-tensorflow (BGR)", order="BGR", where=where)
