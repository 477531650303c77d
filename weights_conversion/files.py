"""Writing files so that a reader never sees half of one, their hashes, and names that stay below a folder."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import os
import re
import secrets
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from weights_conversion.errors import InputError

TEMPORARY = re.compile(r"\.sec-dsrg-tmp-\d+-[0-9a-f]{16}(\.[A-Za-z0-9]{1,15})?")
_RECORD_NAME = ".sec-dsrg-folders"
_LONGEST_NAME = 255  # bytes of a file's name, on every common file system


def temporary_name(suffix: str = "") -> str:
    """A new name for a temporary file or folder of this process: hidden, and no name that anybody else would give."""
    return f".sec-dsrg-tmp-{os.getpid()}-{secrets.token_hex(8)}{suffix}"


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success sync it and rename it onto ``path``.

    If the block raises, the temporary file is removed and whatever stood at ``path`` stays as it was. Parent
    folders are made. The temporary name keeps the suffix, for writers that look at it. Once this returns, file and
    name survive a power cut.

    Raises OSError naming ``path`` when it cannot be written: no permission, a read-only file system, a full disk,
    also where the writing library reports that as an error of its own; and where a folder, a device or a pipe is
    there, which a rename would put a file in the place of (``/dev/null``).
    """
    target = Path(path)
    # torch wants a suffix
    suffix = target.suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,15}", target.suffix) else ".tmp"
    temporary = target.parent / temporary_name(suffix)
    with errors_named(target):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "expected a file name, this is a folder", str(target))
        if target.exists() and not target.is_file():
            raise OSError(errno.EINVAL, "expected a file name, this is a device or a pipe", str(target))
        make_folder(target.parent)
        _record(target.parent)
        # the mode of an ordinary file: the kernel takes the umask off, which a thread must not touch to learn it
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = temporary.stat().st_mode
    try:
        try:
            yield temporary
        except Exception as error:
            if number := _refused(temporary, error):
                raise OSError(number, os.strerror(number), str(target)) from error
            raise
        with errors_named(target):
            if (
                temporary.stat().st_mode != mode
            ):  # safetensors puts a file of its own there, for its owner alone
                temporary.chmod(mode)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(target)
            _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def check_target(
    target: Path, *inputs: Path, of: str, begins: bytes | Callable[[Path], bool] | None = None
) -> None:
    """Refuse a name, given for a new file, that is one of the call's ``inputs`` or of a file of another kind.

    ``begins`` is how files of the kind do, or what tells them; ``of`` names the kind. Raises InputError.
    """
    if not target.is_file():
        return
    if any(path.exists() and target.samefile(path) for path in inputs):
        raise InputError(f"{target}: is read by this call; choose another name for the {of}")
    if begins is None or not target.stat().st_size:
        return
    if callable(begins):
        same = begins(target)
    else:
        with target.open("rb") as file:
            same = file.read(len(begins)) == begins
    if not same:
        raise InputError(f"{target}: exists and holds no {of} of ours; choose another name")


def write_new_or_same(target: Path, write: Callable[[Path], list[Path]]) -> list[Path]:
    """Write files by ``write(target)``, and never in place of others.

    For files that do not say who wrote them, as Caffe's: where ``target`` exists, they are written into a hidden folder
    beside it, and whatever has their names must hold the same bytes.

    Returns the files. Raises InputError where a file of other content exists, which stays.
    """
    if not target.exists():
        return write(target)
    folder = target.parent / temporary_name()
    with errors_named(target):
        folder.mkdir()
    try:
        with errors_named(target):
            written = write(folder / target.name)
        for path in written:
            there = target.with_name(path.name)
            if there.exists() and not filecmp.cmp(path, there, shallow=False):
                raise InputError(
                    f"{there}: exists with other content, and such a file does not say who wrote it; "
                    "remove it or choose another name"
                )
        return [path.replace(target.with_name(path.name)) for path in written]
    finally:
        shutil.rmtree(folder)


_recorded: dict[Path, set[Path]] = {}  # recording folder -> the folders below it that its record names
_recording = threading.Lock()


