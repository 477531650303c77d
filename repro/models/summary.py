"""What a net's prototxt says, as a table: each layer with the shapes of its tops, its parameters and multiply-adds.

Layers that cannot be built (of an unknown type, or with data that are not there) are listed with the reason, and what
depends on them is left open, so that a net which does not run can be looked at too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from repro.errors import InputError
from repro.models.net_builder import input_shapes, too_many_params, wrong_place
from repro.models.net_state import PhaseName, filtered
from repro.models.registry import Bottom, Layer, Shape, beyond_caffe, describe, layer_class, meta
from weights_conversion.caffe_pb2 import NetParameter
from weights_conversion.lift import lift
from weights_conversion.prototxt import Message
from weights_conversion.upgrade import upgraded


@dataclass(frozen=True)
class LayerSummary:
    """A layer: ``shapes`` of its tops and ``parameters`` by name; ``multiply_adds`` with weights in a pass. None where
    that is not known, for the reason that ``note`` gives."""

    name: str
    type: str
    bottoms: list[str]
    tops: list[str]
    shapes: list[Shape | None]
    parameters: dict[str, Shape]
    multiply_adds: int | None
    note: str = ""


@dataclass(frozen=True)
class NetSummary:
    """A net in one phase; None where both have all its layers, as those of a deploy net.

    Totals are over the layers that are known. A parameter that layers share counts once.
    """

    name: str
    phase: str | None
    layers: list[LayerSummary]
    left_out: int
    parameters: int
    unknown: list[str]  # fields that neither Caffe nor the forks known here have

    @property
    def multiply_adds(self) -> int:
        return sum(layer.multiply_adds or 0 for layer in self.layers)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "multiply_adds": self.multiply_adds}

    def lines(self) -> Iterator[str]:
        """One line per layer, and the totals."""
        yield f"{self.name}: net, {sum(layer.type != 'input' for layer in self.layers)} layers"
        width = max((len(layer.name) for layer in self.layers), default=0) + 2
        type_width = max((len(layer.type) for layer in self.layers), default=0) + 2
        for layer in self.layers:
            tops = [f"{top} {_text(shape)}" for top, shape in zip(layer.tops, layer.shapes, strict=True)]
            arrow = " -> ".join(part for part in (", ".join(layer.bottoms), ", ".join(tops)) if part)
            blobs = f"  [{', '.join(map(_text, layer.parameters.values()))}]" if layer.parameters else ""
            cost = f"  {layer.multiply_adds} multiply-adds" if layer.multiply_adds else ""
            note = f"  ({layer.note})" if layer.note else ""
            yield f"  {layer.name:<{width}}{layer.type:<{type_width}}{arrow}{blobs}{cost}{note}"
        yield f"{len({top for layer in self.layers for top in layer.tops})} blobs"
        partly = " in the layers that are known" if any(layer.note for layer in self.layers) else ""
        yield f"{self.parameters} parameters, {self.multiply_adds} multiply-adds{partly}"
        if self.left_out and self.phase:
            yield f"{self.left_out} layers do not run in phase {self.phase.upper()}"
        yield from unknown_lines(self.unknown)


def unknown_lines(fields: Iterable[str]) -> list[str]:
    """What is said of fields that ``caffe.proto`` has not."""
    return [f"{field}: unknown to Caffe and DeepLab-v2" for field in dict.fromkeys(fields)]


def summarise(content: Message, *, path: str = "") -> NetSummary:
    """The layers of a net's prototxt that run in training; where none does, those that run in testing.

    Raises:
        InputError: a value that a field cannot have, a layout that cannot be upgraded, an input larger than Caffe's.
    """
    unknown: list[str] = []
    whole = upgraded(lift(content, NetParameter, path, unknown=unknown), path)
    phase: PhaseName = "train"
    try:
        if all(layer.type == "Input" for layer in filtered(whole, phase).layer):
            phase = "test"
        running = filtered(whole, phase)
        walk = _Walk(running, phase)
    except InputError as error:
        raise InputError(f"{path}: {error}" if path else str(error)) from None
    left_out = len(whole.layer) - len(running.layer)
    other: PhaseName = "test" if phase == "train" else "train"
    in_both = not left_out and len(filtered(whole, other).layer) == len(whole.layer)
    return NetSummary(
        name=whole.name or Path(path).name,
        phase=None if in_both else phase,
        layers=walk.found,
        left_out=left_out,
        parameters=sum(walk.counted.values()),
        unknown=unknown,
    )


class _Walk:
    def __init__(self, net: NetParameter, phase: str) -> None:
        self.blobs: dict[str, torch.Tensor | None] = {}
        self.makers: dict[str, Layer] = {}
        self.made_by: dict[str, str] = {}  # blob -> the name of the layer that made it last
        self.found: list[LayerSummary] = []
        self.counted: dict[str, int] = {}  # by a parameter's own or shared name
        self.training = phase == "train"
        shapes: list[Shape | None] = [*input_shapes(net)]
        shapes += [None] * (len(net.input) - len(shapes))
        for name, shape in zip(net.input, shapes, strict=False):
            known = shape is not None and all(size > 0 for size in shape)
            if known and shape is not None and (reason := beyond_caffe(shape)):
                raise InputError(f"input {name}: {reason}")
            self.made_by[name] = "input"
            self.blobs[name] = meta(shape) if known and shape is not None else None
            self.found.append(
                LayerSummary("input", "input", [], [name], [shape], {}, 0, "" if known else "no shape")
            )
        for layer in net.layer:
            self._add(layer)

    def _add(self, layer: Any) -> None:
        unknown = [name for name in layer.bottom if self.blobs.get(name) is None]
        missing = [name for name in unknown if name not in self.blobs]
        note, cost = "", None
        parameters: dict[str, Shape] = {}
        shapes: list[Shape | None] = []
        try:
            if missing:
                raise InputError(f"no layer before it makes {missing[0]}")
            kind = layer_class(layer)
            if problem := wrong_place(layer, kind, self.made_by):
                raise InputError(problem)
            if not unknown:
                module, tops = self._run(kind, layer)
                if problem := too_many_params(layer, module):
                    raise InputError(problem)
                made = [tuple(top.shape) for top in tops[: len(layer.top)]]
                blobs = {name: tuple(blob.shape) for name, blob in module.caffe_blobs().items()}
                if reason := next(filter(None, map(beyond_caffe, (*made, *blobs.values()))), ""):
                    raise InputError(reason)
                shapes, parameters = [*made], blobs
                cost = module.multiply_adds([bottom.shape for bottom in module.bottoms])
                for index, (name, shape) in enumerate(parameters.items()):
                    shared = layer.param[index].name if index < len(layer.param) else ""
                    count = self.counted.setdefault(shared or f"{layer.name}.{name}", math.prod(shape))
                    if count != math.prod(shape):
                        raise InputError(
                            f"param.name: {shared!r} has {count} values in an earlier layer"
                            if shared
                            else "name: two layers have it, and one has parameters"
                        )
        except (ValueError, RuntimeError, IndexError, TypeError, NotImplementedError, OSError) as error:
            note = (str(error).splitlines() or [type(error).__name__])[0].split("; add it in Python")[0]
            note = note.removeprefix(f"{describe(layer)}: ")
        shapes = shapes or [None] * len(layer.top)
        self.made_by.update(dict.fromkeys(layer.top, layer.name))
        self.blobs.update(
            {
                top: None if shape is None else meta(shape)
                for top, shape in zip(layer.top, shapes, strict=True)
            }
        )
        summary = LayerSummary(
            layer.name, layer.type, [*layer.bottom], [*layer.top], shapes, parameters, cost, note
        )
        self.found.append(summary)

    def _run(self, kind: type[Layer], layer: Any) -> tuple[Layer, tuple[torch.Tensor, ...]]:
        blobs = [blob for name in layer.bottom if (blob := self.blobs[name]) is not None]
        bottoms = [
            Bottom(name, tuple(blob.shape), self.makers.get(name))
            for name, blob in zip(layer.bottom, blobs, strict=True)
        ]
        module = kind(layer, bottoms)
        result = module.train(self.training).infer(*blobs)
        tops = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        if len(tops) < len(layer.top):
            raise InputError(f"{len(layer.top)} tops, the layer gives {len(tops)}")
        self.makers.update(dict.fromkeys(layer.top, module))
        return module, tops


def _text(shape: Shape | None) -> str:
    return "?" if shape is None else "x".join(map(str, shape)) or "scalar"
