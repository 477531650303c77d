"""Writing networks as ONNX files: those of the papers with what their test scripts do, and any other as it is.

    graph        images                                      result
    scores       (N, 3, H, W) float32, BGR minus the mean    scores (N, C, H', W'): the network alone
    probs        (N, 3, H, W) float32, BGR minus the mean    probs (N, C, H, W): scores zoomed to H, W, softmax
    multiscale   (N, H, W, 3) uint8, RGB as it is            multiscale (N, C, H, W): a whole test script but its CRF
    net          the net's own inputs, under its names       its own outputs, under its names

N, H and W are free; the classifiers of the cues take the one size that they are built for, and in ``net`` what the
layers leave open is. The input of the first three is named ``images``, the output as the graph. The file's metadata
say what it is: see ``METADATA_KEYS``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from repro import __version__
from repro.constants import MEAN_BGR, PRODUCER
from repro.data import colour_palette
from repro.errors import InputError, chosen
from repro.export import GraphName, PrecisionName
from repro.export.graph import IR_VERSION, OPSET, add_multiscale, add_probs, add_scores
from repro.export.variants import to_float16, to_int8
from repro.inference.predict import PROTOCOLS
from repro.models import CaffeNet
from repro.models.folding import fold_batch_norm
from repro.models.onnx import Graph, add_net, helper, onnx
from weights_conversion.files import atomic_path, file_sha256

GRAPHS: tuple[GraphName, ...] = get_args(GraphName)
PRECISIONS: tuple[PrecisionName, ...] = get_args(PrecisionName)
LARGEST_FILE = 2**31 - 2**20
"""Bytes beyond which the weights go into a second file, ``<name>.data``: protobuf ends at 2 GiB."""

METADATA_KEYS = {
    "graph": "scores, probs, multiscale or net",
    "model": "the net's name, for build_model where it is one of ours",
    "protocol": "the test script that multiscale follows",
    "classes": "JSON list of names, in the order of their indices; like the next two not of graph net",
    "palette": "JSON list of [red, green, blue], a class each",
    "mean_bgr": "JSON list; subtracted inside of multiscale, to be subtracted before the other graphs",
    "precision": "fp32, fp16 or int8",
    "weights": "name of the weight file",
    "weights_sha256": "its SHA-256",
    "agreement": "JSON: images, pixel_agreement, mean_iou and summary of a comparison with PyTorch, if there was one",
    "parameters_sha256": "SHA-256 over the parameters' names and float32 values, in the net's order",
}


def export_onnx(
    model: CaffeNet,
    path: str | os.PathLike[str],
    *,
    graph: GraphName = "scores",
    protocol: str = "dsrg_final",
    precision: PrecisionName = "fp32",
    classes: Sequence[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    verify: Callable[[Path], Mapping[str, str]] | None = None,
) -> Path:
    """Write a net as an ONNX file, whole or not at all, that onnx's checker and shape inference have passed.

    Args:
        model: from ``build_model``, or for graph ``net`` from ``load_net``, in any mode and on any device; what is
            written is its test-time form, float32.
        path: the file to write; weights beyond `LARGEST_FILE` go into ``<path>.data`` beside it.
        graph: see the head of this module.
        protocol: for ``multiscale``, a key of ``PROTOCOLS``.
        precision: of the layers, see ``variants.py``; ``fp16`` and ``int8`` are other arithmetic than the papers'.
        classes: their names, for the metadata; ``class 0`` … by default.
        weights: the file that the parameters came from, for the metadata.
        verify: called with the path of the finished file before it gets its name; may raise, and returns metadata
            to add.

    Returns:
        ``path``.

    Raises:
        InputError: an unknown graph or protocol, or a graph that the net has no use for.
    """
    exported = build_onnx(
        model, graph=graph, protocol=protocol, precision=precision, classes=classes, weights=weights
    )
    return save_onnx(exported, path, verify=verify)


def build_onnx(
    model: CaffeNet,
    *,
    graph: GraphName,
    protocol: str = "dsrg_final",
    precision: PrecisionName = "fp32",
    classes: Sequence[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> onnx.ModelProto:
    """The model that ``export_onnx`` writes; same arguments and errors."""
    chosen("graph", graph, GRAPHS)
    chosen("precision", precision, PRECISIONS)
    chosen("protocol", protocol, PROTOCOLS)
    if graph == "net":
        return _finished(*_net_graph(model, precision), model, graph, precision, weights, {})
    if model.fixed_size and graph != "scores":
        raise InputError(
            f"graph {graph!r}: {model.name} classifies images of one size, graph 'scores' expected"
        )
    outputs = _outputs(model)
    if classes is None:
        classes = [f"class {index}" for index in range(outputs)]
    if len(classes) != outputs:
        raise InputError(f"classes: {len(classes)} names, {model.name} has {outputs} outputs")

    written = fold_batch_norm(model) if precision != "fp32" else model
    content = Graph()
    side: list[str | int] = [model.input_size] * 2 if model.fixed_size else ["H", "W"]
    image_type, image_shape = onnx.TensorProto.FLOAT, ["N", 3, *side]
    shape: list[str | int] = ["N", outputs, *side]
    if graph == "multiscale":
        image_type, image_shape = onnx.TensorProto.UINT8, ["N", *side, 3]
        add_multiscale(content, written, PROTOCOLS[protocol])
    elif graph == "probs":
        add_probs(content, written)
    else:
        blob = add_scores(content, written, "images")
        if blob != graph:
            content.node("Identity", blob, name=graph)
        shape = ["N", outputs] if model.fixed_size else ["N", outputs, "H_grid", "W_grid"]
    metadata = {
        **({"protocol": protocol} if graph == "multiscale" else {}),
        "classes": json.dumps(list(classes)),
        "palette": json.dumps(colour_palette()[:outputs].tolist()),
        "mean_bgr": json.dumps(MEAN_BGR),
    }
    inputs = [helper.make_tensor_value_info("images", image_type, image_shape)]
    results = [helper.make_tensor_value_info(graph, onnx.TensorProto.FLOAT, shape)]
    return _finished(content, inputs, results, model, graph, precision, weights, metadata)


def _net_graph(
    model: CaffeNet, precision: PrecisionName
) -> tuple[Graph, list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """The net's nodes, inputs and outputs; sizes that its layers leave open have names."""
    if not model.inputs:
        raise InputError(f"{model.path or model.name}: the net has no input blob; a deploy prototxt has")
    written = fold_batch_norm(model) if precision != "fp32" else model
    content = Graph()
    tensors = add_net(content, written, {name: name for name in model.inputs})
    batch, size = model.free_sizes()
    grown = model.shapes_with(batch=int(batch), side=32 * int(size)) or model.shapes
    first = next(iter(model.inputs.values()))
    names = {0: "N", 2: "H", 3: "W"}

    def described(blob: str, tensor: str) -> onnx.ValueInfoProto:
        built = model.shapes[blob]
        shape = [
            number
            if number == grown[blob][axis]
            else names.get(axis, "")
            if axis < len(first)
            and number == first[axis]
            and grown[blob][axis] - number == (32 if axis else 1)
            else f"{blob}_{axis}"
            for axis, number in enumerate(built)
        ]
        return helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, shape)

    inputs = [described(blob, blob) for blob in model.inputs]
    return content, inputs, [described(blob, tensors[blob]) for blob in model.outputs]


