"""The catalogue of what can be fetched, and the lock file that pins what no one published a hash of."""

from __future__ import annotations

import hashlib
import os
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from repro.errors import InputError, line_of
from repro.files import read_json, write_json
from repro.yaml12 import load_yaml
from weights_conversion.files import read_input

LOCK_NAME = "fetch.lock.json"

_Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+/\S*$")]
_FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
_Positive = Annotated[int, Field(ge=1)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ArchiveContent(_Entry):
    """What is wanted of an archive and what it may unpack to at most; see the header of ``sources.yaml``."""

    take: str
    members: list[str]
    most_bytes: _Positive
    most_files: _Positive
    holds: dict[str, int] = {}
    train_aug: _Positive = 10582


class Source(_Entry):
    """One file to fetch; see the header of ``sources.yaml``."""

    what: str
    file: _FileName
    urls: list[_Url]
    size: _Positive | None = None
    at_most: _Positive | None = None
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    kind: Literal["archive", "sbd", "cues", "list", "weights"]
    to: Annotated[str, Field(pattern=r"^(VOC_ROOT|DATA)(/[A-Za-z0-9][A-Za-z0-9._+-]*)*$")]
    archive: ArchiveContent | None = None
    optional: bool = False
    default: bool = True
    note: str

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.size is None and self.at_most is None:
            raise ValueError("give size, or at_most where it is not known")
        if (self.archive is not None) != (self.kind in ("archive", "sbd")):
            raise ValueError(f"kind {self.kind} with{'' if self.archive else 'out'} a section archive")
        return self

    @property
    def most(self) -> int:
        """The most bytes that its file may have."""
        return self.size or self.at_most or 0


def read_catalogue(path: str | os.PathLike[str] | None = None) -> dict[str, Source]:
    """Name to source, in the file's order: the packaged ``sources.yaml``, or one's own.

    Raises InputError naming the file and the first key that is not as expected.
    """
    name = os.fspath(path) if path else "sources.yaml"
    try:
        text = (
            read_input(path).decode("utf-8")
            if path
            else (resources.files("repro.fetch") / "sources.yaml").read_text(encoding="utf-8")
        )
        return TypeAdapter(dict[_FileName, Source]).validate_python(load_yaml(text))
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}), a catalogue expected") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{name}: not YAML ({line_of(error)}), a catalogue expected") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{name}: {where}: {first['msg']}") from None


class Pin(BaseModel):
    """What one download turned out to be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    size: int
    sha256: str
    first_used: str


class LockFile:
    """``fetch.lock.json``: name to `Pin`. A file is pinned by its first use, and must be the same ever after."""

    def __init__(self, path: Path) -> None:
        """Raises InputError for a file that is there and is not a lock file."""
        self.path = path
        self.pins: dict[str, Pin] = {}
        if path.exists():
            try:
                self.pins = TypeAdapter(dict[str, Pin]).validate_python(read_json(path, "pins of downloads"))
            except ValueError as error:  # InputError and pydantic's
                reason = f"damaged ({line_of(error, 200)}); restore it, or remove it to pin anew"
                raise InputError(f"{path}: {reason}") from None

    def pin(self, name: str, pin: Pin) -> None:
        """Add a pin and write the file. One that is there already stays."""
        if name in self.pins:
            return
        self.pins[name] = pin
        write_json(self.path, {key: value.model_dump() for key, value in sorted(self.pins.items())})


def check_file(path: Path, name: str, source: Source, lock: LockFile) -> str:
    """Compare a file with what the catalogue and the lock file say of it; returns its SHA-256.

    Raises InputError with what differs: size, MD5 or SHA-256 of the catalogue, SHA-256 of the lock file.
    """
    size = path.stat().st_size
    if source.size is not None and size != source.size:
        raise InputError(f"{path}: {size} bytes; expected {source.size}")
    digests = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            for digest in digests.values():
                digest.update(block)
    for kind, digest in digests.items():
        expected = getattr(source, kind)
        if expected not in (None, digest.hexdigest()):
            raise InputError(f"{path}: {kind} {digest.hexdigest()}; expected {expected}")
    sha256 = digests["sha256"].hexdigest()
    pinned = lock.pins.get(name)
    if pinned and pinned.sha256 != sha256:
        raise InputError(
            f"{path}: sha256 {sha256}, but {lock.path} pins {pinned.sha256} ({pinned.url}, {pinned.first_used}); "
            f"if the new file is the right one, remove {name!r} from {lock.path.name}"
        )
    return sha256
