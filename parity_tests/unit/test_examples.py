"""The examples in docstrings run, and each public name of layers, models, solver and metrics has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

PUBLIC = ("repro.layers", "repro.models", "repro.solver", "repro.metrics")
NEED_TRITON = ("permutohedral_triton", "region_growing_triton")


def modules() -> list[str]:
    found = []
    for name in PUBLIC:
        module = importlib.import_module(name)
        found.append(name)
        inside = pkgutil.walk_packages(getattr(module, "__path__", []), f"{name}.")
        found += [entry.name for entry in inside if not entry.name.endswith(NEED_TRITON)]
    return found


def public() -> list[tuple[str, str]]:
    """Module and name of what these modules offer: ``__all__``, or what a single file defines without underscore."""
    found = []
    for module in PUBLIC:
        content = vars(importlib.import_module(module))
        own = [name for name, value in content.items() if getattr(value, "__module__", "") == module]
        names = content.get("__all__") or [name for name in own if not name.startswith("_")]
        found += [(module, name) for name in names if callable(content[name])]
    return found


def run(examples: list[doctest.DocTest]) -> doctest.TestResults:
    runner = doctest.DocTestRunner()
    for example in examples:
        runner.run(example)
    return runner.summarize(verbose=False)


@pytest.mark.parametrize("name", modules())
def test_examples_run(name):
    module = importlib.import_module(name)
    elsewhere = {name for _, name in public()}  # those below run them
    examples = doctest.DocTestFinder().find(module)
    assert run([test for test in examples if test.name.rpartition(".")[2] not in elsewhere]).failed == 0


@pytest.mark.parametrize(("module", "name"), public())
def test_each_public_name_has_an_example(module, name):
    value = inspect.unwrap(getattr(importlib.import_module(module), name))
    examples = doctest.DocTestFinder(recurse=False).find(value, name)
    assert sum(len(test.examples) for test in examples) > 0
    assert run(examples).failed == 0
