"""The papers' nets, as NetParameters; the loss layers behind them are in ``loss_tails.py``.

VGG16 of SEC and DSRG, from their prototxts:

    backbone   conv1_1 … conv5_3 with ReLU; pool1–3 MAX 3x3/2 pad 1; pool4, pool5 MAX 3x3/1 pad 1;
               conv5_* dilation 2; pool5a AVE 3x3/1 pad 1
    LargeFOV   fc6 3x3 dilation 12 -> 1024, fc7 1x1 -> 1024, fc8-SEC 1x1 -> C               (SEC)
    ASPP       four such branches fc6_b, fc7_b, fc8-SEC_b, dilation 6, 12, 18, 24, summed   (DSRG)

The classifiers for cues: ``vgg16_cam`` (pool1–3 2x2/2, no other pooling, fc6_CAM and fc7_CAM 3x3, average of the whole
grid, scores without bias) and ``vgg16_bg`` (five poolings 2x2/2, fc6 and fc7 of 1024).

ResNet-101 of DeepLab-v2: conv1 7x7/2, pool1 MAX 3x3/2 pad 1, then 3, 4, 23 and 3 bottleneck blocks res2a … res5c. A
block is 1x1, 3x3, 1x1 (branch2a, 2b, 2c), each with BatchNorm, Scale and, but for the last, ReLU, added to its input
or, in the first block of a stage, to branch1's 1x1 of it. res3a has stride 2 on branch1 and branch2a; res4 and res5
keep its resolution and dilate branch2b by 2 and 4. ASPP is fc1_voc12_c0 … c3, 3x3, dilation 6, 12, 18, 24, summed to
fc1_voc12; LargeFOV is fc1_voc12 with dilation 12. BatchNorm and Scale are frozen (``lr_mult: 0``). Blocks are named as
in He et al.'s release: a, b, c where a stage has three, a, b1, b2, … where it has more.

New layers are N(0, 0.01), biases 0. Weights learn at 1/1, biases at 2/0, the classifiers at 10/1 and 20/0.
The output grid of a 321x321 input is 41x41.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from repro.errors import InputError, chosen
from repro.models.fillers import GAUSSIAN_STD
from repro.models.net import CaffeNet
from weights_conversion.caffe_pb2 import LayerParameter, NetParameter, PoolingParameter

SEGMENTATION_NETS = ("vgg16_aspp", "vgg16_largefov", "resnet101_aspp", "resnet101_largefov")
CLASSIFIERS = ("vgg16_cam", "vgg16_bg")
ASPP_DILATIONS = (6, 12, 18, 24)
LARGEFOV_DILATION = 12
_FC_WIDTH = 1024
_VGG = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # convolutions and outputs per stage
# (number, blocks, outputs of the block, stride of its first block, dilation) per stage
_RESNET = ((2, 3, 256, 1, 1), (3, 4, 512, 2, 1), (4, 23, 1024, 1, 2), (5, 3, 2048, 1, 4))
_LEARNT = ({"lr_mult": 1, "decay_mult": 1}, {"lr_mult": 2, "decay_mult": 0})
_CLASSIFIER = ({"lr_mult": 10, "decay_mult": 1}, {"lr_mult": 20, "decay_mult": 0})
_FROZEN = {"lr_mult": 0, "decay_mult": 0}


class _Layers:
    """Layers in the making; every method appends one and returns its top."""

    def __init__(self) -> None:
        self.made: list[LayerParameter] = []

    def add(self, name: str, type_: str, *bottoms: str, top: str | None = None, **fields: Any) -> str:
        layer = LayerParameter(name=name, type=type_, bottom=bottoms, top=[top or name], **fields)
        self.made.append(layer)
        return layer.top[0]

    def relu(self, name: str, bottom: str) -> str:
        return self.add(name, "ReLU", bottom, top=bottom)

    def dropout(self, name: str, bottom: str, ratio: float) -> str:
        return self.add(name, "Dropout", bottom, top=bottom, dropout_param={"dropout_ratio": ratio})

    def pool(
        self, name: str, bottom: str, kernel: int, stride: int, pad: int = 0, *, average: bool = False
    ) -> str:
        pool = PoolingParameter.AVE if average else PoolingParameter.MAX
        param = {"pool": pool, "kernel_size": kernel, "stride": stride, "pad": pad}
        return self.add(name, "Pooling", bottom, pooling_param=param)

    def conv(
        self,
        name: str,
        bottom: str,
        outputs: int,
        kernel: int,
        *,
        dilation: int = 1,
        stride: int = 1,
        bias: bool = True,
        classifies: bool = False,
    ) -> str:
        """A convolution that keeps the size but for its stride."""
        param: dict[str, Any] = {
            "num_output": outputs,
            "kernel_size": [kernel],
            "pad": [dilation * (kernel // 2)],
            "dilation": [dilation],
            "stride": [stride],
            **_fillers(bias=bias),
        }
        multipliers = _CLASSIFIER if classifies else _LEARNT
        return self.add(
            name, "Convolution", bottom, param=multipliers if bias else (), convolution_param=param
        )

    def inner(
        self, name: str, bottom: str, outputs: int, *, bias: bool = True, classifies: bool = False
    ) -> str:
        multipliers = (_CLASSIFIER if classifies else _LEARNT)[: 2 if bias else 1]
        param = {"num_output": outputs, **_fillers(bias=bias)}
        return self.add(name, "InnerProduct", bottom, param=multipliers, inner_product_param=param)


def _fillers(*, bias: bool) -> dict[str, Any]:
    weight = {"type": "gaussian", "std": GAUSSIAN_STD}
    if not bias:
        return {"bias_term": False, "weight_filler": weight}
    return {"weight_filler": weight, "bias_filler": {"type": "constant", "value": 0}}


def build_model(
    name: str,
    *,
    num_classes: int | None = None,
    width_divisor: int = 1,
    dropout: float = 0.5,
    input_size: int = 321,
) -> CaffeNet:
    """Build one of the papers' nets, filled as its layers say: N(0, 0.01), biases 0. It is in training mode.

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

    >>> build_model("vgg16_aspp", width_divisor=64).grid_size(321, 321)
    (41, 41)
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    parameter = net_parameter(
        name, num_classes=num_classes, width_divisor=width_divisor, dropout=dropout, input_size=input_size
    )
    return CaffeNet(parameter, phase="train")


