"""docs/parity_ci.md as a user follows it: its files, run by pytest in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

from parity_tests.conftest import ROOT
from repro.models import load_net
from weights_conversion import write_caffemodel

PAGE = (ROOT / "docs" / "parity_ci.md").read_text(encoding="utf-8")


@pytest.fixture
def project(tmp_path, tool):
    """The page's files, with the weights and the recording that a user with Caffe has."""
    prototxt, conftest, test, failure = re.findall(
        r"^```(?:prototxt|python|text)\n(.*?)^```", PAGE, re.M | re.S
    )
    for name, text in (("small.prototxt", prototxt), ("conftest.py", conftest), ("test_port.py", test)):
        (tmp_path / name).write_text(text)
    torch.manual_seed(0)
    net = load_net(tmp_path / "small.prototxt")
    net.fill("msra")
    write_caffemodel(net, tmp_path / "small.caffemodel")
    tool.main([str(tmp_path / f"small.{ending}") for ending in ("prototxt", "caffemodel", "h5")])
    return tmp_path, failure.strip()


def run_pytest(folder) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", "."]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_example_passes_and_fails_where_the_page_says(project):
    folder, failure = project
    port = (folder / "test_port.py").read_text()
    (folder / "test_another_port.py").write_text(port.replace(", ceil_mode=True", ""))
    result = run_pytest(folder)
    assert result.returncode == 1, result.stdout
    assert "1 failed, 1 passed" in result.stdout
    assert "FAILED test_another_port.py::" in result.stdout
    assert failure in result.stdout
    assert re.search(r"^E +pool1 +Pooling +pool1 +1x4x7x7 +- +the shape is .*DIFFERS$", result.stdout, re.M)
