"""Several processes as one run: what ``torchrun`` starts, over torch.distributed's default group.

Every function does the obvious thing in a lone process, so that callers need no second way. Each process has a
*rank* from 0; rank 0 is the first, which alone writes what the ranks share. Tensors on a CUDA device travel by NCCL,
everything else by gloo.

A collective call whose other side has died raises ``StoppedError``.

The command line asks this module, too, and ``repro --help`` must not wait for torch: it is imported where it is used.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from repro.errors import InputError, StoppedError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

# The longest that one rank may keep the others waiting: hashing a data set, the slowest share of a prediction. A rank
# that dies is noticed at once, by its connection or by torchrun; this is for a machine that falls silent.
_PATIENCE = datetime.timedelta(hours=2)


def _group() -> ModuleType | None:
    """torch.distributed once this process has joined others, None before."""
    dist = sys.modules.get("torch.distributed")  # a process that has not loaded it has not joined
    return dist if dist is not None and dist.is_initialized() else None


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Leave the other processes at the end of the block, if it has joined them."""
    try:
        yield
    finally:
        if dist := _group():
            dist.destroy_process_group()


def join() -> None:
    """Become one of the processes that ``torchrun`` has started; a process that it did not start stays alone.

    Raises InputError for an environment that torch.distributed cannot start from.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _group():
        return
    import torch
    import torch.distributed as dist

    try:
        if torch.cuda.is_available():
            dist.init_process_group("cpu:gloo,cuda:nccl", timeout=_PATIENCE)
        else:
            dist.init_process_group("gloo", timeout=_PATIENCE)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: the processes do not find each other ({reason})"
        ) from None
    if not is_first():
        logging.getLogger().setLevel(logging.ERROR)  # what concerns all is said once


def rank() -> int:
    """This process's number, from 0."""
    dist = _group()
    return dist.get_rank() if dist else 0


def size() -> int:
    """How many processes there are."""
    dist = _group()
    return dist.get_world_size() if dist else 1


def is_first() -> bool:
    """Whether this process writes what the processes share."""
    return rank() == 0


def local_rank() -> int:
    """This process's number among those on its machine: the index of its CUDA device."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _group() else 0


def share(count: int) -> slice:
    """This rank's part of ``count`` things in a row; parts differ by one at most."""
    return slice(rank() * count // size(), (rank() + 1) * count // size())


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over the ranks, in place; gives it back. Not differentiable. CUDA tensors are only queued."""
    if dist := _group():
        with others_may_end():
            dist.all_reduce(tensor)
    return tensor


def largest(number: int) -> int:
    """The largest of the ranks' numbers."""
    if not (dist := _group()):
        return number
    import torch

    tensor = torch.tensor(number)
    with others_may_end():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def take_from_first(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite the other ranks' tensors with those of the first."""
    if dist := _group():
        with others_may_end():
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)


def from_first(value: T) -> T:
    """What the first rank gave; every rank waits for it."""
    if not (dist := _group()):
        return value
    values: list[Any] = [value]
    with others_may_end():
        dist.broadcast_object_list(values, 0)
    return values[0]


def gathered(value: T) -> list[T]:
    """The values of all ranks, in their order."""
    if not (dist := _group()):
        return [value]
    values: list[Any] = [None] * size()
    with others_may_end():
        dist.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    """Go on when every rank has come here."""
    gathered(None)


@contextlib.contextmanager
def others_may_end() -> Iterator[None]:
    """Turn the errors of communication with a process that is gone into one ``StoppedError``."""
    try:
        yield
    except RuntimeError as error:
        dist = _group()
        if dist and (
            isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "NCCL"))
        ):
            raise StoppedError(f"another of the {size()} processes of this run has ended") from error
        raise
