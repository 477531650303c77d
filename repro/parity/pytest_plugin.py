"""Fixtures for holding a net of your own to a recording of Caffe's blobs.

Name the plugin in your ``conftest.py``: ``pytest_plugins = ["repro.parity.pytest_plugin"]``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from repro.constants import TOLERANCE
from repro.parity import Recording, first_difference, read_recording
from repro.parity.recorded import Net


@pytest.fixture
def caffe_recording(request: pytest.FixtureRequest) -> Callable[[str | os.PathLike[str]], Recording]:
    """``caffe_recording("net.h5")`` reads a recording; the path counts from the folder of the test's file."""
    folder = request.path.parent

    def read(path: str | os.PathLike[str]) -> Recording:
        return read_recording(folder / Path(path))

    return read


@pytest.fixture
def assert_same_as_caffe() -> Callable[..., None]:
    """``assert_same_as_caffe(net, recording)`` fails with the first blob that differs, and the table of all.

    Arguments as for :func:`repro.parity.first_difference`.
    """

    def check(net: Net, recording: Recording, *, tolerance: float = TOLERANCE, partial: bool = False) -> None:
        __tracebackhide__ = True
        difference = first_difference(net, recording, tolerance=tolerance, partial=partial)
        if difference is not None:
            raise AssertionError(f"{difference}\n{difference.table}")

    return check
