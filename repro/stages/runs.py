"""A run on disk: its resolved configuration, its manifest, and step folders that know whether they are done.

    results/runs/<name>/
        config.yaml      the resolved configuration
        manifest.json    what made the numbers: commit, command, versions, device, seed, times
        stage1/          each step: settings.json (what shaped it), its files, done.json written last
        predictions/…
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from repro.config import Config
from repro.errors import InputError
from repro.files import write_text

_REPORTED_PACKAGES = ("torch", "numpy", "scipy", "h5py", "pillow", "pydensecrf2", "safetensors")


def resolve_device(name: str) -> torch.device:
    """``auto`` is the first CUDA device or the CPU. Raises InputError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def faithful_arithmetic() -> None:
    """Float32 everywhere, as Caffe: no TF32 in products or convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Run:
    """The folder of one run. ``open`` writes ``config.yaml`` and starts the manifest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, config: Config, device: torch.device, folder: Path | None = None) -> Run:
        run = cls(folder or config.run_dir)
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            write_text(run.folder / "config.yaml", yaml.safe_dump(config.model_dump(), sort_keys=False))
        except OSError as error:
            raise InputError(f"output {run.folder}: cannot be written ({error.strerror})") from None
        run._update_manifest(_provenance(config, device))
        return run

    @contextlib.contextmanager
    def step(self, name: str, settings: dict[str, Any]) -> Iterator[Step]:
        """Enter a step's folder. The caller looks at ``step.done``; a block that ends well marks it done.

        Raises:
            InputError: the folder was made with other settings.
        """
        step = Step(self.folder / name, settings)
        if step.done:
            yield step
            return
        started = time.time()
        yield step
        seconds = round(time.time() - started, 3)
        step.finish(seconds)
        manifest = self.manifest()
        steps = {**manifest.get("steps", {}), name: {"finished": _now(), "seconds_last_call": seconds}}
        self._update_manifest({"steps": steps})

    def manifest(self) -> dict[str, Any]:
        path = self.folder / "manifest.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def _update_manifest(self, entries: dict[str, Any]) -> None:
        write_json(self.folder / "manifest.json", {**self.manifest(), **entries})


class Step:
    """One step's folder: ``settings.json`` when begun, ``done.json`` when finished."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.results: dict[str, Any] = {}
        marker, recorded = folder / "done.json", folder / "settings.json"
        settings = json.loads(json.dumps(settings))
        if recorded.exists():
            before = json.loads(recorded.read_text(encoding="utf-8"))
            for key in sorted(_flat(before).keys() | _flat(settings).keys()):
                there, here = _flat(before).get(key), _flat(settings).get(key)
                if there != here:
                    raise InputError(
                        f"{folder}: made with {key} = {there!r}, now {here!r}; "
                        "choose another output= or remove that folder"
                    )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(recorded, settings)
        self.done = marker.exists()
        if self.done:
            self.results = json.loads(marker.read_text(encoding="utf-8")).get("results", {})

    def finish(self, seconds: float) -> None:
        write_json(self.folder / "done.json", {"seconds_last_call": seconds, "results": self.results})
        self.done = True


def write_json(path: Path, content: Any) -> None:
    """JSON with a final newline, atomically."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {key: value for name, child in node.items() for key, value in _flat(child, f"{prefix}.{name}".lstrip(".")).items()}


def _provenance(config: Config, device: torch.device) -> dict[str, Any]:
    return {
        "command": sys.argv,
        "started": _now(),
        "seed": config.seed,
        **_git_state(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "arithmetic": {
            "dtype": "float32",
            "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in _REPORTED_PACKAGES},
        },
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any]:
    """Commit and dirty flag of the checkout the package runs from; None where it is installed without one."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
