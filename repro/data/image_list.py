"""Lists of images, one reader for training, prediction and evaluation.

    x                                            a name
    x.jpg                                        a file
    x.jpg 3                                      a file and the index of its cues (stage 1)
    /JPEGImages/x.jpg /SegmentationClassAug/x.png  a file and its mask (stage 2, and the lists of later projects)

All of them name the image ``x``: its name is the last part of the path, without the suffix of an image. Every list
holds one of these forms; what a reader does not need is passed over. Names with spaces stand in double quotes, as
JSON strings, and so do names that begin with #, which comments do elsewhere; in others a backslash is a slash, as
Windows writes paths. Line ends are LF or CRLF, the encoding is UTF-8 or UTF-16.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple, TypeVar

from repro.data.images import IMAGE_SUFFIXES
from repro.errors import InputError
from weights_conversion.files import read_input

PathLike = str | os.PathLike[str]

_FORMS = "'<image>', '<image> <cue index>' or '<image> <mask>.png'"


Line = TypeVar("Line", bound="CueLine | LabelLine")


class ListLine(NamedTuple):
    """A line: ``image`` as it stands there, what stands ``beside`` it, if anything, and the line's number from 1."""

    image: str
    beside: str | None
    line: int

    @property
    def name(self) -> str:
        """The image's name, without folder and suffix."""
        return image_name(self.image)


class CueLine(NamedTuple):
    """``image index`` of a stage-1 list; the index keys the cue file. ``line`` counts from 1."""

    image: str
    cue_index: int
    line: int


class LabelLine(NamedTuple):
    """``image label`` of a retraining list, both paths relative to a root. ``line`` counts from 1."""

    image: str
    label: str
    line: int


class Lines(list[Line]):
    """The lines of a list in its order, whichever way they came; ``source`` is what messages call it, a file's path."""

    def __init__(self, lines: Iterable[Line], source: PathLike) -> None:
        super().__init__(lines)
        self.source = os.fspath(source)

    def where(self, index: int) -> str:
        """Source and number of the line at ``index`` (from 0)."""
        return f"{self.source}:{self[index].line}"

    def text(self) -> str:
        """The list as a file holds it."""
        return "".join(list_line(*line[:-1]) for line in self)


def image_name(path: str) -> str:
    """The name of an image: the last part of its path, without the suffix of an image.

    >>> image_name("/JPEGImages/2007_000032.jpg"), image_name("2007_000032"), image_name("v1.2")
    ('2007_000032', '2007_000032', 'v1.2')
    """
    last = path.rstrip("/").rpartition("/")[2]
    stem, suffix = os.path.splitext(last)
    return stem if suffix.lower() in IMAGE_SUFFIXES else last


def read_image_list(path: PathLike) -> list[ListLine]:
    """Read a list of any of the forms above. Blank lines are skipped.

    Raises InputError for a missing or empty list, naming the line for one of another form, one of another form than
    the first line's, and for a name with a part ``..``: names are appended to a root, whatever they begin with, and
    must stay below it.
    """
    lines: list[ListLine] = []
    for number, fields in _lines(path, _FORMS, 1, 2):
        line = ListLine(fields[0], fields[1] if len(fields) == 2 else None, number)
        if not line.name or _form(line) == "unknown":
            raise _wrong(path, number, " ".join(fields), _FORMS)
        if lines and _form(line) != _form(lines[0]):
            raise InputError(
                f"{os.fspath(path)}:{number}: {' '.join(fields)[:80]!r}; expected {_form(lines[0])} as in line "
                f"{lines[0].line}, names with spaces in double quotes"
            )
        lines.append(line)
    return lines


def _form(line: ListLine) -> str:
    if line.beside is None:
        return "an image alone"
    if re.fullmatch(r"[0-9]{1,18}", line.beside):
        return "an image and a cue index"
    return "an image and its mask" if line.beside.lower().endswith(".png") else "unknown"


def read_id_list(path: PathLike) -> list[str]:
    """The names of a list's images, without folder and suffix, in its order.

    Raises InputError as `read_image_list` does, and for a name that comes twice: masks are written under it.
    """
    seen: dict[str, int] = {}
    for line in read_image_list(path):
        first = seen.setdefault(line.name, line.line)
        if first != line.line:
            raise InputError(
                f"{os.fspath(path)}:{line.line}: {line.name!r} comes again after line {first}; expected each name once"
            )
    return list(seen)


def read_pairs_list(path: PathLike) -> Lines[CueLine]:
    """Read a stage-1 list, ``image index`` a line, as ``ImageData`` does.

    Blank lines are skipped; an image that stands there twice is drawn twice per pass.

    Raises InputError naming file and line for anything but a name and a whole number of at least 0, and for a name
    with a part ``..``.
    """
    expected = "'<image> <cue index>'"
    lines: Lines[CueLine] = Lines([], path)
    for number, (image, index) in _lines(path, expected, 2):
        if not re.fullmatch(r"[0-9]{1,18}", index):
            raise InputError(
                f"{os.fspath(path)}:{number}: cue index {index!r}; expected {expected} with a whole number"
            )
        lines.append(CueLine(image, int(index), number))
    return lines


