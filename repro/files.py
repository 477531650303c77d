"""Writing files so that a reader never sees half of one, their hashes, and folders with one writing process."""

from __future__ import annotations

import datetime
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from repro.errors import InputError

log = logging.getLogger(__name__)

LOCK_NAME = ".lock"

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}(\.\w+)?")  # what atomic_path has mkstemp make


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success sync it and rename it onto ``path``.

    If the block raises, the temporary file is removed and whatever stood at ``path`` stays as it was. Parent
    folders are made. The temporary name keeps the suffix, for writers that look at it. Once this returns, file and
    name survive a power cut.

    Raises OSError naming ``path`` when it cannot be written: no permission, a read-only file system, a full disk,
    also where the writing library reports that as an error of its own.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "expected a file name, this is a folder", str(target))
    with errors_named(target):
        make_folder(target.parent)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix)
        os.close(handle)
    temporary = Path(name)
    try:
        try:
            yield temporary
        except Exception as error:
            if number := _refused(temporary, error):
                raise OSError(number, os.strerror(number), str(target)) from error
            raise
        with errors_named(target):
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; results are ordinary ones
            temporary.replace(target)
            _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary files of `atomic_path` that processes which were killed have left in a folder tree.

    Nothing else may be writing there.
    """
    for path in folder.rglob(".*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write what JSON can hold to ``path`` atomically, as UTF-8 with a final newline."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def json_sha256(content: Any) -> str:
    """SHA-256 of what JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, so that they survive a power cut. One that is there is fine."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _sync_folder(path.parent)


@contextmanager
def errors_named(target: str | os.PathLike[str]) -> Iterator[None]:
    """An OSError of the block under the name that the caller knows: writing to an open file names none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(target)) from error


def _refused(temporary: Path, error: Exception) -> int | None:
    """The number of the system's error where it takes no more of a file; libraries report that in their own words."""
    if isinstance(error, OSError):
        return error.errno
    if found := re.search(r"\(os error (\d+)\)", str(error)):  # as Rust's libraries end their message
        return int(found[1])
    try:
        with temporary.open("ab") as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as refusal:
        return refusal.errno
    return None


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk once its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot, and sync names on their own
            os.fsync(handle)
    finally:
        os.close(handle)


_held: dict[Path, int] = {}


def lock_folder(folder: Path) -> None:
    """Make ``folder`` this process's to write in until it ends, however it ends; the folder must be there.

    The lock is the kernel's (POSIX record lock on ``.lock``): it cannot be left behind, works across the machines
    of a shared file system, and is not passed on to loader workers, which may outlive a killed parent by seconds.
    ``.lock`` holds who has it, for people. Taking it again in the same process is fine.

    Raises InputError naming the holder where another process has it. Where the file system knows no locks, a
    warning says so.
    """
    path = folder.resolve() / LOCK_NAME
    if path in _held:
        if os.fstat(_held[path]).st_nlink:
            return
        os.close(_held.pop(path))  # of a folder that was removed and made again
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            holder = os.pread(handle, 1000, 0).decode("utf-8", "replace").strip() or "another process"
            os.close(handle)
            raise InputError(f"{folder}: in use by {holder}; wait for it, or choose another folder") from None
        log.warning(
            "%s: cannot be locked (%s): see to it that no other run writes there", folder, error.strerror
        )
    # The handle stays open: closing any handle of the file in this process would give the lock back.
    _held[path] = handle
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    command = " ".join(sys.argv)[:400]
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()} since {now}: {command}\n".encode(), 0)
