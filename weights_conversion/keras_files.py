"""VGG16 as Keras keeps it, in HDF5.

Keras 1 and 2 (``vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5``): one group per layer, in it ``block1_conv1_W_1:0``
and ``block1_conv1_b_1:0``, or ``block1_conv1/kernel:0`` and ``bias:0``; a whole model has them in ``model_weights``.
Keras 3 (``.weights.h5``): ``layers/block1_conv1/vars/0`` (kernel) and ``1`` (bias); TensorFlow 2.12 to 2.15 says
``_layer_checkpoint_dependencies`` for ``layers``. In both, layers that nobody named are ``conv2d``, ``conv2d_1``, …, in
the net's order, from whatever number. A model beside its optimizer has that one's values, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

import torch

from weights_conversion.errors import CaffeFileError
from weights_conversion.hdf5 import HDF5Reader
from weights_conversion.vgg16_files import CONVOLUTIONS, KERAS, ForeignLayers, Layers, as_caffe

_ROOTS = ("model_weights", "layers", "_layer_checkpoint_dependencies")
_VARIABLE = re.compile(r"(?:.*_)?(W|kernel|b|bias)(?:_\d+)?(?::0)?")
_UNNAMED = re.compile(r"conv2d(?:_(\d+))?")
_OPTIMIZERS = ("optimizer", "optimizer_weights")
_BLOBS = {"W": "weight", "kernel": "weight", "b": "bias", "bias": "bias", "0": "weight", "1": "bias"}


def is_keras(root_names: Iterable[str]) -> bool:
    """Whether an HDF5 file with these names at its root is one of Keras'."""
    return any(name in _ROOTS or name in KERAS for name in root_names)


def read_keras(path: str | os.PathLike[str]) -> ForeignLayers:
    """The layers of a VGG16 of Keras under Caffe's names.

    Raises ``CaffeFileError`` for what cannot be read, for another net, and for kernels in Theano's order of axes.
    """
    file, where = HDF5Reader(path), os.fspath(path)
    layers: Layers = {}
    new_layout = False
    for full in file.float_arrays():
        *parents, name = full.strip("/").split("/")
        if parents and parents[0] in _OPTIMIZERS:
            continue
        if parents[-1:] == ["vars"] and name in _BLOBS:
            new_layout = True
            layer, blob = parents[-2], _BLOBS[name]
        else:
            variable = _VARIABLE.fullmatch(name)
            layer = next(
                (parent for parent in parents if parent in KERAS or _UNNAMED.fullmatch(parent)),
                "/".join(parents),
            )
            blob = _BLOBS[variable[1]] if variable else name
        if blob in layers.get(layer, {}):
            raise file.error(full, f"a second {blob} of layer {layer}; expected one VGG16 in the file")
        layers.setdefault(layer, {})[blob] = torch.from_numpy(file.floats(full))
    unnamed = sorted(
        (match for name in layers if (match := _UNNAMED.fullmatch(name))),
        key=lambda match: int(match[1] or 0),
    )
    if len(unnamed) > len(CONVOLUTIONS) or any(re.fullmatch(r"block\d_conv4", name) for name in layers):
        raise CaffeFileError(
            f"{where}: more than 13 convolutions: VGG19 or another net of Keras; expected VGG16"
        )
    names = KERAS | {match[0]: name for match, name in zip(unnamed, CONVOLUTIONS, strict=False)}
    names = {name: caffe for name, caffe in names.items() if name in layers} if unnamed else names
    first = next(
        (
            layers[name].get("weight")
            for name, caffe in names.items()
            if caffe == "conv1_1" and name in layers
        ),
        None,
    )
    if first is not None and (first.dim() != 4 or tuple(first.shape[:3]) != (3, 3, 3)):
        raise CaffeFileError(
            f"{where}: the first convolution's kernel has the shape {tuple(first.shape)}; expected (3, 3, 3, outputs), "
            "TensorFlow's order of axes"
        )
    form = f"VGG16 of Keras {'3' if new_layout else '1 or 2'} (BGR)"
    return as_caffe(layers, names, form=form, order="BGR", where=where, transpose=True)
