"""What lies in a user's folders stays as it is, whatever runs there and whatever a run's folder says of itself."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from parity_tests.conftest import ROOT
from parity_tests.finished_runs import write_run
from repro.cli import run_command
from repro.config import load_config
from repro.data import write_cues, write_mask
from repro.data.coco import CocoInstances
from repro.data.mini import MARKER, build_mini
from repro.errors import InputError
from repro.files import LOCK_NAME, lock_folder, temporary_folder
from repro.models import load_net
from repro.report import report_all, report_runs, write_index
from weights_conversion import save_safetensors, write_caffemodel
from weights_conversion.files import (
    clear_leftovers,
    file_sha256,
    is_plain_name,
    path_inside,
    record_temporaries,
    temporary_name,
    write_text,
)

LOOK_ALIKES = (
    *(".env.template", ".gitlab.template.yml", "sub/.app.database", ".eslintrc.backup00.js"),
    *(
        ".scores.abcdefgh.json",
        ".sec-dsrg-tmp-notes",
        ".sec-dsrg-tmp-1-abc.txt",
        "stage1/.iter_2.abcdefgh.state",
    ),
)


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def a_run(folder: Path):
    from repro.run_folder import Run

    return Run(load_config("mini", [f"output={folder}"]), torch.device("cpu"))


# --- temporary files ----------------------------------------------------------------------------------------


def test_a_run_in_a_projects_folder_removes_nothing(tmp_path):
    for name in LOOK_ALIKES:
        write_text(tmp_path / name, name)
    before = content(tmp_path)
    a_run(tmp_path).begin()
    assert before.items() <= content(tmp_path).items()


def test_what_a_killed_process_left_is_removed_where_it_wrote_and_nowhere_else(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    code = (
        "import os, sys; from pathlib import Path; from repro.files import *\n"
        "from weights_conversion.files import record_temporaries\n"
        "run = Path(sys.argv[1]); run.mkdir(); record_temporaries(run)\n"
        "names = ('a.txt', 'masks/deep/b.png', '../elsewhere/c.txt')\n"
        "writing = [atomic_path(run / name) for name in names]; [one.__enter__() for one in writing]\n"
        "os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(run)], cwd=ROOT, check=False).returncode == 9
    left = list(tmp_path.rglob(".sec-dsrg-tmp-*"))
    assert len(left) == 3
    other = run / "others" / temporary_name(suffix=".png")  # a folder that the run's record does not name
    write_text(run / "others" / "x", "")
    other.write_text("")
    (run / "masks" / "link").symlink_to(elsewhere)
    (run / "masks" / "deep" / temporary_name()).symlink_to(elsewhere)
    with (run / ".sec-dsrg-folders").open("a") as record:
        record.write("../elsewhere\nmasks/link\n/\n\n..\nmasks/../../elsewhere\n" + str(elsewhere) + "\n")
    clear_leftovers(run)
    still = {path for path in tmp_path.rglob(".sec-dsrg-tmp-*") if not path.is_symlink()}
    assert still == {other, *elsewhere.iterdir()}
    assert len(list(elsewhere.iterdir())) == 1


def test_the_record_names_each_folder_once(tmp_path):
    record_temporaries(tmp_path)
    for number in range(5):
        write_text(tmp_path / "masks" / f"{number}.txt", "")
    assert (tmp_path / ".sec-dsrg-folders").read_text() == "masks\n"
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == [f"{n}.txt" for n in range(5)]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_threads_that_write_leave_the_umask_alone(tmp_path, umask):
    """The mask is the process's: one thread that sets it for a moment changes what all others write."""
    code = f"""
import os, threading
from pathlib import Path
from weights_conversion.files import write_text
os.umask({umask})
def refuse(mask): raise AssertionError("the umask is the process's")
os.umask = refuse
folder = Path({str(tmp_path)!r})
def write(n): [write_text(folder / f"{{n}}-{{k}}", "") for k in range(20)]
threads = [threading.Thread(target=write, args=[n]) for n in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    written = list(tmp_path.iterdir())
    assert len(written) == 80
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o666 & ~umask}


@pytest.mark.parametrize("length", [1, 250, 255])
def test_a_temporary_name_is_never_too_long(tmp_path, length):
    write_text(tmp_path / ("n" * length), "text")
    write_text(tmp_path / ("." + "s" * (length - 1) if length > 1 else "s"), "text")
    with pytest.raises(OSError, match="File name too long"):
        write_text(tmp_path / ("n" * 252 + ".png"), "text")


def test_a_lock_is_not_written_through_a_link(tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / LOCK_NAME).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        lock_folder(folder)
    assert victim.read_text() == "mine"


# --- the folder of a run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.yaml", "manifest.json"])
def test_a_run_does_not_overwrite_another_programs_file(tmp_path, name):
    (tmp_path / name).write_text('{"name": "my application"}')
    before = content(tmp_path)
    with pytest.raises(InputError, match=f"holds a {name} that is no run's"):
        a_run(tmp_path).begin()
    assert content(tmp_path) == before


def test_a_step_does_not_take_over_a_folder_of_others(tmp_path):
    write_text(tmp_path / "stage1" / "log.csv", "mine")
    run = a_run(tmp_path)
    expected = pytest.raises(InputError, match=r"stage1: holds log\.csv, which is no run's")
    with expected, run.step("stage1", {}) as step:
        step.begin()
    assert content(tmp_path) == {"stage1/log.csv": b"mine"}


def test_a_copied_run_is_still_a_run(tmp_path):
    """Without its hidden files, as ``cp -r run/*`` leaves it."""
    a_run(tmp_path).begin()
    (tmp_path / LOCK_NAME).unlink()
    a_run(tmp_path).begin()


def test_output_dot_has_the_folders_name(tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    assert load_config("mini", ["output=."]).run_dir == tmp_path / "project"
    assert load_config("mini", ["output=a"]).run_dir == Path("a")


# --- results folders ----------------------------------------------------------------------------------------

LEAD_OUT = (
    "../victim.txt",
    "/etc/hostname",
    "a/../../victim.txt",
    "link/victim.txt",
    "",
    ".",
    "..",
    "a//b",
    "a\0b",
)


@pytest.mark.parametrize("name", [*LEAD_OUT, 3, None, ["a"], "\ud800", "n" * 300])
def test_names_that_lead_out(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    assert path_inside(tmp_path / "in", name) is None
    assert not is_plain_name(name)


@pytest.mark.parametrize("name", ["a", "a b", "ä.txt", "a..b", "-x"])
def test_names_that_stay(tmp_path, name):
    assert path_inside(tmp_path, f"deep/{name}") == tmp_path / "deep" / name
    assert is_plain_name(name)
    assert not is_plain_name(f"deep/{name}")
    assert not is_plain_name(f".{name}")


def test_tables_remove_nothing_that_is_not_theirs(tmp_path, no_figures):
    run, _ = write_run(tmp_path / "runs", "a", "+DSRG")
    out, victim = tmp_path / "out", tmp_path / "victim.txt"
    out.mkdir()
    for path in (victim, out / "notes.txt", out / "stale.txt", out / "changed.txt"):
        path.write_text("mine")
    (out / "link").symlink_to(tmp_path)
    (out / "linked.txt").symlink_to(victim)
    digest = "a" * 64
    mine = file_sha256(victim)
    names = ("../victim.txt", str(victim), "link/victim.txt", "linked.txt", "changed.txt", "..", "\ud800")
    listed = {**dict.fromkeys(names, mine), "changed.txt": digest, "stale.txt": mine, "tables": mine}
    (out / "manifest.json").write_text(json.dumps({"runs": {}, "measured": {}, "files": listed}))
    report_runs([run], out)
    assert victim.read_text() == "mine"
    assert (out / "notes.txt").read_text() == (out / "changed.txt").read_text() == "mine"
    assert (out / "linked.txt").is_symlink()
    assert not (out / "stale.txt").exists()  # listed, in the folder, and the bytes that were written: ours
    written = json.loads((out / "manifest.json").read_text())["files"]
    assert {"README.md", "index.html", "tables/table2.csv"} <= written.keys()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    report_runs([run], out)  # and again


@pytest.mark.parametrize(
    "name", ["README.md", "index.html", "verdict.json", "tables/table2.csv", "manifest.json"]
)
def test_tables_overwrite_nothing_that_is_not_theirs(tmp_path, no_figures, name):
    run, _ = write_run(tmp_path / "runs", "a", "+DSRG")
    write_text(tmp_path / "out" / name, "{}")
    with pytest.raises(InputError, match=name.rpartition("/")[2]):
        report_runs([run], tmp_path / "out")
    assert {key: value for key, value in content(tmp_path / "out").items() if key != LOCK_NAME} == {
        name: b"{}"
    }


def test_tables_write_through_no_link(tmp_path, no_figures):
    run, _ = write_run(tmp_path / "runs", "a", "+DSRG")
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "tables").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="was not written by an earlier call"):
        report_runs([run], tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("family", ["/x", "..", "../x", "a/b", "", ".git", ".", "a\0b", 3, None, ["a"]])
def test_a_family_is_one_folder_among_the_results(tmp_path, no_figures, family):
    write_run(tmp_path / "runs", "a", "+DSRG", family=family)
    (tmp_path / "results").mkdir()
    with pytest.raises(InputError, match=r"scores_stage1\.json: (no scores file: )?family"):
        report_all(tmp_path / "runs", tmp_path / "results")
    assert not list((tmp_path / "results").iterdir())


def test_a_scores_files_own_name_leads_nowhere(tmp_path, no_figures):
    folder, _ = write_run(tmp_path, "a", "+DSRG")
    (folder / "scores_stage1.json").rename(folder / "scores_...json")
    with pytest.raises(InputError, match="its own name"):
        report_runs([folder], tmp_path / "out")


def test_a_killed_reports_folder_goes_with_the_next(tmp_path, no_figures):
    run, _ = write_run(tmp_path / "runs", "a", "+DSRG")
    left = tmp_path / "out" / temporary_name()
    write_text(left / "tables" / "x.md", "")
    write_text(tmp_path / ".out.new" / "mine.txt", "mine")
    report_runs([run], tmp_path / "out")
    assert not left.exists()
    assert (tmp_path / ".out.new" / "mine.txt").exists()


def test_a_folder_in_use_is_no_leftover(tmp_path):
    with temporary_folder(tmp_path) as first, temporary_folder(tmp_path) as second:
        assert first.is_dir()
        assert second.is_dir()
    assert not list(tmp_path.iterdir())


def test_a_report_builds_no_data_set(tmp_path, no_figures):
    run, _ = write_run(tmp_path / "runs", "a", "+DSRG", dataset="mini", images=40)
    config = load_config("mini", [f"dataset.root={tmp_path}/new", f"output={tmp_path}/runs/a"])
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump()))
    (run / "manifest.json").write_text("{}")
    report_runs([run], tmp_path / "out")
    assert not (tmp_path / "new").exists()


def test_coco_image_names_lead_nowhere(tmp_path):
    for name in ("..", ".", "", "a\0b.jpg", "/", "n" * 300):
        image = {"id": 1, "file_name": name, "height": 2, "width": 2}
        content = {"images": [image], "annotations": [], "categories": []}
        (tmp_path / "a.json").write_text(json.dumps(content))
        with pytest.raises(InputError):
            CocoInstances(tmp_path / "a.json")


def test_an_index_that_is_not_ours_stays(tmp_path, caplog):
    (tmp_path / "index.html").write_text("<title>My page</title>")
    write_index(tmp_path)
    assert (tmp_path / "index.html").read_text() == "<title>My page</title>"
    assert "not a page of ours" in caplog.text
    (tmp_path / "index.html").unlink()
    write_index(tmp_path)
    write_index(tmp_path)
    assert caplog.text.count("not a page of ours") == 1


# --- the embedded set ---------------------------------------------------------------------------------------


def test_what_lies_beside_the_embedded_set_stays_when_it_is_built_again(tmp_path):
    root = tmp_path / "mini"
    build_mini(root, train=2, val=1)
    others = (
        "notes.txt",
        "JPEGImages/cat.jpg",
        "SegmentationClass/cat.png",
        "runs/a/manifest.json",
        ".hidden/x",
    )
    for name in others:
        write_text(root / name, name)
    (root / "link").symlink_to(tmp_path)
    build_mini(root, train=1, val=1)
    assert {name for name in others if (root / name).read_text() == name} == set(others)
    assert (root / "link").is_symlink()
    assert json.loads((root / MARKER).read_text())["train"] == 1
    assert not (root / "JPEGImages" / "mini_train_0001.jpg").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mini"]


def test_an_embedded_set_behind_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "mini").symlink_to(tmp_path / "disk")
    build_mini(tmp_path / "mini", train=1, val=1)
    build_mini(tmp_path / "mini", train=2, val=1)
    assert (tmp_path / "mini").is_symlink()
    assert (tmp_path / "disk" / "JPEGImages" / "mini_train_0001.jpg").exists()


# --- the checkout -------------------------------------------------------------------------------------------


def git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    if done.returncode > 1:
        pytest.skip("not a git checkout")
    return done.stdout.split()


def test_what_a_call_writes_is_ignored_by_git():
    """Else every later manifest would say that the code was changed."""
    written = [
        *("results/mini/README.md", "results/mini/tables/table2.csv", "results/paper/manifest.json"),
        *(
            "results/index.html",
            "results/runs/mini/stage1/log.csv",
            "results/bench/bench.md",
            "results/mini.onnx",
        ),
        *("data/mini/mini.json", "data/VOCdevkit/VOC2012/JPEGImages/a.jpg"),
    ]
    assert git("check-ignore", *written) == written
    assert git("check-ignore", "results/published/mini/README.md") == []
    published = git("ls-files", "results")
    assert {name.split("/")[1] for name in published} == {"published"}


def test_publishing_is_a_call_of_its_own(tmp_path, monkeypatch, no_figures):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "results" / "runs", "a", "+DSRG", family="mini")
    assert run_command(["tables"]) == 0
    assert not (tmp_path / "results" / "published").exists()
    assert run_command(["tables", "--publish"]) == 0
    assert (tmp_path / "results/mini/README.md").read_bytes() == (
        tmp_path / "results/published/mini/README.md"
    ).read_bytes()
    assert run_command(["tables", "results/runs/a", "--out", "x", "--publish"]) == 2


# --- names that a call is given for what it writes --------------------------------------------------------------


NET = (
    'name: "n" input: "data" input_shape { dim: 1 dim: 3 dim: 9 dim: 9 }\n'
    'layer { name: "c" type: "Convolution" bottom: "data" top: "c" '
    "convolution_param { num_output: 2 kernel_size: 3 } }\n"
)


@pytest.fixture
def inputs(tmp_path):
    """A net with weights, labels, cues and COCO's objects."""
    (tmp_path / "n.prototxt").write_text(NET)
    write_caffemodel(load_net(tmp_path / "n.prototxt"), tmp_path / "w.caffemodel")
    (tmp_path / "l.csv").write_text("image,classes\nx,cat\n")
    write_cues(tmp_path / "c.pickle", {0: ([1], [[1], [2], [3]])})
    coco = {
        "images": [{"id": 1, "file_name": "x.jpg", "height": 4, "width": 4}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 3, 0, 3, 3]], "iscrowd": 0}
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    return tmp_path


TARGETS = {
    "convert n.prototxt w.caffemodel": ("out.py", "out.npz", "out.safetensors", "out.h5", "out.caffemodel"),
    "prototxt --config mini": ("out.prototxt",),
    "data labels l.csv": ("out.csv",),
    "data cues c.pickle": ("out.h5",),
}
CALLS = [(command, name) for command, names in TARGETS.items() for name in names]


@pytest.mark.parametrize(("command", "name"), CALLS, ids=[name for _, name in CALLS])
def test_a_file_of_another_kind_stays(inputs, capsys, monkeypatch, command, name):
    monkeypatch.chdir(inputs)
    Path(name).write_text("mine\n")
    before = content(inputs)
    assert run_command([*command.split(), name]) == 2
    assert f"repro: {name}: exists and holds no " in capsys.readouterr().err
    assert content(inputs) == before
    Path(name).unlink()
    for _ in range(2):  # what an earlier call wrote is replaced
        assert run_command([*command.split(), name]) == 0


@pytest.mark.parametrize(
    "command",
    [
        "convert n.prototxt w.caffemodel w.caffemodel",
        "prototxt --config mini n.prototxt",
        "convert n.prototxt beside.safetensors beside.py",
        "data labels l.csv l.csv",
    ],
)
def test_what_a_call_reads_is_not_its_target(inputs, capsys, monkeypatch, command):
    monkeypatch.chdir(inputs)
    assert run_command(["convert", "n.prototxt", "w.caffemodel", "beside.safetensors"]) == 0
    capsys.readouterr()
    before = content(inputs)
    assert run_command(command.split()) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert content(inputs) == before


@pytest.mark.parametrize(
    "name", ["theirs.caffemodel", "theirs.h5", "theirs.npz", "theirs.safetensors", "theirs.onnx"]
)
def test_weights_of_others_in_the_same_form_stay(inputs, capsys, monkeypatch, name):
    """Two names in the wrong order do not cost a model that exists once."""
    monkeypatch.chdir(inputs)
    theirs = load_net(inputs / "n.prototxt")
    if name.endswith(".safetensors"):
        save_safetensors(theirs, name)
    elif name.endswith(".onnx"):
        onnx = pytest.importorskip("onnx")
        graph = onnx.helper.make_graph([], "g", [], [])
        onnx.save_model(onnx.helper.make_model(graph, producer_name="pytorch"), name)
    else:
        with torch.no_grad():
            theirs.get_parameter("c.weight").add_(1)
        write_caffemodel(theirs, "other.caffemodel")
        assert run_command(["convert", "other.caffemodel", name]) == 0
    capsys.readouterr()
    before = content(inputs)
    net = ["n.prototxt"] if name.endswith(".onnx") else []
    assert run_command(["convert", *net, "w.caffemodel", name]) == 2
    assert f"repro: {name}: exists " in capsys.readouterr().err
    assert content(inputs) == before
    Path(name).unlink()
    for _ in range(2):  # what an earlier call wrote is no obstacle
        assert run_command(["convert", *net, "w.caffemodel", name]) == 0


def test_weights_beside_a_target_are_not_replaced_unasked(inputs, capsys, monkeypatch):
    monkeypatch.chdir(inputs)
    call = ["convert", "n.prototxt", "w.caffemodel"]
    assert run_command([*call, "mine.safetensors"]) == 0
    capsys.readouterr()
    before = content(inputs)
    assert run_command([*call, "mine.py"]) == 2
    assert "mine.safetensors: exists without mine.py, which is written with it" in capsys.readouterr().err
    assert content(inputs) == before


def test_masks_of_coco_take_over_no_folder(inputs, capsys, monkeypatch):
    monkeypatch.chdir(inputs)
    write_mask(Path("masks/x.png"), np.ones((4, 4), np.uint8))
    before = content(inputs)
    call = ["data", "coco-masks", "coco.json"]
    assert run_command([*call, "masks"]) == 2
    assert "x.png exists and no settings.json says what made it" in capsys.readouterr().err
    assert content(inputs) == before
    assert [run_command([*call, "fresh"]) for _ in range(2)] == [0, 0]
    text = Path("coco.json").read_text()
    Path("coco.json").write_text(f"{text} ")  # another annotation file
    before = content(inputs)
    assert run_command([*call, "fresh"]) == 2
    assert "made with annotations_sha256" in capsys.readouterr().err
    assert content(inputs) == before
