"""The Triton kernels on CPU tensors, in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from parity_tests.conftest import ROOT

if find_spec("triton") is None:
    pytest.skip("Triton is not installed (it comes with PyTorch's CUDA builds)", allow_module_level=True)

PROGRAM = """
import sys, traceback
for line in sys.stdin:
    try:
        exec(line)
        print("done", flush=True)
    except BaseException:
        traceback.print_exc()
        print("failed", flush=True)
"""


@pytest.fixture(scope="module")
def interpreter() -> Iterator[subprocess.Popen[str]]:
    """A process of its own, for Triton reads the variable when it is first imported; one for both kernels, for it and
    PyTorch take seconds to load."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", PROGRAM]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.stdin.close()


@pytest.mark.parametrize(
    "check",
    [
        "from parity_tests.parity.test_permutohedral import check_triton_interpreted as check; check()",
        "from parity_tests.unit.test_region_growing import check_triton as check; check('cpu', 5)",
    ],
    ids=["mean_field", "region_growing"],
)
def test_kernels_are_right(interpreter, check):
    print(check, file=interpreter.stdin, flush=True)
    assert interpreter.stdout.readline() == "done\n"
