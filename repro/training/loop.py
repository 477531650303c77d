"""Caffe's solver loop: ``iter_size`` mini-batches and an update an iteration, log rows and snapshots now and then.

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
import logging
import math
import os
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from repro import distributed
from repro.config import Stage0Config, Stage1Config, Stage2Config
from repro.data import DataLayer, make_loader
from repro.errors import InputError, StoppedError
from repro.files import atomic_path
from repro.models import CaffeNet
from repro.precision import LAYOUT
from repro.run_folder import Step
from repro.solver import CaffeSolver
from repro.training.csv_log import CsvLog, Figures, Row
from repro.training.finite import all_finite, first_not_finite, gradients
from repro.training.objectives import Batch, Objective
from repro.training.signals import Interruption
from repro.training.snapshots import prune, resume, snapshots, write_snapshot

log = logging.getLogger(__name__)

Sums = dict[str, torch.Tensor]


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
        The loss, each part of it and the objective's figures, means over the mini-batches, on the device.
    """
    parameter = next(net.parameters())
    solver.zero_grad()
    losses: Sums = {}
    figures: Sums = {}
    for number in range(solver.config.iter_size):
        batch = on_device(next(batches), parameter)
        is_last = number == solver.config.iter_size - 1
        summing_later = isinstance(net, DistributedDataParallel) and not is_last
        with net.no_sync() if summing_later else contextlib.nullcontext():  # type: ignore[operator]
            outcome = objective(net, batch)
            total = outcome.total
            # DistributedDataParallel divides the summed gradients by the number of ranks
            (total * distributed.size() if distributed.size() > 1 else total).backward()
        for sums, values in ((losses, {"loss": total, **outcome.losses}), (figures, outcome.figures)):
            for name, value in values.items():
                sums[name] = sums.get(name, 0) + value.detach() / solver.config.iter_size
    if distributed.size() > 1:
        losses = dict(zip(losses, distributed.add_up(torch.stack(list(losses.values()))), strict=True))
    if check:
        check({**losses, **figures})
    solver.step()
    return {**losses, **figures}


def on_device(batch: Batch, parameter: torch.Tensor) -> Batch:
    """A batch in the parameters' dtype on their device, the images in the layout of the nets."""
    moved = {
        name: values.to(
            parameter.device, parameter.dtype if values.is_floating_point() else None, non_blocking=True
        )
        for name, values in batch.items()
    }
    if "images" in moved:
        moved["images"] = moved["images"].contiguous(memory_format=LAYOUT)
    return moved


class Observer:
    """Looks on while a stage trains; it changes nothing. Each method may be left as it is here.

    With several ranks each has one. What it gathers is to be the same on all of them, its log is the first's.
    """

    def start(self, folder: Path, iteration: int, state: dict[str, torch.Tensor]) -> None:
        """The run begins at ``iteration``; ``state`` is what ``state()`` gave then, empty for a new run."""

    def row(self, row: Row) -> None:
        """A row of the log has arrived on the host; on CUDA that is after later iterations were queued."""

    def after(self, done: int) -> None:
        """``done`` iterations are done."""

    def state(self) -> dict[str, torch.Tensor]:
        """What it has gathered and not yet logged, for a snapshot; asked for after each iteration."""
        return {}


