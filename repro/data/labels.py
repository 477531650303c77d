"""Image-level labels, from whatever form a data set has them in, and the layer that feeds a classifier with them.

    VOC     a folder of XML annotations (``Annotations``), or of the lists ``<class>_<set>.txt`` (``ImageSets/Main``)
    YOLO    a folder of a text file an image (`repro.data.yolo_labels`)
    COCO    ``instances_*.json``
    cues    the released cue file, with the list that names its images
    text    a line an image: ``name class class …``; with commas, semicolons or tabs in ``.csv`` and ``.tsv``, where
            names may hold spaces and a cell several classes (``"cat, dog"``, ``[1, 2]``); or a column for each class,
            of 0 and 1, yes and no, or of marks with empty cells between; or columns of which two are called
            ``filename`` and ``class``, say, as in tables of boxes
    dicts   image name -> class indices, a vector of 0 and 1, or class names, as ``.npy`` or pickle
            (`repro.data.numbered_labels`)

Each gives image name (without folder and suffix) -> class indices, rising, background (0) not among them.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from repro.data.class_names import class_of, names_in
from repro.data.coco import CocoInstances
from repro.data.cues import HDF5_SUFFIXES, MAX_BYTES, PICKLE_SUFFIXES, CueFile, holds_cues
from repro.data.datasets import Item, tensor
from repro.data.image_list import image_name, read_text
from repro.data.images import read_image_bgr, subtract_mean
from repro.data.numbered_labels import EXPECTED, labels_of_dict, labels_of_numbers
from repro.data.voc_xml import read_xml
from repro.data.yolo_labels import yolo_files, yolo_labels
from repro.errors import InputError, hint
from repro.layers.resize import resize_bilinear_u8
from weights_conversion import guard
from weights_conversion.files import check_plain, write_text

CLASSIFIER_MEAN_BGR = (104.008, 116.669, 122.675)
"""Mean of blue, green and red that SEC's classifiers subtract."""

_TABLES = (".csv", ".tsv")
# by which a table's first line names the columns that are read; the surest first
_HEADERS = (
    "filename",
    "file_name",
    "file",
    "image_name",
    "image_path",
    "image",
    "img",
    "path",
    "name",
    "image_id",
    "id",
)
_LABEL_HEADERS = {"class", "classes", "label", "labels", "category", "categories", "class_name", "tags"}

PathLike = str | os.PathLike[str]
Labels = dict[str, list[int]]


def read_labels(
    source: PathLike,
    classes: Sequence[str],
    *,
    input_list: PathLike | None = None,
    first_class: int | None = None,
) -> Labels:
    """Read the labels of all images that ``source`` has some for; the form is told by what it is.

    Args:
        source: a folder of XML files, of VOC's class lists or of YOLO's labels, or a file ``.json``, ``.csv``,
            ``.tsv``, ``.txt``, ``.h5``, ``.pickle``, ``.pickle.gz``, ``.npy``.
        classes: all classes by name, background first.
        input_list: lines ``image index``, for a cue file.
        first_class: for labels that are class indices: which one the first class after background has, 0 or 1. Needed
            where the file does not tell.

    Raises:
        InputError: nothing of that kind there, no label at all, a damaged file, a label that is no class (naming
            file and place).
    """
    labels = _read_any(Path(source), classes, input_list, first_class)
    if not any(labels.values()):
        raise InputError(f"{os.fspath(source)}: no label of any class in it, for {len(labels)} images")
    return labels


