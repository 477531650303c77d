"""A loader worker that dies, wherever the main thread is: StoppedError when the next batch is asked for."""

from __future__ import annotations

import multiprocessing
import multiprocessing.queues
import os
import signal
import time

import pytest
import torch

from repro.data.sampler import make_loader
from repro.errors import StoppedError


class Numbered:
    """A data layer whose items tell the process that made them."""

    def __len__(self):
        return 8

    def item(self, index, rng):
        return {"images": torch.zeros(1), "process": os.getpid()}


def killed(process):
    """Kill it and wait for its end, which is left to be noticed by others."""
    os.kill(process, signal.SIGKILL)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_is_told_at_the_next_batch(workers):
    """PyTorch's handler would raise in the sleep, or wherever the main thread is."""
    batches = iter(make_loader(Numbered(), 1, shuffle=False, seed=0, workers=workers))
    first = next(batches)
    killed(int(first["process"]))
    time.sleep(0.1)
    with pytest.raises(StoppedError, match=r"a loader worker has died \(killed by SIGKILL\)"):
        next(batches)


@pytest.mark.parametrize("is_reaped", [True, False])
def test_a_worker_that_dies_while_a_batch_is_fetched(monkeypatch, is_reaped):
    """The batch is in the queue, and what is missing is the descriptor that the worker was to hand over."""
    batches = iter(make_loader(Numbered(), 1, shuffle=False, seed=0, workers=1))
    process = int(next(batches)["process"])
    get = multiprocessing.queues.Queue.get

    def get_after(queue, *arguments, **named):
        killed(process)
        if is_reaped:
            multiprocessing.active_children()
        return get(queue, *arguments, **named)

    time.sleep(0.1)  # for a batch to be in the queue; without one it is told as well
    monkeypatch.setattr(multiprocessing.queues.Queue, "get", get_after)
    with pytest.raises(StoppedError, match=r"a loader worker has died \(killed by SIGKILL\)"):
        next(batches)


def test_a_worker_that_dies_while_workers_are_started(monkeypatch):
    def start(process):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start)
    with pytest.raises(StoppedError, match="a loader worker has died"):
        next(iter(make_loader(Numbered(), 1, shuffle=False, seed=0, workers=1)))


def test_an_error_of_a_layer_is_no_death():
    class Broken(Numbered):
        def item(self, index, rng):
            raise ConnectionRefusedError("of its own")

    with pytest.raises(ConnectionRefusedError, match="of its own"):
        next(iter(make_loader(Broken(), 1, shuffle=False, seed=0, workers=1)))
