"""DeepLab-v2's ResNet-101 for segmentation, layer by layer as in its prototxt.

    conv1 7x7/2, pool1 MAX 3x3/2 pad 1, then 3, 4, 23 and 3 bottleneck blocks res2a … res5c. A block is
    1x1, 3x3, 1x1 (branch2a, 2b, 2c), each with BatchNorm, Scale and, but for the last, ReLU, added to its input or,
    in the first block of a stage, to branch1's 1x1 of it. res3a has stride 2 on branch1 and branch2a; res4 and res5
    keep its resolution and dilate branch2b by 2 and 4 instead.
    ASPP       fc1_voc12_c0 … c3, 3x3 -> C with dilation 6, 12, 18, 24, summed to fc1_voc12
    LargeFOV   fc1_voc12, 3x3 -> C with dilation 12: DeepLab-v2's single branch ("LargeFOV", table 4 of Chen et al.,
               TPAMI 2018), named as the VGG16 pair is there: fc8_voc12 alone, fc8_voc12_1 … 4 summed to fc8_voc12

Blocks are named as in He et al.'s release: a, b, c where a stage has three, a, b1, b2, … where it has more.
BatchNorm and Scale are frozen (``lr_mult: 0`` for their five blobs); convolutions learn at 1/1 and have no bias;
classifiers at 10/1 and 20/0. Source of these: DeepLab-v2's ResNet-101 prototxt, as public copies hold it.
There is no dropout. The output grid of a 321x321 input is 41x41.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn

from repro.layers.common import BatchNorm, EltwiseSum, Scale
from repro.layers.pooling import CaffeMaxPool
from repro.models.base import CaffeNet, Filler

# (number, blocks, outputs of the block, stride of its first block, dilation) a stage
_STAGES = ((2, 3, 256, 1, 1), (3, 4, 512, 2, 1), (4, 23, 1024, 1, 2), (5, 3, 2048, 1, 4))
_BLOCKS = sum(blocks for _, blocks, *_ in _STAGES)


class ResNet101(CaffeNet):
    """ResNet-101 with one classifier or four summed ones.

    Args:
        name: of the net.
        dilations: of each classifier; with several they are numbered ``fc1_voc12_c0`` … and summed.
        num_classes: C, background included.
        width_divisor: every hidden layer has ``width // width_divisor`` outputs (1 = DeepLab-v2's net).
        input_size: side of the images it is meant for; it takes any.
    """

    def __init__(
        self, name: str, dilations: Sequence[int], *, num_classes: int, width_divisor: int, input_size: int
    ) -> None:
        super().__init__(name, input_size=input_size)
        channels = 64 // width_divisor
        conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        top = self._convolve("conv1", "_conv1", conv1, "images")
        self.add("conv1_relu", nn.ReLU(), top, top=top)
        top = self.add("pool1", CaffeMaxPool(3, stride=2, pad=1), top)
        for number, blocks, outputs, stride, dilation in _STAGES:
            outputs //= width_divisor
            for index in range(blocks):
                letter = chr(ord("a") + index) if blocks == 3 else f"b{index}" if index else "a"
                first = stride if index == 0 else 1
                top = self._block(f"{number}{letter}", top, channels, outputs, first, dilation, index == 0)
                channels = outputs
        if len(dilations) > 1:
            self.classifiers = tuple(f"fc1_voc12_c{index}" for index in range(len(dilations)))
        else:
            self.classifiers = ("fc1_voc12",)
        for classifier, dilation in zip(self.classifiers, dilations, strict=True):
            self.add(
                classifier, nn.Conv2d(channels, num_classes, 3, padding=dilation, dilation=dilation), top
            )
        if len(dilations) > 1:
            self.add("fc1_voc12", EltwiseSum(), *self.classifiers)
        self.fill()

    def _block(
        self, block: str, bottom: str, channels: int, outputs: int, stride: int, dilation: int, projects: bool
    ) -> str:
        inner = outputs // 4
        shortcut = bottom
        if projects:
            conv = nn.Conv2d(channels, outputs, 1, stride=stride, bias=False)
            shortcut = self._convolve(f"res{block}_branch1", f"{block}_branch1", conv, bottom)
        convolutions = {
            "branch2a": nn.Conv2d(channels, inner, 1, stride=stride, bias=False),
            "branch2b": nn.Conv2d(inner, inner, 3, padding=dilation, dilation=dilation, bias=False),
            "branch2c": nn.Conv2d(inner, outputs, 1, bias=False),
        }
        top = bottom
        for branch, conv in convolutions.items():
            top = self._convolve(f"res{block}_{branch}", f"{block}_{branch}", conv, top)
            if branch != "branch2c":
                self.add(f"{top}_relu", nn.ReLU(), top, top=top)
        top = self.add(f"res{block}", EltwiseSum(), shortcut, top)
        self.add(f"{top}_relu", nn.ReLU(), top, top=top)
        return top

    def _convolve(self, name: str, suffix: str, conv: nn.Conv2d, bottom: str) -> str:
        """A convolution with its BatchNorm and Scale, ``bn<suffix>`` and ``scale<suffix>``, in-place."""
        top = self.add(name, conv, bottom)
        self.add(f"bn{suffix}", BatchNorm(conv.out_channels), top, top=top)
        self.add(f"scale{suffix}", Scale(conv.out_channels), top, top=top)
        return top

    def fill(self, filler: Filler = "gaussian", generator: torch.Generator | None = None) -> None:
        """As for every net; under ``msra`` and ``looks_linear``, which start without statistics to normalise by, the
        Scale at the end of each block is 33^-1/2, so that the sum of 33 blocks keeps its order of magnitude."""
        super().fill(filler, generator)
        if filler != "gaussian":
            with torch.no_grad():
                for name, module in self.named_children():
                    if isinstance(module, Scale) and name.endswith("_branch2c"):
                        module.weight.fill_(_BLOCKS**-0.5)
