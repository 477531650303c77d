"""From a prototxt's text to Caffe's typed messages: every field by its name and type in ``caffe.proto``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message as Typed

from weights_conversion import caffe_pb2
from weights_conversion.errors import CaffeFileError
from weights_conversion.prototxt import Identifier, Message, Value

TypedT = TypeVar("TypedT", bound=Typed)

_INTEGERS = {
    Field.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    Field.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    Field.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    Field.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
# fields that choose an implementation; forks have values of their own for them
_OF_NO_EFFECT = ("engine",)


def is_repeated(field: Any) -> bool:
    """Whether a field of a message's descriptor is repeated, under every protobuf release."""
    return field.is_repeated if hasattr(field, "is_repeated") else field.label == Field.LABEL_REPEATED


def lift(message: Message, kind: type[TypedT], path: str, *, unknown: list[str] | None = None) -> TypedT:
    """The message as a ``kind`` of ``caffe_pb2``, such as a NetParameter.

    Args:
        message: from ``read_prototxt``.
        kind: the class of Caffe's message.
        path: the file, for messages.
        unknown: gets the places of fields that ``caffe.proto`` has not, such as
            ``layer 'conv1': convolution_param.foo``; without it such a field is an error.

    Raises:
        CaffeFileError: a value that the field cannot have, one field twice that is not repeated, an unknown field.
    """
    typed = kind()
    strangers: list[str] = []
    _fill(typed, message, "", path, strangers)
    if unknown is not None:
        unknown += strangers
    elif strangers:
        raise CaffeFileError(
            f"{path}: {strangers[0]}: a field that neither Caffe nor the forks known here have"
        )
    return typed


def _fill(typed: Typed, message: Message, place: str, path: str, strangers: list[str]) -> None:
    known = typed.DESCRIPTOR.fields_by_name
    for name, values in message.items():
        where = f"{place}{name}"
        field = known.get(name)
        if field is None:
            strangers.append(where)
            continue
        repeated = is_repeated(field)
        if len(values) > 1 and not repeated:
            raise CaffeFileError(f"{path}: {where}: {len(values)} values, expected one")
        if field.cpp_type == Field.CPPTYPE_MESSAGE:
            for value in values:
                if not isinstance(value, Message):
                    raise CaffeFileError(f"{path}: {where}: expected {{ … }}, found {value!r}")
                inner = getattr(typed, name).add() if repeated else getattr(typed, name)
                inner.SetInParent()
                _fill(inner, value, _inside(name, value, where), path, strangers)
        elif name not in _OF_NO_EFFECT:
            converted = [_value(field, value, where, path) for value in values]
            if repeated:
                getattr(typed, name).extend(converted)
            else:
                setattr(typed, name, converted[0])


def _inside(name: str, value: Message, where: str) -> str:
    if name in ("layer", "layers"):
        return f"layer {str(value.get('name', ['?'])[0])!r}: "
    return f"{where}."


def _value(field: Any, value: Value, where: str, path: str) -> Any:
    kind = field.cpp_type
    expected = ""
    if field.containing_type.name == "V1LayerParameter" and field.name == "type":
        names = caffe_pb2.V1LayerParameter.LayerType
        if isinstance(value, Identifier) and value in names.keys():  # noqa: SIM118 - no dict
            return names.Value(value)
        if isinstance(value, Identifier):
            raise CaffeFileError(f"{path}: {where}: {value} is no layer type of the old layout")
    if kind == Field.CPPTYPE_ENUM:
        numbers = field.enum_type.values_by_name
        if isinstance(value, Identifier) and value in numbers:
            return numbers[value].number
        if isinstance(value, int) and value in field.enum_type.values_by_number:
            return value
        expected = f"one of {', '.join(numbers)}"
    elif kind == Field.CPPTYPE_BOOL:
        if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
            return bool(value)
        if isinstance(value, Identifier) and value in ("t", "f"):
            return value == "t"
        expected = "true or false"
    elif kind in (Field.CPPTYPE_FLOAT, Field.CPPTYPE_DOUBLE):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        expected = "a number"
    elif kind in _INTEGERS:
        low, high = _INTEGERS[kind]
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        expected = "a whole number" if low else "a whole number of 0 or more"
    elif isinstance(value, str) and not isinstance(value, Identifier):
        return value.encode() if field.type == Field.TYPE_BYTES else value
    else:
        expected = "a text in quotes"
    found = "a message" if isinstance(value, Message) else repr(value)
    raise CaffeFileError(f"{path}: {where}: expected {expected}, found {found}")


def lower(typed: Typed) -> Message:
    """The typed message as text's: what is set in it, in the order of ``caffe.proto``."""
    return Message({name: list(values) for name, values in _fields(typed)})


def _fields(typed: Typed) -> Iterator[tuple[str, list[Value]]]:
    for field, found in typed.ListFields():
        values = found if is_repeated(field) else [found]
        yield field.name, [_lowered(field, value) for value in values]


def _lowered(field: Any, value: Any) -> Value:
    if field.cpp_type == Field.CPPTYPE_MESSAGE:
        return lower(value)
    if field.cpp_type == Field.CPPTYPE_ENUM:
        return Identifier(field.enum_type.values_by_number[value].name)
    if field.cpp_type == Field.CPPTYPE_FLOAT:
        return _short_float(value)
    return value.decode() if isinstance(value, bytes) else value


def _short_float(value: float) -> float:
    """The shortest decimal that is the same float32, whole where it is whole: 0.01, not 0.009999999776482582."""
    if abs(value) < 1e9 and value == int(value):
        return int(value)
    return float(str(np.float32(value)))
