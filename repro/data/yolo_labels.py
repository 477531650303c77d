"""Labels of YOLO's data sets: a folder with a text file an image, which has a line an object.

    x.txt        ``class x y width height``, or ``class`` and a polygon; parts of the image's size, so 0 to 1
    classes.txt  the classes' names, a line each (LabelImg); also obj.names (Darknet)
    data.yaml    ``names``: a list of them, or a table of number to name (Ultralytics, Roboflow)

The names' file stands in the folder itself or in one of the two above it (``labels/train``). Classes count from 0,
background is none of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from repro.data.class_names import class_of
from repro.data.image_list import read_text
from repro.errors import InputError, line_of
from repro.yaml12 import load_yaml

NAMES = ("data.yaml", "classes.txt", "obj.names")


def yolo_files(folder: Path) -> list[Path]:
    """The label files of a folder whose first text is a line of YOLO's; none for another folder."""
    files = sorted(path for path in folder.glob("[!.]*.txt") if path.name not in NAMES)
    lines = (line for path in files for line in read_text(path, _EXPECTED).splitlines() if line.strip())
    return files if _object_class(next(lines, "")) is not None else []


def yolo_labels(
    folder: Path, files: Sequence[Path], indices: Mapping[str, int], first_class: int | None
) -> dict[str, list[int]]:
    """Image name -> its classes; those that occur must be some of ``indices``, class name -> index.

    Raises InputError for a damaged file, for a class that has no name or is none of ours, and where nothing names the
    classes, unless ``first_class`` says that their numbers are ours, from 0 or 1 on.
    """
    found = _read(files)
    path, names = _names(folder) or ("dataset.classes", dict(enumerate(indices, first_class or 0)))
    if path == "dataset.classes" and first_class is None:
        raise InputError(
            f"{folder}: no classes.txt, obj.names or data.yaml in it or above it names YOLO's classes; add one, or say "
            "that their numbers follow the order of dataset.classes: --first-class 0, first_class=0 in Python"
        )
    ours = {}
    for name, classes in found.items():
        for number in classes:
            if number not in names:
                raise InputError(f"{folder / name}.txt: class {number}, which {path} does not name")
            ours[number] = class_of(names[number], indices, f"{path}: class {number}")
    return {name: sorted({ours[number] for number in classes}) for name, classes in found.items()}


def _read(files: Sequence[Path]) -> dict[str, list[int]]:
    """Image name -> the classes of its objects, each once, rising. Raises InputError for a line of another form."""
    found = {}
    for path in files:
        classes = set()
        for number, line in enumerate(read_text(path, _EXPECTED).splitlines(), start=1):
            if not line.strip():
                continue
            if (index := _object_class(line)) is None:
                raise InputError(
                    f"{path}:{number}: {line.strip()[:80]!r}; expected {_EXPECTED}, all from 0 to 1"
                )
            classes.add(index)
        found[path.stem] = sorted(classes)
    return found


def _names(folder: Path) -> tuple[Path | str, Mapping[int, str]] | None:
    """The nearest file that names the classes, and the names by number; None where there is none.

    Raises InputError for a damaged file, and for two in one folder.
    """
    for place in (folder, *folder.absolute().parents[:2]):
        there = [place / name for name in NAMES if (place / name).is_file()]
        if len(there) > 1:
            raise InputError(f"{there[0]} and {there[1].name}: both name the classes, expected one of them")
        if there:
            text = read_text(there[0], "a class name")
            if there[0].suffix != ".yaml":
                names = enumerate(map(str.strip, text.splitlines()))
                return there[0], {index: name for index, name in names if name}
            return there[0], _names_of_yaml(there[0], text)
    return None


def _names_of_yaml(path: Path, text: str) -> Mapping[int, str]:
    try:
        content: Any = load_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML ({line_of(error)})") from None
    names = content.get("names") if isinstance(content, dict) else None
    table = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(table, dict) or not all(isinstance(index, int) for index in table):
        raise InputError(f"{path}: names: expected a list of the classes, or a table of number to name")
    return {index: str(name).strip() for index, name in table.items()}


_EXPECTED = "'<class> <x> <y> <width> <height>'"


def _object_class(line: str) -> int | None:
    """The class of an object's line; None for another line."""
    first, *place = line.split() or [""]
    if len(place) < 4 or not re.fullmatch(r"[0-9]{1,6}(\.0*)?", first):
        return None
    try:
        inside = all(-0.01 <= float(value) <= 1.01 for value in place)  # boxes are rounded
    except ValueError:
        return None
    return int(float(first)) if inside else None