def net_parameter(
    name: str,
    *,
    num_classes: int | None = None,
    width_divisor: int = 1,
    dropout: float = 0.5,
    input_size: int = 321,
) -> NetParameter:
    """The net that ``build_model`` runs; same arguments and errors."""
    chosen("model.name", name, SEGMENTATION_NETS + CLASSIFIERS)
    if not 1 <= width_divisor <= 64:
        raise InputError(f"model.width_divisor {width_divisor}: expected 1 to 64 (conv1 has 64 outputs)")
    if input_size < 32:
        raise InputError(f"input_size {input_size}: expected 32 or more")
    if num_classes is None:
        num_classes = 20 if name in CLASSIFIERS else 21
    if num_classes < 1:
        raise InputError(f"model.num_classes {num_classes}: expected 1 or more")
    layers = _Layers()
    if name == "vgg16_cam":
        _cam(layers, num_classes, width_divisor, dropout, input_size)
    elif name == "vgg16_bg":
        _background(layers, num_classes, width_divisor)
    else:
        dilations = ASPP_DILATIONS if name.endswith("aspp") else (LARGEFOV_DILATION,)
        if name.startswith("vgg16"):
            _vgg16(layers, dilations, num_classes, width_divisor, dropout)
        else:
            _resnet101(layers, dilations, num_classes, width_divisor)
    shape = {"dim": [1, 3, input_size, input_size]}
    return NetParameter(name=name, input=["images"], input_shape=[shape], layer=layers.made)


