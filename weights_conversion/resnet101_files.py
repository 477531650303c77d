"""DeepLab-v2's ResNet-101 in the ``.pth`` of two PyTorch projects, under Caffe's names.

Both projects converted the release's .caffemodel and train on from there; images stay BGR, 0–255 less the mean.

=========================  ==============================================  =====================================
Caffe                      kazuto1011/deeplab-pytorch                      isht7/pytorch-deeplab-resnet
=========================  ==============================================  =====================================
conv1                      ``base.layer1.conv1.conv``                      ``Scale.conv1``
bn_conv1, scale_conv1      ``base.layer1.conv1.bn``                        ``Scale.bn1``
res3b1_branch2a            ``base.layer3.block2.reduce.conv``              ``Scale.layer2.1.conv1``
res3b1_branch2b            ``base.layer3.block2.conv3x3.conv``             ``Scale.layer2.1.conv2``
res3b1_branch2c            ``base.layer3.block2.increase.conv``            ``Scale.layer2.1.conv3``
res3a_branch1              ``base.layer3.block1.shortcut.conv``            ``Scale.layer2.0.downsample.0``
bn3a_branch1, scale3a_…    ``base.layer3.block1.shortcut.bn``              ``Scale.layer2.0.downsample.1``
fc1_voc12_c0               ``base.aspp.c0``                                ``Scale.layer5.conv2d_list.0``
=========================  ==============================================  =====================================

kazuto1011's earlier files say ``scale`` for ``base``, ``proj`` for ``shortcut`` and ``aspp.stages.c0`` for ``aspp.c0``.

A batch norm of PyTorch is two layers of Caffe: BatchNorm with running mean and variance and the factor 1, and Scale.
Both projects keep Caffe's eps of 1e-5.
"""

from __future__ import annotations

import re

import torch

from weights_conversion.errors import CaffeFileError
from weights_conversion.vgg16_files import ForeignLayers, Layers

_FIRST_OF_KAZUTO = ("base.layer1.conv1.conv", "scale.layer1.conv1.conv")
_FIRST_OF_ISHT7 = "Scale.conv1"
FIRST_OF_DEEPLAB = (*_FIRST_OF_KAZUTO, _FIRST_OF_ISHT7)
_KAZUTO = re.compile(
    r"(?:base|scale)\.(?:layer1\.(?P<stem>conv1)|layer(?P<stage>[2-5])\.block(?P<block>\d+)"
    r"\.(?P<branch>reduce|conv3x3|increase|shortcut|proj))\.(?P<kind>conv|bn)"
)
_KAZUTO_CLASSIFIER = re.compile(r"(?:base|scale)\.aspp\.(?:stages\.)?c(\d)")
_ISHT7 = re.compile(
    r"(?:Scale\.)?(?:(?P<stem>conv1|bn1)|layer(?P<stage>[1-4])\.(?P<block>\d+)\.(?P<branch>conv[123]|bn[123]|downsample\.[01]))"
)
_ISHT7_CLASSIFIER = re.compile(r"(?:Scale\.)?layer5\.conv2d_list\.(\d)")
_BRANCHES = {
    "reduce": "branch2a",
    "conv3x3": "branch2b",
    "increase": "branch2c",
    "shortcut": "branch1",
    "proj": "branch1",
    "downsample.0": "branch1",
    "downsample.1": "branch1",
} | {
    f"{kind}{number}": f"branch2{letter}"
    for kind in ("conv", "bn")
    for number, letter in enumerate("abc", start=1)
}


def deeplab_layers(named: Layers, where: str) -> ForeignLayers | None:
    """The layers of a state dict under Caffe's names, or None where it is of neither project.

    Raises ``CaffeFileError`` for a batch norm that is not whole.
    """
    if not named.keys().isdisjoint(_FIRST_OF_KAZUTO):
        form, name_of = "kazuto1011's DeepLab-v2 ResNet-101", _kazuto_name
    elif _FIRST_OF_ISHT7 in named or "layer5.conv2d_list.0" in named:
        form, name_of = "isht7's DeepLab-v2 ResNet-101", _isht7_name
    else:
        return None
    layers: Layers = {}
    norms = 0
    for name, blobs in named.items():
        found = name_of(name)
        if found is None:
            layers[name] = blobs
        elif found[1]:
            norms += 1
            layers |= _norm(found[0], name, blobs, where)
        else:
            layers[found[0]] = blobs
    return ForeignLayers(
        layers,
        form,
        [
            "named as in Caffe",
            f"{norms} batch norms: running mean and variance to BatchNorm with factor 1, gain and bias to Scale",
        ],
    )


def _kazuto_name(name: str) -> tuple[str, bool] | None:
    """Caffe's name of a convolution, or what follows ``bn`` and ``scale`` in those of a batch norm, and which it is."""
    if classifier := _KAZUTO_CLASSIFIER.fullmatch(name):
        return f"fc1_voc12_c{classifier[1]}", False
    match = _KAZUTO.fullmatch(name)
    if match is None:
        return None
    is_norm = match["kind"] == "bn"
    if match["stem"]:
        return ("_conv1" if is_norm else "conv1"), is_norm
    place = f"{_block(int(match['stage']), int(match['block']) - 1)}_{_BRANCHES[match['branch']]}"
    return (place if is_norm else f"res{place}"), is_norm


def _isht7_name(name: str) -> tuple[str, bool] | None:
    if classifier := _ISHT7_CLASSIFIER.fullmatch(name):
        return f"fc1_voc12_c{classifier[1]}", False
    match = _ISHT7.fullmatch(name)
    if match is None:
        return None
    if match["stem"]:
        return ("_conv1", True) if match["stem"] == "bn1" else ("conv1", False)
    is_norm = match["branch"].startswith("bn") or match["branch"] == "downsample.1"
    place = f"{_block(int(match['stage']) + 1, int(match['block']))}_{_BRANCHES[match['branch']]}"
    return (place if is_norm else f"res{place}"), is_norm


def _block(stage: int, index: int) -> str:
    """Caffe's name of a block: ``2a`` to ``2c``, ``3a`` and ``3b1`` to ``3b3``, ``4a`` and ``4b1`` to ``4b22``."""
    if index == 0:
        return f"{stage}a"
    return f"{stage}{chr(ord('a') + index)}" if stage in (2, 5) else f"{stage}b{index}"


def _norm(place: str, name: str, blobs: dict[str, torch.Tensor], where: str) -> Layers:
    expected = ("weight", "bias", "running_mean", "running_var")
    missing = [blob for blob in expected if blob not in blobs]
    if missing:
        raise CaffeFileError(
            f"{where}: {name}: no {', '.join(missing)}; expected a batch norm with {', '.join(expected)}"
        )
    mean = blobs["running_mean"]
    return {
        f"bn{place}": {
            "mean": mean,
            "variance": blobs["running_var"],
            "factor": torch.ones(1, dtype=mean.dtype),
        },
        f"scale{place}": {"weight": blobs["weight"], "bias": blobs["bias"]},
    }
