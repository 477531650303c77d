"""Profiles and overrides: the papers' values are in them, and a mistake names its key."""

from __future__ import annotations

import pytest
import yaml

from repro.config import STAGES, changed_from_profile, flattened, load_config, load_yaml
from repro.errors import InputError
from repro.profiles import profile_names, profile_text
from repro.solver import learning_rate


def test_a_stage_without_any_loss_is_refused():
    with pytest.raises(InputError, match="leaves nothing to minimise"):
        load_config(
            "sec_vgg16_voc",
            ["stage1.loss.seed=none", "stage1.loss.constrain=false", "stage1.loss.expand=false"],
        )


def test_every_profile_loads():
    assert {"dsrg_vgg16_voc", "dsrg_vgg16_voc_released", "sec_vgg16_voc", "mini"} <= set(profile_names())
    for name in profile_names():
        assert load_config(name).name == name


def test_the_papers_schedules():
    paper = load_config("dsrg_vgg16_voc").stage1
    assert [learning_rate(paper.solver, t) for t in (0, 2000, 4000, 6000)] == pytest.approx(
        [5e-4, 5e-5, 5e-6, 5e-7]
    )
    assert (paper.data.batch_size, paper.solver.momentum, paper.solver.weight_decay) == (20, 0.9, 5e-4)
    assert (paper.loss.theta_b, paper.loss.theta_f, paper.loss.rule) == (0.99, 0.85, "released")
    released = load_config("dsrg_vgg16_voc_released").stage1.solver
    assert [learning_rate(released, t) for t in (0, 1000, 2000)] == pytest.approx([5e-4, 1.65e-4, 5.445e-5])
    sec = load_config("sec_vgg16_voc").stage1
    assert (sec.solver.base_lr, sec.data.batch_size, sec.data.mirror) == (1e-3, 15, False)
    assert (sec.loss.variant, sec.loss.seed, sec.loss.expand, sec.loss.constrain) == (
        "sec",
        "seed",
        True,
        True,
    )


def test_released_differs_from_the_paper_in_the_rate_alone():
    paper, released = (load_config(f"dsrg_vgg16_voc{suffix}").model_dump() for suffix in ("", "_released"))
    for fields in (paper, released):
        fields.pop("name")
        for key in ("gamma", "stepsize"):
            fields["stage1"]["solver"].pop(key)
    assert paper == released


def test_a_short_key_goes_to_the_stages_at_hand():
    making = ["solver.max_iter=7", "dataset.make_cues=true"]  # in any order
    each = load_config("dsrg_vgg16_voc", making, stages=STAGES)
    assert [s.solver.max_iter for s in (each.stage0, each.stage1, each.stage2)] == [7, 7, 7]
    one = load_config("dsrg_vgg16_voc", ["solver.max_iter=7"], stages=("stage1",))
    assert (one.stage1.solver.max_iter, one.stage2.solver.max_iter) == (7, 20000)
    keys = ["data.crop_size=65", "loss.rule=paper", "test_interval=3", "stage2.solver.power=0.5"]
    only = load_config("dsrg_vgg16_voc", keys, stages=STAGES)
    assert only.stage0.test_interval == 3
    assert only.stage2.data.crop_size == 65
    assert only.stage1.loss.rule == "paper"
    assert only.stage2.solver.power == 0.5


@pytest.mark.parametrize(
    ("stages", "key", "expected"),
    [
        (STAGES, "init.weights", "stage1.init.weights or stage2.init.weights"),
        (("stage1", "stage2"), "data.list", "stage1.data.list or stage2.data.list"),
        ((), "solver.max_iter", "stage0.solver.max_iter or stage1.solver.max_iter or stage2.solver.max_iter"),
        ((), "loss.theta_f", "stage1.loss.theta_f"),
    ],
)
def test_a_short_key_that_could_be_several_is_refused(stages, key, expected):
    with pytest.raises(InputError) as caught:
        load_config("dsrg_vgg16_voc", [f"{key}=1"], stages=stages)
    assert str(caught.value) == f"override {key}: of which stage? expected {expected}"


