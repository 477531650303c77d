"""The segmentation VGG16 nets of SEC and DSRG, layer by layer as in their prototxts.

    backbone   conv1_1 … conv5_3 with ReLU; pool1–3 MAX 3x3/2 pad 1; pool4, pool5 MAX 3x3/1 pad 1;
               conv5_* dilation 2; pool5a AVE 3x3/1 pad 1
    LargeFOV   fc6 3x3 dilation 12 -> 1024, fc7 1x1 -> 1024, fc8-SEC 1x1 -> C               (SEC)
    ASPP       four such branches fc6_b, fc7_b, fc8-SEC_b, dilation 6, 12, 18, 24, summed   (DSRG)

Sub-modules carry Caffe's layer names, so ``state_dict`` keys are ``conv1_1.weight``, ``fc8-SEC_1.bias`` …
The output grid of a 321x321 input is 41x41.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

from repro.layers.pooling import CaffeAvePool, CaffeMaxPool
from repro.models.base import CaffeNet

# (convolutions, outputs, dilation, stride of the pooling that follows) a stage
_STAGES = ((2, 64, 1, 2), (2, 128, 1, 2), (3, 256, 1, 2), (3, 512, 1, 1), (3, 512, 2, 1))
_FC_WIDTH = 1024
ASPP_DILATIONS = (6, 12, 18, 24)
LARGEFOV_DILATION = 12


class VGG16(CaffeNet):
    """VGG16 with one LargeFOV head or four ASPP branches.

    Args:
        branches: suffix and dilation of each head branch: ``{"": 12}`` or ``{"_1": 6, …}``.
        num_classes: C, background included.
        width_divisor: every hidden layer has ``width // width_divisor`` outputs (1 = the papers' nets).
        dropout: ratio of the element-wise dropout after fc6 and fc7.
    """

    def __init__(
        self, branches: dict[str, int], *, num_classes: int = 21, width_divisor: int = 1, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.branches = branches
        self.dropout = dropout
        self.num_classes = num_classes
        channels = 3
        for stage, (convolutions, outputs, dilation, stride) in enumerate(_STAGES, start=1):
            for index in range(1, convolutions + 1):
                width = outputs // width_divisor
                conv = nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation)
                self.add_module(f"conv{stage}_{index}", conv)
                channels = width
            self.add_module(f"pool{stage}", CaffeMaxPool(3, stride=stride, pad=1))
        self.pool5a = CaffeAvePool(3, stride=1, pad=1)
        width = _FC_WIDTH // width_divisor
        for suffix, dilation in branches.items():
            self.add_module(
                f"fc6{suffix}", nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation)
            )
            self.add_module(f"fc7{suffix}", nn.Conv2d(width, width, 1))
            self.add_module(f"fc8-SEC{suffix}", nn.Conv2d(width, num_classes, 1))
        self.classifiers = tuple(f"fc8-SEC{suffix}" for suffix in branches)
        self.fill()

    def forward_blobs(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        blobs = {"images": images}
        x = images
        for stage, (convolutions, *_) in enumerate(_STAGES, start=1):
            for index in range(1, convolutions + 1):
                name = f"conv{stage}_{index}"
                x = blobs[name] = F.relu(self.get_submodule(name)(x))
            x = blobs[f"pool{stage}"] = self.get_submodule(f"pool{stage}")(x)
        pool5a = blobs["pool5a"] = self.pool5a(x)
        for suffix in self.branches:
            x = pool5a
            for name in (f"fc6{suffix}", f"fc7{suffix}"):
                x = blobs[name] = F.dropout(F.relu(self.get_submodule(name)(x)), self.dropout, self.training)
            blobs[f"fc8-SEC{suffix}"] = self.get_submodule(f"fc8-SEC{suffix}")(x)
        if len(self.branches) > 1:
            for index, _ in enumerate(
                self.branches
            ):  # the copies that Caffe inserts where a blob has many readers
                blobs[f"pool5a_pool5a_0_split_{index}"] = pool5a
            scores = blobs[self.classifiers[0]]
            for name in self.classifiers[1:]:
                scores = scores + blobs[name]
            blobs["fc8-SEC"] = scores
        return blobs
