"""The shape of every blob of a prototxt's net, derived by Caffe's rules without running it.

Covers the layers of the papers' nets and those that stand beside them in prototxts of their time, the releases'
Python layers too. A layer that is not known, or whose shape hangs on its data, has unknown shapes, and so has what
reads it; a layer that does not fit its bottoms says so in its note. Nothing here is fatal but a file that is no net.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from weights_conversion.prototxt import Message
from weights_conversion.shape_rules import (
    RULES,
    MisfitError,
    Result,
    Shape,
    UnknownShapeError,
    integers,
    layer_type,
    names,
    shape_dims,
    text,
)

Phase = Literal["TRAIN", "TEST"]


@dataclass(frozen=True)
class LayerShapes:
    """A layer with the shapes of its tops and of its parameters; None for a shape that is not known.

    ``note`` says why: a type that is not known, or what does not fit. The net's inputs are a layer of type "input".
    """

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    shapes: tuple[Shape | None, ...]
    blobs: tuple[Shape, ...] = ()
    note: str = ""


def derive_shapes(net: Message, *, phase: Phase = "TRAIN") -> list[LayerShapes]:
    """Every layer that runs in ``phase``, in order, with its shapes.

    Raises:
        ValueError: the message is no net, or a layer of it is in the layout before V1.
    """
    if not net.layers:
        raise ValueError("no layers: not a net")
    known: dict[str, Shape | None] = {}
    derived = []
    if inputs := names(net, "input"):
        tops = _input_shapes(net, len(inputs))
        for name, top in zip(inputs, tops, strict=True):
            if top is not None and (reason := _beyond_caffe(top)):
                raise ValueError(f"input {name[:80]}: {reason}")
        derived.append(LayerShapes("input", "input", (), inputs, tuple(tops)))
        known.update(zip(inputs, tops, strict=True))
    for layer in net.layers:
        if "layer" in layer:
            raise ValueError("layers in the layout before V1; upgrade the file with upgrade_net_proto_text")
        if runs_in(layer, phase):
            shapes = _derive(layer, known)
            known.update(zip(shapes.tops, shapes.shapes, strict=True))
            derived.append(shapes)
    return derived


def blob_shapes(layers: Sequence[LayerShapes]) -> dict[str, Shape | None]:
    """The blobs of a net by name, with the copies that Caffe inserts where a blob has several readers."""
    shapes: dict[str, Shape | None] = {}
    for layer in layers:
        shapes.update(zip(layer.tops, layer.shapes, strict=True))
    for blob, copies in split_names((layer.name, layer.bottoms, layer.tops) for layer in layers):
        shapes |= dict.fromkeys(copies, shapes.get(blob))
    return shapes


def _derive(layer: Message, known: dict[str, Shape | None]) -> LayerShapes:
    name, type_ = text(layer, "name"), layer_type(layer)
    bottoms, tops = names(layer, "bottom"), names(layer, "top")
    note, result = "", Result(())
    try:
        if missing := [bottom for bottom in bottoms if bottom not in known]:
            raise MisfitError(f"no layer before it makes {', '.join(missing)}")
        rule = RULES.get(type_)
        if rule is None:
            raise UnknownShapeError("unknown type")
        shapes = [known[bottom] for bottom in bottoms]
        whole = [shape for shape in shapes if shape is not None]
        if len(whole) < len(shapes):
            raise UnknownShapeError("")  # the note is with the layer that made it so
        result = rule(layer, whole)
        if any(size < 1 for shape in (*result.tops, *result.blobs) if shape is not None for size in shape):
            raise MisfitError(f"a size below 1: {', '.join(map(str, (*result.tops, *result.blobs)))}")
        for shape in (*result.tops, *result.blobs):
            if shape is not None and (reason := _beyond_caffe(shape)):
                raise MisfitError(reason)
    except UnknownShapeError as error:
        note = str(error)
    except MisfitError as error:
        note, result = f"does not fit: {error}", Result(())
    derived = [*result.tops, *[None] * len(tops)][: len(tops)]
    return LayerShapes(name, type_, bottoms, tops, tuple(derived), tuple(result.blobs), note)


def _beyond_caffe(shape: Shape) -> str:
    """Why Caffe's ``Blob::Reshape`` refuses a shape, "" where it takes it."""
    if len(shape) > 32:
        return f"{len(shape)} axes, Caffe takes 32 at most"
    if math.prod(shape) >= 2**31:
        return "more values than Caffe takes, 2147483647 at most"
    return ""


def runs_in(layer: Message, phase: Phase, *, level: int = 0, stages: Collection[str] = ()) -> bool:
    """Whether Caffe keeps a layer in a net of this state (``Net::FilterNet``): by its ``include`` and ``exclude``.

    A layer's field ``phase`` drops none. Levels of a rule that are no numbers count as not there.
    """

    def meets(rule: Any) -> bool:
        if not isinstance(rule, Message):
            return False
        try:
            lowest, highest = (integers(rule, name) for name in ("min_level", "max_level"))
        except MisfitError:
            lowest = highest = []
        return (
            str(rule.get("phase", [phase])[-1]) == phase
            and all(bound <= level for bound in lowest)
            and all(level <= bound for bound in highest)
            and all(stage in stages for stage in names(rule, "stage"))
            and not any(stage in stages for stage in names(rule, "not_stage"))
        )

    if included := layer.get("include", []):
        return any(meets(rule) for rule in included)
    return not any(meets(rule) for rule in layer.get("exclude", []))


def _input_shapes(net: Message, count: int) -> list[Shape | None]:
    """``input_shape`` messages, or the older ``input_dim``, four an input."""
    try:
        shapes: list[Shape] = [shape_dims(shape) for shape in net.get("input_shape", [])]
        dims = integers(net, "input_dim")
    except MisfitError:
        shapes, dims = [], []
    shapes = shapes or [tuple(dims[i : i + 4]) for i in range(0, len(dims), 4)]
    if any(size < 1 for shape in shapes for size in shape):
        shapes = []
    return [shapes[index] if index < len(shapes) else None for index in range(count)]


def split_names(
    layers: Iterable[tuple[str, tuple[str, ...], tuple[str, ...]]],
) -> list[tuple[str, list[str]]]:
    """The copies that Caffe inserts where a blob has several readers (``insert_splits.cpp``).

    Args:
        layers: (name, bottoms, tops) of every layer, in order. Blobs that none makes count as the net's inputs.

    Returns:
        (blob, names of its copies) in the order of their layers; an in-place layer starts a new blob of that name.
    """
    makers: dict[str, tuple[str, int]] = {}
    inputs = 0
    readers: Counter[tuple[str, str, int]] = Counter()
    for name, bottoms, tops in layers:
        for bottom in bottoms:
            if bottom not in makers:
                makers[bottom] = ("input", inputs)
                inputs += 1
            readers[(bottom, *makers[bottom])] += 1
        for index, top in enumerate(tops):
            makers[top] = (name, index)
    return [
        (blob, [f"{blob}_{maker}_{index}_split_{copy}" for copy in range(count)])
        for (blob, maker, index), count in readers.items()
        if count > 1
    ]
