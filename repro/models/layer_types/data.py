"""Layers that bring data into a net: Input, Parameter, DummyData, MemoryData. Those that read files are in
:mod:`repro.data.data_layers`."""

from __future__ import annotations

from typing import Any

import torch

from repro.errors import InputError
from repro.models.fillers import fill_
from repro.models.registry import DataLayer, Layer, batch_seed, meta, register
from weights_conversion.caffe_pb2 import FillerParameter


@register("Input")
class Input(DataLayer):
    """Blobs that the caller gives (``input_layer.cpp``)."""

    field = "input_param"

    def setup(self) -> None:
        shapes = [tuple(shape.dim) for shape in self.p.shape]
        if len(shapes) not in (1, len(self.layer.top)):
            self.fail("shape", f"{len(shapes)} shapes for {len(self.layer.top)} tops")
        self.given = shapes * len(self.layer.top) if len(shapes) == 1 else shapes
        for shape in self.given:
            if any(size < 1 for size in shape):
                self.fail("shape", f"{shape}: expected sizes of 1 or more")

    def infer(self) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return tuple(meta(shape) for shape in self.given)

    def make(self) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        raise RuntimeError("the caller gives these blobs")


@register("Parameter")
class Parameter(Layer):
    """A blob of the layer's own as its top, which can be learnt (``parameter_layer.hpp``); zeros at first."""

    field = "parameter_param"
    counts = 0
    weight: torch.Tensor

    def setup(self) -> None:
        if not self.p.shape.dim:
            self.fail("shape", "missing")
        self.blob("weight", list(self.p.shape.dim))

    def forward(self) -> torch.Tensor:
        return self.weight

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        graph.emit("Identity", [graph.parameter(self, "weight")], tops[0])

    def source(self, code: Any, *bottoms: str) -> str:
        return str(code.blob("weight"))


@register("DummyData")
class DummyData(DataLayer):
    """Blobs that fillers fill: constant ones once, all others anew each time (``dummy_data_layer.cpp``)."""

    field = "dummy_data_param"

    def setup(self) -> None:
        p, tops = self.p, len(self.layer.top)
        shapes = [tuple(shape.dim) for shape in p.shape]
        columns = [list(getattr(p, name)) for name in ("num", "channels", "height", "width")]
        if shapes and any(columns):
            self.fail("shape", "beside num, channels, height or width, expected one or the other")
        if not shapes:
            if len({len(column) for column in columns}) > 1:
                self.fail("num", "channels, height and width: expected the same number of each")
            shapes = list(zip(*columns, strict=True))
        fillers = list(p.data_filler) or [FillerParameter()]
        for name, values in (("shape", shapes), ("data_filler", fillers)):
            if len(values) not in (1, tops):
                self.fail(name, f"{len(values)} for {tops} tops")
        self.given = shapes * tops if len(shapes) == 1 else shapes
        self.fill_with = fillers * tops if len(fillers) == 1 else fillers
        self.batch = self.given[0][0] if self.given and self.given[0] else 1
        if any(size < 1 for shape in self.given for size in shape):
            self.fail("shape", "expected sizes of 1 or more")

    def infer(self) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return tuple(meta(shape) for shape in self.given)

    def make(self) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        tops = tuple(torch.empty(shape) for shape in self.given)
        generator = torch.Generator().manual_seed(batch_seed(self.stream_seed, self.number))
        for top, filler in zip(tops, self.fill_with, strict=True):
            try:
                fill_(top, filler, generator)
            except ValueError as error:
                self.fail("data_filler", str(error))
        return tuple(top[self.share] for top in tops)


@register("MemoryData")
class MemoryData(DataLayer):
    """Images and labels that the caller sets with ``set_arrays``, round and round (``memory_data_layer.cpp``)."""

    field = "memory_data_param"
    top_counts = 2

    def setup(self) -> None:
        p = self.p
        self.shape = (p.batch_size, p.channels, p.height, p.width)
        if min(self.shape) < 1:
            self.fail("", f"batch_size, channels, height and width of {self.shape}, expected 1 or more")
        transform = self.layer.transform_param
        if transform.ListFields():
            field = "transform_param.scale" if transform.HasField("scale") else "transform_param"
            self.fail(field, "not supported")
        self.batch = p.batch_size
        self.data: torch.Tensor | None = None
        self.labels = torch.empty(0)

    def set_arrays(self, data: torch.Tensor, labels: torch.Tensor) -> None:
        """Read on from these: (M, C, H, W) float32 and M numbers, M a multiple of the batch size.

        Raises:
            InputError: other shapes.
        """
        if tuple(data.shape[1:]) != self.shape[1:] or len(data) % self.shape[0] or not len(data):
            raise InputError(
                f"{self}: data of shape {tuple(data.shape)}, expected a multiple of {self.shape[0]} of {self.shape[1:]}"
            )
        if labels.numel() != len(data):
            raise InputError(f"{self}: {labels.numel()} labels for {len(data)} items")
        self.data, self.labels, self.number = data.float(), labels.float().reshape(-1), 0

    def infer(self) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return meta(self.shape), meta(self.shape[:1])

    def make(self) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        if self.data is None:
            raise InputError(f"{self}: no data; call set_arrays, or give its tops to the net")
        rows = [position % len(self.data) for position in self.positions()]
        return self.data[rows], self.labels[rows]
