"""Tables from runs' scores: the papers' numbers beside ours, and what may be compared with them."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import yaml

from parity_tests.finished_runs import ROWS, VOC_CLASSES, write_run
from repro.cli import run_command
from repro.config import load_config
from repro.data.mini import CLASSES as MINI_CLASSES
from repro.errors import InputError
from repro.metrics import summarize
from repro.paper.experiments import experiments
from repro.profiles import profile_names, profile_text
from repro.report import report_all, report_runs, score_figures
from repro.report.verdict import expectations, judge
from repro.run.plan import PlannedRun, plan, plan_experiments, plan_rows, settings_sha256
from repro.run.scores import Entry, Scores, incomparable, read_scores

pytestmark = pytest.mark.usefixtures("no_figures")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def markdown_rows(path: Path) -> list[list[str]]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def voc_runs(tmp_path):
    runs = [write_run(tmp_path, *run) for run in (("a", "baseline"), ("b", "+BSL"), ("c", "+DSRG"))]
    return [folder for folder, _ in runs], [entry for _, entry in runs]


def test_published_numbers_are_the_papers():
    found = experiments()
    papers = {method: found.cell(name).paper for method, name in ROWS.items()}
    assert papers == {"baseline": 52.5, "+BSL": 53.6, "+DSRG": 57.6, "+Retrain": 59.0, "SEC": 50.7}
    assert found.cell("table1/DSRG (ResNet101)/test").paper == 63.2
    assert found.cell("table3/DSRG/val").paper == 26.0
    assert found.cell("table3/DSRG/val").paper_per_class()["giraffe"] == 54.3
    assert found.cell("table4/θ_b = 0.90/θ_f = 0.80").paper == 57.45
    assert found.cell("table4/θ_b = ∞/θ_f = 0.85").paper == 55.9
    assert found.cell("figure4/epoch 12/recall").paper == 65.4
    assert found.cell("sec-losses/expand/val").paper == 20.6
    for name in ROWS.values():
        per_class = found.cell(name).paper_per_class()
        assert list(per_class) == VOC_CLASSES
        average = np.mean(list(per_class.values()))
        assert average == pytest.approx(found.cell(name).paper, abs=0.11), name  # +BSL's cells average 53.7


def test_numbers_keep_their_sources():
    text = (resources.files("repro.paper") / "numbers.yaml").read_text(encoding="utf-8")
    assert text.startswith("# Published numbers")
    assert re.search(r"Huang et al\., CVPR 2018.*Kolesnikov & Lampert, ECCV 2016", text)
    assert {"classes_voc", "dsrg", "sec", "third_party"} <= yaml.safe_load(text).keys()


def test_every_table_in_three_formats_and_the_same_bytes_twice(voc_runs, tmp_path):
    folders, _ = voc_runs
    report_runs(folders, tmp_path / "one")
    report_runs(reversed(folders), tmp_path / "two")
    first, second = (
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "one", tmp_path / "two")
    )
    assert first == second
    for name in experiments().tables([]):
        assert {f"tables/{name}.{kind}" for kind in ("md", "csv", "tex")} <= first.keys()
    for name in ("table1", "table2", "table3"):
        assert f"tables/{name}_per_class.csv" in first


def test_rows_on_the_whole_of_val(voc_runs, tmp_path):
    folders, entries = voc_runs
    out = report_runs(folders, tmp_path / "out")
    rows = {row["row"]: row for row in rows_of(out / "tables/table2.csv")}
    assert list(rows) == ["baseline", "+BSL", "+DSRG", "+Retrain"]
    for entry in entries:
        row, ours = rows[entry["method"]], 100 * entry["scores"]["mean_iou"]["voc"]
        assert float(row["paper"]) == experiments().cell(ROWS[entry["method"]]).paper
        assert float(row["ours"]) == pytest.approx(ours, abs=1e-4)
        assert float(row["difference"]) == pytest.approx(ours - float(row["paper"]), abs=2e-4)
        assert (row["runs"], row["seeds"]) == (entry["run"], "0")
    assert (rows["+Retrain"]["ours"], rows["+Retrain"]["runs"], rows["+Retrain"]["difference"]) == (
        "no run",
        "",
        "",
    )

    text = (out / "tables/table2.md").read_text(encoding="utf-8")
    assert "1449 images of VOC 2012 val, as the paper's numbers are" in text
    assert "not comparable" not in text
    assert ["+Retrain", "no run", "59.0"] in [row[:3] for row in markdown_rows(out / "tables/table2.md")]


def test_a_table_without_any_run_says_so(voc_runs, tmp_path):
    out = report_runs(voc_runs[0], tmp_path / "out")
    for name in set(experiments().tables([])) - {"table2"}:
        text = (out / "tables" / f"{name}.md").read_text(encoding="utf-8")
        assert "No run answers this table yet." in text
        for row in rows_of(out / "tables" / f"{name}.csv"):
            assert row["ours"] in ("no run", "the VOC server scores it", "the release holds no net with it")
    assert "Thresholds" not in (out / "README.md").read_text(encoding="utf-8")


def test_every_class_beside_the_papers(voc_runs, tmp_path):
    folders, entries = voc_runs
    out = report_runs(folders, tmp_path / "out")
    rows = {row["class"]: row for row in rows_of(out / "tables/table2_per_class.csv")}
    assert list(rows) == [*VOC_CLASSES, "mean"]
    for entry in entries:
        cell = experiments().cell(ROWS[entry["method"]])
        for name, iou in zip(VOC_CLASSES, entry["scores"]["per_class_iou"], strict=True):
            paper = cell.paper_per_class()[name]
            assert float(rows[name][f"{cell.name}:paper"]) == paper
            assert float(rows[name][f"{cell.name}:ours"]) == pytest.approx(100 * iou, abs=1e-4)
            assert float(rows[name][f"{cell.name}:difference"]) == pytest.approx(100 * iou - paper, abs=2e-4)
        mean = 100 * entry["scores"]["mean_iou"]["voc"]
        assert float(rows["mean"][f"{cell.name}:ours"]) == pytest.approx(mean, abs=1e-4)
    assert rows["cat"]["table2/+Retrain/val:ours"] == "no run"


def test_both_rules_where_they_differ(tmp_path):
    folder, entry = write_run(tmp_path, "m", "+BSL", missed=True)
    out = report_runs([folder], tmp_path / "out")
    table = markdown_rows(out / "tables/table2.md")
    row = dict(zip(table[0], next(row for row in table if row[0] == "+BSL"), strict=True))
    means = entry["scores"]["mean_iou"]
    assert row["ours"] == f"{100 * means['voc']:.1f}"
    assert row["ours, released mean"] == f"{100 * means['released']:.1f}"
    assert "20 of 21" in (out / "tables/table2.md").read_text(encoding="utf-8")


def test_one_column_where_the_rules_agree(voc_runs, tmp_path):
    out = report_runs(voc_runs[0], tmp_path / "out")
    assert "ours, released mean" not in markdown_rows(out / "tables/table2.md")[0]


def test_mean_and_spread_over_seeds(tmp_path):
    runs = [write_run(tmp_path, f"r{seed}", "+DSRG", seed=seed) for seed in (2, 0, 1)]
    out = report_runs([folder for folder, _ in runs], tmp_path / "out")
    means = [100 * entry["scores"]["mean_iou"]["voc"] for _, entry in runs]
    row = next(row for row in rows_of(out / "tables/table2.csv") if row["row"] == "+DSRG")
    assert float(row["ours"]) == pytest.approx(np.mean(means), abs=1e-4)
    assert float(row["ours_sd"]) == pytest.approx(np.std(means, ddof=1), abs=1e-4)
    assert (row["seeds"], row["runs"]) == ("0 1 2", "r0 r1 r2")
    text = (out / "tables/table2.md").read_text(encoding="utf-8")
    assert f"{np.mean(means):.1f} ± {np.std(means, ddof=1):.1f}" in text
    assert "standard deviation over the seeds" in text


def test_a_run_named_twice_counts_once(tmp_path):
    folder, _ = write_run(tmp_path, "r", "+DSRG")
    out = report_runs([folder, folder / "scores_stage1.json"], tmp_path / "out")
    row = next(row for row in rows_of(out / "tables/table2.csv") if row["row"] == "+DSRG")
    assert (row["runs"], row["ours_sd"]) == ("r", "")


def test_original_weights_have_a_column_of_their_own(tmp_path):
    ours, _ = write_run(tmp_path, "a", "+DSRG", mean=57.0)
    theirs, _ = write_run(tmp_path, "b", "+DSRG", mean=57.7, origin="original weights")
    out = report_runs([ours, theirs], tmp_path / "out")
    row = next(row for row in rows_of(out / "tables/table2.csv") if row["row"] == "+DSRG")
    assert (float(row["ours"]), float(row["original"]), float(row["difference"])) == (57.0, 57.7, -0.6)
    row = next(row for row in rows_of(out / "tables/table2.csv") if row["row"] == "+BSL")
    assert (row["ours"], row["original"]) == ("no run", "no run")


def test_the_grid_reads_in_two_directions(tmp_path):
    folder, _ = write_run(tmp_path, "a", "+DSRG", mean=57.0, answers=["table4/θ_b = 0.95/θ_f = 0.90"])
    table = markdown_rows(report_runs([folder], tmp_path / "out") / "tables/table4.md")
    assert table[0][:3] == ["ours (paper)", "θ_f = 0.99", "θ_f = 0.95"]
    row = next(row for row in table if row[0] == "θ_b = 0.95")
    assert row[1:5] == ["no run (57.43)", "no run (57.56)", "57.00 (57.64)", "no run (57.67)"]


def test_seeds_of_an_epoch(tmp_path):
    quality = [
        {"epoch": 0.0, "iteration": 0.0, "precision": 0.6, "recall": 0.3, "iou": 0.29},
        {"epoch": 12.0, "iteration": 6349.0, "precision": 0.64, "recall": 0.66, "iou": 0.58},
    ]
    answers = [cell.name for cell in experiments().experiments["figure4"].cells]
    folder, _ = write_run(tmp_path, "a", "+DSRG", answers=answers, seed_quality=quality)
    rows = rows_of(report_runs([folder], tmp_path / "out") / "tables/figure4.csv")
    found = {(row["row"], row["column"]): row["ours"] for row in rows}
    assert float(found["epoch 12", "recall"]) == 66.0
    assert found["epoch 1", "recall"] == "no run"


def test_latex_compiles(voc_runs, tmp_path):
    if shutil.which("pdflatex") is None:
        if os.environ.get("CI"):
            pytest.fail("no pdflatex: .ci/run installs it")
        pytest.skip(
            "no pdflatex here to set the tables with (Debian: apt-get install texlive-latex-recommended)"
        )
    folder, _ = write_run(tmp_path, "d", "SEC", changed={"stage1.solver.max_iter": 5}, missed=True)
    out = report_runs([*voc_runs[0], folder], tmp_path / "out")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    result = subprocess.run(
        command, cwd=out / "tables", capture_output=True, text=True, errors="replace", timeout=600
    )
    assert result.returncode == 0, result.stdout[-2000:]
    assert (out / "tables" / "tables.pdf").stat().st_size > 20_000


@pytest.mark.parametrize(
    ("dataset", "images", "measured", "title"),
    [
        (
            "mini",
            40,
            "Measured on the embedded set: 40 generated images of 7 classes.",
            "mean IoU (generated images)",
        ),
        (
            "mini",
            40,
            "chosen towards the paper's order of the rows, on other seeds than these",
            "mean IoU (generated images)",
        ),
        (
            "voc2012-val",
            80,
            "measured on 80 of the 1449 images of VOC 2012 val",
            "mean IoU on VOC 2012 val",
        ),
        (
            "mini",
            40,
            "measured on 40 images of the embedded set.",
            "mean IoU (generated images)",
        ),
        ("coco-own", 80, "measured on 80 images of COCO own", "mean IoU on COCO own"),
        ("voc2012-train", 80, "measured on 80 images of VOC 2012 train", "mean IoU on VOC 2012 train"),
    ],
)
def test_other_images_are_said_to_be_not_comparable(tmp_path, dataset, images, measured, title):
    folder, _ = write_run(tmp_path, "r", "+DSRG", dataset=dataset, images=images)
    out = report_runs([folder], tmp_path / "out")
    for name in ("table2.md", "table2_per_class.md"):
        head = (out / "tables" / name).read_text(encoding="utf-8").split("|")[0]
        assert measured in head, name
        assert head.startswith(f"# What each part of DSRG adds, {title}"), name
        assert "**not comparable**" in head, name
    rows = {row["row"]: row for row in rows_of(out / "tables/table2.csv")}
    assert all(row["difference"] == "" for row in rows.values())
    assert "difference" not in (out / "tables/table2_per_class.csv").read_text(encoding="utf-8")
    assert rows["+DSRG"]["paper"] == "57.6"


def test_a_class_name_in_common_is_no_common_class(tmp_path):
    """The embedded set has bottles, too; VOC's value does not belong beside them."""
    assert "bottle" in set(MINI_CLASSES) & set(VOC_CLASSES)
    folder, _ = write_run(tmp_path, "r", "+DSRG", dataset="mini", images=40)
    rows = rows_of(report_runs([folder], tmp_path / "out") / "tables/table2_per_class.csv")
    assert [row["class"] for row in rows] == [*MINI_CLASSES, "mean"]
    assert not any("paper" in key for key in rows[0])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda entry: "no object", "a str, a scores file expected"),
        (lambda entry: {k: v for k, v in entry.items() if k != "seed"}, "seed: Field required"),
        (lambda entry: {**entry, "scores": {"mean_iou": 0.5}}, "scores.mean_iou: .*dictionary"),
        (lambda entry: {**entry, "classes": entry["classes"][:5]}, "not those of evaluate for 5 classes"),
        (lambda entry: {**entry, "base": {}}, "base.profile: Field required"),
        (lambda entry: {**entry, "seed_quality": [{"epoch": []}]}, "seed_quality.0.epoch"),
    ],
)
def test_damaged_scores_are_refused(tmp_path, damage, message):
    folder, entry = write_run(tmp_path, "r", "+DSRG")
    (folder / "scores_stage1.json").write_text(json.dumps(damage(entry)))
    with pytest.raises(InputError, match=rf"scores_stage1\.json: .*{message}"):
        report_runs([folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["repro train", [1], {"a": 1}, [["repro"]]])
def test_a_manifest_whose_command_is_no_list_of_words(tmp_path, command):
    folder, _ = write_run(tmp_path, "r", "+DSRG")
    (folder / "config.yaml").write_text("a: 1")
    (folder / "manifest.json").write_text(json.dumps({"steps": {"stage1": {"command": command}}}))
    with pytest.raises(InputError, match=r"manifest\.json: the command of stage1 is no list of words"):
        report_runs([folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("resumed", "seconds"), [(False, 90.0), (True, None)])
def test_the_time_of_a_resumed_step_is_not_known(tmp_path, resumed, seconds):
    """What a run records is its last call's time alone."""
    folder, _ = write_run(tmp_path, "r", "+DSRG")
    (folder / "config.yaml").write_text("a: 1")
    steps = {
        "stage1": {"seconds_last_call": 60.0, "resumed": resumed, "command": ["repro"]},
        "predictions/stage1": {"seconds_last_call": 30.0, "resumed": False, "command": ["repro"]},
    }
    (folder / "manifest.json").write_text(json.dumps({"steps": steps}))
    summary = json.loads((report_runs([folder], tmp_path / "out") / "summary.json").read_text())
    assert summary["rows"][0]["seconds"] == seconds
    measured = json.loads((tmp_path / "out/manifest.json").read_text())["measured"]["r"]["stage1"]
    assert measured == {"seconds_last_call": 60.0, "resumed": resumed}


@pytest.mark.parametrize(
    ("weights", "seconds", "said"),
    [
        (b"its weights", 100.0, "needed, the pre-training that all rows share included, on"),
        (b"other weights", 90.0, "needed, but for the pre-training that all rows share, of which no record"),
    ],
)
def test_pretraining_is_part_of_manifest_and_cost(tmp_path, weights, seconds, said):
    """Known by the hash of the weights that the run began with."""
    sha256 = hashlib.sha256(b"its weights").hexdigest()
    folder, _ = write_run(tmp_path, "r", "+DSRG", dataset="mini", images=40)
    stage1 = {"seconds_last_call": 60.0, "settings": {"inputs_sha256": {"weights": sha256}}}
    masks = {"seconds_last_call": 30.0}
    (folder / "config.yaml").write_text("dataset: {pretrain: 600}")
    (folder / "manifest.json").write_text(
        json.dumps({"steps": {"stage1": stage1, "predictions/stage1": masks}})
    )
    before = tmp_path / "r-pretrained-net"
    (before / "stage1").mkdir(parents=True)
    (before / "stage1/iter_9.safetensors").write_bytes(weights)
    (before / "config.yaml").write_text("seed: 0")
    (before / "manifest.json").write_text(
        json.dumps({"steps": {"stage1": {"seconds_last_call": 10.0, "command": ["repro", "first"]}}})
    )
    out = report_runs([folder], tmp_path / "out")
    assert json.loads((out / "summary.json").read_text())["rows"][0]["seconds"] == seconds
    found = json.loads((out / "manifest.json").read_text())
    is_recorded = weights == b"its weights"
    assert (before.name in found["runs"]) == (before.name in found["measured"]) == is_recorded
    wanted = {"run": before.name, "file": "stage1/iter_9.safetensors", "sha256": sha256}
    assert found["runs"]["r"].get("inputs") == ({"weights": wanted} if is_recorded else None)
    for name in ("README.md", "index.html"):
        page = (out / name).read_text(encoding="utf-8")
        assert said in page
        assert ("repro first" in page) == is_recorded


@pytest.mark.parametrize(
    ("names", "left_out"),
    [
        (["AMD EPYC", "AMD EPYC (AVX2)", "AMD EPYC 7B13 (AVX2)"], 1),
        (["AMD EPYC", "AMD EPYC (AVX2)", "AMD EPYC (AVX512)"], 0),  # nobody knows which of them it was
    ],
)
def test_a_device_under_two_names_is_one(tmp_path, names, left_out):
    folder, _ = write_run(tmp_path, "r", "+DSRG")
    steps = {f"{number}": {"device_name": name} for number, name in enumerate(names)}
    (folder / "config.yaml").write_text("a: 1")
    (folder / "manifest.json").write_text(json.dumps({"steps": steps}))
    summary = json.loads((report_runs([folder], tmp_path / "out") / "summary.json").read_text())
    assert summary["devices"] == names[left_out:]


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ([321, 321], "1449 images of VOC 2012 val, trained on 10582"),
        (
            [161, 161],
            "1449 images of VOC 2012 val, trained on 10582 at half size, 161x161 (the papers: 321x321)",
        ),
        ([225, 321], "1449 images of VOC 2012 val, trained on 10582 at 225x321 (the papers: 321x321)"),
        (None, "1449 images of VOC 2012 val, trained on 10582"),
    ],
)
def test_the_head_says_how_large_the_images_are(tmp_path, size, said):
    """As the run's own settings have it."""
    folder, _ = write_run(tmp_path, "r", "+DSRG")
    data = dict(zip(("new_height", "new_width"), size, strict=True)) if size else {}
    (folder / "config.yaml").write_text(json.dumps({"stage1": {"data": data}}))
    (folder / "manifest.json").write_text('{"steps": {}}')
    out = report_runs([folder], tmp_path / "out")
    assert f"\n\n{said}. Mean IoU in percent." in (out / "README.md").read_text(encoding="utf-8")
    assert f'<p class="note">{said}.</p>' in (out / "index.html").read_text(encoding="utf-8")
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["data"] == said


