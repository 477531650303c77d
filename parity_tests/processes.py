"""Runs of the command line in processes of their own: killed at a chosen moment, or several as ranks of one run.

They are forked from a server that has imported everything, which saves most of a start, and in which the embedded set
is as small as in ``conftest.py``.
"""

from __future__ import annotations

import csv
import functools
import multiprocessing
import os
import pathlib
import random
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import parity_tests.conftest  # noqa: F401 - for what it does to the embedded set

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "repro.cli",
        "repro.run.reproduce",
        "repro.report",
        "repro.training.train_file",
        "parity_tests.processes",
        # what a run imports on its way: DistributedDataParallel the first, a report, a dense CRF and a flood the others
        "torch._dynamo",
        "repro.report.figures",
        "repro.layers.mean_field_cpu",
        "repro.layers.region_growing_numba",
    ]
)
_PACKAGES = tuple(f"{os.sep}{name}{os.sep}" for name in ("repro", "weights_conversion"))


def run_processes(
    arguments: Sequence[str],
    log: Path,
    *,
    ranks: int = 1,
    wound: tuple[str, int] | None = None,
    timeout: float = 600,
) -> list[int]:
    """Exit statuses of ``repro ARGUMENTS`` in as many processes, -9 for one that was killed.

    ``log`` gets their output. Their results folders have no figures, which take seconds. ``wound`` is what befalls the
    last of them: ``kind, number`` of ``_WOUNDS``.
    """
    environment = {"OMP_NUM_THREADS": "1"}
    if ranks > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        environment |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in range(ranks):
        own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else environment
        its_wound = wound if rank == ranks - 1 else None
        process = _SERVER.Process(target=_run, args=(list(arguments), own, str(log), its_wound))
        process.start()
        started.append(process)
    for process in started:
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode or 0 for process in started]


def run_under_torchrun(
    arguments: Sequence[str], log: Path, *, ranks: int, wound: tuple[str, int]
) -> ChildFailedError:
    """As `run_processes`, under the agent that torchrun is, which this process becomes; what it says in the end."""
    config = LaunchConfig(
        *(1, 1, ranks),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="forkserver",
    )
    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = [signal.getsignal(number) for number in handled]
    try:
        elastic_launch(config, _run_as_rank)(list(arguments), str(log), wound)
    except ChildFailedError as error:
        return error
    finally:
        for number, handler in zip(handled, handlers, strict=True):
            signal.signal(number, handler)
    raise AssertionError("no rank failed")


def _run_as_rank(arguments: list[str], log: str, wound: tuple[str, int]) -> None:
    is_last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    _run(arguments, {"OMP_NUM_THREADS": "1"}, log, wound if is_last else None)


def start_process(
    arguments: Sequence[str], log: Path, folder: Path, *, figures: bool
) -> multiprocessing.process.BaseProcess:
    """``repro ARGUMENTS`` in ``folder`` as the leader of a group of processes."""
    process = _SERVER.Process(target=_lead, args=(list(arguments), str(log), str(folder), figures))
    process.start()
    return process


def _lead(arguments: list[str], log: str, folder: str, figures: bool) -> None:
    os.setsid()
    os.chdir(folder)
    _run(arguments, {"OMP_NUM_THREADS": "1"}, log, None, figures=figures)


def _run(
    arguments: list[str],
    environment: dict[str, str],
    log: str,
    wound: tuple[str, int] | None,
    *,
    figures: bool = False,
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    from repro.cli import run_command
    from repro.report import build

    if not figures:
        build.draw_figures = lambda *_: []
    if wound:
        kind, number = wound
        _WOUNDS[kind](number)
    sys.exit(run_command(arguments))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@functools.cache
def _is_ours(filename: str) -> bool:
    return any(name in filename for name in _PACKAGES)


def _at_call(number: int) -> None:
    """Die at the n-th call of a function of the package."""
    seen = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal seen
        if event == "call" and _is_ours(frame.f_code.co_filename):
            seen += 1
            if seen == number:
                _die()

    sys.setprofile(count)


def _counting(number: int) -> None:
    """Not a wound: prints at the end how many such calls there were."""
    import multiprocessing.util

    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call" and _is_ours(frame.f_code.co_filename)

    sys.setprofile(count)
    multiprocessing.util.Finalize(None, lambda: print(f"calls: {calls}", flush=True), exitpriority=1)


def _half_written(owner: Any, name: str) -> Callable[[int], None]:
    """Die when the n-th call of a function that writes a file has written half of it."""

    def wound(number: int) -> None:
        whole = getattr(owner, name)
        calls = 0

        def half(content: Any, path: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            result = whole(content, path, *arguments, **options)
            if calls == number:
                os.truncate(path, os.path.getsize(path) // 2)
                _die()
            return result

        setattr(owner, name, half)

    return wound


def _half_text(number: int) -> None:
    calls = 0
    whole = pathlib.Path.write_text

    def half(self: Path, text: str, *arguments: Any, **options: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == number:
            whole(self, text[: len(text) // 2], *arguments, **options)
            _die()
        return whole(self, text, *arguments, **options)

    pathlib.Path.write_text = half  # type: ignore[method-assign, assignment]


def _half_row(number: int) -> None:
    """Die when the n-th row of a log is half there."""
    from repro.training.csv_log import CsvLog

    calls = 0
    whole = CsvLog.write

    def half(self: CsvLog, fields: Any) -> None:
        nonlocal calls
        calls += 1
        whole(self, fields)
        if calls == number:
            self.file.flush()
            os.truncate(
                self.file.name, os.path.getsize(self.file.name) - random.Random(number).randrange(1, 20)
            )
            _die()

    CsvLog.write = half  # type: ignore[method-assign]


def _renaming(number: int) -> None:
    """Die between the writing of the n-th file and its renaming."""
    calls = 0
    whole = pathlib.Path.replace

    def replace(self: Path, target: Any) -> Path:
        nonlocal calls
        calls += 1
        if calls == number:
            _die()
        return whole(self, target)

    pathlib.Path.replace = replace  # type: ignore[method-assign, assignment]


def _at_update(what: signal.Signals) -> Callable[[int], None]:
    """Get a signal in the n-th update."""

    def wound(number: int) -> None:
        from repro.training import loop

        calls = 0
        whole = loop.update

        def update(*given: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), what)
            return whole(*given)

        loop.update = update

    return wound


_WOUNDS: dict[str, Callable[[int], None]] = {
    "call": _at_call,
    "count": _counting,
    "state": _half_written(torch, "save"),
    "weights": lambda number: _half_written(sys.modules["weights_conversion.mapping"], "save_file")(number),
    "text": _half_text,
    "row": _half_row,
    "rename": _renaming,
    "term": _at_update(signal.SIGTERM),
    "kill": _at_update(signal.SIGKILL),
}


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a log."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, Any]:
    """What a run's folder says, by file: bytes, but of a state its tensors, and without times and names."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".state":
            state = torch.load(path, weights_only=True)
            found[name] = {**state, "history": [tensor.numpy().tobytes() for tensor in state["history"]]}
        elif path.suffix == ".safetensors":
            found[name] = {
                key: (tensor.dtype, tensor.shape, tensor.numpy().tobytes())
                for key, tensor in safetensors.torch.load_file(path).items()
            }
        elif (
            path.is_file()
            and path.name not in ("manifest.json", "done.json", "config.yaml")
            and not path.name.startswith(".sec-dsrg-")
        ):
            found[name] = path.read_bytes()
    return found
