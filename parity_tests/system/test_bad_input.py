"""Every reader, on thousands of damaged files and on files made to hurt: an error of one line, soon, in little memory.

Each batch is read by a process of its own, so that a crash of a library would be seen for what it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from parity_tests.bad_input import HOSTILE, MIB, SEEDS

CONSTANT = 32 * MIB  # beside four times the file's size: buffers, and what libraries set up once


def results(mode: str, *arguments: object) -> list[dict]:
    command = [sys.executable, "-m", "parity_tests.bad_input", mode, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.returncode == 0, f"died with {run.returncode} at {lines[-1:]}: {run.stderr[-500:]}"
    return [line for line in lines if "result" in line]


def check(result: dict) -> None:
    what = f"{result['file']}: {result}"
    assert result["result"] != "wrong", what
    assert result["grown"] <= 4 * result["size"] + CONSTANT, what
    if result["result"] == "refused":
        assert "\n" not in result["message"], what
        assert len(result["message"]) < 1000, what


def test_mutated_files_are_read_or_refused():
    each = 20
    batch = results("fuzz", 0, each)
    assert len(batch) == each * len(SEEDS)
    refused = Counter()
    for result in batch:
        check(result)
        refused[result["file"].partition(" ")[0]] += result["result"] == "refused"
    assert refused.keys() == SEEDS.keys()
    assert min(refused.values()) > each / 10, f"mutations that nothing notices test nothing: {refused}"


@pytest.mark.long
def test_many_more_mutated_files():
    for result in results("fuzz", 20, 10_000):
        check(result)


def test_hostile_files():
    batch = {result["file"]: result for result in results("hostile")}
    assert batch.keys() == HOSTILE.keys()
    harmless = {
        "values one by one",
        "doubles one by one",
        "doubles",
        "plain",
        "nested",
        "nested blob",
        "many allowed",
    }
    for name, result in batch.items():
        check(result)
        if name.partition(".")[0] not in harmless:
            assert result["result"] == "refused", result
