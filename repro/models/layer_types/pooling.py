"""Pooling, SPP and SegNet's Upsample, as ``repro.layers.pooling`` computes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from repro.layers.pooling import (
    average_pool,
    max_pool,
    max_pool_with_mask,
    pooled_sizes,
    spatial_pyramid,
    stochastic_pool,
    unpool,
)
from repro.models.layer_types.spatial import spatial
from repro.models.literals import Code
from repro.models.registry import Layer, meta, register
from weights_conversion.caffe_pb2 import PoolingParameter, SPPParameter

_METHODS = PoolingParameter.PoolMethod
LOWEST = float(np.finfo(np.float32).min)  # what Caffe gives for a window without a cell


@register("Pooling")
class Pooling(Layer):
    """MAX, AVE or STOCHASTIC over windows of the last two axes, or over all of them (``global_pooling``).

    MAX may have a second top: where in the bottom's plane each value stands.
    """

    field = "pooling_param"
    bottom_axes = 4
    top_counts = (1, 2)

    def setup(self) -> None:
        p, shape = self.p, self.shapes[0]
        self.method, self.whole, self.mask = p.pool, p.global_pooling, len(self.layer.top) > 1
        self.floor = p.round_mode == PoolingParameter.FLOOR
        if self.mask and self.method != PoolingParameter.MAX:
            self.fail("pool", f"{_METHODS.Name(self.method)} gives no mask, which the second top asks for")
        self.stride, self.pad = spatial(self, "stride", 2, 1), spatial(self, "pad", 2, 0)
        sizes = [name for name in ("kernel_size", "kernel_h", "kernel_w") if p.HasField(name)]
        if self.whole and sizes:
            self.fail(sizes[0], "beside global_pooling, which takes the whole plane")
        self.kernel = shape[2:] if self.whole else spatial(self, "kernel_size", 2)
        if self.whole and (self.stride, self.pad) != ((1, 1), (0, 0)):
            self.fail("global_pooling", "goes with no other stride than 1 and no pad")
        if self.method == PoolingParameter.STOCHASTIC and self.pad != (0, 0):
            self.fail("pad", "STOCHASTIC pooling knows none")
        pooled = pooled_sizes(shape[2:], self.kernel, self.stride, self.pad, floor=self.floor)
        for size, kernel, pad, cells in zip(shape[2:], self.kernel, self.pad, pooled, strict=True):
            if pad >= kernel:
                self.fail("pad", f"{pad}, expected less than the kernel's {kernel}")
            if cells < 1:
                self.fail("kernel_size", f"{kernel} does not fit into {size} cells with pad {pad}")

    def infer(self, *bottoms: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shape = bottoms[0].shape
        kernel = shape[2:] if self.whole else self.kernel
        pooled = pooled_sizes(shape[2:], kernel, self.stride, self.pad, floor=self.floor)
        return tuple(meta((*shape[:2], *pooled)) for _ in self.layer.top)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        kernel = x.shape[2:] if self.whole else self.kernel
        if self.mask:
            values, places = max_pool_with_mask(x, kernel, self.stride, self.pad, floor=self.floor)
            return values, places.to(x.dtype)
        if self.method == PoolingParameter.MAX:
            return max_pool(x, kernel, self.stride, self.pad, floor=self.floor)
        if self.method == PoolingParameter.STOCHASTIC:
            return stochastic_pool(x, kernel, self.stride, training=self.training, floor=self.floor)
        if self.whole:
            return x.mean((2, 3), keepdim=True)
        return average_pool(x, kernel, self.stride, self.pad, floor=self.floor)

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        maximum = self.method == PoolingParameter.MAX
        if self.method == PoolingParameter.STOCHASTIC or (self.mask and self.whole):
            super().onnx(graph, bottoms, tops)
        if self.whole:
            graph.emit("GlobalMaxPool" if maximum else "GlobalAveragePool", bottoms, tops[0])
            return
        common: dict[str, Any] = {"kernel_shape": self.kernel, "strides": self.stride}
        sizes = list(zip(self.kernel, self.stride, self.pad, strict=True))
        # With p cells of padding before and p + stride - 1 behind, ONNX's rounding down gives Caffe's windows for
        # every input size where p + stride <= kernel: then no window starts in the padding that Caffe would drop.
        simple = not self.floor and all(pad + stride <= kernel for kernel, stride, pad in sizes)
        behind = [pad + stride - 1 for _, stride, pad in sizes]
        pads = [*self.pad, *behind]
        if self.mask and not simple:
            self.fail("", "a mask beside such a kernel, stride and pad cannot be exported to ONNX")
        if self.mask:
            # ONNX counts places through the whole blob, Caffe through a plane
            values = f"{tops[0]}/places"
            graph.emit("MaxPool", bottoms, tops[0], more=[values], pads=pads, **common)
            sides = graph.step("sides", "Slice", [graph.step("shape", "Shape", bottoms), *_last_two(graph)])
            plane = graph.step("plane", "ReduceProd", [sides], keepdims=0)
            graph.node("Cast", graph.step("place", "Mod", [values, plane]), name=tops[1], to=1)
        elif maximum and simple:
            graph.emit("MaxPool", bottoms, tops[0], pads=pads, **common)
        elif not maximum and set(self.stride) == {1}:  # nothing to round; the divisor counts the padding
            pads = [*self.pad, *self.pad]
            graph.emit("AveragePool", bottoms, tops[0], pads=pads, count_include_pad=1, **common)
        else:
            self._onnx_padded(graph, bottoms[0], tops[0], common)

    def _onnx_padded(self, graph: Any, x: str, top: str, common: dict[str, Any]) -> None:
        """The blob padded to where Caffe's last window ends, which depends on its size; then nothing is to be rounded.

        A mean counts the cells of the blob and of the padding that the prototxt asks for, and no more: it is the mean
        of the padded values, divided by the mean of ones padded likewise.
        """
        number, numbers = graph.number, graph.numbers
        sides = graph.step("sides", "Slice", [graph.step("shape", "Shape", [x]), *_last_two(graph)])
        span = [2 * pad - kernel for pad, kernel in zip(self.pad, self.kernel, strict=True)]
        if not self.floor:
            span = [value + stride - 1 for value, stride in zip(span, self.stride, strict=True)]
        room = graph.step("room", "Add", [sides, numbers(*span)])
        last = graph.step("last", "Div", [room, numbers(*self.stride)])  # index of the last window
        # with padding along any axis, a window that would start behind the blob is dropped
        least = [pad - 1 if any(self.pad) else np.iinfo(np.int32).max for pad in self.pad]
        inside = graph.step("inside", "Add", [sides, numbers(*least)])
        most = graph.step("most", "Div", [inside, numbers(*self.stride)])
        last = graph.step("last_kept", "Min", [last, most])
        start = graph.step("start", "Mul", [last, numbers(*self.stride)])
        end = graph.step("end", "Add", [start, numbers(*self.kernel)])

        # cut off, or filled up, where the last window ends
        maximum = self.method == PoolingParameter.MAX
        covered = graph.step("padded_covered", "Add", [sides, numbers(*self.pad)])
        behind = graph.step("padded_behind", "Sub", [end, covered])
        pads = graph.step("padded_pads", "Concat", [numbers(0, 0, *self.pad, 0, 0), behind], axis=0)
        padded = graph.step("padded", "Pad", [x, pads, number(LOWEST if maximum else 0.0)])
        if maximum:
            graph.emit("MaxPool", [padded], top, **common)
            return
        mean = graph.step("mean", "AveragePool", [padded], **common)
        framed = graph.step("framed", "Add", [sides, numbers(*(2 * pad for pad in self.pad))])
        plane = graph.step("plane", "Concat", [numbers(1, 1), framed], axis=0)
        ones = graph.step("ones", "Expand", [number(1.0), plane])
        behind = graph.step("beyond", "Sub", [end, framed])
        pads = graph.step("beyond_pads", "Concat", [numbers(0, 0, 0, 0, 0, 0), behind], axis=0)
        counted = graph.step("counted", "Pad", [ones, pads, number(0.0)])
        share = graph.step("share", "AveragePool", [counted], **common)
        # a window outside of everything: 0
        least_share = number(0.5 / (self.kernel[0] * self.kernel[1]))
        graph.emit("Div", [mean, graph.step("divisor", "Max", [share, least_share])], top)

    def source(self, code: Any, *bottoms: str) -> str | Sequence[str]:
        (x,) = bottoms
        maximum = self.method == PoolingParameter.MAX
        kernel = Code(f"{x}.shape[2:]") if self.whole else self.kernel
        floor = {"floor": True} if self.floor else {}
        if self.mask:
            call = code.call(max_pool_with_mask, x, kernel, self.stride, self.pad, **floor)
            code.line(f"values, places = {call}")
            return ("values", "places.to(values.dtype)")
        if self.method == PoolingParameter.STOCHASTIC:
            training = Code("self.training")
            return str(code.call(stochastic_pool, x, kernel, self.stride, training=training, **floor))
        if self.whole:
            return f"{x}.{'amax' if maximum else 'mean'}((2, 3), keepdim=True)"
        function = max_pool if maximum else average_pool
        return str(code.call(function, x, self.kernel, self.stride, self.pad, **floor))


def _last_two(graph: Any) -> list[str]:
    """Start and end of a shape's last two numbers, for ONNX's Slice."""
    return [graph.numbers(2), graph.numbers(4)]


@register("SPP")
class SPP(Layer):
    """Pooling into 1, 4, 16, … cells, side by side (``spp_layer.cpp``)."""

    field = "spp_param"
    bottom_axes = 4

    def setup(self) -> None:
        self.height = self.p.pyramid_height
        if self.height < 1:
            self.fail("pyramid_height", "missing")
        methods = {SPPParameter.MAX: max_pool, SPPParameter.AVE: average_pool}
        if self.p.pool not in methods:
            self.fail("pool", "STOCHASTIC is not supported")
        self.pool = methods[self.p.pool]
        try:
            self(meta(self.shapes[0]))
        except ValueError as error:
            self.fail("pyramid_height", str(error))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return spatial_pyramid(x, self.height, self.pool)

    def source(self, code: Any, *bottoms: str) -> str:
        return str(code.call(spatial_pyramid, *bottoms, self.height, code.function(self.pool)))


@register("Upsample")
class Upsample(Layer):
    """Values back to where a Pooling layer's mask, the second bottom, says they came from (SegNet)."""

    field = "upsample_param"
    counts = 2

    def setup(self) -> None:
        p = self.p
        if len(self.shapes[0]) != 4 or self.shapes[0] != self.shapes[1]:
            shapes = f"{self.shapes[0]} and {self.shapes[1]}"
            self.fail("", f"bottoms of the shapes {shapes}, expected equal ones of 4 axes")
        self.size = (p.upsample_h, p.upsample_w) if p.upsample_h and p.upsample_w else None
        self.scale = (p.scale_h, p.scale_w) if p.HasField("scale_h") else (p.scale, p.scale)
        self.missing = (int(p.pad_out_h), int(p.pad_out_w))
        if self.size is None and min(self.scale) < 1:
            self.fail("scale", f"{self.scale}, expected 1 or more")

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        high, wide = (
            size * scale - missing
            for size, scale, missing in zip(x.shape[2:], self.scale, self.missing, strict=True)
        )
        return unpool(x, mask, self.size or (high, wide))

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        numbers = graph.numbers
        shape = graph.step("shape", "Shape", bottoms[:1])
        front = graph.step("front", "Slice", [shape, numbers(0), numbers(2)])
        if self.size:
            size = numbers(*self.size)
        else:
            sides = graph.step("sides", "Slice", [shape, *_last_two(graph)])
            grown = graph.step("grown", "Mul", [sides, numbers(*self.scale)])
            size = graph.step("size", "Sub", [grown, numbers(*self.missing)])
        cells = graph.step("cells", "ReduceProd", [size], keepdims=1)
        flat = graph.step("flat", "Concat", [front, cells], axis=0)
        zeros = graph.step("zeros", "ConstantOfShape", [flat])
        values, mask = (
            graph.step(name, "Reshape", [x, numbers(0, 0, -1)])
            for name, x in zip(("values", "mask"), bottoms, strict=True)
        )
        places = graph.step("places", "Cast", [mask], to=7)
        scattered = graph.step("scattered", "ScatterElements", [zeros, places, values], axis=2)
        graph.emit("Reshape", [scattered, graph.step("whole", "Concat", [front, size], axis=0)], tops[0])

    def source(self, code: Any, *bottoms: str) -> str:
        x, mask = bottoms
        if self.size:
            return str(code.call(unpool, x, mask, self.size))
        sides = [
            f"{x}.shape[{axis}] * {scale}{f' - {missing}' * bool(missing)}"
            for axis, scale, missing in zip((2, 3), self.scale, self.missing, strict=True)
        ]
        return f"{code.function(unpool)}({x}, {mask}, ({', '.join(sides)}))"
