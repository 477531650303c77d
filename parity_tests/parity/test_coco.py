"""COCO's data layer and test scripts against golden/coco.h5; its annotation file; the chain on a generated set."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from parity_tests.conftest import CAFFE_FILES, assert_close
from parity_tests.generated_coco import CATEGORY_IDS, write_coco
from parity_tests.tolerances import MASK_PIXELS
from repro.cli import run_command
from repro.config import load_config
from repro.constants import VOID
from repro.data import (
    COCO_CLASS_NAMES,
    AnnotationCOCO,
    CocoInstances,
    make_loader,
    read_label_list,
    read_mask,
    write_mask,
)
from repro.data.experiment import open_experiment
from repro.errors import InputError
from repro.inference import predict_mask
from repro.models import build_model
from weights_conversion import load_caffe_weights


@pytest.fixture
def recorded_files(golden, tmp_path):
    """The recording's inputs on disk: a root, and the list of lines ``/images/i.png /cues/i.png``."""
    recorded = golden("coco")
    (tmp_path / "images").mkdir()
    for index in range(3):
        image = recorded[f"image_bgr_{index}"][()]
        Image.fromarray(image[:, :, ::-1]).save(tmp_path / "images" / f"{index}.png")
        write_mask(tmp_path / "cues" / f"{index}.png", recorded[f"cue_label_{index}"][()])
    lines = "".join(f"/images/{index}.png /cues/{index}.png\n" for index in range(3))
    (tmp_path / "list.txt").write_text(lines)
    return tmp_path


def layer_of(folder, **options) -> AnnotationCOCO:
    return AnnotationCOCO(folder, folder, read_label_list(folder / "list.txt"), **options)


def test_annotation_layer(golden, recorded_files):
    recorded = golden("coco")
    (batch,) = make_loader(layer_of(recorded_files), 3, shuffle=False, seed=0, iterations=1)
    assert_close(batch["images"], recorded["images"], 0, "images")
    assert_close(batch["labels"], recorded["labels"][:, 0, 0], 0, "labels")
    assert_close(batch["cues"], recorded["cues"], 0, "cues")
    assert batch["cues"].dtype == torch.uint8


def test_mirror_flips_image_and_cues_together(golden, recorded_files):
    recorded = golden("coco")
    flipped = 0
    loader = make_loader(layer_of(recorded_files, mirror=True), 3, shuffle=False, seed=1, iterations=4)
    for batch in loader:
        for index, (images, cues) in enumerate(zip(batch["images"], batch["cues"], strict=True)):
            images, cues = images.numpy(), cues.numpy()
            if not np.array_equal(images, recorded["images"][index]):
                images, cues, flipped = images[:, :, ::-1], cues[:, :, ::-1], flipped + 1
            assert_close(images, recorded["images"][index], 0, "images")
            assert_close(cues, recorded["cues"][index], 0, "cues")
    assert 0 < flipped < 12


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (np.full((41, 41), 90, np.uint8), "list.txt:2: .*class 90"),
        (np.zeros((40, 41), np.uint8), "list.txt:2: .*is 40x41, cues on the net's 41x41 grid"),
        (np.full((41, 41), VOID, np.uint8), "list.txt:2: .*has no cue"),
    ],
)
def test_bad_cue_labels(recorded_files, spoiled, message):
    write_mask(recorded_files / "cues" / "1.png", spoiled)
    with pytest.raises(InputError, match=message):
        next(iter(make_loader(layer_of(recorded_files), 3, shuffle=False, seed=0, iterations=1)))
    (recorded_files / "cues" / "1.png").unlink()
    with pytest.raises(InputError, match=r"list\.txt:2: no such file"):
        layer_of(recorded_files)


@pytest.fixture(scope="module")
def model():
    model = build_model("vgg16_aspp", num_classes=81, width_divisor=16)
    load_caffe_weights(model, CAFFE_FILES / "vgg16_aspp_coco.caffemodel")
    return model.eval()


