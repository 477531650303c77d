"""A Caffe solver prototxt as a configuration: the recorded runs from the originals' files, and what is refused."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from parity_tests.conftest import CAFFE_FILES, assert_close
from parity_tests.recorded_files import read_log, write_retrain_inputs, write_stage1_inputs
from parity_tests.tolerances import RETRAIN_LOSS, STAGE1_LOSS
from repro.cli import run_command
from repro.config import Config, load_config
from repro.errors import InputError
from repro.models import build_model
from repro.solver import CaffeSGD
from repro.training.caffe_solver import load_solver
from repro.training.prototxts import deploy_prototxt, train_prototxt
from weights_conversion import Message, unknown_fields
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


# --- the recorded runs ------------------------------------------------------------------------------------


def test_stage1_runs_from_the_originals_files(inputs, golden, capsys):
    solver = str(CAFFE_FILES / "stage1_solver.prototxt")
    assert run_command(["train", "--solver", solver, "--device", "cpu", INITIAL, "output=run"]) == 0
    log, recorded = read_log(inputs / "run" / "stage1"), golden("stage1")
    assert log["iteration"].tolist() == list(range(30))
    np.testing.assert_allclose(log["lr"], np.repeat([1e-5, 1e-6, 1e-7], 10), rtol=1e-6)
    for name in ("Seed", "Constrain"):
        assert_close(log[f"loss-{name}"], recorded[f"loss_{name}"], STAGE1_LOSS, f"loss-{name}")
    said = capsys.readouterr().err
    assert f"{solver}: solver_mode: --device decides" in said
    assert f"{solver}: display: log.csv has every iteration" in said
    assert run_command(["train", "--config", "run/config.yaml", "output=run"]) == 0  # the run's own profile


def test_stage1_goes_on_from_the_originals_snapshot(inputs, golden):
    weights, state = (CAFFE_FILES / f"stage1_iter_15.{ending}" for ending in ("caffemodel", "solverstate"))
    command = [
        "train",
        "--solver",
        str(CAFFE_FILES / "stage1_solver.prototxt"),
        "--device",
        "cpu",
        "output=run",
    ]
    assert run_command([*command, f"init.weights={weights}", f"init.solverstate={state}"]) == 0
    log = read_log(inputs / "run" / "stage1")
    for name in ("Seed", "Constrain"):
        assert_close(log[f"loss-{name}"], golden("stage1")[f"loss_{name}"][15:], STAGE1_LOSS, f"loss-{name}")


def test_retraining_runs_from_the_originals_files(tmp_path, golden, monkeypatch):
    write_retrain_inputs(golden("retrain"), tmp_path)
    monkeypatch.chdir(tmp_path)
    solver = str(CAFFE_FILES / "retrain_solver.prototxt")
    folders = ("data.image_root=images", "data.label_root=labels")
    more = ("output=run", "precision=double", INITIAL)  # in float32 any two runs part: docs/fidelity.md
    assert run_command(["train", "--solver", solver, "--device", "cpu", *folders, *more]) == 0
    log = read_log(tmp_path / "run" / "stage2")
    assert_close(log["loss"], golden("retrain")["loss"], RETRAIN_LOSS, "loss")


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


def load(tmp_path: Path, *changes: tuple[str, str], **options: str) -> Config:
    return load_solver(str(changed(tmp_path, *changes, **options))).config


def value(config: Config, key: str):
    node = config
    for part in key.split("."):
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    return node


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
        ([], "", "stage1.data.batch_size", 3),
        ([], "", "stage1.data.list", "list.txt"),
        ([], "", "stage1.data.cues", "localization_cues.pickle"),
        ([], "", "stage1.solver.base_lr", 1e-5),
        ([], "", "stage1.solver.average_loss", 10),
        ([], "", "stage1.solver.snapshot", 30),
        ([], "", "stage1.solver.display", 1),
        ([], "", "stage1.init.filler", "msra"),
        ([], "", "stage1.multipliers", {}),
        ([], "", "model.width_divisor", 16),
        ([], "", "model.dropout", 0.0),
        ([], "", "stage1.loss.theta_b", 0.99),
        ([], "", "seed", 0),
        ([], "", "name", "solver"),
        ([("batch_size: 3", "batch_size: 7")], "", "stage1.data.batch_size", 7),
        ([("new_height: 321", "new_height: 281")], "", "stage1.data.new_height", 281),
        ([("shuffle: false", "shuffle: true")], "", "stage1.data.shuffle", True),
        ([("'mirror': False", "'mirror': True")], "", "stage1.data.mirror", True),
        (
            [("{'cues': 'localization_cues.pickle', 'mirror': False}", "{'cues': 'c.h5'}")],
            "",
            "stage1.data.mirror",
            False,
        ),
        ([("'th2': 0.85", "'th2': 0.7")], "", "stage1.loss.theta_f", 0.7),
        ([("'th2': 0.85", "'th2': float('inf')")], "", "stage1.loss.theta_f", math.inf),
        ([("msra", "xavier")], "", "stage1.init.filler", "gaussian"),
        (DROPS, "", "model.dropout", 0.3),
        ([FROZEN], "", "stage1.multipliers", {"conv1_2.weight": [0.0, 1.0], "conv1_2.bias": [3.0, 1.0]}),
        ([("random_seed: 0", "random_seed: 5")], "", "seed", 5),
        ([("base_lr: 1e-05", "base_lr: 1")], "", "stage1.solver.base_lr", 1.0),
        ([], "iter_size: 4", "stage1.solver.iter_size", 4),
        ([], "clip_gradients: 35", "stage1.solver.clip_gradients", 35.0),
        ([], 'regularization_type: "L1"', "stage1.solver.regularization_type", "L1"),
        ([('"step"', '"multistep"')], "stepvalue: 10 stepvalue: 20", "stage1.solver.stepvalue", [10, 20]),
        ([], 'type: "SGD"', "stage1.solver.momentum", 0.9),
        ([], 'type: "Adam" momentum2: 0.99', "stage1.solver.type", "Adam"),
        ([], 'type: "Adam" momentum2: 0.99', "stage1.solver.momentum2", 0.99),
        ([], 'type: "AdaDelta" delta: 1e-6', "stage1.solver.delta", 1e-6),
        ([("momentum: 0.9", "rms_decay: 0")], 'type: "RMSProp"', "stage1.solver.rms_decay", 0.0),
        ([], "solver_type: NESTEROV", "stage1.solver.type", "Nesterov"),
        ([("momentum: 0.9", "")], "solver_type: 2", "stage1.solver.type", "AdaGrad"),
        ([("update-seed", "update_seed"), ("Balanced", "")], "", None, "only there"),
        (
            [(LINE_OF["update-seed"], ""), ("cues-new", "cues"), ("Balanced", "")],
            "",
            "stage1.loss.seed",
            "seed",
        ),
        ([(LINE_OF["update-seed"], ""), ("cues-new", "cues")], "", "stage1.loss.cues", "fixed"),
    ],
    ids=str,
)
def test_taken_over(tmp_path, changes, solver, key, want):
    if key is None:
        with pytest.raises(InputError, match=want):
            load(tmp_path, *changes, solver=solver)
    else:
        assert value(load(tmp_path, *changes, solver=solver), key) == want


ROUND_TRIPS = [
    ("dsrg_vgg16_voc", 1), ("dsrg_vgg16_voc_released", 2), ("sec_vgg16_voc", 1), ("dsrg_resnet101_voc", 1),
    ("dsrg_resnet101_voc", 2), ("dsrg_vgg16_coco", 1),
]  # fmt: skip


@pytest.mark.parametrize(("profile", "stage"), ROUND_TRIPS)
def test_a_profile_as_prototxts_comes_back(tmp_path, profile, stage):
    """Every net and loss of ours, written as a train prototxt, is read as the section that it was written of."""
    files = {
        1: ["data.image_root=d/", "data.list=l.txt", "data.cues=d/"],
        2: ["data.image_root=d/", "data.label_root=d/", "data.list=l.txt", "data.shuffle=false"],
    }[stage]
    more = ["model.width_divisor=16", *files]
    if profile != "dsrg_vgg16_coco":
        more.append("rows=[]")
    config = load_config(profile, more, stages=(f"stage{stage}",))
    section = getattr(config, f"stage{stage}")
    net = build_model(**config.model.model_dump())
    (tmp_path / "train.prototxt").write_text(format_prototxt(train_prototxt(net, section)))
    fields = {k: v for k, v in section.solver.model_dump().items() if v != [] and k != "display"}
    solver = Message({"train_net": [str(tmp_path / "train.prototxt")], **{k: [v] for k, v in fields.items()}})
    (tmp_path / "solver.prototxt").write_text(format_prototxt(solver))
    run = load_solver(str(tmp_path / "solver.prototxt"))
    assert run.stage == stage
    got = getattr(run.config, f"stage{stage}")
    assert got.solver == section.solver
    assert got.data.model_dump(exclude={"background_label"}) == section.data.model_dump(
        exclude={"background_label"}
    )
    if stage == 1:
        assert got.loss == section.loss
        assert got.data.background_label is (profile != "sec_vgg16_voc")
    assert run.config.model.model_copy(update={"dropout": config.model.dropout}) == config.model
    assert run.config.model.dropout == (0 if "resnet" in profile else 0.5)
    assert got.multipliers == {}


def test_paths_are_caffes_or_beside_the_solver(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    changed(tmp_path / "a")
    for name in ("list.txt", "localization_cues.pickle"):
        (tmp_path / "a" / name).touch()
    (tmp_path / "b" / "list.txt").touch()
    monkeypatch.chdir(tmp_path / "b")
    data = load_solver("../a/solver.prototxt").config.stage1.data
    assert (data.list, data.cues) == ("list.txt", "../a/localization_cues.pickle")
    assert data.image_root == "images/"  # nowhere: training will say so
    overridden = load_solver("../a/solver.prototxt", ["data.list=x.txt", "solver.max_iter=3"]).config.stage1
    assert (overridden.data.list, overridden.solver.max_iter) == ("x.txt", 3)


def test_inline_nets_and_weights(tmp_path):
    (tmp_path / "solver.prototxt").write_text(
        STAGE1_SOLVER.replace('train_net: "stage1_train.prototxt"', f"net_param {{ {STAGE1_NET} }}")
        + 'weights: "init.caffemodel"'
    )
    config = load_solver(str(tmp_path / "solver.prototxt")).config
    assert config.stage1.data.batch_size == 3
    assert config.stage1.init.weights == "init.caffemodel"


def test_layers_of_the_other_phase_are_left_out(tmp_path):
    data = 'layer { name: "Input" type: "Data" top: "images" include { phase: TEST } }\n'
    assert load(tmp_path, net=data + STAGE1_NET).stage1.data.batch_size == 3


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


def test_unknown_fields_are_reported(tmp_path):
    path = changed(
        tmp_path,
        ("dilation: 12 stride", "dilation: 12 cudnn_flavour: 3 stride"),
        ('name: "stage1"', 'name: "stage1" reduce_memory: true'),
        solver="average_gradients: 2 plateau_winsize: 3 plateau_winsize: 4",
    )
    with pytest.raises(InputError, match="cudnn_flavour: none here, 3 there"):
        load_solver(str(path))
    path = changed(tmp_path, solver="average_gradients: 2 plateau_winsize: 3 plateau_winsize: 4 test_iter: 3")
    notes = load_solver(str(path)).notes
    assert f"{path}: average_gradients: unknown, ignored" in notes
    assert f"{path}: plateau_winsize: unknown, ignored" in notes
    assert f"{path}: test_iter: of no effect here" in notes


def test_inspect_names_unknown_fields(tmp_path, capsys):
    path = changed(
        tmp_path, ('name: "stage1"', 'name: "stage1" reduce_memory: true'), solver="plateau_winsize: 3"
    )
    for file, field in ((path, "plateau_winsize"), (tmp_path / "stage1_train.prototxt", "reduce_memory")):
        assert run_command(["inspect", str(file)]) == 0
        assert f"{field}: unknown to Caffe and DeepLab-v2" in capsys.readouterr().out


def test_unknown_fields_of_nets():
    for path in CAFFE_FILES.glob("*.prototxt"):
        from weights_conversion import read_prototxt

        kind = "SolverParameter" if "solver" in path.name else "NetParameter"
        assert unknown_fields(read_prototxt(path), kind) == [], path.name
    conv = Message(num_output=[3], hole=[2], weight_filler=[Message(type=["msra"], seed=[1])])
    layer = Message(name=["c"], type=["Convolution"], convolution_param=[conv], nv_param=[Message(x=[1])])
    assert unknown_fields(Message(layer=[layer], fast=[True]), "NetParameter") == [
        "layer c: convolution_param.hole",
        "layer c: convolution_param.weight_filler.seed",
        "layer c: nv_param",
        "fast",
    ]
    for name in ("vgg16_aspp", "vgg16_bg", "resnet101_aspp"):
        assert unknown_fields(deploy_prototxt(build_model(name, width_divisor=64)), "NetParameter") == []


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        (
            [('type: "msra"', 'type: "xavier"')],
            "42 fields of fillers differ from init.filler=gaussian, which matters for layers that",
        ),
        (
            [("kernel_size: 1", "engine: CAFFE kernel_size: 1")],
            r"fc7_1: convolution_param.engine: .*of no effect on the num",
        ),
        (
            [('name: "stage1"', 'name: "stage1" force_backward: true')],
            "force_backward: none here, True there",
        ),
        (
            [('name: "stage1"', 'name: "stage1" layer { name: "quiet" type: "Silence" bottom: "labels" }')],
            r"layer quiet: only there .reports only.",
        ),
    ],
    ids=str,
)
def test_differences_that_do_not_matter_are_listed(tmp_path, changes, note):
    notes = load_solver(str(changed(tmp_path, *changes))).notes
    assert any(re.search(note, line) for line in notes), notes


def test_no_effect_is_said_of_what_has_none(tmp_path):
    """Gradients that are zero anyhow may be stopped, and Caffe's defaults may be written out."""
    changes = [
        (
            "param_str: \"{'th1': 0.99, 'th2': 0.85}\" }",
            "param_str: \"{'th1': 0.99, 'th2': 0.85}\" } propagate_down: 0",
        ),
        ("shuffle: false", "shuffle: false is_color: true rand_skip: 0"),
        ("transform_param { mirror", "transform_param { scale: 1 crop_size: 0 mirror"),
        (
            'name: "relu1_1" type: "ReLU"',
            'name: "relu1_1" type: "ReLU" relu_param { negative_slope: 0 } phase: TEST',
        ),
    ]
    net = changed(tmp_path, *changes)
    notes = [line.partition("stage1_train.prototxt: ")[2] for line in load_solver(str(net)).notes]
    assert [line for line in notes if line] == [
        "layer relu1_1: phase: none here, TEST there (of no effect on the numbers)",
        "layer update-seed: propagate_down: none here, 0 there (of no effect on the numbers)",
    ]


