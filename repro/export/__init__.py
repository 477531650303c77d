"""ONNX: exporting our networks, and running what was exported.

Exporting needs the package onnx, running onnxruntime; neither needs the other's.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from repro.export.onnx import export_onnx
    from repro.export.runtime import OnnxSegmenter

ScriptGraph = Literal["scores", "probs", "multiscale"]  # of our nets, for their test scripts
GraphName = Literal[ScriptGraph, "net"]
PrecisionName = Literal["fp32", "fp16", "int8"]

_MODULES = {"export_onnx": "repro.export.onnx", "OnnxSegmenter": "repro.export.runtime"}

__all__ = ["GraphName", "OnnxSegmenter", "PrecisionName", "ScriptGraph", "export_onnx"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
