"""examples/own_images.ipynb, cell by cell: from a folder of images and labels to masks."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from parity_tests.conftest import ROOT
from repro.data import read_mask

NOTEBOOK = ROOT / "examples" / "own_images.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(book["cells"]):
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "committed without outputs"
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    photos = sorted((tmp_path / "photos").glob("*.jpg"))
    assert len(photos) == 24
    for photo in photos:
        with Image.open(photo) as image:
            assert read_mask(tmp_path / "masks" / f"{photo.stem}.png", 7).shape == image.size[::-1]
