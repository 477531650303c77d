"""VGG16 of the ImageNet challenge as the world outside Caffe holds it: whose layer is whose, and is it really that net.

The papers start from weights that Caffe wrote. Their links die; the same numbers live on in other forms, which differ
in names, in the order of axes, and in conv1_1's input channels:

===========================  =====================================  ==========================  ==================
form                         layers                                 convolution weights         channels of conv1_1
===========================  =====================================  ==========================  ==================
torchvision, SSD (PyTorch)   ``features.0`` … ``28``; ``0`` … ``28``  outputs, inputs, rows, cols  RGB
ONNX of torchvision, MXNet   ``features.0`` …; ``vgg0_conv0`` …     outputs, inputs, rows, cols  RGB
Keras 1, 2 and 3             ``block1_conv1`` …; ``conv2d`` …       rows, cols, inputs, outputs  BGR
caffe-tensorflow's ``.npy``  Caffe's                                rows, cols, inputs, outputs  BGR
Frossard's ``.npz``          Caffe's, then ``_W`` and ``_b``        rows, cols, inputs, outputs  RGB
===========================  =====================================  ==========================  ==================

Keras keeps Caffe's order: its ``preprocess_input`` turns RGB into BGR before it subtracts the mean. The scale is
Caffe's in all of them, 0–255 less the mean. A conversion moves values alone, so it is exact to the bit both ways.

Nets of that form were also trained anew, on images in 0–1 (torchvision's IMAGENET1K_V1, MXNet's in the ONNX model zoo).
They would start a training from features of the wrong size. So where conv1_1 has its 64 outputs its first filter has to
be the published one, and its channels are taken in the order in which it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weights_conversion.errors import CaffeFileError

CONVOLUTIONS = tuple(
    f"conv{stage}_{index}"
    for stage, count in enumerate((2, 2, 3, 3, 3), start=1)
    for index in range(1, count + 1)
)
# index in torchvision's `features`: a ReLU follows each convolution, a pooling each stage
FEATURES = dict(zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), CONVOLUTIONS, strict=True))
REDUCED_FC = {31: "fc6", 33: "fc7"}  # SSD's, after `features`
KERAS = {re.sub(r"conv(\d)_(\d)", r"block\1_conv\2", name): name for name in CONVOLUTIONS}

# conv1_1, filter 0, (B, G, R) x 3 x 3, of Simonyan and Zisserman's release (CC BY 4.0)
_PUBLISHED = torch.tensor(
    [
        [0.42947, 0.37347, -0.06136, 0.27477, 0.03868, -0.36722, -0.05747, -0.26225, -0.35010],
        [0.55038, 0.44007, -0.08139, 0.34574, 0.04063, -0.45350, -0.05863, -0.33067, -0.48503],
        [0.48002, 0.40855, -0.06515, 0.31048, 0.05020, -0.40338, -0.05087, -0.28523, -0.41852],
    ]
).reshape(3, 3, 3)
_PUBLISHED_OUTPUTS, _ROUNDING = 64, 1e-3  # the rounding of float16 as well

Layers = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class ForeignLayers:
    """Layers of a file under Caffe's names, tensors by name; what the file is; what was done to its values."""

    layers: Layers
    form: str
    changes: list[str]


