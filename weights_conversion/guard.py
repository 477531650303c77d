"""The one way to read HDF5 files, pickles and MATLAB files of foreign origin: in a process with limits on memory and
time.

Over damaged files the HDF5 library loops, crashes and allocates what they claim, and so do Python's unpickler and
SciPy's reader of MATLAB files. No look at a file beforehand finds all of that. So another process reads it
(``guarded/process.py``) and sends the arrays; what becomes of that process is an error message here.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from weights_conversion.errors import InputError
from weights_conversion.files import check_plain, other_kind

# isolated from the user's folders and settings, so it is told where this package lies
_CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from weights_conversion.guarded.process import main
main()
"""
_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Array:
    """An array as its file describes it. ``values``: None where it holds no plain numbers. ``text``: its one string.
    ``texts``: those that a pickle has in its place."""

    dtype: str
    shape: tuple[int, ...] | None
    values: np.ndarray | None
    text: str | None
    texts: list[str] | None = None


@dataclass(frozen=True)
class Content:
    """``groups``: path of an HDF5 group -> its members' names. ``arrays``: by path, or by a pickle's key, in the file's
    order. ``attributes``: an HDF5 file's own, a text or a row of integers each; of others the name of their type."""

    groups: dict[str, list[str]]
    arrays: dict[str, Array]
    attributes: dict[str, str | list[int]]


def read_hdf5(
    path: str | os.PathLike[str], *, wanted: Sequence[str] | None = None, packed: bool = False
) -> Content:
    """Read an HDF5 file: of its root's members those in ``wanted``, all by default.

    Refused are links, datasets that lie in other files, more than 5000 names, and datasets that together claim more
    than the file holds. ``packed`` admits chunked and compressed ones, which together may take 8 times the file's size
    and 64 MiB. Raises ``InputError`` (a ``ValueError``), also where the library loops, crashes or runs out of the
    memory that it is given: 9 times the file's size and 160 MiB.
    """
    names = None if wanted is None else list(wanted)
    return _read({"reader": "hdf5", "path": os.fspath(path), "wanted": names, "packed": packed})


def read_pickle(
    path: str | os.PathLike[str], *, most: int, expected: str, nested: bool = False, texts: bool = False
) -> Content:
    """Read a pickle (also ``.gz``, or in a ``.npy``) of a dict of text to arrays, or lists, of numbers.

    Keys that are whole numbers become text; where all are, ``attributes["keys"]`` is ``int``. A value may be a set or
    one number, too. With ``nested`` also dicts of arrays, which are named ``key/key``; with ``texts`` also texts.

    Nothing but NumPy arrays and plain containers is unpickled, and at most ``most`` bytes. ``expected`` is said where
    it holds no dict. Raises ``InputError`` as `read_hdf5` does.
    """
    asked = {"most": most, "expected": expected, "nested": nested, "texts": texts}
    return _read({"reader": "pickle", "path": os.fspath(path), **asked})


def read_matlab(path: str | os.PathLike[str], name: str, field: str) -> np.ndarray:
    """The array of numbers in a field of a struct of a MATLAB 5 file. Raises ``InputError`` as `read_hdf5` does."""
    content = _read({"reader": "matlab", "path": os.fspath(path), "name": name, "field": field})
    values = content.arrays[field].values
    assert values is not None
    return values


def _read(request: dict[str, Any]) -> Content:
    name = request["path"]
    check_plain(name)
    if "\0" in name or not os.path.isfile(name):
        raise InputError(f"{name!r}: no such file" if "\0" in name else f"{name}: no such file")
    try:
        with open(name, "rb") as file:
            other = "" if name.endswith(".gz") else other_kind(file.read(512))
    except OSError as error:
        raise InputError(f"{name}: {error.strerror or error}") from None
    if other and request["reader"] != "matlab":
        raise InputError(f"{name}: {other}")
    with _lock:
        try:
            head, arrays = _ask({**request, "path": os.path.abspath(name)})
        except (OSError, EOFError) as error:
            _stop()
            raise InputError(f"{name}: the process that reads it has ended ({error})") from None
        except BaseException:  # interrupted in the middle of an answer: its rest would be the next one's
            _stop()
            raise
    if "error" in head:
        where, reason = head["error"]
        raise InputError(f"{name}: {where}: {reason}" if where else f"{name}: {reason}")
    return Content(head["groups"], arrays, head["attributes"])


def _ask(request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
    process = _start()
    stdin, stdout = cast(BinaryIO, process.stdin), cast(BinaryIO, process.stdout)
    stdin.write(json.dumps(request).encode() + b"\n")
    stdin.flush()
    line = stdout.readline()
    if not line:
        raise EOFError("it broke off")
    head: dict[str, Any] = json.loads(line)
    arrays = {}
    for key, array in head.get("arrays", {}).items():
        shape = None if array["shape"] is None else tuple(array["shape"])
        values = None
        if "code" in array:
            values = np.empty(cast("tuple[int, ...]", shape), array["code"])
            if values.nbytes:
                _fill(stdout, values)
        arrays[key] = Array(array["dtype"], shape, values, array.get("text"), array.get("texts"))
    return head, arrays


def _fill(stream: BinaryIO, values: np.ndarray) -> None:
    view = memoryview(values.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    while len(view):
        read = stream.readinto(view)  # type: ignore[attr-defined]
        if not read:
            raise EOFError("it broke off")
        view = view[read:]


_lock = threading.Lock()
_process: subprocess.Popen[bytes] | None = None
_owner = 0


def _start() -> subprocess.Popen[bytes]:
    """The child process, started with the first file. One that was forked along belongs to the parent."""
    global _process, _owner
    if _process is None or _owner != os.getpid() or _process.poll() is not None:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        _process = subprocess.Popen(
            [sys.executable, "-I", "-c", _CHILD, str(_ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # where crashing libraries leave their last words
            env=environment,
            start_new_session=True,  # Ctrl-C is the parent's matter
        )
        _owner = os.getpid()
    return _process


def _stop() -> None:
    global _process
    if _process is not None and _owner == os.getpid():
        _process.kill()
        with contextlib.suppress(OSError):  # what was still to be written to it
            _process.communicate()
    _process = None


atexit.register(_stop)
