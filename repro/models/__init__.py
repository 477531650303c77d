"""The networks of the papers, by name."""

from __future__ import annotations

import torch

from repro.errors import InputError
from repro.models.base import CaffeNet
from repro.models.vgg16 import ASPP_DILATIONS, LARGEFOV_DILATION, VGG16

_BRANCHES = {
    "vgg16_aspp": {f"_{index}": dilation for index, dilation in enumerate(ASPP_DILATIONS, start=1)},
    "vgg16_largefov": {"": LARGEFOV_DILATION},
}


def build_model(
    name: str, *, num_classes: int = 21, width_divisor: int = 1, dropout: float = 0.5
) -> CaffeNet:
    """Build a net, filled with Caffe's fillers for new layers (N(0, 0.01), biases 0).

    Turns TF32 off for the process: on NVIDIA GPUs it is PyTorch's default for convolutions, keeps 10 of float32's
    23 bits, and Caffe knew nothing like it.

    Args:
        name: ``vgg16_aspp`` (DSRG) or ``vgg16_largefov`` (SEC).
        num_classes: C, background included.
        width_divisor: divides the width of every hidden layer.
        dropout: ratio of the element-wise dropout.

    Raises:
        InputError: an unknown name, or a width divisor that leaves no channels.
    """
    if name not in _BRANCHES:
        raise InputError(f"model.name {name!r}: expected one of {', '.join(_BRANCHES)}")
    if not 1 <= width_divisor <= 64:
        raise InputError(f"model.width_divisor {width_divisor}: expected 1 to 64 (conv1 has 64 outputs)")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return VGG16(_BRANCHES[name], num_classes=num_classes, width_divisor=width_divisor, dropout=dropout)


__all__ = ["CaffeNet", "build_model"]
