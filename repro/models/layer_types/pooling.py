"""Caffe's pooling (``pooling_layer.cpp``).

Sizes are rounded up, and a last window that would start in the right or bottom padding is dropped:

    out = ceil((in + 2·pad - kernel) / stride) + 1;   if pad and (out - 1)·stride >= in + pad: out -= 1

PyTorch's ``ceil_mode=True`` states the same rule. AVE divides by the window's size clipped to the *padded* input, so
border windows of a 3x3 kernel with pad 1 still divide by 9: ``count_include_pad=True``. MAX never sees the padding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from repro.models.layer_types.spatial import spatial
from repro.models.registry import Layer, meta, register
from weights_conversion.caffe_pb2 import PoolingParameter


@register("Pooling")
class Pooling(Layer):
    """MAX and AVE over windows of the last two axes, or over all of them (``global_pooling``).

    A second top of MAX is where each maximum stands in its plane, counted row by row.
    """

    field = "pooling_param"
    top_counts = (1, 2)

    def setup(self) -> None:
        p, shape = self.p, self.shapes[0]
        if len(shape) != 4:
            self.fail("", f"a bottom of {len(shape)} axes, expected 4")
        if p.pool == PoolingParameter.STOCHASTIC:
            self.fail("pool", "STOCHASTIC is not supported")
        self.maximum, self.whole = p.pool == PoolingParameter.MAX, p.global_pooling
        self.ceil = p.round_mode == PoolingParameter.CEIL
        self.masks = len(self.layer.top) > 1
        if self.masks and (not self.maximum or self.whole):
            self.fail("pool", "a second top is for MAX over windows")
        if self.whole:
            self.kernel: tuple[int, ...] = ()
            return
        self.kernel, self.stride, self.pad = (
            spatial(self, field, 2, default)
            for field, default in (("kernel_size", None), ("stride", 1), ("pad", 0))
        )
        for size, kernel, stride, pad in zip(shape[2:], self.kernel, self.stride, self.pad, strict=True):
            if min(kernel, stride) < 1:
                self.fail("kernel_size" if kernel < 1 else "stride", "0, expected 1 or more")
            if pad >= kernel:
                self.fail("pad", f"{pad}, expected less than the kernel's {kernel}")
            if size + 2 * pad < kernel:
                self.fail("kernel_size", f"{kernel} does not fit into {size} cells with pad {pad}")

    def infer(self, *bottoms: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shape = bottoms[0].shape
        spatial = (1, 1) if self.whole else tuple(self._pooled(shape[axis], axis - 2) for axis in (2, 3))
        return tuple(meta((*shape[:2], *spatial)) for _ in self.layer.top)

    def _pooled(self, size: int, axis: int) -> int:
        kernel, stride, pad = self.kernel[axis], self.stride[axis], self.pad[axis]
        if not self.ceil:
            return (size + 2 * pad - kernel) // stride + 1
        pooled = -((size + 2 * pad - kernel) // -stride) + 1
        return pooled - 1 if pad and (pooled - 1) * stride >= size + pad else pooled

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if self.whole:
            return x.amax((2, 3), keepdim=True) if self.maximum else x.mean((2, 3), keepdim=True)
        if self.masks:
            top, places = F.max_pool2d(
                x, self.kernel, self.stride, self.pad, ceil_mode=self.ceil, return_indices=True
            )
            return top, places.to(x.dtype)
        if self.maximum:
            return F.max_pool2d(x, self.kernel, self.stride, self.pad, ceil_mode=self.ceil)
        return F.avg_pool2d(
            x, self.kernel, self.stride, self.pad, ceil_mode=self.ceil, count_include_pad=True
        )

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        if self.masks:
            super().onnx(graph, bottoms, tops)
        if self.whole:
            graph.emit("GlobalMaxPool" if self.maximum else "GlobalAveragePool", bottoms, tops[0])
            return
        common: dict[str, Any] = {"kernel_shape": self.kernel, "strides": self.stride}
        sizes = list(zip(self.kernel, self.stride, self.pad, strict=True))
        # With p cells of padding before and p + stride - 1 behind, ONNX's rounding down gives Caffe's windows for
        # every input size where p + stride <= kernel: then no window starts in the padding that Caffe would drop.
        if self.maximum and self.ceil and all(pad + stride <= kernel for kernel, stride, pad in sizes):
            behind = [pad + stride - 1 for _, stride, pad in sizes]
            graph.emit("MaxPool", bottoms, tops[0], pads=[*self.pad, *behind], **common)
        elif not self.maximum and set(self.stride) == {1}:  # nothing to round; the divisor counts the padding
            pads = [*self.pad, *self.pad]
            graph.emit("AveragePool", bottoms, tops[0], pads=pads, count_include_pad=1, **common)
        else:
            self.fail(
                "",
                f"kernel {self.kernel}, stride {self.stride}, pad {self.pad} has no exact form in ONNX here",
            )