@pytest.mark.parametrize("crf", [True, False], ids=["crf", "raw"])
@pytest.mark.parametrize(
    ("script", "protocol"), [("test_coco", "coco_stage1"), ("test_coco_f", "coco_final")]
)
@pytest.mark.parametrize("image", [0, 2])
def test_masks(golden, model, image, script, protocol, crf):
    recorded = golden("coco")
    picture = np.ascontiguousarray(recorded[f"image_bgr_{image}"][()][:, :, ::-1])
    mask = predict_mask(model, picture, protocol=protocol, crf=crf)
    want = recorded[f"{script}_{'crf' if crf else 'raw'}_{image}"][()]
    assert (mask != want).mean() <= MASK_PIXELS


# --- the annotation file -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    write_coco(root)
    return root


def test_classes_are_contiguous(coco):
    assert len(COCO_CLASS_NAMES) == 81
    instances = CocoInstances(coco / "annotations" / "instances_train2014.json")
    assert [instances.class_of[number] for number in CATEGORY_IDS] == list(range(1, 81))
    # from COCO's own list of categories
    known = {1: "person", 13: "stop sign", 44: "bottle", 67: "dining table", 90: "toothbrush"}
    assert {number: COCO_CLASS_NAMES[instances.class_of[number]] for number in known} == known


def test_labels_of_the_annotation_file(coco):
    labels = CocoInstances(coco / "annotations" / "instances_train2014.json").labels()
    assert len(labels) == 40
    assert labels["COCO_train2014_000000000003"] == [1, 2]
    assert labels["COCO_train2014_000000000010"] == [3, 4]
    assert {label for found in labels.values() for label in found} == set(range(1, 81))


