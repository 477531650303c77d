"""The test scripts around a net as ONNX nodes: zooming, probabilities, several scales.

Two things have no ready-made operator:

    SciPy's zoom           two matrix products with the matrices of the linear interpolation, made in the graph
                           from the sizes, in double precision as SciPy does. A matrix's row is 0 where SciPy takes
                           the last sample for outside (see ``repro.layers.resize``).
    sizes rounded half up  floor, and one more where the rest is at least a half.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from repro.constants import MEAN_BGR
from repro.inference.predict import FLOOR, Protocol
from repro.models import CaffeNet
from repro.models.onnx import Graph, add_net, onnx

OPSET = 17  # onnxruntime 1.12 (2022) and later; nothing newer is needed
IR_VERSION = 8  # the one that came with it


def add_scores(graph: Graph, model: CaffeNet, images: str, prefix: str = "") -> str:
    """The layers of ``model`` on the tensor ``images``; returns the name of the scores."""
    return add_net(graph, model, dict.fromkeys(model.inputs, images), prefix)[model.scores_blob]


def add_zoom(graph: Graph, x: str, height: str, width: str, name: str) -> str:
    """``zoom_to`` of (N, C, h, w) float32 to the sizes ``height`` and ``width``, int64 scalars."""
    rows_in, columns_in = (
        graph.size(x, axis, f"{name}/{what}_in") for axis, what in ((2, "rows"), (3, "columns"))
    )
    columns = _interpolation(graph, columns_in, width, f"{name}/columns", transposed=True)
    rows = _interpolation(graph, rows_in, height, f"{name}/rows", transposed=False)
    widened = graph.node("MatMul", x, columns, name=f"{name}/along_columns")
    return graph.node("MatMul", rows, widened, name=name)


def _interpolation(graph: Graph, size_in: str, size_out: str, name: str, *, transposed: bool) -> str:
    """Matrix (size_out, size_in) float32 of the order-1 zoom of one axis, or its transpose.

    Entry (i, j) is max(0, 1 - abs(place_i - j)) with place_i = i·(size_in - 1)/(size_out - 1).
    """

    def node(operator: str, *inputs: str, what: str, **attributes: Any) -> str:
        return graph.node(operator, *inputs, name=f"{name}/{what}", **attributes)

    def double(tensor: str, what: str) -> str:
        return node("Cast", tensor, what=what, to=onnx.TensorProto.DOUBLE)

    zero, one = graph.integer(0), graph.integer(1)
    axes = [graph.constant(f"axis_{axis}", np.array([axis], np.int64)) for axis in (0, 1)]
    beside_out, beside_in = axes if transposed else reversed(axes)
    last_in = double(node("Sub", size_in, one, what="last_in_int"), "last_in")
    last_out = node("Max", node("Sub", size_out, one, what="last_out_int"), one, what="last_out_or_1")
    step = node("Div", last_in, double(last_out, "last_out"), what="step")
    outputs = double(node("Range", zero, size_out, one, what="outputs_int"), "outputs")
    inputs = double(node("Range", zero, size_in, one, what="inputs_int"), "inputs")
    place = node("Unsqueeze", node("Mul", outputs, step, what="place_row"), beside_out, what="place")
    source = node("Unsqueeze", inputs, beside_in, what="source")
    distance = node("Abs", node("Sub", place, source, what="offset"), what="distance")
    closeness = node("Sub", graph.double(1.0), distance, what="closeness")
    weights = node("Max", closeness, graph.double(0.0), what="weights")
    inside = double(node("LessOrEqual", place, last_in, what="inside_bool"), "inside")
    return node("Cast", node("Mul", weights, inside, what="masked"), what="matrix", to=onnx.TensorProto.FLOAT)


def add_probs(graph: Graph, model: CaffeNet) -> str:
    """Scores of ``images`` zoomed to its size, softmax over the classes; returns ``probs``."""
    height, width = (
        graph.size("images", axis, what) for axis, what in ((2, "image_height"), (3, "image_width"))
    )
    zoomed = add_zoom(graph, add_scores(graph, model, "images"), height, width, "zoom_scores")
    return graph.node("Softmax", zoomed, name="probs", axis=1)


def add_multiscale(graph: Graph, model: CaffeNet, protocol: Protocol) -> str:
    """A test script without its CRF, from ``images`` (N, H, W, 3) uint8 RGB; returns ``multiscale``."""
    height, width = (
        graph.size("images", axis, what) for axis, what in ((1, "image_height"), (2, "image_width"))
    )
    floats = graph.node("Cast", "images", name="images_float", to=onnx.TensorProto.FLOAT)
    planes = graph.node("Transpose", floats, name="images_planes", perm=[0, 3, 1, 2])
    # every script swaps the colours of what it has read; one that reads BGR thereby feeds RGB
    if not protocol.reads_bgr:
        swap = graph.constant("swap_red_and_blue", np.array([2, 1, 0], np.int64))
        planes = graph.node("Gather", planes, swap, name="images_bgr", axis=1)
    mean = graph.constant("mean", np.array(MEAN_BGR, np.float32).reshape(1, 3, 1, 1))

    total = ""
    for scale in protocol.sizes or protocol.factors:
        prefix = f"{scale:g}/"
        zoomed = planes
        if protocol.sizes:
            side = graph.integer(int(scale))
            zoomed = add_zoom(graph, planes, side, side, f"{prefix}zoom_image")
        elif scale != 1:
            rows, columns = (scaled_size(graph, side, scale, f"{prefix}{side}") for side in (height, width))
            zoomed = add_zoom(graph, planes, rows, columns, f"{prefix}zoom_image")
        blob = graph.node("Sub", zoomed, mean, name=f"{prefix}images")
        grid = add_scores(graph, model, blob, prefix)
        if protocol.zooms_probabilities:
            grid = graph.node("Softmax", grid, name=f"{prefix}prob", axis=1)
        back = add_zoom(graph, grid, height, width, f"{prefix}zoom_scores")
        total = graph.node("Add", total, back, name=f"{prefix}sum") if total else back
    if not protocol.zooms_probabilities:
        total = graph.node("Softmax", total, name="prob", axis=1)
    floor = graph.constant("floor", np.array(FLOOR, np.float32))
    return graph.node("Max", total, floor, name="multiscale")


def scaled_size(graph: Graph, size: str, factor: float, name: str) -> str:
    """``size`` · ``factor`` rounded half up, int64 scalar."""
    exact = graph.node(
        "Mul",
        graph.node("Cast", size, name=f"{name}/double", to=onnx.TensorProto.DOUBLE),
        graph.double(factor),
        name=f"{name}/exact",
    )
    below = graph.node("Floor", exact, name=f"{name}/below")
    rest = graph.node("Sub", exact, below, name=f"{name}/rest")
    up = graph.node("GreaterOrEqual", rest, graph.double(0.5), name=f"{name}/up")
    whole = (
        graph.node("Cast", value, name=f"{value}_int", to=onnx.TensorProto.INT64) for value in (below, up)
    )
    return graph.node("Add", *whole, name=f"{name}/scaled")
