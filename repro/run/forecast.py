"""What a plan would take: the steps that are missing, their time, memory, disk and energy.

Time, by what there is, each row says which:

- ``run``: a finished step of the same net, size, batch, precision and device has its time, and its energy where the
  machine tells it, in a manifest.
- ``bench``: a benchmark of the device (``repro bench``) timed the whole iteration or prediction.
- ``model``: counted multiplications and additions, three times forward for a training step, at the rate that the
  benchmark's network reached; without a benchmark at half the rate of a float32 matrix product measured now; for a
  device that is not here at the rate stated in `STATED`. Plus the dense CRF's measured cost (docs/performance.md).

Memory is a model: weights, their gradients and histories, and what autograd keeps of a mini-batch, counted on a net
without memory; for a prediction the weights and three times the largest blob. Disk: for each snapshot that stays 4
bytes per weight and as many for each kind of history, 6 kB per mask. Energy without a measurement is the stated power
times the time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from repro.config import Config, ModelConfig, with_changes
from repro.cues.train_classifier import needed_classifiers
from repro.data.experiment import open_experiment, stage0_of
from repro.inference.predict import PROTOCOLS
from repro.measure import shown_energy, shown_size, shown_time
from repro.run.machines import (
    STATED,
    Machine,
    bench_key,
    local_machine,
    named_machine,
    predicting_key,
    read_bench,
    training_key,
)
from repro.run.net_costs import crf_seconds, flops, kept_for_backward, parameters
from repro.run.plan import PlannedRun, plan
from repro.run.pretrain import pretraining_folder, pretraining_iterations
from repro.solver import SOLVERS
from repro.training.snapshots import snapshots

_MASK_BYTES = 6_000
_TYPICAL = (375, 500)  # of a VOC image
_EMBEDDED = (168, 168)
COSTS_HEADING = "# What each profile costs\n"  # how costs.md begins
BENCH_SIDE = 321  # of `repro bench`'s images by default


@dataclass(frozen=True)
class Work:
    """A step: ``units`` iterations or images of ``total`` are missing; seconds and bytes for them."""

    step: str
    units: int
    total: int
    seconds: float
    memory: float
    size: float
    joules: float | None
    basis: str

    def shown(self) -> list[str]:
        """Time, memory, disk, energy and basis, in words."""
        energy = "energy not told" if self.joules is None else shown_energy(self.joules)
        return [
            shown_time(self.seconds),
            f"{shown_size(self.memory)} memory",
            f"{shown_size(self.size)} disk",
            energy,
            self.basis,
        ]


def forecast(runs: Sequence[PlannedRun]) -> list[str]:
    """A table of the runs and their missing steps, and the sum."""
    lines, seconds, size, modelled = [], 0.0, 0.0, False
    joules: float | None = 0.0
    folders = {planned.folder.parent for planned in runs}
    machines: dict[tuple[str, str], Machine] = {}
    first: set[Path] = set()  # folders of what is made once for several runs
    for planned in runs:
        answered = [cell for cells in planned.answers.values() for cell in cells]
        lines.append(f"{planned.folder}: {', '.join(answered) or 'no published number'}")
        config = planned.config
        which = config.device, config.precision
        if which not in machines:
            machines[which] = local_machine(config, folders)
        machine = machines[which]
        works = [*_steps(planned, machine)]
        pretraining = pretraining_folder(planned.base, config.model)
        if config.pretrains and planned.weights is None and pretraining not in first:
            first.add(pretraining)
            length = {"stage1.solver.max_iter": pretraining_iterations(planned.base)}
            there = replace(planned, folder=pretraining, config=with_changes(config, length, "pre-training"))
            training_there = training(there, "stage1", machine)
            works.insert(0, replace(training_there, step="pretraining"))
        if config.dataset.make_cues and planned.weights is None and planned.cues_dir not in first:
            first.add(planned.cues_dir)
            works = [*_making_cues(planned, machine), *works]
        for work in works:
            state = "done" if not work.units else f"{work.units} of {work.total}"
            lines.append(
                f"  {work.step:<22}{state:>18}  {', '.join(work.shown()) if work.units else ''}".rstrip()
            )
            seconds, size = seconds + work.seconds, size + work.size
            joules = (
                None
                if joules is None or (work.units and work.joules is None)
                else joules + (work.joules or 0)
            )
            modelled |= bool(work.units) and work.basis == "model"
    note = (
        "; where it says model, by the rate of the device's benchmark; without one by that of a matrix product now, "
        "too long where others are at work"
        if modelled
        else ""
    )
    energy = f", {shown_energy(joules)}" if joules else ""
    return [*lines, f"{len(runs)} runs: {shown_time(seconds)}, {shown_size(size)}{energy}{note}"]


def costs(profiles: Sequence[str], benches: Path) -> str:
    """What each profile takes from its start, in Markdown: a table for each benchmark in ``benches`` and each device of
    `STATED`. No data need be there; a profile's ``dataset.images`` says how many there are."""
    planned = [run for name in profiles for run in plan(name)]
    sections = [
        f"{COSTS_HEADING}\nWritten by `repro bench --costs`. Basis and models: `repro/run/forecast.py`. "
        "Memory is the device's, energy an upper bound (stated power times time)."
    ]
    found = [read_bench(path) for path in sorted(benches.glob("*.json"))]
    for name in dict.fromkeys([*(bench["machine"] for bench in found), *STATED]):
        lines = [
            "| profile | run | step | how many | time | memory | disk | energy | basis |",
            "|-|-|-|-|-|-|-|-|-|",
        ]
        for run in planned:
            machine = named_machine(name, run.config.precision, found)
            if machine is None:
                continue
            works = list(_steps(replace(run, folder=Path(os.devnull)), machine))
            for work in works:
                shown = [text.removesuffix(" memory").removesuffix(" disk") for text in work.shown()]
                cells = [
                    run.base.name,
                    run.folder.name.removeprefix(run.base.name).strip("-") or "itself",
                    work.step,
                ]
                lines.append(
                    "| "
                    + " | ".join([*cells, f"{work.units:,}", *shown]).replace("energy not told", "–")
                    + " |"
                )
        if len(lines) > 2:
            sections.append("\n".join([f"## {name}", "", *lines]))
    return "\n\n".join(sections) + "\n"


