"""Image-level labels that are dicts: of image name to class indices, to a vector of 0 and 1, or to class names.

    cls_labels.npy  (SEAM, IRN, MCTformer, ToCo)  name, or whole number -> vector of 0 and 1
    im_tags.pkl     (SGAN)                        name -> class indices

Vectors tell by their length whether they count background. Indices do not: ``5`` may be class 5 of those that begin
with background, or the sixth object class. What proves it is said in `first_index`; where nothing does, the reader
asks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import numpy as np

from repro.data.class_names import class_of, names_in
from repro.data.image_list import image_name
from repro.errors import InputError
from weights_conversion import guard

PathLike = str | os.PathLike[str]


EXPECTED = "a dict of image name to class indices, to a vector of 0 and 1 or to class names"


def labels_of_dict(
    path: PathLike, content: guard.Content, indices: Mapping[str, int], first_class: int | None
) -> dict[str, list[int]]:
    """The labels of a pickle, or ``.npy`` of one: class names where any image has them, else numbers.

    Args:
        content: image name -> the names of its classes, their indices, or a vector of 0 and 1. Keys may be whole
            numbers; 2007000032 is VOC's 2007_000032.
        indices: class name -> index, from 1 on.
        first_class: as for `labels_of_numbers`.

    Raises InputError for an empty dict, an image that has two keys, a name that is none of the classes, and as
    `labels_of_numbers`.
    """
    found = _by_image(path, content)
    if all(array.texts is None for array in found.values()):
        numbers = {name: array.values for name, array in found.items() if array.values is not None}
        return labels_of_numbers(os.fspath(path), numbers, len(indices) + 1, first_class)
    labels: dict[str, list[int]] = {}
    for name, array in found.items():
        where = f"{os.fspath(path)}: image {name}"
        if array.texts is None and array.values is not None and array.values.size:
            raise InputError(f"{where}: numbers; expected class names as for other images")
        labels[name] = sorted(
            {
                class_of(each, indices, where)
                for text in array.texts or ()
                for each in names_in(text.strip(), indices)
            }
        )
    return labels


def _by_image(path: PathLike, content: guard.Content) -> dict[str, guard.Array]:
    name = os.fspath(path)
    found: dict[str, guard.Array] = {}
    for key, array in content.arrays.items():
        image = image_name(key)
        if content.attributes.get("keys") == "int" and re.fullmatch(r"20(0[789]|1[012])[0-9]{6}", key):
            image = f"{key[:4]}_{key[4:]}"
        if not image or image in found:
            raise InputError(f"{name}: key {key[:80]!r}: image {image!r} comes again; expected each once")
        found[image] = array
    if not found:
        raise InputError(f"{name}: an empty dict, {EXPECTED} expected")
    return found


def labels_of_numbers(
    name: str, found: Mapping[str, np.ndarray], num_classes: int, first_class: int | None
) -> dict[str, list[int]]:
    """Class indices 1 to C−1 of each image, rising.

    Args:
        name: of the file, for messages.
        found: image name -> class indices, or a vector of 0 and 1, of C−1 values or (with background) of C; the
            same kind for all.
        num_classes: C, background included.
        first_class: the index that the first class after background has, 0 or 1; None where the file tells.

    Raises InputError for numbers that are neither, and for indices that may count background or not.

    Example:
        >>> vectors = {"a": np.array([0.0, 1.0, 1.0]), "b": np.array([1.0, 0.0, 0.0])}
        >>> labels_of_numbers("cls_labels.npy", vectors, num_classes=4, first_class=None)
        {'a': [2, 3], 'b': [1]}
        >>> labels_of_numbers("tags.pkl", {"a": np.array([1, 3])}, num_classes=4, first_class=None)
        {'a': [1, 3]}
    """
    for image, values in found.items():
        if values.ndim != 1 or not np.isfinite(values).all() or (values != np.floor(values)).any():
            shape = f" of shape {values.shape}" if values.ndim != 1 else ""
            raise InputError(f"{name}: image {image}: {values.dtype}{shape}, a row of whole numbers expected")
    rows = list(found.values())
    length = len(rows[0])
    alike = all(len(row) == length and ((row == 0) | (row == 1)).all() for row in rows)
    if alike and length in (num_classes - 1, num_classes):
        # rows of whole numbers that rise, as (0, 1) does, may be each image's indices as well
        rising = length > 1 and all(row.dtype.kind in "iu" and (np.diff(row) > 0).all() for row in rows)
        if not rising:
            return {image: _classes(row[length - num_classes + 1 :]) for image, row in found.items()}
        if first_class is None:
            raise InputError(f"{name}: {_QUESTION.format('indices from vectors of 0 and 1')}")
    elif any(row.dtype.kind == "b" for row in rows) or (
        alike and any(len(set(row.tolist())) < length for row in rows)
    ):
        raise InputError(
            f"{name}: image {next(iter(found))}: a vector of {length} values; expected {num_classes - 1} or "
            f"(with background) {num_classes} for the {num_classes} classes"
        )
    elif (
        length in (num_classes - 1, num_classes)
        and all(len(row) == length for row in rows)
        and any(len(set(row.tolist())) < length for row in rows)  # no image has a class twice
    ):
        image, above = next(
            (image, row.max()) for image, row in found.items() if ((row != 0) & (row != 1)).any()
        )
        raise InputError(
            f"{name}: image {image}: a vector of {length} values with {above:g} in it; expected 0 and 1 (not counts)"
        )
    first = first_index(name, found, num_classes) if first_class is None else first_class
    labels = {}
    for image, row in found.items():
        # where 0 is background it is no label
        indices = sorted({int(value) for value in row.tolist() if first == 0 or value != 0})
        if indices and not first <= indices[0] <= indices[-1] <= num_classes - 2 + first:
            wrong = indices[0] if indices[0] < first else indices[-1]
            raise InputError(
                f"{name}: image {image} has index {wrong}; expected {first} to {num_classes - 2 + first} for the "
                f"{num_classes} classes"
            )
        labels[image] = [index + 1 - first for index in indices]
    return labels


def _classes(vector: np.ndarray) -> list[int]:
    return [int(index) + 1 for index in np.flatnonzero(vector)]


_QUESTION = (
    "cannot tell {}; say which index the first class after background has: "
    "repro data labels FILE labels.csv --first-class 0 (or 1), first_class= in Python"
)


def first_index(name: str, found: Mapping[str, np.ndarray], num_classes: int) -> int:
    """0 where indices count the object classes alone, 1 where 0 is background.

    C−1 occurs only where background counts. That it does not count is told by all of 0 to C−2 occurring, 0 not with
    every image: else the last class would have no image, while background, which nearly every image shows, would be
    missing in some. Anything less may be either.
    """
    labelled = [set(values.tolist()) for values in found.values() if len(values)]
    seen = set().union(*labelled)
    if num_classes - 1 in seen:
        return 1
    if seen == set(range(num_classes - 1)) and not all(0 in values for values in labelled):
        return 0
    if seen and (min(seen) < 0 or max(seen) >= num_classes):
        wrong = min(seen) if min(seen) < 0 else max(seen)
        raise InputError(
            f"{name}: index {int(wrong)}; expected 0 to {num_classes - 1} for the {num_classes} classes"
        )
    raise InputError(f"{name}: {_QUESTION.format('whether its indices count background')}")
