"""The number of CPU threads decides the last bits: it is recorded, and a run that goes on with another says so."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import pytest
import torch

from repro.config import load_config
from repro.run_folder import Run


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1), (2, 2)])
def test_resuming_with_another_number_of_threads_gets_a_line(tmp_path, caplog, threads, first, second):
    config = load_config("mini", [f"output={tmp_path}/run"])

    def begin(count: int) -> None:
        torch.set_num_threads(count)
        with (
            contextlib.suppress(KeyboardInterrupt),
            Run(config, torch.device("cpu")).step("stage1", {}) as step,
        ):
            step.begin()
            raise KeyboardInterrupt

    begin(first)
    assert json.loads((tmp_path / "run/manifest.json").read_text())["cpu_threads"] == first
    assert not caplog.records
    begin(second)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (first != second)
    if lines:
        assert f"begun with {first} CPU threads, resumed with {second}" in lines[0]