def record_temporaries(folder: Path) -> None:
    """From now on note in ``folder`` in which folders below it this process makes temporary files."""
    with _recording:
        _recorded[folder.resolve()] = set()


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary files of `atomic_path` that processes which were killed have left in a folder of ours.

    They are looked for in ``folder`` itself and in the folders that its record names (`record_temporaries`), not
    below those, and never through a symbolic link. Nothing else may be writing there.
    """
    record = folder / _RECORD_NAME
    names = os.fsdecode(record.read_bytes()).splitlines() if record.is_file() else []
    for place in [folder, *(path for name in names if (path := path_inside(folder, name)))]:
        if not place.is_dir() or (place != folder and place.is_symlink()):
            continue
        for entry in list(os.scandir(place)):
            if TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)
    if names:
        record.unlink()


def is_plain_name(name: object) -> bool:
    """Whether a name that a file holds can be a visible file or folder of its own: text, one part, not hidden."""
    return path_inside(Path(), name) is not None and "/" not in str(name) and not str(name).startswith(".")


def path_inside(folder: Path, name: object) -> Path | None:
    """``folder/name`` of a name that a file holds; None unless it is text and a plain relative path that stays below
    ``folder``: no absolute one, no part ``..``, nothing behind a symbolic link."""
    if not isinstance(name, str) or "\0" in name:
        return None
    parts = name.split("/")
    try:
        plain = all(part not in ("", ".", "..") and len(os.fsencode(part)) <= _LONGEST_NAME for part in parts)
    except UnicodeEncodeError:  # JSON holds halves of characters, which no file name does
        return None
    if not plain:
        return None
    path = folder
    for part in parts[:-1]:
        path /= part
        if path.is_symlink():
            return None
    return path / parts[-1]


def _record(folder: Path) -> None:
    """Note ``folder`` in the record of each recording folder above it, before a temporary file is made there."""
    if not _recorded:
        return
    resolved = folder.resolve()
    with _recording:
        for above, known in _recorded.items():
            if above in resolved.parents and resolved not in known:
                with (above / _RECORD_NAME).open("ab") as record:
                    record.write(os.fsencode(f"{resolved.relative_to(above).as_posix()}\n"))
                known.add(resolved)


def check_plain(path: str | os.PathLike[str]) -> None:
    """Raise InputError for a folder, and for a pipe, a socket or a device: opening one may wait for ever, and it is
    read once alone.

    Of what is not there the reader tells.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # a zero byte in it
        return
    if stat.S_ISDIR(mode):
        raise InputError(f"{os.fspath(path)}: a folder, a file expected")
    if not stat.S_ISREG(mode):
        raise InputError(f"{os.fspath(path)}: a pipe or a device, a plain file expected")


def no_such(expected: Literal["file", "folder"], path: str | os.PathLike[str]) -> str:
    """The end of a message about a path that is no file, or no folder: nothing is there, or something else.

    >>> no_such("folder", "/nowhere"), no_such("file", "/")
    ('no such folder: /nowhere', 'a folder, a file expected: /')
    """
    if not os.path.exists(path):
        return f"no such {expected}: {os.fspath(path)}"
    there = "a folder" if os.path.isdir(path) else "a file" if os.path.isfile(path) else "a pipe or a device"
    return f"{there}, a {expected} expected: {os.fspath(path)}"


# How a GraphDef begins (a node with name and operation), a MetaGraphDef (a list of operations) and a SavedModel or a
# Core ML model (a number, then a message that begins with one). Caffe's and ONNX's files have texts there.
_TENSORFLOW = re.compile(
    rb"\n[\x80-\xff]*[\0-\x7f](?:\n[\x80-\xff]?[\0-\x7f][\w./:-]+\x12|\x12[\x80-\xff]*[\0-\x7f]\n)"
    rb"|\x08[\x01-\x0f]\x12[\x80-\xff]*[\0-\x7f]\n"
)


def other_kind(head: bytes) -> str:
    """What a file is that often stands where weights, cues or labels should, told from its first bytes; "" for any
    other."""
    start = head.lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: git lfs pull gets it"
    if start.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        return "a web page (HTML), not the file itself: the download went wrong"
    for magic, kind in (
        (b"\x1f\x8b", "gzip"),
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"7z\xbc\xaf", "7-Zip"),
        (b"Rar!", "RAR"),
    ):
        if head.startswith(magic):
            return f"compressed by {kind}: unpack it first"
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if _TENSORFLOW.match(head):
        return "a TensorFlow or Core ML model, which is not read; Keras' HDF5 (model.save_weights) is"
    for at, magic, kind in (
        (0, b"MATLAB 5.0 MAT-file", "a MATLAB file"),
        (4, b"TFL3", "a TensorFlow Lite model"),
        (0, b"GGUF", "a GGUF model"),
        (0, b"\x12\x01\0\0\0\0\0\0", "a file of MXNet's parameters"),
        (0, b"\x04\0\0\0\x01\0\0\0", "a file of Lua's Torch7"),
        (0, b"\0\0\0\0\x02\0\0\0", "a file of Darknet's weights"),
        (0, b"\x89PNG", "a PNG image"),
        (0, b"\xff\xd8\xff", "a JPEG image"),
        (0, b"%PDF-", "a PDF document"),
    ):
        if head[at:].startswith(magic):
            return f"{kind}, which is not read"
    return ""


def read_input(path: str | os.PathLike[str], most: int = -1) -> bytes:
    """The bytes of a text that is read once, up to ``most`` of them: a file, or a pipe that has a writer, such as a
    shell's ``<(…)``.

    Raises OSError, and InputError for a device and for a pipe that nobody writes to.
    """
    if not stat.S_ISFIFO(os.stat(path).st_mode):
        check_plain(path)
        with open(path, "rb") as file:
            return file.read(most)
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # without a writer, a plain open waits for one
    with open(handle, "rb", buffering=0) as pipe:
        begin = pipe.read(1)  # None: a writer that has written nothing yet
        if begin == b"":
            raise InputError(f"{os.fspath(path)}: an empty pipe that nobody writes to, a plain file expected")
        os.set_blocking(handle, True)
        with open(handle, "rb", closefd=False) as rest:
            return (begin or b"") + rest.read(most)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, hexadecimal. Errors as of `check_plain`."""
    check_plain(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, so that they survive a power cut. One that is there is fine.

    Raises OSError, which says where a file is in the place of one of them.
    """
    places = [folder, *folder.parents]
    if file := next((path for path in places if path.exists() and not path.is_dir()), None):
        raise NotADirectoryError(errno.ENOTDIR, f"expected a folder, {file} is a file", str(folder))
    missing = [path for path in places if not path.exists()]
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
