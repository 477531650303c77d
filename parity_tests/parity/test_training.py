"""Both recorded trainings, from files through the command line, and what a resumed or repeated call does."""

from __future__ import annotations

import json
import pickle
import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from parity_tests.conftest import CAFFE_FILES, assert_close
from parity_tests.recorded_files import read_log, write_retrain_inputs, write_stage1_inputs
from parity_tests.tolerances import (
    LAYER,
    RESUMED,
    RETRAIN_ACCURACY,
    RETRAIN_LOSS,
    RETRAIN_LOSS_FLOAT32,
    STAGE1_LOSS,
    STAGE1_LOSS_FAST_REL,
    UPDATE_UNDER_RELUS,
    WEIGHTS_AFTER_30,
)
from repro.cli import run_command
from repro.config import load_config
from repro.data import CueDataset, CueFile, LabelMapDataset, make_loader, read_label_list
from repro.layers import interp
from repro.models import build_model
from repro.precision import has_bfloat16
from repro.solver import CaffeSGD
from repro.training.objectives import stage1_objective
from weights_conversion import load_caffe_weights, read_caffemodel, read_solverstate

NARROW = ["model.width_divisor=16", "model.dropout=0"]
IN_ORDER = ["data.mirror=false", "data.shuffle=false"]


@pytest.fixture(scope="session")
def stage1_inputs(tmp_path_factory, golden) -> Path:
    folder = tmp_path_factory.mktemp("stage1_inputs")
    write_stage1_inputs(golden("stage1"), folder)
    return folder


@pytest.fixture(scope="session")
def retrain_inputs(tmp_path_factory, golden) -> Path:
    folder = tmp_path_factory.mktemp("retrain_inputs")
    write_retrain_inputs(golden("retrain"), folder)
    return folder


def stage1_arguments(inputs: Path, output: Path, *more: str) -> list[str]:
    return [
        *("train", "--stage", "1", "--config", "dsrg_vgg16_voc", "device=cpu"),
        *(f"data.image_root={inputs}/images", f"data.list={inputs}/list.txt"),
        *(f"data.cues={inputs}/localization_cues.pickle", "data.batch_size=3", *IN_ORDER, *NARROW),
        *("solver.base_lr=1e-5", "solver.stepsize=10", "solver.max_iter=30"),
        *(f"init.weights={CAFFE_FILES}/stage1_init.caffemodel", f"output={output}", *more),
    ]


@pytest.fixture(scope="session")
def stage1_run(tmp_path_factory, stage1_inputs) -> Path:
    """The recorded 30 iterations, once a session."""
    output = tmp_path_factory.mktemp("stage1") / "run"
    assert run_command(stage1_arguments(stage1_inputs, output, "solver.snapshot=5")) == 0
    return output


def test_image_data_is_caffes(golden, stage1_inputs):
    recorded = golden("stage1")["image_data"]
    cues = CueFile.open(stage1_inputs / "localization_cues.pickle")
    dataset = CueDataset(stage1_inputs / "images", cues.lines(stage1_inputs / "list.txt"), cues)
    for number, batch in enumerate(make_loader(dataset, 3, shuffle=False, seed=0, iterations=2)):
        mean = torch.tensor([104.0, 117.0, 123.0]).reshape(1, 3, 1, 1)
        pictures = (batch["images"] + mean).permute(0, 2, 3, 1)
        assert_close(pictures, recorded[f"batch{number}_uint8_bgr"], 0, f"batch {number}")


