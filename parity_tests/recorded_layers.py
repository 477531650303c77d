"""The recordings of golden/layers_caffe.h5: their names, and the parameters in them."""

from __future__ import annotations

from collections.abc import Iterator

import h5py
import numpy as np

from parity_tests.conftest import GOLDEN

OWN_STATISTICS = ("BatchNorm/train",)


def recordings() -> list[str]:
    """``type/setting`` of every recording."""
    with h5py.File(GOLDEN / "layers_caffe.h5", "r") as file:
        return [f"{kind}/{setting}" for kind in file for setting in file[kind]]


def in_test_phase() -> list[str]:
    """The recordings that ONNX can follow: not the batch's own statistics, and no net without an output."""
    with h5py.File(GOLDEN / "layers_caffe.h5", "r") as file:
        return [
            name
            for name in recordings()
            if file[name].attrs["phase"] == "TEST" and name not in OWN_STATISTICS
        ]


def parameters(recorded: h5py.Group, group: str) -> Iterator[tuple[str, int, np.ndarray]]:
    """Layer, index and values of each array of ``params`` or ``params_after``."""
    for layer, blobs in recorded.get(group, {}).items():
        for index, values in blobs.items():
            yield layer, int(index), np.asarray(values[()])
