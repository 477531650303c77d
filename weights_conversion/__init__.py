"""Reading and writing Caffe's files, and carrying weights between them and PyTorch models.

Imports nothing of ``repro``. Its names are imported when they are first asked for: ``errors`` and ``files`` are light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weights_conversion.caffemodel import CaffeLayer, CaffeModel, read_caffemodel, write_caffemodel
    from weights_conversion.conversion import STATE_ENDINGS, convert_solverstate, read_for
    from weights_conversion.errors import CaffeFileError
    from weights_conversion.mapping import LoadReport, load_caffe_weights, load_weights, save_safetensors
    from weights_conversion.model_layers import CaffeLayerView, HasCaffeBlobs, caffe_layers
    from weights_conversion.prototxt import Identifier, Message, read_prototxt
    from weights_conversion.prototxt_format import format_prototxt, write_prototxt
    from weights_conversion.pth import read_pth
    from weights_conversion.solverstate import SolverState, read_solverstate, write_solverstate

_HOMES = {
    "caffemodel": ("CaffeLayer", "CaffeModel", "read_caffemodel", "write_caffemodel"),
    "conversion": ("STATE_ENDINGS", "convert_solverstate", "read_for"),
    "errors": ("CaffeFileError",),
    "mapping": ("LoadReport", "load_caffe_weights", "load_weights", "save_safetensors"),
    "model_layers": ("CaffeLayerView", "HasCaffeBlobs", "caffe_layers"),
    "prototxt": ("Identifier", "Message", "read_prototxt"),
    "prototxt_format": ("format_prototxt", "write_prototxt"),
    "pth": ("read_pth",),
    "solverstate": ("SolverState", "read_solverstate", "write_solverstate"),
}

__all__ = [
    "STATE_ENDINGS",
    "CaffeFileError",
    "CaffeLayer",
    "CaffeLayerView",
    "CaffeModel",
    "HasCaffeBlobs",
    "Identifier",
    "LoadReport",
    "Message",
    "SolverState",
    "caffe_layers",
    "convert_solverstate",
    "format_prototxt",
    "load_caffe_weights",
    "load_weights",
    "read_caffemodel",
    "read_for",
    "read_prototxt",
    "read_pth",
    "read_solverstate",
    "save_safetensors",
    "write_caffemodel",
    "write_prototxt",
    "write_solverstate",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
