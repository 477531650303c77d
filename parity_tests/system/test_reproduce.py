"""The whole chain: on the embedded set in short, and shorter still on real images where the sample is present."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from parity_tests.conftest import REPRODUCE_MINI
from repro.cli import run_command
from repro.config import load_config
from repro.data import read_id_list, read_mask
from repro.layers import grow_seeds
from repro.run.plan import results_dir
from weights_conversion.files import file_sha256

SHORT = [
    *(
        "solver.max_iter=2",
        "stage1.solver.snapshot=1",
        "data.batch_size=2",
        "data.workers=0",
        "inference.crf=false",
    ),
    *("dataset.train_limit=5", "dataset.val_limit=3"),
]
SHORTER = ["solver.max_iter=1", "dataset.train_limit=2", "dataset.val_limit=2"]  # where there are many runs


pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def arguments(mini_root, tmp_path) -> list[str]:
    return [
        *REPRODUCE_MINI,
        f"dataset.root={mini_root}",
        f"output={tmp_path}/r",
        *SHORT,
    ]


RUNS = (("r-baseline", "stage1"), ("r-bsl", "stage1"), ("r", "stage1"), ("r", "stage2"))


def files_of(folder: Path) -> dict[str, int]:
    """Every file below ``folder`` with its time of writing."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()
    }


def test_every_row_of_table_2(arguments, tmp_path, capsys):
    assert run_command(arguments) == 0
    for name in ("r", "r-baseline", "r-bsl"):
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert {"commit", "command", "versions", "device", "seed", "steps"} <= manifest.keys()
    stage1 = {
        name: load_config(str(tmp_path / name / "config.yaml")).stage1.loss
        for name in ("r", "r-baseline", "r-bsl")
    }
    assert (stage1["r-baseline"].seed, stage1["r-baseline"].cues) == ("seed", "fixed")
    assert (stage1["r-bsl"].seed, stage1["r-bsl"].cues) == ("balanced", "fixed")
    assert (stage1["r"].seed, stage1["r"].cues) == ("balanced", "grown")
    for step in ("stage1", "pseudo_labels", "stage2", "predictions/stage1", "predictions/stage2"):
        assert (tmp_path / "r" / step / "done.json").exists()
    assert len(list((tmp_path / "r" / "pseudo_labels").glob("*.png"))) == 5
    masks = list((tmp_path / "r" / "predictions" / "stage2").glob("*.png"))
    assert len(masks) == 3
    assert all(read_mask(mask, 7).ndim == 2 for mask in masks)

    scores = json.loads((tmp_path / "r" / "scores_stage2.json").read_text())
    assert (scores["method"], scores["images"], scores["train_images"]) == ("+Retrain", 3, 5)
    with (tmp_path / "r-tables" / "tables" / "table2.csv").open(newline="") as file:
        rows = {row["row"]: row for row in csv.DictReader(file)}
    assert rows["+Retrain"]["runs"] == "r"
    assert float(rows["+Retrain"]["ours"]) == pytest.approx(
        100 * scores["scores"]["mean_iou"]["voc"], abs=1e-3
    )
    assert "no photographs" in capsys.readouterr().out

    before = files_of(tmp_path)
    assert run_command(arguments) == 0
    after = files_of(tmp_path)
    redone = {name for name in before if after[name] != before[name]}
    scores = {f"{run}/scores_{stage}.json" for run, stage in RUNS}  # counted again from the masks
    assert {name for name in redone if not name.startswith("r-tables/")} <= scores
    assert after.keys() == before.keys()


def test_bad_input_past_the_data_leaves_nothing(arguments, tmp_path, capsys):
    for override, message in (
        ("stage1.init.weights=/nowhere.caffemodel", "stage1.init.weights: no such file: /nowhere.caffemodel"),
        (
            "init.weights=/nowhere.caffemodel",
            "override init.weights: of which stage? expected stage1.init.weights or",
        ),
        ("model.name=vgg19", "model.name 'vgg19'"),
        ("dataset.train=trian", "dataset.train 'trian': no such list"),
        ("dataset.val=vla", "vla.txt"),
    ):
        assert run_command([*arguments, override]) == 2
        assert message in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


