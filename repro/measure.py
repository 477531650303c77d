"""What a step took: seconds, memory at its peak, and energy where the machine tells it."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

_RAPL, _STATUS = Path("/sys/class/powercap"), Path("/proc/self/status")
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere


class Measurement:
    """Measures from its making to ``result()``.

    ``result()`` holds ``seconds_last_call``; ``peak_memory_bytes``, of the process since it began and of its largest
    child; on CUDA ``peak_device_memory_bytes``, of PyTorch's tensors; ``energy_joules``, of the whole device (NVML)
    or of all processor packages (RAPL), other users' share included, None where neither can be read.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.start = device, time.monotonic()
        self.energy = _energy(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def result(self) -> dict[str, Any]:
        children = _MAXRSS_UNIT * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        measured: dict[str, Any] = {
            "seconds_last_call": round(time.monotonic() - self.start, 3),
            "peak_memory_bytes": {"process": peak_memory(), "largest_child": children},
        }
        if self.device.type == "cuda":
            measured["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated(self.device)
        now = _energy(self.device)
        spent = None
        if self.energy and now and self.energy.keys() == now.keys():
            # RAPL's counters start again from zero at their range
            spent = sum((now[key][0] - self.energy[key][0]) % now[key][1] for key in now)
        measured["energy_joules"] = None if spent is None else round(spent, 1)
        return measured


def peak_memory() -> int:
    """The most bytes of memory that this process has held.

    On Linux by its own status: ``ru_maxrss`` of a process counts what its parent held when it was started.
    """
    if _STATUS.exists() and (line := re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())):
        return int(line[1]) * 1024
    return _MAXRSS_UNIT * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _energy(device: torch.device) -> dict[str, tuple[float, float]]:
    """Counter -> joules so far and the value at which it starts again; empty where nothing can be read."""
    if device.type == "cuda":
        with contextlib.suppress(Exception):  # no NVML, an old driver, a card without a counter: no figure
            import pynvml

            pynvml.nvmlInit()
            identity = torch.cuda.get_device_properties(device).uuid
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity}")
            return {"nvml": (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, float("inf"))}
        return {}
    counters = {}
    for package in sorted(_RAPL.glob("intel-rapl:?")):
        with contextlib.suppress(OSError, ValueError):
            counters[package.name] = tuple(
                int((package / name).read_text()) / 1e6 for name in ("energy_uj", "max_energy_range_uj")
            )
    return counters  # type: ignore[return-value]


def shown_time(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def shown_energy(joules: float) -> str:
    return f"{joules / 3.6e6:.2g} kWh" if joules < 3.6e8 else f"{joules / 3.6e6:,.0f} kWh"


def shown_size(size: float) -> str:
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
