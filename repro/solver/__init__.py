"""Caffe's solver: the SGD update and the learning-rate policies."""

from repro.solver.policies import current_step, learning_rate
from repro.solver.sgd import CaffeSGD

__all__ = ["CaffeSGD", "current_step", "learning_rate"]
