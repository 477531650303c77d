"""The least memory that segmenting an image takes, against what there is: checked before the work starts."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from repro.errors import InputError

SMALL = 1 << 20  # pixels below which nothing is estimated: VOC and COCO stay below 0.5 million
_CRF_PIXEL, _CRF_CLASS = 100, 17  # bytes; see `crf_memory`


def available_memory(device: torch.device) -> float:
    """The bytes that can still be had on a device, swap included; infinity where the system does not say."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = {
            name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)
        }
        return 1024 * (kilobytes["MemAvailable"] + kilobytes["SwapFree"])
    except (OSError, KeyError):
        names = os.sysconf_names
        if {"SC_AVPHYS_PAGES", "SC_PAGE_SIZE"} <= names.keys():
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return math.inf


def crf_memory(shape: tuple[int, ...], classes: int) -> int:
    """The bytes that the dense CRF takes for images (N, H, W, 3), their probabilities included, at the least.

    Measured on the CPU as what the process grows by, at 1000x1000 pixels: 462 bytes per pixel for one grey and 466 for
    photos with 21 classes, 186 with 5. Noise takes up to 800, its lattice has a point for every pixel.
    """
    return (_CRF_PIXEL + _CRF_CLASS * classes) * math.prod(shape[:3])


def refuse_beyond(net: int, crf: int, shape: tuple[int, ...], device: torch.device) -> None:
    """Raise InputError where images (N, H, W, 3) need more bytes, by the net or by the CRF, than can be had."""
    needed = max(net, crf)
    if math.prod(shape[:3]) < SMALL or needed <= (present := available_memory(device)):
        return
    hint = f"; inference.crf=false takes {net / 1e9:.1f} GB or more" if crf > net else ""
    count, height, width = shape[:3]
    images = f"{count} image{'s' * (count > 1)} of {width}x{height} pixels"
    raise InputError(
        f"{images}: at least {needed / 1e9:.1f} GB of memory needed, {present / 1e9:.1f} GB available{hint}"
    )