def test_a_file_of_one_stage_needs_no_stage():
    cues = load_config("dsrg_vgg16_voc", ["data.cues=c.pickle"], stages=STAGES)
    assert cues.stage1.data.cues == "c.pickle"
    sec = load_config("sec_vgg16_voc", ["init.weights=a.caffemodel"], stages=STAGES)  # whose cues are given
    assert (sec.stage0.init.weights, sec.stage1.init.weights) == (None, "a.caffemodel")
    with pytest.raises(InputError, match=r"expected stage0\.init\.weights or stage1\.init\.weights"):
        load_config("sec_vgg16_voc", ["init.weights=a.caffemodel", "dataset.make_cues=true"], stages=STAGES)
    alone = load_config("dsrg_vgg16_voc", ["init.weights=a.caffemodel"], stages=("stage2",))
    assert (alone.stage1.init.weights, alone.stage2.init.weights) == (None, "a.caffemodel")
    with pytest.raises(InputError, match=r"override init\.weights: the profile has no section stage2"):
        load_config("sec_vgg16_voc", ["init.weights=a.caffemodel"], stages=("stage2",))


@pytest.mark.parametrize("text", ["2024-01-01", "123", "/data/my #1 set", "a: b", "010", "{x}", "on", "1e3"])
def test_text_needs_no_quotes(text):
    assert load_config("dsrg_vgg16_voc", [f"output={text}"]).output == text


def test_the_users_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert load_config("dsrg_vgg16_voc", ["dataset.root=~/VOC2012"]).dataset.root == "/home/me/VOC2012"
    assert load_config("dsrg_vgg16_voc", ["dataset.root=~"]).dataset.root is None  # YAML's null


def test_changes_from_the_profile_are_told():
    assert (
        changed_from_profile(load_config("dsrg_vgg16_voc", ["output=a", "seed=4", "stage1.data.workers=0"]))
        == {}
    )
    narrow = load_config("dsrg_vgg16_voc", ["model.width_divisor=16", "stage1.solver.max_iter=3"])
    assert changed_from_profile(narrow) == {"model.width_divisor": 16, "stage1.solver.max_iter": 3}


def test_numbers_are_decimal():
    assert load_config("dsrg_vgg16_voc", ["seed=08"]).seed == 8
    assert load_config("dsrg_vgg16_voc", ["stage1.data.batch_size=010"]).stage1.data.batch_size == 10


def test_values_are_yaml_with_plain_numbers():
    config = load_config("dsrg_vgg16_voc", ["stage1.solver.base_lr=1e-5", "stage1.data.mirror=false"])
    assert config.stage1.solver.base_lr == 1e-5
    assert config.stage1.data.mirror is False
    assert load_config("dsrg_vgg16_voc", ["stage1.loss.theta_f=.inf"]).stage1.loss.theta_f == float("inf")
    assert load_config("dsrg_vgg16_voc", ["output=a: b"]).output == "a: b"
    assert load_config("dsrg_vgg16_voc", ["stage1.init.weights=null"]).stage1.init.weights is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("solver.max_itr=3", "unknown key 'stage1.solver.max_itr'; did you mean 'max_iter'"),
        ("modle.name=x", "unknown key 'modle'; did you mean 'model'"),
        ("data.batch_size=many", "stage1.data.batch_size: .*found 'many'"),
        ("data.batch_size=0", "stage1.data.batch_size: .*greater than or equal to 1.*found 0"),
        ("data.mirror=1", "stage1.data.mirror: .*valid boolean.*found 1"),
        ("data.mirror=yes", "stage1.data.mirror: .*valid boolean.*found 'yes'"),
        ("solver.max_iter=", "stage1.solver.max_iter: .*valid integer, found nothing"),
        ("solver.lr_policy=cosine", "lr_policy: expected one of fixed, step, .*found 'cosine'"),
        ("solver.base_lr=-1", "base_lr: .*greater than 0.*found -1"),
        ("model.num_classes=3", "model.num_classes is 3, dataset.classes lists 21"),
        ("model.name=vgg16_cam", "model.name 'vgg16_cam': expected one of vgg16_aspp"),
        ("rows=[SEC]", "rows: SEC means stage1.loss.variant=sec, here it is dsrg"),
        ("loss.cues=fixed", r"rows: \+DSRG means stage1.loss.cues=grown, here it is fixed"),
        (
            "loss.pooling=median",
            "stage1.loss.pooling: expected one of weighted_rank, max, average, found 'median'",
        ),
        ("solver.base_lr=.inf", "base_lr: .*finite number"),
        ("inference.use_labels=true", "unknown key 'inference.use_labels'"),
        ("solver.max_iter", "expected key=value"),
        ("seed=99999999999999999999", "seed: "),
        ("seed.x=1", "seed is a value, not a section"),
        ("name=../up", "name: "),
        ("device=tpu", "device: "),
    ],
)
def test_bad_overrides_name_their_key(override, message):
    with pytest.raises(InputError, match=message) as caught:
        load_config("dsrg_vgg16_voc", [override], stages=("stage1",))
    assert "\n" not in str(caught.value)


