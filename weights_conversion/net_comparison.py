"""Two prototxts of nets, layer by layer and field by field."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any, NamedTuple

from weights_conversion.prototxt import Message, Value

# Caffe's defaults (caffe.proto) of fields that nets like ours have; a field that holds its default counts as absent
_DEFAULTS: dict[str, Any] = {
    "lr_mult": 1,
    "decay_mult": 1,
    "pad": 0,
    "stride": 1,
    "dilation": 1,
    "group": 1,
    "axis": 1,
    "convolution_param.bias_term": True,
    "inner_product_param.bias_term": True,
    "scale_param.bias_term": False,
    "pooling_param.pool": "MAX",
    "eltwise_param.operation": "SUM",
    "dropout_param.dropout_ratio": 0.5,
    "batch_norm_param.eps": 1e-5,
    "bias_filler.type": "constant",
    "value": 0,
    "pad_beg": 0,
    "pad_end": 0,
    "shuffle": False,
    "mirror": False,
    "transform_param.scale": 1,
    "transform_param.crop_size": 0,
    "image_data_param.is_color": True,
    "image_data_param.rand_skip": 0,
    "relu_param.negative_slope": 0,
    "loss_param.normalization": "VALID",
    "loss_param.normalize": True,
}


class Difference(NamedTuple):
    """A field that differs; None where one side has no such field. ``field`` is empty for a whole layer (a Message)."""

    layer: str
    field: str
    ours: Any
    theirs: Any

    def __str__(self) -> str:
        if not self.field:
            return f"layer {self.layer}: only {'there' if self.ours is None else 'here'}"
        place = f"layer {self.layer}: " if self.layer else ""
        ours, theirs = ("none" if value is None else value for value in (self.ours, self.theirs))
        return f"{place}{self.field}: {ours} here, {theirs} there"


def compare_nets(ours: Message, theirs: Message) -> list[Difference]:
    """What differs between two nets, in the order of ``ours``; a field that holds Caffe's default equals none.

    Layers correspond by name (and phase, where one has two). A Python layer's ``param_str`` is compared as the value
    that it writes. Fields are named as in ``convolution_param.weight_filler.std`` and ``param 1.lr_mult``.
    """
    return list(_differences(ours, theirs))


def _differences(ours: Message, theirs: Message) -> Iterator[Difference]:
    mine, others = _by_name(ours), _by_name(theirs)
    header = ({k: v for k, v in net.items() if k not in ("layer", "layers")} for net in (ours, theirs))
    yield from _fields_that_differ("", *(_flat(Message(fields)) for fields in header))
    for name in [*mine, *(name for name in others if name not in mine)]:
        if name in mine and name in others:
            yield from _fields_that_differ(name, _flat(mine[name]), _flat(others[name]))
        else:
            yield Difference(name, "", mine.get(name), others.get(name))
    order = [[name for name in layers if name in mine and name in others] for layers in (mine, others)]
    if order[0] != order[1]:
        first, second = next(pair for pair in zip(*order, strict=True) if pair[0] != pair[1])
        yield Difference("", "order of the layers", first, second)


def _by_name(net: Message) -> dict[str, Message]:
    layers: dict[str, Message] = {}
    for layer in net.layers:
        name = str(layer.one("name", ""))
        phases = [rule.one("phase") for rule in layer.get("include", []) if isinstance(rule, Message)]
        layers[f"{name} ({phases[0]})" if name in layers and phases else name] = layer
    return layers


def _fields_that_differ(layer: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[Difference]:
    for field in [*ours, *(field for field in theirs if field not in ours)]:
        if ours.get(field) != theirs.get(field):
            yield Difference(layer, field, ours.get(field), theirs.get(field))


def _flat(message: Message, prefix: str = "") -> dict[str, Any]:
    """Fields by their path, without those that hold Caffe's default."""
    flat: dict[str, Any] = {}
    for name, values in message.items():
        path = f"{prefix}{name}"
        messages = [value for value in values if isinstance(value, Message)]
        for index, value in enumerate(messages):
            flat |= _flat(value, f"{path} {index}." if name == "param" else f"{path}.")
        if not messages:
            literals = tuple(_literal(name, value) for value in values)
            content = literals[0] if len(literals) == 1 else literals
            if not _is_default(path, content):
                flat[path] = content
    return flat


def _is_default(path: str, value: Any) -> bool:
    """Whether a field holds its default; the table knows fields by their last one or two names."""
    parts = path.split(".")
    return any(_DEFAULTS.get(".".join(parts[-length:]), ...) == value for length in (1, 2))


def _literal(name: str, value: Value) -> Any:
    if name == "param_str":
        try:
            return ast.literal_eval(str(value))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
    return value
