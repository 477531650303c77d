"""The hooks of every stage's training loop: its folder, checks, log, progress bar, signals and snapshots."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterable
from typing import Any

import torch
from tqdm import tqdm
from tqdm.utils import disp_len

from repro import distributed
from repro.errors import InputError, StoppedError
from repro.run_folder import Step
from repro.training.csv_log import CsvLog
from repro.training.finite import all_finite, first_not_finite, gradients
from repro.training.loop import Hook, SolverLoop, Sums, on_device
from repro.training.rows import Row
from repro.training.signals import Signals
from repro.training.snapshots import prune, resume, snapshots, write_snapshot
from repro.training.tensorboard import TensorBoard
from weights_conversion.files import atomic_path

log = logging.getLogger(__name__)


def stage_hooks(step: Step, list_content: bytes, watchers: Iterable[Hook] = ()) -> list[Hook]:
    """The hooks of a stage that trains in a run's folder, in the order that they need.

    A row is checked before it is logged; the state of all others goes into the snapshots, which come last.
    """
    hooks: list[Hook] = [
        BeginStep(step, list_content),
        FiniteCheck(),
        LogRows(),
        *watchers,
        *([TensorBoard()] if step.run.config.tensorboard else []),
        Progress(),
        Signals(),
    ]
    return [*hooks, Snapshots(hooks)]


class BeginStep(Hook):
    """Makes the step's folder, and keeps the list of images there: ``list.txt``."""

    def __init__(self, step: Step, list_content: bytes) -> None:
        self.step, self.list_content = step, list_content

    def before_training(self, loop: SolverLoop) -> None:
        self.step.begin()
        if distributed.is_first():
            with atomic_path(loop.folder / "list.txt") as temporary:
                temporary.write_bytes(self.list_content)


class FiniteCheck(Hook):
    """Stops a training that computes infinities or NaN, before they get into weights, log or snapshot.

    Where the host waits for the device anyway, loss and gradients are checked before each update, and the message
    names the first such value. On CUDA the loss is checked when its row arrives, and the weights at snapshots.
    """

    def prepare(self, loop: SolverLoop) -> None:
        self.waits = loop.device.type == "cpu" or os.environ.get("CUDA_LAUNCH_BLOCKING") == "1"

    def before_update(self, loop: SolverLoop, sums: Sums) -> None:
        if not self.waits or (math.isfinite(sums["loss"]) and all_finite(gradients(loop.solver))):
            return
        iteration = loop.solver.iteration
        loop.draw(iteration)
        parameter = next(loop.net.parameters())
        batches = (on_device(batch, parameter) for batch in loop.batches.load(iteration, 1, workers=0))
        places = distributed.gathered(first_not_finite(loop.net, loop.objective, batches))
        place = next((place for place in places if place), "the sum of the gradients")
        raise InputError(
            f"{loop.folder}: the loss is {float(sums['loss']):g} at iteration {iteration} "
            f"({_listed(sums)}); the first value that is NaN or infinite: {place}; a lower base_lr may help"
        )

    def after_row(self, loop: SolverLoop, row: Row) -> None:
        self._check_loss(loop, row.iteration, row.metrics)

    def before_snapshot(self, loop: SolverLoop, sums: Sums) -> None:
        done = loop.solver.iteration
        self._check_loss(loop, done - 1, {name: float(value) for name, value in sums.items()})
        if not all_finite([*loop.net.parameters(), *loop.solver.history]):
            raise InputError(f"{loop.folder}: NaN or infinity in the weights after {done} iterations")

    def _check_loss(self, loop: SolverLoop, iteration: int, metrics: dict[str, float]) -> None:
        if not math.isfinite(metrics["loss"]):
            raise InputError(
                f"{loop.folder}: the loss is {metrics['loss']:g} at iteration {iteration} ({_listed(metrics)}); "
                "a lower base_lr may help; with CUDA_LAUNCH_BLOCKING=1 this line names the layer"
            )


def _listed(metrics: dict[str, torch.Tensor] | dict[str, float]) -> str:
    return ", ".join(f"{name} {float(value):g}" for name, value in metrics.items() if name != "loss")


class LogRows(Hook):
    """``log.csv``, written by the first rank."""

    file: CsvLog | None = None

    def before_training(self, loop: SolverLoop) -> None:
        if distributed.is_first():
            columns = ("iteration", "lr", "loss", *loop.objective.columns)
            solver = loop.solver
            self.file = CsvLog(loop.folder / "log.csv", columns, solver.iteration, solver.config.display)

    def after_row(self, loop: SolverLoop, row: Row) -> None:
        if self.file:
            self.file.write({"iteration": row.iteration, "lr": row.rate, **row.metrics})

    def before_snapshot(self, loop: SolverLoop, sums: Sums) -> None:
        if self.file:
            self.file.sync()

    def on_stop(self, loop: SolverLoop, error: Exception) -> None:
        """Log what is still on its way from the device: the snapshot that follows counts on it."""
        with contextlib.suppress(RuntimeError):  # of a device that has failed
            for row in loop.waiting_rows():
                self.after_row(loop, row)
        if self.file:
            self.file.sync()

    def after_training(self, loop: SolverLoop) -> None:
        if self.file:
            self.file.close()


