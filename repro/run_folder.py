"""A run on disk: its resolved configuration, its manifest, and step folders that know whether they are done.

results/runs/<name>/
    config.yaml      the resolved configuration of the latest call
    manifest.json    commit, command, versions, device, seed, time of the latest call that did work, and of the
                     call that finished each step, with the step's settings and input hashes
    stage1/          each step: settings.json (what shaped it), its files, done.json written last
    predictions/…
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from repro import distributed
from repro.config import RunConfig, flattened
from repro.errors import InputError
from repro.files import LOCK_NAME, lock_folder, now, read_json, write_json
from repro.measure import Measurement
from repro.precision import has_bfloat16
from weights_conversion.files import (
    clear_leftovers,
    errors_named,
    make_folder,
    record_temporaries,
    write_text,
)

log = logging.getLogger(__name__)

_REPORTED_PACKAGES = (
    *("torch", "numpy", "scipy", "numba", "h5py", "pillow", "safetensors", "matplotlib", "pydensecrf2"),
)


def resolve_device(name: str) -> torch.device:
    """``auto`` is the first CUDA device or the CPU; of several processes on a machine each takes a CUDA device of its
    own. Raises InputError for a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if distributed.size() > 1 and device.type == "cuda":
        if device.index is not None:
            raise InputError(f"device {name}: {distributed.size()} processes need one each; pass device=cuda")
        device = torch.device("cuda", distributed.local_rank())
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)  # PyTorch sets no device that has no number
        if device.index >= torch.cuda.device_count():
            raise InputError(f"device {device}: this machine has {torch.cuda.device_count()} CUDA devices")
        torch.cuda.set_device(device)  # what NCCL and plain "cuda" mean from here on
    return device


def device_name(device: torch.device) -> str:
    """The model of a CUDA device; of a CPU the processor's where the system tells it, or its architecture, and the
    vector instructions that PyTorch uses on it: virtual machines call several generations by one name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.machine()])[0]} ({torch.backends.cpu.get_cpu_capability()})"


def machine_name(recorded: Mapping[str, Any]) -> str:
    """A device as benchmarks and forecasts know it, by its `provenance`: of a CPU the threads count, too."""
    threads = f", {recorded['cpu_threads']} threads" if recorded["device"] == "cpu" else ""
    return f"{recorded['device_name']}{threads}"


# (the step's folder, the settings recorded there, the settings now)
Lengthens = Callable[[Path, dict[str, Any], dict[str, Any]], bool]


class Run:
    """The folder of one run. Nothing is written before the first step begins, and of several ranks only the first
    writes."""

    def __init__(self, config: RunConfig, device: torch.device, folder: Path | None = None) -> None:
        self.config, self.device = config, device
        self.folder = folder or config.run_dir
        self._provenance: dict[str, Any] | None = None  # of this call, once it has begun

    @property
    def begun(self) -> bool:
        """Whether this call, of several ranks the first's, had a step to do."""
        return self._provenance is not None

    def begin(self) -> None:
        """Make the folder, lock it, write ``config.yaml`` and start the manifest.

        Raises InputError if that cannot be done, if another process has the folder, or if it holds files that a run
        would overwrite and that are no run's; it is named.
        """
        if self._provenance is not None or not distributed.is_first():
            return
        try:
            make_folder(self.folder)
            _refuse_foreign(self.folder)
            lock_folder(self.folder)
            clear_leftovers(self.folder)
            record_temporaries(self.folder)
            write_text(self.folder / "config.yaml", yaml.safe_dump(self.config.model_dump(), sort_keys=False))
        except OSError as error:
            raise InputError(f"output {self.folder}: cannot be written ({error.strerror})") from None
        self._provenance = provenance(self.config, self.device)
        self._update_manifest({"started": now(), **self._provenance})

    @contextlib.contextmanager
    def step(self, name: str, settings: dict[str, Any], lengthens: Lengthens | None = None) -> Iterator[Step]:
        """Enter a step. The caller does its work unless ``step.done``, and calls ``step.begin()`` once its input
        is known to be good; a block that ends well marks the step done.

        Args:
            lengthens: whether a step that was made with other settings only has to go further; then it is not done.

        Raises:
            InputError: the step's folder was made with other settings.
        """
        step = Step(self, self.folder / name, settings, lengthens)
        if step.done:
            yield step
            return
        resumed = (step.folder / "settings.json").exists()
        started, measurement = now(), Measurement(self.device)
        yield step
        measured = measurement.result()
        if distributed.is_first():
            entry = {
                "started": started,
                "finished": now(),
                "resumed": resumed,  # then what was measured is of the last part alone
                **({"settings_unchecked": True} if step.unchecked else {}),
                **measured,
                "settings": step.settings,
                **step.recorded(),
                **(self._provenance or {}),
            }
            steps = {**self.manifest().get("steps", {}), name: entry}
            self._update_manifest({"steps": steps})
            write_json(step.folder / "done.json", {"seconds_last_call": measured["seconds_last_call"]})
        distributed.wait_for_all()

    def manifest(self) -> dict[str, Any]:
        """What ``manifest.json`` says, empty where there is none. Of a damaged one what the steps' folders still tell:
        which are done, and their settings; each is marked ``rebuilt``."""
        path = self.folder / "manifest.json"
        if not path.exists():
            return {}
        try:
            manifest = _mapping(path, "the manifest of a run")
            steps = manifest.get("steps", {})
            if isinstance(steps, dict) and all(isinstance(entry, dict) for entry in steps.values()):
                return manifest
            raise InputError(f"{path}: 'steps' that are no objects by name, the manifest of a run expected")
        except InputError as error:
            log.warning("%s; rebuilt without the steps' times, devices and versions, which are lost", error)
        steps = {}
        for done in sorted(self.folder.rglob("done.json")):
            try:
                settings = _mapping(done.with_name("settings.json"), "the settings of a step")
            except InputError:
                settings = {}
            name = done.parent.relative_to(self.folder).as_posix()
            steps[name] = {"settings": settings, "resumed": True, "rebuilt": True}
        return {"steps": steps}

    def _update_manifest(self, entries: dict[str, Any]) -> None:
        write_json(self.folder / "manifest.json", {**self.manifest(), **entries})


