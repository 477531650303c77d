"""Unpacking archives that are not trusted.

Nothing but regular files is written, by this module and not by tarfile or zipfile: no link, device, owner, mode or
time of the archive reaches the disk, so that no member can lead another one astray.
"""

from __future__ import annotations

import fnmatch
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, NoReturn

from tqdm import tqdm

from repro.errors import InputError, line_of, printable
from weights_conversion.files import errors_named

_BLOCK = 1 << 20
_MOST_HEADER = 1 << 20  # bytes of a tar member's extended header, which is read into memory
_MOST_DEPTH = 32


class _Member(NamedTuple):
    name: str
    size: int
    is_file: bool
    is_folder: bool
    open: Callable[[], IO[bytes] | None]


def unpack(
    archive: str | os.PathLike[str],
    folder: Path,
    *,
    members: Sequence[str] = ("*",),
    most_bytes: int,
    most_files: int,
) -> int:
    """Unpack a tar (plain, gzip, xz, bzip2) or zip file's members into an empty folder; returns how many.

    Args:
        members: shell patterns of the names that are wanted, ``*`` taking slashes too; the others are passed over.
        most_bytes: the sum of the sizes of all members, wanted or not.
        most_files: their number.

    Raises InputError naming archive and member: for an absolute name or one with ``..``, a link, device or pipe
    among the wanted, a name that comes twice, totals beyond the limits, a sparse or encrypted member, a damaged
    archive, and when nothing was wanted of it. What was unpacked until then stays: unpack to a temporary folder.
    """
    name = os.fspath(archive)
    count = files = total = 0
    try:
        with byte_bar(f"unpacking {printable(Path(name).name)}") as bar:
            for member in _members(name, most_bytes):
                parts = _parts(name, member.name)
                files, total = files + 1, total + member.size
                if total > most_bytes:
                    raise InputError(f"{name}: unpacks to more than the {most_bytes} bytes expected")
                if files > most_files:
                    raise InputError(f"{name}: holds more than the {most_files} members expected")
                bar.update(member.size)
                if member.is_folder or not any(
                    fnmatch.fnmatchcase("/".join(parts), want) for want in members
                ):
                    continue
                if not member.is_file:
                    raise InputError(
                        f"{name}: {member.name[:200]!r} is a link, device or pipe, a regular file expected"
                    )
                _write(name, member, folder.joinpath(*parts))
                count += 1
    except InputError:
        raise
    except OSError as error:
        if error.errno is not None:  # of the file system, not of gzip
            raise
        raise InputError(f"{name}: damaged archive ({line_of(error)})") from None
    except Exception as error:  # zlib.error, LZMAError, TarError, BadZipFile, EOFError, RuntimeError, …
        raise InputError(f"{name}: damaged archive ({line_of(error)})") from None
    if not count:
        raise InputError(f"{name}: holds no {' or '.join(members)}")
    return count


def byte_bar(what: str, total: int | None = None, initial: int = 0) -> tqdm[NoReturn]:
    """Progress in bytes, on a terminal alone."""
    return tqdm(
        desc=what, total=total, initial=initial, unit="B", unit_scale=True, disable=None, dynamic_ncols=True
    )


def _parts(archive: str, name: str) -> tuple[str, ...]:
    """The parts of a member's name, below the folder it is unpacked to whatever it says."""
    path = PurePosixPath(name)
    parts = tuple(part for part in path.parts if part != ".")
    # Windows would read these otherwise
    strange = "\0" in name or "\\" in name or (parts and ":" in parts[0])
    if path.is_absolute() or ".." in parts or strange or len(parts) > _MOST_DEPTH:
        raise InputError(f"{archive}: {name[:200]!r} leads out of the archive, plain relative names expected")
    return parts


def _write(archive: str, member: _Member, target: Path) -> None:
    source = member.open()
    if source is None:
        raise InputError(f"{archive}: {member.name[:200]!r} cannot be read")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("xb")
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise InputError(f"{archive}: {member.name[:200]!r} comes twice, or lies below a file") from None
    with source, file:
        left = member.size
        while block := source.read(min(_BLOCK, left)):
            with errors_named(target):
                file.write(block)
            left -= len(block)
        if left:
            raise InputError(f"{archive}: {member.name[:200]!r} ends {left} bytes early")


def _members(name: str, most_bytes: int) -> Iterator[_Member]:
    if not os.path.isfile(name):
        raise InputError(f"{name}: no such archive")
    if zipfile.is_zipfile(name):
        yield from _zip_members(name)
    else:
        yield from _tar_members(name, most_bytes)


def _zip_members(name: str) -> Iterator[_Member]:
    with zipfile.ZipFile(name) as source:
        for info in source.infolist():
            if info.flag_bits & 1:
                raise InputError(f"{name}: {info.filename[:200]!r} is encrypted")
            kind = stat.S_IFMT(info.external_attr >> 16)
            plain = kind in (0, stat.S_IFREG) and not info.is_dir()
            yield _Member(info.filename, info.file_size, plain, info.is_dir(), partial(source.open, info))


class BoundedHeader(tarfile.TarInfo):
    """A member's header that refuses what tarfile would read into memory whole."""

    @classmethod
    def frombuf(cls, *arguments: Any, **named: Any) -> BoundedHeader:
        header = super().frombuf(*arguments, **named)
        extended = header.type in (
            *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
            *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
        )
        if extended and header.size > _MOST_HEADER:
            raise tarfile.ReadError(f"a header of {header.size} bytes, at most {_MOST_HEADER} expected")
        return header


def _tar_members(name: str, most_bytes: int) -> Iterator[_Member]:
    with tarfile.open(name, "r:*", tarinfo=BoundedHeader) as source:
        for info in source:
            if info.issparse():
                raise InputError(f"{name}: {info.name[:200]!r} is a sparse file, plain ones expected")
            # the caller adds the size up and stops before the next header is looked for behind so many bytes
            yield _Member(
                info.name, info.size, info.isfile(), info.isdir(), partial(source.extractfile, info)
            )
        # A compressed archive's own checksum is at its end, which tarfile does not read.
        left = most_bytes
        while source.fileobj and (block := source.fileobj.read(_BLOCK)):
            left -= len(block)
            if left < 0:
                raise InputError(f"{name}: unpacks to more than the {most_bytes} bytes expected")