def read_cue_indices(path: PathLike) -> dict[str, int]:
    """Image name -> index of its cues, from an ``input_list.txt``.

    Raises InputError as `read_pairs_list`, and for an image of two indices and an index of two images.
    """
    found: dict[str, int] = {}
    images: dict[int, str] = {}
    for line in read_pairs_list(path):
        name, index = image_name(line.image), line.cue_index
        where = f"{os.fspath(path)}:{line.line}"
        if found.setdefault(name, index) != index:
            raise InputError(f"{where}: {name} has the cue index {index}, and {found[name]} before it")
        if images.setdefault(index, name) != name:
            raise InputError(
                f"{where}: {name} has the cue index {index} of {images[index]}; expected one of its own"
            )
    return found


def read_label_list(path: PathLike) -> Lines[LabelLine]:
    """Read a retraining list, ``image label`` a line, both paths; the label of an image alone is ``<name>.png``.

    For the rest as `read_pairs_list`.
    """
    lines: Lines[LabelLine] = Lines([], path)
    for line in read_image_list(path):
        if line.beside is not None and line.beside.isdigit():
            raise _wrong(path, line.line, f"{line.image} {line.beside}", "'<image> <label>.png'")
        lines.append(LabelLine(line.image, line.beside or f"{line.name}.png", line.line))
    return lines


def list_line(*names: object) -> str:
    r"""A line of a list, as the readers here take it: a name that holds a space or a backslash, begins with a quote or
    #, looks like two fields or is not printable stands in double quotes, as a JSON string.

    >>> list_line("my cat.jpg", 3)
    '"my cat.jpg" 3\n'
    """
    words = map(str, names)
    fields = [
        word
        if word.isprintable() and re.fullmatch(r'[^\s"\\#][^\s\\]*', word) and not _SEPARATED.search(word)
        else json.dumps(word, ensure_ascii=not word.isprintable())
        for word in words
    ]
    return f"{' '.join(fields)}\n"


_QUOTED = r'"(?:[^"\\]|\\.)*"(?!\S)'


def _fields(content: str) -> list[str]:
    """The fields of a line; the carriage return of a CRLF file is a space like others."""
    fields = re.findall(rf"{_QUOTED}|\S+", content)
    if '"' in content:
        with suppress(ValueError):  # a quote that is part of a name
            return [
                json.loads(field) if re.fullmatch(_QUOTED, field) else field.replace("\\", "/")
                for field in fields
            ]
    return [field.replace("\\", "/") for field in fields]


def read_text(path: PathLike, expected: str) -> str:
    """The text of a list. Raises InputError for a file that cannot be read; ``expected`` is what a line should hold."""
    name = os.fspath(path)
    try:
        data = read_input(path)
        text = data.decode(_encoding(data))
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such list") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: byte {error.start} is not {error.encoding.upper()}; expected a text file of {expected} a line, "
            "saved as UTF-8"
        ) from error
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); expected a list") from error
    before, zero, _ = text.partition("\0")
    if zero:  # UTF-32, or no text
        line = before.count("\n") + 1
        raise InputError(
            f"{name}:{line}: there is a zero byte; expected a text file of {expected} a line, saved as UTF-8"
        )
    return text


def _encoding(data: bytes) -> str:
    """UTF-8, or UTF-16 as Windows' shell and spreadsheets write it: by its mark, or where every second byte is one that
    Latin letters have there (0 to 2) and no text has elsewhere."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    first, second = data[::2], data[1::2]
    for name, high, low in (("utf-16-be", first, second), ("utf-16-le", second, first)):
        if data and not len(data) % 2 and max(high) < 3 and 0 not in low:
            return name
    return "utf-8-sig"


_SEPARATED = re.compile(rf"({'|'.join(map(re.escape, IMAGE_SUFFIXES))})[,;]", re.IGNORECASE)


def _lines(path: PathLike, expected: str, *counts: int) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of each line that has any; there must be as many as one of ``counts``."""
    name = os.fspath(path)
    empty = True
    for line, content in enumerate(read_text(path, expected).split("\n"), start=1):
        fields = _fields(content)
        if not fields:
            continue
        if content.lstrip().startswith("#"):
            raise InputError(
                f"{name}:{line}: {content.strip()[:80]!r}: lists have no comments; expected a line of an image, where "
                "a name that begins with # stands in double quotes"
            )
        if between := _SEPARATED.search(re.sub(_QUOTED, "", content)):
            raise InputError(
                f"{name}:{line}: {content.strip()[:80]!r}: a {between[0][-1]!r} stands between the fields; expected a "
                "space, and a name that holds one in double quotes"
            )
        if len(fields) not in counts:
            raise _wrong(path, line, content.strip(), expected)
        for field in fields:
            if "\0" in field or (".." in field and ".." in re.split(r"[/\\]", field)):
                raise InputError(
                    f"{name}:{line}: {field!r} leads out of its folder; expected a name below it"
                )
        empty = False
        yield line, fields
    if empty:
        raise InputError(f"{name}: the list is empty; expected lines of {expected}")


def _wrong(path: PathLike, line: int, content: str, expected: str) -> InputError:
    return InputError(
        f"{os.fspath(path)}:{line}: {content[:80]!r}; expected {expected}, names with spaces in double quotes"
    )
