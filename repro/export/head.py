"""The net within an exported test script: what stands before the probabilities are zoomed to the image's size.

The whole graph zooms, adds and normalises all probabilities at once, which for a picture of 5000x5000 pixels and 21
classes takes 2 GB a step. Of large images onnxruntime therefore computes the scores on the grid alone, and PyTorch
does the rest as it does for its own nets (``repro.inference.predict.mask_of_grids``): in strips, to the same bits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import onnx

from repro.inference.predict import Protocol
from weights_conversion.errors import damaged

_ZOOM = "zoom_scores/along_columns"  # of each scale the node that takes the scores on the grid


@dataclass(frozen=True)
class Head:
    """``model``: an ONNX model with one output per scale, ``names``, (N, C, h, w). ``pixel_bytes``: what a pixel of the
    net's input takes in its first blob, the largest one of the papers' nets."""

    model: bytes
    names: list[str]
    pixel_bytes: int

    @classmethod
    def of(cls, path: str | os.PathLike[str], protocol: Protocol) -> Head:
        """The head of the ``multiscale`` model in a file. Raises InputError where it is none that was exported."""
        scales = [f"{scale:g}/{_ZOOM}" for scale in protocol.sizes or protocol.factors]
        with damaged(path, "a model of 'repro export' with graph multiscale"):
            model = onnx.load_model(os.fspath(path))
            inputs = {node.name: node.input[0] for node in model.graph.node}
            names = [inputs[scale] for scale in scales]
            _cut(model.graph, names)
            return cls(model.SerializeToString(), names, _pixel_bytes(model.graph))


def _cut(graph: onnx.GraphProto, names: list[str]) -> None:
    """Leave what the tensors ``names`` are made of, and make them the outputs."""
    wanted, kept = set(names), []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    initializers = [tensor for tensor in graph.initializer if tensor.name in wanted]
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names]
    for field, content in (
        (graph.node, kept[::-1]),
        (graph.initializer, initializers),
        (graph.output, outputs),
        (graph.value_info, []),
    ):
        copies = [type(entry).FromString(entry.SerializeToString()) for entry in content]
        del field[:]
        field.extend(copies)


def _pixel_bytes(graph: onnx.GraphProto) -> int:
    """Bytes of the first convolution's result per pixel of its input: 4 per channel, fewer with a stride."""
    weights = {tensor.name: tensor.dims[0] for tensor in graph.initializer if len(tensor.dims) == 4}
    for node in graph.node:
        if node.op_type in ("Conv", "ConvInteger"):
            strides = next((entry.ints for entry in node.attribute if entry.name == "strides"), [1, 1])
            channels = next(weights[name] for name in node.input if name in weights)
            return int(4 * channels // (strides[0] * strides[1]))
    raise ValueError("it has no convolution")
