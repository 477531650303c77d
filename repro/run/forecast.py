"""What a plan would take: the steps that are missing, their time, memory, disk and energy.

Time, by what there is, each row says which:

- ``run``: a finished step of the same net, size, batch, precision and device has its time, and its energy where the
  machine tells it, in a manifest.
- ``bench``: a benchmark of the device (``repro bench``) timed the whole iteration or prediction.
- ``model``: counted multiplications and additions, three times forward for a training step, at the rate that the
  benchmark's network reached; without a benchmark at half the rate of a float32 matrix product measured now; for a
  device that is not here at the rate stated in `STATED`. Plus the CPU's measured cost of the dense CRF
  (docs/performance.md).

Memory is a model: weights, their gradients and histories, and what autograd keeps of a mini-batch, counted on a net
without memory; for a prediction the weights and three times the largest blob. Disk: for each snapshot that stays 4
bytes a weight and as many for each kind of history, 6 kB a mask. Energy without a measurement is the power stated times
the time.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from repro.config import Config
from repro.data.experiment import open_experiment
from repro.errors import InputError
from repro.files import read_json
from repro.inference.predict import PROTOCOLS
from repro.models import CaffeNet, build_model
from repro.run.plan import PlannedRun, plan
from repro.run_folder import device_name, resolve_device
from repro.solver import SOLVERS
from repro.training.snapshots import snapshots

_MASK_BYTES = 6_000
_TYPICAL = (375, 500)  # of a VOC image
_EMBEDDED = (112, 112)
_UTILISATION = 0.5
_BENCHES = (Path("results/bench"), Path("results/published/bench"))
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


@dataclass(frozen=True)
class Machine:
    """What steps are timed with.

    Attributes:
        name: in tables. cuda: whether the dense CRF's CPU time is left out.
        flops: multiplications and additions a second that a net reaches.
        watts: under load; None where nobody stated it.
        seconds, joules: of a unit of work, by its key, where a run or a benchmark measured it; ``basis`` by key.
    """

    name: str
    cuda: bool
    flops: float
    watts: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    joules: dict[str, float] = field(default_factory=dict)
    basis: dict[str, str] = field(default_factory=dict)

    def work(
        self, step: str, left: int, total: int, key: str, model: float, memory: float, size: float
    ) -> Work:
        """``model``: seconds of a unit where none were measured."""
        seconds = left * self.seconds.get(key, model)
        joules = self.joules.get(key)
        energy = left * joules if joules is not None else None if self.watts is None else seconds * self.watts
        return Work(step, left, total, seconds, memory, size, energy, self.basis.get(key, "model"))


# Sustained rates and power of devices that are not here: precision -> flops. Of an A100's peak (NVIDIA's data sheet:
# float32 19.5e12 without TF32, bfloat16 312e12, 400 W) half in float32 and a quarter in bfloat16.
STATED = {"NVIDIA A100 SXM, not measured": ({"faithful": 9.75e12, "fast": 78e12}, 400.0)}


def forecast(runs: Sequence[PlannedRun]) -> list[str]:
    """A table of the runs and their missing steps, and the sum."""
    lines, seconds, size, modelled = [], 0.0, 0.0, False
    joules: float | None = 0.0
    folders = {planned.folder.parent for planned in runs}
    machines: dict[tuple[str, str], Machine] = {}
    for planned in runs:
        answered = [cell for cells in planned.answers.values() for cell in cells]
        lines.append(f"{planned.folder}: {', '.join(answered) or 'no published number'}")
        config = planned.config
        which = config.device, config.precision
        if which not in machines:
            machines[which] = _local_machine(config, folders)
        machine = machines[which]
        for work in _steps(planned, machine):
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
    note = "; where it says model, from multiplications and the device's rate" if modelled else ""
    energy = f", {shown_energy(joules)}" if joules else ""
    return [*lines, f"{len(runs)} runs: {shown_time(seconds)}, {shown_size(size)}{energy}{note}"]


def costs(profiles: Sequence[str], benches: Path) -> str:
    """What each profile takes from its start, in Markdown: a table for each benchmark in ``benches`` and each device of
    `STATED`. No data need be there; a profile's ``dataset.images`` says how many there are."""
    planned = [run for name in profiles for run in plan(name)]
    sections = [
        "# What each profile costs\n\nWritten by `repro bench --costs`. Basis and models: `repro/run/forecast.py`. "
        "Memory is the device's, energy an upper bound (stated power times time)."
    ]
    found = [_read_bench(path) for path in sorted(benches.glob("*.json"))]
    for name in dict.fromkeys([*(bench["machine"] for bench in found), *STATED]):
        lines = [
            "| profile | run | step | how many | time | memory | disk | energy | basis |",
            "|-|-|-|-|-|-|-|-|-|",
        ]
        for run in planned:
            machine = _named_machine(name, run.config.precision, found)
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


