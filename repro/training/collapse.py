"""A watch on collapse: a net whose softmax is saturated, or that gives every cell the same class, learns nothing more.

Both show in metrics that the log reads anyway, so that nothing waits for the device:

- The seed loss stands at the floor. The softmax gives each class at least m / (1 + C·m), m = 1e-4, so that −log p is at
  most 9.21. In a saturated net that is what the seeds of all other classes cost: once, or, in both terms of the
  balanced loss, twice. The CRF has nothing to change there, and the constrain loss is near 0. This tells it from a net
  of 81 classes that has learnt nothing yet: its balanced loss begins at 8.8, its constrain loss well above 0.
- One class wins in every cell of every image of the batch.

A healthy training passes through both, so that only what lasts is told. Background fills every map for up to 34
iterations in a row at the start on the embedded set (seed 0: baseline 34, +BSL 3, +DSRG 16), and after 12 iterations of
the recording on real images. The recorded seed losses stay below 7.5.
"""

from __future__ import annotations

import logging
import math

import torch

from repro.layers.softmax import MIN_PROB
from repro.training.loop import Hook, SolverLoop
from repro.training.rows import Row

log = logging.getLogger(__name__)

# Rows of the log in succession: one class for four times the longest that a healthy training was seen to take
AT_FLOOR, ONE_CLASS = 20, 150
SEED_TERMS = {"balanced": 2, "seed": 1, "none": 0}  # terms of the seed loss, by the loss's setting
_STATE = ("_at_floor", "_one_class", "_told")
_NEAR_FLOOR, _NEAR_ZERO = 0.03, 0.05  # shares of the floor; of the constrain loss


def loss_floor(num_classes: int) -> float:
    """−log of the smallest probability that the softmax of the papers gives."""
    return math.log1p(num_classes * MIN_PROB) - math.log(MIN_PROB)


class CollapseWatch(Hook):
    """Warns once when the seed loss stays at its floor, or when one class fills every map.

    Args:
        num_classes: C, background included.
        terms: of the seed loss that can be at the floor each: 2 balanced, 1 plain, 0 where it is not watched.
    """

    def __init__(self, num_classes: int, terms: int) -> None:
        self.floors = [loss_floor(num_classes) * count for count in range(1, terms + 1)]
        self._at_floor = self._one_class = 0
        self._told = False

    def after_row(self, loop: SolverLoop, row: Row) -> None:
        self._at_floor = self._at_floor + 1 if self._is_at_floor(row.metrics) else 0
        self._one_class = self._one_class + 1 if row.metrics["winners"] == 1 else 0
        if self._told:
            return
        if self._at_floor == AT_FLOOR:
            rows, what = AT_FLOOR, f"the seed loss stands at {row.metrics['loss-Seed']:.3g}, its floor"
        elif self._one_class == ONE_CLASS:
            rows, what = ONE_CLASS, "one class fills every map"
        else:
            return
        self._told = True
        log.warning(
            "%s: the net has collapsed: in the last %d rows of the log, up to iteration %d, %s, and such a net learns "
            "nothing; try init.filler=lsuv where init.weights lacks layers, a lower solver.base_lr, other weights",
            loop.folder,
            rows,
            row.iteration,
            what,
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {f"collapse{name}": torch.tensor(int(getattr(self, name))) for name in _STATE}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for name in _STATE:
            if (key := f"collapse{name}") in state:
                setattr(self, name, state[key].item())

    def _is_at_floor(self, metrics: dict[str, float]) -> bool:
        loss = metrics.get("loss-Seed", 0.0)
        near = any(abs(loss - floor) <= _NEAR_FLOOR * floor for floor in self.floors)
        return near and metrics.get("loss-Constrain", 0.0) <= _NEAR_ZERO