def test_resnet101_trains(tmp_path, stage1_inputs):
    """Stage 1 of its profile: the losses fall, the classifiers and convolutions learn, BatchNorm and Scale do not."""
    weights = CAFFE_FILES / "resnet101_aspp.caffemodel"
    arguments = [
        *("train", "--stage", "1", "--config", "dsrg_resnet101_voc", "device=cpu"),
        *(f"data.image_root={stage1_inputs}/images", f"data.list={stage1_inputs}/list.txt"),
        *(f"data.cues={stage1_inputs}/localization_cues.pickle", "data.batch_size=3", *IN_ORDER),
        *("model.width_divisor=16", f"init.weights={weights}", "solver.base_lr=1e-4", "solver.max_iter=4"),
        f"output={tmp_path}",
    ]
    assert run_command(arguments) == 0
    losses = read_log(tmp_path / "stage1")["loss"]
    assert losses[-1] < losses[0]
    before = build_model("resnet101_aspp", width_divisor=16)
    load_caffe_weights(before, weights)
    after = load_file(tmp_path / "stage1" / "iter_4.safetensors")
    for name, values in before.state_dict().items():
        assert torch.equal(after[name], values) == name.startswith(("bn", "scale")), name
    # Caffe's pair: one history for every blob, those that are not learnt too
    pair = [tmp_path / f"iter_4.{kind}" for kind in ("solverstate", "caffemodel")]
    convert = ["convert", tmp_path / "stage1" / "iter_4.state", pair[0]]
    convert.insert(1, CAFFE_FILES / "resnet101_aspp_deploy.prototxt")
    assert run_command([*map(str, convert)]) == 0
    blobs = [blob.shape for layer in read_caffemodel(pair[1]).layers.values() for blob in layer.blobs]
    assert [history.shape for history in read_solverstate(pair[0]).history] == blobs


def test_first_iteration_in_detail(golden, stage1_inputs):
    """The scores, their gradient and the update of a layer at each depth in the first iteration."""
    recorded = golden("stage1")["iteration1"]
    model = build_model("vgg16_aspp", width_divisor=16, dropout=0)
    load_caffe_weights(model, CAFFE_FILES / "stage1_init.caffemodel")
    cues = CueFile.open(stage1_inputs / "localization_cues.pickle")
    dataset = CueDataset(stage1_inputs / "images", cues.lines(stage1_inputs / "list.txt"), cues)
    batch = next(iter(make_loader(dataset, 3, shuffle=False, seed=0)))
    assert_close(batch["cues"], recorded["cues"], 0, "cues")
    scores: list[torch.Tensor] = []

    def keep(module, inputs, output):
        output.retain_grad()
        scores.append(output)

    model.register_forward_hook(keep)
    outcome = stage1_objective(load_config("dsrg_vgg16_voc").stage1.loss)(model, batch)
    outcome.total.backward()
    assert_close(scores[0], recorded["fc8"], LAYER, "fc8-SEC", relative_to_max=True)
    assert_close(scores[0].grad, recorded["fc8_grad"], LAYER, "fc8-SEC gradient", relative_to_max=True)
    assert outcome.metrics["seeds"] == recorded["cues_new"][()].sum()
    # Caffe's diff blobs were read after the update, which had turned them into rate·lr_mult·(gradient + decay·w)
    solver = CaffeSGD(model, {"base_lr": 1e-5, "lr_policy": "fixed", "momentum": 0.9, "weight_decay": 5e-4})
    solver.step()
    updates = dict(zip(dict(model.named_parameters()), solver.history, strict=True))
    for layer in ("conv1_1", "conv5_3", "fc6_1", "fc8-SEC_4"):
        for index, name in enumerate(("weight", "bias")):
            want = recorded[f"grads/{layer}/{index}"]
            bound = LAYER if layer.startswith("fc") else UPDATE_UNDER_RELUS
            assert_close(
                updates[f"{layer}.{name}"], want, bound, f"{layer} update {index}", relative_to_max=True
            )


def test_stage1_follows_the_recorded_curves(golden, stage1_run):
    recorded, log = golden("stage1"), read_log(stage1_run / "stage1")
    assert log["iteration"].tolist() == list(range(30))
    np.testing.assert_allclose(log["lr"], np.repeat([1e-5, 1e-6, 1e-7], 10), rtol=1e-6)
    for name in ("Seed", "Constrain"):
        assert_close(log[f"loss-{name}"], recorded[f"loss_{name}"], STAGE1_LOSS, f"loss-{name}")
    assert_close(log["loss"], log["loss-Seed"] + log["loss-Constrain"], 1e-6, "loss")
    # a grown cell flips where a probability stands at the threshold: near the recorded count, not always on it
    assert_close(log["seeds"], recorded["cues_new_sum"], 3, "number of grown seeds")


