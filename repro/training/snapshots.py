"""Snapshots of training: pairs ``iter_<n>.safetensors`` (weights) and ``iter_<n>.state``, n updates done.

The state holds the solver's history, Caffe's ``current_step``, the iteration and the hash of the weights. Everything
random is a function of seed and place in the run (``loop.py``), so that is all a run needs to resume to the same bits.

Both files appear whole or not at all, the state last. Damage is noticed: the state's entries carry check sums, and
the state knows the hash of the weights.
"""

from __future__ import annotations

import logging
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from repro.errors import InputError, damaged
from repro.models import CaffeNet
from repro.solver import CaffeSolver, current_step
from weights_conversion import load_weights, read_pth, save_safetensors
from weights_conversion.files import atomic_path, file_sha256

log = logging.getLogger(__name__)


def snapshots(folder: Path) -> list[int]:
    """The iterations that a folder holds both files of, ascending."""
    names = (re.fullmatch(r"iter_(\d+)\.state", path.name) for path in folder.glob("iter_*.state"))
    iterations = sorted(int(name[1]) for name in names if name)
    return [iteration for iteration in iterations if _weights(folder, iteration).exists()]


def write_snapshot(
    folder: Path, model: CaffeNet, solver: CaffeSolver, observed: dict[str, torch.Tensor]
) -> None:
    """Write both files of the present iteration, each atomically, the state last; ``observed`` goes into it."""
    iteration = solver.iteration
    weights, path = _weights(folder, iteration), _state(folder, iteration)
    path.unlink(missing_ok=True)  # of a snapshot that was found damaged: it does not know the new weights
    save_safetensors(
        model,
        weights,
        {"iteration": str(iteration)},  # one entry: the format does not keep the order of several
    )
    state = {
        "iteration": iteration,
        "current_step": current_step(solver.config, iteration - 1),  # for a Caffe solver state
        "history": [history.cpu() for history in solver.history],
        "observed": {name: tensor.cpu() for name, tensor in observed.items()},
        "weights_sha256": file_sha256(weights),
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def resume(folder: Path, model: CaffeNet, solver: CaffeSolver) -> dict[str, torch.Tensor]:
    """Take over the newest snapshot in the folder that is whole, if there is one; returns its ``observed``.

    Damaged ones are passed over with a warning. They stay where they are until the run gets there again.
    """
    for iteration in reversed(snapshots(folder)):
        path = _state(folder, iteration)
        try:
            state = read_state(path, iteration)
            weights = _weights(folder, iteration)
            if file_sha256(weights) != state["weights_sha256"]:
                raise InputError(f"{weights}: damaged, not the bytes that {path.name} was written with")
            with damaged(path, "the history of this net"):
                solver.load_history(state["history"], iteration)  # it checks all before it copies any
        except (InputError, OSError) as error:
            log.warning("%s: the snapshot of iteration %d is passed over: %s", folder.name, iteration, error)
            continue
        load_weights(model, weights)
        log.info("%s: resuming from iteration %d (%s)", folder.name, iteration, path)
        observed: dict[str, torch.Tensor] = state["observed"]
        return observed
    return {}


def prune(folder: Path, keep: int, every: int) -> None:
    """Remove all but the newest ``keep`` snapshots (0: none is removed).

    Those between the multiples of ``every``, which a run that was stopped has left, go as soon as a newer one is there.
    """
    iterations = snapshots(folder)
    regular = [iteration for iteration in iterations if every and iteration % every == 0]
    kept = {*iterations[-1:], *(regular[-keep:] if keep else regular)}
    for iteration in iterations:
        if iteration not in kept:
            _state(folder, iteration).unlink()  # first: weights without a state count as nothing
            _weights(folder, iteration).unlink()


def _weights(folder: Path, iteration: int) -> Path:
    return folder / f"iter_{iteration}.safetensors"


def _state(folder: Path, iteration: int) -> Path:
    return folder / f"iter_{iteration}.state"


def read_state(path: Path, iteration: int) -> dict[str, Any]:
    """The content of a state file. Raises InputError for a damaged one: torch.load itself compares no check sums."""
    expected = "the state of a snapshot"
    with damaged(path, expected), zipfile.ZipFile(path) as archive:
        if broken := archive.testzip():
            raise InputError(f"{path}: damaged ({broken})")
    state = read_pth(path)
    sound = (
        isinstance(state, dict)
        and state.keys() >= {"iteration", "history", "observed", "weights_sha256"}
        and isinstance(state["iteration"], int)
        and state["iteration"] == iteration
        and isinstance(state["history"], list)
        and all(isinstance(history, torch.Tensor) for history in state["history"])
        and isinstance(state["observed"], dict)
        and all(isinstance(values, torch.Tensor) for values in state["observed"].values())
    )
    if not sound:
        raise InputError(f"{path}: damaged, {expected} of iteration {iteration} expected")
    return state
