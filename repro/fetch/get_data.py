"""From nothing to a data folder: what the catalogue lists, checked, unpacked and in its place.

For each source, in this order: what is in its place already stays; a copy of one's own (``own``) is taken; a file
in ``downloads`` is used; otherwise it is downloaded. What was in ``downloads`` before stays there. Files come to their
place by one rename after every check, so that what is there is whole. Beside ``VOCdevkit``: ``downloads/`` while they
last, ``fetch.lock.json`` with what each file turned out to be.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from repro.data.cues import CueFile
from repro.data.image_list import read_pairs_list
from repro.data.voc import VocLayout, data_folder
from repro.errors import InputError, meant
from repro.fetch.archives import unpack
from repro.fetch.catalogue import LOCK_NAME, ArchiveContent, LockFile, Pin, Source, check_file, read_catalogue
from repro.fetch.download import download, require_space
from repro.fetch.sbd import build_train_aug, find_sbd
from repro.files import lock_folder, now, temporary_folder
from weights_conversion import read_caffemodel
from weights_conversion.files import atomic_path, make_folder
from weights_conversion.sources import read_pth_layers

State = Literal["there", "fetched", "taken", "missing"]


@dataclass(frozen=True)
class SourceReport:
    """What became of a source: its place, and for ``missing`` the reason."""

    name: str
    state: State
    path: Path
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name:<24}{self.state:<9}{self.path}{f' ({self.reason})' if self.reason else ''}"


class Fetcher:
    """Fetches sources into the places that belong to one VOC tree.

    Args:
        voc_root: …/VOCdevkit/VOC2012; need not be there.
        catalogue: path of one's own, instead of the packaged one.
        own: a folder with one's own copies under the catalogue's file names; with it nothing is downloaded.
        keep_archives: leave downloaded archives in ``downloads`` once they are unpacked. Those that were there before
            the call always stay.
    """

    def __init__(
        self,
        voc_root: Path,
        *,
        catalogue: Path | None = None,
        own: Path | None = None,
        keep_archives: bool = False,
    ) -> None:
        self.voc_root, self.own, self.keep_archives = voc_root, own, keep_archives
        self.data = data_folder(voc_root)
        self.downloads = self.data / "downloads"
        self.sources = read_catalogue(catalogue)
        if own is not None and not own.is_dir():
            raise InputError(f"--from {own}: no such folder, one with your own copies expected")

    def selected(self, names: Sequence[str]) -> dict[str, Source]:
        """The sources of these names, or the default ones. Raises InputError for a name not in the catalogue."""
        if not names:
            return {name: source for name, source in self.sources.items() if source.default}
        if unknown := [name for name in names if name not in self.sources]:
            raise InputError(f"{unknown[0]!r}: not in the catalogue; {meant(unknown[0], self.sources)}")
        return {name: self.sources[name] for name in names}

    def place(self, source: Source) -> Path:
        """Where the source ends up."""
        base, _, rest = source.to.partition("/")
        return {"VOC_ROOT": self.voc_root, "DATA": self.data}[base] / rest

    def fetch(self, names: Sequence[str] = ()) -> Iterator[SourceReport]:
        """Bring each source to its place; yields what became of it.

        Raises InputError before anything is downloaded when disk space is short, and in place of the outcome of a
        source that is not optional when it cannot be had; an optional one is ``missing``.
        """
        wanted = self.selected(names)
        try:
            make_folder(self.data)
        except OSError as error:
            raise InputError(f"{self.data}: cannot be made ({error.strerror})") from None
        lock_folder(self.data)
        lock = LockFile(self.data / LOCK_NAME)
        self._require_space(wanted)
        failed: list[str] = []
        for name, source in wanted.items():
            try:
                yield self._bring(name, source, lock)
            except InputError as error:
                yield SourceReport(name, "missing", self.place(source), str(error))
                if not source.optional:
                    failed.append(name)
        if failed:
            hints = "; ".join(
                f"{name}: {self.sources[name].file}, {self.sources[name].note}" for name in failed
            )
            raise InputError(
                f"{len(failed)} of {len(wanted)} sources are missing ({hints}); run it again, or get them by hand, put "
                "them into one folder and add --from FOLDER (make data FROM=FOLDER)"
            )

    def is_there(self, source: Source) -> bool:
        """Whether the source needs nothing more."""
        if source.kind == "sbd":  # its list is written last
            return self.place(source).is_dir() and VocLayout(self.voc_root).image_set("train_aug").is_file()
        return self.place(source).exists()

    def _bring(self, name: str, source: Source, lock: LockFile) -> SourceReport:
        place = self.place(source)
        if self.is_there(source):
            if source.archive is None:
                check_file(place, name, source, lock)
                return SourceReport(name, "there", place)
            return SourceReport(
                name, "there", place, "" if source.kind == "sbd" else _short_of(place, source.archive)
            )
        if source.kind == "sbd":
            VocLayout.open(self.voc_root)  # before 1.4 GB are downloaded that cannot be used
        file, url = self._file(name, source, lock)
        is_ours = self.own is None and url != str(file)  # downloaded by this call, not put there by the user
        sha256 = check_file(file, name, source, lock)
        try:
            if source.archive is not None:
                self._unpack(file, source, source.archive)
            else:
                _check_content(file, source)
        except InputError:
            if is_ours and not (source.md5 or source.sha256):
                file.unlink()  # not what it should be, and nothing said so before
            raise
        if source.archive is None and is_ours:
            file.replace(place)
        elif source.archive is None:
            with atomic_path(place) as temporary:
                shutil.copyfile(file, temporary)
        size = (file if file.exists() else place).stat().st_size
        lock.pin(name, Pin(url=url, size=size, sha256=sha256, first_used=now()))
        if is_ours and not self.keep_archives:
            file.unlink(missing_ok=True)
            if not any(self.downloads.iterdir()):
                self.downloads.rmdir()
        return SourceReport(name, "taken" if self.own else "fetched", place, url)

    def _file(self, name: str, source: Source, lock: LockFile) -> tuple[Path, str]:
        """The source's file and where it is from."""
        if self.own is not None:
            candidates = (self.own / source.file, *sorted(self.own.glob(f"*/{source.file}")))
            found = next((path for path in candidates if path.is_file()), None)
            if found is None:
                raise InputError(f"no {source.file} in {self.own}")
            return found, str(found.resolve())
        target = self.downloads / source.file
        if target.is_file():
            return target, str(target)
        make_folder(self.downloads)
        url = download(
            source.urls,
            target,
            size=source.size,
            most=source.most,
            check=lambda part: check_file(part, name, source, lock),
            hash_known=bool(source.md5 or source.sha256 or name in lock.pins),
        )
        return target, url

    def _unpack(self, file: Path, source: Source, content: ArchiveContent) -> None:
        with temporary_folder(self.data) as folder:
            unpack(
                file,
                folder,
                members=content.members,
                most_bytes=content.most_bytes,
                most_files=content.most_files,
            )
            taken = folder / content.take
            if short := _short_of(taken, content):
                raise InputError(f"{file}: {content.take} is incomplete: {short}")
            if source.kind == "sbd":
                build_train_aug(find_sbd(taken), VocLayout.open(self.voc_root), expected=content.train_aug)
                return
            os.sync()  # one for all its files, before their name appears
            place = self.place(source)
            make_folder(place.parent)
            taken.rename(place)

    def _require_space(self, wanted: dict[str, Source]) -> None:
        needed = 0
        for source in wanted.values():
            if not self.is_there(source):
                needed += source.archive.most_bytes if source.kind == "archive" and source.archive else 0
                if self.own is None and not (self.downloads / source.file).is_file():
                    part = self.downloads / f"{source.file}.part"
                    needed += (source.size or 0) - (part.stat().st_size if part.exists() else 0)
        require_space(self.data, needed, "what is still to be downloaded and unpacked")


def _short_of(folder: Path, content: ArchiveContent) -> str:
    """What an unpacked archive lacks of what its catalogue entry says it holds, in words; empty for nothing."""
    for inside, expected in content.holds.items():
        found = sum(1 for _ in (folder / inside).iterdir()) if (folder / inside).is_dir() else 0
        if found < expected:
            return f"{found} of {expected} files in {inside}"
    return ""


def _check_content(file: Path, source: Source) -> None:
    """Open a file as what it is to be; raises the reader's InputError."""
    if source.kind == "cues":
        CueFile.open(file)
    elif source.kind == "list":
        read_pairs_list(file)
    elif source.kind == "weights":
        read_pth_layers(file) if file.suffix == ".pth" else read_caffemodel(file)
