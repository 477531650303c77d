"""Smaller numbers in the network: float16, and weights of 8 bits. What is around it stays float32.

Neither is the papers' arithmetic any more; what a variant changes is measured on images (``agreement.py``) wherever
the command line makes one.

    fp16    parameters and blobs of the layers in float16. Values beyond 65504 become infinite: VGG16 on images of
            0–255 comes near, so the measurement is not a formality.
    int8    onnxruntime's dynamic quantization: weights of convolutions and inner products in 8 bits, their inputs
            scaled to 8 bits by their range while running. For CPUs; onnxruntime has no such kernels for CUDA.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np

from repro.errors import InputError
from repro.models.onnx import LAYER_NOTE, helper, numpy_helper, onnx


def to_float16(exported: onnx.ModelProto) -> onnx.ModelProto:
    """``exported`` with its layers in float16, casts before and behind them. Changes the model that it is given.

    Expects no BatchNorm layers (``fold_batch_norm``): variances do not fit into float16.
    """
    graph = exported.graph
    layers = [node for node in graph.node if node.doc_string.startswith(LAYER_NOTE)]
    made = {output for node in layers for output in node.output}
    parameters = {tensor.name: tensor for tensor in graph.initializer}

    for name in {name for node in layers for name in node.input if name in parameters}:
        halved = numpy_helper.to_array(parameters[name]).astype(np.float16)
        parameters[name].CopyFrom(numpy_helper.from_array(halved, name))
    nodes: list[onnx.NodeProto] = []
    cast: dict[str, str] = {}

    def casted(name: str, to: int, suffix: str) -> str:
        if name not in cast:
            cast[name] = f"{name}/{suffix}"
            nodes.append(helper.make_node("Cast", [name], [cast[name]], name=cast[name], to=to))
        return cast[name]

    for node in graph.node:
        inside = node.doc_string.startswith(LAYER_NOTE)
        for index, name in enumerate(node.input):
            if inside and name not in made and name not in parameters:
                node.input[index] = casted(name, onnx.TensorProto.FLOAT16, "float16")
            elif not inside and name in made:
                node.input[index] = casted(name, onnx.TensorProto.FLOAT, "float32")
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return exported


def to_int8(exported: onnx.ModelProto) -> onnx.ModelProto:
    """``exported``, quantized by onnxruntime. Raises InputError where onnxruntime is not installed."""
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise InputError("precision int8 needs the package onnxruntime: pip install onnxruntime") from error
    root = logging.getLogger()
    level = root.level
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        try:
            root.setLevel(logging.ERROR)  # it advises to run its optimizer first, which needs fixed shapes
            quantize_dynamic(
                exported, path, op_types_to_quantize=["Conv", "MatMul"], weight_type=QuantType.QUInt8
            )
        finally:
            root.setLevel(level)
        return onnx.load_model(path)