def test_masks_of_the_annotation_file(coco, tmp_path, capsys):
    annotations = coco / "annotations" / "instances_val2014.json"
    assert run_command(["data", "coco-masks", str(annotations), str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: 4 masks\n"
    content = json.loads(annotations.read_text())
    for index, image in enumerate(content["images"]):
        mask = read_mask(tmp_path / image["file_name"].replace(".jpg", ".png"), 81)
        assert mask.shape == (image["height"], image["width"])
        assert np.unique(mask).tolist() == [0, 2 * index + 1, 2 * index + 2]
        picture = np.asarray(Image.open(coco / "val2014" / image["file_name"]).convert("RGB")).astype(int)
        drawn = np.abs(picture - np.array([3 * (2 * index + 1) + k for k in range(3)])).max(axis=2) < 25
        # the outlines are the drawn boxes, give or take their last row and column and what JPEG blurs
        assert (drawn & (mask == 2 * index + 1)).sum() > 0.7 * drawn[:, : picture.shape[1] // 2].sum()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert run_command(["data", "coco-masks", str(annotations), str(tmp_path)]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_smaller_object_covers_a_larger(tmp_path):
    small, large = [[2, 2, 6, 2, 6, 6, 2, 6]], [[0, 0, 10, 0, 10, 10, 0, 10]]
    for order in (1, -1):
        objects = [
            {"id": 1, "category_id": 1, "segmentation": small},
            {"id": 2, "category_id": 2, "segmentation": large},
        ]
        content = {
            "images": [{"id": 5, "file_name": f"x{order}.jpg", "height": 10, "width": 12}],
            "annotations": [{"image_id": 5, **entry} for entry in objects[::order]],
            "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}],
        }
        (tmp_path / "a.json").write_text(json.dumps(content))
        (path,) = CocoInstances(tmp_path / "a.json").write_masks(tmp_path)
        mask = read_mask(path, 81)
        assert (mask == 1).sum() == 16
        assert (mask == 2).sum() == 84
        assert (mask[:, 10:] == 0).all()


def test_a_category_that_groups_others_may_stand_there_unused(coco, tmp_path):
    """As Roboflow writes it; only one that an object has must be a class."""
    content = json.loads((coco / "annotations" / "instances_val2014.json").read_text())
    content["categories"].insert(0, {"id": 0, "name": "animals-AbC", "supercategory": "none"})
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    assert (
        CocoInstances(path).labels()
        == CocoInstances(coco / "annotations" / "instances_val2014.json").labels()
    )
    content["annotations"][0]["category_id"] = 0
    path.write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r"a\.json: annotation 1 has category 'animals-AbC', which is not one of"
    ):
        CocoInstances(path).labels()
    path.write_text(json.dumps({"categories": [{"id": 0, "name": "animals"}]}))
    with pytest.raises(InputError, match="none of the categories animals is one of the classes"):
        CocoInstances(path)


def test_a_file_of_own_classes_as_tools_write_it(tmp_path, capsys):
    """Ids from 0, categories in another order, sizes as floats, a path of Windows, a mark of UTF-8, no info."""
    content = {
        "categories": [
            {"id": 2, "name": "traffic light"},
            {"id": 0, "name": "cat"},
            {"id": 1, "name": "all"},
        ],
        "images": [{"id": 0, "file_name": "train\\a.jpg", "height": 8.0, "width": 9.0}],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": 0, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]},
            {"id": 1, "image_id": 0, "category_id": 2, "segmentation": {"size": [8, 9], "counts": [64, 8]}},
        ],
    }
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nbase: dsrg_vgg16_voc\ndataset: {classes: [background, cat, traffic light]}\n"
        "model: {num_classes: 3}\n"
    )
    call = ["data", "coco-masks", str(tmp_path / "a.json"), str(tmp_path / "masks")]
    assert run_command(call) == 0  # COCO has both of them
    assert np.unique(read_mask(tmp_path / "masks" / "a.png", 81)).tolist() == [0, 10, 16]
    own = ["--config", str(tmp_path / "mine.yaml")]
    assert run_command([*call, *own]) == 2
    assert "masks" in capsys.readouterr().err
    among = tmp_path / "images"
    among.mkdir()
    (among / "a.jpg").touch()
    assert run_command([*call[:-1], str(among)]) == 2
    assert "images: holds the image a.jpg, another folder" in capsys.readouterr().err
    assert [path.name for path in among.iterdir()] == ["a.jpg"]
    assert run_command([*call[:-1], str(tmp_path / "a.json" / "masks")]) == 2
    assert f"masks: expected a folder, {tmp_path / 'a.json'} is a file" in capsys.readouterr().err
    assert run_command([*call[:-1], str(tmp_path / "own"), *own]) == 0
    mask = read_mask(tmp_path / "own" / "a.png", 3)
    assert np.unique(mask, return_counts=True)[1].tolist() == [48, 16, 8]
    assert CocoInstances(tmp_path / "a.json", ["background", "cat", "traffic light"]).labels() == {
        "a": [1, 2]
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("categories"), "no categories"),
        (
            lambda c: c["categories"][0].update(name="dragon"),
            "category .dragon., which is not one of the classes",
        ),
        (
            lambda c: c["categories"][0].update(name="Person"),
            "category .Person., which is not .*; did you mean .person.",
        ),
        (
            lambda c: c["categories"].append({"id": 1, "name": "dog"}),
            "category 1 is .person. and .dog.; expected each id once",
        ),
        (lambda c: c.update(annotations=[]), "no annotations: every mask would be background"),
        (lambda c: c.pop("annotations"), "no annotations: every mask would be background"),
        (lambda c: c["images"][0].pop("file_name"), "file_name None; expected str"),
        (lambda c: c["images"][0].update(height=20.5), "height 20.5; expected int"),
        (lambda c: c["annotations"][0].update(image_id=4), "annotation 1 has image 4"),
        (lambda c: c["annotations"][0].update(category_id=12), "annotation 1 has .* category 12"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2]]), "an outline of"),
        (lambda c: c["annotations"][0].pop("segmentation"), "no segmentation, an outline of"),
        (lambda c: c["images"][0].update(width=10**6, height=10**6), "has 1000000x1000000 pixels"),
        (lambda c: c["images"][0].update(width=0), "has 0x"),
        (lambda c: c.update(images=[3]), "images.item 3, an object expected"),
    ],
)
def test_bad_annotation_files(coco, tmp_path, change, message):
    content = json.loads((coco / "annotations" / "instances_val2014.json").read_text())
    change(content)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"instances.json: .*{message}|instances.json: {message}"):
        list(CocoInstances(path).write_masks(tmp_path))
    assert [found.name for found in tmp_path.iterdir()] == ["instances.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"categories": [{"id": 1, "name": "person"}], "images": [{', "\xff"]
)
def test_damaged_annotation_files(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text.encode("latin1"))
    with pytest.raises(InputError, match=r"a\.json: "):
        CocoInstances(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"nowhere\.json: No such file"):
        CocoInstances(tmp_path / "nowhere.json")


