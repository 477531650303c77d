"""Every setting either changes results or is marked as one that does not, and all who compare runs ask the mark."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from repro.config import Config, Mark, changed_from_profile, load_config, shaping, with_changes
from repro.config.marks import content_sha256, mark_of
from repro.cues.train_classifier import classifier_settings
from repro.data.experiment import LabelledSet
from repro.errors import InputError
from repro.inference.predict import describe
from repro.run.plan import settings_sha256
from repro.training.train import stage_settings

# values other than a profile's where the type does not say one
OTHER: dict[str, Any] = {
    "name": "another",
    "device": "cpu",
    "rows": ["baseline"],
    "dataset.images": [3, 2],
    "dataset.classes": ["background", *(f"class {number}" for number in range(1, 21))],
    "model.name": "vgg16_largefov",
    "model.num_classes": None,  # goes with dataset.classes
    "model.dropout": 0.25,
    "stage1.loss.variant": "sec",
    "stage1.multipliers": {"conv1_1.weight": [1.0, 0.0]},
    "stage2.multipliers": {"conv1_1.weight": [1.0, 0.0]},
    "stage1.loss.cues": "fixed",
    "report.growth": ["a"],
}


def base() -> Config:
    """A config in which every field counts: stage 0 makes the cues, an expand loss is there, cues grow."""
    return load_config(
        "dsrg_vgg16_voc",
        [
            "rows=[baseline]",
            "dataset.make_cues=true",
            "stage1.loss.expand=true",
            "stage1.loss.rule=paper",
            "stage1.loss.theta_f=0.95",
            "stage1.loss.theta_b=0.9",
        ],
    )


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any, Mark | None]]:
    """Dotted name, type and mark of every field; a section's mark is that of all its fields."""

    def walk(
        model: type[BaseModel], prefix: str, inherited: Mark | None
    ) -> Iterator[tuple[str, Any, Mark | None]]:
        for name, field in model.model_fields.items():
            mark = mark_of(model, name) or inherited
            kinds = typing.get_args(field.annotation) if _is_union(field.annotation) else (field.annotation,)
            section = next(
                (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None
            )
            if section:
                yield from walk(section, f"{prefix}{name}.", mark)
            else:
                yield f"{prefix}{name}", field.annotation, mark

    return walk(model, prefix, None)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def other_value(key: str, annotation: Any, now: Any, folder) -> Any:
    if key in OTHER:
        return OTHER[key]
    kinds = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    if isinstance(now, bool):
        return not now
    if isinstance(now, (int, float)):
        return now / 2 if isinstance(now, float) and now else now + 1
    if typing.get_origin(annotation) is typing.Literal:
        return next(value for value in typing.get_args(annotation) if value != now)
    if str in kinds:
        path = folder / key
        path.write_text(key)
        return str(path)
    if int in kinds or any(typing.get_args(kind)[:1] == (int,) for kind in kinds):
        return 3
    if typing.get_origin(annotation) is list:
        return [*now, 7]
    raise AssertionError(f"{key}: {annotation} needs a value in OTHER")


ALL = {key: (annotation, mark) for key, annotation, mark in fields(Config)}


def at(config: Config, key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = getattr(node, part)
    return node


def recorded_settings(config: Config) -> dict[str, Any]:
    """What each step records: it goes on only where that is the same."""
    labelled = LabelledSet({}, {}, typing.cast(Any, None))
    assert config.stage0
    assert config.stage2
    assert config.pseudo_labels
    return {
        "stage0": classifier_settings(config, config.stage0, labelled),
        "cues": shaping(config.stage0.cues, Mark.EXTRA_INPUT),
        "stage1": stage_settings(config, 1, config.stage1, {}),
        "pseudo_labels": shaping(config.pseudo_labels),
        "stage2": stage_settings(config, 2, config.stage2, {}),
        "inference": shaping(config.inference),
    }


@pytest.mark.parametrize("key", ALL)
def test_a_setting_changes_what_its_mark_says(key, tmp_path):
    annotation, mark = ALL[key]
    before = base()
    value = other_value(key, annotation, at(before, key), tmp_path)
    if key == "model.num_classes":
        changes = {key: 22, "dataset.classes": [*before.dataset.classes, "one more"]}
    elif key == "rows":
        changes = {key: ["+BSL"]}
    else:
        changes = {key: value}
    after = with_changes(before, changes, key)
    assert at(after, key) != at(before, key)

    same_hash = settings_sha256(after) == settings_sha256(before)
    assert same_hash == (mark in (Mark.NEUTRAL, Mark.REPETITION)), key
    told = changed_from_profile(with_changes(after, {"name": "dsrg_vgg16_voc"}, key)) != changed_from_profile(
        before
    )
    assert told == (mark not in (Mark.NEUTRAL, Mark.REPETITION, Mark.INPUT)), key

    recorded = recorded_settings(before)
    kept = [name for name, settings in recorded_settings(after).items() if settings == recorded[name]]
    section = key.partition(".")[0]
    if mark in (Mark.NEUTRAL, Mark.INPUT, Mark.EXTRA_INPUT) or (
        section == "dataset" and key != "dataset.classes"
    ):
        # an input's content is recorded beside these, by the step that reads it
        assert len(kept) == 6 - (key == "stage0.init.weights"), key
    elif section in ("stage0", "stage1", "pseudo_labels", "stage2", "inference"):
        assert ("cues" if key.startswith("stage0.cues.") else section) not in kept, key
    elif key in ("seed", "precision") or section == "model":
        assert not {"stage1", "stage2"} & set(kept), key


def test_a_change_of_the_marks_is_meant():
    marked = {key: mark for key, (_, mark) in ALL.items() if mark}
    assert {key for key in marked if key.startswith(("stage1", "dataset", "model"))} == {
        *("dataset.root", "dataset.train_masks", "dataset.input_list", "dataset.cues", "dataset.images"),
        "model.dropout",
        *("stage1.data.image_root", "stage1.data.list", "stage1.data.cues", "stage1.data.truth_root"),
        *("stage1.data.workers", "stage1.data.keep_gb", "stage1.init.weights", "stage1.init.solverstate"),
        *(f"stage1.solver.{name}" for name in ("display", "average_loss", "snapshot", "snapshot_keep")),
    }
    assert {key for key, mark in marked.items() if mark is Mark.REPETITION} == {"seed"}


def test_a_file_counts_by_its_content(tmp_path):
    hashes = []
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
        hashes.append(
            settings_sha256(load_config("dsrg_vgg16_voc", [f"stage1.init.weights={tmp_path / name}"]))
        )
    assert hashes[0] == hashes[1] != hashes[2]
    assert hashes[0] != settings_sha256(load_config("dsrg_vgg16_voc"))


def test_a_folder_counts_by_names_and_contents(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_text("1" if name != "c" else "2")
    hashes = [content_sha256(str(tmp_path / name)) for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]
    assert content_sha256(str(tmp_path / "absent")) == str(tmp_path / "absent")


def test_seeds_of_one_family_stay_together(tmp_path):
    """Where data and weights lie, how many workers there are and what is kept make no other experiment."""
    for place in "ab":
        (tmp_path / place).mkdir()
        (tmp_path / place / "w.caffemodel").write_bytes(b"weights")
    here, there = (
        load_config(
            "dsrg_vgg16_voc",
            [
                *(f"dataset.root={tmp_path / place}", f"stage1.init.weights={tmp_path / place}/w.caffemodel"),
                *(
                    f"stage1.data.workers={place == 'a':d}",
                    f"stage1.data.keep_gb={place == 'b':d}",
                    f"seed={place == 'b':d}",
                ),
            ],
        )
        for place in "ab"
    )
    assert settings_sha256(here) == settings_sha256(there)
    assert changed_from_profile(here) == changed_from_profile(there) == {}


def test_dropout_shapes_training_and_not_a_mask(tmp_path):
    (tmp_path / "w").write_bytes(b"")
    config = load_config("dsrg_vgg16_voc")
    other = with_changes(config, {"model.dropout": 0.1}, "")
    assert describe(config, tmp_path / "w", config.inference) == describe(
        other, tmp_path / "w", other.inference
    )
    assert "dropout" in stage_settings(config, 1, config.stage1, {})["model"]


# --- probabilities, shares and thresholds --------------------------------------------------------------------


@pytest.mark.parametrize("key", ["theta_f", "theta_b"])
@pytest.mark.parametrize("value", ["85", "1.01", "-0.1", "-.inf", ".nan", "99"])
def test_a_threshold_is_a_probability(key, value):
    with pytest.raises(InputError, match=rf"stage1\.loss\.{key}"):
        load_config("dsrg_vgg16_voc", [f"stage1.loss.{key}={value}"])


@pytest.mark.parametrize(("value", "read"), [("0", 0), ("1", 1), ("0.85", 0.85), (".inf", math.inf)])
def test_a_threshold_may_be_never_reached(value, read):
    assert load_config("dsrg_vgg16_voc", [f"stage1.loss.theta_f={value}"]).stage1.loss.theta_f == read


@pytest.mark.parametrize(
    "override",
    [
        *("model.dropout=50", "model.dropout=1", "stage1.solver.momentum=9", "stage0.data.held_out=5"),
        *(
            "stage0.cues.cam_threshold=20",
            "stage0.cues.background_share=10",
            "stage0.cues.saliency_threshold=6",
        ),
        *("stage1.data.keep_gb=.inf", "stage1.solver.base_lr=.inf", "stage0.cues.cam_threshold=.inf"),
    ],
)
def test_shares_are_no_percentages_and_sizes_are_finite(override):
    key = override.partition("=")[0]
    with pytest.raises(InputError, match=key.replace(".", r"\.")):
        load_config("dsrg_vgg16_voc", [override])