class SolverLoop:
    """One stage's training in its folder, from its newest snapshot or from ``model`` as it is."""

    def __init__(
        self,
        section: Stage0Config | Stage1Config | Stage2Config,
        seed: int,
        model: CaffeNet,
        solver: CaffeSolver,
        objective: Objective,
        dataset: DataLayer,
        list_path: Path,
        step: Step,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.section, self.seed, self.observers = section, seed, observers
        self._observed: dict[str, torch.Tensor] = {}
        self.model, self.solver, self.objective = model, solver, objective
        self.dataset, self.list_path = dataset, list_path
        self.folder, self.step, self.device = step.folder, step, step.run.device
        # where the host waits for the device anyway, each iteration is checked before its step
        self.checks_first = self.device.type == "cpu" or os.environ.get("CUDA_LAUNCH_BLOCKING") == "1"

    def run(self) -> None:
        """Train up to ``max_iter``.

        Whatever stops the loop between two steps, the state at hand becomes a snapshot, from which the next call
        goes on.

        Raises:
            InputError: bad input in the first batch, before anything is written, or in a later one; a loss or a
                gradient that is no number.
            StoppedError: a signal, a loader worker or another rank that died.
        """
        if distributed.is_first():
            self._observed = resume(self.folder, self.model, self.solver)
        self.solver.iteration = distributed.from_first(self.solver.iteration)
        distributed.take_from_first([*self.model.parameters(), *self.solver.history])
        with Interruption() as interruption:
            batches = self._batches()
            self.step.begin()
            if distributed.is_first():
                with atomic_path(self.folder / "list.txt") as temporary:
                    shutil.copyfile(self.list_path, temporary)
            began = self.solver.iteration
            try:
                with distributed.others_may_end():
                    self._iterate(batches, interruption)
            except Exception as error:
                kept = self._keep(began)
                if isinstance(error, StoppedError):
                    raise StoppedError(f"{self.folder}: {error}; {kept}", error.status) from error
                log.warning("%s: %s", self.folder, kept)
                raise

    def _iterate(self, batches: Iterator[Batch], interruption: Interruption) -> None:
        config, solver = self.section.solver, self.solver
        for observer in self.observers:
            observer.start(self.folder, solver.iteration, self._observed)
        self.model.train()
        net = self._net()
        latest: deque[torch.Tensor] = deque(maxlen=config.average_loss)
        figures = Figures()
        bar = tqdm(
            total=config.max_iter,
            initial=solver.iteration,
            desc=self.folder.name,
            unit="it",
            disable=None if distributed.is_first() else True,
            dynamic_ncols=True,
        )
        columns = ("iteration", "lr", "loss", *self.objective.columns)
        log_file = (
            CsvLog(self.folder / "log.csv", columns, solver.iteration, config.display)
            if distributed.is_first()
            else None
        )
        with bar, log_file or contextlib.nullcontext(), self._flushed(figures, log_file):
            while solver.iteration < config.max_iter:
                iteration, rate = solver.iteration, solver.rate
                self._draw(iteration)
                sums = update(
                    net, solver, self.objective, batches, self._check if self.checks_first else None
                )
                latest.append(sums["loss"])
                done = iteration + 1
                # the hosts agree, not the devices: all ranks stop after the same iteration
                stopped_by = distributed.largest(interruption.signal)
                is_last = done == config.max_iter
                if config.display and iteration % config.display == 0:
                    smoothed = torch.stack(list(latest)).mean()
                    for row in figures.send(iteration, rate, sums, smoothed):
                        self._report(row, log_file, bar)
                bar.update()
                for observer in self.observers:
                    observer.after(done)
                self._observed = {
                    name: kept for observer in self.observers for name, kept in observer.state().items()
                }
                if is_last or stopped_by or (config.snapshot and done % config.snapshot == 0):
                    for row in figures.rest():
                        self._report(row, log_file, bar)
                    self._check_finite(iteration, {name: float(value) for name, value in sums.items()})
                    self._snapshot(log_file)
                if stopped_by and not is_last:
                    raise StoppedError(f"stopped by {signal.Signals(stopped_by).name}", 128 + stopped_by)

    @contextlib.contextmanager
    def _flushed(self, figures: Figures, log_file: CsvLog | None) -> Iterator[None]:
        """Log what is still on its way from the device when the block fails: the snapshot that follows counts on it."""
        try:
            yield
        except Exception:
            with contextlib.suppress(RuntimeError):  # of a device that has failed
                for row in figures.rest():
                    if log_file:
                        log_file.write(row.fields())
            if log_file:
                log_file.sync()
            raise

    def _net(self) -> nn.Module:
        """The model, with several ranks in what sums its gradients."""
        if distributed.size() == 1:
            return self.model
        return DistributedDataParallel(self.model, gradient_as_bucket_view=True, init_sync=False)

    def _draw(self, iteration: int) -> None:
        """Begin the random numbers of an iteration: dropout's. No rank's are another's."""
        key = np.random.SeedSequence((self.seed, distributed.rank(), iteration))
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))

    def _batches(self) -> Iterator[Batch]:
        iterations = self.section.solver.max_iter - self.solver.iteration
        batches = self._loader(self.solver.iteration, iterations, self.section.data.workers)
        # the first now: bad input shows before anything is written
        return itertools.chain([next(batches)], batches) if iterations > 0 else batches

    def _loader(self, iteration: int, iterations: int, workers: int) -> Iterator[Batch]:
        config, data = self.section.solver, self.section.data
        if data.batch_size < distributed.size():
            raise InputError(
                f"data.batch_size {data.batch_size}: expected at least one image for each of the "
                f"{distributed.size()} processes"
            )
        loader = make_loader(
            self.dataset,
            data.batch_size,
            shuffle=data.shuffle,
            seed=self.seed,
            start_iteration=iteration * config.iter_size,
            iterations=iterations * config.iter_size,
            share=distributed.share(data.batch_size),
            workers=workers,
            pin_memory=self.device.type == "cuda",
        )
        return iter(loader)

    def _report(self, row: Row, log_file: CsvLog | None, bar: tqdm) -> None:
        self._check_finite(row.iteration, row.figures)
        if log_file:
            log_file.write(row.fields())
        for observer in self.observers:
            observer.row(row)
        images = self.section.data.batch_size * self.solver.config.iter_size * (bar.format_dict["rate"] or 0)
        parts = {
            name: f"{value:.4g}" for name, value in row.figures.items() if name in self.objective.columns
        }
        bar.set_postfix(
            {"lr": f"{row.rate:.2g}", "loss": f"{row.smoothed:.4g}", **parts, "images/s": f"{images:.1f}"}
        )

    def _check(self, sums: Sums) -> None:
        """Before the step: stop while weights and history are still good, and say where it comes from."""
        loss_is_finite = math.isfinite(sums["loss"])
        if loss_is_finite and all_finite(gradients(self.solver)):
            return
        iteration = self.solver.iteration
        self._draw(iteration)
        parameter = next(self.model.parameters())
        batches = (
            on_device(next(loader), parameter)
            for loader in [self._loader(iteration, 1, workers=0)]
            for _ in range(self.solver.config.iter_size)
        )
        places = distributed.gathered(first_not_finite(self.model, self.objective, batches))
        place = next((place for place in places if place), "the sum of the gradients")
        raise InputError(
            f"{self.folder}: the loss is {float(sums['loss']):g} at iteration {iteration} "
            f"({_listed(sums)}); the first value that is no finite number: {place}; a lower base_lr may help"
        )

    def _check_finite(self, iteration: int, figures: dict[str, float]) -> None:
        """Stop before a loss that is no number gets into a snapshot."""
        if not math.isfinite(figures["loss"]):
            raise InputError(
                f"{self.folder}: the loss is {figures['loss']:g} at iteration {iteration} ({_listed(figures)}); "
                "a lower base_lr may help; CUDA_LAUNCH_BLOCKING=1 tells the layer"
            )

    def _snapshot(self, log_file: CsvLog | None) -> None:
        if not all_finite([*self.model.parameters(), *self.solver.history]):
            raise InputError(
                f"{self.folder}: weights that are no numbers after {self.solver.iteration} iterations"
            )
        if log_file:
            log_file.sync()
            write_snapshot(self.folder, self.model, self.solver, self._observed)
            config = self.section.solver
            prune(self.folder, config.snapshot_keep, config.snapshot)

    def _keep(self, began: int) -> str:
        """A snapshot of what the last whole step has left, once the loop has failed; says where to go on from."""
        iteration = self.solver.iteration
        try:
            if (
                distributed.is_first()
                and not self.solver.is_stepping
                and began < iteration
                and iteration not in snapshots(self.folder)
                and all_finite([*self.model.parameters(), *self.solver.history])
            ):
                write_snapshot(self.folder, self.model, self.solver, self._observed)
        except (OSError, RuntimeError) as error:
            log.warning("%s: no snapshot of iteration %d (%s)", self.folder, iteration, error)
        there = snapshots(self.folder)
        if not there:
            return "there is no snapshot to go on from"
        return (
            f"the same command goes on from iteration {there[-1]} ({self.folder / f'iter_{there[-1]}.state'})"
        )


def _listed(figures: dict[str, torch.Tensor] | dict[str, float]) -> str:
    return ", ".join(f"{name} {float(value):g}" for name, value in figures.items() if name != "loss")