def test_no_folder_of_the_machine_is_shown(tmp_path):
    folder, _ = write_run(tmp_path, "r", "+DSRG")
    (folder / "config.yaml").write_text(
        "output: null\ndataset: {root: /home/me/a b/VOC2012, cues: data/cues.h5}\nstage1: {lists: [/home/me/x.txt]}\n"
    )
    command = [
        "repro",
        "reproduce",
        "dataset.root=/home/me/a b/VOC2012",
        "list=[/home/me/x.txt,/mnt/y]",
        "1/2",
    ]
    (folder / "manifest.json").write_text(json.dumps({"steps": {"stage1": {"command": command}}}))
    out = report_runs([folder], tmp_path / "out")
    for name in ("manifest.json", "README.md", "index.html"):
        text = (out / name).read_text(encoding="utf-8")
        assert "/home/me" not in text
        assert "/mnt" not in text
    found = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["runs"]["r"]
    assert found["steps"]["stage1"]["command"] == [
        *("repro", "reproduce", "dataset.root=…/VOC2012", "list=[…/x.txt,…/y]", "1/2")
    ]
    assert found["config"]["dataset"] == {"root": "…/VOC2012", "cues": "data/cues.h5"}
    assert found["config"]["stage1"] == {"lists": ["…/x.txt"]}


