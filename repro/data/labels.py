"""Image-level labels, from whatever form a data set has them in, and the layer that feeds a classifier with them.

    VOC     a folder of XML annotations (``Annotations``), or of the lists ``<class>_<set>.txt`` (``ImageSets/Main``)
    COCO    ``instances_*.json``
    cues    the released cue file, with the list that names its images
    text    a line an image: ``name class class …``; with commas in ``.csv``, where names may hold spaces

Each gives image name (without folder and suffix) -> class indices, rising, background (0) not among them.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from repro.data.coco import CocoInstances
from repro.data.cues import HDF5_SUFFIXES, PICKLE_SUFFIXES, CueFile
from repro.data.datasets import Item, tensor
from repro.data.image_list import image_name, read_cue_indices, read_text
from repro.data.images import read_image_bgr, subtract_mean
from repro.data.voc_xml import read_xml
from repro.errors import InputError
from repro.files import write_text
from repro.layers.resize import resize_bilinear_u8

CLASSIFIER_MEAN_BGR = (104.008, 116.669, 122.675)
"""Mean of blue, green and red that SEC's classifiers subtract."""

_HEADERS = {"name", "image", "id", "file", "filename"}  # of a CSV's first column

PathLike = str | os.PathLike[str]
Labels = dict[str, list[int]]


def read_labels(source: PathLike, classes: Sequence[str], *, input_list: PathLike | None = None) -> Labels:
    """Read the labels of all images that ``source`` has some for; the form is told by what it is.

    Args:
        source: a folder of XML files or of VOC's class lists, or a file ``.json``, ``.csv``, ``.txt``, ``.h5``,
            ``.pickle``, ``.pickle.gz``.
        classes: all classes by name, background first.
        input_list: lines ``image index``, for a cue file.

    Raises:
        InputError: nothing of that kind there, no label at all, a damaged file, a label that is no class (naming
            file and place).
    """
    labels = _read_any(Path(source), classes, input_list)
    if not any(labels.values()):
        raise InputError(f"{os.fspath(source)}: no label of any class in it, for {len(labels)} images")
    return labels


def _read_any(path: Path, classes: Sequence[str], input_list: PathLike | None) -> Labels:
    indices = {name: index for index, name in enumerate(classes) if index}
    if path.is_dir():
        if next(path.glob("[!.]*.xml"), None):
            return _read_voc_annotations(path, indices)
        return _read_voc_lists(path, indices)
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder of labels")
    if path.suffix == ".json":
        return CocoInstances(path, classes).labels()
    if path.name.endswith((*HDF5_SUFFIXES, *PICKLE_SUFFIXES)):
        if input_list is None:
            raise InputError(
                f"{path}: a cue file knows its images by number; give the input_list.txt beside it, too"
            )
        file = CueFile.open(path)
        found = {name: file.labels(index).tolist() for name, index in read_cue_indices(input_list).items()}
        return _checked(path, found, len(classes))
    if path.suffix in (".csv", ".txt"):
        return _read_text_labels(path, indices)
    raise InputError(
        f"{path}: unknown kind of labels; expected .csv, .txt, COCO's .json, a cue file (.h5, .pickle), or a folder "
        "of VOC's annotations (*.xml) or class lists (<class>_<set>.txt)"
    )


