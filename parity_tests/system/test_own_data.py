"""docs/own_data.md, followed word for word."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys

import pytest

from parity_tests.conftest import ROOT
from repro.data import read_mask

GUIDE = ROOT / "docs" / "own_data.md"


def blocks() -> list[tuple[str, str]]:
    """(kind, text) of the guide's code blocks that are to be run or saved, in their order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [(kind, text) for kind, text in found if kind in ("sh", "yaml")]


@pytest.mark.slow
def test_the_guide_works_as_it_stands(tmp_path):
    shim = tmp_path / "bin" / "repro"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m repro "$@"\n')
    shim.chmod(0o755)
    environment = {**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(GUIDE.parent.parent)
    place = tmp_path / "work"
    place.mkdir()
    for kind, text in blocks():
        if kind == "yaml":
            (place / "mine.yaml").write_text(text)
            continue
        done = subprocess.run(
            ["bash", "-euc", text], cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"

    photos = sorted(path.stem for path in (place / "photos").iterdir())
    assert len(photos) == 20
    rows = list(csv.DictReader((place / "run/stage0/cam/average_precision.csv").open()))
    assert [row["iteration"] for row in rows] == ["10", "20", "30"]
    assert len(list((place / "run/stage0/cues/overlays").iterdir())) == 20
    assert sorted(path.stem for path in (place / "masks").glob("*.png")) == photos
    for name in photos[:3]:
        truth = read_mask(place / "example/SegmentationClass" / f"{name}.png", 7)
        assert read_mask(place / "masks" / f"{name}.png", 7).shape == truth.shape
