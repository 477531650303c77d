"""Values as Python text, for nets that are written as plain PyTorch."""

from __future__ import annotations

import numpy as np


class Code(str):
    """A piece of Python, as opposed to a value that is to be written as a literal."""


def literal(value: object) -> str:
    """A value in Python; numbers as short as float32 allows, which is what Caffe's messages hold.

    >>> literal((0.30000001192092896, 2, "SUM")), literal(Code("x.shape"))
    ("(0.3, 2, 'SUM')", 'x.shape')
    """
    if isinstance(value, Code):
        return value
    if isinstance(value, float):
        return repr(float(str(np.float32(value)))) if np.isfinite(value) else f'float("{value}")'
    if isinstance(value, (list, tuple)):
        inside = ", ".join(map(literal, value))
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    return repr(value)
