"""Fields against a model; what does not fit becomes one line that names the key."""

from __future__ import annotations

import re
import reprlib
import typing
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from repro.errors import InputError, hint, meant, nearest, some

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
            raise InputError(
                f"{where}: unknown key {key!r}{_similar(model, first['loc'], first['input'])}"
            ) from None
        given = "nothing" if first["input"] is None else _SHORT.repr(first["input"])
        found = "" if first["type"] in ("missing", "value_error") else f", found {given}"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "model_type" and (
            section := _section(field_type(model, list(map(str, first["loc"]))))
        ):
            message = f"expected a section with keys such as {some(section.model_fields, 3)}"
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
        section = _section(model)
        if section is None or part not in section.model_fields:
            return None
        model = section.model_fields[part].annotation
    return model


def _section(kind: Any) -> type[BaseModel] | None:
    """The model that an annotation stands for, as of ``Stage2Config | None``."""
    return next((m for m in (kind, *typing.get_args(kind)) if hasattr(m, "model_fields")), None)


def keys_like(model: type[BaseModel], given: str) -> list[str]:
    """The dotted keys that ``given`` may mean: those whose last part is its own, or nearly, and of them those that
    share most of its other parts, the nearest first.

    >>> from repro.config import Config
    >>> keys_like(Config, "stage1.max_itr"), keys_like(Config, "inference.use_labels"), keys_like(Config, "x")
    (['stage1.solver.max_iter'], ['pseudo_labels.use_labels'], [])
    """
    keys = {key: key.split(".") for key in _keys(model)}
    if given in keys:
        return [given]
    parts = given.split(".")
    lasts = {path[-1] for path in keys.values()}
    parts[-1] = parts[-1] if parts[-1] in lasts else nearest(parts[-1], sorted(lasts), 0.75) or ""

    def shared(path: list[str]) -> int:
        ends = *zip(parts, path, strict=False), *zip(parts[::-1], path[::-1], strict=False)
        return sum(a == b for a, b in ends)

    found = {key: shared(path) for key, path in keys.items() if path[-1] == parts[-1]}
    best = [key for key, count in found.items() if count == max(found.values())]
    return sorted(best, key=lambda key: -SequenceMatcher(None, given, key).ratio())


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key, sections and values."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if section := _section(field.annotation):
            yield from _keys(section, f"{prefix}{name}.")


def _similar(model: type[BaseModel], loc: tuple[int | str, ...], value: Any) -> str:
    """A hint for an unknown key: what may be meant by it and, where its value is a section, by the first key below."""
    *above, last = map(str, loc)
    section = _section(field_type(model, above))
    if section is None:
        return ""
    below = []
    while isinstance(value, dict) and value:
        part, value = next(iter(value.items()))
        below.append(str(part))
    names = list(section.model_fields)
    near = nearest(last, names)
    elsewhere = not below and any(key.split(".")[-1] == last for key in _keys(model))
    if near and not elsewhere and field_type(section, [near, *below]) is not None:
        return hint(last, names)
    key = ".".join([*above, last, *below])
    likely = keys_like(model, key) or keys_like(model, ".".join([*above, last]))
    if likely == [key]:
        return f"; expected its sections nested: {key.replace('.', ': {')}: …{'}' * key.count('.')}"
    if likely:
        return f"; did you mean {' or '.join(map(repr, likely))}?"
    return hint(last, names) or f"; expected one of {', '.join(names)}"
