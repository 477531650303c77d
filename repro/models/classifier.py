"""The two VGG16 classifiers that localization cues come from (SEC, section 3.4 and its release).

    vgg16_cam   foreground: pool1–3 MAX 2x2/2, conv4_*, conv5_* at that resolution, without dilation;
                fc6_CAM 3x3 -> 1024 with ReLU and dropout, fc7_CAM 3x3 -> 1024 with dropout and no ReLU,
                fc8 AVE over the whole grid, scores = inner product without bias.
                A class's heat map is the sum of fc7_CAM's maps, weighted by its row of scores (Zhou et al., CAM).
    vgg16_bg    background: plain VGG16, pool1–5 MAX 2x2/2, inner products fc6, fc7 of 1024, fc8; no dropout.
                Saliency is the gradient of the summed fc8 at conv4_1: ``net.gradient_at(images, "conv4_1")``.

Both are for images of one size (321x321: grids of 41x41 at fc7_CAM and at conv4_1) and know no background class.
"""

from __future__ import annotations

import torch.nn as nn

from repro.layers.common import InnerProduct
from repro.layers.pooling import CaffeAvePool, CaffeMaxPool
from repro.models.base import CaffeNet
from repro.models.vgg16 import FC_WIDTH, Stage, add_backbone


def _halved(convolutions: int, outputs: int) -> Stage:
    return Stage(convolutions, outputs, pool=CaffeMaxPool(2, stride=2))


class CAMClassifier(CaffeNet):
    """``vgg16_cam``.

    Args:
        num_classes: foreground classes, the outputs of ``scores``.
        width_divisor: every hidden layer has ``width // width_divisor`` outputs.
        dropout: ratio of the element-wise dropout after fc6_CAM and fc7_CAM.
        input_size: side of the images; the pooling fc8 covers their whole grid.
    """

    fixed_size = True
    classifiers = ("scores",)

    def __init__(self, *, num_classes: int, width_divisor: int, dropout: float, input_size: int) -> None:
        super().__init__("vgg16_cam", input_size=input_size)
        stages = (_halved(2, 64), _halved(2, 128), _halved(3, 256), Stage(3, 512), Stage(3, 512))
        top, channels = add_backbone(self, stages, width_divisor)
        width = FC_WIDTH // width_divisor
        fc6 = self.add("fc6_CAM", nn.Conv2d(channels, width, 3, padding=1), top)
        self.add("relu6", nn.ReLU(), fc6, top=fc6)
        self.add("drop6", nn.Dropout(dropout), fc6, top=fc6)
        fc7 = self.add("fc7_CAM", nn.Conv2d(width, width, 3, padding=1), fc6)
        self.add("drop7", nn.Dropout(dropout), fc7, top=fc7)
        grid, _ = self.grid_size(input_size, input_size)
        fc8 = self.add("fc8", CaffeAvePool(grid, stride=1), fc7)
        self.add("scores", InnerProduct(width, num_classes, bias=False), fc8)
        self.fill()


class BackgroundClassifier(CaffeNet):
    """``vgg16_bg``.

    Args:
        num_classes: foreground classes, the outputs of ``fc8``.
        width_divisor: every hidden layer has ``width // width_divisor`` outputs.
        input_size: side of the images; fc6 has a weight for every cell that is left of them (11x11 of 321x321).
    """

    fixed_size = True
    classifiers = ("fc8",)

    def __init__(self, *, num_classes: int, width_divisor: int, input_size: int) -> None:
        super().__init__("vgg16_bg", input_size=input_size)
        stages = (_halved(2, 64), _halved(2, 128), _halved(3, 256), _halved(3, 512), _halved(3, 512))
        top, channels = add_backbone(self, stages, width_divisor)
        rows, columns = self.grid_size(input_size, input_size)
        width = FC_WIDTH // width_divisor
        for number, inputs in ((6, channels * rows * columns), (7, width)):
            top = self.add(f"fc{number}", InnerProduct(inputs, width), top)
            self.add(f"relu{number}", nn.ReLU(), top, top=top)
        self.add("fc8", InnerProduct(width, num_classes), top)
        self.fill()
