"""Reads HDF5 files, pickles and MATLAB files for `weights_conversion.guard`, in a process that may die of them.

A request is a line of JSON on standard input. Each is answered by a forked child with limits on its memory and CPU
time, so that a file over which a library crashes, loops or fills the memory costs that child alone. The answer is a
line of JSON, and the values of the arrays that the line lists, one after the other.

Nothing but NumPy and h5py is imported at first: the process starts in a fraction of a second.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
from typing import Any, BinaryIO

from weights_conversion.errors import line_of
from weights_conversion.guarded.answers import MIB, RefusedError, write_head
from weights_conversion.guarded.hdf5 import read_hdf5
from weights_conversion.guarded.matlab import read_matlab
from weights_conversion.guarded.pickles import read_pickle

# Beyond what the process has: 9 times the file, and this. Both together are 10 times the file and 200 MB.
_MEMORY = 160 * MIB
_SECONDS = 2  # of CPU, and one more per megabyte of file
_READERS = {"hdf5": read_hdf5, "pickle": read_pickle, "matlab": read_matlab}


def _answer(request: dict[str, Any], out: BinaryIO) -> None:
    """Read within the limits; what goes wrong becomes the answer."""
    size = os.path.getsize(request["path"])
    with open("/proc/self/statm") as file:
        present = int(file.read().split()[0]) * resource.getpagesize()
    memory, seconds = present + 9 * size + _MEMORY, _SECONDS + size // 10**6
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    try:
        _READERS[request["reader"]](request, out)
    except RefusedError as error:
        _replace(out, error.where, error.reason)
    except MemoryError:
        _replace(out, "", _TOO_LARGE)
    except Exception as error:  # on a damaged file h5py raises OSError, RuntimeError, KeyError, ValueError, …
        _replace(out, "", f"damaged {request['reader'].upper()} file: {line_of(error)}")


_TOO_LARGE = f"takes more memory to read than 9 times its size and {_MEMORY} bytes"


def _replace(out: BinaryIO, where: str, reason: str) -> None:
    out.seek(0)
    out.truncate()
    write_head(out, error=[where, reason])


def _death(status: int) -> str:
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number in (signal.SIGXCPU, signal.SIGKILL):
        return "reading it does not come to an end"
    return f"reading it crashes the library ({signal.Signals(number).name if number else 'exit'})"


def main() -> None:
    """Answer requests until standard input ends."""
    while line := sys.stdin.buffer.readline():
        if json.loads(line)["reader"] == "matlab":
            import scipy.io  # noqa: F401  before the fork, so that it is imported once and no file's doing
        with tempfile.TemporaryFile() as out:
            process = os.fork()
            if process == 0:
                status = 1
                try:
                    _answer(json.loads(line), out)
                    out.flush()
                    status = 0
                finally:
                    os._exit(status)
            if status := os.waitpid(process, 0)[1]:
                _replace(out, "", _death(status))
            out.seek(0)
            shutil.copyfileobj(out, sys.stdout.buffer, MIB)
            sys.stdout.buffer.flush()
