"""Layers that move, cut, join or repeat values: Concat, Slice, Reshape, Flatten, Permute, Crop, Tile, Split, …"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from repro.layers.rearrange import batch_reindex, crop, filter_batch, reshape, slices, tile
from repro.models.literals import literal
from repro.models.registry import Called, Layer, Shape, meta, register, shapes_of


def one_axis(layer: Layer, old: str) -> int:
    """``axis``, or the field that it was called before; both at once Caffe refuses."""
    if not layer.p.HasField(old):
        return layer.axis(layer.p.axis)
    if layer.p.HasField("axis"):
        layer.fail(old, "beside axis, expected one or the other")
    return layer.axis(getattr(layer.p, old), old)


@register("Concat")
class Concat(Layer):
    """Blobs one behind the other along ``axis``, or the old ``concat_dim`` (``concat_layer.cpp``)."""

    field = "concat_param"
    counts = (1, None)
    operator = "Concat"

    def setup(self) -> None:
        self.along = one_axis(self, "concat_dim")
        self.attributes = {"axis": self.along}
        if not self._fit(self.shapes):
            shapes = ", ".join(map(str, self.shapes))
            reason = f"bottoms of the shapes {shapes}, expected them to differ in axis {self.along} alone"
            self.fail("", reason)

    def _fit(self, shapes: Sequence[Shape]) -> bool:
        return len({(*shape[: self.along], *shape[self.along + 1 :]) for shape in shapes}) == 1

    def infer(self, *bottoms: torch.Tensor) -> torch.Tensor:
        if not self._fit([x.shape for x in bottoms]):
            raise RuntimeError(f"layer {self.caffe_name!r}: bottoms of the shapes {shapes_of(bottoms)}")
        shape = list(bottoms[0].shape)
        shape[self.along] = sum(x.shape[self.along] for x in bottoms)
        return meta(shape)

    def forward(self, *bottoms: torch.Tensor) -> torch.Tensor:
        return torch.cat(bottoms, dim=self.along)

    def source(self, code: Any, *bottoms: str) -> str:
        return f"torch.cat(({', '.join(bottoms)},), dim={self.along})"


@register("Slice")
class Slice(Layer):
    """A blob cut along ``axis``, or the old ``slice_dim``, at points or into equal parts (``slice_layer.cpp``)."""

    field = "slice_param"
    top_counts = (1, None)

    def setup(self) -> None:
        self.along = one_axis(self, "slice_dim")
        self.points = list(self.p.slice_point)
        self._cut(meta(self.shapes[0]))

    def _cut(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        try:
            return slices(x, len(self.layer.top), axis=self.along, points=self.points)
        except ValueError as error:
            self.fail("slice_point" if self.points else "axis", str(error))

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        tops = slices(x, len(self.layer.top), axis=self.along, points=self.points)
        return tops if len(tops) > 1 else tops[0]

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        edges = [0, *self.points, self.shapes[0][self.along]]
        if not self.points:
            edges = list(np.linspace(0, edges[-1], len(tops) + 1).astype(int))
        edges[-1] = np.iinfo(np.int64).max  # to the end, also where a batch is cut
        for low, high, top in zip(edges, edges[1:], tops, strict=False):
            graph.emit("Slice", [*bottoms, *map(graph.numbers, (low, high, self.along))], top)

    def source(self, code: Any, *bottoms: str) -> str:
        cut = f"tensor_split({literal(self.points)}" if self.points else f"chunk({len(self.layer.top)}"
        return f"{bottoms[0]}.{cut}, dim={self.along})" + ("[0]" if len(self.layer.top) == 1 else "")


@register("Flatten")
class Flatten(Called):
    """Axes ``axis`` to ``end_axis`` as one (``flatten_layer.cpp``)."""

    field = "flatten_param"
    function = torch.flatten
    in_place = False

    def setup(self) -> None:
        self.first, self.last = self.axis(self.p.axis), self.axis(self.p.end_axis, "end_axis")
        if self.last < self.first:
            self.fail("end_axis", f"{self.last} comes before axis {self.first}")
        self.arguments = {"start_dim": self.first, "end_dim": self.last}

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        dims = [0] * self.first + [-1]
        reshaped(graph, bottoms[0], dims, self.last + 1, len(self.shapes[0]), tops[0])


@register("Reshape")
class Reshape(Called):
    """A range of axes replaced by ``shape``: 0 copies an axis, -1 is what is left (``reshape_layer.cpp``)."""

    field = "reshape_param"
    function = reshape
    in_place = False

    def setup(self) -> None:
        p = self.p
        self.arguments = {"dims": list(p.shape.dim), "axis": p.axis, "num_axes": p.num_axes}
        try:
            self(meta(self.shapes[0]))
        except ValueError as error:
            self.fail("shape", str(error))

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        (dims, first, replaced), axes = self.arguments.values(), len(self.shapes[0])
        first = first if first >= 0 else axes + first + 1
        stop = axes if replaced == -1 else first + replaced
        reshaped(graph, bottoms[0], [0] * first + dims, stop, axes, tops[0])


def reshaped(graph: Any, x: str, dims: list[int], stop: int, axes: int, top: str) -> None:
    """ONNX's Reshape to ``dims`` and x's sizes from axis ``stop`` on; a 0 copies the size at its place, as Caffe's."""
    shape = graph.numbers(*dims)
    if stop < axes:
        ends = [graph.numbers(stop), graph.numbers(axes)]
        behind = graph.step("behind", "Slice", [graph.step("shape", "Shape", [x]), *ends])
        shape = graph.step("dims", "Concat", [shape, behind], axis=0)
    graph.emit("Reshape", [x, shape], top)


