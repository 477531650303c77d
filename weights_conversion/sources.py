"""Initial weights: the files that people have, where they come from, and PyTorch's VGG16 files as Caffe layers.

The papers start from ImageNet weights that Caffe wrote. Their links die; two files of the PyTorch world hold the
same network and still live:

- torchvision's ``VGG16_Weights.IMAGENET1K_FEATURES``, layers ``features.0`` to ``features.28``; its ``classifier``
  is filled with NaN.
- the SSD project's ``vgg16_reducedfc.pth``, layers ``0`` to ``28`` and the fc-reduced fc6 and fc7 as ``31``, ``33``.

Both were ported from Caffe for RGB input: conv1_1's input channels stand in the opposite order, and that is all.
The scale is Caffe's, too: torchvision documents mean (0.48235, 0.45882, 0.40784) and std 1/255 on images in 0–1,
so that the net sees (x/255 − mean) / (1/255) = x − 255·mean, colours of 0–255 less (123, 117, 104); the SSD
project subtracts these means from 0–255 and then turns BGR into RGB. Nothing is to be divided, so a conversion
only moves values and is exact to the bit in both directions.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from weights_conversion.errors import CaffeFileError
from weights_conversion.pth import read_pth

# By the file's name: what is known of it. Nobody published hashes of the Caffe files.
KNOWN_FILES = {
    "vgg16_20M.caffemodel": "VGG16 with fc6, fc7 of 1024 outputs, of the DeepLab-LargeFOV release; SEC starts here",
    "vgg16_20M_mc.caffemodel": "vgg16_20M with fc6 and fc7 once per ASPP branch, of the DSRG release",
    "init.caffemodel": "ResNet-101 of the DeepLab-v2 release, before training on VOC",
    "vgg16_features-amdegroot-88682ab5.pth": "torchvision, VGG16_Weights.IMAGENET1K_FEATURES",
    "vgg16_reducedfc.pth": "the SSD project (amdegroot/ssd.pytorch), VGG16 with fc6, fc7 of 1024 outputs",
}

# index in `features` (a ReLU follows each convolution, a pooling each stage) -> Caffe's name
_FEATURES = {
    index: f"conv{stage}_{position}"
    for stage, indices in enumerate(((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)), start=1)
    for position, index in enumerate(indices, start=1)
}
_REDUCED_FC = {31: "fc6", 33: "fc7"}
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8})\.pth")


@dataclass(frozen=True)
class TorchLayers:
    """Layers of a ``.pth`` under Caffe's names, tensors by name; what the file is; what was done to its values."""

    layers: dict[str, dict[str, Tensor]]
    form: str
    changes: list[str]


def read_torch_layers(path: str | os.PathLike[str]) -> TorchLayers:
    """Read a state dict that ``torch.save`` wrote: one of the two VGG16 files, or of a model of ours.

    Raises ``CaffeFileError`` (a ``ValueError``) for what ``read_pth`` refuses, for anything but a flat dict of
    tensors, for keys of another net, and for torchvision's VGG16 weights of its own training
    (``IMAGENET1K_V1``), which expect images on another scale.
    """
    content = read_pth(path)
    where = os.fspath(path)
    if not isinstance(content, dict) or not content:
        raise CaffeFileError(f"{where}: holds a {type(content).__name__}, expected a state dict of tensors")
    named: dict[str, dict[str, Tensor]] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CaffeFileError(
                f"{where}: {str(key)[:60]!r} is a {type(value).__name__}, expected a state dict of tensors"
            )
        layer, _, blob = key.rpartition(".")
        named.setdefault(layer, {})[blob] = value
    if "conv1_1" in named or "fc1_voc12_c0" in named:
        return TorchLayers(named, "PyTorch state dict with Caffe's layer names", [])
    if "features.0" in named:
        _refuse_other_training(named, where)
        names = {f"features.{index}": name for index, name in _FEATURES.items()}
        form = "torchvision VGG16, features (RGB)"
    elif "0" in named and "31" in named:
        names = {str(index): name for index, name in (_FEATURES | _REDUCED_FC).items()}
        form = "SSD's vgg16_reducedfc (RGB)"
    else:
        raise CaffeFileError(
            f"{where}: neither torchvision's VGG16 features, nor SSD's vgg16_reducedfc, nor Caffe's layer names; "
            f"its keys are {', '.join(map(repr, list(content)[:3]))}, …"
        )
    layers = {names.get(name, name): blobs for name, blobs in named.items()}
    first = layers["conv1_1"]
    weight = first.get("weight")
    if weight is None or weight.dim() != 4 or weight.shape[1] != 3:
        raise CaffeFileError(f"{where}: the first convolution does not read three channels")
    layers["conv1_1"] = {**first, "weight": weight.flip(1)}
    renamed = ", ".join(f"{name} -> {names[name]}" for name in named if name in names)
    return TorchLayers(
        layers, form, [f"named as in Caffe: {renamed}", "conv1_1: input channels from RGB to BGR"]
    )


def _refuse_other_training(named: dict[str, dict[str, Tensor]], where: str) -> None:
    for name, blobs in named.items():
        if name.startswith("classifier.") and any(_any_finite(tensor) for tensor in blobs.values()):
            raise CaffeFileError(
                f"{where}: {name} holds numbers, so these are not VGG16_Weights.IMAGENET1K_FEATURES, whose classifier "
                "is NaN; torchvision's own training (IMAGENET1K_V1) expects images divided by their spread, not Caffe's"
            )


def _any_finite(tensor: Tensor) -> bool:
    # a look at the beginning: the classifier is nine tenths of the file
    return bool(torch.isfinite(tensor.reshape(-1)[:1000]).any())


def known_as(path: str | os.PathLike[str], sha256: str) -> str:
    """What is known of a file by its name, and whether its hash is the one that PyTorch files carry in theirs."""
    name = Path(path).name
    text = KNOWN_FILES.get(name, "")
    if stated := _HASH_IN_NAME.search(name):
        agrees = sha256.startswith(stated[1])
        text += (
            f"{'; ' * bool(text)}its SHA-256 {'is' if agrees else 'is NOT'} the published one, {stated[1]}…"
        )
    return text
