"""docs/own_data.md, followed word for word."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
import subprocess

import pytest

from parity_tests.conftest import ROOT
from repro.cli import run_command
from repro.data import read_mask

GUIDE = ROOT / "docs" / "own_data.md"


def blocks() -> list[tuple[str, str]]:
    """(kind, text) of the guide's code blocks that are to be run or saved, in their order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [(kind, text) for kind, text in found if kind in ("sh", "yaml")]


@pytest.mark.slow
def test_the_guide_works_as_it_stands(mini_root, tmp_path, monkeypatch):
    """Its calls of ``repro`` run in this process, which saves eight starts, all else in a shell. The first finds the
    pictures that it would make."""
    place = tmp_path / "work"
    shutil.copytree(mini_root, place / "example")
    monkeypatch.chdir(place)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for kind, text in blocks():
        if kind == "yaml":
            (place / "mine.yaml").write_text(text)
            continue
        for line in text.splitlines():
            if line.startswith("repro "):
                assert run_command(shlex.split(line)[1:]) == 0, line
            else:
                subprocess.run(["bash", "-euc", line], check=True)

    photos = sorted(path.stem for path in (place / "photos").iterdir())
    assert len(photos) == 20
    rows = list(csv.DictReader((place / "run/stage0/cam/average_precision.csv").open()))
    assert [row["iteration"] for row in rows] == ["10", "20", "30"]
    assert len(list((place / "run/stage0/cues/overlays").iterdir())) == 20
    assert sorted(path.stem for path in (place / "masks").glob("*.png")) == photos
    for name in photos[:3]:
        truth = read_mask(place / "example/SegmentationClass" / f"{name}.png", 7)
        assert read_mask(place / "masks" / f"{name}.png", 7).shape == truth.shape
