"""Caffe's solver: the SGD update and the learning-rate policies."""

from repro.solver.policies import learning_rate
from repro.solver.sgd import CaffeSGD

__all__ = ["CaffeSGD", "learning_rate"]
