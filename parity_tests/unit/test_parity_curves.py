"""The page of our losses beside the original's: whole curves, and what the longest training ends with."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from repro.data import write_mask
from repro.errors import InputError
from repro.report.parity_curves import Curve, EndResult, Repetition, report_curves

CURVE = Curve("a training", "loss-Seed", np.array([2.0, 1.0]), np.array([2.0, 1.01]))


def test_without_an_outcome(tmp_path):
    report_curves([CURVE], tmp_path)
    assert (tmp_path / "curves.csv").read_text().splitlines()[1:] == [
        "a training,loss-Seed,0,2,2",
        "a training,loss-Seed,1,1,1.01",
    ]
    assert "furthest by 1 %" in json.loads((tmp_path / "verdict.json").read_text())["verdict"]
    assert "outcome" not in (tmp_path / "index.html").read_text()
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["curves.png", "curves.svg"]


def test_with_an_outcome(tmp_path):
    Image.new("RGB", (20, 10), (9, 90, 9)).save(tmp_path / "image.png")
    mask = np.zeros((10, 20), np.uint8)
    mask[:, 10:] = 1
    write_mask(tmp_path / "mask.png", mask)
    outcome = EndResult(
        experiment="2 iterations",
        curves=[CURVE],
        equal=195,
        pixels=200,
        mean_iou={"voc": (0.5, 0.495)},
        rows=[(tmp_path / "image.png", {"original": tmp_path / "mask.png", "ours": tmp_path / "mask.png"})],
        classes=["background", "thing"],
    )
    report_curves([CURVE], tmp_path / "page", outcome)
    told = json.loads((tmp_path / "page" / "outcome.json").read_text())
    assert told["equal"] == 195
    assert told["mean_iou"] == {"voc": [0.5, 0.495]}
    assert told["sentence"] == (
        "After 2 iterations, 97.50 % of 200 mask pixels are the original's. "
        "Mean IoU: 49.50 against 50.00 by the rule voc."
    )
    page = (tmp_path / "page" / "index.html").read_text()
    assert "97.50 % of 200 mask pixels" in page
    for link in ("figures/outcome.svg", "figures/outcome-curves.svg", "outcome.csv"):
        assert f'"{link}"' in page
        assert (tmp_path / "page" / link).is_file()
    for name in ("curves", "outcome", "outcome-curves"):
        with Image.open(tmp_path / f"page/figures/{name}.png") as drawn:
            wide, high = drawn.size
        assert f'src="figures/{name}.svg" width="{wide}" height="{high}"' in page


def test_with_a_training_from_other_last_bits(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "image.png")
    write_mask(tmp_path / "mask.png", np.zeros((10, 20), np.uint8))
    outcome = EndResult(
        experiment="2 iterations",
        curves=[replace(CURVE, again=np.array([2.0, 1.02]))],
        equal=195,
        pixels=200,
        mean_iou={"voc": (0.5, 0.495)},
        rows=[(tmp_path / "image.png", {"original": tmp_path / "mask.png"})],
        classes=["background", "thing"],
        again=Repetition(equal=190, same=192, mean_iou={"voc": 0.51}),
    )
    report_curves([CURVE], tmp_path, outcome)
    told = json.loads((tmp_path / "outcome.json").read_text())
    assert told["again"] == {"equal": 190, "same": 192, "mean_iou": {"voc": 0.51}}
    assert "95.00 % of the original's pixels, 96.00 % of those it had before" in told["sentence"]
    assert (tmp_path / "outcome.csv").read_text().splitlines()[::2] == [
        "experiment,loss,iteration,original,ours,ours_again",
        "a training,loss-Seed,1,1,1.01,1.02",
    ]


def test_curves_of_two_lengths_are_refused():
    with pytest.raises(InputError, match="1 iterations, 2 recorded"):
        Curve("a training", "loss", np.ones(2), np.ones(1))
    with pytest.raises(InputError, match="3 iterations, 2 recorded"):
        replace(CURVE, again=np.ones(3))
