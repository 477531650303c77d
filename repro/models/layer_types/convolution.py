"""Convolution, Deconvolution, InnerProduct, Embed and Im2col, in Caffe's files of these names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from repro.layers.rearrange import embed, im2col
from repro.models.layer_types.spatial import dilation, spatial
from repro.models.registry import Called, Layer, Shape, meta, register

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_DECONVOLUTIONS = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class ConvolutionBase(Layer):
    """What Convolution and Deconvolution share: the message, and the blobs weight and bias."""

    field = "convolution_param"
    counts = top_counts = (1, None)
    transposed = False
    others: tuple[Any, ...]  # what ``function`` takes behind weight and bias

    def setup(self) -> None:
        p, shape = self.p, self.shapes[0]
        if self.axis(p.axis) != 1:
            self.fail("axis", f"{p.axis} is not supported, only 1")
        axes = len(shape) - 2
        if axes not in _CONVOLUTIONS:
            self.fail("", f"a bottom of {len(shape)} axes, expected 3 to 5")
        if any(other != shape for other in self.shapes):
            self.fail("", f"bottoms of the shapes {', '.join(map(str, self.shapes))}, expected equal ones")
        self.kernel = spatial(self, "kernel_size", axes)
        self.stride = spatial(self, "stride", axes, 1)
        self.pad = spatial(self, "pad", axes, 0)
        self.dilation = dilation(self, axes)
        self.group, self.outputs, channels = p.group, p.num_output, shape[1]
        if not self.outputs:
            self.fail("num_output", "missing")
        if self.group < 1 or channels % self.group or self.outputs % self.group:
            self.fail("group", f"{self.group} does not divide {channels} channels in and {self.outputs} out")
        inner = (channels, self.outputs) if self.transposed else (self.outputs, channels)
        self.blob("weight", (inner[0], inner[1] // self.group, *self.kernel), p.weight_filler)
        self.bias = self.blob("bias", (self.outputs,), p.bias_filler) if p.bias_term else None
        for size, kernel, pad, hole in zip(shape[2:], self.kernel, self.pad, self.dilation, strict=True):
            if not self.transposed and size + 2 * pad < hole * (kernel - 1) + 1:
                reason = f"{kernel} with dilation {hole} does not fit into {size}+2*{pad} cells"
                self.fail("kernel_size", reason)

    def cells(self, size: int, kernel: int, stride: int, pad: int, hole: int) -> int:
        """The size of the top along an axis."""
        raise NotImplementedError

    def infer(self, *bottoms: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes = zip(bottoms[0].shape[2:], self.kernel, self.stride, self.pad, self.dilation, strict=True)
        cells = [self.cells(*each) for each in sizes]
        return tuple(meta((len(x), self.outputs, *cells)) for x in bottoms)

    def forward(self, *bottoms: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        tops = tuple(self.function(x, self.weight, self.bias, *self.others) for x in bottoms)
        return tops if len(tops) > 1 else tops[0]

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        parameters = [graph.parameter(self, name) for name in self.fillers]
        settings: dict[str, Any] = {"kernel_shape": self.kernel, "strides": self.stride, "pads": self.pad * 2}
        settings |= {"dilations": self.dilation} | ({"group": self.group} if self.group > 1 else {})
        for bottom, top in zip(bottoms, tops, strict=True):
            graph.emit(self.operator, [bottom, *parameters], top, **settings)

    def source(self, code: Any, *bottoms: str) -> Sequence[str]:
        def each(values: tuple[int, ...]) -> str:
            return str(values[0] if len(set(values)) == 1 else values)

        settings = {
            "stride": (each(self.stride), "1"),
            "padding": (each(self.pad), "0"),
            "dilation": (each(self.dilation), "1"),
            "groups": (str(self.group), "1"),
            "bias": (str(self.bias is not None), "True"),
        }
        inside = [str(self.shapes[0][1]), str(self.outputs), each(self.kernel)]
        inside += [f"{name}={value}" for name, (value, default) in settings.items() if value != default]
        kind = f"nn.Conv{'Transpose' * self.transposed}{len(self.kernel)}d"
        module = code.module(f"{kind}({', '.join(inside)})")
        return [f"{module}({bottom})" for bottom in bottoms]

    def multiply_adds(self, shapes: Sequence[Shape]) -> int:
        """Each weight once a cell: of the top, or of the bottom where the layer is transposed."""
        cells = shapes if self.transposed else [top.shape for top in self.infer(*map(meta, shapes))]
        return sum(self.weight.numel() * shape[0] * math.prod(shape[2:]) for shape in cells)


@register("Convolution")
class Convolution(ConvolutionBase):
    """Cross-correlation; the output size is rounded down."""

    operator = "Conv"

    def setup(self) -> None:
        super().setup()
        self.others = self.stride, self.pad, self.dilation, self.group
        self.compute_by(None)

    def compute_by(self, conv2d: Callable[..., torch.Tensor] | None) -> None:
        """Use another function of ``F.conv2d``'s arguments where there are two spatial axes; None for that itself."""
        own = _CONVOLUTIONS[len(self.kernel)]
        self.function = conv2d if conv2d is not None and len(self.kernel) == 2 else own

    def cells(self, size: int, kernel: int, stride: int, pad: int, hole: int) -> int:
        return (size + 2 * pad - hole * (kernel - 1) - 1) // stride + 1


