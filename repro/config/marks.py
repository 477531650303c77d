"""Whether a setting changes results: a mark on its field, asked by all that compares runs or resumes one.

    workers: Annotated[NonNegative, Mark.NEUTRAL] = 2

A field without a mark changes results. What a stage records of its settings, ``settings_sha256``, the changes from a
profile and so the report's "not comparable" are all made by `shaping`.
"""

from __future__ import annotations

import hashlib
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from weights_conversion.files import file_sha256


class Mark(Enum):
    """What a field does where it is not simply a setting that changes results."""

    NEUTRAL = "speed, memory, display or place: no result depends on it"
    INPUT = "a file or folder that the run reads; its content stands for it"
    EXTRA_INPUT = "as INPUT, but giving one at all changes what is done"
    TRAINING = "changes training alone, not what a trained net gives"
    REPETITION = "runs that differ in it alone are repetitions of each other"


def mark_of(model: type[BaseModel], name: str) -> Mark | None:
    """The mark of a field."""
    return next((mark for mark in model.model_fields[name].metadata if isinstance(mark, Mark)), None)


def shaping(section: BaseModel, *without: Mark) -> dict[str, Any]:
    """The fields of a section, and of those below, that change results.

    Args:
        without: leave out the fields of these marks as well. Neutral ones always are; of an input that is left in,
            the value is its content's SHA-256.

    Returns:
        Plain values by field name, as JSON can hold them.
    """
    kept: dict[str, Any] = {}
    for name in type(section).model_fields:
        mark, value = mark_of(type(section), name), getattr(section, name)
        if mark is Mark.NEUTRAL or mark in without:
            continue
        if isinstance(value, BaseModel):
            kept[name] = shaping(value, *without)
        elif mark in (Mark.INPUT, Mark.EXTRA_INPUT):
            kept[name] = None if value is None else content_sha256(value)
        else:
            kept[name] = value
    return kept


def content_sha256(path: str) -> str:
    """Of a file's content, or of the names and contents of a folder's files; the path itself where nothing is there."""
    found = Path(path)
    if not found.exists():
        return path
    status = found.stat()
    return _content_sha256(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)  # a plan or a report of thirty runs asks for each file as often
def _content_sha256(path: str, modified: int, size: int) -> str:
    found = Path(path)
    if not found.is_dir():
        return file_sha256(found)
    digest = hashlib.sha256()
    for file in sorted(file for file in found.iterdir() if file.is_file()):
        digest.update(f"{file.name}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()
