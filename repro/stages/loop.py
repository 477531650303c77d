"""Caffe's solver loop: ``iter_size`` mini-batches and an update an iteration, log rows and snapshots now and then.

Everything random beside dropout is a function of seed and stream position, so a resumed run sees the same batches.
On CUDA the loop only queues work: nothing in it waits for the device but the log row of an earlier iteration and the
snapshots.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from tqdm import tqdm

from repro.config import Stage0Config, Stage1Config, Stage2Config
from repro.data import DataLayer, make_loader
from repro.errors import InputError
from repro.models import CaffeNet
from repro.solver import CaffeSGD
from repro.stages.objectives import Batch, Objective
from repro.stages.precision import LAYOUT
from repro.stages.runs import Step
from repro.stages.snapshots import resume, write_snapshot
from repro.stages.train_log import CsvLog, Figures, Row


def update(
    model: CaffeNet, solver: CaffeSGD, objective: Objective, batches: Iterator[Batch]
) -> dict[str, torch.Tensor]:
    """``iter_size`` mini-batches and one step of the solver.

    Args:
        model: in training mode, on its device.
        batches: on the host, in pinned memory for a CUDA device.

    Returns:
        The loss, each part of it and the objective's figures, means over the mini-batches, on the device.
    """
    parameter = next(model.parameters())
    solver.zero_grad()
    sums: dict[str, torch.Tensor] = {}
    for _ in range(solver.config.iter_size):
        batch = {
            name: values.to(
                parameter.device, parameter.dtype if values.is_floating_point() else None, non_blocking=True
            )
            for name, values in next(batches).items()
        }
        batch["images"] = batch["images"].contiguous(memory_format=LAYOUT)
        outcome = objective(model, batch)
        total = outcome.total
        total.backward()
        for name, value in {"loss": total, **outcome.losses, **outcome.figures}.items():
            sums[name] = sums.get(name, 0) + value.detach() / solver.config.iter_size
    solver.step()
    return sums


class Observer(Protocol):
    """Looks on while a stage trains and keeps a log of its own; it changes nothing."""

    def start(self, folder: Path, iteration: int, state: dict[str, torch.Tensor]) -> None:
        """The run begins at ``iteration``; ``state`` is what ``state()`` gave then, empty for a new run."""

    def after(self, done: int) -> None:
        """``done`` iterations are done."""

    def state(self) -> dict[str, torch.Tensor]:
        """What it has gathered and not yet logged, for a snapshot."""


class SolverLoop:
    """One stage's training in its folder, from its newest snapshot or from ``model`` as it is."""

    def __init__(
        self,
        section: Stage0Config | Stage1Config | Stage2Config,
        seed: int,
        model: CaffeNet,
        solver: CaffeSGD,
        objective: Objective,
        dataset: DataLayer,
        list_path: Path,
        step: Step,
        observer: Observer | None = None,
    ) -> None:
        self.section, self.seed, self.observer = section, seed, observer
        self.model, self.solver, self.objective = model, solver, objective
        self.dataset, self.list_path = dataset, list_path
        self.folder, self.step, self.device = step.folder, step, step.run.device

    def run(self) -> None:
        """Train up to ``max_iter``.

        Raises:
            InputError: bad input in the first batch, before anything is written, or in a later one; a loss that is
                no number.
        """
        config = self.section.solver
        torch.manual_seed(self.seed)  # dropout
        observed = resume(self.folder, self.model, self.solver, self.device)
        batches = self._batches()
        self.step.begin()
        shutil.copyfile(self.list_path, self.folder / "list.txt")
        if self.observer:
            self.observer.start(self.folder, self.solver.iteration, observed)
        self.model.train()
        latest: deque[torch.Tensor] = deque(maxlen=config.average_loss)
        figures = Figures()
        bar = tqdm(
            total=config.max_iter,
            initial=self.solver.iteration,
            desc=self.folder.name,
            unit="it",
            disable=None,
            dynamic_ncols=True,
        )
        columns = ("iteration", "lr", "loss", *self.objective.columns)
        with bar, CsvLog(self.folder / "log.csv", columns, self.solver.iteration) as log_file:
            while self.solver.iteration < config.max_iter:
                iteration, rate = self.solver.iteration, self.solver.rate
                sums = update(self.model, self.solver, self.objective, batches)
                latest.append(sums["loss"])
                done = iteration + 1
                is_snapshot = done == config.max_iter or (config.snapshot and done % config.snapshot == 0)
                if config.display and iteration % config.display == 0:
                    smoothed = torch.stack(list(latest)).mean()
                    for row in figures.send(iteration, rate, sums, smoothed):
                        self._report(row, log_file, bar)
                bar.update()
                if self.observer:
                    self.observer.after(done)
                if is_snapshot:
                    for row in figures.rest():
                        self._report(row, log_file, bar)
                    self._check_finite(iteration, {name: float(value) for name, value in sums.items()})
                    observed = self.observer.state() if self.observer else {}
                    write_snapshot(self.folder, self.model, self.solver, self.device, observed)

    def _batches(self) -> Iterator[Batch]:
        config, data = self.section.solver, self.section.data
        iterations = config.max_iter - self.solver.iteration
        loader = make_loader(
            self.dataset,
            data.batch_size,
            shuffle=data.shuffle,
            seed=self.seed,
            start_iteration=self.solver.iteration * config.iter_size,
            iterations=iterations * config.iter_size,
            workers=data.workers,
            pin_memory=self.device.type == "cuda",
        )
        batches: Iterator[Batch] = iter(loader)
        # the first now: bad input shows before anything is written
        return itertools.chain([next(batches)], batches) if iterations > 0 else batches

    def _report(self, row: Row, log_file: CsvLog, bar: tqdm) -> None:
        self._check_finite(row.iteration, row.figures)
        log_file.write(row.fields())
        images = self.section.data.batch_size * self.solver.config.iter_size * (bar.format_dict["rate"] or 0)
        parts = {name: f"{value:.4g}" for name, value in row.figures.items() if name != "loss"}
        bar.set_postfix(
            {"lr": f"{row.rate:.2g}", "loss": f"{row.smoothed:.4g}", **parts, "images/s": f"{images:.1f}"}
        )

    def _check_finite(self, iteration: int, figures: dict[str, float]) -> None:
        """Stop before a loss that is no number gets into a snapshot."""
        if not math.isfinite(figures["loss"]):
            raise InputError(
                f"{self.folder}: the loss is {figures['loss']} at iteration {iteration} "
                f"({', '.join(f'{name} {value:g}' for name, value in figures.items())}); a lower base_lr may help"
            )
