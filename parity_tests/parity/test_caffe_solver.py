"""A Caffe solver prototxt as a configuration: the recorded runs from the originals' files, and what is refused."""

from __future__ import annotations

import itertools
import math
import os
import random
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from parity_tests.conftest import CAFFE_FILES, assert_close
from parity_tests.recorded_files import read_log, write_retrain_inputs, write_stage1_inputs
from parity_tests.tolerances import RETRAIN_LOSS, STAGE1_LOSS
from repro.cli import run_command
from repro.config import load_config
from repro.data.release_layers import SEC_CUES
from repro.errors import InputError
from repro.models import build_model
from repro.models.loss_tails import stage1_losses
from repro.solver import CaffeSGD
from repro.training import loop
from repro.training.caffe_solver import SolverRun, load_solver
from repro.training.prototxts import deploy_prototxt, train_prototxt
from weights_conversion import Message, read_prototxt
from weights_conversion.caffe_pb2 import NetParameter, SolverParameter
from weights_conversion.lift import lift
from weights_conversion.prototxt_format import format_prototxt

STAGE1_SOLVER = (CAFFE_FILES / "stage1_solver.prototxt").read_text()
STAGE1_NET = (CAFFE_FILES / "stage1_train.prototxt").read_text()
INITIAL = f"init.weights={CAFFE_FILES}/stage1_init.caffemodel"