def test_fast_precision_follows_the_recorded_curves_from_afar(golden, stage1_inputs, tmp_path):
    """bfloat16 convolutions stay near the curve; where the processor has them, they are really used."""
    more = ("precision=fast", "solver.max_iter=8")
    assert run_command(stage1_arguments(stage1_inputs, tmp_path / "run", *more)) == 0
    log = read_log(tmp_path / "run" / "stage1")
    for name in ("Seed", "Constrain"):
        want = golden("stage1")[f"loss_{name}"][:8]
        difference = np.abs(log[f"loss-{name}"] / want - 1)
        assert difference.max() < STAGE1_LOSS_FAST_REL
        if has_bfloat16(torch.device("cpu")):
            assert difference.max() > 1e-4
    arithmetic = json.loads((tmp_path / "run" / "manifest.json").read_text())["arithmetic"]
    assert arithmetic["precision"] == "fast"
    assert arithmetic["bfloat16_convolutions"] == has_bfloat16(torch.device("cpu"))


def test_stage1_ends_in_the_recorded_weights(golden, stage1_run):
    recorded = golden("stage1")["params/30"]
    weights = load_file(stage1_run / "stage1" / "iter_30.safetensors")
    for layer, blobs in recorded.items():
        for index, name in enumerate(("weight", "bias")):
            want = blobs[str(index)]
            assert_close(
                weights[f"{layer}.{name}"], want, WEIGHTS_AFTER_30, f"{layer}.{name}", relative_to_max=True
            )


def retrain_arguments(inputs: Path, output: Path, *more: str) -> list[str]:
    return [
        *("train", "--stage", "2", "--config", "dsrg_vgg16_voc", "device=cpu", *NARROW, *IN_ORDER),
        *(
            f"data.image_root={inputs}/images",
            f"data.label_root={inputs}/labels",
            f"data.list={inputs}/list.txt",
        ),
        *("data.batch_size=2", "solver.base_lr=1e-4", "solver.max_iter=16"),
        *(f"init.weights={CAFFE_FILES}/stage1_init.caffemodel", f"output={output}", *more),
    ]


def test_retraining_follows_the_recorded_curve(golden, retrain_inputs, tmp_path):
    """In double precision: the recording's padded images hold flat areas where some unit of many cells stands
    within float32's rounding of ReLU's zero, so that float32 runs part at random (see the next test)."""
    recorded = golden("retrain")
    assert run_command(retrain_arguments(retrain_inputs, tmp_path / "run", "precision=double")) == 0
    log = read_log(tmp_path / "run" / "stage2")
    assert_close(log["loss"], recorded["loss"], RETRAIN_LOSS, "loss")
    for column, name in enumerate(("accuracy", "accuracy-recall", "accuracy-jaccard")):
        assert_close(log[name], recorded["seg_accuracy"][:, column], RETRAIN_ACCURACY, name)


def test_retraining_in_float32_stays_with_the_recorded_curve(golden, retrain_inputs, tmp_path):
    recorded = golden("retrain")
    assert run_command(retrain_arguments(retrain_inputs, tmp_path / "run")) == 0
    loss = read_log(tmp_path / "run" / "stage2")["loss"]
    assert_close(loss[:4], recorded["loss"][:4], RETRAIN_LOSS, "loss before any two runs part")
    assert_close(loss, recorded["loss"], RETRAIN_LOSS_FLOAT32, "loss")


def test_label_grid_is_interps(golden, retrain_inputs):
    root = retrain_inputs
    dataset = LabelMapDataset(root / "images", root / "labels", read_label_list(root / "list.txt"))
    batch = next(iter(make_loader(dataset, 2, shuffle=False, seed=0)))
    shrunk = interp(batch["label"].float(), shrink_factor=8)
    assert_close(shrunk, golden("retrain")["label_shrink0"], 0, "label_shrink")