def write_labels(path: PathLike, labels: Mapping[str, Sequence[int]], classes: Sequence[str]) -> None:
    """Write a CSV that `read_labels` reads, atomically; images without a label are left out.

    Raises InputError for another ending than ``.csv``.
    """
    if Path(path).suffix != ".csv":
        raise InputError(f"{os.fspath(path)}: expected a name that ends in .csv")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "classes"])
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
        mean: Sequence[float] = CLASSIFIER_MEAN_BGR,
    ) -> None:
        self.names = list(images)
        self.num_classes = num_classes
        self.size = size
        self.mirror = mirror
        self.mean = tuple(mean)
        self._paths = [os.fspath(path) for path in images.values()]
        self._labels = [np.asarray(labels[name], np.int64) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def item(self, index: int, rng: np.random.Generator) -> Item:
        """``images`` float32 (3, size, size) and ``labels`` float32 (C−1,), which has no background."""
        image = resize_bilinear_u8(read_image_bgr(self._paths[index]), self.size, self.size)
        images = subtract_mean(image, self.mean)
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
            raise InputError(f"{path}: image {name} has class {beyond[0]}, 1 to {num_classes - 1} expected")
    return {name: sorted(set(labels)) for name, labels in found.items()}


def _class_of(name: str, indices: Mapping[str, int], where: str) -> int:
    if name not in indices:
        raise InputError(f"{where}: {name!r} is not one of the classes {', '.join(indices)}")
    return indices[name]


def _read_voc_annotations(folder: Path, indices: Mapping[str, int]) -> Labels:
    """Every object counts, those marked difficult or truncated, too, whatever name space the file puts them in."""
    found: Labels = {}
    for path in sorted(folder.glob("[!.]*.xml")):
        root = read_xml(path)
        names = {(entry.findtext("{*}name") or "").strip() for entry in root.findall(".//{*}object")}
        found[path.stem] = sorted(_class_of(name, indices, str(path)) for name in names)
    return found


def _read_voc_lists(folder: Path, indices: Mapping[str, int]) -> Labels:
    """``<class>_<set>.txt`` of any set: ``name 1`` is present, ``0`` present but difficult, ``-1`` absent."""
    found: dict[str, set[int]] = {}
    for class_name, index in indices.items():
        lists = sorted(folder.glob(f"{class_name}_*.txt"))
        if not lists:
            raise InputError(
                f"{folder}: no list {class_name}_<set>.txt and no *.xml, VOC's ImageSets/Main or Annotations expected"
            )
        for path in lists:
            for number, line in enumerate(read_text(path, "'<image> -1|0|1'").splitlines(), start=1):
                fields = line.split()
                if not fields:
                    continue
                if len(fields) != 2 or fields[1] not in ("-1", "0", "1"):
                    raise InputError(f"{path}:{number}: {line.strip()!r}, '<image> -1|0|1' expected")
                labels = found.setdefault(fields[0], set())
                if fields[1] != "-1":
                    labels.add(index)
    return {name: sorted(labels) for name, labels in found.items()}


def _read_text_labels(path: Path, indices: Mapping[str, int]) -> Labels:
    """An image may have several lines: its labels are those of all of them."""
    found: Labels = {}
    files: dict[str, str] = {}
    for number, (file_name, *names) in _rows(path):
        where = f"{path}:{number}"
        if number == 1 and file_name.lower() in _HEADERS and not set(names) & indices.keys():
            continue
        name = image_name(file_name)
        if files.setdefault(name, file_name) != file_name:
            raise InputError(f"{where}: {files[name]} and {file_name} would share their labels and cues")
        if not names:
            raise InputError(f"{where}: {file_name} has no label, one class or more expected")
        labels = {_class_of(label, indices, where) for label in names}
        found[name] = sorted(labels.union(found.get(name, ())))
    if not found:
        raise InputError(f"{path}: the list is empty, lines of '<image> <class> …' expected")
    return found


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and non-empty fields."""
    text = read_text(path, "'<image> <class> …'")
    split = _csv_fields if path.suffix == ".csv" else str.split
    rows = ((number, split(line)) for number, line in enumerate(text.splitlines(), start=1))
    for number, row in rows:
        if fields := [field.strip() for field in row if field.strip()]:
            yield number, fields


def _csv_fields(line: str) -> list[str]:
    """One line's fields: neither names nor classes hold line ends, so a quote without its partner is a letter."""
    if line.count('"') % 2:
        return line.replace('"', "").split(",")
    return next(csv.reader([line], skipinitialspace=True), [])
