"""What a reader answers: a line of JSON, then the values of the arrays that it lists; or why it refused."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

MIB = 1 << 20


class RefusedError(Exception):
    """``where`` in the file, ``reason``; the reader's caller puts the file's name before them."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason


def write_head(out: BinaryIO, **fields: Any) -> None:
    out.write(json.dumps(fields).encode() + b"\n")