def test_a_second_call_skips_and_a_cut_run_resumes_to_the_same_bits(stage1_inputs, stage1_run, tmp_path):
    weights = (stage1_run / "stage1" / "iter_30.safetensors").read_bytes()
    state = torch.load(stage1_run / "stage1" / "iter_30.state", weights_only=True)
    cut = tmp_path / "cut"
    shutil.copytree(stage1_run, cut)
    for name in ("iter_30.safetensors", "iter_30.state", "done.json"):
        (cut / "stage1" / name).unlink()
    assert run_command(stage1_arguments(stage1_inputs, cut, "solver.snapshot=5")) == 0
    assert (cut / "stage1" / "iter_30.safetensors").read_bytes() == weights
    resumed = torch.load(cut / "stage1" / "iter_30.state", weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(resumed["history"], state["history"], strict=True))
    assert (cut / "stage1" / "log.csv").read_text() == (stage1_run / "stage1" / "log.csv").read_text()

    before = (cut / "stage1" / "iter_30.safetensors").stat().st_mtime_ns
    assert run_command(stage1_arguments(stage1_inputs, cut)) == 0
    assert (cut / "stage1" / "iter_30.safetensors").stat().st_mtime_ns == before


def test_a_caffe_solverstate_is_gone_on_from(golden, stage1_inputs, tmp_path):
    """The original's own snapshot half-way: weights and history from Caffe's files, the curve goes on as recorded."""
    output = tmp_path / "run"
    arguments = stage1_arguments(
        stage1_inputs,
        output,
        f"init.weights={CAFFE_FILES}/stage1_iter_15.caffemodel",
        f"init.solverstate={CAFFE_FILES}/stage1_iter_15.solverstate",
    )
    assert run_command(arguments) == 0
    log = read_log(output / "stage1")
    assert log["iteration"].tolist() == list(range(15, 30))
    for name in ("Seed", "Constrain"):
        assert_close(log[f"loss-{name}"], golden("stage1")[f"loss_{name}"][15:], STAGE1_LOSS, f"loss-{name}")


@pytest.mark.parametrize("ending", ["", ".h5"])
def test_a_snapshot_as_caffe_files_is_gone_on_from(stage1_inputs, stage1_run, tmp_path, ending):
    """A snapshot of ours as Caffe's pair: training from the pair follows the run that was not interrupted."""
    state, pair = stage1_run / "stage1" / "iter_15.state", tmp_path / f"iter_15.solverstate{ending}"
    net = CAFFE_FILES / "vgg16_aspp_deploy.prototxt"
    assert run_command(["convert", str(net), str(state), str(pair)]) == 0
    weights = tmp_path / f"iter_15.caffemodel{ending}"
    written, original = read_solverstate(pair), read_solverstate(CAFFE_FILES / "stage1_iter_15.solverstate")
    assert (written.iter, written.current_step, written.learned_net) == (15, 1, str(weights))
    assert [a.shape for a in written.history] == [a.shape for a in original.history]
    output = tmp_path / "run"
    more = (f"init.weights={weights}", f"init.solverstate={pair}", "solver.max_iter=20")
    assert run_command(stage1_arguments(stage1_inputs, output, *more)) == 0
    whole, resumed = read_log(stage1_run / "stage1"), read_log(output / "stage1")
    assert resumed["iteration"].tolist() == list(range(15, 20))
    for name in ("loss-Seed", "loss-Constrain", "lr"):
        assert_close(resumed[name], whole[name][15:20], RESUMED, name)
    want, got = (load_file(run / "stage1" / "iter_20.safetensors") for run in (stage1_run, output))
    for name in want:
        assert_close(got[name], want[name], RESUMED, name)