def test_the_released_retraining_loss_names_no_top(tmp_path):
    """DSRG's train-f.prototxt lets Caffe name the loss's top, and holds it to the phase TRAIN."""
    text = (CAFFE_FILES / "retrain_train.prototxt").read_text()
    named = 'bottom: "label_shrink" top: "loss"'
    assert named in text
    text = text.replace(named, 'bottom: "label_shrink" include: { phase: TRAIN }')
    (tmp_path / "retrain_train.prototxt").write_text(text)
    (tmp_path / "solver.prototxt").write_text((CAFFE_FILES / "retrain_solver.prototxt").read_text())
    assert load_solver(str(tmp_path / "solver.prototxt")).stage == 2


def test_the_sec_release_is_taken(tmp_path, capsys):
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
    run = load_solver(str(tmp_path / "solver.prototxt"))
    stage1 = run.config.stage1
    assert stage1.loss == load_config("sec_vgg16_voc", ["rows=[]"]).stage1.loss
    assert (stage1.data.cues, stage1.data.mirror, stage1.data.batch_size) == (str(cues), False, 15)
    assert any("order of the layers" in line and "of no effect" in line for line in run.notes)
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


def test_a_state_in_another_order_is_refused(tmp_path):
    """Branches 1 and 2 of the net have the same shapes: their histories could be mistaken for each other."""
    first, second, third = (STAGE1_NET.index(f'layer {{ name: "fc6_{branch}"') for branch in (1, 2, 3))
    branches = STAGE1_NET[second:third] + STAGE1_NET[first:second]
    path = str(changed(tmp_path, net=STAGE1_NET[:first] + branches + STAGE1_NET[third:]))
    assert any("order of the layers" in line for line in load_solver(path).notes)
    with pytest.raises(
        InputError, match=r"^x\.solverstate: its history is in the order of a net's layers, and "
    ):
        load_solver(path, ["init.solverstate=x.solverstate"])


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
        if is_kept:
            load_solver(path)
            continue
        with pytest.raises(InputError, match="layer relu4_2: only here"):
            load_solver(path)
    with pytest.raises(
        InputError, match=r"solver\.prototxt: train_state: level 'x': expected a whole number"
    ):
        load_solver(str(changed(tmp_path, solver="train_state { level: 'x' }")))


