"""No test asserts how long something takes: machines are shared, and times belong to the benchmark."""

from __future__ import annotations

import ast

import pytest

from parity_tests.conftest import HERE

CLOCKS = {
    "perf_counter",
    "process_time",
    "monotonic",
    "thread_time",
    "time",
    "ru_utime",
    "ru_stime",
    "timeit",
}


@pytest.mark.parametrize("path", sorted(HERE.rglob("test_*.py")), ids=lambda path: path.name)
def test_no_assertion_on_time(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        timed = {
            target.id
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and _reads_a_clock(node.value)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(function):
            if isinstance(node, ast.Assert):
                names = {name.id for name in ast.walk(node.test) if isinstance(name, ast.Name)}
                assert not _reads_a_clock(node.test), f"{path.name}:{node.lineno}"
                assert not names & timed, f"{path.name}:{node.lineno}"


def _reads_a_clock(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Attribute) and part.attr in CLOCKS for part in ast.walk(node))