def _images(config: Config) -> tuple[int, int]:
    """How many images there are to train on and to validate on; as the profile states them where no data are given."""
    dataset = config.dataset
    if dataset.root is not None or dataset.images is None:
        experiment = open_experiment(config)
        return len(experiment.train), len(experiment.val)
    train, val = dataset.images
    return min(train, dataset.train_limit or train), min(val, dataset.val_limit or val)


def _steps(planned: PlannedRun, machine: Machine) -> Iterator[Work]:
    config = planned.config
    train, val = _images(config)
    stages = ["stage1", "stage2"] if "stage2" in planned.methods else ["stage1"]
    if planned.weights is None:
        for stage in stages:
            if stage == "stage2":
                yield _predicting(planned, "pseudo_labels", config.pseudo_labels, train, machine)
            yield training(planned, stage, machine)
    for stage in planned.methods:
        yield _predicting(planned, f"predictions/{stage}", config.inference, val, machine)


def _making_cues(planned: PlannedRun, machine: Machine) -> Iterator[Work]:
    """Stage 0: its classifiers, and the cues: a pass of each image through the one, and a pass and its gradient through
    the other."""
    config = planned.config
    section = stage0_of(config)
    there = replace(planned, folder=planned.cues_dir)
    side, seconds, memory = section.data.input_size, 0.0, 0.0
    for net in needed_classifiers(section.cues):
        yield training(there, "stage0", machine, net)
        model = _classifier(config, net)
        seconds += (1 if net == "cam" else 3) * flops(model, side, side) / machine.flops
        memory = max(
            memory, 4 * parameters(model, side) + section.cues.batch_size * kept_for_backward(model, side)
        )
    images, folder = _images(config)[0], there.folder / "stage0" / "cues"
    left = images - len(list((folder / "png").glob("[!.]*.png")))
    yield _work(machine, "stage0/cues", left, images, "", seconds, memory if left else 0, left * _MASK_BYTES)


