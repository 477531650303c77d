"""Snapshots of training: pairs ``iter_<n>.safetensors`` (weights) and ``iter_<n>.state``, n updates done.

The state holds the solver's history, Caffe's ``current_step``, the iteration and the random state of dropout; with
the weights that is all that a run needs to go on to the same bits.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch

from repro.files import atomic_path
from repro.models import CaffeNet
from repro.solver import CaffeSGD, current_step
from weights_conversion import load_weights, save_safetensors

log = logging.getLogger(__name__)


def snapshots(folder: Path) -> list[int]:
    """The iterations that a folder holds a whole snapshot of."""
    names = (re.fullmatch(r"iter_(\d+)\.state", path.name) for path in folder.glob("iter_*.state"))
    iterations = (int(name[1]) for name in names if name)
    return [iteration for iteration in iterations if (folder / f"iter_{iteration}.safetensors").exists()]


def write_snapshot(
    folder: Path, model: CaffeNet, solver: CaffeSGD, device: torch.device, observed: dict[str, torch.Tensor]
) -> None:
    """Write both files of the present iteration, each atomically, the state last; ``observed`` goes into it."""
    iteration = solver.iteration
    random = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(device)
    state = {
        "iteration": iteration,
        "current_step": current_step(solver.config, iteration - 1),  # for a Caffe solver state
        "history": [history.cpu() for history in solver.history],
        "random": random,
        "observed": observed,
    }
    save_safetensors(
        model,
        folder / f"iter_{iteration}.safetensors",
        {"iteration": str(iteration)},  # one entry: the format does not keep the order of several
    )
    with atomic_path(folder / f"iter_{iteration}.state") as temporary:
        torch.save(state, temporary)


def resume(folder: Path, model: CaffeNet, solver: CaffeSGD, device: torch.device) -> dict[str, torch.Tensor]:
    """Take over the newest snapshot in the folder, if there is one; returns what it holds as ``observed``."""
    iterations = snapshots(folder)
    if not iterations:
        return {}
    newest = folder / f"iter_{max(iterations)}.state"
    state = torch.load(newest, weights_only=True)
    load_weights(model, newest.with_suffix(".safetensors"))
    solver.load_history(state["history"], state["iteration"])
    torch.set_rng_state(state["random"]["cpu"])
    if device.type == "cuda" and "cuda" in state["random"]:
        torch.cuda.set_rng_state(state["random"]["cuda"], device)
    log.info("%s: going on from iteration %d (%s)", folder.name, state["iteration"], newest)
    observed: dict[str, torch.Tensor] = state.get("observed", {})
    return observed