def test_missing_scores_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for runs, message in (
        ([], "no run given"),
        ([tmp_path / "empty"], "empty: no scores_"),
        ([tmp_path / "x"], "x: "),
    ):
        with pytest.raises(InputError, match=message):
            report_runs(runs, tmp_path / "out")


def test_runs_on_different_images_are_refused(tmp_path):
    runs = [write_run(tmp_path, "a", "+BSL")[0], write_run(tmp_path, "b", "+DSRG", images=80)[0]]
    with pytest.raises(InputError, match="b: images differs from a's"):
        report_runs(runs, tmp_path / "out")


def test_every_family_gets_its_folder(tmp_path):
    runs = tmp_path / "runs"
    write_run(runs, "a", "baseline", family="one")
    write_run(runs, "b", "+BSL", family="one")
    write_run(runs, "c", "+DSRG", dataset="mini", images=40, family="two")
    (runs / "unfinished").mkdir()
    folders = report_all(runs, tmp_path / "results")
    assert [folder.name for folder in folders] == ["one", "two"]
    assert {row["row"]: row["runs"] for row in rows_of(folders[0] / "tables/table2.csv")}["+BSL"] == "b"
    index = (tmp_path / "results/index.html").read_text(encoding="utf-8")
    assert re.findall(r'href="(\w+/index.html)"', index) == ["one/index.html", "two/index.html"]
    assert index.count("No verdict") == 1  # of the embedded set; the other has runs on the whole of val
    with pytest.raises(InputError, match="no finished run in it"):
        report_all(runs / "unfinished", tmp_path / "results")


