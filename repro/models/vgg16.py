"""The segmentation VGG16 nets of SEC and DSRG, layer by layer as in their prototxts.

    backbone   conv1_1 … conv5_3 with ReLU; pool1–3 MAX 3x3/2 pad 1; pool4, pool5 MAX 3x3/1 pad 1;
               conv5_* dilation 2; pool5a AVE 3x3/1 pad 1
    LargeFOV   fc6 3x3 dilation 12 -> 1024, fc7 1x1 -> 1024, fc8-SEC 1x1 -> C               (SEC)
    ASPP       four such branches fc6_b, fc7_b, fc8-SEC_b, dilation 6, 12, 18, 24, summed   (DSRG)

Sub-modules carry Caffe's layer names, so ``state_dict`` keys are ``conv1_1.weight``, ``fc8-SEC_1.bias`` …
The output grid of a 321x321 input is 41x41.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn as nn

from repro.layers.common import EltwiseSum
from repro.layers.pooling import CaffeAvePool, CaffeMaxPool
from repro.models.base import CaffeNet

FC_WIDTH = 1024
ASPP_DILATIONS = (6, 12, 18, 24)
LARGEFOV_DILATION = 12


class Stage(NamedTuple):
    """A stage of VGG16: its 3x3 convolutions, their dilation, and the MAX pooling that follows, if one does."""

    convolutions: int
    outputs: int
    dilation: int = 1
    pool: CaffeMaxPool | None = None


def add_backbone(net: CaffeNet, stages: Sequence[Stage], width_divisor: int) -> tuple[str, int]:
    """Append conv1_1 … conv5_3 with their ReLUs and poolings; returns the last top and its channels."""
    top, channels = "images", 3
    for number, stage in enumerate(stages, start=1):
        for index in range(1, stage.convolutions + 1):
            width = stage.outputs // width_divisor
            conv = nn.Conv2d(channels, width, 3, padding=stage.dilation, dilation=stage.dilation)
            top = net.add(f"conv{number}_{index}", conv, top)
            net.add(f"relu{number}_{index}", nn.ReLU(), top, top=top)
            channels = width
        if stage.pool:
            top = net.add(f"pool{number}", stage.pool, top)
    return top, channels


class VGG16(CaffeNet):
    """VGG16 with one LargeFOV head or four ASPP branches.

    Args:
        name: of the net.
        dilations: of each head branch; with several, layers are numbered ``fc6_1`` … and the scores are summed.
        num_classes: C, background included.
        width_divisor: every hidden layer has ``width // width_divisor`` outputs (1 = the papers' nets).
        dropout: ratio of the element-wise dropout after fc6 and fc7.
        input_size: side of the images it is meant for; it takes any.
    """

    def __init__(
        self,
        name: str,
        dilations: Sequence[int],
        *,
        num_classes: int,
        width_divisor: int,
        dropout: float,
        input_size: int,
    ) -> None:
        super().__init__(name, input_size=input_size)
        stages = (
            Stage(2, 64, pool=CaffeMaxPool(3, stride=2, pad=1)),
            Stage(2, 128, pool=CaffeMaxPool(3, stride=2, pad=1)),
            Stage(3, 256, pool=CaffeMaxPool(3, stride=2, pad=1)),
            Stage(3, 512, pool=CaffeMaxPool(3, stride=1, pad=1)),
            Stage(3, 512, dilation=2, pool=CaffeMaxPool(3, stride=1, pad=1)),
        )
        pool5, channels = add_backbone(self, stages, width_divisor)
        pool5a = self.add("pool5a", CaffeAvePool(3, stride=1, pad=1), pool5)
        width = FC_WIDTH // width_divisor
        scores = []
        for branch, dilation in enumerate(dilations, start=1):
            suffix = f"_{branch}" if len(dilations) > 1 else ""
            fc6 = nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation)
            top = pool5a
            for number, fc in ((6, fc6), (7, nn.Conv2d(width, width, 1))):
                top = self.add(f"fc{number}{suffix}", fc, top)
                self.add(f"relu{number}{suffix}", nn.ReLU(), top, top=top)
                self.add(f"drop{number}{suffix}", nn.Dropout(dropout), top, top=top)
            scores.append(self.add(f"fc8-SEC{suffix}", nn.Conv2d(width, num_classes, 1), top))
        self.classifiers = tuple(scores)
        if len(scores) > 1:
            self.add("fc8-SEC", EltwiseSum(), *scores)
        self.fill()