def _finished(
    content: Graph,
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    model: CaffeNet,
    graph: GraphName,
    precision: PrecisionName,
    weights: str | os.PathLike[str] | None,
    metadata: dict[str, str],
) -> onnx.ModelProto:
    """The ONNX model of a graph, in ``precision``, with what is known of it."""
    metadata = {
        "graph": graph,
        "model": model.name,
        **metadata,
        "precision": precision,
        "parameters_sha256": _parameters_sha256(model),
    }
    if weights is not None:
        metadata |= {"weights": Path(weights).name, "weights_sha256": file_sha256(weights)}
    exported = helper.make_model(
        helper.make_graph(content.nodes, f"{model.name or 'net'}_{graph}", inputs, outputs),
        producer_name=PRODUCER,
        producer_version=__version__,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    # one by one, into the finished model: copying a graph of more than 2 GiB is beyond protobuf
    exported.graph.initializer.extend(content.initializers.values())
    if precision == "fp16":
        exported = to_float16(exported)
    elif precision == "int8":
        exported = to_int8(exported)
        exported.producer_name, exported.producer_version = PRODUCER, __version__
        exported.ir_version = IR_VERSION
    helper.set_model_props(exported, metadata)
    return exported


def save_onnx(
    exported: onnx.ModelProto,
    path: str | os.PathLike[str],
    *,
    verify: Callable[[Path], Mapping[str, str]] | None = None,
) -> Path:
    """Check a model and write it; arguments and result as for ``export_onnx``. Large weights leave ``exported``."""
    target = Path(path)
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(atomic_path(target))
        if sum(len(tensor.raw_data) for tensor in exported.graph.initializer) <= LARGEST_FILE:
            onnx.save_model(exported, temporary)
        else:
            data = target.with_name(f"{target.name}.data")
            temporary_data = stack.enter_context(atomic_path(data))
            temporary_data.unlink()  # onnx would append to it
            onnx.save_model(
                exported,
                temporary,
                save_as_external_data=True,
                location=temporary_data.name,
                size_threshold=1024,
            )
        onnx.checker.check_model(temporary, full_check=True)
        more = verify(temporary) if verify else {}
        shell = onnx.load_model(temporary, load_external_data=False)
        for tensor in shell.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = f"{target.name}.data"
        for key, value in more.items():
            shell.metadata_props.add(key=key, value=value)
        onnx.save_model(shell, temporary)
    return target


def _outputs(model: CaffeNet) -> int:
    return model.shapes[model.scores_blob][1]


def _parameters_sha256(model: CaffeNet) -> str:
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
