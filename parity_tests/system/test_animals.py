"""The experiment on a data set that is not the papers': what it plans, its tables, and the picture of growing seeds."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from parity_tests.finished_runs import write_run
from parity_tests.small_voc import TRAIN_AUG, mask_of, write_cue_files, write_voc
from repro.cli import run_command
from repro.config import load_config
from repro.data import write_mask
from repro.errors import InputError
from repro.metrics import summarize
from repro.paper.experiments import experiments
from repro.report import report_runs, write_index
from repro.report.page_summary import closing_lines
from repro.report.verdict import judge
from repro.run.machines import local_machine
from repro.run.plan import plan, results_dir
from repro.run.scores import Scores, read_scores
from repro.run_folder import device_name

ROWS = ("SEC", "baseline", "+BSL", "+DSRG", "+Retrain")
BASE = {"profile": "dsrg_vgg16_animals", "sha256": "0"}


def test_five_rows_of_two_seeds_are_eight_runs_in_one_results_folder():
    runs = plan(None, ["dataset.root=x"], names=["animals"], seeds=[0, 1])
    assert [run.folder.name for run in runs] == [
        f"{name}{seed}"
        for seed in ("", "-seed1")
        for name in (
            *("sec_vgg16_animals", "dsrg_vgg16_animals-baseline", "dsrg_vgg16_animals-bsl"),
            "dsrg_vgg16_animals",
        )
    ]
    for seed in (0, 1):
        answered = [
            cell
            for run in runs
            for cells in run.answers.values()
            for cell in cells
            if run.config.seed == seed
        ]
        assert [cell for cell in answered if cell.startswith("animals/")] == [
            f"animals/{row}/val" for row in ROWS
        ]
    assert {results_dir(run.base) for run in runs} == {Path("results/animals")}
    assert [run.folder.name for run in runs if run.grows_for_a_figure] == [
        *("dsrg_vgg16_animals", "dsrg_vgg16_animals-seed1")
    ]


def test_the_same_at_half_the_size_has_its_own_folder():
    runs = plan(None, ["dataset.root=x"], names=["animals_half"])
    assert [run.folder.name for run in runs] == [
        "sec_vgg16_animals_half",
        *(f"dsrg_vgg16_animals_half{suffix}" for suffix in ("-baseline", "-bsl", "")),
    ]
    assert {results_dir(run.base) for run in runs} == {Path("results/animals_half")}
    assert {cell.partition("/")[0] for run in runs for cells in run.answers.values() for cell in cells} == {
        *("animals_half", "animals_half-figure4")
    }
    assert {run.config.stage1.data.new_height for run in runs} == {161}
    assert len({str(run.config.inference) for run in runs}) == 1  # every row is tested alike


def test_other_profiles_and_all_of_the_papers_leave_it_alone():
    assert not any("animals" in run.base.name for run in plan(None, ["dataset.root=x"], names=["all"]))
    assert not any(
        "animals" in cell for run in plan("mini") for cells in run.answers.values() for cell in cells
    )
    with pytest.raises(InputError, match="none of its runs is of mini"):
        plan("mini", names=["animals"])


@pytest.fixture
def entry(tmp_path) -> Path:
    """A run on images without 13 of the classes, one of which a mask shows."""
    folder, fields = write_run(tmp_path, "a", "+DSRG", images=254, base=BASE, train_images=736)
    matrix = np.array(fields["scores"]["matrix"])
    kept = [0, 3, 8, 10, 12, 13, 15, 17]
    matrix[[index for index in range(21) if index not in kept]] = 0
    matrix[3, 3] = 0  # a bird that was missed
    fields |= {"answers": ["animals/+DSRG/val"], "scores": summarize(matrix, 254)}
    (folder / "scores_stage1.json").write_text(json.dumps(fields))
    return folder


def test_the_headline_is_the_mean_over_the_classes_that_occur(entry, tmp_path, no_figures):
    out = report_runs([entry], tmp_path / "out")
    with (out / "tables/animals.csv").open(newline="", encoding="utf-8") as file:
        row = next(row for row in csv.DictReader(file) if row["row"] == "+DSRG")
    means = json.loads((entry / "scores_stage1.json").read_text())["scores"]["mean_iou"]
    assert len(set(means.values())) == 3
    for column, rule in (("ours", "present"), ("ours_voc", "voc"), ("ours_released", "released")):
        assert float(row[column]) == pytest.approx(100 * means[rule], abs=1e-4)
    here = [86.6, 70.6, 80.2, 63.6, 76.6, 64.1, 72.3, 68.7]  # Table 2, the classes that occur
    assert (float(row["paper"]), row["difference"]) == (57.6, "")
    assert float(row["paper_present"]) == pytest.approx(np.mean(here), abs=1e-3)
    shown = next(
        row for row in json.loads((out / "summary.json").read_text())["rows"] if row["row"] == "+DSRG"
    )
    assert shown["paper_here"] == pytest.approx(np.mean(here), abs=1e-3)
    assert shown["ours"] == pytest.approx(100 * means["present"], abs=1e-3)
    assert not shown["comparable"]
    lines = closing_lines(json.loads((out / "summary.json").read_text(encoding="utf-8")))
    assert lines[2].split() == ["paper,", "the", "classes", "here", "72.8"]
    write_index(tmp_path)
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "paper, the classes here" in index
    assert "<td>72.8</td>" in index
    assert "57.6" not in index
    told = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    (row,) = told["rows"]
    unknown = {
        **told,
        "rows": [row, {**row, "row": "other", "paper_here": None}],
    }  # a mean that cannot be told
    assert closing_lines(unknown)[2].split()[-2:] == ["72.8", "–"]
    for rows in (unknown["rows"], []):  # none: of runs that answer other tables alone
        (out / "summary.json").write_text(json.dumps({**told, "rows": rows}))
        write_index(tmp_path)
        assert ("<td>–</td>" in (tmp_path / "index.html").read_text(encoding="utf-8")) == bool(rows)
    assert "| method | ours | paper | paper, the classes here |" in (out / "README.md").read_text(
        encoding="utf-8"
    )
    text = (out / "tables/animals.md").read_text(encoding="utf-8")
    assert "Mean over the 8 of 21 classes that occur" in text
    assert "**not comparable**" in text
    assert not (out / "tables/table2.md").exists()


@pytest.mark.parametrize("images", [254, 1449])
def test_the_papers_numbers_are_never_judged(entry, images):
    fields = json.loads((entry / "scores_stage1.json").read_text())
    (entry / "scores_stage1.json").write_text(json.dumps({**fields, "images": images}))
    verdict = judge(Scores(read_scores([entry])))
    assert [len(verdict.of(status)) for status in ("reproduced", "missed", "not comparable")] == [0, 0, 1]
    assert {judgement.cell.partition("/")[0] for judgement in verdict.judgements} == {
        "animals",
        "animals-figure4",
    }
    assert all(judgement.tolerance is None for judgement in verdict.judgements)


def test_from_a_small_tree_to_tables_and_the_picture(tmp_path, monkeypatch, blank_figures):
    """The same wiring on nine generated images, 1/16 wide."""
    layout = write_voc(tmp_path / "VOC2012")
    write_cue_files(layout.root)
    layout.image_set("train_aug").write_text("".join(f"{name}\n" for name in TRAIN_AUG))
    for name in TRAIN_AUG:
        write_mask(layout.root / f"SegmentationClassAug/{name}.png", mask_of(name, void=False))
    monkeypatch.chdir(tmp_path)
    blank_figures.append("growth")
    arguments = [
        *("reproduce", "--experiment", "animals", "device=cpu", f"dataset.root={layout.root}"),
        *(
            "model.width_divisor=16",
            "stage1.init.filler=looks_linear",
            "solver.max_iter=3",
            "precision=faithful",
        ),
        *("stage1.solver.snapshot=1", "data.batch_size=2", "data.workers=0"),
        "inference.crf=false",
    ]
    assert run_command(arguments) == 0
    out = tmp_path / "results/animals"
    with (out / "tables/animals.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == list(ROWS)
    assert all(row["runs"] and {"ours", "ours_voc"} <= row.keys() for row in rows)
    with Image.open(out / "figures/growth.png") as picture:
        assert picture.width > picture.height
    assert (out / "figures/growth.png").stat().st_size < 400_000
    alt = (out / "README.md").read_text(encoding="utf-8")
    assert "the mask that stage 2 learns from, the ground truth" in alt
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "seeds, iteration 3 (epoch" in page
    assert "generated images" not in page
    masks = {path.stem.rpartition("_")[2] for path in (tmp_path / "results/runs").glob("*/growth/*.png")}
    assert masks == {"0", "1", "2", "3"}
    assert experiments().tables(["sec_vgg16_animals"]).keys() == {"animals", "animals-figure4"}


def test_a_forecast_needs_no_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command(["reproduce", "--config", "dsrg_vgg16_coco", "--dry-run", "device=cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for step, count in (
        ("stage1", 8000),
        ("pseudo_labels", 82783),
        ("stage2", 20000),
        ("predictions/stage2", 40504),
    ):
        (line,) = [line for line in lines if line.split()[:1] == [step]]
        assert f"{count} of {count}" in line
        assert all(word in line for word in ("memory", "disk", "energy", "model"))
    assert not list(tmp_path.iterdir())


BENCH = {
    "device": "cuda",
    "device_name": "Some GPU",
    "precision": "faithful",
    "batch_size": 20,
    "model": {"name": "vgg16_aspp", "num_classes": 21, "width_divisor": 1, "dropout": 0.5},
    "rows": [
        {"part": "network, forward", "seconds": 1.0, "metrics": {"TFLOP/s": 2.0}},
        {"part": "network, backward", "seconds": 1.0, "metrics": {"TFLOP/s": 4.0}},
        {"part": "whole iteration", "seconds": 3.6, "metrics": None},
    ],
}


@pytest.mark.parametrize(("instructions", "known"), [("AVX512", True), ("AVX2", False)])
def test_a_benchmark_stands_for_processors_with_the_same_instructions(
    instructions, known, tmp_path, monkeypatch
):
    """Virtual machines call several generations of processors by one name, some of them seven times as fast."""
    monkeypatch.chdir(tmp_path)
    cpu = torch.device("cpu")
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    bench = {
        **BENCH,
        "device": "cpu",
        "device_name": device_name(cpu),
        "cpu_threads": torch.get_num_threads(),
    }
    (tmp_path / "results/bench").mkdir(parents=True)
    (tmp_path / "results/bench/cpu.json").write_text(json.dumps(bench))
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: instructions)
    machine = local_machine(load_config("dsrg_vgg16_voc", ["device=cpu", "dataset.root=x"]), set())
    assert ("bench" in machine.basis.values()) == known


def test_costs_of_every_profile(tmp_path):
    (tmp_path / "gpu.json").write_text(json.dumps(BENCH))
    assert run_command(["bench", "--costs", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "costs.md").read_text(encoding="utf-8")
    ours = text.partition("## Some GPU")[2].partition("## ")[0]
    assert "| dsrg_vgg16_voc | itself | stage1 | 8,000 | 8.0 h |" in ours  # as timed
    row = next(line for line in ours.splitlines() if line.startswith("| dsrg_vgg16_voc | itself | stage1"))
    assert row.endswith("| bench |")
    assert any(
        line.startswith("| sec_vgg16_voc ") and line.endswith("| model |") for line in ours.splitlines()
    )
    assert "not measured" in text
    assert "kWh" in text
