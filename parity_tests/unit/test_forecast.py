"""What ``reproduce --dry-run`` counts: stage 0 where it makes the cues, once for the runs of a seed."""

from __future__ import annotations

import json

import pytest

from parity_tests.conftest import ROOT
from repro.config import load_config
from repro.run.forecast import forecast
from repro.run.machines import local_machine, named_machine
from repro.run.net_costs import crf_seconds
from repro.run.plan import plan

SMALL = ["model.width_divisor=64", "device=cpu", "stage0.solver.max_iter=9", "stage0.data.input_size=97"]


def steps(*overrides: str, seeds: tuple[int, ...] = (0,)) -> list[list[str]]:
    lines = forecast(plan("dsrg_vgg16_voc", [*SMALL, "rows=[baseline, +DSRG]", *overrides], seeds=seeds))
    return [line.split() for line in lines if line.startswith("  ")]


def test_stage_0_is_counted_where_it_makes_the_cues(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not [step for step in steps() if step[0].startswith("stage0")]
    made = [step for step in steps("dataset.make_cues=true", seeds=(0, 1)) if step[0].startswith("stage0")]
    images = "10582"
    expected = [("stage0/cam", "9"), ("stage0/bg", "9"), ("stage0/cues", images)] * 2  # four runs, two seeds
    assert [(step[0], step[1]) for step in made] == expected
    assert all(step[1:4] == [step[1], "of", step[1]] and "model" in step[-1] for step in made)


def test_with_saliency_maps_there_is_one_classifier_and_what_is_done_is_not_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cues = tmp_path / "results/runs/dsrg_vgg16_voc/stage0/cues/png"
    cues.mkdir(parents=True)
    (cues / "a.png").touch()
    more = ("dataset.make_cues=true", f"stage0.cues.saliency={tmp_path}")
    made = [step for step in steps(*more) if step[0].startswith("stage0")]
    assert [step[:4] for step in made] == [
        ["stage0/cam", "9", "of", "9"],
        ["stage0/cues", "10581", "of", "10582"],
    ]


def test_what_a_manifest_does_not_tell_stops_no_forecast(tmp_path):
    """Steps that are unfinished, of an older version or of another's hand give no rate; the others do."""
    config = load_config("mini", ["device=cpu"])
    sections = config.model_dump(include={"precision", "model", "stage1", "stage2"})
    done = {"settings": sections, "device_name": "d", "resumed": False, "seconds_last_call": 8.0}
    lacking = [{key: value for key, value in done.items() if key != left_out} for left_out in done]
    settings = [{}, None, {**sections, "stage2": {}}, {"protocol": "dsrg_final"}]
    others = [*lacking, *({**done, "settings": each} for each in settings), {**done, "resumed": True}, None]
    manifests = [
        {"steps": {"stage2": other, "predictions/stage1": other, "stage1": done}} for other in others
    ]
    for number, manifest in enumerate([*manifests, {}, {"steps": []}, []]):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps(manifest))
    machine = local_machine(config, {tmp_path})
    rates = [machine.seconds[key] for key, basis in machine.basis.items() if basis == "run"]
    assert rates == [8.0 / config.stage1.solver.max_iter]


def test_an_h100_is_forecast_as_measured():
    """By the published benchmark."""
    bench = json.loads((ROOT / "results/published/bench/nvidia-h100-80gb-hbm3-fast.json").read_text())
    rows = {row["part"]: row for row in bench["rows"]}
    for part, cells in (("CRF, 20 x 41x41", 20 * 41 * 41), ("CRF, 375x500", 375 * 500)):
        assert crf_seconds(21, cells, cuda=True) == pytest.approx(rows[part]["seconds"], rel=0.03)
    network = [rows[f"network, {way}"] for way in ("forward", "backward")]
    work = sum(1e12 * row["metrics"]["TFLOP/s"] * row["seconds"] for row in network)
    stated = named_machine("NVIDIA H100 SXM, its net measured", "fast", [])
    assert stated is not None
    assert stated.flops == pytest.approx(work / sum(row["seconds"] for row in network), rel=0.03)
