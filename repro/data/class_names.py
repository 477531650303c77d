"""Class names in files of labels."""

from __future__ import annotations

import re
from collections.abc import Mapping

from repro.errors import InputError, hint


def class_of(name: str, indices: Mapping[str, int], where: str) -> int:
    """The index of a class. Raises InputError for a name that is none, ``where`` in front."""
    if name not in indices:
        raise InputError(
            f"{where}: {name!r} is not one of the classes {', '.join(indices)}{hint(name, indices)}"
        )
    return indices[name]


def names_in(cell: str, indices: Mapping[str, int]) -> list[str]:
    """The classes of a cell: one, or a list with or without brackets and quotes."""
    if cell in indices:
        return [cell]
    inner = re.sub(r"^[\[({](.*)[\])}]$", r"\1", cell, flags=re.DOTALL)
    between = r"[,;|]|\s+" if re.fullmatch(r"[\d\s,;|]*", inner) else r"[,;|]"
    parts = (part.strip().strip("'\"").strip() for part in re.split(between, inner))
    return [part for part in parts if part]