def _read_any(
    path: Path, classes: Sequence[str], input_list: PathLike | None, first_class: int | None
) -> Labels:
    indices = {name: index for index, name in enumerate(classes) if index}
    if path.is_dir():
        if next(path.glob("[!.]*.xml"), None):
            return _read_voc_annotations(path, indices)
        if files := yolo_files(path):
            return yolo_labels(path, files, indices, first_class)
        return _read_voc_lists(path, indices)
    check_plain(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder of labels")
    if path.suffix == ".json":
        return CocoInstances(path, classes).labels()
    if path.name.endswith((*HDF5_SUFFIXES, *PICKLE_SUFFIXES, ".npy")):
        if path.name.endswith(HDF5_SUFFIXES):
            file = CueFile.open(path)
        else:
            content = guard.read_pickle(path, most=MAX_BYTES, expected=EXPECTED, nested=True, texts=True)
            if not holds_cues(content) or any(array.texts for array in content.arrays.values()):
                return labels_of_dict(path, content, indices, first_class)
            file = CueFile.of_pickle(os.fspath(path), content)
        found = {name: file.labels(index).tolist() for name, index in file.images(input_list).items()}
        return _checked(path, found, len(classes))
    if path.suffix in (*_TABLES, ".txt"):
        return _read_text_labels(path, indices, len(classes), first_class)
    raise InputError(
        f"{path}: unknown kind of labels; expected .csv, .tsv, .txt, COCO's .json, a dict (.npy, .pickle), a cue file "
        "(.h5, .pickle), or a folder of VOC's annotations (*.xml) or class lists (<class>_<set>.txt), or YOLO's labels"
    )


LABELS_HEADING = b"image,classes\n"
"""How the files of `write_labels` begin."""


def write_labels(path: PathLike, labels: Mapping[str, Sequence[int]], classes: Sequence[str]) -> None:
    """Write a CSV that `read_labels` reads, atomically; images without a label are left out.

    Raises InputError for another ending than ``.csv``.
    """
    if Path(path).suffix != ".csv":
        raise InputError(f"{os.fspath(path)}: expected a name that ends in .csv")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    text.write(LABELS_HEADING.decode())
    writer.writerows([name, *(classes[label] for label in found)] for name, found in labels.items() if found)
    write_text(path, text.getvalue())


def labels_of(names: Iterable[str], labels: Mapping[str, Sequence[int]], source: PathLike) -> Labels:
    """The labels of these images, in this order. Raises InputError for the first that has none."""
    chosen: Labels = {}
    for name in names:
        if not labels.get(name):
            raise InputError(f"{os.fspath(source)}: no label for image {name}, one class or more expected")
        chosen[name] = list(labels[name])
    return chosen


def check_every_class_occurs(
    labels: Mapping[str, Sequence[int]], classes: Sequence[str], source: PathLike
) -> None:
    """Raise InputError naming the classes that no image has: a classifier cannot learn those."""
    seen = {label for found in labels.values() for label in found}
    if absent := [name for index, name in enumerate(classes) if index and index not in seen]:
        raise InputError(
            f"{os.fspath(source)}: no image of {', '.join(absent)} among the {len(labels)} to train on; "
            "leave such classes out of dataset.classes"
        )


class LabelledImages:
    """A classifier's input: images resized as Caffe's ``ImageData`` does, with their labels.

    Args:
        images: image name -> its file.
        labels: image name -> class indices, 1 to C−1.
        num_classes: C, background included.
        size: rows and columns of the result.
        mirror: flip the image on a coin.
    """

    def __init__(
        self,
        images: Mapping[str, Path],
        labels: Mapping[str, Sequence[int]],
        *,
        num_classes: int,
        size: int = 321,
        mirror: bool = False,
    ) -> None:
        self.names = list(images)
        self.num_classes, self.size, self.mirror = num_classes, size, mirror
        self._paths = [os.fspath(path) for path in images.values()]
        self._labels = [np.asarray(labels[name], np.int64) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def item(self, index: int, rng: np.random.Generator) -> Item:
        """``images`` float32 (3, size, size) and ``labels`` float32 (C−1,), which has no background."""
        image = resize_bilinear_u8(read_image_bgr(self._paths[index]), self.size, self.size)
        images = subtract_mean(image, CLASSIFIER_MEAN_BGR)
        if self.mirror and rng.integers(2):
            images = images[:, :, ::-1]
        return {"images": tensor(images), "labels": tensor(present(self._labels[index], self.num_classes))}


def present(labels: Sequence[int] | np.ndarray, num_classes: int) -> np.ndarray:
    """Class indices 1 to C−1 as float32 (C−1,) of 0 and 1."""
    vector = np.zeros(num_classes - 1, np.float32)
    vector[np.asarray(labels, np.int64) - 1] = 1
    return vector


def _checked(path: Path, found: Labels, num_classes: int) -> Labels:
    for name, labels in found.items():
        if beyond := [label for label in labels if not 1 <= label < num_classes]:
            raise InputError(f"{path}: image {name} has class {beyond[0]}; expected 1 to {num_classes - 1}")
    return {name: sorted(set(labels)) for name, labels in found.items()}


def _read_voc_annotations(folder: Path, indices: Mapping[str, int]) -> Labels:
    """Every object counts, those marked difficult or truncated, too, whatever name space the file puts them in."""
    found: Labels = {}
    for path in sorted(folder.glob("[!.]*.xml")):
        root = read_xml(path)
        names = {(entry.findtext("{*}name") or "").strip() for entry in root.findall(".//{*}object")}
        found[path.stem] = sorted(class_of(name, indices, str(path)) for name in names)
    return found


def _read_voc_lists(folder: Path, indices: Mapping[str, int]) -> Labels:
    """``<class>_<set>.txt`` of any set: ``name 1`` is present, ``0`` present but difficult, ``-1`` absent."""
    found: dict[str, set[int]] = {}
    for class_name, index in indices.items():
        lists = sorted(folder.glob(f"{class_name}_*.txt"))
        if not lists:
            raise InputError(
                f"{folder}: no list {class_name}_<set>.txt, no *.xml and no line of YOLO's; VOC's ImageSets/Main or "
                "Annotations or a folder of YOLO's labels expected"
            )
        for path in lists:
            for number, line in enumerate(read_text(path, "'<image> -1|0|1'").splitlines(), start=1):
                fields = line.split()
                if not fields:
                    continue
                if len(fields) != 2 or fields[1] not in ("-1", "0", "1"):
                    raise InputError(f"{path}:{number}: {line.strip()!r}; expected '<image> -1|0|1'")
                labels = found.setdefault(fields[0], set())
                if fields[1] != "-1":
                    labels.add(index)
    return {name: sorted(labels) for name, labels in found.items()}


def _read_text_labels(
    path: Path, indices: Mapping[str, int], num_classes: int, first_class: int | None
) -> Labels:
    """An image may have several lines: its labels are those of all of them."""
    rows = list(_rows(path))
    head = [field.lower() for field in rows[0][1][:2]] if rows else []
    if head[:1] in ([""], ["unnamed: 0"]) and head[1:] and head[1] in _HEADERS:  # pandas' index
        rows = [(number, row[1:]) for number, row in rows]
    if table := _one_hot(path, rows, indices):
        return table
    rows = _columns(rows, indices)
    words: dict[str, list[str]] = {}
    places: dict[str, tuple[str, str]] = {}  # by name: the file as it is named first, and the last line
    for number, row in rows:
        file_name, *cells = [field for field in row if field] or [""]
        names = [word for cell in cells for word in names_in(cell, indices)]
        where = f"{path}:{number}"
        if number == rows[0][0] and file_name.lower() in _HEADERS and not set(names) & indices.keys():
            continue  # a line of headings
        name = image_name(file_name)
        if places.setdefault(name, (file_name, where))[0] != file_name:
            raise InputError(f"{where}: {places[name][0]} and {file_name} would share their labels and cues")
        if not names:
            raise InputError(f"{where}: {file_name} has no label, one class or more expected")
        words.setdefault(name, []).extend(names)
        places[name] = file_name, where
        if not _numeric(names, indices):
            if number == rows[0][0]:
                _check_first(row, names, indices, where)
            for label in names:
                class_of(label, indices, where)
    if not words:
        raise InputError(f"{path}: the list is empty; expected lines of '<image> <class> …'")
    if not any(_numeric(names, indices) for names in words.values()):
        return {
            name: sorted({class_of(label, indices, places[name][1]) for label in names})
            for name, names in words.items()
        }
    for name, names in words.items():
        if not _numeric(names, indices):
            raise InputError(f"{places[name][1]}: {names[0]!r}; expected class indices as in other lines")
    numbers = {name: np.array([int(label) for label in names]) for name, names in words.items()}
    return labels_of_numbers(os.fspath(path), numbers, num_classes, first_class)


def _check_first(row: Sequence[str], names: Sequence[str], indices: Mapping[str, int], where: str) -> None:
    """Raise InputError for a first line without any class that may name the columns in words that are not known."""
    first = row[0].lower()
    if not set(names) & indices.keys() and image_name(first) == first and first not in ("", *_HEADERS):
        raise InputError(
            f"{where}: {', '.join(row)!r}: {names[0]!r} is not one of the classes {', '.join(indices)}"
            f"{hint(names[0], indices)}; if this line names the columns, it should say image and class"
        )


def _columns(rows: list[tuple[int, list[str]]], indices: Mapping[str, int]) -> list[tuple[int, list[str]]]:
    """The lines of a table of three columns or more reduced to the image and its classes, where the first line names
    both; as they are where it does not, and where other columns hold classes, too."""
    head = [cell.lower() for cell in rows[0][1]] if rows else []
    images = [head.index(name) for name in _HEADERS if name in head]
    classes = [at for at, name in enumerate(head) if name in _LABEL_HEADERS]
    if len(head) < 3 or not images or not classes or any(len(row) != len(head) for _, row in rows):
        return rows
    kept = (images[0], *classes)
    if any(cell in indices for _, row in rows for at, cell in enumerate(row) if at not in kept):
        return rows
    return [(number, [row[at] for at in kept]) for number, row in rows]


def _numeric(names: Sequence[str], indices: Mapping[str, int]) -> bool:
    return all(re.fullmatch(r"[0-9]{1,6}", name) and name not in indices for name in names)


_NUMBERS = r"(?:0|-1|false|(1|true))(?:[.,]0+)?"
_MARK = re.compile(rf"{_NUMBERS}|f|no|n|-|(t|yes|y|x|✓|✔|✅)", re.IGNORECASE)


def _mark(cell: str, class_name: str) -> bool | None:
    """What a cell says of its class: 1, yes, a mark or the class's name; 0 (also -1), no. None for anything else."""
    match = _MARK.fullmatch(cell)
    return True if cell == class_name else None if match is None else any(match.groups())


def _one_hot(path: Path, rows: Sequence[tuple[int, list[str]]], indices: Mapping[str, int]) -> Labels | None:
    """A table with a column for each class and the classes in its first line; None for another file.

    Cells say yes or no; an empty one says no where no cell of the table says it otherwise.
    """
    if len(rows) < 2:
        return None
    (head_line, (heading, *names)), (_, first) = rows[0], rows[1]
    if not names or len(first) != len(names) + 1 or _numeric(names, indices):
        return None  # without a line of names they are vectors
    # in whatever language the first cell is: below a line of classes stand marks
    is_head = all(name in indices or name == "background" for name in names) and (
        heading.lower() in ("", *_HEADERS) or _holds_marks(rows[1:], indices)
    )
    if not is_head and not all(re.fullmatch(_NUMBERS, cell, re.IGNORECASE) for cell in first[1:]):
        return None
    where = f"{path}:{head_line}"
    _check_first(rows[0][1], names, {"background": 0, **indices}, where)
    columns = [0 if name == "background" else class_of(name, indices, where) for name in names]
    if len(set(columns)) < len(columns):
        raise InputError(f"{where}: a class that comes twice, a column for each expected")
    found: Labels = {}
    empty: tuple[int, str] | None = None  # the first line with an empty cell, and that one's class
    says_no = False
    for number, (file_name, *cells) in rows[1:]:
        where = f"{path}:{number}"
        name = image_name(file_name)
        if not name or name in found:
            raise InputError(f"{where}: image {file_name!r} is empty or comes again; expected each once")
        if len(cells) != len(columns):
            raise InputError(
                f"{where}: {len(cells)} cells after the image; expected {len(columns)} of 0 or 1"
            )
        found[name] = []
        for cell, class_name, index in zip(cells, names, columns, strict=True):
            mark = _mark(cell, class_name) if cell else False
            if mark is None:
                raise InputError(f"{where}: {cell[:80]!r} for {class_name}; expected 0 or 1 (yes or no)")
            says_no |= bool(cell) and not mark
            if not cell and empty is None:
                empty = number, class_name
            if mark and index:
                found[name].append(index)
        found[name].sort()
    if empty and says_no:
        raise InputError(
            f"{path}:{empty[0]}: an empty cell for {empty[1]}; expected 0 or 1 as in other cells"
        )
    return found


def _holds_marks(rows: Sequence[tuple[int, list[str]]], indices: Mapping[str, int]) -> bool:
    """Whether lines have marks and empty cells behind the image, and nothing else."""
    cells = [cell for _, row in rows for cell in row[1:] if cell]
    return bool(cells) and all(_MARK.fullmatch(cell) and cell not in indices for cell in cells)


_LONGEST_LINE = 100_000  # Python's csv takes fields of 131072 letters


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and fields of the lines that have any."""
    lines = read_text(path, "'<image> <class> …'").splitlines()
    if path.suffix in _TABLES:
        if long := next((number for number, line in enumerate(lines, 1) if len(line) > _LONGEST_LINE), 0):
            raise InputError(
                f"{path}:{long}: more than {_LONGEST_LINE} letters, an image and its classes expected"
            )
        separator = _separator(next((line for line in lines if line.strip()), ""))
        rows = [_csv_fields(line, separator) for line in lines]
    else:
        rows = [line.split() for line in lines]
    for number, row in enumerate(rows, start=1):
        if any(field.strip() for field in row):
            yield number, [field.strip() for field in row]


def _separator(first: str) -> str:
    """What stands between the cells, by the first line: a semicolon or tab that no image's name holds, or a comma."""
    before = first.split(",")[0].strip('" ')
    if image_name(before) == before:  # no whole file name stands before the first comma
        for separator in ";\t":
            if separator in first:
                return separator
    return ","


def _csv_fields(line: str, separator: str) -> list[str]:
    """One line's fields: neither names nor classes hold line ends, so a quote without its partner is a letter."""
    if line.count('"') % 2:
        return line.replace('"', "").split(separator)
    return next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