def test_bad_profiles(tmp_path):
    with pytest.raises(
        InputError, match=r"nope\.yaml: is not a readable file, nor one of the profiles dsrg_resnet101_voc, "
    ):
        load_config(str(tmp_path / "nope.yaml"))
    for text, message in (
        ("a: [", "not YAML"),
        ("- 1", "expected a mapping"),
        ("name: x\n", "rows: Field required"),
    ):
        path = tmp_path / "profile.yaml"
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load_config(str(path))


# --- profiles that inherit ------------------------------------------------------------------------------------


def written(folder, name, text):
    path = folder / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def test_a_child_holds_what_differs(tmp_path):
    child = written(tmp_path, "mine", "name: mine\nbase: dsrg_vgg16_voc\nstage1: {solver: {base_lr: 1e-4}}\n")
    base, own = load_config("dsrg_vgg16_voc").model_dump(), load_config(child).model_dump()
    base["name"], base["stage1"]["solver"]["base_lr"] = "mine", 1e-4
    assert own == base
    assert load_config(child, ["stage1.loss.theta_f=0.7"]).stage1.loss.theta_f == 0.7


def test_a_base_may_be_a_file_relative_to_its_child(tmp_path):
    written(tmp_path / "shared", "first", "name: first\nbase: sec_vgg16_voc\nseed: 3\ndataset: {val: own}\n")
    child = written(
        tmp_path / "mine", "second", "name: second\nbase: ../shared/first.yaml\ndataset: {val_limit: 4}\n"
    )
    config = load_config(child)
    assert (config.name, config.seed, config.rows) == ("second", 3, ["SEC"])
    assert (config.dataset.val, config.dataset.val_limit) == ("own", 4)