@pytest.fixture
def inputs(tmp_path, golden, monkeypatch) -> Path:
    """The working directory of the originals: images, list and cues where their prototxts look for them."""
    write_stage1_inputs(golden("stage1"), tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- the recorded runs; their first iterations, which test_training.py follows to the end ---------------------


def test_stage1_runs_from_the_originals_files(inputs, golden, caplog):
    caplog.set_level("INFO")
    solver = str(CAFFE_FILES / "stage1_solver.prototxt")
    assert (
        run_command(["train", "--solver", solver, "device=cpu", INITIAL, "output=run", "solver.max_iter=12"])
        == 0
    )
    log, recorded = read_log(inputs / "run" / "stage1"), golden("stage1")
    assert log["iteration"].tolist() == list(range(12))
    np.testing.assert_allclose(log["lr"], [1e-5] * 10 + [1e-6] * 2, rtol=1e-6)
    for name in ("Seed", "Constrain"):
        assert_close(log[f"loss-{name}"], recorded[f"loss_{name}"][:12], STAGE1_LOSS, f"loss-{name}")
    said = caplog.text
    assert f"{solver}: solver_mode: device=… decides" in said
    assert f"{solver}: display: log.csv has every iteration" in said
    assert run_command(["train", "--config", "run/config.yaml", "output=run"]) == 0  # the run's own profile


def test_stage1_goes_on_from_the_originals_snapshot(inputs, golden):
    weights, state = (CAFFE_FILES / f"stage1_iter_15.{ending}" for ending in ("caffemodel", "solverstate"))
    command = [
        "train",
        "--solver",
        str(CAFFE_FILES / "stage1_solver.prototxt"),
        "device=cpu",
        "output=run",
        "solver.max_iter=18",
    ]
    assert run_command([*command, f"init.weights={weights}", f"init.solverstate={state}"]) == 0
    log = read_log(inputs / "run" / "stage1")
    for name in ("Seed", "Constrain"):
        assert_close(
            log[f"loss-{name}"], golden("stage1")[f"loss_{name}"][15:18], STAGE1_LOSS, f"loss-{name}"
        )


def test_retraining_runs_from_the_originals_files(tmp_path, golden, monkeypatch):
    write_retrain_inputs(golden("retrain"), tmp_path)
    monkeypatch.chdir(tmp_path)
    solver = str(CAFFE_FILES / "retrain_solver.prototxt")
    folders = ("data.image_root=images", "data.label_root=labels")
    more = ("output=run", "precision=double", INITIAL)  # in float32 any two runs part: docs/fidelity.md
    update, calls = loop.update, itertools.count(1)

    def stopping(*given):
        if next(calls) == 4:  # a smaller max_iter would be another rate
            os.kill(os.getpid(), signal.SIGTERM)
        return update(*given)

    monkeypatch.setattr(loop, "update", stopping)
    assert run_command(["train", "--solver", solver, "device=cpu", *folders, *more]) == 128 + signal.SIGTERM
    log = read_log(tmp_path / "run" / "stage2")
    assert log["iteration"].tolist() == list(range(4))
    assert_close(log["loss"], golden("retrain")["loss"][:4], RETRAIN_LOSS, "loss")


# --- what is taken over -----------------------------------------------------------------------------------


def changed(tmp_path: Path, *changes: tuple[str, str], solver: str = "", net: str = STAGE1_NET) -> Path:
    """The recorded files with parts replaced (each must be there) and lines added to the solver."""
    lines = STAGE1_SOLVER + solver
    for old, new in changes:
        assert old in net or old in lines, old
        net, lines = net.replace(old, new), lines.replace(old, new)
    (tmp_path / "solver.prototxt").write_text(lines)
    (tmp_path / "stage1_train.prototxt").write_text(net)
    return tmp_path / "solver.prototxt"


def load(tmp_path: Path, *changes: tuple[str, str], **options: str) -> SolverRun:
    return load_solver(str(changed(tmp_path, *changes, **options)))


def value(run: SolverRun, key: str):
    """``solver.gamma`` of the configuration, ``conv1_2.lr_mult`` or an attribute of a layer of the net."""
    first, _, rest = key.partition(".")
    if first not in {layer.name for layer in run.net.layers}:
        node = run.config
        for part in key.split("."):
            node = getattr(node, part)
        return node
    if rest == "lr_mult":
        return [group["lr_mult"] for group in run.net.param_groups() if group["name"].startswith(f"{first}.")]
    return getattr(run.net[first], rest)


DROP = 'layer { name: "drop6_1" type: "Dropout" bottom: "fc6_1" top: "fc6_1" dropout_param { dropout_ratio: 0.3 } }'
RELU = 'layer { name: "relu6_1" type: "ReLU" bottom: "fc6_1" top: "fc6_1" }'
DROPS = [
    (RELU.replace("6_1", branch), f"{RELU}\n{DROP}".replace("6_1", branch))
    for branch in (f"{number}_{branch}" for number in (6, 7) for branch in (1, 2, 3, 4))
]
FROZEN = (
    'top: "conv1_2" param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }',
    'top: "conv1_2" param { lr_mult: 0 } param { lr_mult: 3 decay_mult: 1 }',
)
LINE_OF = {name: re.search(rf'layer {{ name: "{name}".*\n', STAGE1_NET)[0] for name in ("CRF", "update-seed")}


@pytest.mark.parametrize(
    ("changes", "solver", "key", "want"),
    [
        ([], "", "Input.batch", 3),
        ([], "", "Input.list_path", "list.txt"),
        ([], "", "solver.base_lr", 1e-5),
        ([], "", "solver.average_loss", 10),
        ([], "", "solver.snapshot", 30),
        ([], "", "solver.display", 1),
        ([], "", "init.filler", "file"),
        ([], "", "update-seed.theta_b", 0.99),
        ([], "", "seed", 0),
        ([], "", "name", "solver"),
        ([("batch_size: 3", "batch_size: 7")], "", "Annotation.batch", 7),
        ([("new_height: 321", "new_height: 281")], "", "Annotation.grid", (36, 41)),
        ([("shuffle: false", "shuffle: true")], "", "Input.shuffle", True),
        ([("'mirror': False", "'mirror': True")], "", "Annotation.mirror", True),
        (
            [("{'cues': 'localization_cues.pickle', 'mirror': False}", "{'cues': 'c.h5'}")],
            "",
            "Annotation.mirror",
            False,
        ),
        ([("'th2': 0.85", "'th2': 0.7")], "", "update-seed.theta_f", 0.7),
        ([("'th2': 0.85", "'th2': float('inf')")], "", "update-seed.theta_f", math.inf),
        (DROPS, "", "drop6_1.ratio", pytest.approx(0.3)),
        ([FROZEN], "", "conv1_2.lr_mult", [0.0, 3.0]),
        ([("random_seed: 0", "random_seed: 5")], "", "seed", 5),
        ([("base_lr: 1e-05", "base_lr: 1")], "", "solver.base_lr", 1.0),
        ([], "iter_size: 4", "solver.iter_size", 4),
        ([], "clip_gradients: 35", "solver.clip_gradients", 35.0),
        ([], 'regularization_type: "L1"', "solver.regularization_type", "L1"),
        ([('"step"', '"multistep"')], "stepvalue: 10 stepvalue: 20", "solver.stepvalue", [10, 20]),
        ([], 'type: "SGD"', "solver.momentum", 0.9),
        ([], 'type: "Adam" momentum2: 0.99', "solver.type", "Adam"),
        ([], 'type: "AdaDelta" delta: 1e-6', "solver.delta", 1e-6),
        ([("momentum: 0.9", "rms_decay: 0")], 'type: "RMSProp"', "solver.rms_decay", 0.0),
        ([], "solver_type: NESTEROV", "solver.type", "Nesterov"),
        ([("momentum: 0.9", "")], "solver_type: 2", "solver.type", "AdaGrad"),
        (
            [("mean_value: 117", "mean_value: 116")],
            "",
            "Input.transform.mean",
            pytest.approx([104, 116, 123]),
        ),
    ],
    ids=str,
)
def test_taken_over(tmp_path, changes, solver, key, want):
    run = load(tmp_path, *changes, solver=solver)
    node, _, last = key.rpartition(".")
    found = value(run, node).mean.tolist() if last == "mean" else value(run, key)
    assert found == want


# what our own nets are not: the file's net is trained as it is
OF_ITS_OWN = {
    "leaky": [
        (
            'type: "ReLU" bottom: "conv1_1"',
            'type: "ReLU" relu_param { negative_slope: 0.1 } bottom: "conv1_1"',
        )
    ],
    "width": [("num_output: 4 ", "num_output: 5 ")],
    "dilation": [("pad: 12 dilation: 12", "pad: 10 dilation: 10")],
    "pooling": [("pool: AVE", "pool: MAX")],
    "wiring": [
        (
            'name: "fc7_3" type: "Convolution" bottom: "fc6_3"',
            'name: "fc7_3" type: "Convolution" bottom: "fc6_2"',
        )
    ],
    "names": [("conv3_2", "conv3_9")],
    "a layer less": [('layer { name: "relu4_2" type: "ReLU" bottom: "conv4_2" top: "conv4_2" }', "")],
    "no growing": [(LINE_OF["update-seed"], ""), ("cues-new", "cues"), ("Balanced", "")],
    "shared": [("param { lr_mult: 20", 'param { name: "b" lr_mult: 20')],
    "dropout ratios": [
        *DROPS,
        ('fc7_2" dropout_param { dropout_ratio: 0.3', 'fc7_2" dropout_param { dropout_ratio: 0.4'),
    ],
    "grey": [("shuffle: false", "shuffle: false is_color: false"), ("mean_value: 104 mean_value: 117", "")],
}


@pytest.mark.parametrize("name", [name for name in OF_ITS_OWN if name != "grey"])
def test_a_net_of_its_own_is_taken_as_it_is(tmp_path, name):
    run = load(tmp_path, *OF_ITS_OWN[name])
    written = (tmp_path / "stage1_train.prototxt").read_text()
    assert [layer.name for layer in run.net.layers] == re.findall(r'layer { name: "([^"]+)"', written)
    assert run.stage == 1


def test_loss_weights_count(tmp_path):
    weighed = (
        'layer: "ConstrainLossLayer"  } loss_weight: 1',
        'layer: "ConstrainLossLayer" } loss_weight: 2',
    )
    net = load(tmp_path, weighed).net
    assert {layer.name: layer.loss_weights for layer in net.layers if any(layer.loss_weights)} == {
        "loss-Seed": (1.0,),
        "loss-Constrain": (2.0,),
    }


PROFILES = [
    ("dsrg_vgg16_voc", 1), ("dsrg_vgg16_voc_released", 2), ("sec_vgg16_voc", 1), ("dsrg_resnet101_voc", 1),
    ("dsrg_vgg16_coco", 1),
]  # fmt: skip


@pytest.mark.parametrize(("profile", "stage"), PROFILES)
def test_a_profile_as_prototxts_is_a_run(tmp_path, profile, stage):
    """Every net and loss of ours, written as a train prototxt, can be trained, and its data layers say the same."""
    root = {1: ["data.image_root=d/", "data.list=l.txt", "data.cues=d/"]}
    root[2] = ["data.image_root=d/", "data.label_root=d/", "data.list=l.txt", "data.shuffle=false"]
    more = ["model.width_divisor=32", *root[stage]] + ([] if "coco" in profile else ["rows=[]"])
    config = load_config(profile, more, stages=(f"stage{stage}",))
    section = getattr(config, f"stage{stage}")
    net = build_model(**config.model.model_dump())
    (tmp_path / "train.prototxt").write_text(format_prototxt(train_prototxt(net, section)))
    fields = {k: v for k, v in section.solver.model_dump().items() if v != [] and k in SOLVER_FIELDS}
    solver = Message({"train_net": [str(tmp_path / "train.prototxt")], **{k: [v] for k, v in fields.items()}})
    (tmp_path / "solver.prototxt").write_text(format_prototxt(solver))
    run = load_solver(str(tmp_path / "solver.prototxt"), ["solver.snapshot_keep=5"])
    assert run.stage == stage
    assert run.config.solver == section.solver
    assert run.inputs["list"] == "l.txt"
    assert max(run.net[layer.name].batch for layer in run.net.data_layers) == section.data.batch_size
    assert [*dict(run.net.named_parameters())] == [*dict(net.named_parameters())]
    if stage == 1:
        losses = [layer.name for layer in run.net.layers if any(layer.loss_weights)]
        assert losses == [
            layer.name for layer in stage1_losses("x", **section.loss.model_dump()) if layer.loss_weight
        ]


SOLVER_FIELDS = (
    *(
        "base_lr",
        "lr_policy",
        "gamma",
        "power",
        "stepsize",
        "max_iter",
        "momentum",
        "weight_decay",
        "iter_size",
    ),
    *(
        "type",
        "regularization_type",
        "clip_gradients",
        "average_loss",
        "snapshot",
        "momentum2",
        "rms_decay",
        "delta",
    ),
)


def test_paths_are_caffes_or_beside_the_solver(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    changed(tmp_path / "a")
    for name in ("list.txt", "localization_cues.pickle"):
        (tmp_path / "a" / name).touch()
    (tmp_path / "b" / "list.txt").touch()
    monkeypatch.chdir(tmp_path / "b")
    run = load_solver("../a/solver.prototxt")
    assert run.inputs == {
        "image_root": "images/",  # nowhere: training will say so
        "list": "list.txt",
        "cues": "../a/localization_cues.pickle",
    }
    overridden = load_solver("../a/solver.prototxt", ["data.list=x.txt", "solver.max_iter=3"])
    assert (overridden.net["Input"].list_path, overridden.config.solver.max_iter) == ("x.txt", 3)
    with pytest.raises(InputError, match=r"data\.label_root: no data layer of this net has such a setting"):
        load_solver("../a/solver.prototxt", ["data.label_root=x"])


def test_inline_nets_and_weights(tmp_path):
    (tmp_path / "solver.prototxt").write_text(
        STAGE1_SOLVER.replace('train_net: "stage1_train.prototxt"', f"net_param {{ {STAGE1_NET} }}")
        + 'weights: "init.caffemodel"'
    )
    run = load_solver(str(tmp_path / "solver.prototxt"))
    assert run.net["Input"].batch == 3
    assert run.config.init.weights == "init.caffemodel"


def test_layers_of_the_other_phase_are_left_out(tmp_path):
    data = 'layer { name: "Input" type: "Data" top: "images" include { phase: TEST } }\n'
    assert load(tmp_path, net=data + STAGE1_NET).net["Input"].batch == 3


def test_a_list_stands_in_for_a_database(tmp_path):
    """LMDB is not read: ours, by ``data.list``, gives the tops of a Data layer."""
    net = (
        'layer { name: "d" type: "Data" top: "data" top: "label" transform_param { crop_size: 8 } '
        "data_param { source: 'x_lmdb' batch_size: 4 backend: LMDB } }\n"
        'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }\n'
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" }'
    )
    path = str(changed(tmp_path, net=net))
    with pytest.raises(InputError, match=r"layer 'd' .Data.: .*LMDB and LevelDB are not read"):
        load_solver(path)
    run = load_solver(path, ["data.list=train.txt"])
    assert (run.net["d"].list_path, run.net["d"].batch, run.step) == ("train.txt", 4, "train")


def test_multipliers_drive_the_update():
    """As in Caffe, a parameter of lr_mult 0 gets no gradient, keeps its values and does not count in the clipping."""
    model = build_model("vgg16_largefov", width_divisor=64, dropout=0)
    model.set_multipliers({"conv1_1.weight": [0, 1], "conv1_2.bias": [5, 0]})
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    solver = CaffeSGD(model, {"base_lr": 1.0, "lr_policy": "fixed"})
    model.forward_blobs(torch.randn(1, 3, 33, 33))["conv1_2"].sum().backward()
    gradient = model.get_submodule("conv1_2").bias.grad.clone()
    assert model.get_submodule("conv1_1").weight.grad is None
    solver.step()
    after = dict(model.named_parameters())
    assert torch.equal(after["conv1_1.weight"], before["conv1_1.weight"])
    assert_close(after["conv1_2.bias"], before["conv1_2.bias"] - 5 * gradient, 1e-6, "conv1_2.bias")
    assert len(solver.history) == len(before)
    with pytest.raises(InputError, match=r"no parameter 'conv9\.weight'"):
        model.set_multipliers({"conv9.weight": [1, 1]})


# --- what is said, what is refused ------------------------------------------------------------------------


def test_unknown_fields_are_refused(tmp_path):
    net = changed(tmp_path, ("dilation: 12 stride", "dilation: 12 cudnn_flavour: 3 stride"))
    with pytest.raises(InputError, match=r"layer 'fc6_2'.*: convolution_param\.cudnn_flavour"):
        load_solver(str(net))
    with pytest.raises(InputError, match=r"average_gradients: a field that neither"):
        load_solver(str(changed(tmp_path, solver="average_gradients: 2")))
    with pytest.raises(InputError, match=r"solver\.prototxt: snapshot_diff: not supported"):
        load_solver(str(changed(tmp_path, solver="snapshot_diff: true")))
    with pytest.raises(InputError, match="test_iter: given, but there is no test net"):
        load_solver(str(changed(tmp_path, solver="test_iter: 3")))
    path = changed(tmp_path, solver="debug_info: true")
    assert f"{path}: debug_info: repro check shows every blob" in load_solver(str(path)).notes


def test_inspect_names_unknown_fields(tmp_path, capsys):
    path = changed(
        tmp_path, ('name: "stage1"', 'name: "stage1" reduce_memory: true'), solver="plateau_winsize: 3"
    )
    for file, field in ((path, "plateau_winsize"), (tmp_path / "stage1_train.prototxt", "reduce_memory")):
        assert run_command(["inspect", str(file)]) == 0
        assert f"{field}: unknown to Caffe and DeepLab-v2" in capsys.readouterr().out


def test_unknown_fields_of_nets():
    for path in CAFFE_FILES.glob("*.prototxt"):
        lift(read_prototxt(path), SolverParameter if "solver" in path.name else NetParameter, path.name)
    conv = Message(num_output=[3], hollow=[2], weight_filler=[Message(type=["msra"], seed=[1])])
    layer = Message(name=["c"], type=["Convolution"], convolution_param=[conv], nv_param=[Message(x=[1])])
    unknown: list[str] = []
    lift(Message(layer=[layer], fast=[True]), NetParameter, "", unknown=unknown)
    assert unknown == [
        "layer 'c': convolution_param.hollow",
        "layer 'c': convolution_param.weight_filler.seed",
        "layer 'c': nv_param",
        "fast",
    ]
    for name in ("vgg16_aspp", "vgg16_bg", "resnet101_aspp"):
        lift(deploy_prototxt(build_model(name, width_divisor=64)), NetParameter, name)


def test_the_released_retraining_loss_names_no_top(tmp_path):
    """DSRG's train-f.prototxt lets Caffe name the loss's top, and holds it to the phase TRAIN."""
    text = (CAFFE_FILES / "retrain_train.prototxt").read_text()
    named = 'bottom: "label_shrink" top: "loss"'
    assert named in text
    text = text.replace(named, 'bottom: "label_shrink" include: { phase: TRAIN }')
    (tmp_path / "retrain_train.prototxt").write_text(text)
    (tmp_path / "solver.prototxt").write_text((CAFFE_FILES / "retrain_solver.prototxt").read_text())
    assert load_solver(str(tmp_path / "solver.prototxt")).stage == 2


def test_the_sec_release_is_taken(tmp_path, capsys, monkeypatch):
    """SEC's AnnotationLayer has one bottom and one cue file; its expand loss stands before the seed loss."""
    net = train_prototxt(
        build_model("vgg16_largefov", width_divisor=16), load_config("sec_vgg16_voc", ["rows=[]"]).stage1
    )
    layers = {layer.one("name"): layer for layer in net.layers}
    assert (layers["Input"]["top"], layers["Annotation"]["bottom"], layers["Annotation"]["top"]) == (
        ["images", "image_ids"],
        ["image_ids"],
        ["labels", "cues"],
    )
    losses = [layers.pop(name) for name in ("loss-Expand", "loss-Seed", "loss-Constrain")]
    net["layer"] = [*layers.values(), *losses]
    (tmp_path / "train.prototxt").write_text(format_prototxt(net))
    (tmp_path / "localization_cues").mkdir()
    cues = tmp_path / "localization_cues" / "localization_cues.pickle"
    cues.write_bytes(b"")
    (tmp_path / "solver.prototxt").write_text(
        STAGE1_SOLVER.replace('"stage1_train.prototxt"', '"train.prototxt"')
    )
    monkeypatch.chdir(tmp_path)
    run = load_solver("solver.prototxt")
    annotation = run.net["Annotation"]
    assert (annotation.is_sec, annotation.mirror, annotation.batch) == (True, False, 15)
    assert [annotation.given.get("cues", SEC_CUES)] == [str(cues.relative_to(tmp_path))]
    assert [layer.name for layer in run.net.layers if any(layer.loss_weights)] == [
        *("loss-Expand", "loss-Seed", "loss-Constrain"),
    ]
    assert run.net["CRF"].variant == "sec"
    assert run.net["loss-Constrain"].arguments == {"clip": False}
    assert run_command(["inspect", str(tmp_path / "train.prototxt")]) == 0
    assert "labels 15x1x1x21, cues 15x21x41x41" in capsys.readouterr().out


@pytest.mark.parametrize("written", ["normalization: VALID", "normalize: true"])
def test_retraining_loss_by_its_default(tmp_path, written):
    for kind in ("solver", "train"):
        text = (CAFFE_FILES / f"retrain_{kind}.prototxt").read_text()
        text = text.replace("loss_param { ignore_label: 255", f"loss_param {{ {written} ignore_label: 255")
        (tmp_path / f"retrain_{kind}.prototxt").write_text(text)
    assert written in text
    assert load_solver(str(tmp_path / "retrain_solver.prototxt")).stage == 2


def test_layers_are_kept_by_caffes_rules(tmp_path):
    relu = 'name: "relu4_2" type: "ReLU"'
    kept = "include { phase: TRAIN stage: 'a' min_level: 2 }"
    for rules, solver, is_kept in (
        (kept, "train_state { stage: 'a' stage: 'b' level: 2 }", True),
        (kept, "train_state { stage: 'a' level: 1 }", False),
        (kept, "", False),
        ("include { phase: TEST } include { max_level: 0 }", "", True),
        ("exclude { not_stage: 'a' }", "train_state { stage: 'a' }", True),
        ("exclude { not_stage: 'a' }", "", False),
        ("exclude { phase: TEST }", "", True),
        ("phase: TEST", "", True),
    ):
        path = str(changed(tmp_path, (relu, f"{relu} {rules}"), solver=solver))
        names = [layer.name for layer in load_solver(path).net.layers]
        assert ("relu4_2" in names) is is_kept, rules
    with pytest.raises(InputError, match=r"solver\.prototxt: train_state\.level: .*'x'"):
        load_solver(str(changed(tmp_path, solver="train_state { level: 'x' }")))


REFUSED = {
    "grey images": (OF_ITS_OWN["grey"], "", "layer 'CRF' .* expected images of 3 channels"),
    "seed": ([("random_seed: 0", "random_seed: now")], "", r"solver.prototxt: random_seed: .* found 'now'"),
    "multiplier": ([("lr_mult: 20", "lr_mult: twice")], "", "layer 'fc8-SEC_1': .*lr_mult: .*'twice'"),
    "classes": ([("num_output: 21", "num_output: 22")], "", "layer 'update-seed' .* expected one shape"),
    "outputs": ([("num_output: 4 ", "num_output: four ")], "", "layer 'conv1_1': .*num_output: .*'four'"),
    "negative rates": ([('"step"', '"inv"'), ("gamma: 0.1", "gamma: -1")], "", "lr_policy inv needs gamma"),
    "type": ([], 'type: "Lamb"', r"solver.prototxt: type: .* found 'Lamb'"),
    "old type": ([], "solver_type: LAMB", "solver_type: expected one of SGD, NESTEROV, .*, found 'LAMB'"),
    "both types": ([], 'type: "Adam" solver_type: ADAM', "has type and solver_type, its old form"),
    "momentum of AdaGrad": ([], 'type: "AdaGrad"', "solver.prototxt: .*type AdaGrad has no momentum"),
    "policy": ([('"step"', '"cosine"')], "", r"solver.prototxt: lr_policy: .* found 'cosine'"),
    "twice": ([], "momentum: 0.5", "'momentum' occurs 2 times"),
    "text for a number": (
        [("max_iter: 30", "max_iter: many")],
        "",
        "solver.prototxt: max_iter: .* found 'many'",
    ),
    "no net": ([('train_net: "stage1_train.prototxt"', "")], "", "names 0 train nets .none."),
    "two nets": ([], 'net: "x"', "names 2 train nets .train_net, net."),
    "no such net": ([('"stage1_train', '"nowhere')], "", "nowhere.prototxt: No such file"),
    "unknown setting": (
        [("'mirror': False", "'mirror': False, 'jitter': 3")],
        "",
        "layer 'Annotation' .*param_str: jitter",
    ),
    "wrong setting": (
        [("'mirror': False", "'mirror': 'no'")],
        "",
        "layer 'Annotation' .*mirror: 'no', expected True or False",
    ),
    "no settings": (
        [("{'th1': 0.99, 'th2': 0.85}", "open('x')")],
        "",
        "layer 'update-seed' .*param_str: expected a dict",
    ),
    "no threshold": ([("'th2': 0.85", "'th3': 0.85")], "", "layer 'update-seed' .*'th3' is not a setting"),
    "no losses": ([("loss_weight: 1", "loss_weight: 0")], "", "no layer has a loss_weight"),
    "no data layer": (
        [(re.search(r'layer { name: "Input".*\n', STAGE1_NET)[0], "")],
        "",
        "'image_ids': no layer makes it",
    ),
    "two tops": (
        [('bottom: "conv2_1" top: "conv2_1"', 'bottom: "conv2_1" top: "conv1_1"')],
        "",
        "'conv1_1' is made twice",
    ),
    "same name": ([('name: "conv2_1"', 'name: "conv2_2"')], "", "name: two layers have it"),
    "no such list": (
        [],
        "",
        r"data\.image_root: no such file or folder: images/; give data\.image_root=PATH",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, capsys, name):
    changes, solver, reason = REFUSED[name]
    path = changed(tmp_path, *changes, solver=solver)
    assert run_command(["train", "--solver", str(path), f"output={tmp_path}/run"]) == 2
    line = capsys.readouterr().err
    assert re.search(reason, line), line
    assert len(line.splitlines()) == 1
    assert str(tmp_path) in line
    assert not (tmp_path / "run").exists()


def test_missing_inputs_are_named_by_their_key(tmp_path, capsys):
    path = changed(tmp_path)
    assert run_command(["train", "--solver", str(path), f"output={tmp_path}/run"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "data.image_root: no such file or folder: images/; give data.image_root=PATH" in line
    assert not (tmp_path / "run").exists()


WRONG = (
    *("3", "-1", "0", "1e999", "true", "TRAIN", '"x"', '"{}"', '"{1: 2}"', "[1, 2]", "{", "}", "param {"),
    'lr_mult: "a"',
)


def test_mutated_files_load_or_raise(tmp_path):
    """Values of another kind, anywhere in the solver or in the net's beginning and end: one line names the file."""
    rng, refused = random.Random(0), []
    token = re.compile(r'"[^"]*"|[\w.+-]+|[{}:]')
    for _ in range(120):
        texts = {"solver.prototxt": STAGE1_SOLVER, "stage1_train.prototxt": STAGE1_NET}
        name = rng.choice([*texts])
        found = list(token.finditer(texts[name]))
        place = rng.choice(found[:150] + found[-250:])
        texts[name] = texts[name][: place.start()] + rng.choice(WRONG) + texts[name][place.end() :]
        for file, text in texts.items():
            (tmp_path / file).write_text(text)
        try:
            load_solver(str(tmp_path / "solver.prototxt"))
        except ValueError as error:
            refused.append(str(error))
    assert 60 < len(refused) < 120
    assert all(str(tmp_path) in line and "\n" not in line for line in refused)


def test_options_that_do_not_go_together(tmp_path, capsys):
    path = str(changed(tmp_path))
    for arguments, reason in (
        (["--solver", path, "--config", "dsrg_vgg16_voc"], "give either --config or --solver"),
        ([], "give either --config or --solver"),
        (["--solver", path, "--stage", "2"], "its net is of stage 1, not of --stage 2"),
        (["--solver", path, "solver.momentun=1"], "unknown key 'solver.momentun'"),
        (["--solver", "/nowhere.prototxt"], "/nowhere.prototxt: No such file"),
    ):
        assert run_command(["train", *arguments]) == 2
        assert reason in capsys.readouterr().err
