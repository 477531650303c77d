"""Softmax, and layers that sum up: Reduction, ArgMax, Accuracy, SegAccuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from repro import distributed
from repro.layers.reductions import accuracy, argmax, confusion, reduction, seg_scores
from repro.models.registry import Called, Layer, meta, register
from weights_conversion.caffe_pb2 import ReductionParameter


@register("Softmax")
class Softmax(Called):
    """e^x / Σ e^x along ``axis`` (``softmax_layer.cpp``)."""

    field = "softmax_param"
    function, operator = torch.softmax, "Softmax"
    keeps_shape = reads_top = True

    def setup(self) -> None:
        along = self.axis(self.p.axis)
        self.arguments, self.attributes = {"dim": along}, {"axis": along}

    def caffe_gradient(self, top_diff: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        return held * (top_diff - (held * top_diff).sum(self.attributes["axis"], keepdim=True))


@register("Reduction")
class Reduction(Called):
    """All axes from ``axis`` on as one number: SUM, ASUM, SUMSQ or MEAN, times coeff (``reduction_layer.cpp``)."""

    field = "reduction_param"
    function = reduction

    def setup(self) -> None:
        self.first, self.coeff = self.axis(self.p.axis), self.p.coeff
        self.operation = ReductionParameter.ReductionOp.Name(self.p.operation)
        self.arguments = {"operation": self.operation, "axis": self.first, "coeff": self.coeff}

    def items(self, x: torch.Tensor) -> int:  # type: ignore[override]
        return len(x) if self.operation == "MEAN" and self.first == 0 else 0

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        operator = {"SUM": "ReduceSum", "ASUM": "ReduceL1", "SUMSQ": "ReduceSumSquare", "MEAN": "ReduceMean"}
        axes = list(range(self.first, len(self.shapes[0])))
        inputs, attributes = list(bottoms), {"axes": axes}
        if self.operation == "SUM":  # which alone takes its axes as an input in this version of ONNX
            inputs, attributes = [*bottoms, graph.numbers(*axes)], {}
        total = graph.step("total", operator[self.operation], inputs, keepdims=0, **attributes)
        graph.emit("Mul", [total, graph.number(self.coeff)], tops[0])


@register("ArgMax")
class ArgMax(Called):
    """The indices, or the values, of the largest (``argmax_layer.cpp``)."""

    field = "argmax_param"
    function = argmax

    def setup(self) -> None:
        p, shape = self.p, self.shapes[0]
        self.along = self.axis(p.axis) if p.HasField("axis") else None
        self.top_k, self.values = p.top_k, p.out_max_val
        size = torch.Size(shape[1:]).numel() if self.along is None else shape[self.along]
        if not 1 <= self.top_k <= size:
            self.fail("top_k", f"{self.top_k} of {size} values")
        self.arguments = {"top_k": self.top_k, "out_max_val": self.values, "axis": self.along}

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        """TopK of equal values takes the one with the smaller index, Caffe the larger: the axis is turned round."""
        along = 1 if self.along is None else self.along
        x = graph.step("flat", "Flatten", bottoms, axis=1) if self.along is None else bottoms[0]
        numbers, places = graph.numbers, f"{graph.layer}/places"
        backwards = map(numbers, (-1, np.iinfo(np.int64).min, along, -1))  # last, first, axis, step
        turned = graph.step("turned", "Slice", [x, *backwards])
        values = graph.step("values", "TopK", [turned, numbers(self.top_k)], more=[places], axis=along)
        index = graph.step("index", "Cast", [places], to=1)
        size = self.shapes[0][along] if self.along is not None else torch.Size(self.shapes[0][1:]).numel()
        index = graph.step("index_before", "Sub", [graph.number(size - 1.0), index])
        if self.along is not None:
            graph.emit("Identity", [values if self.values else index], tops[0])
            return
        wanted = [index, values] if self.values else [index]
        whole = graph.step("whole", "Concat", wanted, axis=1) if self.values else index
        dims = [0, len(wanted), self.top_k, *[1] * max(len(self.shapes[0]) - 3, 0)]
        graph.emit("Reshape", [whole, numbers(*dims)], tops[0])


@register("Accuracy")
class Accuracy(Layer):
    """The share of cells whose label is among the ``top_k`` scores; a second top has it by class
    (``accuracy_layer.cpp``)."""

    field = "accuracy_param"
    counts = 2
    top_counts = (1, 2)

    def setup(self) -> None:
        p = self.p
        self.along, self.top_k = self.axis(p.axis), p.top_k
        self.ignored = p.ignore_label if p.HasField("ignore_label") else None
        check_labels(self, self.along)
        if not 1 <= self.top_k <= self.shapes[0][self.along]:
            self.fail("top_k", f"{self.top_k} of {self.shapes[0][self.along]} classes")

    def forward(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        tops = accuracy(scores, labels, axis=self.along, top_k=self.top_k, ignore_label=self.ignored)
        return tops if len(self.layer.top) > 1 else tops[0]

    def items(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor | int:  # type: ignore[override]
        return labels.numel() if self.ignored is None else (labels != self.ignored).sum()


@register("SegAccuracy")
class SegAccuracy(Layer):
    """Share of right cells, mean recall and mean intersection over union (DeepLab-v2's ``seg_accuracy_layer.cpp``)."""

    field = "seg_accuracy_param"
    bottom_axes = 4
    counts = 2
    columns = ("", "-recall", "-jaccard")

    def setup(self) -> None:
        if not self.p.reset:
            self.fail("reset", "false is not supported")
        self.ignored = list(self.p.ignore_label)
        check_labels(self, 1)

    def infer(self, *bottoms: torch.Tensor) -> torch.Tensor:
        return meta((1, 1, 1, 3))

    def forward(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """In training of all processes' shares of the batch."""
        counts = confusion(scores.detach(), labels, ignore_labels=self.ignored)
        return seg_scores(distributed.add_up(counts) if self.training else counts)


def check_labels(layer: Layer, along: int) -> None:
    """Refuse a layer whose second bottom does not hold one label per cell, classes being along that axis."""
    scores, labels = layer.shapes[:2]
    cells = torch.Size(scores[:along] + scores[along + 1 :]).numel()
    if torch.Size(labels).numel() != cells:
        layer.fail("", f"labels of shape {labels} for scores of shape {scores}, expected {cells} labels")
