"""Where every number comes from: of each run the commit, command, configuration, hashes, versions and machine, and
apart from them what differs from call to call (times, memory, energy).

Of an absolute path the last part is kept: a results folder is shown to others, and files are known by their hashes.
The run's own manifest has the paths.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from repro.config.marks import content_sha256
from repro.errors import InputError, damaged, printable
from repro.files import read_json
from repro.run.scores import Scores
from repro.yaml12 import load_yaml

_MEASURED = {
    *("started", "finished", "resumed", "seconds_last_call", "energy_joules"),
    *("peak_memory_bytes", "peak_device_memory_bytes"),
}
# input of stage 1 -> where a run beside may have made it: the embedded set's pre-training, the cues of stage 0
_MADE = {"weights": "[!.]*-pretrained-*/stage1/iter_*.safetensors", "cues": "[!.]*/stage0/cues/cues.h5"}
_PLACE = re.compile(r"(^|[=\[, ])/(?:[^/,\]]*/)*(?=[^/\s])")


def manifest(scores: Scores) -> dict[str, Any]:
    """``runs``: run -> what shaped its numbers; ``measured``: run -> step -> what it took.

    A run's ``inputs`` are the files that another run made for it, with their hashes; that run is among ``runs``.
    """
    runs: dict[str, Any] = {}
    measured: dict[str, Any] = {}
    scored = list(dict.fromkeys(entry.folder for entry in scores.entries))
    for folder in scored:
        if not (folder / "manifest.json").is_file():
            continue
        config, steps = _recorded(folder)
        runs[folder.name] = {
            "config": config,
            "scores": {
                entry.stage: {"method": entry["method"], "weights_sha256": entry.fields.get("weights_sha256")}
                for entry in scores.entries
                if entry.folder == folder
            },
            **_steps(steps, measured=False),
        }
        measured[folder.name] = _steps(steps, measured=True)["steps"]
        for what, (maker, file, digest) in _made_elsewhere(folder, steps).items():
            inputs = runs[folder.name].setdefault("inputs", {})
            inputs[what] = {"run": maker.name, "file": file, "sha256": digest}
            if maker not in scored and maker.name not in runs:
                config, made = _recorded(maker)
                runs[maker.name] = {"config": config, **_steps(made, measured=False)}
                measured[maker.name] = _steps(made, measured=True)["steps"]
    return {"runs": _without_places(runs), "measured": measured}


def _recorded(folder: Path) -> tuple[Any, dict[str, dict[str, Any]]]:
    """Configuration and steps of a run. Raises InputError where its manifest is none."""
    recorded = read_json(folder / "manifest.json", "the manifest of a run")
    with damaged(folder / "config.yaml", "the settings of a run"):
        config = load_yaml((folder / "config.yaml").read_text(encoding="utf-8"))
    steps = recorded.get("steps", {}) if isinstance(recorded, dict) else None
    if not isinstance(steps, dict) or not all(isinstance(step, dict) for step in steps.values()):
        raise InputError(
            f"{folder / 'manifest.json'}: its steps are no table, the manifest of a run expected"
        )
    for name, step in steps.items():
        command = step.get("command", [])
        if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
            raise InputError(
                f"{folder / 'manifest.json'}: the command of {name} is no list of words, as a run writes it"
            )
    return config, steps


def _steps(steps: dict[str, dict[str, Any]], *, measured: bool) -> dict[str, Any]:
    return {
        "steps": {
            name: {key: value for key, value in steps[name].items() if (key in _MEASURED) == measured}
            for name in sorted(steps)
        }
    }


def _made_elsewhere(folder: Path, steps: dict[str, dict[str, Any]]) -> dict[str, tuple[Path, str, str]]:
    """The inputs of a run's stage 1 that a run beside it has made, known by their hashes: its folder, the file there,
    and the hash."""
    settings = steps.get("stage1", {}).get("settings")
    hashes = settings.get("inputs_sha256") if isinstance(settings, dict) else None
    found: dict[str, tuple[Path, str, str]] = {}
    if not isinstance(hashes, dict):
        return found
    for what, pattern in _MADE.items():
        for file in sorted(folder.parent.glob(pattern)):
            name, _, inside = file.relative_to(folder.parent).as_posix().partition("/")
            maker = folder.parent / name
            if maker == folder or not (maker / "manifest.json").is_file():
                continue
            if (digest := content_sha256(str(file))) == hashes.get(what):
                found.setdefault(what, (maker, inside, digest))
    return found


def _without_places(value: Any) -> Any:
    """``/home/me/VOC2012`` and ``dataset.root=/home/me/VOC2012`` as ``…/VOC2012``, wherever they stand."""
    if isinstance(value, dict):
        return {key: _without_places(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_places(each) for each in value]
    return _PLACE.sub(r"\1…/", value) if isinstance(value, str) else value


def commands(found: dict[str, Any]) -> list[str]:
    """The commands that made the runs' steps, each once."""
    steps = [step for run in found["runs"].values() for step in run["steps"].values()]
    return list(dict.fromkeys(printable(shlex.join(step["command"])) for step in steps if "command" in step))


def peak_memory(took: dict[str, Any]) -> int | None:
    """The most bytes that a step held: of the GPU's memory where it had one, else of the process's."""
    return took.get("peak_device_memory_bytes") or took.get("peak_memory_bytes", {}).get("process")


def summary(found: dict[str, Any]) -> list[dict[str, str]]:
    """One row per step, for the page: what it ran on and what it took."""
    rows = []
    for run, details in found["runs"].items():
        for name, step in details["steps"].items():
            took = found["measured"][run][name]
            memory = peak_memory(took)
            energy = took.get("energy_joules")
            commit = (step.get("commit") or "unknown")[:12]
            rows.append(
                {
                    "run": run,
                    "step": name,
                    "commit": f"{commit}{', changed since' if step.get('dirty') else ''}",
                    "seed": str(step.get("seed", "")),
                    "device": f"{step.get('device_name', '')} ({step.get('device', '')})",
                    "precision": str(step.get("arithmetic", {}).get("precision", "")),
                    "seconds": f"{took.get('seconds_last_call', 0):.1f}{' (last part)' if took.get('resumed') else ''}",
                    "memory": "–" if memory is None else f"{memory / 1e6:.0f} MB",
                    "energy": "not told" if energy is None else f"{energy:.0f} J",
                }
            )
    return rows
