"""Caffe's solver loop: ``iter_size`` mini-batches and an update per iteration. Everything else is a hook.

Everything random is a function of the seed and the place in the run: list order, mirror and crops of the position in
the stream, dropout of iteration and rank. So a resumed run sees the same numbers, and with several processes (see
``repro/distributed.py``) each mini-batch is the same, shared out by position in the stream.

With several ranks a loss is the sum of what each rank's images add to it (``objectives.py``), and gradients are summed
by DistributedDataParallel while the backward pass still runs. All ranks then make the same update.

On CUDA the loop only queues work: nothing in it waits for the device but the log row of an earlier iteration and the
snapshots.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from repro import distributed
from repro.errors import StoppedError
from repro.models import CaffeNet
from repro.solver import CaffeSolver
from repro.training.objectives import Batch, Objective
from repro.training.rows import Row, Rows

Sums = dict[str, torch.Tensor]


class BatchSource(Protocol):
    """The mini-batches of a training: a function of the seed and the place in the run alone."""

    @property
    def seed(self) -> int:
        """Of all that is random."""

    @property
    def images(self) -> int:
        """Images of an iteration, those of all ranks."""

    def load(
        self, iteration: int, count: int, *, workers: int | None = None, pin_memory: bool = False
    ) -> Iterator[Batch]:
        """The mini-batches of ``count`` iterations, this rank's part; ``workers`` processes load them."""


class Hook:
    """What hangs on a training: a log, a check, snapshots. Each method may be left as it is here.

    The methods are called in this order, each for all hooks in the order of their list. With several ranks each rank
    has its own hooks. The first rank alone writes; tensors in ``state_dict`` must be equal on all of them.
    """

    def prepare(self, loop: SolverLoop) -> None:
        """Nothing is read or written yet; ``loop.solver`` may take over an earlier iteration here."""

    def before_training(self, loop: SolverLoop) -> None:
        """The first mini-batch has been read, so the input is good."""

    def before_update(self, loop: SolverLoop, sums: Sums) -> None:
        """The gradients are there. Where a hook raises, weights and history stay as they were."""

    def after_row(self, loop: SolverLoop, row: Row) -> None:
        """A displayed iteration's row has arrived on the host; on CUDA after later iterations were queued."""

    def after_iteration(self, loop: SolverLoop, sums: Sums) -> None:
        """``loop.solver.iteration`` iterations are done."""

    def before_snapshot(self, loop: SolverLoop, sums: Sums) -> None:
        """All rows have arrived, and a snapshot of this iteration follows unless a hook raises."""

    def after_measurement(self, loop: SolverLoop, what: str, metrics: Mapping[str, float | None]) -> None:
        """Another hook of this rank has measured something: ``seeds``, ``average_precision``."""

    def on_stop(self, loop: SolverLoop, error: Exception) -> None:
        """The training has failed or was stopped; raising another error here puts that one in its place."""

    def after_training(self, loop: SolverLoop) -> None:
        """However it ended, and also where it could not begin."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a snapshot must keep; names are unique among the hooks."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what ``state_dict`` of all hooks gave; called in ``prepare`` where there is a snapshot."""