def _backbone(
    layers: _Layers, width_divisor: int, pools: Sequence[tuple[int, int, int] | None], dilation: int
) -> str:
    """conv1_1 … conv5_3; ``pools`` are kernel, stride and pad behind each stage, ``dilation`` is conv5's."""
    top = "images"
    for number, ((count, outputs), pool) in enumerate(zip(_VGG, pools, strict=True), start=1):
        for index in range(1, count + 1):
            hole = dilation if number == 5 else 1
            top = layers.conv(f"conv{number}_{index}", top, outputs // width_divisor, 3, dilation=hole)
            layers.relu(f"relu{number}_{index}", top)
        if pool:
            top = layers.pool(f"pool{number}", top, *pool)
    return top


def _vgg16(
    layers: _Layers, dilations: Sequence[int], num_classes: int, width_divisor: int, dropout: float
) -> None:
    pools = ((3, 2, 1), (3, 2, 1), (3, 2, 1), (3, 1, 1), (3, 1, 1))
    pool5a = layers.pool("pool5a", _backbone(layers, width_divisor, pools, 2), 3, 1, 1, average=True)
    width, scores = _FC_WIDTH // width_divisor, []
    for branch, dilation in enumerate(dilations, start=1):
        suffix = f"_{branch}" if len(dilations) > 1 else ""
        top = pool5a
        for number, kernel, hole in ((6, 3, dilation), (7, 1, 1)):
            top = layers.conv(f"fc{number}{suffix}", top, width, kernel, dilation=hole)
            layers.relu(f"relu{number}{suffix}", top)
            layers.dropout(f"drop{number}{suffix}", top, dropout)
        scores.append(layers.conv(f"fc8-SEC{suffix}", top, num_classes, 1, classifies=True))
    if len(scores) > 1:
        layers.add("fc8-SEC", "Eltwise", *scores, eltwise_param={"operation": "SUM"})


def _cam(layers: _Layers, num_classes: int, width_divisor: int, dropout: float, input_size: int) -> None:
    halved = (2, 2, 0)
    top = _backbone(layers, width_divisor, (halved, halved, halved, None, None), 1)
    width, grid = _FC_WIDTH // width_divisor, input_size
    for _ in range(3):
        grid = -(-grid // 2)
    top = layers.relu("relu6", layers.conv("fc6_CAM", top, width, 3))
    top = layers.conv("fc7_CAM", layers.dropout("drop6", top, dropout), width, 3)
    layers.dropout("drop7", top, dropout)
    layers.inner(
        "scores", layers.pool("fc8", top, grid, 1, average=True), num_classes, bias=False, classifies=True
    )


def _background(layers: _Layers, num_classes: int, width_divisor: int) -> None:
    top = _backbone(layers, width_divisor, [(2, 2, 0)] * 5, 1)
    for number in (6, 7):
        top = layers.relu(f"relu{number}", layers.inner(f"fc{number}", top, _FC_WIDTH // width_divisor))
    layers.inner("fc8", top, num_classes, classifies=True)


def _resnet101(layers: _Layers, dilations: Sequence[int], num_classes: int, width_divisor: int) -> None:
    top = layers.conv("conv1", "images", 64 // width_divisor, 7, stride=2, bias=False)
    top = layers.relu("conv1_relu", _normalised(layers, "_conv1", top))
    top = layers.pool("pool1", top, 3, 2, 1)
    for number, blocks, outputs, stride, dilation in _RESNET:
        for index in range(blocks):
            letter = chr(ord("a") + index) if blocks == 3 else f"b{index}" if index else "a"
            first = index == 0
            top = _block(
                layers,
                f"{number}{letter}",
                top,
                outputs // width_divisor,
                stride if first else 1,
                dilation,
                first,
            )
    if len(dilations) == 1:
        layers.conv("fc1_voc12", top, num_classes, 3, dilation=dilations[0], classifies=True)
        return
    scores = [
        layers.conv(f"fc1_voc12_c{index}", top, num_classes, 3, dilation=dilation, classifies=True)
        for index, dilation in enumerate(dilations)
    ]
    layers.add("fc1_voc12", "Eltwise", *scores, eltwise_param={"operation": "SUM"})


def _block(
    layers: _Layers, block: str, bottom: str, outputs: int, stride: int, dilation: int, projects: bool
) -> str:
    inner, shortcut = outputs // 4, bottom
    if projects:
        shortcut = layers.conv(f"res{block}_branch1", bottom, outputs, 1, stride=stride, bias=False)
        _normalised(layers, f"{block}_branch1", shortcut)
    top = bottom
    for branch, width, kernel, step, hole in (
        ("branch2a", inner, 1, stride, 1),
        ("branch2b", inner, 3, 1, dilation),
        ("branch2c", outputs, 1, 1, 1),
    ):
        top = layers.conv(f"res{block}_{branch}", top, width, kernel, stride=step, dilation=hole, bias=False)
        _normalised(layers, f"{block}_{branch}", top)
        if branch != "branch2c":
            layers.relu(f"{top}_relu", top)
    top = layers.add(f"res{block}", "Eltwise", shortcut, top, eltwise_param={"operation": "SUM"})
    return layers.relu(f"{top}_relu", top)


def _normalised(layers: _Layers, suffix: str, top: str) -> str:
    """BatchNorm and Scale, ``bn<suffix>`` and ``scale<suffix>``, in-place and frozen."""
    frozen = {"use_global_stats": True}
    layers.add(f"bn{suffix}", "BatchNorm", top, top=top, param=[_FROZEN] * 3, batch_norm_param=frozen)
    return layers.add(
        f"scale{suffix}", "Scale", top, top=top, param=[_FROZEN] * 2, scale_param={"bias_term": True}
    )