class Step:
    """One step's folder: ``settings.json`` when begun, ``done.json`` when finished.

    ``record`` is for what the step finds out at its start and the manifest is to say of it: set before ``begin``, it is
    kept in ``record.json``, so that a resumed step has it, too.
    """

    def __init__(
        self, run: Run, folder: Path, settings: dict[str, Any], lengthens: Lengthens | None = None
    ) -> None:
        self.run, self.folder = run, folder
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.record: dict[str, Any] = {}
        self.lengthened = distributed.from_first(lengthens is not None and self._only_longer(lengthens))
        self.unchecked = not (self.lengthened or check_settings(folder, self.settings))
        self.done = distributed.from_first(not self.lengthened and (folder / "done.json").exists())

    def begin(self) -> None:
        """Make the folder and record the step's settings."""
        if not distributed.is_first():
            record_temporaries(self.run.folder)
            return
        if (self.folder / "settings.json").exists():
            self._tell_of_other_threads()
        elif found := _any_file(self.folder):
            raise InputError(f"{self.folder}: holds {found.name}, which is no run's; choose another output")
        self.run.begin()
        if self.lengthened:
            (self.folder / "done.json").unlink(missing_ok=True)  # first: it is not done with the new settings
        write_json(self.folder / "settings.json", self.settings)
        if self.record:
            write_json(self.folder / "record.json", self.record)

    def recorded(self) -> dict[str, Any]:
        """``record`` as this call or an earlier one kept it; empty where none did."""
        path = self.folder / "record.json"
        return _mapping(path, "what a step noted") if path.exists() else {}

    def _only_longer(self, lengthens: Lengthens) -> bool:
        try:
            before = _mapping(self.folder / "settings.json", "the settings of a step")
        except (InputError, OSError):
            return False  # there is nothing to lengthen, or it is damaged, which check_settings says
        return before != self.settings and lengthens(self.folder, before, self.settings)

    def _tell_of_other_threads(self) -> None:
        before, threads = self.run.manifest().get("cpu_threads"), torch.get_num_threads()
        if self.run.device.type == "cpu" and before not in (None, threads):
            log.warning(
                "%s: begun with %s CPU threads, resumed with %d: sums are rounded differently, so the result is not "
                "the uninterrupted run's to the bit; OMP_NUM_THREADS=%s keeps it so",
                self.folder,
                before,
                threads,
                before,
            )


