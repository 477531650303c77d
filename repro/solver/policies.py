"""Caffe's learning-rate policies (``SGDSolver::GetLearningRate``)."""

from __future__ import annotations

import math

from repro.config import SolverConfig


def current_step(config: SolverConfig, iteration: int) -> int:
    """Caffe's ``current_step_`` once it has the rate of ``iteration``: how often that was stepped down.

    >>> current_step(SolverConfig.of({"base_lr": 0.1, "lr_policy": "step", "gamma": 0.5, "stepsize": 10}), 25)
    2
    """
    if config.lr_policy == "step":
        return iteration // config.stepsize
    if config.lr_policy != "multistep":
        return 0
    # an iteration makes one step at most: of two equal values the second comes an iteration later
    steps, earliest = 0, 0
    for value in config.stepvalue:
        if iteration < max(value, earliest):
            break
        steps, earliest = steps + 1, max(value, earliest) + 1
    return steps


def learning_rate(solver_config: SolverConfig | dict, iteration: int) -> float:
    """The rate at ``iteration`` (from 0), before any ``lr_mult``.

        fixed      base_lr
        step       base_lr · gamma ^ floor(t / stepsize)
        exp        base_lr · gamma ^ t
        inv        base_lr · (1 + gamma·t) ^ -power
        multistep  base_lr · gamma ^ (number of stepvalues <= t, one more an iteration at most)
        poly       base_lr · (1 - t / max_iter) ^ power
        sigmoid    base_lr / (1 + exp(-gamma·(t - stepsize)))

    Args:
        solver_config: the config model or a dict of its fields.
        iteration: 0 <= iteration; under ``poly`` the rate is 0 from ``max_iter`` on.

    >>> learning_rate({"base_lr": 0.1, "lr_policy": "step", "gamma": 0.5, "stepsize": 10}, 25)
    0.025
    """
    config = SolverConfig.of(solver_config)
    t, base_lr, gamma, power = iteration, config.base_lr, config.gamma, config.power
    match config.lr_policy:
        case "fixed":
            return base_lr
        case "step" | "multistep":
            return base_lr * _power(gamma, current_step(config, t))
        case "exp":
            return base_lr * _power(gamma, t)
        case "inv":
            return base_lr * _power(1 + gamma * t, -power)
        case "poly":
            return base_lr * _power(max(0.0, 1 - t / config.max_iter), power)
        case "sigmoid":
            # 1 / (1 + e^-x) as tanh, which does not overflow
            return base_lr * 0.5 * (1 + math.tanh(0.5 * gamma * (t - config.stepsize)))


def _power(base: float, exponent: float) -> float:
    """C's ``pow``, which overflows to infinity where Python raises."""
    try:
        power: float = base**exponent
    except (OverflowError, ZeroDivisionError):
        return math.inf
    return power
