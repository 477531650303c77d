"""The store of decoded images: what is kept, in which processes, and what happens without room."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import pytest

from repro.data.image_cache import KeptImages

SHAPE = (3, 5, 3)


def image(index: int) -> np.ndarray:
    return np.full(SHAPE, index + 1, np.uint8)


class Maker:
    def __init__(self) -> None:
        self.made: list[int] = []

    def get(self, store: KeptImages, index: int) -> np.ndarray:
        def make() -> np.ndarray:
            self.made.append(index)
            return image(index)

        return store.get(index, make)


def test_an_image_is_made_once():
    store, maker = KeptImages(4, SHAPE, 10**6), Maker()
    for index in (2, 0, 2, 2, 3, 0):
        np.testing.assert_array_equal(maker.get(store, index), image(index))
    assert maker.made == [2, 0, 3]
    with pytest.raises(ValueError, match="read-only"):
        maker.get(store, 2)[0] = 0


def test_what_does_not_fit_is_made_each_time():
    store, maker = KeptImages(4, SHAPE, 2 * 45 + 44), Maker()
    for index in (0, 1, 2, 3, 0, 1, 2, 3):
        np.testing.assert_array_equal(maker.get(store, index), image(index))
    assert maker.made == [0, 1, 2, 3, 2, 3]


def fill(store: KeptImages, index: int) -> None:
    store.get(index, lambda: image(index))


def test_forked_processes_share_it():
    store, maker = KeptImages(3, SHAPE, 10**6), Maker()
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=fill, args=(store, index)) for index in (0, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    for index in range(3):
        np.testing.assert_array_equal(maker.get(store, index), image(index))
    assert maker.made == [1]


def test_a_copy_by_pickle_starts_empty():
    store, maker = KeptImages(2, SHAPE, 10**6), Maker()
    maker.get(store, 0)
    maker.get(pickle.loads(pickle.dumps(store)), 0)
    assert maker.made == [0, 0]


def test_without_room_nothing_is_kept(monkeypatch, caplog):
    def full(descriptor, offset, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    store, maker = KeptImages(2, SHAPE, 10**6), Maker()
    assert "No space left on device" in caplog.text
    for _ in range(2):
        np.testing.assert_array_equal(maker.get(store, 0), image(0))
    assert maker.made == [0, 0]