def test_what_is_half_done_is_finished_to_the_same_end(arguments, tmp_path):
    assert run_command([*arguments, "rows=[+DSRG, +Retrain]"]) == 0
    run = tmp_path / "r"
    weights = (run / "stage2" / "iter_2.safetensors").read_bytes()
    scores = (run / "scores_stage2.json").read_text()
    for name in ("stage1/done.json", "stage1/iter_2.state", "pseudo_labels/done.json", "stage2/done.json"):
        (run / name).unlink()
    next(iter(sorted((run / "pseudo_labels").glob("*.png")))).unlink()
    (run / "stage2" / "iter_2.state").unlink()
    assert run_command([*arguments, "rows=[+DSRG, +Retrain]"]) == 0
    assert (run / "stage2" / "iter_2.safetensors").read_bytes() == weights
    assert (run / "scores_stage2.json").read_text() == scores


def test_seeds_are_runs_of_their_own(arguments, tmp_path):
    assert run_command([*arguments, "rows=[+BSL]", "--seeds", "0,1"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"r-bsl", "r-bsl-seed1", "r-tables"}
    table = (tmp_path / "r-tables/tables/table2.md").read_text()
    assert "±" in table
    assert "r-bsl r-bsl-seed1" in table
    one, two = (
        (tmp_path / name / "stage1" / "iter_2.safetensors").read_bytes() for name in ("r-bsl", "r-bsl-seed1")
    )
    assert one != two


def test_every_row_and_seed_of_the_embedded_set_begins_with_the_same_weights(mini_root, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "mini").symlink_to(mini_root)  # the further images go beside it
    call = [
        *(
            "reproduce",
            "--config",
            "mini",
            "device=cpu",
            f"dataset.root={tmp_path}/mini",
            f"output={tmp_path}/r",
        ),
        *(*SHORT, "dataset.pretrain=5"),
    ]
    assert run_command([*call, "rows=[baseline, +BSL]"]) == 0
    steps = [
        ("pre-training on 5 further images, for all rows", "r-pretrained-vgg16_aspp"),
        ("baseline, training of stage 1", "r-baseline/stage1"),
        ("baseline, masks of the validation images and their score", "r-baseline/predictions/stage1"),
        ("+BSL, training of stage 1", "r-bsl/stage1"),
        ("+BSL, masks of the validation images and their score", "r-bsl/predictions/stage1"),
    ]
    announced = [
        f"step {number} of 5: {title} ({tmp_path}/{folder})"
        for number, (title, folder) in enumerate(steps, start=1)
    ]
    further = f"drawing the embedded set of 6 images in {tmp_path}/mini-pretraining"
    assert [line for line in caplog.messages if line.startswith(("step ", further))] == [
        *(announced[0], f"{further}, some seconds", *announced[1:]),
    ]
    assert len(set(caplog.messages)) == len(caplog.messages)
    assert caplog.messages[-1] == f"drawing the page of {tmp_path}/r-tables"
    weights = (
        tmp_path / "r-pretrained-vgg16_aspp/stage1/iter_3.safetensors"
    )  # five images once, two at a time
    written = weights.stat().st_mtime_ns
    assert run_command([*call, "rows=[+DSRG]", "--seeds", "1"]) == 0
    assert weights.stat().st_mtime_ns == written
    assert "is trained" not in caplog.text  # the steps are announced
    for name in ("r-baseline", "r-bsl", "r-seed1"):
        step = json.loads((tmp_path / name / "manifest.json").read_text())["steps"]["stage1"]
        assert step["settings"]["inputs_sha256"]["weights"] == file_sha256(weights)
        assert json.loads((tmp_path / name / "scores_stage1.json").read_text())["pretrained"]
    assert "a net that had learnt the classes" in (tmp_path / "r-tables/tables/table2.md").read_text()
    assert len(list((tmp_path / "mini-pretraining/JPEGImages").glob("mini_train_*"))) == 5
    mine, theirs = (
        root / "JPEGImages/mini_train_0000.jpg" for root in (mini_root, tmp_path / "mini-pretraining")
    )
    assert mine.read_bytes() != theirs.read_bytes()


def test_an_experiment_makes_what_is_missing_and_shares_the_rest(arguments, tmp_path, capsys):
    two = [*arguments, *SHORTER, "rows=[+BSL, +DSRG]"]
    assert run_command(two) == 0
    before = files_of(tmp_path)
    capsys.readouterr()
    experiment = [*two, "--experiment", "table4"]
    assert run_command([*experiment, "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert files_of(tmp_path) == before
    assert "18 runs: " in plan
    assert plan.count("1 of 1 ") == 16  # iterations of stage 1; two runs are there
    assert run_command(experiment) == 0
    after = files_of(tmp_path)
    assert json.loads((tmp_path / "r-bsl/scores_stage1.json").read_text())["method"] == "+BSL"
    again = {name for name in before if after[name] != before[name]}
    assert {name for name in again if not name.startswith("r-tables/")} <= {
        *("r/scores_stage1.json", "r-bsl/scores_stage1.json"),
    }
    assert (
        len([name for name in after if name.endswith("stage1/done.json") and "/predictions/" not in name])
        == 18
    )
    assert "no run" not in (tmp_path / "r-tables/tables/table4.csv").read_text()
    assert "no run" not in (tmp_path / "r-tables/tables/table4-paper-rule.csv").read_text()
    assert run_command([*experiment, "--dry-run"]) == 0
    assert "18 runs: 0 s, 0 MB" in capsys.readouterr().out


def test_the_embedded_set_can_stand_for_every_profile(arguments, tmp_path):
    """Table 1 with ResNet-101, COCO's test script, SEC and its ablations, each stage that its cell needs."""
    call = [*arguments, *SHORTER, "pseudo_labels.crf=false", "--experiment", "table1,table3,sec"]
    assert run_command(call) == 0
    for name in ("r-dsrg-resnet101", "r-dsrg-coco", "r"):
        assert sorted(path.name for path in (tmp_path / name).glob("scores_*")) == ["scores_stage2.json"]
    assert len(list(tmp_path.glob("r-sec*/scores_stage1.json"))) == 7
    for name in ("table1", "table3", "sec-losses", "sec-pooling", "sec-field-of-view"):
        assert "no run" not in (tmp_path / f"r-tables/tables/{name}.csv").read_text()


def test_growing_rules_that_are_one(golden):
    """What the plan counts as the same run: the released rule is the paper's with theta_b raised to theta_f, and
    with an infinite theta_f grows nothing."""
    scene = golden("layers")["scene"]
    labels, cues, refined = (torch.from_numpy(scene[name][()]) for name in ("labels", "cues", "refined"))
    labels = labels.reshape(labels.shape[0], -1)
    for theta_b in (0.3, 0.5, 0.7):
        for theta_f in (0.3, 0.5, 0.7, float("inf")):
            released = grow_seeds(labels, refined, cues, theta_f=theta_f, theta_b=theta_b)
            paper = grow_seeds(
                labels, refined, cues, theta_f=theta_f, theta_b=max(theta_b, theta_f), rule="paper"
            )
            assert torch.equal(released, paper)
            assert torch.equal(released, cues) == (theta_f == float("inf"))


def test_original_weights_are_scored_and_nothing_is_trained(arguments, tmp_path):
    assert run_command([*arguments, "rows=[+DSRG]"]) == 0
    weights = tmp_path / "r/stage1/iter_2.safetensors"
    assert run_command([*arguments, "--original", f"+DSRG={weights}"]) == 0
    folder = tmp_path / "r-original-dsrg"
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == [
        *("config.yaml", "manifest.json", "predictions", "scores_stage1.json"),
    ]
    ours, theirs = (
        json.loads((path / "scores_stage1.json").read_text()) for path in (tmp_path / "r", folder)
    )
    assert theirs["scores"] == ours["scores"]
    assert (ours["origin"], theirs["origin"]) == ("trained here", "original weights")
    with (tmp_path / "r-tables/tables/table2.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["row"] == "+DSRG")
    assert row["original"] == row["ours"]


def test_sec(mini_root, tmp_path):
    """SEC's losses, CRF on raw scores and test protocol, end to end."""
    assert (
        run_command(
            [
                *("reproduce", "--config", "sec_vgg16_voc", "device=cpu", "dataset.kind=mini", *SHORT),
                *(
                    f"dataset.root={mini_root}",
                    f"output={tmp_path}/sec",
                    "init.filler=msra",
                    "model.width_divisor=16",
                ),
                *("data.new_height=113", "data.new_width=113", "model.num_classes=7"),
                "dataset.classes=[background, fish, mushroom, house, tree, wheel, bottle]",
            ]
        )
        == 0
    )
    log = (tmp_path / "sec" / "stage1" / "log.csv").read_text().splitlines()
    assert log[0] == "iteration,lr,loss,loss-Seed,loss-Expand,loss-Constrain"
    assert len(log) == 3
    table = (tmp_path / "sec-tables" / "tables" / "table1.md").read_text()
    assert re.search(r"\| SEC \| val \| [\d.]+ \| 50\.7 \|", table)


def test_where_tables_go():
    assert results_dir(load_config("mini")) == Path("results/mini")
    assert results_dir(load_config("mini", ["output=/a/run"])) == Path("/a/run-tables")


def test_real_images(voc_sample, tmp_path):
    """All stages of the VOC profile on real images with the SEC authors' cues, very short and narrow."""
    root = voc_sample / "VOCdevkit" / "VOC2012"
    arguments = [
        *(
            "reproduce",
            "--config",
            "dsrg_vgg16_voc",
            "device=cpu",
            f"dataset.root={root}",
            f"output={tmp_path}/voc",
        ),
        *("model.width_divisor=16", "init.filler=looks_linear", "solver.max_iter=2", "data.batch_size=2"),
        *("dataset.train_limit=2", "dataset.val_limit=1", "data.workers=0", "rows=[+DSRG, +Retrain]"),
    ]
    assert run_command(arguments) == 0
    name = read_id_list(root / "ImageSets" / "Segmentation" / "val.txt")[0]
    mask = read_mask(tmp_path / "voc" / "predictions" / "stage2" / f"{name}.png")
    assert mask.shape == read_mask(root / "SegmentationClass" / f"{name}.png").shape
    scores = json.loads((tmp_path / "voc" / "scores_stage2.json").read_text())
    assert scores["dataset"] == "voc2012-val"
    assert np.asarray(scores["scores"]["matrix"]).sum() > 100_000
    assert (
        "measured on 1 of the 1449 images of VOC 2012 val"
        in (tmp_path / "voc-tables" / "tables" / "table2.md").read_text()
    )


@pytest.mark.long
def test_the_full_profile_starts(voc_sample, tmp_path):
    """Batch 20, full width, two iterations, nothing tuned."""
    cues = voc_sample / "localization_cues.pickle.gz"
    names = read_id_list(voc_sample / "VOCdevkit/VOC2012/ImageSets/Segmentation/train_aug.txt")
    indices = dict(line.split() for line in (voc_sample / "input_list.txt").read_text().splitlines())
    (tmp_path / "list.txt").write_text("".join(f"{name}.jpg {indices[f'{name}.jpg']}\n" for name in names))
    arguments = [
        *(
            "train",
            "--stage",
            "1",
            "--config",
            "dsrg_vgg16_voc",
            f"data.cues={cues}",
            f"data.list={tmp_path}/list.txt",
        ),
        *(
            f"data.image_root={voc_sample}/VOCdevkit/VOC2012/JPEGImages",
            "solver.max_iter=2",
            f"output={tmp_path}/run",
        ),
    ]
    assert run_command(arguments) == 0
    rows = (tmp_path / "run" / "stage1" / "log.csv").read_text().splitlines()
    assert len(rows) == 3
    first = dict(zip(rows[0].split(","), map(float, rows[1].split(",")), strict=True))
    # scores near 0: every class has probability 1/21, and background and foreground cost log 21 each
    assert first["loss-Seed"] == pytest.approx(2 * np.log(21), rel=0.01)
