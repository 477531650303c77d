"""One way to call and one way to answer: examples can be pasted, every verb answers as text or as JSON."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator

import pytest
import typer

from parity_tests.conftest import CAFFE_FILES, ROOT
from repro.cli import run_command
from repro.cli.shared import Answer, app, verb
from repro.config import load_config
from repro.config.load import STAGES
from repro.errors import InputError
from repro.files import write_report
from repro.profiles import profile_names

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def leaves(group, path=()) -> Iterator[tuple[tuple[str, ...], typer.core.TyperCommand]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


VERBS = dict(leaves(typer.main.get_command(app)))


STAGES_RUN = {"reproduce": STAGES, "bench": ("stage1",), "seeds": ("stage0",)}


def parsed(line: str) -> None:
    """Raise what the parser raises for a command line, and what a profile does for its settings."""
    _, *words = shlex.split(line, comments=True)
    if words == ["--help"]:
        return
    path = next(path for path in VERBS if tuple(words[: len(path)]) == path)
    given = VERBS[path].make_context(" ".join(("repro", *path)), words[len(path) :]).params
    profile, settings = given.get("config"), given.get("overrides")
    if profile in profile_names() and settings:
        stages = (f"stage{given['stage'] or 1}",) if path == ("train",) else STAGES_RUN.get(path[0], ())
        load_config(profile, settings, stages=stages)


def answer(capsys, *arguments) -> dict | list:
    capsys.readouterr()
    assert run_command([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# --- examples -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_examples_of_help_can_be_pasted(path, capsys):
    assert run_command([*path, "--help"]) == 0
    text = capsys.readouterr().out
    _, _, examples = re.split(r"^  (Examples?:)\n", text, flags=re.MULTILINE)
    commands = re.split(r"\n\n", examples.strip("\n"))
    for command in commands:
        first, *more = command.split("\n")
        assert first.startswith(f"  repro {' '.join(path)}")
        assert all(line.endswith(" \\") for line in [first, *more][:-1])
        parsed(command.replace("\\\n", " "))
    assert "--json" in text


def pasted() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        fences = re.findall(
            r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
        for _, block in fences:
            for line in block.replace("\\\n", " ").splitlines():
                if re.match(r"\s*(\.venv/bin/)?repro ", line) and "…" not in line:
                    yield page.name, " ".join(line.split())


@pytest.mark.parametrize(("page", "line"), list(pasted()))
def test_commands_on_the_pages_are_accepted(page, line):
    parsed(line)


def runs_of_profiles() -> Iterator[str]:
    """The commands at the heads of the profiles, and those of make with their settings."""
    for page in [*PAGES, *sorted((ROOT / "repro/profiles").glob("*.yaml"))]:
        text = re.sub(r"\\\n[# ]*", " ", page.read_text(encoding="utf-8"))
        if page.suffix == ".yaml":
            yield from re.findall(r"^#(?: Run)? +(repro [^\n(]*)", text, re.MULTILINE)
        for made in re.findall(r"make reproduce-voc .*", text):
            profile = re.search(r"PROFILE=(\w+)", made)
            settings = re.search(r'ARGS="([^"]*)"', made)
            if settings:
                yield f"repro reproduce --config {profile[1] if profile else 'dsrg_vgg16_voc'} {settings[1]}"


@pytest.mark.parametrize("line", sorted(set(runs_of_profiles())))
def test_commands_at_the_heads_of_profiles_are_accepted(line):
    parsed(line)


def test_a_stale_key_on_a_page_is_found():
    with pytest.raises(InputError, match=r"of which stage\?"):
        parsed("repro reproduce --config mini init.weights=x.caffemodel")


def test_pages_show_commands():
    assert len(set(runs_of_profiles())) > 8
    assert {"voc.md", "own_data.md", "onnx.md", "results.md"} <= {page for page, _ in pasted()}


# --- answers ------------------------------------------------------------------------------------------------


def test_answers_as_json(mini_root, tmp_path, capsys):
    root = tmp_path / "mini"
    shutil.copytree(mini_root, root)
    assert answer(capsys, "data", "mini", root) == {"root": str(root)}
    masks = root / "SegmentationClass"
    scores = answer(
        capsys,
        *("evaluate", "--pred", masks, "--gt", masks, "--num-classes", 7),
        *("--list", root / "ImageSets/Segmentation/val.txt"),
    )
    assert scores["mean_iou"]["released"] == 1
    assert len(scores["per_class_iou"]) == len(scores["classes"]) == 7
    cues = ("--cues", root / "localization_cues.pickle", "--input-list", root / "input_list.txt")
    figures = answer(capsys, "seeds", "score", "--config", "mini", *cues, "--masks", masks)
    assert 0 < figures["precision"] <= 1
    labels = answer(
        capsys, "data", "labels", root / "localization_cues.pickle", tmp_path / "l.csv", "--config", "mini",
        *cues[2:],
    )  # fmt: skip
    assert labels == {"labels": str(tmp_path / "l.csv"), "images": figures["images"], "without_label": 0}
    runs = answer(capsys, "reproduce", "--config", "mini", "--dry-run", f"dataset.root={root}", "device=cpu")
    assert runs["runs"]
    assert runs["forecast"]


def test_answers_as_json_without_a_data_set(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sources = answer(capsys, "data", "fetch", "--dry-run")
    assert {"VOC2012", "vgg16_20M"} & {source["name"] for source in sources}
    net = answer(capsys, "inspect", CAFFE_FILES / "vgg16_cam_deploy.prototxt")
    assert net["layers"]
    weights = answer(capsys, "inspect", CAFFE_FILES / "toy_iter_6.caffemodel")
    assert weights["report"]
    target = tmp_path / "toy.safetensors"
    assert answer(capsys, "convert", CAFFE_FILES / "toy_iter_6.caffemodel", target)["written"] == [
        str(target)
    ]


def test_json_has_no_nan(tmp_path, capsys):
    """Python writes NaN and Infinity, which no other reader of JSON takes."""

    def refuse(constant):
        raise AssertionError(constant)

    data = {"scores": [1.5, float("nan")], "rows": ({"loss": float("-inf")},), "path": tmp_path}
    group = typer.Typer()
    verb(group, "report", examples="repro report")(lambda: Answer(data, []))
    group.registered_commands[0].callback(as_json=True)
    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found == {"scores": [1.5, None], "rows": [{"loss": None}], "path": str(tmp_path)}
    write_report(tmp_path / "report.json", {"loss": float("nan")})
    assert json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse) == {"loss": None}


def test_a_checks_failure_is_an_answer_too(tmp_path, capsys):
    """One document on standard output where there is a report; what fails is said on standard error."""
    (tmp_path / "JPEGImages").mkdir()
    assert run_command(["data", "verify", str(tmp_path), "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["ok"] is False
    assert re.fullmatch(r"repro: .* checks failed: .*\n", captured.err)
    assert run_command(["data", "verify", str(tmp_path / "nowhere"), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("repro: ")


# --- what is misspelt ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "repro: No such command 'trian'. Did you mean 'train'?; repro --help shows"),
        (["data", "feth"], "Did you mean 'fetch'?; repro data --help shows"),
        (["train", "--confg", "mini"], "No such option: --confg; did you mean '--config'?"),
        (
            ["train", "--config", "mini", "sovler.max_iter=5"],
            "sovler.max_iter=5 on the command line: unknown key 'sovler'; did you mean 'stage0.solver.max_iter'",
        ),
        (["train", "--num-classes", "3"], "; a setting is given as model.num_classes=VALUE"),
        (["train", "--loss.expand=true"], "; a setting is given as stage1.loss.expand=VALUE"),
        (["predict", "--devcie", "cpu"], "No such option: --devcie; a setting is given as device=VALUE;"),
        (["train", "--solver.max-iter=3"], "; a setting is given as stage0.solver.max_iter=VALUE or "),
        (["train", "--lr", "3"], "No such option: --lr; repro train"),
        (["reproduce", "--seds", "3"], "No such option: --seds; did you mean '--seeds'?"),
        (["evaluate", "--max-iter", "3"], "No such option: --max-iter; repro evaluate"),
        (["train", "--device", "cpu"], "No such option: --device; a setting is given as device=VALUE"),
        (
            ["--config", "mini", "train"],
            "--config: goes behind the verb, as in repro VERB --config; repro --help",
        ),
        (["--verison"], "did you mean '--version'?"),
        (["train", "--stage", "3"], "Invalid value for '--stage'"),
        (["evaluate", "--pred", "x"], "Missing option '--gt'"),
        (["convert", "a.npz"], "convert a.npz: expected [NET] SOURCE TARGET"),
        (["convert", "vgg16_aspp", "a.prototxt"], "repro prototxt a.prototxt --config PROFILE"),
        (["check-paper", "nowhere"], "nowhere: no such run folder"),
    ],
)
def test_a_usage_error_is_one_line(capsys, arguments, message):
    assert run_command(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("repro: ")
    assert message in line


@pytest.mark.parametrize("arguments", [[], ["data"]])
def test_no_verb_shows_the_help(capsys, arguments):
    assert run_command(arguments) == 2
    assert "Commands:" in capsys.readouterr().err


# --- how an experiment ends ---------------------------------------------------------------------------------


def test_reproduce_ends_with_the_rows_beside_the_papers(tmp_path, capsys, monkeypatch):
    rows = [("baseline", 52.5, 51.54, None), ("+Retrain", 59.0, 60.25, 1.5)]
    summary = {
        "data": "40 generated images of a set whose name is so long that no line of a terminal could hold it all",
        "rows": [{"row": row, "paper": paper, "ours": ours, "sd": sd} for row, paper, ours, sd in rows],
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    monkeypatch.setattr("repro.run.plan.plan", lambda *arguments, **options: [])
    monkeypatch.setattr("repro.run.reproduce.reproduce", lambda runs: None)
    monkeypatch.setattr("repro.report.report_planned", lambda runs: [tmp_path])
    assert run_command(["reproduce", "--config", "mini"]) == 0
    printed = [re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines()[-5:]]
    assert printed == [
        ["mean IoU, percent", "baseline", "+Retrain"],
        ["paper, VOC 2012 val", "52.5", "59.0"],
        ["here", "51.5", "60.2 ± 1.5"],
        ["here: 40 generated images of a set whose name is so long that no line of a"],
        ["", "terminal could hold it all"],
    ]
    told = answer(capsys, "reproduce", "--config", "mini")
    assert told["results"] == [{"folder": str(tmp_path), **summary}]
