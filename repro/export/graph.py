"""Our networks and test scripts as ONNX nodes, written by hand rather than traced.

The nets are plain lists of Caffe layers, so a graph that reads like the prototxt is a page of code: one node a layer
under the layer's name, tensors under the blobs' names (with the layer's name appended while in-place layers are still
to come), parameters under their names in our weight files. It is the same graph whatever the version of PyTorch.

Three things have no ready-made operator:

    Caffe's MAX pooling    rounds the output size up. With p cells of padding before and p + stride - 1 behind,
                           ONNX's rounding down gives the same windows, for every input size, where
                           p + stride <= kernel; then no window starts in the padding that Caffe would drop.
    SciPy's zoom           two matrix products with the matrices of the linear interpolation, made in the graph
                           from the sizes, in double precision as SciPy does. A matrix's row is 0 where SciPy takes
                           the last sample for outside (see ``repro.data.zoom_linear``).
    sizes rounded half up  floor, and one more where the rest is at least a half.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from repro.constants import MEAN_BGR
from repro.errors import InputError
from repro.inference.predict import FLOOR, Protocol
from repro.layers.common import BATCH_NORM_EPS, BatchNorm, EltwiseSum, InnerProduct, Scale
from repro.layers.pooling import CaffeAvePool, CaffeMaxPool
from repro.models import CaffeNet

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise InputError("exporting needs the package onnx: pip install 'sec-dsrg-repro[export]'") from error

OPSET = 17  # onnxruntime 1.12 (2022) and later; nothing newer is needed
IR_VERSION = 8  # the one that came with it
LAYER_NOTE = "Caffe layer "  # how the doc_string of a layer's nodes begins


class Graph:
    """Nodes and initializers in the making. A node's output has the node's name unless another is given."""

    def __init__(self) -> None:
        self.note = ""  # doc_string of the nodes to come
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def node(
        self, operator: str, *inputs: str, name: str, output: str | None = None, **attributes: Any
    ) -> str:
        """Append a node; returns the name of its output."""
        output = output or name
        node = helper.make_node(operator, inputs, [output], name=name, doc_string=self.note, **attributes)
        self.nodes.append(node)
        return output

    def constant(self, name: str, value: np.ndarray | torch.Tensor) -> str:
        """An initializer, once under each name; tensors become float32."""
        if name not in self.initializers:
            array = value.detach().float().cpu().numpy() if isinstance(value, torch.Tensor) else value
            self.initializers[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def integer(self, value: int) -> str:
        return self.constant(f"integer_{value}", np.array(value, np.int64))

    def double(self, value: float) -> str:
        return self.constant(f"double_{value:g}", np.array(value, np.float64))

    def size(self, tensor: str, axis: int, name: str) -> str:
        """The size of an axis, an int64 scalar."""
        shape = self.node("Shape", tensor, name=f"{name}/shape")
        return self.node("Gather", shape, self.integer(axis), name=name)


def add_net(graph: Graph, model: CaffeNet, images: str, prefix: str = "") -> str:
    """The layers of ``model`` on the blob ``images``; returns the name of the scores.

    Several calls on one graph share the parameters; ``prefix`` tells their nodes apart.

    Raises:
        InputError: a layer that has no form here.
    """
    blobs = {"images": images}
    last_writer = {layer.top: layer.name for layer in model.layers}
    for layer in model.layers:
        module = model.get_submodule(layer.name)
        name = prefix + layer.name
        final = last_writer[layer.top] == layer.name
        output = prefix + layer.top if final else f"{prefix}{layer.top}/{layer.name}"
        bottoms = [blobs[bottom] for bottom in layer.bottoms]
        graph.note = f"{LAYER_NOTE}{layer.name}"
        blobs[layer.top] = _add_layer(graph, module, bottoms, name, output, layer.name)
    graph.note = ""
    return blobs[model.scores_blob]


def _add_layer(
    graph: Graph,
    module: nn.Module,
    bottoms: Sequence[str],
    name: str,
    output: str,
    layer: str,
) -> str:
    bottom, *others = bottoms

    def parameters() -> list[str]:
        return [graph.constant(f"{layer}.{kind}", blob) for kind, blob in module.named_parameters()]

    if isinstance(module, nn.Conv2d):
        top, left = (int(pad) for pad in module.padding)
        return graph.node(
            "Conv",
            bottom,
            *parameters(),
            name=name,
            output=output,
            kernel_shape=module.kernel_size,
            strides=module.stride,
            pads=[top, left, top, left],
            dilations=module.dilation,
        )
    if isinstance(module, nn.ReLU):
        return graph.node("Relu", bottom, name=name, output=output)
    if isinstance(
        module, nn.Dropout
    ):  # a test-time identity; as a node it keeps the layer's and the blob's names
        return graph.node("Identity", bottom, name=name, output=output)
    if isinstance(module, (CaffeMaxPool, CaffeAvePool)):
        return _add_pooling(graph, module, bottom, name, output)
    if isinstance(module, EltwiseSum):
        total = bottom
        for index, other in enumerate(others, start=1):
            last = index == len(others)
            total = graph.node(
                "Add",
                total,
                other,
                name=name if last else f"{name}/{index}",
                output=output if last else f"{output}/{index}",
            )
        return total
    if isinstance(module, BatchNorm):
        channels = len(module.mean)
        mean, variance = module.statistics()
        return graph.node(
            "BatchNormalization",
            bottom,
            graph.constant(f"ones_{channels}", np.ones(channels, np.float32)),
            graph.constant(f"zeros_{channels}", np.zeros(channels, np.float32)),
            graph.constant(f"{layer}.mean", mean),
            graph.constant(f"{layer}.variance", variance),
            name=name,
            output=output,
            epsilon=BATCH_NORM_EPS,
        )
    if isinstance(module, Scale):
        weight, bias = (
            graph.constant(f"{layer}.{kind}", blob[:, None, None])
            for kind, blob in module.caffe_blobs().items()
        )
        scaled = graph.node("Mul", bottom, weight, name=f"{name}/weight")
        return graph.node("Add", scaled, bias, name=name, output=output)
    if isinstance(module, InnerProduct):
        flat = graph.node("Flatten", bottom, name=f"{name}/flat", axis=1)
        return graph.node("Gemm", flat, *parameters(), name=name, output=output, transB=1)
    raise InputError(f"layer {layer}: a {type(module).__name__} has no form in ONNX here")


def _add_pooling(
    graph: Graph, module: CaffeMaxPool | CaffeAvePool, bottom: str, name: str, output: str
) -> str:
    kernel, stride, pad = (int(size) for size in (module.kernel_size, module.stride, module.padding))  # type: ignore[arg-type]
    common: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2}
    if isinstance(module, CaffeMaxPool) and pad + stride <= kernel:
        behind = pad + stride - 1
        return graph.node(
            "MaxPool", bottom, name=name, output=output, pads=[pad, pad, behind, behind], **common
        )
    if isinstance(module, CaffeAvePool) and stride == 1:  # nothing to round; the divisor counts the padding
        return graph.node(
            "AveragePool", bottom, name=name, output=output, pads=[pad] * 4, count_include_pad=1, **common
        )
    raise InputError(
        f"layer {name}: {type(module).__name__} with kernel {kernel}, stride {stride}, pad {pad} "
        "has no exact form in ONNX"
    )


def add_zoom(graph: Graph, x: str, height: str, width: str, name: str, output: str | None = None) -> str:
    """``zoom_to`` of (N, C, h, w) float32 to the sizes ``height`` and ``width``, int64 scalars."""
    rows_in, columns_in = (
        graph.size(x, axis, f"{name}/{what}_in") for axis, what in ((2, "rows"), (3, "columns"))
    )
    columns = _interpolation(graph, columns_in, width, f"{name}/columns", transposed=True)
    rows = _interpolation(graph, rows_in, height, f"{name}/rows", transposed=False)
    widened = graph.node("MatMul", x, columns, name=f"{name}/along_columns")
    return graph.node("MatMul", rows, widened, name=name, output=output)


def _interpolation(graph: Graph, size_in: str, size_out: str, name: str, *, transposed: bool) -> str:
    """Matrix (size_out, size_in) float32 of the order-1 zoom of one axis, or its transpose.

    Entry (i, j) is max(0, 1 - abs(place_i - j)) with place_i = i·(size_in - 1)/(size_out - 1).
    """

    def node(operator: str, *inputs: str, what: str, **attributes: Any) -> str:
        return graph.node(operator, *inputs, name=f"{name}/{what}", **attributes)

    def double(tensor: str, what: str) -> str:
        return node("Cast", tensor, what=what, to=TensorProto.DOUBLE)

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
    return node("Cast", node("Mul", weights, inside, what="masked"), what="matrix", to=TensorProto.FLOAT)


def add_probs(graph: Graph, model: CaffeNet) -> str:
    """Scores of ``images`` zoomed to its size, softmax over the classes; returns ``probs``."""
    height, width = (
        graph.size("images", axis, what) for axis, what in ((2, "image_height"), (3, "image_width"))
    )
    zoomed = add_zoom(graph, add_net(graph, model, "images"), height, width, "zoom_scores")
    return graph.node("Softmax", zoomed, name="probs", axis=1)


def add_multiscale(graph: Graph, model: CaffeNet, protocol: Protocol) -> str:
    """A test script without its CRF, from ``images`` (N, H, W, 3) uint8 RGB; returns ``multiscale``."""
    height, width = (
        graph.size("images", axis, what) for axis, what in ((1, "image_height"), (2, "image_width"))
    )
    floats = graph.node("Cast", "images", name="images_float", to=TensorProto.FLOAT)
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
            rows, columns = (_scaled(graph, side, scale, f"{prefix}{side}") for side in (height, width))
            zoomed = add_zoom(graph, planes, rows, columns, f"{prefix}zoom_image")
        blob = graph.node("Sub", zoomed, mean, name=f"{prefix}images")
        grid = add_net(graph, model, blob, prefix)
        if protocol.zooms_probabilities:
            grid = graph.node("Softmax", grid, name=f"{prefix}prob", axis=1)
        back = add_zoom(graph, grid, height, width, f"{prefix}zoom_scores")
        total = graph.node("Add", total, back, name=f"{prefix}sum") if total else back
    if not protocol.zooms_probabilities:
        total = graph.node("Softmax", total, name="prob", axis=1)
    floor = graph.constant("floor", np.array(FLOOR, np.float32))
    return graph.node("Max", total, floor, name="multiscale")


def _scaled(graph: Graph, size: str, factor: float, name: str) -> str:
    """``size`` · ``factor`` rounded half up, int64 scalar."""
    exact = graph.node(
        "Mul",
        graph.node("Cast", size, name=f"{name}/double", to=TensorProto.DOUBLE),
        graph.double(factor),
        name=f"{name}/exact",
    )
    below = graph.node("Floor", exact, name=f"{name}/below")
    rest = graph.node("Sub", exact, below, name=f"{name}/rest")
    up = graph.node("GreaterOrEqual", rest, graph.double(0.5), name=f"{name}/up")
    whole = (graph.node("Cast", value, name=f"{value}_int", to=TensorProto.INT64) for value in (below, up))
    return graph.node("Add", *whole, name=f"{name}/scaled")
