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

IS_TRAINED = "%s: is trained, all %d iterations; a larger solver.max_iter lengthens it"
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
    for iteration in range(max(snapshots(folder), default=0)):
        rates = learning_rate(earlier, iteration), learning_rate(later, iteration)
        if rates[0] != rates[1]:
            raise InputError(
                f"{folder}: iteration {iteration} was trained with lr {rates[0]:g}, with these settings it is "
                f"{rates[1]:g}; a run can be lengthened where the rates of what is done stay, "
                "init.solverstate=FILE resumes in another folder with any"
            )
    return True


def _without_solver(settings: dict[str, Any], place: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    rest = json.loads(json.dumps(settings))
    node = rest
    for key in place[:-1]:
        node = node.get(key, {})
    return node.pop(place[-1], {}), rest
