"""What a plan would take: the steps that are missing, their time and disk.

Rates are measured where a finished step of the same net, size, batch, precision and device has its time in a
manifest. Elsewhere they are a model: the net's multiplications and additions, three times forward for a training
step, at half the device's measured rate of float32 matrix products; plus the CPU's measured cost of the dense CRF
(docs/performance.md). Disk: for each snapshot 4 bytes a weight and as many for each kind of history, 6 kB a mask.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from repro.config import Config
from repro.data.experiment import open_experiment
from repro.errors import InputError
from repro.files import read_json
from repro.inference.predict import PROTOCOLS
from repro.models import CaffeNet, build_model
from repro.run.plan import PlannedRun
from repro.run_folder import device_name, resolve_device
from repro.solver import SOLVERS
from repro.training.snapshots import snapshots

_MASK_BYTES = 6_000
_TYPICAL = (375, 500)  # of a VOC image
_EMBEDDED = (140, 140)
_UTILISATION = 0.5


@dataclass(frozen=True)
class Work:
    """A step: ``units`` iterations or images of ``total`` are missing; seconds and bytes for them."""

    step: str
    units: int
    total: int
    seconds: float
    size: float
    measured: bool


def forecast(runs: Sequence[PlannedRun]) -> list[str]:
    """A table of the runs and their missing steps, and the sum."""
    lines, seconds, size, modelled = [], 0.0, 0.0, False
    rates = _measured_rates({planned.folder.parent for planned in runs})
    for planned in runs:
        answered = [cell for cells in planned.answers.values() for cell in cells]
        lines.append(f"{planned.folder}: {', '.join(answered) or 'no published number'}")
        for work in _steps(planned, rates):
            state = "done" if not work.units else f"{work.units} of {work.total}"
            rate = (
                ""
                if not work.units
                else f"{_time(work.seconds)}{'' if work.measured else ' (model)'}, {_size(work.size)}"
            )
            lines.append(f"  {work.step:<22}{state:>18}  {rate}")
            seconds, size = seconds + work.seconds, size + work.size
            modelled |= bool(work.units) and not work.measured
    note = "; where it says model, from multiplications and the device's rate" if modelled else ""
    return [*lines, f"{len(runs)} runs: {_time(seconds)}, {_size(size)}{note}"]


def _steps(planned: PlannedRun, rates: dict[str, float]) -> Iterator[Work]:
    config = planned.config
    experiment = open_experiment(config)
    stages = ["stage1", "stage2"] if "stage2" in planned.methods else ["stage1"]
    if planned.weights is None:
        for stage in stages:
            if stage == "stage2":
                yield _predicting(
                    planned, "pseudo_labels", config.pseudo_labels, len(experiment.train), rates
                )
            yield _training(planned, stage, rates)
    for stage in planned.methods:
        yield _predicting(planned, f"predictions/{stage}", config.inference, len(experiment.val), rates)


def _device(planned: PlannedRun) -> str:
    return device_name(resolve_device(planned.config.device))


def _training(planned: PlannedRun, stage: str, rates: dict[str, float]) -> Work:
    section = getattr(planned.config, stage)
    solver, folder = section.solver, planned.folder / stage
    done = (folder / "done.json").exists()
    left = 0 if done else solver.max_iter - max(snapshots(folder), default=0)
    key = _training_key(_device(planned), planned.config.model_dump(), stage)
    rate = rates.get(key)
    if rate is None and left:
        side = section.data.new_height if stage == "stage1" else section.data.crop_size
        images = section.data.batch_size * solver.iter_size
        rate = 3 * images * _flops(planned.config, side, side) / _rate(resolve_device(planned.config.device))
        if stage == "stage1":
            rate += images * _crf_seconds(planned.config, (side / 8) ** 2)
    snapshot = 4 * _parameters(planned.config) * (1 + len(SOLVERS[solver.type].histories))
    kept = -(-left // solver.snapshot) if solver.snapshot else int(left > 0)
    return Work(stage, left, solver.max_iter, left * (rate or 0), snapshot * kept + 100 * left, key in rates)


def _predicting(planned: PlannedRun, step: str, settings: Any, images: int, rates: dict[str, float]) -> Work:
    folder = planned.folder / step
    left = 0 if (folder / "done.json").exists() else images - len(list(folder.glob("[!.]*.png")))
    described = {**planned.config.model_dump(include={"precision", "model"}), **settings.model_dump()}
    key = _predicting_key(_device(planned), described)
    rate = rates.get(key)
    if rate is None and left:
        height, width = _EMBEDDED if planned.config.dataset.kind == "mini" else _TYPICAL
        zooms = PROTOCOLS[settings.protocol].zooms(height, width)
        rate = sum(
            _flops(planned.config, round(height * y), round(width * x))
            / _rate(resolve_device(planned.config.device))
            for y, x in zooms
        )
        rate += _crf_seconds(planned.config, height * width) if settings.crf else 0
    return Work(step, left, images, left * (rate or 0), left * _MASK_BYTES, key in rates)


def _measured_rates(folders: set[Path]) -> dict[str, float]:
    """Seconds an iteration or image of the steps that finished in one go, by what shapes a rate."""
    rates: dict[str, float] = {}
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
                rates[key] = step["seconds_last_call"] / units
    return rates


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


def _model(config: Config) -> CaffeNet:
    with torch.device("meta"):
        return build_model(
            config.model.name, num_classes=config.model.num_classes, width_divisor=config.model.width_divisor
        ).eval()


def _parameters(config: Config) -> int:
    return sum(parameter.numel() for parameter in _model(config).parameters())


def _flops(config: Config, height: int, width: int) -> int:
    """Multiplications and additions of a forward pass of one image."""
    model = _model(config)
    return 2 * sum(model.multiply_adds(model.shapes_for(height, width)).values())


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
    """Ten iterations of mean field and the lattices on a CPU (docs/performance.md, cost model); CUDA's is not in it."""
    if resolve_device(config.device).type == "cuda":
        return 0.0
    planes = -(-config.model.num_classes // 8)
    return cells * (10 * 24e-9 * planes + 280e-9)


def _time(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _size(size: float) -> str:
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
