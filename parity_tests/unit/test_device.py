"""Which device a run's `device` names. PyTorch sets no CUDA device that has no number."""

from __future__ import annotations

import pytest
import torch

from repro.errors import InputError
from repro.run_folder import resolve_device


@pytest.fixture
def chosen(monkeypatch) -> list[int]:
    """The numbers of the CUDA devices that were set, on a machine with two."""
    numbers: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", numbers.append, raising=False)
    return numbers


@pytest.mark.parametrize(("name", "number"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_a_cuda_device_has_a_number(chosen, name, number):
    assert resolve_device(name) == torch.device("cuda", number)
    assert chosen == [number]


def test_a_device_that_is_not_there_is_refused(chosen):
    with pytest.raises(InputError, match=r"device cuda:2: this machine has 2 CUDA devices"):
        resolve_device("cuda:2")
    assert not chosen


def test_of_several_processes_each_has_its_own(chosen, monkeypatch):
    monkeypatch.setattr("repro.distributed.size", lambda: 2)
    monkeypatch.setattr("repro.distributed.local_rank", lambda: 1)
    assert resolve_device("cuda") == torch.device("cuda", 1)
    with pytest.raises(InputError, match="2 processes need one each"):
        resolve_device("cuda:0")
    assert chosen == [1]