def _classifier(config: Config, net: str) -> ModelConfig:
    changes = {"name": f"vgg16_{net}", "num_classes": config.model.num_classes - 1}
    return config.model.model_copy(update=changes)


def training(planned: PlannedRun, stage: str, machine: Machine, net: str = "") -> Work:
    """The iterations of a stage; of stage 0, of its classifier ``net``."""
    config = planned.config
    section = getattr(config, stage)
    step = f"{stage}/{net}" if net else stage
    solver, folder = section.solver, planned.folder / step
    left = 0 if (folder / "done.json").exists() else solver.max_iter - max(snapshots(folder), default=0)
    data, built = section.data, _classifier(config, net) if net else config.model
    side = getattr(data, {"stage0": "input_size", "stage1": "new_height", "stage2": "crop_size"}[stage])
    images = data.batch_size * solver.iter_size
    key = training_key(machine.name.partition(",")[0], config.model_dump(), stage)
    if stage == "stage1" and key not in machine.seconds and solver.iter_size == 1 and side == BENCH_SIDE:
        key = bench_key({"model": config.model.model_dump()}, images)
    model = 3 * images * flops(built, side, side) / machine.flops if left else 0.0
    if left and stage == "stage1":
        model += crf_seconds(config.model.num_classes, images * (side / 8) ** 2, cuda=machine.cuda)
    weights, histories = 4 * parameters(built, side), len(SOLVERS[solver.type].histories)
    memory = weights * (2 + histories) + data.batch_size * kept_for_backward(built, side) if left else 0
    made = -(-left // solver.snapshot) if solver.snapshot else int(left > 0)
    kept = min(made, solver.snapshot_keep or made)
    return _work(
        machine,
        step,
        left,
        solver.max_iter,
        key,
        model,
        memory,
        weights * (1 + histories) * kept + 100 * left,
    )


def _predicting(planned: PlannedRun, step: str, settings: Any, images: int, machine: Machine) -> Work:
    config, folder = planned.config, planned.folder / step
    left = 0 if (folder / "done.json").exists() else images - len(list(folder.glob("[!.]*.png")))
    described = {**config.model_dump(include={"precision", "model"}), **settings.model_dump()}
    key = predicting_key(machine.name.partition(",")[0], described)
    if key not in machine.seconds and settings.crf:
        key = bench_key({"model": config.model.model_dump()}, settings.protocol)
    model = memory = 0.0
    if left:
        height, width = _EMBEDDED if config.dataset.kind == "mini" else _TYPICAL
        sizes = [
            (round(height * y), round(width * x))
            for y, x in PROTOCOLS[settings.protocol].zooms(height, width)
        ]
        model = sum(flops(config.model, *size) for size in sizes) / machine.flops
        if settings.crf:
            model += crf_seconds(config.model.num_classes, height * width, cuda=machine.cuda)
        channels = max(64 // config.model.width_divisor, config.model.num_classes)
        memory = 4 * parameters(config.model) + 3 * 4 * channels * max(
            rows * columns for rows, columns in sizes
        )
    return _work(machine, step, left, images, key, model, memory, left * _MASK_BYTES)


def _work(
    machine: Machine, step: str, left: int, total: int, key: str, model: float, memory: float, size: float
) -> Work:
    """``model``: seconds of a unit where none were measured."""
    seconds = left * machine.seconds.get(key, model)
    energy = None
    if key in machine.joules:
        energy = left * machine.joules[key]
    elif machine.watts is not None:
        energy = seconds * machine.watts
    return Work(step, left, total, seconds, memory, size, energy, machine.basis.get(key, "model"))