def test_figures_show_the_classes_that_images_or_masks_show(tmp_path):
    """Of VOC's 21 classes, a set of animals has a few."""
    matrix = np.zeros((21, 21), np.int64)
    matrix[np.ix_([0, 8, 12], [0, 8, 12])] = [[90, 5, 5], [10, 30, 0], [5, 0, 20]]
    matrix[0, 3] = 1  # in a mask alone
    folder, _ = write_run(tmp_path, "a", "+DSRG", scores=summarize(matrix, 10))
    scores = Scores(read_scores([folder]))
    assert scores.entries[0].seen == [0, 3, 8, 12]
    names = ["background", "bird", "cat", "dog"]
    for figures in (score_figures.classes, score_figures.confusion):
        ((_, figure),) = figures(scores)
        assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == names


# --- the verdict ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("means", "status"),
    [([57.2], "reproduced"), ([57.0], "missed"), ([58.11], "missed"), ([56.9, 57.6, 57.0], "reproduced")],
)
def test_within_the_tolerance_or_not(tmp_path, means, status):
    runs = [
        write_run(tmp_path, f"r{seed}", "+DSRG", seed=seed, mean=mean)[0] for seed, mean in enumerate(means)
    ]
    verdict = judge(Scores(read_scores(runs)))
    (judged,) = verdict.of(status)
    assert (judged.cell, judged.value) == ("table2/+DSRG/val", 57.6)
    assert judged.difference == pytest.approx(np.mean(means) - 57.6)
    assert (judged.interval is not None) == (len(means) == 3)
    assert len(verdict.of("not run")) == 62
    assert verdict.sentence().startswith(
        "Reproduced within" if status == "reproduced" else "Not reproduced: 1 of 1"
    )