def test_the_run_folder_says_what_made_it(stage1_run):
    manifest = json.loads((stage1_run / "manifest.json").read_text())
    assert manifest["device"] == "cpu"
    assert manifest["arithmetic"] == {
        "precision": "faithful",
        "dtype": "float32",
        "bfloat16_convolutions": False,
        "tf32": False,
        "cudnn_deterministic": True,
    }
    assert manifest["seed"] == 0
    step = manifest["steps"]["stage1"]
    assert step["seconds_last_call"] > 0
    assert {"commit", "dirty", "command", "versions", "device", "seed", "started", "finished"} <= step.keys()
    began, ended = (datetime.fromisoformat(step[key]) for key in ("started", "finished"))
    assert began <= ended
    assert step["settings"]["inputs_sha256"].keys() == {"list", "cues", "weights"}
    settings = json.loads((stage1_run / "stage1" / "settings.json").read_text())
    assert len(settings["inputs_sha256"]["weights"]) == 64
    config = load_config(str(stage1_run / "config.yaml"))
    assert config.stage1.solver.base_lr == 1e-5


def test_each_step_keeps_what_made_it(stage1_run, retrain_inputs, tmp_path):
    """A later call that does another step leaves the earlier step's record alone."""
    run = tmp_path / "run"
    shutil.copytree(stage1_run, run)
    before = json.loads((run / "manifest.json").read_text())
    assert run_command(retrain_arguments(retrain_inputs, run, "solver.max_iter=1")) == 0
    after = json.loads((run / "manifest.json").read_text())
    assert after["steps"]["stage1"] == before["steps"]["stage1"]
    assert after["steps"].keys() == {"stage1", "stage2"}


@pytest.mark.parametrize("change", ["labels", "precision=double", "data.crop_size=329"])
def test_stage_2_is_not_reused_when_something_changed(retrain_inputs, tmp_path, capsys, change):
    labels = tmp_path / "labels"
    shutil.copytree(retrain_inputs / "labels", labels)
    arguments = retrain_arguments(
        retrain_inputs, tmp_path / "run", f"data.label_root={labels}", "solver.max_iter=1"
    )
    assert run_command(arguments) == 0
    if change == "labels":
        shutil.copyfile(labels / "0.png", labels / "2.png")
    assert run_command(arguments if change == "labels" else [*arguments, change]) == 2
    assert "made with " in capsys.readouterr().err


def test_a_plain_seed_loss_wants_cues_in_every_image(stage1_inputs, tmp_path, capsys):
    inputs = tmp_path / "inputs"
    shutil.copytree(stage1_inputs, inputs)
    path = inputs / "localization_cues.pickle"
    content = pickle.loads(path.read_bytes())
    content["2_cues"] = np.zeros((3, 0), np.int64)
    path.write_bytes(pickle.dumps(content, protocol=2))
    plain = ("loss.seed=seed", "loss.cues=fixed", "rows=[baseline]", "solver.max_iter=1")
    assert run_command(stage1_arguments(inputs, tmp_path / "run", *plain)) == 2
    assert "image 2 (2.png) has no cue cell" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run_command(stage1_arguments(inputs, tmp_path / "run", "solver.max_iter=1")) == 0


def test_iter_size_sums_mini_batches(stage1_inputs, tmp_path):
    """Two mini-batches of 3 an iteration see the images of one of 6."""
    more = ("solver.max_iter=4", "data.workers=0", "data.shuffle=true")
    wide = tmp_path / "wide"
    fixed = (
        "loss.seed=seed",
        "loss.cues=fixed",
        "rows=[baseline]",
        "loss.constrain=false",
    )  # a mean over images
    for output, batch in ((wide, 6), (tmp_path / "narrow", 3)):
        sizes = (f"data.batch_size={batch}", f"solver.iter_size={6 // batch}")
        assert run_command(stage1_arguments(stage1_inputs, output, *more, *sizes, *fixed)) == 0
    wide_log, narrow_log = (read_log(tmp_path / name / "stage1") for name in ("wide", "narrow"))
    assert_close(narrow_log["loss"], wide_log["loss"], 1e-5, "loss of two halves")


def test_another_setting_in_the_same_folder_is_refused(stage1_inputs, stage1_run, capsys):
    assert run_command(stage1_arguments(stage1_inputs, stage1_run, "solver.momentum=0.5")) == 2
    message = capsys.readouterr().err
    assert "stage1.solver.momentum = 0.9, now 0.5" in message
