"""DeepLab's Interp: resizing with aligned corners."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from repro.layers.interp import interp, interp_size
from repro.models.registry import Called, meta, register


@register("Interp")
class Interp(Called):
    """To a size, or by a factor, after a crop (``interp_layer.cpp``)."""

    field = "interp_param"
    bottom_axes = 4
    function = interp

    def setup(self) -> None:
        self.arguments = {field.name: value for field, value in self.p.ListFields()}
        if not self.arguments.keys() - {"pad_beg", "pad_end"}:
            self.fail("", "expected zoom_factor, shrink_factor, or height and width")
        try:
            interp_size(*self.shapes[0][2:], **self.arguments)
        except ValueError as error:
            self.fail("", str(error))

    def infer(self, *bottoms: torch.Tensor) -> torch.Tensor:
        shape = bottoms[0].shape
        return meta((*shape[:2], *interp_size(*shape[2:], **self.arguments)))

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        """Resize with aligned corners; the size is worked out in the graph, for images of any size."""
        x, get, numbers = bottoms[0], self.arguments.get, graph.numbers
        if get("pad_beg", 0) or get("pad_end", 0):
            begin, end = -get("pad_beg", 0), get("pad_end", 0) or np.iinfo(np.int64).max
            x = graph.step("crop", "Slice", [x, numbers(begin, begin), numbers(end, end), numbers(2, 3)])
        shape = graph.step("shape", "Shape", [x])
        if "height" in self.arguments:
            size = numbers(self.arguments["height"], self.arguments["width"])
        else:
            before = graph.step("size", "Gather", [shape, numbers(2, 3)])
            less = graph.step("less", "Sub", [before, numbers(1)])
            shrunk = graph.step("shrunk", "Div", [less, numbers(get("shrink_factor", 1))])
            zoomed = graph.step("zoomed", "Mul", [shrunk, numbers(get("zoom_factor", 1))])
            size = graph.step("new", "Add", [zoomed, numbers(1)])
        front = graph.step("front", "Gather", [shape, numbers(0, 1)])
        sizes = graph.step("sizes", "Concat", [front, size], axis=0)
        modes = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
        graph.emit("Resize", [x, "", "", sizes], tops[0], **modes)
