"""``repro convert``: weights and solver states from one kind of file to another, with their provenance."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from weights_conversion.caffemodel import write_caffemodel
from weights_conversion.errors import CaffeFileError
from weights_conversion.files import file_sha256
from weights_conversion.kinds import file_kind
from weights_conversion.mapping import (
    LoadReport,
    check_finite,
    load_weights,
    named_tensors,
    read_weights,
    save_safetensors,
)
from weights_conversion.model_layers import CaffeLayerView
from weights_conversion.npz_files import write_npz
from weights_conversion.pth import read_pth
from weights_conversion.solverstate import SolverState, read_solverstate, write_solverstate
from weights_conversion.sources import known_as

PROVENANCE = "provenance"
"""The key of a converted safetensors' metadata: JSON, in one entry because the format keeps no order of several."""

STATE_ENDINGS = (".solverstate", ".solverstate.h5")
_WRITERS: dict[str, Callable[..., None]] = {
    ".caffemodel": write_caffemodel,
    ".h5": write_caffemodel,
    ".npz": lambda layers, path: write_npz(named_tensors(layers), path),
    ".safetensors": save_safetensors,
}
NET_ENDINGS = (".onnx", ".py")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights that were read: a model's or a file's layers, what was done on the way, and what net they are of."""

    layers: nn.Module | dict[str, CaffeLayerView]
    report: LoadReport
    net: dict[str, Any]

    def write(self, target: Path) -> list[Path]:
        """Write them as the ending of ``target`` says; a safetensors file carries where they came from.

        Returns the file. The same source gives the same bytes, as far as layers that the source lacks are filled alike.
        """
        if target.suffix == ".safetensors":
            save_safetensors(
                self.layers, target, {PROVENANCE: json.dumps(_provenance(self.report, self.net))}
            )
        else:
            _WRITERS[target.suffix](self.layers, target)
        return [target]


def read_for(
    source: str | os.PathLike[str],
    target: Path,
    model: nn.Module | None,
    net: dict[str, Any],
    *,
    spread_branches: bool = False,
) -> Weights:
    """Read ``source`` into ``model``, or as it is where that is None, for a file like ``target``.

    ``net`` are the settings of the model, for the provenance. Errors as ``load_weights``; ``CaffeFileError`` too for
    an unknown ending, and where no layer of the source is in the model.
    """
    if target.suffix not in (*_WRITERS, *NET_ENDINGS):
        endings = ", ".join((*_WRITERS, *NET_ENDINGS, *STATE_ENDINGS))
        raise CaffeFileError(f"{target}: expected a name that ends in one of {endings}")
    if model is None:
        file = read_weights(source)
        layers = {name: _in_own_axes(layer) for name, layer in file.with_blobs.items()}
        if not layers:
            raise CaffeFileError(f"{os.fspath(source)}: no layer has blobs")
        for name, layer in layers.items():
            for blob, tensor in layer.tensors.items():
                check_finite(tensor, f"{os.fspath(source)}: layer {name!r}, blob {blob!r}")
        report = LoadReport(file.path, [*layers], [], [], form=file.form, changes=file.changes)
        return Weights(layers, report, net)
    report = load_weights(model, source, spread_branches=spread_branches)
    if not report.loaded:
        raise CaffeFileError(
            f"{source}: none of its layers is in {net['name']}; it holds {', '.join(report.unused)}"
        )
    return Weights(model, report, net)


def _in_own_axes(layer: CaffeLayerView) -> CaffeLayerView:
    """A layer of a file whose old shapes, filled up to four axes with 1, become what nets have today."""
    tensors = dict(layer.tensors)
    for (name, tensor), old in zip(layer.tensors.items(), layer.legacy, strict=False):
        if old and (name != "weight" or layer.type not in ("Convolution", "Deconvolution")):
            tensors[name] = tensor.reshape(
                tensor.shape[-2:] if (name, layer.type) == ("weight", "InnerProduct") else -1
            )
    return CaffeLayerView(layer.type, tensors)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a safetensors file, with `PROVENANCE` where `Weights.write` wrote it; empty for another file."""
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def _provenance(report: LoadReport, net: dict[str, Any]) -> dict[str, Any]:
    sha256 = file_sha256(report.path)
    entries = dataclasses.asdict(report)
    path = Path(entries.pop("path"))
    source = {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256, "form": entries.pop("form")}
    return {"source": {**source, "known_as": known_as(path, sha256)}, "net": net, "report": entries}


def convert_solverstate(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    model: nn.Module | None,
    *,
    folder: str | os.PathLike[str] | None = None,
) -> list[Path]:
    """Write a solver state as the ending of ``target`` says, ``.solverstate`` or ``.solverstate.h5``.

    ``source`` is one of Caffe's, which is written as it is, or the ``.state`` of a snapshot of training here: then
    the weights beside it (``iter_<n>.safetensors``) are written, too, and Caffe resumes from the pair. That takes the
    ``model`` that was trained. ``folder`` is where the state says that its weights are; that of ``target`` by default.

    Returns the files written. Raises ``CaffeFileError`` for what the readers refuse, for a state of another net, and
    for NaN or infinity in its history.
    """
    source, target = Path(source), Path(target)
    if file_kind(source) != "pth":
        state = read_solverstate(source)
        check_history(state, source)
        write_solverstate(target, state.iter, state.current_step, state.history, state.learned_net)
        return [target]
    if model is None:
        raise CaffeFileError(
            f"{source}: a snapshot of training: name its net: repro convert NET {source} {target}"
        )
    state = read_snapshot(source)
    weights = source.with_suffix(".safetensors")
    report = load_weights(model, weights)
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    kinds = len(state.history) // max(len(shapes), 1)  # of history: AdaDelta and Adam have two
    if report.missing or [array.shape for array in state.history] != shapes * max(kinds, 1):
        raise CaffeFileError(f"{source}: not of this net: {report}")
    check_history(state, source)
    learned_net = target.with_name(target.name.replace(".solverstate", ".caffemodel"))
    write_caffemodel(model, learned_net)
    named = learned_net if folder is None else Path(folder) / learned_net.name
    write_solverstate(target, state.iter, state.current_step, state.history, str(named))
    return [learned_net, target]


def check_history(state: SolverState, path: str | os.PathLike[str]) -> None:
    """Raise ``CaffeFileError`` for a solver state whose history holds NaN or infinity."""
    for index, values in enumerate(state.history):
        check_finite(torch.from_numpy(values), f"{os.fspath(path)}: history {index}")


def read_snapshot(path: str | os.PathLike[str]) -> SolverState:
    """The ``.state`` of a training snapshot, its history in the order of the model's parameters."""
    content = read_pth(path)
    try:
        return SolverState(
            iter=int(content["iteration"]),
            current_step=int(content["current_step"]),
            learned_net=str(Path(path).with_suffix(".safetensors")),
            history=[np.asarray(tensor) for tensor in content["history"]],
        )
    # int of inf, tensors that are no numbers
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError):
        raise CaffeFileError(f"{path}: not the .state of a training snapshot") from None