def _read_bench(path: Path) -> dict[str, Any]:
    result = read_json(path, "a benchmark's result")
    threads = f", {result['cpu_threads']} threads" if result["device"] == "cpu" else ""
    return {**result, "machine": f"{result['device_name']}{threads}"}


def _named_machine(name: str, precision: str, benches: Sequence[dict[str, Any]]) -> Machine | None:
    if name in STATED:
        rates, watts = STATED[name]
        return Machine(name, True, rates[precision], watts) if precision in rates else None
    for bench in benches:
        if (bench["machine"], bench["precision"]) == (name, precision):
            return _bench_machine(bench)
    return None


def _bench_machine(bench: dict[str, Any]) -> Machine:
    """The rate that the network reached, and the whole iteration and prediction as measured."""
    rows = {row["part"]: row for row in bench["rows"]}
    network = [rows[f"network, {way}"] for way in ("forward", "backward")]
    flops = sum(1e12 * row["metrics"]["TFLOP/s"] * row["seconds"] for row in network)
    seconds = {}
    for part, row in rows.items():
        what, _, protocol = part.partition(", ")
        if part == "whole iteration":
            seconds[_bench_key(bench, bench["batch_size"])] = row["seconds"]
        elif what == "whole prediction":
            seconds[_bench_key(bench, protocol)] = row["seconds"]
    return Machine(
        bench["machine"],
        bench["device"] != "cpu",
        flops / sum(row["seconds"] for row in network),
        seconds=seconds,
        basis=dict.fromkeys(seconds, "bench"),
    )


def _bench_key(bench: dict[str, Any], what: int | str) -> str:
    return json.dumps(["bench", _net(bench["model"]), what], sort_keys=True)


def _local_machine(config: Config, folders: set[Path]) -> Machine:
    """The device of this machine: by its finished runs, by its benchmark, by a matrix product."""
    device = resolve_device(config.device)
    name = device_name(device)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    benches = [_read_bench(path) for folder in _BENCHES for path in sorted(folder.glob("*.json"))]
    machine = _named_machine(f"{name}{threads}", config.precision, benches) or Machine(
        name, device.type == "cuda", _rate(device)
    )
    seconds, joules = _measured(folders)
    return replace(
        machine,
        seconds={**machine.seconds, **seconds},
        joules=joules,
        basis={**machine.basis, **dict.fromkeys(seconds, "run")},
    )


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
            yield _training(planned, stage, machine)
    for stage in planned.methods:
        yield _predicting(planned, f"predictions/{stage}", config.inference, val, machine)


