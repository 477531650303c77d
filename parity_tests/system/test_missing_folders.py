"""Every verb makes the folders of what it writes, and none before it has read its input."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from parity_tests.conftest import CAFFE_FILES
from repro.cli import run_command
from repro.data import write_mask

TOY = str(CAFFE_FILES / "toy_iter_6.caffemodel")
CALLS = {  # what is written, relative to a folder that is not there, and the call up to it
    "weights.safetensors": ["convert", TOY],
    "weights.npz": ["convert", TOY],
    "weights.h5": ["convert", TOY],
    "toy.solverstate.h5": ["convert", str(CAFFE_FILES / "toy_iter_6.solverstate")],
    "net.prototxt": ["prototxt", "--config", "mini"],
    "labels.csv": ["data", "labels", "labels.txt"],
    "cues.h5": ["data", "cues", "cues.pickle"],
    "masks": ["data", "masks", "truth"],
    "scores.json": ["evaluate", "--pred", "truth", "--gt", "truth", "--list", "ids.txt", "--out"],
}


@pytest.fixture(autouse=True)
def inputs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("labels.txt").write_text("a.jpg cat\n")
    Path("ids.txt").write_text("a\n")
    cues = {"0_labels": np.array([8]), "0_cues": np.array([[8], [1], [2]])}
    Path("cues.pickle").write_bytes(pickle.dumps(cues))
    write_mask(Path("truth/a.png"), np.eye(4, dtype=np.uint8))


@pytest.mark.parametrize("name", CALLS)
def test_missing_folders_are_made(name):
    assert run_command([*CALLS[name], f"new/deeper/{name}"]) == 0
    assert Path("new/deeper", name).exists()


@pytest.mark.parametrize("name", CALLS)
def test_bad_input_makes_none(name):
    call = [
        f"{word}x" if word.startswith(("/", "labels.", "cues.", "truth", "mini")) else word
        for word in CALLS[name]
    ]
    assert call != CALLS[name]
    assert run_command([*call, f"new/deeper/{name}"]) == 2
    assert not Path("new").exists()
