"""``repro convert``: weights and solver states from one kind of file to another, with their provenance."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from repro.files import file_sha256
from weights_conversion.caffemodel import write_caffemodel
from weights_conversion.errors import CaffeFileError
from weights_conversion.kinds import file_kind
from weights_conversion.mapping import LoadReport, load_weights, save_safetensors
from weights_conversion.pth import read_pth
from weights_conversion.solverstate import SolverState, read_solverstate, write_solverstate
from weights_conversion.sources import known_as

PROVENANCE = "provenance"
"""The key of a converted safetensors' metadata: JSON, in one entry because the format keeps no order of several."""

STATE_ENDINGS = (".solverstate", ".solverstate.h5")
_WRITERS: dict[str, Callable[..., None]] = {
    ".caffemodel": write_caffemodel,
    ".h5": write_caffemodel,
    ".safetensors": save_safetensors,
}


def convert_weights(
    model: nn.Module,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    net: dict[str, Any],
    spread_branches: bool = False,
) -> LoadReport:
    """Load ``source`` into ``model`` and write it as the ending of ``target`` says.

    A safetensors file carries its provenance: the source's name, size and SHA-256, what is known of it, what was
    done with each layer, and ``net``, the settings of the model. The same source gives the same bytes, as far as
    layers that the source lacks are filled alike. Errors as ``load_weights``; ``CaffeFileError`` too for an unknown
    ending, and where no layer of the source is in the model.
    """
    ending = Path(target).suffix
    if ending not in _WRITERS:
        raise CaffeFileError(
            f"{target}: expected a name that ends in {', '.join(_WRITERS)} (or {', '.join(STATE_ENDINGS)})"
        )
    report = load_weights(model, source, spread_branches=spread_branches)
    if not report.loaded:
        raise CaffeFileError(
            f"{source}: none of its layers is in {net['name']}; it holds {', '.join(report.unused)}"
        )
    if ending == ".safetensors":
        save_safetensors(model, target, {PROVENANCE: json.dumps(_provenance(report, net))})
    else:
        _WRITERS[ending](model, target)
    return report


def _provenance(report: LoadReport, net: dict[str, Any]) -> dict[str, Any]:
    sha256 = file_sha256(report.path)
    entries = dataclasses.asdict(report)
    path = Path(entries.pop("path"))
    source = {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256, "form": entries.pop("form")}
    return {"source": {**source, "known_as": known_as(path, sha256)}, "net": net, "report": entries}


def convert_solverstate(
    source: str | os.PathLike[str], target: str | os.PathLike[str], model: nn.Module | None
) -> list[Path]:
    """Write a solver state as the ending of ``target`` says, ``.solverstate`` or ``.solverstate.h5``.

    ``source`` is one of Caffe's, which is written as it is, or the ``.state`` of a snapshot of training here: then
    the weights beside it (``iter_<n>.safetensors``) are written, too, and Caffe goes on from the pair. That takes the
    ``model`` that was trained.

    Returns the files written. Raises ``CaffeFileError`` for what the readers refuse and for a state of another net.
    """
    source, target = Path(source), Path(target)
    if file_kind(source) != "pth":
        state = read_solverstate(source)
        write_solverstate(target, state.iter, state.current_step, state.history, state.learned_net)
        return [target]
    if model is None:
        raise CaffeFileError(f"{source}: a snapshot of training: say with --to which net it is of")
    state = read_snapshot(source)
    weights = source.with_suffix(".safetensors")
    report = load_weights(model, weights)
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    kinds = len(state.history) // max(len(shapes), 1)  # of history: AdaDelta and Adam have two
    if report.missing or [array.shape for array in state.history] != shapes * max(kinds, 1):
        raise CaffeFileError(f"{source}: not of this net: {report}")
    learned_net = target.with_name(target.name.replace(".solverstate", ".caffemodel"))
    write_caffemodel(model, learned_net)
    write_solverstate(target, state.iter, state.current_step, state.history, str(learned_net))
    return [learned_net, target]


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
    except (
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        RuntimeError,
    ):  # int of inf, tensors that are no numbers
        raise CaffeFileError(f"{path}: not the .state of a training snapshot") from None
