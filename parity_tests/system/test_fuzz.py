"""The short form of ``python -m parity_tests.fuzz``, which says what is asked of every reader."""

from __future__ import annotations

import os

import pytest

from parity_tests import fuzz


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")


def test_mutated_files_are_read_or_refused():
    assert fuzz.run(4 * len(fuzz.SOURCES), seed=0, timed=False) == []


@pytest.mark.long
def test_many_mutated_files():
    assert fuzz.run(20_000, seed=1, timed=False) == []


def test_every_kind_of_file_is_mutated():
    names = [name for name, _ in fuzz.files(0, 2 * len(fuzz.SOURCES), seed=0)]
    assert set(names) == set(fuzz.SOURCES)
    changed = [content != fuzz.SOURCES[name]() for name, content in fuzz.files(0, len(fuzz.SOURCES), seed=0)]
    assert sum(changed) > len(changed) / 2
