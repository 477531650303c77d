"""Caffe's six solvers and its learning-rate policies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from repro.config import SolverConfig
from repro.models import CaffeNet
from repro.solver.base import CaffeSolver
from repro.solver.policies import current_step, learning_rate
from repro.solver.types import (
    CaffeAdaDelta,
    CaffeAdaGrad,
    CaffeAdam,
    CaffeNesterov,
    CaffeRMSProp,
    CaffeSGD,
)

SOLVERS: dict[str, type[CaffeSolver]] = {
    solver.type: solver
    for solver in (CaffeSGD, CaffeNesterov, CaffeAdaGrad, CaffeRMSProp, CaffeAdaDelta, CaffeAdam)
}


def build_solver(
    net_or_groups: CaffeNet | Iterable[dict[str, Any]], config: SolverConfig | dict
) -> CaffeSolver:
    """The optimizer of ``config.type``, as Caffe computes it; see :class:`CaffeSolver` for the arguments.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.zeros(3))
    >>> fields = {"type": "Adam", "base_lr": 0.5, "lr_policy": "fixed", "momentum": 0.875}
    >>> solver = build_solver([{"params": [weight]}], fields)
    >>> weight.grad = torch.tensor([1.0, -2.0, 0.0])
    >>> solver.step()
    >>> weight.detach().round(decimals=4)
    tensor([-0.5000,  0.5000,  0.0000])

    Raises:
        InputError: bad settings.
    """
    config = SolverConfig.of(config)
    return SOLVERS[config.type](net_or_groups, config)


__all__ = ["SOLVERS", "CaffeSGD", "CaffeSolver", "build_solver", "current_step", "learning_rate"]
