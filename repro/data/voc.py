"""The layout, lists, classes and masks of PASCAL VOC 2012."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from repro.constants import VOID
from repro.data.images import open_image, png_header
from repro.errors import InputError
from repro.files import atomic_path

CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The 21 classes in the order of their indices."""


def colour_palette() -> np.ndarray:
    """The VOC colours, uint8 (256, 3) RGB, by the development kit's rule (``VOClabelcolormap``).

    Bits 0, 1, 2 of the index are bit 7 of red, green, blue; bits 3, 4, 5 their bit 6; and so on downwards.
    """
    index = np.arange(256)
    channels = [sum(((index >> (3 * k + c)) & 1) << (7 - k) for k in range(3)) for c in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)


@dataclass(frozen=True)
class VocLayout:
    """Where things are under ``root`` (…/VOCdevkit/VOC2012). Paths are named, not checked; see `open`."""

    root: Path

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> VocLayout:
        """The layout of an existing data set. Raises InputError when ``root`` has no folder JPEGImages."""
        layout = cls(Path(root))
        if not layout.images.is_dir():
            raise InputError(
                f"{layout.root}: no VOC data set, a folder with JPEGImages in it expected, such as VOCdevkit/VOC2012"
            )
        return layout

    @property
    def images(self) -> Path:
        return self.root / "JPEGImages"

    @property
    def masks(self) -> Path:
        """Palette PNGs of VOC itself."""
        return self.root / "SegmentationClass"

    @property
    def masks_aug(self) -> Path:
        """Grey index PNGs of the augmented set (VOC and SBD together), for all of train_aug and val."""
        return self.root / "SegmentationClassAug"

    def image(self, name: str) -> Path:
        return self.images / f"{name}.jpg"

    def mask(self, name: str) -> Path:
        return self.masks / f"{name}.png"

    def mask_aug(self, name: str) -> Path:
        return self.masks_aug / f"{name}.png"

    def image_set(self, name: str) -> Path:
        """The list of an image set: ``train``, ``val``, ``trainval``, ``test``, ``train_aug``."""
        return self.root / "ImageSets" / "Segmentation" / f"{name}.txt"


CUE_NAMES = ("localization_cues.h5", "localization_cues.pickle", "localization_cues.pickle.gz")
INPUT_LIST_NAMES = ("input_list.txt",)


def data_folder(root: str | os.PathLike[str]) -> Path:
    """Where the cues, lists and weights of a VOC tree lie: beside ``VOCdevkit``, or in a tree of another name."""
    resolved = Path(root).resolve()
    return resolved.parent.parent if resolved.parent.name == "VOCdevkit" else resolved


def found_beside(root: str | os.PathLike[str], names: Sequence[str]) -> Path | None:
    """The first file of these names in a VOC tree or in its `data_folder`."""
    candidates = (folder / name for folder in (Path(root), data_folder(root)) for name in names)
    return next((path for path in candidates if path.is_file()), None)


# --- masks --------------------------------------------------------------------------------------------------


class MaskDoubt(NamedTuple):
    """What about a mask looks like another format than class indices: its kind, and a line's words for it."""

    kind: str
    words: str


def read_mask(path: str | os.PathLike[str], num_classes: int = len(CLASS_NAMES)) -> np.ndarray:
    """Read a mask's class indices, uint8 (H, W), from a palette PNG or a grey PNG; never its colours.

    Raises InputError for a file that is no readable PNG, one that holds colours (RGB and the like), grey of 2 or 4
    bits, and one with an index that is neither below ``num_classes`` nor 255.
    """
    return read_doubtful_mask(path, num_classes)[0]


def read_doubtful_mask(
    path: str | os.PathLike[str], num_classes: int = len(CLASS_NAMES)
) -> tuple[np.ndarray, MaskDoubt | None]:
    """`read_mask`, and what about the file looks like another format, if anything does."""
    name = os.fspath(path)
    image = open_image(path)
    if image.format != "PNG":
        raise InputError(f"{name}: a {image.format} image, a PNG of class indices expected")
    doubt: MaskDoubt | None = None
    if image.mode == "1":  # grey of one bit: its white is 255, as a PNG optimiser leaves it of {0, 255}
        image = image.convert("L")
        doubt = MaskDoubt("1 bit", "grey of 1 bit, whose white is read as void (255), not as class 1")
    if image.mode not in ("P", "L"):
        raise InputError(f"{name}: mode {image.mode!r}, a palette or 8-bit grey PNG of indices expected")
    if image.mode == "L" and (bits := png_header(path)[0]) in (2, 4):
        raise InputError(
            f"{name}: grey of {bits} bits, whose 1 is class 1 to some tools and {255 // (2**bits - 1)} to others; "
            "a palette or 8-bit grey PNG of indices expected (repro data masks)"
        )
    mask = np.array(image, dtype=np.uint8)
    present = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    beyond = present[(present >= num_classes) & (present != VOID)]
    if beyond.size:
        raise InputError(f"{name}: class {beyond[0]}, 0 to {num_classes - 1} or {VOID} expected")
    return mask, doubt or (_palette_doubt(image, present, num_classes) if image.mode == "P" else None)


