"""A net of the registry as ONNX, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from repro.models.net import CaffeNet


def run_as_onnx(net: CaffeNet, inputs: Mapping[str, np.ndarray], blobs: Sequence[str]) -> list[np.ndarray]:
    """The named blobs; skips where onnx or onnxruntime is not installed. InputError for a layer without a form."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from repro.export.onnx import OPSET
    from repro.models.onnx import Graph, add_net

    def info(tensor: str, axes: int):
        return onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, [None] * axes)

    graph = Graph()
    tensors = add_net(graph, net, {blob: blob for blob in inputs})
    described = onnx.helper.make_graph(
        graph.nodes,
        net.name,
        [info(blob, len(net.shapes[blob])) for blob in inputs],
        [info(tensors[blob], len(net.shapes[blob])) for blob in blobs],
        list(graph.initializers.values()),
    )
    model = onnx.helper.make_model(
        described, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=8
    )
    onnx.checker.check_model(model)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(inputs))