@register("Permute")
class Permute(Called):
    """Axes in another order; those that ``order`` leaves out follow as they are (SSD's ``permute_layer.cpp``)."""

    field = "permute_param"
    function, operator = torch.permute, "Transpose"

    def setup(self) -> None:
        axes = range(len(self.shapes[0]))
        order = [self.axis(axis, "order") for axis in self.p.order]
        if len(set(order)) != len(order):
            self.fail("order", f"{order} names an axis twice")
        order += [axis for axis in axes if axis not in order]
        self.arguments, self.attributes = {"dims": order}, {"perm": order}


@register("Crop")
class Crop(Called):
    """The first bottom cut to the size of the second from ``axis`` on (``crop_layer.cpp``)."""

    field = "crop_param"
    function = crop
    counts = 2

    def setup(self) -> None:
        self.arguments = {"axis": self.axis(self.p.axis), "offsets": list(self.p.offset)}
        x, like = self.shapes
        if len(x) != len(like):
            self.fail("", f"bottoms of the shapes {x} and {like}, expected the same number of axes")
        try:
            self(*(meta(shape) for shape in self.shapes))
        except ValueError as error:
            self.fail("offset", str(error))

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        axes, offsets = range(self.arguments["axis"], len(self.shapes[0])), self.arguments["offsets"] or [0]
        starts = graph.numbers(*(offsets * len(axes) if len(offsets) == 1 else offsets))
        named = graph.numbers(*axes)
        sizes = graph.step("sizes", "Gather", [graph.step("like", "Shape", [bottoms[1]]), named])
        ends = graph.step("ends", "Add", [starts, sizes])
        graph.emit("Slice", [bottoms[0], starts, ends, named], tops[0])


@register("Tile")
class Tile(Called):
    """A blob ``tiles`` times along ``axis`` (``tile_layer.cpp``)."""

    field = "tile_param"
    function = tile

    def setup(self) -> None:
        self.arguments = {"tiles": self.p.tiles, "axis": self.axis(self.p.axis)}
        if self.p.tiles < 1:
            self.fail("tiles", f"{self.p.tiles}, expected 1 or more")

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        graph.emit("Concat", bottoms * self.arguments["tiles"], tops[0], axis=self.arguments["axis"])


@register("BatchReindex")
class BatchReindex(Called):
    """The items of a batch that the second bottom names (``batch_reindex_layer.cpp``)."""

    function = batch_reindex
    counts = 2

    def setup(self) -> None:
        if len(self.shapes[1]) != 1:
            self.fail("", f"a second bottom of shape {self.shapes[1]}, expected one axis")

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        index = graph.step("index", "Cast", bottoms[1:], to=7)
        graph.emit("Gather", [bottoms[0], index], tops[0], axis=0)


@register("Filter")
class Filter(Layer):
    """The items of each bottom where the last bottom is not 0 (``filter_layer.cpp``)."""

    counts = (2, None)
    top_counts = (1, None)

    def setup(self) -> None:
        if len(self.layer.top) != len(self.bottoms) - 1:
            self.fail("", f"{len(self.layer.top)} tops for {len(self.bottoms)} bottoms, expected one less")
        items = self.shapes[-1][0]
        if np.prod(self.shapes[-1]) != items or any(shape[0] != items for shape in self.shapes):
            shapes = ", ".join(map(str, self.shapes))
            self.fail("", f"bottoms of the shapes {shapes}, expected one selector per item")

    def infer(self, *bottoms: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """As if all were selected, as Caffe begins."""
        return bottoms[:-1] if len(bottoms) > 2 else bottoms[0]

    def forward(self, *bottoms: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        tops = tuple(filter_batch(bottoms[:-1], bottoms[-1]))
        return tops if len(tops) > 1 else tops[0]


@register("Split")
class Split(Layer):
    """The bottom again under other names; gradients add (``split_layer.cpp``)."""

    top_counts = (1, None)
    in_place = False

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        tops = tuple(x.view_as(x) for _ in self.layer.top)
        return tops if len(tops) > 1 else tops[0]

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        for top in tops:
            graph.emit("Identity", bottoms, top)

    def source(self, code: Any, *bottoms: str) -> Sequence[str]:
        return bottoms * len(self.layer.top)


@register("Silence")
class Silence(Layer):
    """Takes blobs that nothing else reads (``silence_layer.cpp``)."""

    counts = (1, None)
    top_counts = 0

    def forward(self, *bottoms: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return ()

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        """Nothing."""

    def source(self, code: Any, *bottoms: str) -> Sequence[str]:
        return ()
