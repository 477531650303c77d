"""Whether a run that was trained before may be trained further under a longer schedule.

With Caffe one gives ``--snapshot`` and a solver file of any content. In a run's folder the result must be what its
settings alone would have given: so the schedule may differ, and the rates of the iterations that are done may not.
``init.solverstate`` resumes in another folder with whatever settings, as Caffe does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repro.config import SolverConfig
from repro.errors import InputError
from repro.solver import learning_rate
from repro.training.snapshots import snapshots

_SCHEDULE = ("max_iter", "base_lr", "lr_policy", "gamma", "power", "stepsize", "stepvalue")


def lengthens(folder: Path, before: dict[str, Any], now: dict[str, Any], place: Sequence[str]) -> bool:
    """Whether ``now`` is ``before`` with a longer schedule.

    Args:
        folder: of the step; its newest snapshot says how many iterations are done.
        before: settings of the step as recorded.
        now: those of this call.
        place: the keys under which both hold the solver.

    Raises:
        InputError: only the schedule differs, but an iteration that is done would have another rate.
    """
    (old, rest), (new, others) = _without_solver(before, place), _without_solver(now, place)
    if rest != others or any(old.get(key) != new[key] for key in new if key not in _SCHEDULE):
        return False
    if not isinstance(old.get("max_iter"), int) or old["max_iter"] >= new["max_iter"]:
        return False
    earlier, later = SolverConfig.of(old), SolverConfig.of(new)
    iteration = _first_changed(earlier, later, max(snapshots(folder), default=0))
    if iteration is not None:
        raise InputError(
            f"{folder}: iteration {iteration} was trained with lr {learning_rate(earlier, iteration):g}, with these "
            f"settings it is {learning_rate(later, iteration):g}; a run can be lengthened where the rates of what is "
            "done stay, init.solverstate=FILE resumes in another folder with any"
        )
    return True


def trained(folder: Path, solver: SolverConfig) -> str:
    """What is said of a finished run; that ``max_iter`` lengthens it only where no rate depends on that.

    >>> solver = SolverConfig.of({"base_lr": 0.1, "max_iter": 30, "lr_policy": "poly", "power": 0.9})
    >>> trained(Path("a/stage1"), solver)
    'a/stage1: is trained, all 30 iterations'
    """
    longer = solver.model_copy(update={"max_iter": 2 * solver.max_iter})
    stay = _first_changed(solver, longer, solver.max_iter) is None
    more = "; a larger solver.max_iter lengthens it" if stay else ""
    return f"{folder}: is trained, all {solver.max_iter} iterations{more}"


def _first_changed(earlier: SolverConfig, later: SolverConfig, done: int) -> int | None:
    """The first of the iterations done that would have another rate."""
    return next((i for i in range(done) if learning_rate(earlier, i) != learning_rate(later, i)), None)


def _without_solver(settings: dict[str, Any], place: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    rest = json.loads(json.dumps(settings))
    node = rest
    for key in place[:-1]:
        node = node.get(key, {})
    return node.pop(place[-1], {}), rest
