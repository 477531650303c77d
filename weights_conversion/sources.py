"""Initial weights: the files that people have, what they are, and their layers under Caffe's names.

What a file is shows in its content alone: :mod:`weights_conversion.vgg16_files` and
:mod:`weights_conversion.resnet101_files` know the names. Of the PyTorch world these are

- torchvision's ``VGG16_Weights.IMAGENET1K_FEATURES``, layers ``features.0`` to ``features.28``; its ``classifier``
  is filled with NaN and left out.
- the SSD project's ``vgg16_reducedfc.pth``, layers ``0`` to ``28`` and the fc-reduced fc6 and fc7 as ``31``, ``33``;
  without those two it may be ``vgg16().features`` alone.
- kazuto1011's and isht7's DeepLab-v2 ResNet-101.
- state dicts with Caffe's layer names.

Before and between these names may stand what wrappers put there: ``module.``, ``_orig_mod.``, and one attribute of a
larger model, such as ``model.`` or ``backbone.``.

Both VGG16 were ported from Caffe for RGB input: conv1_1's input channels stand in the opposite order, and that is all.
The scale is Caffe's, too: torchvision documents mean (0.48235, 0.45882, 0.40784) and std 1/255 on images in 0–1,
so that the net sees (x/255 − mean) / (1/255) = x − 255·mean, colours of 0–255 less (123, 117, 104); the SSD
project subtracts these means from 0–255 and then turns BGR into RGB. Nothing is to be divided, so a conversion
only moves values and is exact to the bit in both directions.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weights_conversion.errors import CaffeFileError, some
from weights_conversion.keras_files import read_keras
from weights_conversion.kinds import Kind
from weights_conversion.npy_files import read_npy
from weights_conversion.npz_files import read_npz
from weights_conversion.onnx_files import read_onnx
from weights_conversion.pth import read_pth
from weights_conversion.resnet101_files import FIRST_OF_DEEPLAB, deeplab_layers
from weights_conversion.vgg16_files import FEATURES, REDUCED_FC, ForeignLayers, Layers, as_caffe

log = logging.getLogger(__name__)

# By the file's name: what is known of it. Nobody published hashes of the Caffe files.
KNOWN_FILES = {
    "vgg16_20M.caffemodel": "VGG16 with fc6, fc7 of 1024 outputs, of the DeepLab-LargeFOV release; SEC starts here",
    "vgg16_20M_mc.caffemodel": "vgg16_20M with fc6 and fc7 once per ASPP branch, of the DSRG release",
    "init.caffemodel": "ResNet-101 of the DeepLab-v2 release, before training on VOC",
    "vgg16_features-amdegroot-88682ab5.pth": "torchvision, VGG16_Weights.IMAGENET1K_FEATURES",
    "vgg16_reducedfc.pth": "the SSD project (amdegroot/ssd.pytorch), VGG16 with fc6, fc7 of 1024 outputs",
}

_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8})\.pth")


# the entries of a checkpoint that hold the weights in training; beside them may be averages of them (ema, swa, …)
_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "module", "params")
# names under which projects keep another set of the same net's weights, in whatever form
_ANOTHER = re.compile(r"(^|[_.])(ema|swa|averaged?|shadow|polyak|teacher|student)", re.IGNORECASE)


def read_pth_layers(path: str | os.PathLike[str]) -> ForeignLayers:
    """Read a state dict that ``torch.save`` wrote: one of the files named above, or of a model of ours.

    It may be an entry of a checkpoint. Of several sets of weights the one in training is taken (``state_dict``,
    ``model``, …), and a warning names the others.

    Raises ``CaffeFileError`` (a ``ValueError``) for what ``read_pth`` refuses, for anything but a flat dict of
    tensors, for keys of another net, for a checkpoint with several sets of weights of which none says that it is the
    one in training (teacher and student), and for VGG16 weights that are not those of the original, such as
    torchvision's own training (``IMAGENET1K_V1``), which expects images on another scale.
    """
    content, where = read_pth(path), os.fspath(path)
    changes = []
    if isinstance(content, dict) and content.keys() >= {"iteration", "history", "weights_sha256"}:
        weights = Path(path).with_suffix(".safetensors")
        there = f"{weights} has them" if weights.exists() else "its .safetensors, not there, has them"
        raise CaffeFileError(f"{where}: the state of a training snapshot, without weights; {there}")
    if isinstance(content, dict) and (entry := _entry(content, where)) is not None:
        content = content[entry]
        changes.append(f"taken from the checkpoint's entry {entry!r}")
    if not isinstance(content, dict) or not content:
        raise CaffeFileError(f"{where}: holds a {type(content).__name__}, expected a state dict of tensors")
    named: Layers = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CaffeFileError(
                f"{where}: {str(key)[:60]!r} is a {type(value).__name__}, expected a state dict of tensors"
            )
        layer, _, blob = key.rpartition(".")
        named.setdefault(layer, {})[blob] = value
    named = unwrapped(named)
    found = recognised(named, where)
    if found is None and not named.keys().isdisjoint(_CAFFE_NAMES):
        found = ForeignLayers(named, "PyTorch state dict with Caffe's layer names", [])
    if found is None:
        raise CaffeFileError(
            f"{where}: neither torchvision's VGG16 features, nor SSD's vgg16_reducedfc, nor a DeepLab-v2 of kazuto1011 "
            f"or isht7, nor Caffe's layer names; its keys are {', '.join(map(repr, list(content)[:3]))}, …"
        )
    return ForeignLayers(found.layers, found.form, [*changes, *found.changes])


def _entry(content: dict[Any, Any], where: str) -> str | None:
    """The entry of a checkpoint that holds its weights; None where they are not in an entry."""
    sets = {key: value for key, value in content.items() if isinstance(key, str) and _is_state(value)}
    preferred = [key for key in (*_WRAPPERS, *sets) if key in sets]
    if not preferred:  # the error is about the one that is looked for first
        return next((key for key in _WRAPPERS if isinstance(content.get(key), dict)), None)
    chosen = preferred[0]
    names = _names(sets[chosen])
    others = [
        key
        for key, value in content.items()
        if key != chosen
        and isinstance(key, str)
        and isinstance(value, dict | list)
        and (_ANOTHER.search(key) or (key in sets and not names.isdisjoint(_names(value))))
    ]
    if others:
        found = f"{where}: several sets of weights, {some(map(repr, [chosen, *others]))}"
        how = f"torch.save(torch.load(FILE, weights_only=True)[{others[0]!r}], NEW) makes a file of one alone"
        if chosen not in _WRAPPERS:
            raise CaffeFileError(f"{found}, expected one; {how}")
        log.warning("%s; %r is taken; %s", found, chosen, how)
    return chosen


def _names(state: Any) -> set[str]:
    return {str(key).removeprefix("module.") for key in state}


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(one, Tensor) for one in value.values())


_CAFFE_NAMES = ("conv1_1", "fc1_voc12_c0")
# by which the state dicts that are read are told
_TELLING = ("features.0", *FIRST_OF_DEEPLAB, *_CAFFE_NAMES)


def unwrapped(named: Layers) -> Layers:
    """The layers without what wrappers put into their names: DataParallel's ``module``, torch.compile's
    ``_orig_mod``, and the one attribute of a model under which a net that is read stands.

    >>> list(unwrapped({"module.net.features.0": {}, "module.head": {}}))
    ['features.0', 'head']
    """
    plain = {re.sub(r"(?<![^.])(?:module|_orig_mod)\.", "", name): blobs for name, blobs in named.items()}
    prefixes = {
        name.removesuffix(first)
        for name in plain
        for first in _TELLING
        if name == first or name.endswith(f".{first}")
    }
    # several are several nets
    prefix = prefixes.pop() if len(prefixes) == 1 and len(plain) == len(named) else ""
    return {name.removeprefix(prefix): blobs for name, blobs in plain.items()}


def recognised(named: Layers, where: str) -> ForeignLayers | None:
    """The layers under Caffe's names, where their own are those of a PyTorch project; None for all other names.

    Raises ``CaffeFileError`` for a file of a known form that is not the net it looks like.
    """
    if "features.0" in named and "weight" in named["features.0"]:
        _refuse_other_training(named, where)
        names = {f"features.{index}": name for index, name in FEATURES.items()}
        without = {name: blobs for name, blobs in named.items() if not name.startswith(_NAN_LAYERS)}
        found = as_caffe(without, names, form="torchvision VGG16, features (RGB)", order="RGB", where=where)
        if len(without) < len(named):
            found.changes.append("classifier: filled with NaN, as torchvision publishes it, and left out")
        return found
    if "0" in named and "28" in named:
        form = "SSD's vgg16_reducedfc (RGB)" if "31" in named else "torchvision VGG16, features alone (RGB)"
        names = {str(index): name for index, name in (FEATURES | REDUCED_FC).items()}
        return as_caffe(named, names, form=form, order="RGB", where=where)
    return deeplab_layers(named, where)


READERS: dict[Kind, Callable[[Any], ForeignLayers]] = {
    "pth": read_pth_layers,
    "keras": read_keras,
    "onnx": read_onnx,
    "npy": read_npy,
    "npz": read_npz,
}
"""By the kind of file, the reader of layers that are not Caffe's own."""


_NAN_LAYERS = "classifier."


def _refuse_other_training(named: dict[str, dict[str, Tensor]], where: str) -> None:
    for name, blobs in named.items():
        if name.startswith(_NAN_LAYERS) and any(_any_finite(tensor) for tensor in blobs.values()):
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