def _any_file(folder: Path) -> Path | None:
    """Something in a folder that is not hidden."""
    if not folder.is_dir():
        return None
    return next((path for path in sorted(folder.iterdir()) if not path.name.startswith(".")), None)


def _refuse_foreign(folder: Path) -> None:
    """Raise InputError where ``config.yaml`` or ``manifest.json`` are there and are somebody else's: a run has left
    its lock, or a manifest that says with what it was run."""
    if (folder / LOCK_NAME).is_file():
        return
    with contextlib.suppress(OSError, ValueError, RecursionError):
        recorded = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if isinstance(recorded, dict) and recorded.keys() >= {"started", "versions"}:
            return
    for name in ("config.yaml", "manifest.json"):
        if os.path.lexists(folder / name):
            raise InputError(f"output {folder}: holds a {name} that is no run's; choose another folder")


def _mapping(path: Path, expected: str) -> dict[str, Any]:
    content = read_json(path, expected)
    if not isinstance(content, dict):
        raise InputError(f"{path}: a {type(content).__name__}, {expected} expected")
    return content


def check_settings(folder: Path, settings: dict[str, Any]) -> bool:
    """Refuse to resume in a folder whose ``settings.json`` differs. Raises InputError naming the first key.

    Returns False where that file is damaged, so that nothing could be compared; a warning says so.
    """
    recorded = folder / "settings.json"
    if not recorded.exists():
        return True
    try:
        before = flattened(_mapping(recorded, "the settings of a step"))
    except InputError as error:
        log.warning("%s; whether the folder was made with the present settings cannot be told", error)
        return False
    present = flattened(settings)
    for key in sorted(before.keys() | present.keys()):
        if before.get(key) != present.get(key):
            raise InputError(
                f"{folder}: made with {key} = {before.get(key)!r}, now {present.get(key)!r}; "
                "choose another folder or remove that one"
            )
    return True


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write what made a folder's files into its ``settings.json``, unless that is there."""
    if not (folder / "settings.json").exists():
        write_settings(folder, settings)


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write a folder's ``settings.json``; an error names the folder, which is what the user knows."""
    with errors_named(folder):
        write_json(folder / "settings.json", settings)


def check_no_others(folder: Path, *files: str) -> None:
    """Raise InputError where one of the files is there and no ``settings.json`` says what made it: it is the user's."""
    settings = folder / "settings.json"
    for name in () if settings.exists() else files:
        if os.path.lexists(folder / name) and not settings.exists():  # another rank may have begun meanwhile
            raise InputError(
                f"{folder}: {name} exists and no settings.json says what made it; choose another folder"
            )


def provenance(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """What made a result: command, seed, commit, device, arithmetic, versions."""
    return {
        "command": _command(),
        "seed": config.seed,
        **_git_state(),
        "processes": distributed.size(),
        "device": str(device),
        "device_name": device_name(device),
        "cpu_threads": torch.get_num_threads(),
        "arithmetic": {
            "precision": config.precision,
            "dtype": str(config.dtype).removeprefix("torch."),
            "bfloat16_convolutions": config.precision == "fast" and has_bfloat16(device),
            # as precision.to_device sets them, which may come later than this
            "tf32": config.precision == "fast",
            "cudnn_deterministic": config.precision != "fast",
        },
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in _REPORTED_PACKAGES},
        },
    }


def _command() -> list[str]:
    """This process's command, without the place where the program happens to lie."""
    program = Path(sys.argv[0])
    ours = program.name == "repro" or program.parts[-2:] == ("repro", "__main__.py")
    return ["repro" if ours else program.name, *sys.argv[1:]]


@functools.cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def _git_state() -> dict[str, Any]:
    """Commit and dirty flag of the checkout the package runs from; None where it is installed without one.

    As they are at the process's first step: what is committed later is not the code that runs.
    """
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
