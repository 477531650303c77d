"""Two prototxts of nets, field by field, for tests of those that are written."""

from __future__ import annotations

import ast
from typing import Any

from weights_conversion.caffe_pb2 import NetParameter
from weights_conversion.lift import is_repeated, lift
from weights_conversion.prototxt import Message


def differing_fields(ours: Message, theirs: Message) -> list[tuple[str, str]]:
    """(layer, field) of all that differs, the layer empty for the net's own; a field at its default equals none."""
    nets = [lift(message, NetParameter, "") for message in (ours, theirs)]
    layers = [{layer.name: _flat(layer) for layer in net.layer} for net in nets]
    found = [("", "layer order")] if [*layers[0]] != [*layers[1]] else []
    for net in nets:
        net.ClearField("layer")
    pairs = [("", *(_flat(net) for net in nets))]
    pairs += [(name, layers[0].get(name, {}), layers[1].get(name, {})) for name in layers[0] | layers[1]]
    return found + [
        (name, field)
        for name, a, b in pairs
        for field in [*a, *(f for f in b if f not in a)]
        if a.get(field) != b.get(field)
    ]


def _flat(message: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        if is_repeated(field) and field.message_type:
            for index, part in enumerate(value):
                flat |= _flat(part, f"{path} {index}.")
        elif is_repeated(field):
            flat[path] = tuple(value)
        elif field.message_type:
            flat |= _flat(value, f"{path}.")
        elif field.name == "param_str":
            flat[path] = ast.literal_eval(value)
        elif value != field.default_value:
            flat[path] = value
    return flat