# --- the chain ---------------------------------------------------------------------------------------------


def arguments(coco, tmp_path) -> list[str]:
    return [
        *("reproduce", "--config", "dsrg_vgg16_coco", "device=cpu", f"dataset.root={coco}"),
        *(f"output={tmp_path}/run", "model.width_divisor=16", "init.filler=looks_linear", "data.workers=0"),
        *("solver.max_iter=2", "data.batch_size=2", "dataset.train_limit=3", "dataset.val_limit=2"),
    ]


def write_val_masks(root: Path) -> None:
    list(
        CocoInstances(root / "annotations" / "instances_val2014.json").write_masks(root / "masks" / "val2014")
    )


def test_whole_chain(tmp_path, capsys, no_figures):
    coco = tmp_path / "coco"
    write_coco(coco)
    assert run_command(arguments(coco, tmp_path)) == 2
    line = capsys.readouterr().err
    assert "no such validation mask" in line
    assert f"repro data coco-masks {coco}/annotations/instances_val2014.json {coco}/masks/val2014" in line
    assert not (tmp_path / "run").exists()
    write_val_masks(coco)
    assert run_command(arguments(coco, tmp_path)) == 0
    scores = json.loads((tmp_path / "run" / "scores_stage2.json").read_text())
    assert (scores["dataset"], scores["images"], scores["train_images"]) == ("coco-val2014", 2, 3)
    assert len(scores["scores"]["per_class_iou"]) == 81
    assert scores["classes"] == list(COCO_CLASS_NAMES)
    config = load_config(str(tmp_path / "run" / "config.yaml"))
    assert (config.pseudo_labels.protocol, config.inference.protocol) == ("coco_stage1", "coco_final")
    rows = list(csv.DictReader((tmp_path / "run" / "stage1" / "log.csv").open()))
    assert len(rows) == 2
    assert all(np.isfinite(float(row["loss-Seed"])) for row in rows)


def test_labels_of_an_image_are_those_of_its_cues(tmp_path):
    write_coco(tmp_path)
    write_val_masks(tmp_path)
    experiment = open_experiment(load_config("dsrg_vgg16_coco", [f"dataset.root={tmp_path}"]))
    assert experiment.labels()("COCO_train2014_000000000003") == [0, 1, 2]


def test_what_is_missing_is_said(coco, tmp_path, capsys):
    base = ["reproduce", "--config", "dsrg_vgg16_coco"]
    for more, message in (
        ([], "dataset.root: no such folder: None"),
        (
            [f"dataset.root={tmp_path}"],
            f"no cues (*.png; repro seeds make makes them) in {tmp_path}/cues/train2014",
        ),
        ([f"dataset.root={coco}", "dataset.val=val2017"], f"no images (*.jpg) in {coco}/val2017"),
        ([f"dataset.root={coco}", "dataset.input_list=x.txt"], "dataset.input_list: "),
    ):
        assert run_command([*base, *more]) == 2
        assert message in capsys.readouterr().err
