"""Pipes and devices in the place of files: one line at once, or they are read; no call waits for ever."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
from PIL import Image

from repro.cli import run_command
from repro.data import write_mask

NET = 'name: "n" input: "x" input_shape { dim: 1 dim: 3 }\nlayer { name: "r" type: "ReLU" bottom: "x" top: "y" }\n'
CALLS = {  # what stands for PIPE is a pipe that nobody writes to
    "inspect": "inspect PIPE",
    "inspect a prototxt": "inspect PIPE.prototxt",
    "convert": "convert PIPE out.safetensors",
    "convert, safetensors": "convert PIPE.safetensors out.npz",
    "convert, state": "convert PIPE.solverstate out.solverstate",
    "net": "check PIPE.prototxt",
    "profile": "evaluate --config PIPE.yaml --pred masks --gt masks --list ids.txt",
    "list": "evaluate --pred masks --gt masks --list PIPE.txt",
    "predict, weights": "predict --config mini --weights PIPE.safetensors --images photos --out out",
    "predict, ONNX": "predict --config mini --engine onnx --weights PIPE.onnx --images photos --out out",
    "cues": "data cues PIPE.pickle out.h5",
    "cues, HDF5": "data cues PIPE.h5 out.h5",
    "labels": "data labels PIPE.csv out.csv",
    "labels of COCO": "data labels PIPE.json out.csv",
    "labels, folder": "data labels xml out.csv",
    "COCO": "data coco-masks PIPE.json out",
    "masks": "data masks pngs out",
    "maps": "seeds from-cams cams --config mini --out out",
    "score": "seeds score --config mini --cues PIPE.h5 --masks masks",
    "train": "train --config mini --stage 1 data.image_root=photos data.list=PIPE.txt data.cues=PIPE.h5 output=out",
    "solver": "train --solver PIPE.prototxt output=out",
    "reports": "tables runs --out out",
    "archive": "check-submission PIPE.tar.gz --list ids.txt",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipes")
    os.mkfifo(folder / "pipe")
    for name in ("PIPE", "xml/a.xml", "pngs/a.png", "cams/a.npy", "runs/scores_a.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(folder / "pipe")
    endings = ("prototxt", "yaml", "txt", "safetensors", "solverstate", "caffemodel", "onnx", "pickle", "h5")
    for ending in (*endings, "csv", "json", "tar.gz"):
        (folder / f"PIPE.{ending}").symlink_to(folder / "pipe")
    write_mask(folder / "masks" / "a.png", np.ones((4, 4), np.uint8))
    (folder / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "photos" / "a.png")
    (folder / "ids.txt").write_text("".join(f"2008_{number:06}\n" for number in range(1456)))
    return folder


@pytest.mark.parametrize("call", CALLS)
def test_a_pipe_without_a_writer_is_refused(files, capsys, monkeypatch, call):
    monkeypatch.chdir(files)
    before = sorted(path.name for path in files.iterdir())
    assert run_command(CALLS[call].split()) == 2
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if line.startswith("repro: ")]) == 1
    assert re.search("pipe|no such file: PIPE", said[-1]), said
    assert sorted(path.name for path in files.iterdir()) == before


@pytest.mark.parametrize("call", ["inspect", "convert", "COCO"])
def test_an_endless_device_is_refused(files, capsys, monkeypatch, call):
    monkeypatch.chdir(files)
    words = ["/dev/zero" if word.startswith("PIPE") else word for word in CALLS[call].split()]
    assert run_command(words) == 2
    assert "/dev/zero: a pipe or a device, a plain file expected" in capsys.readouterr().err


PROFILE = "base: mini\nname: mine\n"
WRITTEN = {  # what is written into PIPE, the status and what is said
    "evaluate --pred masks --gt masks --num-classes 2 --list PIPE": ("a\n", 0, "mean IoU"),
    "check PIPE": (NET, 0, "equal"),
    "prototxt --config PIPE out.prototxt": (PROFILE, 0, "out.prototxt"),
    "train --config PIPE --stage 1": (
        PROFILE,
        2,
        "stage1.data.image_root: not given",
    ),  # it has read the profile
}


@pytest.mark.parametrize("call", WRITTEN, ids=lambda call: call.split()[0])
def test_a_pipe_that_has_a_writer_is_read(files, call, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(files)
    text, status, said = WRITTEN[call]
    read, write = os.pipe()
    os.write(write, text.encode())
    os.close(write)
    words = call.replace("PIPE", f"/dev/fd/{read}").replace("out.", f"{tmp_path}/out.").split()
    try:
        assert run_command(words) == status
    finally:
        os.close(read)
    assert said in "".join(capsys.readouterr())