class FigureBar(tqdm):
    """A bar beside which stand as many of the figures, from the first, as the terminal has room for."""

    @property
    def format_dict(self) -> dict[str, Any]:
        told = dict(super().format_dict)
        if told["ncols"] and told["postfix"]:
            figures = told["postfix"].split(", ")
            while figures and disp_len(self.format_meter(**{**told, "ncols": None})) > told["ncols"]:
                figures.pop()
                told["postfix"] = ", ".join(figures)
        return told


class Progress(Hook):
    """A bar on a terminal, elsewhere a line every hundredth of the run.

    The metrics beside it are those of the log, the loss is smoothed as Caffe's is.
    """

    bar: FigureBar | None = None

    def before_training(self, loop: SolverLoop) -> None:
        total, display = loop.solver.config.max_iter, max(loop.solver.config.display, 1)
        self.name = "/".join(loop.folder.resolve().parts[-2:])  # the run and its stage
        self.bar = FigureBar(
            total=total,
            initial=loop.solver.iteration,
            desc=self.name,
            unit="it",
            disable=None if distributed.is_first() else True,
            dynamic_ncols=True,
        )
        # of the iterations that are displayed, those that get a line where the bar is not shown
        self.every = display * max(1, total // 100 // display)
        self.began, self.start = loop.solver.iteration, time.monotonic()

    def after_row(self, loop: SolverLoop, row: Row) -> None:
        assert self.bar is not None
        done = loop.solver.iteration - self.began
        rate = done / max(time.monotonic() - self.start, 1e-9)
        columns = loop.objective.columns
        shown = {
            "lr": f"{row.rate:.2g}",
            "loss": f"{row.smoothed:.4g}",
            **{name: f"{value:.4g}" for name, value in row.metrics.items() if name in columns},
            "images/s": f"{loop.batches.images * rate:.1f}",
        }
        if not self.bar.disable:
            self.bar.set_postfix(shown)
        elif distributed.is_first() and row.iteration % self.every == 0:
            line = ", ".join(f"{name} {value}" for name, value in shown.items())
            log.info("%s: iteration %d of %d: %s", self.name, row.iteration, self.bar.total, line)

    def after_iteration(self, loop: SolverLoop, sums: Sums) -> None:
        assert self.bar is not None
        self.bar.update()

    def on_stop(self, loop: SolverLoop, error: Exception) -> None:
        self.after_training(loop)  # before anything else is printed

    def after_training(self, loop: SolverLoop) -> None:
        if self.bar is not None:
            self.bar.close()


class Snapshots(Hook):
    """Snapshots every ``snapshot`` iterations, after the last, and of the last whole iteration when a training stops.

    ``hooks`` are those whose state belongs to a snapshot.
    """

    def __init__(self, hooks: Iterable[Hook]) -> None:
        self.hooks = list(hooks)

    def prepare(self, loop: SolverLoop) -> None:
        """Resume from the newest snapshot in the folder, if there is one."""
        if distributed.is_first():
            self.load_state_dict(resume(loop.folder, loop.net, loop.solver))
        loop.solver.iteration = distributed.from_first(loop.solver.iteration)
        distributed.take_from_first([*loop.net.parameters(), *loop.solver.history])
        self.began = loop.solver.iteration
        self.state = self.state_dict()

    def after_iteration(self, loop: SolverLoop, sums: Sums) -> None:
        self.state, config = self.state_dict(), loop.solver.config
        if loop.ends or (config.snapshot and loop.solver.iteration % config.snapshot == 0):
            loop.before_snapshot(sums)
            if distributed.is_first():
                write_snapshot(loop.folder, loop.net, loop.solver, self.state)
                prune(loop.folder, config.snapshot_keep, config.snapshot)

    def on_stop(self, loop: SolverLoop, error: Exception) -> None:
        self._write_last(loop)
        there = snapshots(loop.folder)
        where = "there is no snapshot to resume from"
        if there:
            path = loop.folder / f"iter_{there[-1]}.state"
            where = f"the same command resumes from iteration {there[-1]} ({path})"
        if isinstance(error, StoppedError):
            raise StoppedError(f"{loop.folder}: {error}; {where}", error.status) from error
        log.warning("%s: %s", loop.folder, where)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: kept for hook in self.hooks for name, kept in hook.state_dict().items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for hook in self.hooks:
            hook.load_state_dict(state)

    def _write_last(self, loop: SolverLoop) -> None:
        iteration = loop.solver.iteration
        try:
            if (
                distributed.is_first()
                and not loop.solver.is_stepping
                and self.began < iteration
                and iteration not in snapshots(loop.folder)
                and all_finite([*loop.net.parameters(), *loop.solver.history])
            ):
                write_snapshot(loop.folder, loop.net, loop.solver, self.state)
        except (OSError, RuntimeError) as error:
            log.warning("%s: no snapshot of iteration %d (%s)", loop.folder, iteration, error)
