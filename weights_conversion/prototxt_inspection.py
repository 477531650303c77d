"""``repro inspect`` of a prototxt: a net's layers with derived shapes, or a solver's fields."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from weights_conversion.errors import CaffeFileError
from weights_conversion.net_shapes import LayerShapes, Phase, blob_shapes, derive_shapes
from weights_conversion.prototxt import Message, read_prototxt
from weights_conversion.prototxt_format import format_prototxt
from weights_conversion.schema import unknown_fields

_SOLVER_FIELDS = {"base_lr", "lr_policy", "net", "train_net", "net_param", "max_iter", "solver_mode"}


def describe_prototxt(path: str | os.PathLike[str]) -> list[str]:
    """The lines that say what a prototxt holds: of a net the layers that run in training, of a solver its fields.

    Raises ``CaffeFileError`` (a ``ValueError``) for what the reader refuses and for text that is neither.
    """
    content, name = read_prototxt(path), Path(path).name
    if content.layers:
        try:
            layers = derive_shapes(content)
        except ValueError as error:
            raise CaffeFileError(f"{os.fspath(path)}: {error}") from None
        # a file of layers that all run in the other phase
        phase: Phase = "TRAIN" if any(layer.type != "input" for layer in layers) else "TEST"
        layers = layers if phase == "TRAIN" else derive_shapes(content, phase=phase)
        title = f"{content.get('name', [name])[-1]}: net, {len(content.layers)} layers"
        unknown = [
            f"{field}: unknown to Caffe and DeepLab-v2" for field in unknown_fields(content, "NetParameter")
        ]
        return [title, *_net_lines(content, layers, phase), *unknown]
    if _SOLVER_FIELDS & content.keys():
        unknown = [
            f"{field}: unknown to Caffe and DeepLab-v2"
            for field in unknown_fields(content, "SolverParameter")
        ]
        lines = [f"  {line}" for line in format_prototxt(content).splitlines()]
        return [f"{name}: solver", *lines, *unknown]
    raise CaffeFileError(f"{os.fspath(path)}: neither a net (no layer) nor a solver (no base_lr, net, …)")


def _net_lines(net: Message, layers: list[LayerShapes], phase: Phase) -> Iterator[str]:
    width = max((len(layer.name) for layer in layers), default=0) + 2
    type_width = max((len(layer.type) for layer in layers), default=0) + 2
    for layer in layers:
        tops = [f"{top} {_shape(shape)}" for top, shape in zip(layer.tops, layer.shapes, strict=True)]
        arrow = " -> ".join(part for part in (", ".join(layer.bottoms), ", ".join(tops)) if part)
        blobs = f"  [{', '.join(_shape(blob) for blob in layer.blobs)}]" if layer.blobs else ""
        note = f"  ({layer.note})" if layer.note else ""
        yield f"  {layer.name:<{width}}{layer.type:<{type_width}}{arrow}{blobs}{note}"
    made = {top for layer in layers for top in layer.tops}
    copies = len(blob_shapes(layers)) - len(made)
    yield f"{len(made)} blobs" + (f" and {copies} copies that Caffe inserts" if copies else "")
    total = sum(math.prod(blob) for layer in layers for blob in layer.blobs)
    untold = any(shape is None for layer in layers for shape in layer.shapes)
    yield f"{total} parameters{' in the layers whose input is known' if untold else ''}"
    running = sum(layer.type != "input" for layer in layers)
    if running < len(net.layers):
        yield f"{len(net.layers) - running} layers do not run in phase {phase}"
    if unknown := sorted({layer.type for layer in layers if layer.note.startswith("unknown type")}):
        yield f"unknown types: {', '.join(unknown)}"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "?" if shape is None else "x".join(map(str, shape)) or "scalar"