def test_what_may_not_be_compared_is_no_pass(tmp_path):
    for name, more in (
        ("a", {"images": 80}),
        ("b", {"changed": {"stage1.solver.max_iter": 5}}),
        ("c", {"pretrained": False}),
        ("d", {"dataset": "mini", "images": 40}),
        ("e", {"base": {"profile": "mine", "sha256": "0"}}),
    ):
        folder, _ = write_run(tmp_path, name, "+DSRG", mean=57.6, **more)
        verdict = judge(Scores(read_scores([folder])))
        assert [len(verdict.of(status)) for status in ("reproduced", "missed", "not comparable")] == [0, 0, 1]
        assert verdict.sentence().startswith("No verdict")


def judgement_of(profile: str) -> str | None:
    """Of a run of this profile on the whole of VOC's validation set, which changed nothing."""
    base = plan(profile, ["stage1.init.weights=w"])[0].identity()
    return incomparable(
        Entry({**base, "dataset": "voc2012-val", "images": 1449, "train_images": 9}, Path(), "")
    )


def test_the_profiles_that_are_set_against_the_papers():
    assert [name for name in profile_names() if judgement_of(name) is None] == [
        *(
            "dsrg_resnet101_voc",
            "dsrg_vgg16_coco",
            "dsrg_vgg16_voc",
            "dsrg_vgg16_voc_released",
            "sec_vgg16_voc",
        ),
    ]


