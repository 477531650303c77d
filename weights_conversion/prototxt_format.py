"""Messages as prototxt text, for Caffe to read."""

from __future__ import annotations

import math
import os

from weights_conversion.files import write_text
from weights_conversion.prototxt import Identifier, Message, Value

_INLINE = 80  # a message of plain values goes on one line up to this length
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def format_prototxt(message: Message) -> str:
    """The message as text that ``read_prototxt`` reads back as the same message, and Caffe and OpenCV likewise."""
    return "".join(f"{line}\n" for line in _lines(message, ""))


def write_prototxt(message: Message, path: str | os.PathLike[str], comment: str = "") -> None:
    """Write the message as text, under ``comment`` (lines without ``#``). The file appears whole or not at all."""
    heading = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    write_text(path, heading + format_prototxt(message))


def _lines(message: Message, indent: str) -> list[str]:
    lines = []
    for name, values in message.items():
        for value in values:
            if not isinstance(value, Message):
                lines.append(f"{indent}{name}: {_scalar(value)}")
            elif len(line := f"{indent}{name} {_inline(value)}") <= _INLINE and _is_flat(value):
                lines.append(line)
            else:
                lines += [f"{indent}{name} {{", *_lines(value, indent + "  "), f"{indent}}}"]
    return lines


def _is_flat(message: Message) -> bool:
    return not any(isinstance(value, Message) for values in message.values() for value in values)


def _inline(message: Message) -> str:
    fields = (
        f"{name} {_inline(value)}" if isinstance(value, Message) else f"{name}: {_scalar(value)}"
        for name, values in message.items()
        for value in values
    )
    return f"{{ {' '.join(fields)} }}"


def _scalar(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Identifier):
        return str(value)
    if isinstance(value, str):
        return f'"{"".join(_character(letter) for letter in value)}"'
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return repr(value)


def _character(letter: str) -> str:
    if letter in _ESCAPES:
        return _ESCAPES[letter]
    return letter if letter >= " " and letter != "\x7f" else f"\\{ord(letter):03o}"
