"""Fields against a model; what does not fit becomes one line that names the key."""

from __future__ import annotations

import re
import reprlib
import typing
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from repro.errors import InputError, hint, meant

M = TypeVar("M", bound=BaseModel)
Typed = Sequence[tuple[tuple[str, ...], str]]  # keys given on the command line, in order, with what was typed

_SHORT = reprlib.Repr()  # a value in a message, whatever its size
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlist = _SHORT.maxdict = _SHORT.maxtuple = 12


def validated(model: type[M], fields: dict[str, Any], where: str, typed: Typed = ()) -> M:
    """Validate ``fields``; the first trouble becomes a one-line :class:`InputError`.

    It names ``where``, or what was ``typed`` where the trouble is with that.
    A zero byte in a text is trouble, too: most texts name files, and no file's name has one.
    """
    for key, text in _texts(fields):
        if "\0" in text:
            raise InputError(
                f"{where}: {key}: a zero byte in {_SHORT.repr(text)}, a text without one expected"
            )
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        # a key that is missing may be the one that is misspelt
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"])
        where = _blamed(first["loc"], first["msg"], where, typed)
        if first["type"] == "extra_forbidden":
            raise InputError(f"{where}: unknown key {key!r}{_similar(model, first['loc'])}") from None
        given = "nothing" if first["input"] is None else _SHORT.repr(first["input"])
        found = "" if first["type"] in ("missing", "value_error") else f", found {given}"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "literal_error":
            message = meant(first["input"], re.findall(r"'([^']*)'", first["ctx"]["expected"]))
        raise InputError(f"{where}: {f'{key}: ' if key else ''}{message}{found}") from None


def _blamed(loc: tuple[int | str, ...], message: str, where: str, typed: Typed) -> str:
    """Where the trouble at ``loc`` comes from; that of a section may be with any key that the message names."""
    for path, text in reversed(typed):
        if loc[: len(path)] == path:
            return f"{text if len(text) <= 120 else text[:80] + '…'} on the command line"
    below = (".".join(path[len(loc) :]) for path, _ in typed if path[: len(loc)] == loc)
    return f"{where} and the command line" if any(key in message for key in below) else where


def _texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Each text in nested dicts and lists, with its dotted key."""
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, dict | list | tuple):
        for name, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _texts(child, f"{key}.{name}" if key else str(name))


def field_type(model: Any, path: list[str]) -> Any:
    """The annotation of a dotted key, None where there is no such key."""
    for part in path:
        model = next((m for m in (model, *typing.get_args(model)) if hasattr(m, "model_fields")), None)
        if model is None or part not in model.model_fields:
            return None
        model = model.model_fields[part].annotation
    return model


def _similar(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """A hint for a misspelt key: the keys that its section does have."""
    section = field_type(model, [str(part) for part in loc[:-1]]) if len(loc) > 1 else model
    section = next((m for m in (section, *typing.get_args(section)) if hasattr(m, "model_fields")), None)
    if section is None:
        return ""
    names = list(section.model_fields)
    return hint(loc[-1], names) or f"; expected one of {', '.join(names)}"
