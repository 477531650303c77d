"""Caffe's endless list order, and batches of it from any number of workers.

Caffe's data layers walk their list without end: shuffled at the start and after each pass, a batch running on
into the next pass where the list is used up. Here the place in that stream is a number, the *position* (batch
k of size n holds positions k·n to k·n + n − 1), and every random draw is a function of seed and position
alone. So the stream is the same for any number of workers, and a run resumes in it without replaying it.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from multiprocessing.connection import wait
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from repro.errors import InputError, StoppedError

# Second words of the generators' keys: they keep the two uses of one seed apart.
_ITEM_STREAM, _ORDER_STREAM = 0, 1


class ItemSource(Protocol):
    """What `make_loader` takes: `repro.data.datasets` has them."""

    def __len__(self) -> int: ...

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Any]: ...


def item_rng(seed: int, position: int) -> np.random.Generator:
    """The generator for the random draws of the item at ``position`` of the stream."""
    return _generator(seed, _ITEM_STREAM, position)


def _generator(seed: int, stream: int, number: int) -> np.random.Generator:
    # Philox is counter-based: the number sits in the second word, so each has 2^64 draws to itself.
    key = np.array([seed, stream], dtype=np.uint64)
    counter = np.array([0, number, 0, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def order_rng(seed: int, number: int) -> np.random.Generator:
    """The generator for the order of pass ``number`` through the list."""
    return _generator(seed, _ORDER_STREAM, number)


@lru_cache(maxsize=8)
def order(length: int, shuffle: bool, seed: int, number: int) -> np.ndarray:
    """The list's indices in the order of pass ``number`` through it."""
    return order_rng(seed, number).permutation(length) if shuffle else np.arange(length)


def index_at(position: int, length: int, shuffle: bool, seed: int) -> int:
    """The list's index at a position of the stream: a new order for each pass with ``shuffle``, else the list's own."""
    passes, place = divmod(position, length)
    return int(order(length, shuffle, seed, passes)[place])


class _Loader(DataLoader[Any]):
    """Batches as values, and a worker that has died as a StoppedError when the next batch is asked for."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:  # type: ignore[override]
        batches: Iterator[Any] | None = None
        while True:
            _refuse_dead(batches)
            try:
                if batches is None:
                    batches = super().__iter__()
                    _hold_back_dead_workers()
                batch = next(batches, None)
            except Exception as error:
                # The worker's end shows itself in many ways: PyTorch's RuntimeError, a file descriptor that it was
                # to hand over (ConnectionRefusedError, EOFError), a thread that pins memory and ended for that.
                _refuse_dead(batches, error)
                raise
            if batch is None:
                return
            if isinstance(batch, InputError):
                raise batch
            yield batch


def _refuse_dead(batches: Iterator[Any] | None, error: Exception | None = None) -> None:
    """Raise StoppedError when a worker of the loader has died; after an ``error`` it is given the time to do so."""
    workers = getattr(batches, "_workers", [])
    if error and workers:
        wait([worker.sentinel for worker in workers], timeout=1)
    for worker in workers:
        if worker.exitcode is not None:
            killed = worker.exitcode < 0
            how = (
                f"killed by {signal.Signals(-worker.exitcode).name}" if killed else f"exit {worker.exitcode}"
            )
            raise StoppedError(f"a loader worker has died ({how})") from error
    if isinstance(error, RuntimeError) and (
        told := re.match(r"DataLoader worker \(.*?\) (is killed by signal: \w+|exited)", str(error))
    ):  # while the workers were being started
        raise StoppedError(f"a loader worker has died ({told[0]})") from error


def _hold_back_dead_workers() -> None:
    """PyTorch raises wherever the main thread is when a worker dies: in the backward pass, in a snapshot.

    Held back, that ends a run where the run expects it: when it asks for the next batch, after a whole step.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    present = signal.getsignal(signal.SIGCHLD)
    raising = getattr(present, "held_back", present)

    def hold_back(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(RuntimeError):
            if callable(raising):
                raising(number, frame)

    hold_back.held_back = raising  # type: ignore[attr-defined]
    signal.signal(signal.SIGCHLD, hold_back)


def _leave_interrupts_alone(worker: int) -> None:
    """A terminal sends Ctrl-C to the workers as well; when to stop is their parent's decision."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Made(Dataset[Any]):
    """Batches that ``make`` gives, by number. Runs in the workers."""

    def __init__(self, make: Callable[[int], dict[str, torch.Tensor]], numbers: range) -> None:
        self.make, self.numbers = make, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor] | InputError:
        try:
            return self.make(self.numbers[index])
        except InputError as error:
            # Raised in a worker it would come out as a traceback in a message: it travels as a value.
            return error


def load_made(
    make: Callable[[int], dict[str, torch.Tensor]],
    numbers: range,
    *,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[dict[str, torch.Tensor]]:
    """A loader of what ``make`` gives for each of ``numbers``, in ``workers`` processes; errors as `make_loader`'s."""
    return _Loader(
        _Made(make, numbers),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_leave_interrupts_alone if workers else None,
        # A loader draws its workers' seed from this generator, by default from torch's global one, which would
        # make the dropout of a resumed run differ from that of an uninterrupted one.
        generator=torch.Generator(),
    )


def make_loader(
    layer: ItemSource,
    batch_size: int,
    shuffle: bool,
    seed: int,
    start_iteration: int = 0,
    iterations: int | None = None,
    share: slice = slice(None),
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[dict[str, torch.Tensor]]:
    """A loader of ``layer``'s items in batches: dicts of tensors with the batch first, ints as int64 (N,).

    The batches are a function of layer, batch size, shuffle and seed only; the other arguments cut a piece out of
    them, or share the work. The global random state of torch and NumPy is neither used nor moved.

    Args:
        shuffle: a new order for each pass; otherwise the list's own.
        seed: 0 to 2⁶⁴ − 1.
        start_iteration: the batch to begin with; the stream up to it is skipped, not drawn.
        iterations: how many batches to give; None for no end.
        share: the part of each batch to give, by place in it, where several processes divide the batches.
        workers: processes that share the work.

    Raises InputError for arguments out of range. While iterating: the layer's own InputError, unchanged, and
    StoppedError when a worker has died (killed for its memory, say).
    """
    for name, value, least in (
        ("length", len(layer), 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("start_iteration", start_iteration, 0),
        ("iterations", iterations or 0, 0),
        ("workers", workers, 0),
    ):
        if not least <= value < 2**64:
            raise InputError(f"{name}: {value}, a whole number of at least {least} expected")
    numbers = range(start_iteration, _NO_END if iterations is None else start_iteration + iterations)
    make = partial(_batch, layer, batch_size, shuffle, seed, share)
    return load_made(make, numbers, workers=workers, pin_memory=pin_memory)


_NO_END = 2**62


def _batch(
    layer: ItemSource, batch_size: int, shuffle: bool, seed: int, share: slice, number: int
) -> dict[str, torch.Tensor]:
    positions = range(number * batch_size, (number + 1) * batch_size)[share]
    indices = [index_at(position, len(layer), shuffle, seed) for position in positions]
    items = [layer.item(i, item_rng(seed, at)) for i, at in zip(indices, positions, strict=True)]
    batch: dict[str, torch.Tensor] = default_collate(items)
    return batch
