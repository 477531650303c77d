"""BatchNorm, Scale and Bias (``batch_norm_layer.cpp``, ``scale_layer.cpp``, ``bias_layer.cpp``).

BatchNorm keeps three blobs: mean and variance, both multiplied by a factor, and the factor. With global statistics

    y = (x - mean / factor) / sqrt(variance / factor + eps),   0 for both where the factor is 0

It knows no gain and bias: those are a Scale layer's, y = weight·x + bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from repro.models.literals import literal
from repro.models.registry import Layer, register
from weights_conversion.caffe_pb2 import FillerParameter

ONE = FillerParameter(value=1.0)


@register("BatchNorm")
class BatchNorm(Layer):
    """Global statistics in tests, the batch's in training, unless ``use_global_stats`` says which.

    A new layer of global statistics has mean 0, variance 1 and factor 1 (Caffe's has zeros throughout, which would
    multiply by 316); any other has Caffe's zeros, which the moving averages start from.
    """

    field = "batch_norm_param"
    keeps_shape = True
    mean: torch.Tensor
    variance: torch.Tensor
    factor: torch.Tensor

    def setup(self) -> None:
        p, shape = self.p, self.shapes[0]
        specs = self.layer.param
        if len(specs) < 3 and any(spec.lr_mult for spec in specs):  # of three Caffe sets them itself
            self.fail("param", "lr_mult above 0, expected 0: statistics are not learnt")
        self.use_global = p.use_global_stats if p.HasField("use_global_stats") else None
        self.mixes_images = not self.use_global
        self.fraction, self.eps = p.moving_average_fraction, p.eps
        channels = shape[1] if len(shape) > 1 else 1
        one = ONE if self.use_global else None
        self.blob("mean", (channels,), learnt=False)
        self.blob("variance", (channels,), one, learnt=False)
        self.blob("factor", (1,), one, learnt=False)

    def gain_and_bias(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer with global statistics as y = gain·x + bias, both (C)."""
        mean, variance = statistics(self)
        gain = (variance + self.eps).rsqrt()
        return gain, -mean * gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.use_global is True or (self.use_global is None and not self.training):
            return affine(x, *self.gain_and_bias(), axis=1)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        mean = x.mean(axes)
        centred = x - expanded(mean, x, 1)
        variance = centred.square().mean(axes)
        if self.training or self.use_global is False:
            self._remember(mean.detach(), variance.detach(), x.numel() // mean.numel())
        return centred * expanded((variance + self.eps).rsqrt(), x, 1)

    @torch.no_grad()
    def _remember(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        """Move the averages; the variance counts with m/(m - 1)."""
        if mean.is_meta:
            return
        self.factor.mul_(self.fraction).add_(1)
        self.mean.mul_(self.fraction).add_(mean)
        self.variance.mul_(self.fraction).add_(variance, alpha=count / (count - 1) if count > 1 else 1)

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        channels, name = len(self.mean), self.caffe_name
        mean, variance = statistics(self)
        gain = [
            graph.constant(f"ones_{channels}", np.ones(channels, np.float32)),
            graph.constant(f"zeros_{channels}", np.zeros(channels, np.float32)),
        ]
        blobs = [graph.constant(f"{name}.mean", mean), graph.constant(f"{name}.variance", variance)]
        graph.emit("BatchNormalization", [*bottoms, *gain, *blobs], tops[0], epsilon=self.eps)

    def source(self, code: Any, *bottoms: str) -> str:
        blobs = code.blob("mean").removesuffix(".mean")
        if self.use_global is False:
            return f"F.batch_norm({bottoms[0]}, None, None, training=True, eps={literal(self.eps)})"
        return f"F.batch_norm({bottoms[0]}, *{code.function(statistics)}({blobs}), eps={literal(self.eps)})"


def statistics(blobs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """BatchNorm's mean and variance (C), divided by the factor."""
    scale = torch.where(blobs.factor == 0, blobs.factor, 1 / blobs.factor)
    return blobs.mean * scale, blobs.variance * scale


@register("Scale")
class Scale(Layer):
    """weight·x + bias over axes from ``axis`` on; with two bottoms the second one is the weight."""

    field = "scale_param"
    counts = (1, 2)
    keeps_shape = True

    def setup(self) -> None:
        p = self.p
        self.first, factors = covered_axes(self)
        if len(self.bottoms) == 1:
            self.blob("weight", factors, p.filler if p.HasField("filler") else ONE)
        self.bias = self.blob("bias", factors, p.bias_filler) if p.bias_term else None

    def forward(self, x: torch.Tensor, factor: torch.Tensor | None = None) -> torch.Tensor:
        return affine(x, self.weight if factor is None else factor, self.bias, axis=self.first)

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        factor = in_graph(self, graph, "weight", bottoms)
        if self.bias is None:
            graph.emit("Mul", [bottoms[0], factor], tops[0])
        else:
            scaled = graph.step("weight", "Mul", [bottoms[0], factor])
            graph.emit("Add", [scaled, in_graph(self, graph, "bias", bottoms[:1])], tops[0])

    def source(self, code: Any, *bottoms: str) -> str:
        scaled = f"{bottoms[0]} * {in_source(self, code, 'weight', bottoms)}"
        return scaled if self.bias is None else f"{scaled} + {in_source(self, code, 'bias', bottoms[:1])}"


@register("Bias")
class Bias(Layer):
    """x + bias over axes from ``axis`` on; with two bottoms the second one is the bias."""

    field = "bias_param"
    counts = (1, 2)
    keeps_shape = True
    bias: torch.Tensor

    def setup(self) -> None:
        self.first, factors = covered_axes(self)
        if len(self.bottoms) == 1:
            self.blob("bias", factors, self.p.filler)

    def forward(self, x: torch.Tensor, values: torch.Tensor | None = None) -> torch.Tensor:
        return x + expanded(self.bias if values is None else values, x, self.first)

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        graph.emit("Add", [bottoms[0], in_graph(self, graph, "bias", bottoms)], tops[0])

    def source(self, code: Any, *bottoms: str) -> str:
        return f"{bottoms[0]} + {in_source(self, code, 'bias', bottoms)}"


def in_graph(layer: Scale | Bias, graph: Any, name: str, bottoms: list[str]) -> str:
    """The second bottom, or else the blob ``name``, in ONNX and in a shape that goes along the first bottom."""
    axes = len(layer.shapes[0]) - layer.first
    if len(bottoms) > 1:
        missing = range(len(layer.shapes[1]), axes)
        if not missing:
            return bottoms[1]
        return str(graph.step("along", "Unsqueeze", [bottoms[1], graph.numbers(*missing)]))
    blob = layer.caffe_blobs()[name]
    shape = (*blob.shape, *[1] * (axes - blob.ndim))
    return str(graph.constant(f"{layer.caffe_name}.{name}", blob.reshape(shape)))


def in_source(layer: Scale | Bias, code: Any, name: str, bottoms: Sequence[str]) -> str:
    """The same in Python."""
    values = bottoms[1] if len(bottoms) > 1 else code.blob(name)
    axes = len(layer.shapes[1]) if len(bottoms) > 1 else layer.caffe_blobs()[name].ndim
    after = len(layer.shapes[0]) - layer.first - axes
    return f"{values}[{', '.join(['...', *['None'] * after])}]" if after else values


def covered_axes(layer: Layer) -> tuple[int, tuple[int, ...]]:
    """``axis`` of a Scale or Bias layer, and the sizes of the axes that its factors or its second bottom cover."""
    shape, first = layer.shapes[0], layer.axis(layer.p.axis)
    if len(layer.bottoms) > 1:
        factors = layer.shapes[1]
        if shape[first : first + len(factors)] != factors:
            layer.fail("", f"a second bottom of shape {factors} does not fit {shape} from axis {first}")
        return first, factors
    if layer.p.num_axes < -1:
        layer.fail("num_axes", f"{layer.p.num_axes}, expected 0 or more, or -1 for all")
    axes = len(shape) - first if layer.p.num_axes < 0 else layer.p.num_axes
    if first + axes > len(shape):
        layer.fail("num_axes", f"{axes} from axis {first} in a blob of {len(shape)} axes")
    return first, shape[first : first + axes]


def expanded(values: torch.Tensor, x: torch.Tensor, axis: int) -> torch.Tensor:
    """``values``, which stand for the axes of ``x`` from ``axis`` on, in a shape that broadcasts against ``x``."""
    after = x.ndim - axis - values.ndim
    return values.reshape(*values.shape, *[1] * after) if after else values


def affine(x: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor | None, *, axis: int) -> torch.Tensor:
    """gain·x + bias. Where neither is learnt the backward pass needs no x, which ``batch_norm`` would keep."""
    gain = expanded(gain, x, axis)
    if bias is None:
        return x * gain
    bias = expanded(bias, x, axis)
    if x.dtype == gain.dtype or gain.requires_grad or bias.requires_grad:
        return torch.addcmul(bias, x, gain)
    return _MixedAffine.apply(x, gain, bias)


class _MixedAffine(torch.autograd.Function):
    """gain·x + bias of an x of lower precision, computed in that of gain and bias, which are not learnt here, and
    rounded to x's. Under autocast PyTorch's own would return float32, twice the memory until the next convolution."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gain)
        return torch.addcmul(bias, x, gain, out=torch.empty_like(x))

    @staticmethod
    def backward(ctx: Any, top_diff: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gain,) = ctx.saved_tensors
        return torch.mul(top_diff, gain, out=torch.empty_like(top_diff)), None, None
