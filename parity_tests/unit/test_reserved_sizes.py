"""The results page keeps room for each picture: nothing moves when one arrives."""

from __future__ import annotations

import re

from PIL import Image

from parity_tests.finished_runs import write_run
from repro.report import report_runs


def sizes(page: str) -> dict[str, tuple[int, int]]:
    found = re.finditer(r'<img src="([^"]+)" width="(\d+)" height="(\d+)"', page)
    return {match[1]: (int(match[2]), int(match[3])) for match in found}


def test_each_figure_has_the_size_of_its_file(tmp_path, blank_figures):
    blank_figures.append("per_class")
    out = report_runs([write_run(tmp_path, "r", "+DSRG")[0]], tmp_path / "out")
    page = (out / "index.html").read_text(encoding="utf-8")
    found = sizes(page)
    assert set(re.findall(r'<img src="([^"]+)"', page)) == found.keys()
    assert {"figures/per_class.svg", "figures/confusion_dsrg.svg"} <= found.keys()
    assert all(min(size) > 100 for size in found.values())
    with Image.open(out / "figures/per_class.png") as drawn:  # drawn at the same size
        assert found["figures/per_class.svg"] == drawn.size