def _training(planned: PlannedRun, stage: str, machine: Machine) -> Work:
    config = planned.config
    section = getattr(config, stage)
    solver, folder = section.solver, planned.folder / stage
    left = 0 if (folder / "done.json").exists() else solver.max_iter - max(snapshots(folder), default=0)
    side = section.data.new_height if stage == "stage1" else section.data.crop_size
    images = section.data.batch_size * solver.iter_size
    key = _training_key(machine.name.partition(",")[0], config.model_dump(), stage)
    if stage == "stage1" and key not in machine.seconds and solver.iter_size == 1 and side == BENCH_SIDE:
        key = _bench_key({"model": config.model.model_dump()}, images)
    model = 3 * images * _flops(config, side, side) / machine.flops if left else 0.0
    if left and stage == "stage1" and not machine.cuda:
        model += images * _crf_seconds(config, (side / 8) ** 2)
    weights, histories = 4 * _parameters(config), len(SOLVERS[solver.type].histories)
    memory = weights * (2 + histories) + section.data.batch_size * _saved(config, side) if left else 0
    made = -(-left // solver.snapshot) if solver.snapshot else int(left > 0)
    kept = min(made, solver.snapshot_keep or made)
    return machine.work(
        stage, left, solver.max_iter, key, model, memory, weights * (1 + histories) * kept + 100 * left
    )


def _predicting(planned: PlannedRun, step: str, settings: Any, images: int, machine: Machine) -> Work:
    config, folder = planned.config, planned.folder / step
    left = 0 if (folder / "done.json").exists() else images - len(list(folder.glob("[!.]*.png")))
    described = {**config.model_dump(include={"precision", "model"}), **settings.model_dump()}
    key = _predicting_key(machine.name.partition(",")[0], described)
    if key not in machine.seconds and settings.crf:
        key = _bench_key({"model": config.model.model_dump()}, settings.protocol)
    model = memory = 0.0
    if left:
        height, width = _EMBEDDED if config.dataset.kind == "mini" else _TYPICAL
        sizes = [
            (round(height * y), round(width * x))
            for y, x in PROTOCOLS[settings.protocol].zooms(height, width)
        ]
        model = sum(_flops(config, *size) for size in sizes) / machine.flops
        model += _crf_seconds(config, height * width) if settings.crf and not machine.cuda else 0
        channels = max(64 // config.model.width_divisor, config.model.num_classes)
        memory = 4 * _parameters(config) + 3 * 4 * channels * max(rows * columns for rows, columns in sizes)
    return machine.work(step, left, images, key, model, memory, left * _MASK_BYTES)


def _measured(folders: set[Path]) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds and joules an iteration or image of the steps that finished in one go, by what shapes a rate."""
    seconds: dict[str, float] = {}
    joules: dict[str, float] = {}
    for file in sorted(path for folder in folders for path in folder.glob("[!.]*/manifest.json")):
        try:
            steps = read_json(file, "the manifest of a run")["steps"].items()
        except (InputError, KeyError, TypeError, AttributeError):
            continue  # a rate less to go by; the run itself says what is wrong with its manifest
        for name, step in steps:
            settings = step["settings"]
            if step.get("resumed", True):
                continue
            if name in ("stage1", "stage2"):
                key, units = (
                    _training_key(step["device_name"], settings, name),
                    settings[name]["solver"]["max_iter"],
                )
            elif "protocol" in settings:
                key, units = (
                    _predicting_key(step["device_name"], settings),
                    len(list((file.parent / name).glob("[!.]*.png"))),
                )
            else:
                continue
            if units:
                seconds[key] = step["seconds_last_call"] / units
                if (energy := step.get("energy_joules")) is not None:
                    joules[key] = energy / units
    return seconds, joules


def _training_key(device: str, settings: dict[str, Any], stage: str) -> str:
    """What shapes an iteration's time, of the settings that a training step records."""
    section = settings[stage]
    data = {key: section["data"].get(key) for key in ("batch_size", "new_height", "new_width", "crop_size")}
    crf = stage == "stage1" and (section["loss"]["constrain"] or section["loss"]["cues"] == "grown")
    parts = [
        stage,
        device,
        settings["precision"],
        settings["model"],
        data,
        section["solver"]["iter_size"],
        crf,
    ]
    return json.dumps(parts, sort_keys=True)


def _predicting_key(device: str, settings: dict[str, Any]) -> str:
    parts = [device, *(settings[key] for key in ("precision", "protocol", "crf"))]
    return json.dumps([*parts, _net(settings["model"])], sort_keys=True)


def _net(model: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key != "dropout"}


@functools.cache
def _counted(
    count: Callable[[CaffeNet, int, int], int], name: str, classes: int, divisor: int, *size: int
) -> int:
    """``count`` of a net without memory at an image's size."""
    with torch.device("meta"):
        net = build_model(name, num_classes=classes, width_divisor=divisor)
    return count(net, *size)


def _count(count: Callable[[CaffeNet, int, int], int], config: Config, height: int, width: int) -> int:
    net = config.model
    return _counted(count, net.name, net.num_classes, net.width_divisor, height, width)


def _parameters(config: Config) -> int:
    return _count(_parameters_of, config, 0, 0)


def _flops(config: Config, height: int, width: int) -> int:
    """Multiplications and additions of a forward pass of one image."""
    return _count(_flops_of, config, height, width)


def _saved(config: Config, side: int) -> int:
    """Bytes that autograd keeps of one image of a mini-batch, weights apart."""
    return _count(_saved_of, config, side, side)


def _parameters_of(net: CaffeNet, *size: int) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _flops_of(net: CaffeNet, height: int, width: int) -> int:
    return 2 * sum(net.multiply_adds(net.shapes_for(height, width)).values())


def _saved_of(net: CaffeNet, height: int, width: int) -> int:
    weights = {id(parameter) for parameter in net.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in weights:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net.train()(torch.empty(1, 3, height, width, device="meta")).sum()
    return sum(kept.values())


@functools.cache
def _rate(device: torch.device) -> float:
    """Multiplications and additions a second that a net may reach: half of a float32 matrix product's."""
    side = 2048 if device.type == "cuda" else 768
    matrix = torch.rand(side, side, device=device)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        (matrix @ matrix).sum().item()
        seconds.append(time.perf_counter() - start)
    return _UTILISATION * 2 * side**3 / min(seconds)


def _crf_seconds(config: Config, cells: float) -> float:
    """Ten iterations of mean field and the lattices on a CPU (docs/performance.md, cost model)."""
    planes = -(-config.model.num_classes // 8)
    return cells * (10 * 24e-9 * planes + 280e-9)


def shown_time(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def shown_energy(joules: float) -> str:
    return f"{joules / 3.6e6:.2g} kWh" if joules < 3.6e8 else f"{joules / 3.6e6:,.0f} kWh"


def shown_size(size: float) -> str:
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