def _palette_doubt(image: Image.Image, present: np.ndarray, num_classes: int) -> MaskDoubt | None:
    """An index in the mask whose colour is the one that VOC gives to another class. Black is any tool's filling."""
    colours = np.asarray(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    class_of = {
        colour.tobytes(): index for index, colour in enumerate(colour_palette()[1:num_classes], start=1)
    }
    for index in present[present < min(len(colours), num_classes)].tolist():
        other = class_of.get(colours[index].tobytes(), index)
        if other != index:
            words = f"its index {index} has VOC's colour of class {other}; indices are read, not colours"
            return MaskDoubt("palette", words)
    return None


def write_mask(path: str | os.PathLike[str], mask: np.ndarray) -> None:
    """Write class indices, uint8 (H, W), as a PNG with the VOC palette, atomically."""
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise InputError(f"{os.fspath(path)}: mask of {mask.dtype} {mask.shape}, uint8 of (H, W) expected")
    image = Image.fromarray(mask)
    image.putpalette(colour_palette().tobytes())
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


# --- lists --------------------------------------------------------------------------------------------------


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


def read_id_list(path: str | os.PathLike[str]) -> list[str]:
    """Read an image-set list: one name a line. Blank lines are skipped.

    Masks are written under these names, too: none may lead out of its folder.

    Raises InputError for a missing or empty list, a line of several words, a name that comes twice, is an absolute
    path or has a part ``..``.
    """
    seen: dict[str, int] = {}
    for line, fields in _lines(path, "one image name", 1):
        if os.path.isabs(fields[0]):
            raise InputError(f"{os.fspath(path)}:{line}: {fields[0]!r} is an absolute path, a name expected")
        first = seen.setdefault(fields[0], line)
        if first != line:
            raise InputError(
                f"{os.fspath(path)}:{line}: {fields[0]!r} again (see line {first}), each name once expected"
            )
    return list(seen)


def read_pairs_list(path: str | os.PathLike[str]) -> list[CueLine]:
    """Read a stage-1 list, ``image index`` a line, as ``ImageData`` does.

    Blank lines are skipped; an image that stands there twice is drawn twice a pass.

    Raises InputError naming file and line for anything but a name and a whole number of at least 0, and for a name
    with a part ``..``: names are appended to a root, whatever they begin with, and must stay below it.
    """
    expected = "'<image> <cue index>'"
    lines = []
    for line, (image, index) in _lines(path, expected, 2):
        if not re.fullmatch(r"[0-9]{1,18}", index):
            raise InputError(
                f"{os.fspath(path)}:{line}: cue index {index!r}, {expected} with a whole number expected"
            )
        lines.append(CueLine(image, int(index), line))
    return lines


def read_cue_indices(path: str | os.PathLike[str]) -> dict[str, int]:
    """Image name, without folder and suffix -> index of its cues, from an ``input_list.txt``. As `read_pairs_list`."""
    return {Path(line.image).stem: line.cue_index for line in read_pairs_list(path)}


def read_label_list(path: str | os.PathLike[str]) -> list[LabelLine]:
    """Read a retraining list, ``image label`` a line, both paths. For the rest as `read_pairs_list`."""
    return [LabelLine(image, label, line) for line, (image, label) in _lines(path, "'<image> <label>'", 2)]


def list_line(*names: object) -> str:
    r"""A line of a list, as the readers here take it: a name that holds a space, begins with a quote or is not
    printable stands in double quotes, as a JSON string.

    >>> list_line("my cat.jpg", 3)
    '"my cat.jpg" 3\n'
    """
    words = map(str, names)
    fields = [
        word
        if word.isprintable() and re.fullmatch(r'[^\s"]\S*', word)
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
            return [json.loads(field) if re.fullmatch(_QUOTED, field) else field for field in fields]
    return fields


def read_text(path: str | os.PathLike[str], expected: str) -> str:
    """The text of a list. Raises InputError for a file that cannot be read; ``expected`` is what a line should hold."""
    name = os.fspath(path)
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such list") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: byte {error.start} is not UTF-8, a text file of {expected} a line expected"
        ) from error
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}), a list expected") from error


def _lines(path: str | os.PathLike[str], expected: str, count: int) -> Iterator[tuple[int, list[str]]]:
    name = os.fspath(path)
    empty = True
    for line, content in enumerate(read_text(path, expected).split("\n"), start=1):
        fields = _fields(content)
        if not fields:
            continue
        if len(fields) != count:
            raise InputError(
                f"{name}:{line}: {content.strip()[:80]!r}, {expected} expected, names with spaces in double quotes"
            )
        for field in fields:
            if "\0" in field or (".." in field and ".." in re.split(r"[/\\]", field)):
                raise InputError(
                    f"{name}:{line}: {field!r} leads out of its folder, a name below it expected"
                )
        empty = False
        yield line, fields
    if empty:
        raise InputError(f"{name}: the list is empty, lines of {expected} expected")
