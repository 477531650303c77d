"""A run killed at any moment and started again leaves the same results folder as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from parity_tests.processes import start_process

ARGUMENTS = [
    *("reproduce", "--config", "mini", "device=cpu", "dataset.pretrain=null", "output=r"),
    "rows=[+DSRG, +Retrain]",
    *("solver.max_iter=4", "solver.snapshot=2", "data.batch_size=2", "data.workers=0", "inference.crf=false"),
    *("dataset.train_limit=3", "dataset.val_limit=2"),
]


def start(folder: Path) -> BaseProcess:
    arguments = [*ARGUMENTS, f"dataset.root={folder.parent}/mini"]
    return start_process(arguments, log_of(folder), folder, figures=folder.parent.name.startswith("figures"))


def log_of(folder: Path) -> Path:
    return folder.with_suffix(".log")


def finish(folder: Path) -> None:
    process = start(folder)
    process.join(600)
    assert process.exitcode == 0, log_of(folder).read_text()


def results(folder: Path) -> dict[str, bytes]:
    """Every file of the results folder, without what was measured (times, memory)."""
    root = folder / "r-tables"
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    manifest, summary = (json.loads(found.pop(name)) for name in ("manifest.json", "summary.json"))
    del manifest["measured"]
    for name in ("index.html", "README.md", "summary.json"):
        del manifest["files"][name]
    for row in summary["rows"]:
        del row["seconds"], row["joules"], row["memory_bytes"]
    page = re.sub(rb'<section id="(measured|summary)".*?</section>', b"", found.pop("index.html"), flags=re.S)
    readme = re.sub(rb"\| method \|.*?\n\n.*?\n\n", b"", found.pop("README.md"), count=1, flags=re.S)
    assert b"peak memory" not in readme
    return {**found, "page": page, "readme": readme, "rest": json.dumps([manifest, summary]).encode()}


@pytest.fixture(scope="module")
def whole(request, mini_root, tmp_path_factory) -> Path:
    """A run that nobody disturbed, with figures, which take as long as all the rest, or without."""
    root = tmp_path_factory.mktemp(request.param)
    (root / "mini").symlink_to(mini_root)
    folder = root / "whole"
    folder.mkdir()
    finish(folder)
    return folder


def files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def kill_and_finish(whole: Path, draw: random.Random, times: int) -> None:
    """Kill when so many files are there as drawn, and a moment later: progress, not time, so any machine will do."""
    folder = whole.parent / f"killed{len(list(whole.parent.iterdir()))}"
    folder.mkdir()
    killed = 0
    for count in sorted(draw.randrange(1, files(whole)) for _ in range(times)):
        process = start(folder)
        while process.is_alive() and files(folder) < count:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.1))
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
    assert killed
    finish(folder)
    want, got = results(whole), results(folder)
    assert want.keys() == got.keys()
    assert [name for name in want if want[name] != got[name]] == []
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in whole.iterdir())


@pytest.mark.parametrize("whole", ["plain"], indirect=True)
def test_killed_twice(whole):
    kill_and_finish(whole, random.Random(0), 2)


@pytest.mark.long
@pytest.mark.parametrize("whole", ["figures"], indirect=True)
@pytest.mark.parametrize("seed", range(1, 9))
def test_killed_at_any_moment(whole, seed):
    kill_and_finish(whole, random.Random(seed), 3)
