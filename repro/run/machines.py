"""The devices that a forecast is for, and how long a unit of work takes on each: an iteration or an image.

A device here is known by its finished runs, by its benchmark (``repro bench``) and by a matrix product; one that is
not here by its benchmark or by what `STATED` says.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from repro.config import Config
from repro.errors import InputError
from repro.files import read_json
from repro.run_folder import device_name, machine_name, resolve_device

_UTILISATION = 0.5
_BENCHES = (Path("results/bench"), Path("results/published/bench"))


@dataclass(frozen=True)
class Machine:
    """What steps are timed with.

    Attributes:
        name: in tables. cuda: whether it is a GPU, where the dense CRF takes another time.
        flops: multiplications and additions per second that a net reaches.
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


# Sustained rates and power of devices that are not here: precision -> flops. Of an A100's peak (NVIDIA's data sheet:
# float32 19.5e12 without TF32, bfloat16 312e12, 400 W) half in float32 and a quarter in bfloat16. An H100's net was
# measured (docs/performance.md); NVIDIA states 700 W.
STATED = {
    "NVIDIA A100 SXM, not measured": ({"faithful": 9.75e12, "fast": 78e12}, 400.0),
    "NVIDIA H100 SXM, its net measured": ({"faithful": 20.6e12, "fast": 270e12}, 700.0),
}


def read_bench(path: Path) -> dict[str, Any]:
    result = read_json(path, "a benchmark's result")
    return {**result, "machine": machine_name(result)}


def named_machine(name: str, precision: str, benches: Sequence[dict[str, Any]]) -> Machine | None:
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
            seconds[bench_key(bench, bench["batch_size"])] = row["seconds"]
        elif what == "whole prediction":
            seconds[bench_key(bench, protocol)] = row["seconds"]
    return Machine(
        bench["machine"],
        bench["device"] != "cpu",
        flops / sum(row["seconds"] for row in network),
        seconds=seconds,
        basis=dict.fromkeys(seconds, "bench"),
    )


def bench_key(bench: dict[str, Any], what: int | str) -> str:
    return json.dumps(["bench", _without_dropout(bench["model"]), what], sort_keys=True)


def local_machine(config: Config, folders: set[Path]) -> Machine:
    """The device of this machine: by its finished runs, by its benchmark, by a matrix product."""
    device = resolve_device(config.device)
    name = device_name(device)
    here = {"device": device.type, "device_name": name, "cpu_threads": torch.get_num_threads()}
    benches = [read_bench(path) for folder in _BENCHES for path in sorted(folder.glob("*.json"))]
    machine = named_machine(machine_name(here), config.precision, benches)
    machine = machine or Machine(name, device.type == "cuda", _rate(device))
    seconds, joules = _measured(folders)
    return replace(
        machine,
        seconds={**machine.seconds, **seconds},
        joules=joules,
        basis={**machine.basis, **dict.fromkeys(seconds, "run")},
    )


def _measured(folders: set[Path]) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds and joules per iteration or image of the steps that finished in one go, by `training_key` and so on."""
    seconds: dict[str, float] = {}
    joules: dict[str, float] = {}
    for file in sorted(path for folder in folders for path in folder.glob("[!.]*/manifest.json")):
        # without one a rate less to go by: the run itself says what is wrong with its manifest
        with contextlib.suppress(InputError, KeyError, TypeError, AttributeError):
            for name, step in read_json(file, "the manifest of a run")["steps"].items():
                # a step that is unfinished, or of an older version
                with contextlib.suppress(KeyError, TypeError, AttributeError):
                    key, units = _work(file.parent, name, step)
                    if units and not step["resumed"]:
                        seconds[key] = step["seconds_last_call"] / units
                        if (energy := step.get("energy_joules")) is not None:
                            joules[key] = energy / units
    return seconds, joules


def _work(folder: Path, name: str, step: dict[str, Any]) -> tuple[str, int]:
    """A finished step's key, and how many iterations or images it had; KeyError where it has no rate."""
    settings, device = step["settings"], step["device_name"]
    if name in ("stage1", "stage2"):
        return training_key(device, settings, name), settings[name]["solver"]["max_iter"]
    return predicting_key(device, settings), len(list((folder / name).glob("[!.]*.png")))


def training_key(device: str, settings: dict[str, Any], stage: str) -> str:
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


def predicting_key(device: str, settings: dict[str, Any]) -> str:
    parts = [device, *(settings[key] for key in ("precision", "protocol", "crf"))]
    return json.dumps([*parts, _without_dropout(settings["model"])], sort_keys=True)


def _without_dropout(model: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key != "dropout"}


@functools.cache
def _rate(device: torch.device) -> float:
    """Multiplications and additions per second that a net may reach: half of a float32 matrix product's, at its best
    within a second, as others may be at work."""
    side = 2048 if device.type == "cuda" else 768
    matrix = torch.rand(side, side, device=device)
    seconds: list[float] = []
    while len(seconds) < 4 or sum(seconds) < 1:
        start = time.perf_counter()
        (matrix @ matrix).sum().item()
        seconds.append(time.perf_counter() - start)
    return _UTILISATION * 2 * side**3 / min(seconds)
