"""A field of a struct in a MATLAB 5 file, by SciPy's reader: it makes arrays and no objects; damage can crash it."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np

from weights_conversion.guarded.answers import RefusedError, write_head


def read_matlab(request: dict[str, Any], out: BinaryIO) -> None:
    """The array ``field`` of the struct ``name``, of numbers, under the key ``field``."""
    import scipy.io  # by this kind of file alone: it takes longer to import than all the rest

    content = scipy.io.loadmat(request["path"], variable_names=[request["name"]])[request["name"]]
    array = np.asarray(content[request["field"]].item())
    if array.dtype.kind not in "uif" or array.dtype.itemsize > 8:
        raise RefusedError(request["field"], f"an array of {array.dtype}, numbers expected")
    described = {
        "dtype": str(array.dtype),
        "shape": array.shape,
        "bytes": array.nbytes,
        "code": array.dtype.str,
    }
    write_head(out, groups={}, arrays={request["field"]: described}, attributes={})
    out.write(np.ascontiguousarray(array).data)