def test_a_profile_put_beside_the_papers_is_none_of_theirs(tmp_path, monkeypatch):
    for name in profile_names():
        (tmp_path / f"{name}.yaml").write_text(profile_text(name))
    changed = "{name: short, base: dsrg_vgg16_voc, stage1: {solver: {max_iter: 4000}}}"
    (tmp_path / "short.yaml").write_text(changed)
    monkeypatch.setattr("repro.profiles.resources.files", lambda _: tmp_path)
    assert judgement_of("dsrg_vgg16_voc") is None
    assert judgement_of("short") == "of short, which is no profile of the papers' settings"


def test_the_released_schedule_answers_the_cells_of_its_net_alone():
    """Neither SEC's nor COCO's: another batch size, other images."""
    answered = {cell for run in plan("dsrg_vgg16_voc_released", names=["all"]) for cell in all_answers(run)}
    assert answered == {cell for run in plan("dsrg_vgg16_voc", names=["all"]) for cell in all_answers(run)}
    with pytest.raises(InputError, match="none of its runs is of dsrg_vgg16_voc_released"):
        plan("dsrg_vgg16_voc_released", names=["table3"])


def all_answers(run: PlannedRun) -> list[str]:
    return [cell for cells in run.answers.values() for cell in cells]


def test_check_paper(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_command(["check-paper"]) == 2
    assert "No verdict" in capsys.readouterr().err
    write_run(tmp_path / "results/runs", "a", "+DSRG", mean=57.3, family="paper")
    assert run_command(["check-paper"]) == 0
    assert (
        "table2, +DSRG, val: reproduced, 57.30 against 57.6 (-0.30, allowed ±0.5)" in capsys.readouterr().out
    )
    write_run(tmp_path / "results/runs", "b", "+BSL", mean=51.0, family="paper")
    assert run_command(["check-paper"]) == 1
    out = capsys.readouterr().out
    assert "table2, +BSL, val: missed, 51.00 against 53.6 (-2.60, allowed ±0.5)" in out
    assert "Not reproduced: 1 of 2" in out
    assert "table2, +Retrain, val: not run" in out


def test_something_is_expected_of_every_experiment_of_the_papers():
    assert expectations().keys() == experiments().tables([]).keys()
    assert all(entry.tolerance > 0 and entry.source for entry in expectations().values())


# --- the plan ---------------------------------------------------------------------------------------------------


def test_every_run_is_of_a_profile_and_answers_something():
    found = experiments()
    for profile in found.profiles():
        load_config(profile)
    used = {cell.run for cell in found.cells()}
    assert used - {None} == set(found.runs)


def test_the_grid_of_thresholds_needs_18_runs():
    """34 cells: two rules, fifteen pairs and two one-sided settings each."""
    runs = plan(None, names=["table4"])
    assert sum(len(run.answers["stage1"]) for run in runs) >= 34
    assert len(runs) == len({run.folder for run in runs}) == 18
    by_cell = {cell: run for run in runs for cell in run.answers["stage1"]}
    assert by_cell["table4/θ_b = 0.99/θ_f = 0.85"].folder == Path("results/runs/dsrg_vgg16_voc")
    assert "table2/+DSRG/val" in by_cell["table4-paper-rule/θ_b = 0.99/θ_f = 0.85"].answers["stage1"]
    assert by_cell["table4/θ_b = 0.90/θ_f = 0.99"] is by_cell["table4-paper-rule/θ_b = 0.99/θ_f = 0.99"]
    assert by_cell["table4-paper-rule/θ_b = 0.90/θ_f = 0.99"] is not by_cell["table4/θ_b = 0.90/θ_f = 0.99"]
    # with theta_f infinite the released rule grows nothing, which is +BSL
    assert by_cell["table4/θ_b = 0.99/θ_f = ∞"].config.stage1.loss.cues == "fixed"
    assert "table2/+BSL/val" in by_cell["table4/θ_b = 0.99/θ_f = ∞"].answers["stage1"]
    assert all(set(run.methods) == {"stage1"} for run in runs)  # the table needs no retraining


def test_plans_of_rows_and_experiments_are_the_same_runs():
    rows = plan_rows(load_config("mini"), [0, 3])
    assert [run.folder.name for run in rows] == [
        *("mini-baseline", "mini-bsl", "mini"),
        *("mini-baseline-seed3", "mini-bsl-seed3", "mini-seed3"),
    ]
    table2 = plan_experiments(["table2"], "mini", [], [0, 3])
    assert [run.folder for run in table2] == [run.folder for run in rows]
    assert [run.methods for run in table2] == [run.methods for run in rows]
    assert [settings_sha256(run.config) for run in table2] == [settings_sha256(run.config) for run in rows]


def test_sec_and_its_ablations():
    runs = plan(None, ["dataset.root=x"], names=["sec"])
    losses = {run.folder.name: run.config.stage1.loss for run in runs}
    assert len(runs) == 7
    assert (losses["sec_vgg16_voc-sec-seed"].expand, losses["sec_vgg16_voc-sec-seed"].constrain) == (
        False,
        False,
    )
    assert losses["sec_vgg16_voc-sec-max-pooling"].pooling == "max"
    (sec,) = [run for run in runs if run.folder.name == "sec_vgg16_voc"]
    assert set(sec.answers["stage1"]) == {
        *("table1/SEC/val", "sec-losses/all three/val", "sec-pooling/weighted rank/val"),
        "sec-field-of-view/378 pixels/val",
    }
    elsewhere = {run.folder.name: run.config for run in plan("mini", names=["sec"])}
    assert elsewhere["mini-sec"].model.name == "vgg16_largefov"
    assert elsewhere["mini-sec"].inference.protocol == "sec"


def test_plans_that_cannot_be():
    for arguments, message in (
        ((None,), "give --config or --experiment"),
        (("sec_vgg16_voc", (), {"names": ["table2"]}), "none of its runs is of sec_vgg16_voc"),
        ((None, (), {"names": ["table9"]}), "--experiment table9: expected one of all, table1, table2"),
        (("mini", (), {"originals": ["DSRG=x"]}), "--original DSRG=x: expected ROW=FILE"),
        (("mini", (), {"originals": ["+DSRG=x"]}), r"--original \+DSRG: no such file: x"),
    ):
        profile, overrides, more = (*arguments, (), {})[:3]
        with pytest.raises(InputError, match=message):
            plan(profile, overrides, **more)
