"""Any net as ONNX nodes, written by hand rather than traced: each layer's registry entry gives its own.

One node per layer under the layer's name, tensors under the blobs' names (with the layer's name appended while in-place
layers are still to come), parameters under their names in our weight files. The graph is the same whatever the version
of PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from repro.errors import InputError
from repro.models.net import CaffeNet
from repro.models.registry import Layer

try:
    import onnx
    from onnx import helper, numpy_helper
except ImportError as error:
    raise InputError("exporting needs the package onnx: pip install onnx") from error

LAYER_NOTE = "Caffe layer "  # how the doc_string of a layer's nodes begins


class Graph:
    """Nodes and initializers in the making. A node's output has the node's name unless another is given.

    ``emit``, ``step`` and ``parameter`` are for layers, while ``add_net`` adds them.
    """

    def __init__(self) -> None:
        self.note = ""  # doc_string of the nodes to come
        self.layer = ""  # name of the nodes to come
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._owners: dict[int, str] = {}
        self._emitted: set[str] = set()  # layers that have given a top

    def node(
        self,
        operator: str,
        *inputs: str,
        name: str,
        output: str = "",
        more: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        """Append a node; returns the name of its output. ``more`` are names of further outputs."""
        outputs = [output or name, *more]
        node = helper.make_node(operator, inputs, outputs, name=name, doc_string=self.note, **attributes)
        self.nodes.append(node)
        return outputs[0]

    def emit(self, operator: str, inputs: Sequence[str], top: str, **others: Any) -> str:
        """The node that gives a layer's top; it has the layer's name, and for a second top the top's behind it.
        ``others`` as of `node`."""
        again = self.layer in self._emitted
        self._emitted.add(self.layer)
        name = f"{self.layer}/{top}" if again else self.layer
        return self.node(operator, *inputs, name=name, output=top, **others)

    def step(self, what: str, operator: str, inputs: Sequence[str], **others: Any) -> str:
        """A node on the way to a layer's top, ``<layer>/<what>``; ``others`` as of `node`."""
        return self.node(operator, *inputs, name=f"{self.layer}/{what}", **others)

    def parameter(self, layer: Layer, name: str) -> str:
        """A layer's blob."""
        blob = layer.caffe_blobs()[name]
        # one that layers share is written once
        return self.constant(self._owners.setdefault(id(blob), f"{layer.caffe_name}.{name}"), blob)

    def constant(self, name: str, value: np.ndarray | torch.Tensor) -> str:
        """An initializer, once under each name; tensors become float32."""
        if name not in self.initializers:
            array = value.detach().float().cpu().numpy() if isinstance(value, torch.Tensor) else value
            self.initializers[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(f"number_{value!r}", np.array(value, np.float32))

    def numbers(self, *values: int) -> str:
        """Whole numbers in a row, int64."""
        return self.constant("numbers_" + "_".join(map(str, values)), np.array(values, np.int64))

    def integer(self, value: int) -> str:
        """An int64 scalar."""
        return self.constant(f"integer_{value}", np.array(value, np.int64))

    def double(self, value: float) -> str:
        return self.constant(f"double_{value:g}", np.array(value, np.float64))

    def size(self, tensor: str, axis: int, name: str) -> str:
        """The size of an axis, an int64 scalar."""
        shape = self.node("Shape", tensor, name=f"{name}/shape")
        return self.node("Gather", shape, self.integer(axis), name=name)


def add_net(graph: Graph, net: CaffeNet, inputs: dict[str, str], prefix: str = "") -> dict[str, str]:
    """Append the layers of a net.

    Args:
        graph: several calls on one graph share the parameters.
        net: its layers all have a form in ONNX.
        inputs: blob -> tensor of the graph, for each of the net's inputs.
        prefix: tells the nodes of several calls apart.

    Returns:
        blob -> tensor, for every blob as the last layer leaves it.

    Raises:
        InputError: a layer that has no form here.
    """
    blobs = dict(inputs)
    last_writer = {top: layer.name for layer in net.layers for top in layer.tops}
    for layer in net.layers:
        bottoms = [blobs[bottom] for bottom in layer.bottoms]
        tops = [
            prefix + top
            if last_writer[top] == layer.name and prefix + top not in inputs.values()
            else f"{prefix}{top}/{layer.name}"
            for top in layer.tops
        ]
        graph.note, graph.layer = f"{LAYER_NOTE}{layer.name}", prefix + layer.name
        net[layer.name].onnx(graph, bottoms, tops)
        blobs.update(zip(layer.tops, tops, strict=True))
    graph.note = graph.layer = ""
    return blobs
