"""A recording of Caffe's blobs, as ``tools/record_blobs.py`` writes it.

An HDF5 file. Its names are those of Caffe, with ``%2F`` for a slash and ``%25`` for a percent sign:

===========================  ============================================================================
``prototxt``, ``phase``      the net's text, and TRAIN or TEST
``inputs/<blob>``            what was put into the net, float32
``blobs/<blob>``             every blob as the forward pass leaves it
``top_diff/<blob>``          after a backward pass: what was written into each output before it; a loss keeps its weight
``input_diff/<blob>``        the gradients of the inputs
``param_diff/<layer>/<i>``   the gradients of the parameters, in Caffe's blob order
===========================  ============================================================================

Only ``blobs`` must be there. In place of ``inputs`` there may be ``image_bgr``, uint8 (H, W, 3).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import h5py
import numpy as np

from repro.data.images import subtract_mean
from repro.errors import InputError
from weights_conversion import guard

_GROUPS = ("inputs", "blobs", "top_diff", "input_diff", "param_diff")


@dataclass(frozen=True)
class Recording:
    """A recording's content; arrays are float32, by blob name. ``param_diff`` has the keys ``layer/index``."""

    blobs: Mapping[str, np.ndarray]
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    top_diff: Mapping[str, np.ndarray] = field(default_factory=dict)
    input_diff: Mapping[str, np.ndarray] = field(default_factory=dict)
    param_diff: Mapping[str, np.ndarray] = field(default_factory=dict)
    prototxt: str = ""
    phase: str = "TEST"
    path: str = "the recording"


def read_recording(source: str | os.PathLike[str] | h5py.Group) -> Recording:
    """A recording from its file, or from an open file's group in the same layout (the phase may be its attribute).

    Raises:
        InputError: a damaged file, one without ``blobs``, or arrays that are no numbers.
    """
    if isinstance(source, h5py.Group):
        path = f"{source.file.filename}:{source.name}"
        arrays, texts = _of_group(source)
    else:
        path = os.fspath(source)
        arrays, texts = _of_file(path)
    parts: dict[str, dict[str, np.ndarray]] = {group: {} for group in _GROUPS}
    for name, values in arrays.items():
        group, _, blob = name.partition("/")
        if group in parts and blob:
            key = blob.replace("%2F", "/").replace("%25", "%")
            with np.errstate(over="ignore"):  # a double beyond float32 becomes inf
                parts[group][key] = np.asarray(values, dtype=np.float32)
    if not parts["blobs"]:
        raise InputError(f"{path}: blobs: missing; expected a recording as tools/record_blobs.py writes it")
    if not parts["inputs"] and "image_bgr" in arrays:
        image = arrays["image_bgr"]
        if image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"{path}: image_bgr: shape {image.shape}, expected (H, W, 3)")
        parts["inputs"]["images"] = subtract_mean(image)[None]
    phase = texts.get("phase", "TEST")
    if phase not in ("TRAIN", "TEST"):
        raise InputError(f"{path}: phase: {phase!r}, expected TRAIN or TEST")
    return Recording(**parts, prototxt=texts.get("prototxt", ""), phase=phase, path=path)


def _of_file(path: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    content = guard.read_hdf5(path, wanted=[*_GROUPS, "image_bgr", "prototxt", "phase"], packed=True)
    arrays, texts = {}, {}
    for name, array in content.arrays.items():
        if array.text is not None:
            texts[name.removeprefix("/")] = array.text
        elif array.values is None:
            raise InputError(f"{path}: {name}: {array.dtype} of shape {array.shape}, expected numbers")
        else:
            arrays[name.removeprefix("/")] = array.values
    return arrays, texts


def _of_group(group: h5py.Group) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    texts = {name: value for name in ("prototxt", "phase") if isinstance(value := group.attrs.get(name), str)}
    return {
        name: values for part in (*_GROUPS, "image_bgr") for name, values in _datasets(group, part)
    }, texts


def _datasets(group: h5py.Group, name: str) -> Iterator[tuple[str, np.ndarray]]:
    member = group.get(name)
    if isinstance(member, h5py.Group):
        for inner in member:
            yield from _datasets(group, f"{name}/{inner}")
    elif member is not None:
        yield name, np.asarray(member[()])
