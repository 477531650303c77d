"""A function over many files, on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from repro.errors import InputError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_CHUNK = 16  # files handed over at once


def usable_cores() -> int:
    """Cores that this process may use, at least 1: a cluster's share of a machine is less than the machine."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def mapped(function: Callable[[ItemT], ResultT], items: Sequence[ItemT], title: str) -> Iterator[ResultT]:
    """``function`` of each item, in the items' order, with a bar; ``function`` must be picklable.

    Processes share the work, one a usable core; few items are done in this one. An exception of ``function`` comes out
    unchanged. Raises InputError when a worker dies (killed, or out of memory).
    """
    workers = min(usable_cores(), len(items) // _CHUNK)
    bar = tqdm(desc=title, total=len(items), unit="file", disable=None, dynamic_ncols=True)
    if workers < 2:
        with bar:
            for item in items:
                yield function(item)
                bar.update()
        return
    pool = ProcessPoolExecutor(workers)
    try:
        with bar:
            for result in pool.map(function, items, chunksize=_CHUNK):
                yield result
                bar.update()
    except BrokenProcessPool:
        raise InputError(f"{title}: a worker process was ended from outside (out of memory?)") from None
    finally:
        pool.shutdown(cancel_futures=True)
