"""Published Caffe nets as prototxt text, built from their papers' tables, at a part of their width.

Each builder gives a deploy prototxt with fillers that keep activations of one order of magnitude, so that differences
show. ``PUBLIC_NETS`` has them by name; names of layers follow the published files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from repro.models.net import CaffeNet, load_net

MSRA = {"type": "msra"}
SMALL = {"type": "gaussian", "std": 0.1}
AROUND_ONE = {"type": "gaussian", "mean": 1.0, "std": 0.1}


class Word(str):
    """An enum's value, which stands without quotes."""


def text(fields: dict) -> str:
    """Fields in prototxt syntax."""
    parts = []
    for name, value in fields.items():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, dict):
                parts.append(f"{name} {{ {text(item)} }}")
            elif isinstance(item, bool):
                parts.append(f"{name}: {str(item).lower()}")
            elif isinstance(item, str) and not isinstance(item, Word):
                parts.append(f'{name}: "{item}"')
            else:
                parts.append(f"{name}: {item}")
    return " ".join(parts)


class Prototxt:
    """A net in the making: every method adds layers and returns the name of the blob that comes out."""

    def __init__(self, name: str, *shape: int, blob: str = "data") -> None:
        self.lines = [text({"name": name, "input": blob, "input_shape": {"dim": list(shape)}})]

    def __str__(self) -> str:
        return "\n".join(self.lines) + "\n"

    def add(self, type_: str, name: str, bottoms: str | Sequence[str], top: str = "", **fields) -> str:
        top = top or name
        bottoms = [bottoms] if isinstance(bottoms, str) else list(bottoms)
        head = {"name": name, "type": type_, "bottom": bottoms, "top": top.split()}
        self.lines.append(f"layer {{ {text(head | fields)} }}")
        return top.split()[0]

    def conv(
        self, name: str, bottom: str, outputs: int, kernel: int = 3, *, relu: str = "", param=(), **fields
    ) -> str:
        """A convolution, and an in-place ReLU of the name ``relu``; padding defaults to the same size."""
        fields = {"num_output": outputs, "kernel_size": kernel, "weight_filler": MSRA} | fields
        if fields.get("bias_term", True):
            fields["bias_filler"] = SMALL
        more = {"param": [{"name": shared} for shared in param]} if param else {}
        self.add("Convolution", name, bottom, convolution_param=fields, **more)
        return self.add("ReLU", relu, name, name) if relu else name

    def pool(self, name: str, bottom: str, method: str = "MAX", top: str = "", **fields) -> str:
        fields = fields or {"kernel_size": 2, "stride": 2}
        return self.add("Pooling", name, bottom, top, pooling_param={"pool": Word(method), **fields})

    def dense(self, name: str, bottom: str, outputs: int, relu: str = "") -> str:
        fields = {"num_output": outputs, "weight_filler": {"type": "xavier"}, "bias_filler": SMALL}
        self.add("InnerProduct", name, bottom, inner_product_param=fields)
        return self.add("ReLU", relu, name, name) if relu else name

    def norm(self, suffix: str, blob: str, *, bn: str = "bn", scale: str = "scale", relu: str = "") -> str:
        """BatchNorm with global statistics, Scale and ReLU, all in-place."""
        self.add("BatchNorm", bn + suffix, blob, blob, batch_norm_param={"use_global_stats": True})
        fields = {"filler": AROUND_ONE, "bias_term": True, "bias_filler": SMALL}
        self.add("Scale", scale + suffix, blob, blob, scale_param=fields)
        return self.add("ReLU", relu, blob, blob) if relu else blob

    def upsample(self, name: str, bottom: str, channels: int, kernel: int, stride: int, **fields) -> str:
        """A Deconvolution of bilinear weights, one a channel."""
        fields = {
            "num_output": channels,
            "kernel_size": kernel,
            "stride": stride,
            "bias_term": False,
        } | fields
        fields |= {"group": channels, "weight_filler": {"type": "bilinear"}}
        return self.add("Deconvolution", name, bottom, convolution_param=fields)