def test_null_takes_a_section_of_the_base_away(tmp_path):
    child = written(tmp_path, "mine", "name: mine\nbase: dsrg_vgg16_voc\nrows: [+DSRG]\nstage2: null\n")
    assert load_config(child).stage2 is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.lst=a.txt",
            "data.lst=a.txt on the command line: unknown key 'stage1.data.lst'; did you mean 'list'?",
        ),
        ("devcie=cpu", "devcie=cpu on the command line: unknown key 'devcie'; did you mean 'device'?"),
        ("stag1.data.list=a", "stag1.data.list=a on the command line: unknown key 'stag1'"),
        ("solver.max_iter=ten", "solver.max_iter=ten on the command line: stage1.solver.max_iter: "),
        ("stage1.data={lst: a}", "stage1.data={lst: a} on the command line: unknown key 'stage1.data.lst'"),
        ("rows=[SECC]", "rows=[SECC] on the command line: rows.0: "),
        ("solver.lr_policy=step", "FILE and the command line: stage1.solver: lr_policy step needs"),
        ("model.name=vgg16", "FILE and the command line: model.name 'vgg16'"),
    ],
)
def test_an_error_is_blamed_on_the_command_line_where_it_was_typed(tmp_path, override, message):
    mine = written(tmp_path, "mine", "name: mine\nbase: mini\n")
    with pytest.raises(InputError) as caught:
        load_config(mine, ["output=b", override, "seed=1"], stages=("stage1",))
    assert str(caught.value).startswith(message.replace("FILE", mine))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage1: {data: {lst: a.txt}}", "unknown key 'stage1.data.lst'"),
        ("stag1: {}", "unknown key 'stag1'"),
        ("model: {num_classes: 3}", "model.num_classes is 3"),
    ],
)
def test_and_on_the_file_where_that_has_it(tmp_path, text, message):
    mine = written(tmp_path, "mine", f"name: mine\nbase: mini\n{text}\n")
    with pytest.raises(InputError) as caught:
        load_config(mine, ["stage1.data.list=b.txt", "output=b"])
    assert str(caught.value).startswith(f"{mine}: {message}")


def test_lists_are_replaced_not_joined(tmp_path):
    child = written(tmp_path, "mine", "name: mine\nbase: mini\nrows: [+DSRG]\n")
    assert load_config(child).rows == ["+DSRG"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: a\nbase: nobodys\n",
            r"a\.yaml: base .*nobodys: is not a readable file, nor one of the profiles",
        ),
        ("name: a\nbase: a.yaml\n", "a circle of profiles"),
        ("name: a\nbase: b.yaml\n", r"a circle of profiles: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"),
        ("name: a\nbase: [mini]\n", "base: expected a profile's name or path"),
        ("base: mini\n", "name: expected"),
        ("name: a\nbase: mini\nstage1: {sovler: {}}\n", "unknown key 'stage1.sovler'"),
        ("name: a\nbase: mini\nstage1: 3\n", "stage1: "),
        (
            "name: a\nmodel: {name: vgg16_aspp}\nstage0: {solver: {base_lrr: 1e-3}}\n",
            "unknown key 'stage0.solver.base_lrr'; did you mean 'base_lr'",
        ),
    ],
)
def test_bases_that_cannot_be(tmp_path, text, message):
    written(tmp_path, "b", "name: b\nbase: a.yaml\n")
    with pytest.raises(InputError, match=message):
        load_config(written(tmp_path, "a", text))


def test_a_base_is_no_setting():
    with pytest.raises(InputError, match="unknown key 'base'"):
        load_config("mini", ["base=sec_vgg16_voc"])


@pytest.mark.parametrize("name", profile_names())
def test_no_profile_repeats_its_base(name):
    own = load_yaml(profile_text(name))
    if (base := own.pop("base", None)) is None:
        return
    inherited = flattened(load_config(base).model_dump())
    repeated = [
        key
        for key, value in flattened(own).items()
        if inherited.get(key, value) == value and value is not None
    ]
    assert repeated == []


def test_the_resolved_config_of_a_run_is_whole(tmp_path):
    """What a run's folder keeps reads back as the same config, without the base."""
    config = load_config(written(tmp_path, "mine", "name: mine\nbase: mini\nseed: 4\n"))
    kept = written(tmp_path / "run", "config", yaml.safe_dump(config.model_dump(), sort_keys=False))
    assert "base" not in config.model_dump()
    assert load_config(kept) == config


@pytest.mark.parametrize("stages", [(), STAGES])
def test_a_misspelt_short_key_is_unknown(stages):
    with pytest.raises(InputError, match=r"unknown key 'stage2\.solver\.momentun'"):
        load_config("dsrg_vgg16_voc", ["solver.momentun=1"], stages=stages)
