"""Images that are made once and kept: a bounded, memory-mapped store that the loader's workers share."""

from __future__ import annotations

import contextlib
import logging
import math
import mmap
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

log = logging.getLogger(__name__)


class KeptImages:
    """Up to ``count`` uint8 images of one ``shape``, as many as ``limit`` bytes hold; the others are made each time.

    They lie in a temporary file without a name (in ``$TMPDIR``), which the system keeps in memory as far as there is
    room and which is gone with the process. So nothing can be out of date, and a machine that is short of memory reads
    from disk what it would have had to decode. Processes forked from this one share it; one that was sent a copy by
    other means has an empty store of its own.

    Args:
        count: of images.
        shape: of each.
        limit: bytes that the store may take.
    """

    def __init__(self, count: int, shape: tuple[int, ...], limit: int) -> None:
        self.shape = shape
        self._size = math.prod(shape)
        self._given = (count, shape, limit)
        self.kept = min(count, limit // self._size)
        if not self.kept:
            return
        try:
            with tempfile.TemporaryFile(prefix="repro-images-") as file:
                _reserve(file.fileno(), self.kept * self._size)
                self._images = np.frombuffer(mmap.mmap(file.fileno(), self.kept * self._size), np.uint8)
        except OSError as error:
            log.warning(
                "no room for %.1f GB of decoded images in %s (%s): each is decoded every time it comes up",
                self.kept * self._size / 1e9,
                tempfile.gettempdir(),
                error.strerror,
            )
            self.kept = 0
            return
        self._is_there = np.frombuffer(mmap.mmap(-1, self.kept), np.uint8)
        self._lock = multiprocessing.Lock()  # orders a slot's pixels before its mark, on every processor

    def get(self, index: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Image ``index``: the kept one, not to be written to, or else what ``make`` gives, which is kept then.

        Two processes that miss the same image both make it, and write the same bytes.
        """
        if index >= self.kept:
            return make()
        slot = self._images[index * self._size : (index + 1) * self._size].reshape(self.shape)
        with self._lock:
            is_there = bool(self._is_there[index])
        if not is_there:
            slot[:] = make()
            with self._lock:
                self._is_there[index] = 1
        slot.flags.writeable = False
        return slot

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptImages, self._given


def _reserve(descriptor: int, size: int) -> None:
    """Give the file its blocks now: a disk that fills up later would end the process while it writes to the map."""
    os.truncate(descriptor, size)
    if hasattr(os, "posix_fallocate"):
        with contextlib.suppress(NotImplementedError):
            os.posix_fallocate(descriptor, 0, size)
