"""Whether Triton's kernels can run: it comes with PyTorch's CUDA builds, but builds its launchers with a C compiler."""

from __future__ import annotations

import logging
import os
import shutil
import sysconfig
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

log = logging.getLogger(__name__)


@lru_cache(1)
def has_triton(device_type: str) -> bool:
    """True for a CUDA device with Triton and what Triton itself looks for: ``$CC``, gcc or clang, and Python.h.

    Without them the layers run as PyTorch's own operations, slower and to the same result; the log says so once.
    """
    if device_type != "cuda" or find_spec("triton") is None:
        return False
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    if compiler and headers.is_file():
        return True
    lacking = str(headers) if compiler else "C compiler (gcc, clang or $CC)"
    log.warning(
        "no %s, so Triton cannot run: the CRF and the growing take PyTorch's slower operations", lacking
    )
    return False
