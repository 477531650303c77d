"""The networks of the papers, by name."""

from __future__ import annotations

import torch

from repro.errors import InputError
from repro.models.base import CaffeNet
from repro.models.classifier import BackgroundClassifier, CAMClassifier
from repro.models.resnet101 import ResNet101
from repro.models.vgg16 import ASPP_DILATIONS, LARGEFOV_DILATION, VGG16

SEGMENTATION_NETS = ("vgg16_aspp", "vgg16_largefov", "resnet101_aspp", "resnet101_largefov")
CLASSIFIERS = ("vgg16_cam", "vgg16_bg")


def build_model(
    name: str,
    *,
    num_classes: int | None = None,
    width_divisor: int = 1,
    dropout: float = 0.5,
    input_size: int = 321,
) -> CaffeNet:
    """Build a net, filled with Caffe's fillers for new layers (N(0, 0.01), biases 0).

    Turns TF32 off for the process: on NVIDIA GPUs it is PyTorch's default for convolutions, keeps 10 of float32's
    23 bits, and Caffe knew nothing like it.

    Args:
        name: ``vgg16_aspp`` (DSRG), ``vgg16_largefov`` (SEC), ``resnet101_aspp`` and ``resnet101_largefov``
            (DeepLab-v2) segment; ``vgg16_cam`` and ``vgg16_bg`` classify, for cues.
        num_classes: outputs of the net: 21 by default for nets that segment, where background is class 0, and 20
            for the classifiers, which have no background.
        width_divisor: divides the width of every hidden layer.
        dropout: ratio of the element-wise dropout; ``vgg16_bg`` and the ResNets have none.
        input_size: side of the images. The nets that segment take any; the classifiers are built for this one.

    Raises:
        InputError: an unknown name, or a width divisor that leaves no channels.
    """
    if name not in SEGMENTATION_NETS + CLASSIFIERS:
        names = ", ".join(SEGMENTATION_NETS + CLASSIFIERS)
        raise InputError(f"model.name {name!r}: expected one of {names}")
    if not 1 <= width_divisor <= 64:
        raise InputError(f"model.width_divisor {width_divisor}: expected 1 to 64 (conv1 has 64 outputs)")
    if input_size < 32:
        raise InputError(f"input_size {input_size}: expected 32 or more")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if num_classes is None:
        num_classes = 20 if name in CLASSIFIERS else 21
    if name == "vgg16_cam":
        return CAMClassifier(
            num_classes=num_classes, width_divisor=width_divisor, dropout=dropout, input_size=input_size
        )
    if name == "vgg16_bg":
        return BackgroundClassifier(
            num_classes=num_classes, width_divisor=width_divisor, input_size=input_size
        )
    dilations = ASPP_DILATIONS if name.endswith("aspp") else (LARGEFOV_DILATION,)
    if name.startswith("resnet101"):
        return ResNet101(
            name, dilations, num_classes=num_classes, width_divisor=width_divisor, input_size=input_size
        )
    return VGG16(
        name,
        dilations,
        num_classes=num_classes,
        width_divisor=width_divisor,
        dropout=dropout,
        input_size=input_size,
    )


__all__ = ["CLASSIFIERS", "SEGMENTATION_NETS", "CaffeNet", "build_model"]