def alexnet(divisor: int = 8, caffenet: bool = False) -> str:
    """Krizhevsky et al. 2012; CaffeNet pools before it normalises."""
    net = Prototxt("CaffeNet" if caffenet else "AlexNet", 1, 3, 227, 227)

    def norm_pool(index: int, blob: str) -> str:
        lrn = {"lrn_param": {"local_size": 5, "alpha": 0.0001, "beta": 0.75}}
        if caffenet:
            blob = net.pool(f"pool{index}", blob, kernel_size=3, stride=2)
            return net.add("LRN", f"norm{index}", blob, **lrn)
        return net.pool(f"pool{index}", net.add("LRN", f"norm{index}", blob, **lrn), kernel_size=3, stride=2)

    blob = norm_pool(1, net.conv("conv1", "data", 96 // divisor, 11, stride=4, relu="relu1"))
    blob = norm_pool(2, net.conv("conv2", blob, 256 // divisor, 5, pad=2, group=2, relu="relu2"))
    for index, outputs, group in ((3, 384, 1), (4, 384, 2), (5, 256, 2)):
        blob = net.conv(f"conv{index}", blob, outputs // divisor, pad=1, group=group, relu=f"relu{index}")
    blob = net.pool("pool5", blob, kernel_size=3, stride=2)
    for index in (6, 7):
        blob = net.dense(f"fc{index}", blob, 4096 // divisor, f"relu{index}")
        net.add("Dropout", f"drop{index}", blob, blob, dropout_param={"dropout_ratio": 0.5})
    net.add("Softmax", "prob", net.dense("fc8", blob, 1000 // divisor))
    return str(net)


INCEPTIONS = {  # 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection (GoogLeNet, table 1)
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def googlenet(divisor: int = 8) -> str:
    """Szegedy et al. 2014, without the classifiers at the side, which are for training."""
    net = Prototxt("GoogleNet", 1, 3, 224, 224)
    lrn = {"lrn_param": {"local_size": 5, "alpha": 0.0001, "beta": 0.75}}
    three = {"kernel_size": 3, "stride": 2}

    def conv(name: str, bottom: str, outputs: int, kernel: int = 1, **fields) -> str:
        return net.conv(name, bottom, outputs // divisor, kernel, relu=f"relu_{name}", **fields)

    blob = conv("conv1/7x7_s2", "data", 64, 7, pad=3, stride=2)
    blob = net.add("LRN", "pool1/norm1", net.pool("pool1/3x3_s2", blob, **three), **lrn)
    blob = conv("conv2/3x3", conv("conv2/3x3_reduce", blob, 64), 192, 3, pad=1)
    blob = net.pool("pool2/3x3_s2", net.add("LRN", "conv2/norm2", blob, **lrn), **three)
    for name, (one, three_reduce, three_by_three, five_reduce, five, projection) in INCEPTIONS.items():
        at = f"inception_{name}/"
        branches = [
            conv(at + "1x1", blob, one),
            conv(at + "3x3", conv(at + "3x3_reduce", blob, three_reduce), three_by_three, 3, pad=1),
            conv(at + "5x5", conv(at + "5x5_reduce", blob, five_reduce), five, 5, pad=2),
            conv(at + "pool_proj", net.pool(at + "pool", blob, kernel_size=3, stride=1, pad=1), projection),
        ]
        blob = net.add("Concat", at + "output", branches)
        if name in ("3b", "4e"):
            blob = net.pool(f"pool{name[0]}/3x3_s2", blob, **three)
    blob = net.pool("pool5/7x7_s1", blob, "AVE", kernel_size=7, stride=1)
    net.add("Dropout", "pool5/drop", blob, blob)
    net.add("Softmax", "prob", net.dense("loss3/classifier", blob, 125))
    return str(net)


VGG_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


def vgg_blocks(net: Prototxt, divisor: int, *, first_pad: int = 1, pools: int = 5) -> dict[str, str]:
    """VGG16's convolutions; the last blob of each block and each pooling, by name (conv3, pool3)."""
    found, blob = {}, "data"
    for block, (count, outputs) in enumerate(VGG_BLOCKS, start=1):
        for index in range(1, count + 1):
            pad = first_pad if (block, index) == (1, 1) else 1
            name = f"conv{block}_{index}"
            blob = net.conv(name, blob, outputs // divisor, pad=pad, relu=name.replace("conv", "relu"))
        found[f"conv{block}"] = blob
        if block <= pools:
            blob = found[f"pool{block}"] = net.pool(f"pool{block}", blob)
    return found


def vgg16(divisor: int = 16) -> str:
    """Simonyan & Zisserman 2014, at 96x96."""
    net = Prototxt("VGG_ILSVRC_16_layers", 2, 3, 96, 96)
    blob = vgg_blocks(net, divisor)["pool5"]
    for index in (6, 7):
        blob = net.dense(f"fc{index}", blob, 4096 // divisor, f"relu{index}")
        net.add("Dropout", f"drop{index}", blob, blob)
    net.add("Softmax", "prob", net.dense("fc8", blob, 1000 // divisor))
    return str(net)


def residual_blocks(
    net: Prototxt,
    blob: str,
    counts: Sequence[int],
    divisor: int,
    *,
    dilations: Sequence[int] = (1, 1, 1, 1),
    prefix: str = "",
    shared: bool = False,
) -> str:
    """He et al. 2015's bottlenecks after pool1; ``dilations`` above 1 take the place of a stage's stride."""

    def conv(name: str, bottom: str, outputs: int, kernel: int = 1, **fields) -> str:
        branch = name.replace(prefix, "").replace("res", "", 1)
        param = (f"res{branch}",) if shared else ()
        net.conv(name, bottom, outputs, kernel, bias_term=False, param=param, **fields)
        return net.norm(branch + prefix, name)

    for stage, (count, dilation) in enumerate(zip(counts, dilations, strict=True), start=2):
        inner = 2 ** (stage + 4) // divisor
        for index in range(count):
            letter = chr(ord("a") + index) if count < 7 or index == 0 else f"b{index}"
            at = f"res{stage}{letter}"
            stride = 2 if index == 0 and stage > 2 and dilation == 1 else 1
            shortcut = conv(f"{at}_branch1{prefix}", blob, 4 * inner, stride=stride) if index == 0 else blob
            path = conv(f"{at}_branch2a{prefix}", blob, inner, stride=stride)
            path = net.add("ReLU", f"{at}_branch2a_relu{prefix}", path, path)
            path = conv(f"{at}_branch2b{prefix}", path, inner, 3, pad=dilation, dilation=dilation)
            path = net.add("ReLU", f"{at}_branch2b_relu{prefix}", path, path)
            path = conv(f"{at}_branch2c{prefix}", path, 4 * inner)
            blob = net.add("Eltwise", at + prefix, [shortcut, path])
            blob = net.add("ReLU", f"{at}_relu{prefix}", blob, blob)
    return blob


def resnet_stem(net: Prototxt, blob: str, divisor: int, *, prefix: str = "", shared: bool = False) -> str:
    param = ("conv1_w",) if shared else ()
    blob = net.conv("conv1" + prefix, blob, 64 // divisor, 7, pad=3, stride=2, bias_term=False, param=param)
    net.norm("_conv1" + prefix, blob, relu="conv1_relu" + prefix)
    return net.pool("pool1" + prefix, blob, kernel_size=3, stride=2)


def resnet50(divisor: int = 8) -> str:
    """He et al. 2015, at 128x128."""
    net = Prototxt("ResNet-50", 1, 3, 128, 128)
    blob = residual_blocks(net, resnet_stem(net, "data", divisor), (3, 4, 6, 3), divisor)
    blob = net.pool("pool5", blob, "AVE", kernel_size=4, stride=1)
    net.add("Softmax", "prob", net.dense("fc1000", blob, 125))
    return str(net)


def squeezenet(divisor: int = 4) -> str:
    """Iandola et al. 2016, version 1.1."""
    net = Prototxt("SqueezeNet", 1, 3, 227, 227)
    blob = net.conv("conv1", "data", 64 // divisor, stride=2, relu="relu_conv1")
    blob = net.pool("pool1", blob, kernel_size=3, stride=2)
    for index, squeeze in zip(range(2, 10), (16, 16, 32, 32, 48, 48, 64, 64), strict=True):
        at = f"fire{index}/"
        inner = net.conv(at + "squeeze1x1", blob, squeeze // divisor, 1, relu=at + "relu_squeeze1x1")
        sides = [
            net.conv(
                f"{at}expand{side}x{side}",
                inner,
                squeeze * 4 // divisor,
                side,
                pad=side // 2,
                relu=f"{at}relu_expand{side}x{side}",
            )
            for side in (1, 3)
        ]
        blob = net.add("Concat", at + "concat", sides)
        if index in (3, 5):
            blob = net.pool(f"pool{index}", blob, kernel_size=3, stride=2)
    net.add("Dropout", "drop9", blob, blob)
    blob = net.conv("conv10", blob, 100, 1, relu="relu_conv10")
    net.add("Softmax", "prob", net.pool("pool10", blob, "AVE", global_pooling=True))
    return str(net)


def mobilenet(divisor: int = 8) -> str:
    """Howard et al. 2017, depthwise convolutions as groups."""
    net = Prototxt("MOBILENET", 1, 3, 160, 160)

    def conv(name: str, bottom: str, outputs: int, kernel: int, **fields) -> str:
        net.conv(name, bottom, outputs, kernel, bias_term=False, pad=kernel // 2, **fields)
        return net.norm("", name, bn=f"{name}/bn", scale=f"{name}/scale", relu=f"relu{name[4:]}")

    channels = 32 // divisor
    blob = conv("conv1", "data", channels, 3, stride=2)
    outputs = (64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)
    names = ("2_1", "2_2", "3_1", "3_2", "4_1", "4_2", *[f"5_{i}" for i in range(1, 6)], "5_6", "6")
    for name, wide in zip(names, outputs, strict=True):
        stride = 2 if name in ("2_2", "3_2", "4_2", "5_6") else 1
        blob = conv(f"conv{name}/dw", blob, channels, 3, stride=stride, group=channels)
        channels = wide // divisor
        blob = conv(f"conv{name}/sep", blob, channels, 1)
    blob = net.pool("pool6", blob, "AVE", global_pooling=True)
    net.add("Softmax", "prob", net.conv("fc7", blob, 100, 1))
    return str(net)


def fcn8s(divisor: int = 16, classes: int = 21) -> str:
    """Long et al. 2015: padding of 100, three heights of scores, cropped where their frames differ."""
    net = Prototxt("fcn8s", 1, 3, 70, 84)
    found = vgg_blocks(net, divisor, first_pad=100)
    blob = net.conv("fc6", found["pool5"], 4096 // divisor, 7, relu="relu6")
    net.add("Dropout", "drop6", blob, blob)
    blob = net.conv("fc7", blob, 4096 // divisor, 1, relu="relu7")
    net.add("Dropout", "drop7", blob, blob)
    blob = net.upsample("upscore2", net.conv("score_fr", blob, classes, 1), classes, 4, 2)
    for pool, offset, name in ((4, 5, "upscore_pool4"), (3, 9, "upscore8")):
        score = net.conv(f"score_pool{pool}", found[f"pool{pool}"], classes, 1)
        cropped = net.add(
            "Crop", f"score_pool{pool}c", [score, blob], crop_param={"axis": 2, "offset": offset}
        )
        fused = net.add(
            "Eltwise",
            f"fuse_pool{pool}",
            [blob, cropped],
            eltwise_param={"operation": Word("SUM")},
        )
        blob = net.upsample(name, fused, classes, *((4, 2) if pool == 4 else (16, 8)))
    net.add("Crop", "score", [blob, "data"], crop_param={"axis": 2, "offset": 31})
    return str(net)


def hed(divisor: int = 16) -> str:
    """Xie & Tu 2015: five side outputs, brought to the image's size, cropped and weighed."""
    net = Prototxt("HED", 1, 3, 60, 76)
    found = vgg_blocks(net, divisor, first_pad=35, pools=4)
    crops = []
    for block in range(1, 6):
        blob = net.conv(f"score-dsn{block}", found[f"conv{block}"], 1, 1)
        if block > 1:
            factor = 2 ** (block - 1)
            blob = net.upsample(f"upsample_{factor}", blob, 1, 2 * factor, factor)
        # (2·35 - 2)/2 of the frame, and half of what the upsampling adds
        offset = 34 + (2 ** (block - 2) if block > 1 else 0)
        crops.append(
            net.add("Crop", f"upscore-dsn{block}", [blob, "data"], crop_param={"axis": 2, "offset": offset})
        )
        net.add("Sigmoid", f"sigmoid-dsn{block}", crops[-1])
    fused = net.conv("new-score-weighting", net.add("Concat", "concat-upscore", crops), 1, 1)
    net.add("Sigmoid", "sigmoid-fuse", fused)
    return str(net)


def segnet(divisor: int = 8, classes: int = 11) -> str:
    """Badrinarayanan et al. 2015 (basic): pooling's places bring the values back."""
    net = Prototxt("segnet", 1, 3, 48, 64)
    width, blob, masks = 64 // divisor, "data", []
    blob = net.add("LRN", "norm", blob, lrn_param={"local_size": 5, "alpha": 0.0001, "beta": 0.75})
    for index in range(1, 5):
        net.conv(f"conv{index}", blob, width, 7, pad=3)
        net.norm("", f"conv{index}", bn=f"conv{index}_bn", scale=f"conv{index}_scale", relu=f"relu{index}")
        masks.append(f"pool{index}_mask")
        blob = net.pool(
            f"pool{index}", f"conv{index}", top=f"pool{index} {masks[-1]}", kernel_size=2, stride=2
        )
    for index in range(4, 0, -1):
        blob = net.add("Upsample", f"upsample{index}", [blob, masks[index - 1]], upsample_param={"scale": 2})
        blob = net.conv(f"conv_decode{index}", blob, width, 7, pad=3)
        net.norm("", blob, bn=f"{blob}_bn", scale=f"{blob}_scale")
    net.add("Softmax", "prob", net.conv("conv_classifier", blob, classes, 1))
    return str(net)


def mtcnn(net_of: str) -> str:
    """Zhang et al. 2016, in full: ``P``, ``R`` or ``O``."""
    side = {"P": 47, "R": 24, "O": 48}[net_of]
    widths = {"P": (10, 16, 32), "R": (28, 48, 64), "O": (32, 64, 64, 128)}[net_of]
    kernels = {"P": (3, 3, 3), "R": (3, 3, 2), "O": (3, 3, 3, 2)}[net_of]
    pools = {"P": (2,), "R": (3, 3), "O": (3, 3, 2)}[net_of]
    net, blob = Prototxt(f"{net_of}Net", 2, 3, side, side), "data"
    for index, (width, kernel) in enumerate(zip(widths, kernels, strict=True), start=1):
        blob = net.conv(f"conv{index}", blob, width, kernel)
        net.add("PReLU", f"prelu{index}", blob, blob, prelu_param={"filler": {"value": 0.25}})
        if index <= len(pools):
            blob = net.pool(f"pool{index}", blob, kernel_size=pools[index - 1], stride=2)
    heads = {"P": ("4-1", "4-2"), "R": ("5-1", "5-2"), "O": ("6-1", "6-2", "6-3")}[net_of]
    if net_of != "P":
        blob = net.dense("fc", blob, 256 if net_of == "O" else 128)
        net.add("PReLU", "prelu_fc", blob, blob)
    for head, outputs in zip(heads, (2, 4, 10), strict=False):
        name = f"conv{head}"
        net.conv(name, blob, outputs, 1) if net_of == "P" else net.dense(name, blob, outputs)
        if outputs == 2:
            net.add("Softmax", "prob1", name)
    return str(net)


def deeplab_v1(divisor: int = 16, classes: int = 21, *, multi_scale: bool = False) -> str:
    """Chen et al. 2015: LargeFOV (12 dilations in fc6), and MSc's scores of the image and of pool1 to pool4."""
    net = Prototxt("deeplab_msc" if multi_scale else "deeplab_largefov", 1, 3, 65, 81)
    blob, heads = "data", []
    if multi_scale:
        heads.append(("data", 8))
    for block, (count, outputs) in enumerate(VGG_BLOCKS, start=1):
        for index in range(1, count + 1):
            hole = 2 if block == 5 else 1
            name = f"conv{block}_{index}"
            blob = net.conv(
                name, blob, outputs // divisor, pad=hole, dilation=hole, relu=name.replace("conv", "relu")
            )
        blob = net.pool(f"pool{block}", blob, kernel_size=3, stride=2 if block < 4 else 1, pad=1)
        if multi_scale and block < 5:
            heads.append((blob, {1: 4, 2: 2}.get(block, 1)))
    blob = net.pool("pool5a", blob, "AVE", kernel_size=3, stride=1, pad=1)
    blob = net.conv("fc6", blob, 1024 // divisor, pad=12, dilation=12, relu="relu6")
    net.add("Dropout", "drop6", blob, blob)
    blob = net.conv("fc7", blob, 1024 // divisor, 1, relu="relu7")
    net.add("Dropout", "drop7", blob, blob)
    scores = [net.conv("fc8", blob, classes, 1)]
    for source, stride in heads:
        at = f"{source}_ms"
        inner = net.conv(f"{at}_conv1", source, 128 // divisor, pad=1, stride=stride, relu=f"{at}_relu1")
        net.add("Dropout", f"{at}_drop1", inner, inner)
        inner = net.conv(f"{at}_conv2", inner, 128 // divisor, 1, relu=f"{at}_relu2")
        scores.append(net.conv(f"{at}_conv3", inner, classes, 1))
    if multi_scale:
        blob = net.add("Eltwise", "fc8_fusion", scores, eltwise_param={"operation": Word("SUM")})
    else:
        blob = scores[0]
    net.add("Interp", "fc8_interp", blob, interp_param={"zoom_factor": 8})
    return str(net)


def deeplab_v2_msc(divisor: int = 16, classes: int = 21) -> str:
    """Chen et al. 2017: ResNet-101 on three scales with the same parameters, ASPP on each, and their maximum."""
    net = Prototxt("deeplab_v2_resnet101_msc", 1, 3, 49, 65)
    fused = []
    for prefix, size in (("", None), ("_res075", (37, 49)), ("_res05", (25, 33))):
        blob = "data"
        if size:
            blob = net.add(
                "Interp",
                f"shrink{prefix}",
                "data",
                interp_param=dict(zip(("height", "width"), size, strict=True)),
            )
        blob = resnet_stem(net, blob, divisor, prefix=prefix, shared=True)
        blob = residual_blocks(
            net, blob, (3, 4, 23, 3), divisor, dilations=(1, 1, 2, 4), prefix=prefix, shared=True
        )
        branches = [
            net.conv(
                f"fc1_c{index}{prefix}",
                blob,
                classes,
                pad=hole,
                dilation=hole,
                param=(f"fc1_c{index}_w", f"fc1_c{index}_b"),
            )
            for index, hole in enumerate((6, 12, 18, 24))
        ]
        blob = net.add("Eltwise", f"fc1{prefix}", branches, eltwise_param={"operation": Word("SUM")})
        if size:
            blob = net.add("Interp", f"fc1_interp{prefix}", blob, interp_param={"height": 6, "width": 8})
        fused.append(blob)
    net.add("Eltwise", "fc_fusion", fused, eltwise_param={"operation": Word("MAX")})
    return str(net)


PUBLIC_NETS: dict[str, Callable[[], str]] = {
    "AlexNet": alexnet,
    "CaffeNet": lambda: alexnet(caffenet=True),
    "GoogLeNet": googlenet,
    "VGG16": vgg16,
    "ResNet-50": resnet50,
    "SqueezeNet": squeezenet,
    "MobileNet": mobilenet,
    "FCN-8s": fcn8s,
    "HED": hed,
    "SegNet": segnet,
    "MTCNN-P": lambda: mtcnn("P"),
    "MTCNN-R": lambda: mtcnn("R"),
    "MTCNN-O": lambda: mtcnn("O"),
    "DeepLab-v1-LargeFOV": deeplab_v1,
    "DeepLab-v1-MSc": lambda: deeplab_v1(multi_scale=True),
    "DeepLab-v2-ResNet-101-MSc": deeplab_v2_msc,
}


SLOW = ("DeepLab-v2-ResNet-101-MSc",)  # 1,358 layers


def build(name: str, folder: Path) -> tuple[CaffeNet, np.ndarray]:
    """The net ``name`` with its fillers' values, BatchNorm with statistics of some size, and an input."""
    torch.manual_seed(0)
    prototxt = folder / "net.prototxt"
    prototxt.write_text(PUBLIC_NETS[name]())
    net = load_net(prototxt)
    with torch.no_grad():
        for layer in net.layers:
            if layer.type == "BatchNorm":
                mean, variance, _ = net.params[layer.name]
                mean.normal_(0, 0.3)
                variance.uniform_(0.5, 2)
    shape = next(iter(net.inputs.values()))
    return net, np.random.default_rng(0).normal(size=shape).astype(np.float32)
