"""Nothing lost: whatever ends a run, the same command resumes from what is whole, to the same bits."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from parity_tests.conftest import CAFFE_FILES, REPRODUCE_MINI
from parity_tests.processes import contents, rows, run_processes
from parity_tests.recorded_files import SMALL, write_both
from repro.cli import run_command
from repro.models import build_model
from repro.training import hooks, loop
from weights_conversion import load_caffe_weights, save_safetensors


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, golden) -> Path:
    return write_both(golden, tmp_path_factory.mktemp("inputs"))


def arguments(inputs: Path, output: Path, stage: int, *more: str) -> list[str]:
    """Everything random switched on, on images small enough for a tenth of a second an iteration."""
    folder = inputs / ("stage1" if stage == 1 else "retrain")
    files = (
        (f"data.cues={folder}/localization_cues.pickle", "data.batch_size=1")
        if stage == 1
        else (f"data.label_root={folder}/labels", "data.batch_size=1")
    )
    return [
        *("train", "--stage", str(stage), "--config", "dsrg_vgg16_voc", "device=cpu", *files),
        *(f"data.image_root={folder}/images", f"data.list={folder}/list.txt"),
        *("data.shuffle=true", "data.mirror=true", "model.dropout=0.5", "model.width_divisor=16"),
        *("solver.iter_size=2", "solver.base_lr=1e-5", "solver.max_iter=6", "solver.snapshot=3"),
        *(f"init.weights={CAFFE_FILES}/stage1_init.caffemodel", "data.workers=0", f"output={output}"),
        *(*SMALL[stage], *more),
    ]


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory) -> dict[int, Path]:
    """Both stages, not interrupted."""
    output = tmp_path_factory.mktemp("whole")
    for stage in (1, 2):
        assert run_command(arguments(inputs, output, stage)) == 0
    return {stage: output / f"stage{stage}" for stage in (1, 2)}


def at_update(monkeypatch, number: int, action) -> None:
    """Do something after the gradients of the n-th update, before its step."""
    update, calls = loop.update, 0

    def wrapped(net, solver, objective, batches, check=None):
        nonlocal calls
        calls += 1
        if calls == number:
            action()
        return update(net, solver, objective, batches, check)

    monkeypatch.setattr(loop, "update", wrapped)


@pytest.mark.parametrize(
    ("stage", "number", "status", "workers"), [(1, signal.SIGTERM, 143, 1), (2, signal.SIGINT, 130, 0)]
)
def test_a_signal_ends_a_run_with_a_snapshot(
    inputs, whole, tmp_path, monkeypatch, capfd, stage, number, status, workers
):
    """And the resumed run has the bits of the uninterrupted one: dropout, order, mirror, crops, two mini-batches."""
    call = arguments(inputs, tmp_path, stage, f"data.workers={workers}")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        at_update(patch, 2, lambda: os.kill(os.getpid(), number))
        assert run_command(call) == status
    folder = tmp_path / f"stage{stage}"
    lines = capfd.readouterr().err.splitlines()
    assert any("stopping after this iteration" in line for line in lines)
    goes_on = f"the same command resumes from iteration 2 ({folder}/iter_2.state)"
    assert lines[-1] == f"repro: {folder}: stopped by {number.name}; {goes_on}"
    assert sorted(path.name for path in folder.glob("iter_*")) == ["iter_2.safetensors", "iter_2.state"]
    assert not (folder / "done.json").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert run_command(call) == 0
    assert contents(folder) == contents(whole[stage])  # iter_2 has gone


def test_a_second_signal_stops_at_once(inputs, tmp_path, monkeypatch, capfd):
    def twice():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    at_update(monkeypatch, 2, twice)
    assert run_command(arguments(inputs, tmp_path, 1)) == 143
    assert "the same command resumes" in capfd.readouterr().err
    assert not list((tmp_path / "stage1").glob("iter_*"))


def at_call(name: str, number: int, action):
    """A patch that does something in the n-th call of this function of the loop or its hooks, before its work."""
    module = loop if hasattr(loop, name) else hooks
    function, calls = getattr(module, name), 0

    def wrapped(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == number:
            action()
        return function(*arguments, **named)

    return lambda patch: patch.setattr(module, name, wrapped)


@pytest.mark.parametrize(
    ("place", "number", "goes_on", "is_reaped"),
    [
        ("update", 4, 3, True),  # before the batch
        ("on_device", 7, 3, False),  # in the first mini-batch of two
        ("backward", 8, 4, False),
        ("write_snapshot", 1, 3, True),
    ],
)
def test_a_worker_that_dies(inputs, whole, tmp_path, monkeypatch, capfd, place, number, goes_on, is_reaped):
    """Wherever the main thread is: PyTorch tells it there, by an exception."""
    others = set(
        multiprocessing.active_children()
    )  # on a busy machine a finished run's workers outlive it a while

    def kill_worker():
        (worker,) = set(multiprocessing.active_children()) - others
        os.kill(worker.pid, signal.SIGKILL)
        if is_reaped:
            worker.join()
        else:
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)

    call = arguments(inputs, tmp_path, 1, "data.workers=1")
    with monkeypatch.context() as patch:
        if place == "backward":
            backward, calls = torch.Tensor.backward, iter(range(1, 100))

            def dies_in_between(tensor, *more, **named):
                if next(calls) == number:
                    tensor.register_hook(lambda gradient: kill_worker())
                return backward(tensor, *more, **named)

            patch.setattr(torch.Tensor, "backward", dies_in_between)
        else:
            at_call(place, number, kill_worker)(patch)
        assert run_command(call) == 1
    folder = tmp_path / "stage1"
    assert capfd.readouterr().err.splitlines()[-1] == (
        f"repro: {folder}: a loader worker has died (killed by SIGKILL); "
        f"the same command resumes from iteration {goes_on} ({folder}/iter_{goes_on}.state)"
    )
    assert run_command(call) == 0
    assert contents(folder) == contents(whole[1])


def test_a_bad_image_in_the_middle(inputs, whole, tmp_path, monkeypatch, capfd, caplog):
    """What was learnt before it stays; once it is mended, the same command goes on."""
    copy = tmp_path / "inputs"
    shutil.copytree(inputs, copy)
    images = copy / "stage1" / "images"
    good = {path: path.read_bytes() for path in images.iterdir()}
    call = arguments(copy, tmp_path / "run", 1, "data.keep_gb=0")
    with monkeypatch.context() as patch:
        at_update(patch, 3, lambda: [path.write_bytes(b"no image") for path in good])
        assert run_command(call) == 2
    assert "the same command resumes from iteration 2" in caplog.text
    assert "list.txt:" in capfd.readouterr().err.splitlines()[-1]
    for path, content in good.items():
        path.write_bytes(content)
    assert run_command(call) == 0
    assert contents(tmp_path / "run" / "stage1") == contents(whole[1])


@pytest.mark.parametrize(
    ("stage", "before", "after"),
    [
        (1, ["solver.max_iter=4"], []),  # not at a snapshot of the longer run
        (
            2,
            ["solver.max_iter=3", "solver.lr_policy=step", "solver.stepsize=3", "solver.gamma=0.5"],
            ["solver.gamma=0.1"],
        ),
    ],
)
def test_a_finished_run_is_lengthened(inputs, whole, tmp_path, caplog, stage, before, after):
    """To the bits of a run that had the longer schedule from the start."""
    caplog.set_level(logging.INFO)
    folder = tmp_path / f"stage{stage}"
    for _ in range(2):
        assert run_command(arguments(inputs, tmp_path, stage, *before)) == 0
    said = f"{folder}: is trained, all {before[0].removeprefix('solver.max_iter=')} iterations"
    assert caplog.text.count(said) == 1  # of the second call
    longer = arguments(inputs, tmp_path, stage, *before[1:], *after)
    assert run_command(longer) == 0
    want = whole[stage]
    if after:  # the rate falls to another one after the third iteration
        assert run_command(arguments(inputs, tmp_path / "want", stage, *before[1:], *after)) == 0
        want = tmp_path / "want" / f"stage{stage}"
    assert contents(folder) == contents(want)
    assert (folder / "done.json").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["solver.max_iter=2"], "made with stage1.solver.max_iter = 3, now 2"),
        (["solver.momentum=0.5"], "made with stage1.solver.m"),
        (["data.mirror=false"], "made with stage1.data.mirror = True, now False"),
        (
            ["solver.lr_policy=poly", "solver.power=0.9"],
            "iteration 1 was trained with lr 1e-05, with these settings it is 8.",
        ),
    ],
)
def test_what_cannot_be_lengthened(inputs, tmp_path, capfd, more, message):
    """And then the finished run stays as it is."""
    assert run_command(arguments(inputs, tmp_path, 1, "solver.max_iter=3")) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run_command(arguments(inputs, tmp_path, 1, *more)) == 2
    assert message in capfd.readouterr().err.splitlines()[-1]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("policy", ["poly", "inv"])
def test_a_finished_run_says_that_it_can_be_lengthened_only_where_it_can(inputs, tmp_path, caplog, policy):
    """Under poly every rate depends on max_iter."""
    caplog.set_level(logging.INFO)
    call = arguments(inputs, tmp_path, 1, f"solver.lr_policy={policy}", "solver.gamma=1", "solver.power=0.9")
    for _ in range(2):
        assert run_command([*call, "solver.max_iter=2"]) == 0
    (said,) = [line for line in caplog.messages if "is trained, all 2 iterations" in line]
    assert said.endswith("; a larger solver.max_iter lengthens it") == (policy == "inv")
    assert run_command([*call, "solver.max_iter=3"]) == (0 if policy == "inv" else 2)


def test_the_state_of_a_snapshot_is_no_weights(inputs, whole, tmp_path, capfd):
    state = min(whole[1].glob("iter_*.state"))
    weights = state.with_suffix(".safetensors")
    alone = tmp_path / state.name
    shutil.copy(state, alone)
    for given, there in ((state, f"{weights} has them"), (alone, "its .safetensors, not there, has them")):
        assert run_command(arguments(inputs, tmp_path / "run", 1, f"init.weights={given}")) == 2
        line = capfd.readouterr().err.splitlines()[-1]
        assert f"{given}: the state of a training snapshot, without weights; {there}" in line


def test_progress_is_a_line_now_and_then_without_a_terminal(inputs, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert run_command(arguments(inputs, tmp_path, 2, "solver.max_iter=5", "solver.display=2")) == 0
    run = f"{tmp_path.name}/stage2: iteration "
    lines = [line for line in caplog.messages if line.startswith(run)]
    assert [line.partition(":")[2].partition(":")[0] for line in lines] == [
        " iteration 0 of 5",
        " iteration 2 of 5",
        " iteration 4 of 5",
    ]
    assert all(re.search(r"lr [\de.-]+, loss [\d.]+, .*images/s", line) for line in lines)


@pytest.mark.parametrize(
    "what", ["weights cut", "weights changed", "state cut", "state changed", "state gone"]
)
def test_a_damaged_snapshot_is_passed_over(inputs, whole, tmp_path, caplog, what):
    caplog.set_level(logging.INFO)
    folder = tmp_path / "stage1"
    shutil.copytree(whole[1].parent, tmp_path, dirs_exist_ok=True)
    (folder / "done.json").unlink()
    path = folder / f"iter_6.{'safetensors' if 'weights' in what else 'state'}"
    content = bytearray(path.read_bytes())
    if "gone" in what:
        path.unlink()
    elif "cut" in what:
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert run_command(arguments(inputs, tmp_path, 1)) == 0
    said = caplog.text
    if "gone" not in what:
        assert f"stage1: the snapshot of iteration 6 is passed over: {path}: damaged" in said
    assert "resuming from iteration 3" in said
    assert contents(folder) == contents(whole[1])


def test_the_newest_snapshots_stay(inputs, tmp_path):
    more = ("solver.snapshot=1", "solver.snapshot_keep=2", "solver.iter_size=1", "solver.max_iter=5")
    assert run_command(arguments(inputs, tmp_path, 2, *more)) == 0
    names = {path.name for path in (tmp_path / "stage2").glob("iter_*")}
    assert names == {f"iter_{n}.{kind}" for n in (4, 5) for kind in ("safetensors", "state")}


@pytest.mark.parametrize(
    ("layer", "scale", "said"),
    [
        (
            "conv3_1",
            float("nan"),
            "layer 'conv3_1', blob 'weight' (weight): 1152 of 1152 values are NaN or infinity",
        ),
        ("conv4_2", 1e38, "the first value that is NaN or infinite: blob conv4_2 (layer conv4_2);"),
    ],
)
def test_where_a_loss_that_is_no_number_comes_from(inputs, tmp_path, capfd, layer, scale, said):
    model = build_model("vgg16_aspp", width_divisor=16)
    load_caffe_weights(model, CAFFE_FILES / "stage1_init.caffemodel")
    with torch.no_grad():
        model.get_submodule(layer).weight.mul_(scale)
    save_safetensors(model, tmp_path / "bad.safetensors")
    call = arguments(inputs, tmp_path / "run", 1, f"init.weights={tmp_path}/bad.safetensors")
    assert run_command(call) == 2
    assert said in capfd.readouterr().err.splitlines()[-1]
    assert not list((tmp_path / "run").rglob("iter_*"))


def test_the_last_good_state_stays_when_the_loss_is_no_number(inputs, tmp_path, capfd):
    """A rate that is too high: the state before the first bad update is kept, and it is good."""
    call = arguments(inputs, tmp_path, 1, "solver.base_lr=1e6", "solver.snapshot=0")
    assert run_command(call) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    iteration = int(re.search(r"at iteration (\d+) ", line)[1])
    assert iteration > 0
    assert re.search(r"NaN or infinite: (blob|loss|gradient|parameter)", line)
    (state,) = (tmp_path / "stage1").glob("*.state")
    assert state.name == f"iter_{iteration}.state"
    history = torch.load(state, weights_only=True)["history"]
    assert all(tensor.isfinite().all() for tensor in history)
    assert all(tensor.isfinite().all() for tensor in load_file(state.with_suffix(".safetensors")).values())
    assert [int(row["iteration"]) for row in rows(tmp_path / "stage1" / "log.csv")] == list(range(iteration))
    assert run_command(call) == 2  # and again, from there, to the same end
    assert f"at iteration {iteration} " in capfd.readouterr().err


# --- SIGKILL --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experiment(mini_root, tmp_path_factory) -> tuple[list[str], Path, int]:
    """A whole experiment cut down: its arguments but for the output, its run's folder, the calls it takes."""
    base = tmp_path_factory.mktemp("experiment")
    call = [
        *REPRODUCE_MINI,
        f"dataset.root={mini_root}",
        *("rows=[+DSRG, +Retrain]", "solver.max_iter=3", "solver.snapshot=1", "solver.snapshot_keep=2"),
        *("data.batch_size=2", "data.workers=0", "inference.crf=false", "pseudo_labels.crf=false"),
        *("dataset.train_limit=3", "dataset.val_limit=2", "model.dropout=0.5", "solver.iter_size=2"),
    ]
    assert run_processes([*call, f"output={base}/r"], base / "log", wound=("count", 0)) == [0]
    return call, base / "r", int(re.search(r"calls: (\d+)", (base / "log").read_text())[1])


def moments(count: int) -> list[tuple[str, int]]:
    """Seeded moments to die at: one inside each kind of writing, the others anywhere, in thousandths of the run."""
    draw = random.Random(8)
    inside = [
        ("state", draw.randint(1, 6)),
        ("weights", draw.randint(1, 6)),
        ("rename", draw.randint(1, 30)),
        ("row", draw.randint(1, 6)),
        ("text", draw.randint(1, 12)),
    ]
    return (inside + [("call", draw.randint(1, 980)) for _ in range(count)])[:count]


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        pytest.param(*moment, marks=[] if place in (0, 1, 3, 7) else pytest.mark.long)
        for place, moment in enumerate(moments(20))
    ],
)
def test_killed_at_any_moment(experiment, tmp_path, kind, number):
    call, whole, calls = experiment
    if kind == "call":
        number = max(1, calls * number // 1000)
    command = [*call, f"output={tmp_path}/r"]
    assert run_processes(command, tmp_path / "log", wound=(kind, number)) == [-signal.SIGKILL]
    assert run_processes(command, tmp_path / "log") == [0], (tmp_path / "log").read_text()
    assert contents(tmp_path / "r") == contents(whole)
