"""JSON files of ours, temporary folders, and folders with one writing process."""

from __future__ import annotations

import datetime
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from repro.errors import InputError, damaged
from weights_conversion.files import TEMPORARY, atomic_path, check_plain, errors_named, temporary_name

log = logging.getLogger(__name__)
LOCK_NAME = ".sec-dsrg-lock"


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield a new hidden folder in ``parent``, removed in the end; those that killed processes have left go, too.

    A folder is in use as long as its maker holds the kernel's lock on it (flock).
    """
    for left in parent.glob(".sec-dsrg-tmp-*"):
        if TEMPORARY.fullmatch(left.name) and left.is_dir() and not left.is_symlink():
            with suppress(OSError), _flock(left):
                shutil.rmtree(left)
    folder = parent / temporary_name()
    with errors_named(parent):
        folder.mkdir()
    with _flock(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


@contextmanager
def _flock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder. Raises OSError where another process has it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write what JSON can hold to ``path`` atomically, as UTF-8 with a final newline."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    with atomic_path(path) as temporary:  # halves of characters, as in names that are not UTF-8, are escaped
        temporary.write_bytes(f"{text}\n".encode("utf-8", "backslashreplace"))


def as_json_holds(content: Any) -> Any:
    """``content`` with None for NaN and infinity, which are no JSON though Python writes them.

    >>> as_json_holds({"a": [1.5, float("nan")]})
    {'a': [1.5, None]}
    """
    if isinstance(content, dict):
        return {key: as_json_holds(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [as_json_holds(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_report(path: str | os.PathLike[str], content: Any) -> None:
    """As `write_json`, where the user has said the name. Raises InputError for one of a file that is no report of the
    kind: no JSON object, or one without any of the new one's keys."""
    if os.path.isfile(path) and os.path.getsize(path):
        try:
            before = read_json(path, "a JSON report")
        except InputError:
            before = None
        if not isinstance(before, dict) or before.keys().isdisjoint(content):
            raise InputError(f"{os.fspath(path)}: exists and is no JSON report; choose another name")
    write_json(path, as_json_holds(content))


_MOST_JSON = 16 << 20  # bytes of a file of ours: a score's matrix has some kilobytes
_MOST_VALUES = 1 << 20  # lists and dicts in it: each takes 20 times its two brackets


def read_json(path: str | os.PathLike[str], expected: str) -> Any:
    """The content of a small JSON file, such as those in run folders; ``expected`` says what it should be.

    Raises InputError naming the file: it is missing, larger than 16 MB, no JSON, cut off, or nests deeper than Python
    calls may.
    """
    check_plain(path)
    with damaged(path, expected):
        with open(path, "rb") as file:
            data = file.read(_MOST_JSON + 1)
        if len(data) > _MOST_JSON or data.count(b"[") + data.count(b"{") > _MOST_VALUES:
            raise InputError(f"{os.fspath(path)}: more than {_MOST_JSON} bytes of JSON, {expected} expected")
        return json.loads(data.decode("utf-8"))


def now() -> str:
    """The time, in UTC to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def json_sha256(content: Any) -> str:
    """SHA-256 of what JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


_held: dict[Path, int] = {}


def lock_folder(folder: Path) -> None:
    """Make ``folder`` this process's to write in until it ends, however it ends; the folder must be there.

    The lock is the kernel's (POSIX record lock on ``.sec-dsrg-lock``): it cannot be left behind, works across the
    machines of a shared file system, and is not passed on to loader workers, which may outlive a killed parent by
    seconds.
    The file holds who has it, for people. Taking it again in the same process is fine.

    Raises InputError naming the holder where another process has it. Where the file system knows no locks, a
    warning says so.
    """
    path = folder.resolve() / LOCK_NAME
    if path in _held:
        if os.fstat(_held[path]).st_nlink:
            return
        os.close(_held.pop(path))  # of a folder that was removed and made again
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            holder = os.pread(handle, 1000, 0).decode("utf-8", "replace").strip() or "another process"
            os.close(handle)
            raise InputError(f"{folder}: in use by {holder}; wait for it, or choose another folder") from None
        log.warning(
            "%s: cannot be locked (%s): make sure that no other run writes there", folder, error.strerror
        )
    # The handle stays open: closing any handle of the file in this process would give the lock back.
    _held[path] = handle
    command = " ".join(sys.argv)[:400]
    os.ftruncate(handle, 0)
    os.pwrite(
        handle, f"process {os.getpid()} on {socket.gethostname()} since {now()}: {command}\n".encode(), 0
    )