def as_caffe(
    layers: Layers, names: Mapping[str, str], *, form: str, order: str, where: str, transpose: bool = False
) -> ForeignLayers:
    """The layers of a VGG16 as Caffe has them.

    Args:
        layers: as the file names them, ``weight`` and ``bias`` each. Those not in ``names`` keep their name and values.
        names: the file's name of a layer -> Caffe's.
        form: what the file is, for reports.
        order: of conv1_1's input channels as the form's authors have it, ``RGB`` or ``BGR``; where conv1_1 has the
            published number of outputs its values decide.
        where: the file, for errors.
        transpose: convolution weights are (rows, columns, inputs, outputs).

    Raises:
        CaffeFileError: a convolution is missing or does not follow the one before; conv1_1 is not the published one.
    """
    found: Layers = {}
    for name, blobs in layers.items():
        caffe = names.get(name, name)
        weight = blobs.get("weight")
        if transpose and name in names and weight is not None and weight.dim() == 4:
            blobs = {**blobs, "weight": weight.permute(3, 2, 0, 1).contiguous()}
        found[caffe] = blobs
    original = {caffe: name for name, caffe in names.items()}
    inputs = 3
    for name in CONVOLUTIONS:
        weight = found.get(name, {}).get("weight")
        if weight is None:
            raise CaffeFileError(
                f"{where}: {form}, but it has no weights for {original.get(name, name)} ({name}); VGG19 and VGG16 with "
                "batch norms are other nets"
            )
        if name == "conv1_1" and (weight.dim() != 4 or weight.shape[1] != 3):
            raise CaffeFileError(f"{where}: the first convolution does not read three channels")
        if weight.dim() != 4 or tuple(weight.shape[1:]) != (inputs, 3, 3):
            raise CaffeFileError(
                f"{where}: layer {name!r}, blob 'weight': shape {tuple(weight.shape)} in the file, expected "
                f"(outputs, {inputs}, 3, 3) after the layer before it"
            )
        inputs = weight.shape[0]
        bias = found[name].get("bias")
        if bias is None or tuple(bias.shape) != (inputs,):
            raise CaffeFileError(
                f"{where}: layer {name!r}, blob 'bias': {'none' if bias is None else f'shape {tuple(bias.shape)}'} in "
                f"the file, expected ({inputs},), one for each output"
            )
    changes = []
    if any(name != caffe for name, caffe in names.items() if name in layers):
        renamed = (f"{name} -> {names[name]}" for name in layers if names.get(name, name) != name)
        changes.append("named as in Caffe: " + ", ".join(renamed))
    if transpose:
        changes.append("convolutions: axes from rows, columns, inputs, outputs to Caffe's")
    first = found["conv1_1"]
    seen = _order_of(first["weight"], where)
    if (seen or order) == "RGB":
        found["conv1_1"] = {**first, "weight": first["weight"].flip(1)}
        changes.append("conv1_1: input channels from RGB to BGR")
    if seen and seen != order:
        changes.append(f"conv1_1: by its values the input channels stand as {seen}, not as {order}")
    return ForeignLayers(found, form, changes)


def of_tensorflow(layers: Layers, *, form: str, order: str, where: str) -> ForeignLayers:
    """`as_caffe` for layers under Caffe's names in TensorFlow's order of axes, changed in place."""
    names = {name: name for name in CONVOLUTIONS}
    for name in list(layers):
        weight = layers[name].get("weight")
        if weight is not None and weight.dim() == 4:  # DeepLab's fc6 and fc7
            names[name] = name
        elif name in ("fc6", "fc7"):  # of the classifier, whose fc6 reads 25088 values: not these nets' fc6
            layers[f"{name} (classifier)"] = layers.pop(name)
    return as_caffe(layers, names, form=form, order=order, where=where, transpose=True)


def _order_of(weight: Tensor, where: str) -> str | None:
    """The order of conv1_1's input channels by the published values; None for another number of outputs."""
    if weight.shape[0] != _PUBLISHED_OUTPUTS:
        return None
    first = weight[0].float()
    for order, channels in (("BGR", first), ("RGB", first.flip(0))):
        if _is_published(channels):
            return order
        scale = float((channels * _PUBLISHED).sum() / _PUBLISHED.square().sum())
        if scale and _is_published(channels / scale):
            raise CaffeFileError(
                f"{where}: conv1_1 is {scale:.4g} times the published one, so that the net expects images on another "
                "scale; expected weights for colours of 0-255 less the mean"
            )
    raise CaffeFileError(
        f"{where}: conv1_1 is not that of the published VGG16, in neither order of channels: trained anew, as "
        "torchvision's IMAGENET1K_V1 and the ONNX model zoo's are on images divided by their spread, or changed; "
        "expected the weights of Simonyan and Zisserman's release"
    )


def _is_published(channels: Tensor) -> bool:
    return bool(((channels - _PUBLISHED).abs() <= _ROUNDING).all())
