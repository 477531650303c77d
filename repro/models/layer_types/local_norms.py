"""LRN, MVN and SSD's Normalize: a blob divided by what it holds itself."""

from __future__ import annotations

from typing import Any

import torch

from repro.layers.norms import lrn_across, lrn_within, mvn, normalize
from repro.models.layer_types.activations import linear
from repro.models.literals import literal
from repro.models.registry import Called, Layer, register
from weights_conversion.caffe_pb2 import FillerParameter, LRNParameter


@register("LRN")
class LRN(Layer):
    """Response normalisation across channels or within them."""

    field = "lrn_param"
    bottom_axes = 4
    keeps_shape = True

    def setup(self) -> None:
        p = self.p
        self.size, self.alpha, self.beta, self.k = p.local_size, p.alpha, p.beta, p.k
        self.across = p.norm_region == LRNParameter.ACROSS_CHANNELS
        if self.size % 2 == 0:
            self.fail("local_size", f"{self.size}, expected an odd number")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.across:
            return lrn_across(x, size=self.size, alpha=self.alpha, beta=self.beta, k=self.k)
        return lrn_within(x, size=self.size, alpha=self.alpha, beta=self.beta)

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        if not self.across:
            square = graph.step("square", "Mul", bottoms * 2)
            window = {
                "kernel_shape": [self.size] * 2,
                "pads": [(self.size - 1) // 2] * 4,
                "count_include_pad": 1,
            }
            mean = graph.step("mean", "AveragePool", [square], **window)
            base = linear(graph, mean, self.alpha, 1.0)
            scale = graph.step("power", "Pow", [base, graph.number(-self.beta)])
            graph.emit("Mul", [bottoms[0], scale], tops[0])
            return
        graph.emit("LRN", bottoms, tops[0], size=self.size, alpha=self.alpha, beta=self.beta, bias=self.k)

    def source(self, code: Any, *bottoms: str) -> str:
        settings = {"size": self.size, "alpha": self.alpha, "beta": self.beta}
        if not self.across:
            return str(code.call(lrn_within, *bottoms, **settings))
        inside = ", ".join(f"{name}={literal(value)}" for name, value in (settings | {"k": self.k}).items())
        return f"F.local_response_norm({bottoms[0]}, {inside})"


@register("MVN")
class MVN(Called):
    """Mean 0 and, unless ``normalize_variance: false``, variance 1, per channel or over all of them."""

    field = "mvn_param"
    function = mvn
    keeps_shape = True

    def setup(self) -> None:
        names = ("normalize_variance", "across_channels", "eps")
        self.arguments = {name: getattr(self.p, name) for name in names}

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        axes = list(range(1 if self.arguments["across_channels"] else 2, len(self.shapes[0])))
        mean = graph.step("mean", "ReduceMean", bottoms, axes=axes)
        if not self.arguments["normalize_variance"]:
            graph.emit("Sub", [bottoms[0], mean], tops[0])
            return
        centred = graph.step("centred", "Sub", [bottoms[0], mean])
        square = graph.step("square", "Mul", [centred, centred])
        variance = graph.step("variance", "ReduceMean", [square], axes=axes)
        deviation = graph.step("deviation", "Sqrt", [variance])
        divisor = graph.step("divisor", "Add", [deviation, graph.number(self.arguments["eps"])])
        graph.emit("Div", [centred, divisor], tops[0])


@register("Normalize")
class Normalize(Called):
    """SSD's scaled L2 norm, over the channels of each cell or over a whole image."""

    field = "norm_param"
    function = normalize
    keeps_shape = True

    def setup(self) -> None:
        p = self.p
        self.arguments = {"across_spatial": p.across_spatial, "eps": p.eps}
        filler = p.scale_filler if p.HasField("scale_filler") else FillerParameter(value=1.0)
        self.blob("weight", () if p.channel_shared else self.shapes[0][1:2], filler)

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        axes = list(range(1, len(self.shapes[0]))) if self.arguments["across_spatial"] else [1]
        total = graph.step("total", "ReduceSumSquare", bottoms, axes=axes)
        added = graph.step("sum", "Add", [total, graph.number(self.arguments["eps"])])
        norm = graph.step("norm", "Sqrt", [added])
        gain = self.weight.reshape(-1, *[1] * (len(self.shapes[0]) - 2))
        scaled = graph.step("scaled", "Div", [bottoms[0], norm])
        graph.emit("Mul", [scaled, graph.constant(f"{self.caffe_name}.gain", gain)], tops[0])
