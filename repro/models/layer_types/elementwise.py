"""Layers that join blobs value by value: Eltwise, Axpy, SpatialProduct, BiasChannel."""

from __future__ import annotations

import functools
from typing import Any

import torch

from repro.layers.elementwise import axpy, bias_channel, eltwise_max, eltwise_product, eltwise_sum
from repro.models.literals import literal
from repro.models.registry import Called, Layer, meta, register, shapes_of
from weights_conversion.caffe_pb2 import BiasChannelParameter, EltwiseParameter


@register("Eltwise")
class Eltwise(Layer):
    """SUM with a coefficient per bottom, PROD or MAX, from left to right (``eltwise_layer.cpp``)."""

    field = "eltwise_param"
    counts = (2, None)
    keeps_shape = True

    def setup(self) -> None:
        self.operation, self.coefficients = self.p.operation, list(self.p.coeff)
        self.stable = self.p.stable_prod_grad
        if any(shape != self.shapes[0] for shape in self.shapes):
            self.fail("", f"bottoms of the shapes {', '.join(map(str, self.shapes))}, expected equal ones")
        if self.operation == EltwiseParameter.SUM and self.layer.top[0] == self.layer.bottom[0]:
            reason = (
                f"{self.layer.top[0]!r} is the first bottom, too: Caffe would fill it with 0 before it adds"
            )
            self.fail("top", reason)
        if self.coefficients and self.operation != EltwiseParameter.SUM:
            self.fail("coeff", "only for SUM")
        if self.coefficients and len(self.coefficients) != len(self.bottoms):
            self.fail("coeff", f"{len(self.coefficients)} values for {len(self.bottoms)} bottoms")

    def infer(self, *bottoms: torch.Tensor) -> torch.Tensor:
        if any(x.shape != bottoms[0].shape for x in bottoms):
            raise RuntimeError(f"layer {self.caffe_name!r}: bottoms of the shapes {shapes_of(bottoms)}")
        return meta(bottoms[0].shape)

    def forward(self, *bottoms: torch.Tensor) -> torch.Tensor:
        if self.operation == EltwiseParameter.PROD:
            return eltwise_product(bottoms, stable_gradient=self.stable)
        if self.operation == EltwiseParameter.MAX:
            return eltwise_max(bottoms)
        return eltwise_sum(bottoms, self.coefficients)

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        operator = {EltwiseParameter.PROD: "Mul", EltwiseParameter.SUM: "Add", EltwiseParameter.MAX: "Max"}
        for index, value in enumerate(self.coefficients):
            if value != 1:
                bottoms[index] = graph.step(f"times{index}", "Mul", [bottoms[index], graph.number(value)])
        total = bottoms[0]
        for index, bottom in enumerate(bottoms[1:-1], start=1):
            total = graph.step(str(index), operator[self.operation], [total, bottom])
        graph.emit(operator[self.operation], [total, bottoms[-1]], tops[0])

    def source(self, code: Any, *bottoms: str) -> str:
        if self.operation == EltwiseParameter.MAX:
            return functools.reduce(lambda a, b: f"torch.maximum({a}, {b})", bottoms)
        if self.operation == EltwiseParameter.PROD:
            return " * ".join(bottoms)
        factors = self.coefficients or [1.0] * len(bottoms)
        terms = zip(factors, bottoms, strict=True)
        return " + ".join(x if factor == 1 else f"{literal(factor)} * {x}" for factor, x in terms)


@register("Axpy")
class Axpy(Called):
    """a · x + y with a number per image and channel (SENet's ``axpy_layer.cpp``)."""

    counts = 3
    function = axpy

    def setup(self) -> None:
        a, x, y = self.shapes
        if x != y or a[:2] != x[:2] or any(size != 1 for size in a[2:]) or len(x) != 4:
            self.fail(
                "", f"bottoms of the shapes {a}, {x}, {y}, expected (N, C, 1, 1) and twice (N, C, H, W)"
            )

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        if len(self.shapes[0]) != 4:
            super().onnx(graph, bottoms, tops)
        graph.emit("Add", [graph.step("scaled", "Mul", bottoms[:2]), bottoms[2]], tops[0])


@register("SpatialProduct")
class SpatialProduct(Called):
    """x · m, one map (N, 1, H, W) for all channels (DeepLab-v2's ``spatial_product_layer.cpp``)."""

    function, operator = torch.mul, "Mul"
    counts = 2
    keeps_shape = True

    def setup(self) -> None:
        x, m = self.shapes
        if len(x) != 4 or m != (x[0], 1, *x[2:]):
            self.fail("", f"bottoms of the shapes {x} and {m}, expected (N, C, H, W) and (N, 1, H, W)")


@register("BiasChannel")
class BiasChannel(Called):
    """Raises the channels that an image's labels name (DeepLab-v2's ``bias_channel_layer.cpp``)."""

    field = "bias_channel_param"
    function = bias_channel
    counts = 2
    keeps_shape = True

    def setup(self) -> None:
        p = self.p
        if p.label_type != BiasChannelParameter.IMAGE:
            self.fail("label_type", "PIXEL is not supported")
        for name in ("bg_bias", "fg_bias"):
            if getattr(p, name) < 0:
                self.fail(name, f"{getattr(p, name):g}, expected 0 or more")
        ignored = list(p.ignore_label)
        self.arguments = {"bg_bias": p.bg_bias, "fg_bias": p.fg_bias, "ignore_labels": ignored}