class SolverLoop:
    """Trains a net up to ``max_iter`` of its solver.

    Args:
        net: on its device.
        folder: the stage's, which messages name and hooks write to.
        hooks: called in this order.
    """

    def __init__(
        self,
        net: CaffeNet,
        solver: CaffeSolver,
        objective: Objective,
        batches: BatchSource,
        folder: Path,
        hooks: Sequence[Hook] = (),
    ) -> None:
        self.net, self.solver, self.objective = net, solver, objective
        self.batches, self.folder, self.hooks = batches, folder, hooks
        self.device = next(net.parameters()).device
        self.signal = 0  # set by a hook: stop after this iteration
        self._rows = Rows()

    @property
    def ends(self) -> bool:
        """Whether the iteration that was just done is the last."""
        return self.signal != 0 or self.solver.iteration == self.solver.config.max_iter

    def run(self) -> None:
        """Train.

        Raises:
            InputError: bad input in the first batch, before anything is written, or in a later one; a loss or a
                gradient that is no number.
            StoppedError: a signal, a loader worker or another rank that died.
        """
        try:
            self._each("prepare")
            batches = self._first_read()
            self._each("before_training")
            try:
                with distributed.others_may_end():
                    self._iterate(batches)
            except Exception as error:
                self._each("on_stop", error)
                raise
        finally:
            self._each("after_training")

    def _iterate(self, batches: Iterator[Batch]) -> None:
        config, solver = self.solver.config, self.solver
        self.net.train()
        net: nn.Module = self.net
        if distributed.size() > 1:
            net = DistributedDataParallel(self.net, gradient_as_bucket_view=True, init_sync=False)
        latest: deque[torch.Tensor] = deque(maxlen=config.average_loss)
        while solver.iteration < config.max_iter:
            iteration, rate = solver.iteration, solver.rate
            self.draw(iteration)
            sums = update(
                net, solver, self.objective, batches, lambda sums: self._each("before_update", sums)
            )
            latest.append(sums["loss"])
            if config.display and iteration % config.display == 0:
                smoothed = torch.stack(list(latest)).mean()
                self._report(self._rows.send(iteration, rate, sums, smoothed))
            self._each("after_iteration", sums)
            if self.signal and solver.iteration < config.max_iter:
                raise StoppedError(f"stopped by {signal.Signals(self.signal).name}", 128 + self.signal)

    def before_snapshot(self, sums: Sums) -> None:
        """Report all rows and ask every hook whether the state is good."""
        self._report(self.waiting_rows())
        self._each("before_snapshot", sums)

    def measured(self, what: str, metrics: Mapping[str, float | None]) -> None:
        """Tell the other hooks what one of them has measured."""
        self._each("after_measurement", what, metrics)

    def waiting_rows(self) -> Iterator[Row]:
        """Rows that are still on their way from the device."""
        return self._rows.rest()

    def draw(self, iteration: int) -> None:
        """Begin the random numbers of an iteration: dropout's. No rank's are another's."""
        key = np.random.SeedSequence((self.batches.seed, distributed.rank(), iteration))
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))

    def _first_read(self) -> Iterator[Batch]:
        iterations = self.solver.config.max_iter - self.solver.iteration
        batches = self.batches.load(self.solver.iteration, iterations, pin_memory=self.device.type == "cuda")
        # the first now: bad input shows before anything is written
        return itertools.chain([next(batches)], batches) if iterations > 0 else batches

    def _report(self, rows: Iterator[Row]) -> None:
        for row in rows:
            self._each("after_row", row)

    def _each(self, event: str, *arguments: object) -> None:
        for hook in self.hooks:
            getattr(hook, event)(self, *arguments)


def update(
    net: nn.Module,
    solver: CaffeSolver,
    objective: Objective,
    batches: Iterator[Batch],
    check: Callable[[Sums], None] | None = None,
) -> Sums:
    """``iter_size`` mini-batches and one step of the solver.

    Args:
        net: in training mode, on its device; with several ranks in a DistributedDataParallel.
        batches: this rank's share, on the host, in pinned memory for a CUDA device.
        check: called with the result before the step; where it raises, weights and history stay as they were.

    Returns:
        The loss, each part of it and the objective's metrics, means over the mini-batches, on the device.
    """
    parameter = next(net.parameters())
    solver.zero_grad()
    losses: Sums = {}
    metrics: Sums = {}
    for number in range(solver.config.iter_size):
        batch = on_device(next(batches), parameter)
        is_last = number == solver.config.iter_size - 1
        summing_later = isinstance(net, DistributedDataParallel) and not is_last
        with net.no_sync() if summing_later else contextlib.nullcontext():  # type: ignore[operator]
            outcome = objective(net, batch)
            total = outcome.total
            # DistributedDataParallel divides the summed gradients by the number of ranks
            (total * distributed.size() if distributed.size() > 1 else total).backward()
        for sums, values in ((losses, {"loss": total, **outcome.losses}), (metrics, outcome.metrics)):
            for name, value in values.items():
                sums[name] = sums.get(name, 0) + value.detach() / solver.config.iter_size
    if distributed.size() > 1:
        losses = dict(zip(losses, distributed.add_up(torch.stack(list(losses.values()))), strict=True))
    if check:
        check({**losses, **metrics})
    solver.step()
    return {**losses, **metrics}


def on_device(batch: Batch, parameter: torch.Tensor) -> Batch:
    """A batch in the parameters' dtype on their device."""
    return {
        name: values.to(
            parameter.device, parameter.dtype if values.is_floating_point() else None, non_blocking=True
        )
        for name, values in batch.items()
    }