REFUSED = {
    "branch cut off": (
        [('name: "fc6_3" type: "Convolution"', 'name: "fc6_3" type: "Convolution" propagate_down: false')],
        "",
        "fc6_3: propagate_down: none here, False there",
    ),
    "CRF cut off": (
        [("propagate_down: 1 propagate_down: 0", "propagate_down: 0 propagate_down: 0")],
        "",
        r"CRF: propagate_down: .1, 0. here, .0, 0. there",
    ),
    "dropout off": (
        [*DROPS, ('top: "fc7_2" dropout_param', 'top: "fc7_2" phase: TEST dropout_param')],
        "",
        "drop7_2: phase: none here, TEST there",
    ),
    "grey images": (
        [("shuffle: false", "shuffle: false is_color: false")],
        "",
        "is_color: none here, False there",
    ),
    "leaky": (
        [
            (
                'type: "ReLU" bottom: "conv1_1"',
                'type: "ReLU" relu_param { negative_slope: 0.1 } bottom: "conv1_1"',
            )
        ],
        "",
        "negative_slope: none here, 0.1 there",
    ),
    "seed": ([("random_seed: 0", "random_seed: now")], "", r"solver.prototxt: random_seed: .* found 'now'"),
    "multiplier": ([("lr_mult: 20", "lr_mult: twice")], "", "layer fc8-SEC_1: lr_mult: .* found 'twice'"),
    "classes": (
        [("num_output: 21", "num_output: 100000000")],
        "",
        "stage1_train.prototxt: num_classes: .* found 100000000",
    ),
    "outputs": (
        [("num_output: 4 ", "num_output: four ")],
        "",
        "conv1_1: num_output 'four': expected a whole",
    ),
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
    "old layout": ([("layer {", "layers {")], "", "a net in the old layout"),
    "another net": ([("conv3_2", "conv3_9")], "", "none of our nets .vgg16_aspp, vgg16_largefov, "),
    "odd width": (
        [("num_output: 4 ", "num_output: 5 ")],
        "",
        "layer conv1_1: num_output 5, expected 64 or a divisor",
    ),
    "one width": (
        [("num_output: 8 ", "num_output: 12 ")],
        "",
        "conv2_1: convolution_param.num_output: 8 here, 12 there",
    ),
    "dilation": (
        [("pad: 12 dilation: 12", "pad: 10 dilation: 10")],
        "",
        "fc6_2: .*pad: 12 here, 10 there .and 1 more",
    ),
    "pooling": ([("pool: AVE", "pool: MAX")], "", "pool5a: pooling_param.pool: AVE here, none there"),
    "wiring": (
        [
            (
                'name: "fc7_3" type: "Convolution" bottom: "fc6_3"',
                'name: "fc7_3" type: "Convolution" bottom: "fc6_2"',
            )
        ],
        "",
        "fc7_3: bottom: fc6_3 here, fc6_2 there",
    ),
    "a layer more": (
        [
            (
                'layer { name: "CRF"',
                'layer { name: "bn" type: "BatchNorm" bottom: "fc7_1" top: "x" }\nlayer { name: "CRF"',
            )
        ],
        "",
        "layer bn: only there",
    ),
    "a layer less": (
        [('layer { name: "relu4_2" type: "ReLU" bottom: "conv4_2" top: "conv4_2" }', "")],
        "",
        "layer relu4_2: only here",
    ),
    "mean": (
        [("mean_value: 117", "mean_value: 116")],
        "",
        r"Input: transform_param.mean_value: .104, 117, 123. here",
    ),
    "scale": (
        [("transform_param { mirror", "transform_param { scale: 0.5 mirror")],
        "",
        "transform_param.scale: none here, 0.5",
    ),
    "images mirrored": (
        [("mirror: false", "mirror: true")],
        "",
        "transform_param.mirror: none here, True there",
    ),
    "unknown setting": (
        [("'mirror': False", "'mirror': False, 'jitter': 3")],
        "",
        "Annotation: python_param.param_str",
    ),
    "no settings": (
        [("{'th1': 0.99, 'th2': 0.85}", "open('x')")],
        "",
        "layer update-seed: param_str is not a dict",
    ),
    "no threshold": ([("'th2': 0.85", "'th3': 0.85")], "", "param_str has no number 'th2'"),
    "loss weight": (
        [('layer: "ConstrainLossLayer"  } loss_weight: 1', 'layer: "ConstrainLossLayer" } loss_weight: 2')],
        "",
        "loss-Constrain: loss_weight: 1 here, 2 there",
    ),
    "no loss weight": (
        [('layer: "ConstrainLossLayer"  } loss_weight: 1', 'layer: "ConstrainLossLayer" }')],
        "",
        "loss-Constrain: loss_weight: 1 here, none there",
    ),
    "dropout ratios": (
        [*DROPS, ('fc7_2" dropout_param { dropout_ratio: 0.3', 'fc7_2" dropout_param { dropout_ratio: 0.4')],
        "",
        r"dropout ratios \[0.3, 0.4\]",
    ),
    "shared": (
        [("param { lr_mult: 20", 'param { name: "b" lr_mult: 20')],
        "",
        "parameters that layers share by name",
    ),
    "no data layer": (
        [(re.search(r'layer { name: "Input".*\n', STAGE1_NET)[0], "")],
        "",
        "no data layer of the releases",
    ),
    "same name": ([("relu2_1", "relu2_2")], "", "two layers are named 'relu2_2'"),
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


WRONG = (
    *("3", "-1", "0", "1e999", "true", "TRAIN", '"x"', '"{}"', '"{1: 2}"', "[1, 2]", "{", "}", "param {"),
    'lr_mult: "a"',
)


def test_mutated_files_load_or_raise(tmp_path):
    """Values of another kind, anywhere in the solver or in the net's beginning and end: one line names the file."""
    rng, refused = random.Random(0), []
    token = re.compile(r'"[^"]*"|[\w.+-]+|[{}:]')
    for _ in range(500):
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
    assert 250 < len(refused) < 500
    assert all(str(tmp_path) in line and "\n" not in line for line in refused)


def test_options_that_do_not_go_together(tmp_path, capsys):
    path = str(changed(tmp_path))
    for arguments, reason in (
        (["--solver", path, "--config", "dsrg_vgg16_voc"], "give either --config or --solver"),
        ([], "give either --config or --solver"),
        (["--solver", path, "--stage", "2"], "its net is of stage 1, not of --stage 2"),
        (["--solver", path, "solver.momentun=1"], "unknown key 'stage1.solver.momentun'"),
        (["--solver", "/nowhere.prototxt"], "/nowhere.prototxt: No such file"),
    ):
        assert run_command(["train", *arguments]) == 2
        assert reason in capsys.readouterr().err
