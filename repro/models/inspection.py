"""``repro inspect``: what a weight file, a solver state or a prototxt holds, line by line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from repro.models.summary import summarise, unknown_lines
from weights_conversion.caffe_pb2 import SolverParameter
from weights_conversion.caffemodel import read_caffemodel
from weights_conversion.conversion import PROVENANCE, read_metadata, read_snapshot
from weights_conversion.errors import CaffeFileError
from weights_conversion.files import other_kind
from weights_conversion.kinds import file_kind
from weights_conversion.lift import lift
from weights_conversion.mapping import read_safetensors
from weights_conversion.prototxt import Message, read_prototxt
from weights_conversion.prototxt_format import format_prototxt
from weights_conversion.pth import read_pth
from weights_conversion.solverstate import SolverState, read_solverstate
from weights_conversion.sources import READERS
from weights_conversion.vgg16_files import Layers

_SOLVER_FIELDS = {"base_lr", "lr_policy", "net", "train_net", "net_param", "max_iter", "solver_mode"}


def describe_file(path: str | os.PathLike[str]) -> list[str]:
    """The lines that say what a file holds: layers, shapes, parameters, ranges of values; a state's iteration;
    of a prototxt the net's layers or the solver's fields.

    Raises ``InputError`` (a ``ValueError``) for what the readers refuse.
    """
    kind, name = file_kind(path), Path(path).name
    if kind == "prototxt":
        return _prototxt(path)
    if kind == "solverstate":
        return [f"{name}: Caffe solver state", *_state(read_solverstate(path))]
    if kind == "safetensors":
        arrays = _arrays(read_safetensors(path))
        return [f"{name}: safetensors, {len(arrays)} layers", *_metadata(path), *_layers(arrays, {})]
    if kind == "pth":
        content = read_pth(path)
        if isinstance(content, dict) and "history" in content:
            return [f"{name}: snapshot of training", *_state(read_snapshot(path))]
    if kind in READERS:
        foreign = READERS[kind](path)
        return [f"{name}: {foreign.form}", *foreign.changes, *_layers(_arrays(foreign.layers), {})]
    model = read_caffemodel(path)
    arrays = {n: {str(i): b for i, b in enumerate(layer.blobs)} for n, layer in model.layers.items()}
    types = {n: layer.type for n, layer in model.layers.items()}
    return [
        f"{model.name or name}: {model.form}, {len(model.layers)} layers",
        *model.changes,
        *_layers(arrays, types),
    ]


def read_text(path: str | os.PathLike[str]) -> Message:
    """A prototxt, of a net or a solver. Raises ``CaffeFileError`` for other text, with what it is."""
    try:
        content = read_prototxt(path)
        if not content.layers and not _SOLVER_FIELDS & content.keys():
            raise CaffeFileError(
                f"{os.fspath(path)}: neither a net (no layer) nor a solver (no base_lr, net, …)"
            )
    except CaffeFileError as error:
        with open(path, "rb") as file:
            reason = other_kind(file.read(512))
        if reason:
            raise CaffeFileError(f"{os.fspath(path)}: {reason}") from None
        if Path(path).name.endswith(".prototxt"):
            raise
        raise CaffeFileError(f"{error}; read as a prototxt, being text") from None
    return content


def _prototxt(path: str | os.PathLike[str]) -> list[str]:
    content = read_text(path)
    if content.layers:
        return [*summarise(content, path=os.fspath(path)).lines()]
    unknown: list[str] = []
    lift(content, SolverParameter, os.fspath(path), unknown=unknown)
    return [
        f"{Path(path).name}: solver",
        *(f"  {line}" for line in format_prototxt(content).splitlines()),
        *unknown_lines(unknown),
    ]


def _arrays(layers: Layers) -> dict[str, dict[str, np.ndarray]]:
    """NumPy's arrays of tensors by layer and blob; it has no bfloat16 and no float8, which become float32."""
    known = (torch.float16, torch.float32, torch.float64)
    return {
        name: {
            blob: (
                tensor if not tensor.is_floating_point() or tensor.dtype in known else tensor.float()
            ).numpy()
            for blob, tensor in blobs.items()
        }
        for name, blobs in layers.items()
    }


def _layers(layers: dict[str, dict[str, np.ndarray]], types: dict[str, str]) -> Iterator[str]:
    total = 0
    for name, blobs in layers.items():
        for blob, values in blobs.items():
            total += values.size
            yield f"  {name:<16}{types.get(name, ''):<16}{blob:<9}{_values(values)}"
    yield f"{total} parameters"


def _state(state: SolverState) -> Iterator[str]:
    yield f"  iter {state.iter}, current_step {state.current_step}, learned_net {state.learned_net!r}"
    for index, values in enumerate(state.history):
        yield f"  history {index:<8}{_values(values)}"
    yield f"{sum(values.size for values in state.history)} values of history in {len(state.history)} arrays"


def _values(values: np.ndarray) -> str:
    shape = "x".join(map(str, values.shape)) or "one value"
    if not values.size:
        return f"{shape:<18}{0:>10}  empty"
    wrong = values.size - int(np.isfinite(values).sum())
    note = f", {wrong} not finite" if wrong else ""
    return f"{shape:<18}{values.size:>10}  {values.min():.4g} to {values.max():.4g}{note}"


def _metadata(path: str | os.PathLike[str]) -> Iterator[str]:
    for key, text in sorted(read_metadata(path).items()):
        if key != PROVENANCE:
            yield f"  {key}: {text}"
            continue
        try:
            provenance = json.loads(text)
            source, report = provenance["source"], provenance["report"]
            known = f" ({source['known_as']})" if source["known_as"] else ""
            yield f"  from {source['name']}{known}: {source['form']}, {source['bytes']} bytes"
            yield f"  SHA-256 {source['sha256']}"
            if provenance["net"]:
                yield "  for " + ", ".join(f"{name} {value}" for name, value in provenance["net"].items())
            yield from (f"  {change}" for change in report["changes"])
            for name in ("loaded", "missing", "unused"):
                yield f"  {name}: {_names(report[name])}"
            if report["spread"]:
                yield "  spread: " + ", ".join(
                    f"{source} -> {name}" for name, source in report["spread"].items()
                )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CaffeFileError(f"{os.fspath(path)}: its provenance is damaged") from None


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