@register("Deconvolution")
class Deconvolution(ConvolutionBase):
    """A convolution's backward pass: a size becomes stride · (size - 1) + dilation · (kernel - 1) + 1 - 2 · pad."""

    transposed, operator = True, "ConvTranspose"

    def setup(self) -> None:
        super().setup()
        self.others = self.stride, self.pad, 0, self.group, self.dilation
        self.function = _DECONVOLUTIONS[len(self.kernel)]

    def cells(self, size: int, kernel: int, stride: int, pad: int, hole: int) -> int:
        return stride * (size - 1) + hole * (kernel - 1) + 1 - 2 * pad


@register("InnerProduct")
class InnerProduct(Layer):
    """Flattens from ``axis`` on, then weight (outputs, K), or (K, outputs) with ``transpose``, and bias."""

    field = "inner_product_param"

    def setup(self) -> None:
        p, shape = self.p, self.shapes[0]
        self.first, self.transpose = self.axis(p.axis), p.transpose
        if not p.num_output:
            self.fail("num_output", "missing")
        self.inputs, self.outputs = math.prod(shape[self.first :]), p.num_output
        weight = (self.inputs, self.outputs) if p.transpose else (self.outputs, self.inputs)
        self.blob("weight", weight, p.weight_filler)
        self.bias = self.blob("bias", (p.num_output,), p.bias_filler) if p.bias_term else None

    def infer(self, *bottoms: torch.Tensor) -> torch.Tensor:
        shape = bottoms[0].shape
        if math.prod(shape[self.first :]) != self.inputs:
            raise RuntimeError(
                f"layer {self.caffe_name!r}: {math.prod(shape[self.first :])} inputs, not {self.inputs}"
            )
        return meta((*shape[: self.first], self.outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(self.first) if self.first < x.ndim else x[..., None]
        return F.linear(flat, self.weight.T if self.transpose else self.weight, self.bias)

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        if self.first != 1:
            self._onnx_from(graph, bottoms, tops)
            return
        flat = graph.step("flat", "Flatten", bottoms, axis=1)
        parameters = [graph.parameter(self, name) for name in self.fillers]
        graph.emit("Gemm", [flat, *parameters], tops[0], transB=0 if self.transpose else 1)

    def _onnx_from(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        """From another axis than 1 on: a matrix product over what comes before."""
        flat = graph.step("flat", "Reshape", [*bottoms, graph.numbers(*[0] * self.first, -1)])
        weight = self.weight if self.transpose else self.weight.T
        product = [flat, graph.constant(f"{self.caffe_name}.matrix", weight)]
        if self.bias is None:
            graph.emit("MatMul", product, tops[0])
        else:
            scores = graph.step("product", "MatMul", product)
            graph.emit("Add", [scores, graph.parameter(self, "bias")], tops[0])

    def source(self, code: Any, *bottoms: str) -> str:
        (x,) = bottoms
        flat = x if self.first == len(self.shapes[0]) - 1 else f"{x}.flatten({self.first})"
        if self.transpose:
            bias = code.blob("bias") if self.bias is not None else None
            return f"F.linear({flat}, {code.blob('weight')}.T, {bias})"
        bias = "" if self.bias is not None else ", bias=False"
        return f"{code.module(f'nn.Linear({self.inputs}, {self.outputs}{bias})')}({flat})"

    def multiply_adds(self, shapes: Sequence[Shape]) -> int:
        return self.weight.numel() * math.prod(shapes[0][: self.first])


@register("Embed")
class Embed(Called):
    """The rows of weight that the bottom's numbers name, and bias."""

    field = "embed_param"
    function = embed

    def setup(self) -> None:
        p = self.p
        for name in ("num_output", "input_dim"):
            if not getattr(p, name):
                self.fail(name, "missing")
        self.blob("weight", (p.input_dim, p.num_output), p.weight_filler)
        self.bias = self.blob("bias", (p.num_output,), p.bias_filler) if p.bias_term else None

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        ids = graph.step("ids", "Cast", bottoms, to=7)
        gathered = [graph.parameter(self, "weight"), ids]
        if self.bias is None:
            graph.emit("Gather", gathered, tops[0], axis=0)
        else:
            rows = graph.step("rows", "Gather", gathered, axis=0)
            graph.emit("Add", [rows, graph.parameter(self, "bias")], tops[0])


@register("Im2col")
class Im2col(Called):
    """The windows of a convolution as channels."""

    field = "convolution_param"
    bottom_axes = 4
    function = im2col

    def setup(self) -> None:
        self.arguments = {
            "kernel": spatial(self, "kernel_size", 2),
            "stride": spatial(self, "stride", 2, 1),
            "pad": spatial(self, "pad", 2, 0),
            "dilation": dilation(self, 2),
        }
