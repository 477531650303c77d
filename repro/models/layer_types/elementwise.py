"""Layers that join blobs of one shape: Eltwise, …"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch

from repro.models.registry import Layer, register
from weights_conversion.caffe_pb2 import EltwiseParameter


@register("Eltwise")
class Eltwise(Layer):
    """SUM with a coefficient a bottom, PROD or MAX, from left to right (``eltwise_layer.cpp``)."""

    field = "eltwise_param"
    keeps_shape = True
    counts = (2, None)

    def setup(self) -> None:
        self.operation, self.coefficients = self.p.operation, list(self.p.coeff)
        if any(shape != self.shapes[0] for shape in self.shapes):
            self.fail("", f"bottoms of the shapes {', '.join(map(str, self.shapes))}, expected equal ones")
        if self.coefficients and self.operation != EltwiseParameter.SUM:
            self.fail("coeff", "only for SUM")
        if self.coefficients and len(self.coefficients) != len(self.bottoms):
            self.fail("coeff", f"{len(self.coefficients)} values for {len(self.bottoms)} bottoms")

    def forward(self, *bottoms: torch.Tensor) -> torch.Tensor:
        if self.operation == EltwiseParameter.PROD:
            return reduce(torch.mul, bottoms)
        if self.operation == EltwiseParameter.MAX:
            return reduce(torch.maximum, bottoms)
        if any(value != 1 for value in self.coefficients):
            bottoms = tuple(value * x for value, x in zip(self.coefficients, bottoms, strict=True))
        return reduce(torch.add, bottoms)

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        operator = {EltwiseParameter.PROD: "Mul", EltwiseParameter.SUM: "Add", EltwiseParameter.MAX: "Max"}
        if any(value != 1 for value in self.coefficients):
            super().onnx(graph, bottoms, tops)
        total = bottoms[0]
        for index, bottom in enumerate(bottoms[1:-1], start=1):
            total = graph.step(str(index), operator[self.operation], [total, bottom])
        graph.emit(operator[self.operation], [total, bottoms[-1]], tops[0])
