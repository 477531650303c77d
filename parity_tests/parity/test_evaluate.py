"""Evaluation against the recorded scores of both original scripts, and what bad masks get."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from repro.errors import InputError
from repro.inference.evaluate import evaluate_folder
from repro.metrics import confusion_matrix, mean_iou, per_class_iou, pixel_accuracy, seed_metrics, summarize

VOC_CLASSES = 21
SCENES = ["all", "some_absent"]  # recorded with a matrix; "cues" has the seed scores only


def split(flat: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return np.split(flat, np.cumsum(lengths)[:-1])


def float32(value) -> np.ndarray:
    return np.asarray(value, np.float32)


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("as_list", [False, True], ids=["flat", "images"])
def test_matrix_is_the_recorded_one(golden, scene, as_list):
    recorded = golden("inference")[f"evaluate/{scene}"]
    gt, pred = recorded["gt"][()], recorded["pred"][()]
    if as_list:
        gt, pred = split(gt, recorded["lengths"][()]), split(pred, recorded["lengths"][()])
    matrix = confusion_matrix(gt, pred, VOC_CLASSES)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, recorded["matrix"][()])


@pytest.mark.parametrize("scene", SCENES)
def test_released_scores_are_the_recorded_ones(golden, scene):
    recorded = golden("inference")[f"evaluate/{scene}"]
    matrix = confusion_matrix(recorded["gt"][()], recorded["pred"][()], VOC_CLASSES)
    counted = np.diagonal(matrix) > 0
    assert counted.sum() == recorded["n_classes_counted"][()]
    np.testing.assert_array_equal(float32(per_class_iou(matrix)[counted]), recorded["per_class"][()])
    assert float32(mean_iou(matrix, "released")) == recorded["mean_iou"][()]


@pytest.mark.parametrize("scene", [*SCENES, "cues"])
def test_seed_quality_is_the_recorded_one(golden, scene):
    recorded = golden("inference")[f"evaluate/{scene}"]
    lengths = recorded["lengths"][()]
    gt, seeds = split(recorded["gt"][()], lengths), split(recorded["pred"][()], lengths)
    quality = seed_metrics(confusion_matrix(gt, seeds, VOC_CLASSES + 1)[:VOC_CLASSES])
    for name in ("precision", "recall", "iou"):
        assert float32(quality["released"][name]) == recorded[f"ap_{name}"][()], name
    for name in ("precision", "recall"):  # of a class that does not occur 0, as of the pixels without a seed
        per_class = [found[name] if found else 0 for found in quality["per_class"]]
        np.testing.assert_array_equal(
            float32([*per_class, 0]), recorded[f"ap_{name}_per_class"][()], err_msg=name
        )
    json.dumps(quality, allow_nan=False)


def test_rules_differ_when_a_class_is_missed():
    matrix = np.array([[8, 0, 0, 0], [2, 2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(per_class_iou(matrix), [8 / 13, 0.5, 0.0, np.nan])
    assert mean_iou(matrix, "released") == pytest.approx((8 / 13 + 0.5) / 2, abs=1e-15)
    assert mean_iou(matrix, "voc") == pytest.approx((8 / 13 + 0.5) / 4, abs=1e-15)
    assert mean_iou(matrix, "present") == pytest.approx((8 / 13 + 0.5) / 3, abs=1e-15)
    assert pixel_accuracy(matrix) == 10 / 15
    scores = summarize(matrix, 3)
    assert scores["per_class_iou"][3] is None
    assert scores["classes_counted"] == 2
    assert scores["absent_classes"] == [3]
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_nothing_counted_is_not_an_error_but_no_score():
    scores = summarize(confusion_matrix(np.full((2, 2), 255), np.zeros((2, 2), int), 3), 1)
    assert scores["pixel_accuracy"] is None
    assert scores["per_class_iou"] == [None] * 3
    assert scores["mean_iou"] == {"released": 0.0, "voc": 0.0, "present": 0.0}
    assert scores["absent_classes"] == [0, 1, 2]


def test_a_prediction_may_be_anything_under_void():
    matrix = confusion_matrix(np.uint8([0, 1, 255]), np.uint8([0, 0, 255]), 2)
    np.testing.assert_array_equal(matrix, [[1, 0], [1, 0]])


@pytest.mark.parametrize(
    ("gt", "pred", "message"),
    [
        ([0, 1], [0, 2], r"prediction 2 where it counts, expected 0…1"),
        ([0, 1], [0, 255], r"prediction 255"),
        ([0, 1], [0, -1], r"prediction -1"),
        ([0, -1], [0, 0], r"ground truth -1"),
        ([0, 1], [0, 1, 1], r"shape \(3,\), ground truth \(2,\)"),
        ([0, 1], [0.0, 1.0], r"float64, expected integers"),
    ],
)
def test_bad_masks_are_refused(gt, pred, message):
    with pytest.raises(InputError, match=message):
        confusion_matrix(np.array(gt), np.array(pred), 2)
    with pytest.raises(InputError, match=f"image 1: .*{message}"):
        confusion_matrix([np.array([0]), np.array(gt)], [np.array([0]), np.array(pred)], 2)


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match="'best': expected one of released, voc, present"):
        mean_iou(np.eye(2), "best")
    with pytest.raises(InputError, match=r"\(2, 3\)"):
        mean_iou(np.ones((2, 3)), "voc")
    with pytest.raises(InputError, match="1 predictions for 2"):
        confusion_matrix([np.array([0])] * 2, [np.array([0])], 2)


@pytest.fixture
def masks(tmp_path):
    """Two images of different sizes: ground-truth paths, prediction folder, ids, expected matrix."""
    rng = np.random.default_rng(0)
    (tmp_path / "gt").mkdir()
    (tmp_path / "pred").mkdir()
    expected = np.zeros((3, 3), np.int64)
    ids = ["a", "b"]
    for image_id, shape in zip(ids, [(6, 5), (4, 7)], strict=True):
        gt, pred = rng.integers(0, 3, shape, np.uint8), rng.integers(0, 3, shape, np.uint8)
        gt[0] = 255
        np.add.at(expected, (gt[1:], pred[1:]), 1)
        truth = Image.fromarray(gt)
        truth.putpalette([channel for index in range(256) for channel in (index, 7 * index % 256, 0)])
        truth.save(tmp_path / "gt" / f"{image_id}.png")
        Image.fromarray(pred).save(tmp_path / "pred" / f"{image_id}.png")
    return tmp_path / "pred", [tmp_path / "gt" / f"{i}.png" for i in ids], ids, expected


def test_folder_of_palette_and_grey_masks(masks):
    pred_dir, gt_paths, ids, expected = masks
    assert evaluate_folder(pred_dir, gt_paths, ids, 3) == summarize(expected, 2)


def test_a_class_that_is_only_predicted_is_absent_and_lowers_the_others_alone():
    """Rule present averages the truth's classes; pixels wrongly given to another class count against theirs."""
    matrix = np.array([[6, 0, 2], [0, 4, 0], [0, 0, 0]])
    assert summarize(matrix, 1)["absent_classes"] == [2]
    assert mean_iou(matrix, "present") == (6 / 8 + 1) / 2
    assert mean_iou(matrix, "voc") == pytest.approx((6 / 8 + 1) / 3, abs=1e-15)


def test_missing_prediction_names_the_file(masks):
    pred_dir, gt_paths, ids, _ = masks
    (pred_dir / "b.png").unlink()
    (pred_dir / "b_mask.jpg").touch()
    said = r"pred/b\.png: no prediction for .*gt/b\.png, 1 of 2 are missing; there is b_mask\.jpg$"
    with pytest.raises(InputError, match=said):
        evaluate_folder(pred_dir, gt_paths, ids, 3)
    with pytest.raises(InputError, match="absent: no such folder of predictions"):
        evaluate_folder(pred_dir / "absent", gt_paths, ids, 3)


def test_masks_of_16_bits(masks):
    pred_dir, gt_paths, ids, expected = masks
    values = np.asarray(Image.open(pred_dir / "b.png")).astype(np.uint16)
    Image.fromarray(values).save(pred_dir / "b.png")
    assert evaluate_folder(pred_dir, gt_paths, ids, 3) == summarize(expected, 2)
    Image.fromarray(values * 256).save(pred_dir / "b.png")
    with pytest.raises(
        InputError, match=r"b\.png: grey of 16 bits with the value 512, class indices below 256"
    ):
        evaluate_folder(pred_dir, gt_paths, ids, 3)


def test_prediction_of_another_size_names_the_files(masks):
    pred_dir, gt_paths, ids, _ = masks
    Image.fromarray(np.zeros((7, 4), np.uint8)).save(pred_dir / "b.png")
    with pytest.raises(InputError, match=r"pred/b\.png: 4×7 pixels, expected 7×4 as .*gt/b\.png"):
        evaluate_folder(pred_dir, gt_paths, ids, 3)


def test_void_in_a_prediction_names_the_files(masks):
    pred_dir, gt_paths, ids, _ = masks
    Image.fromarray(np.full((4, 7), 255, np.uint8)).save(pred_dir / "b.png")
    with pytest.raises(InputError, match=r"pred/b\.png"):
        evaluate_folder(pred_dir, gt_paths, ids, 3)


def test_nothing_but_void_is_refused(masks):
    pred_dir, gt_paths, ids, _ = masks
    Image.fromarray(np.full((6, 5), 255, np.uint8)).save(gt_paths[0])
    with pytest.raises(InputError, match=r"gt/a\.png: all void"):
        evaluate_folder(pred_dir, gt_paths[:1], ids[:1], 3)


def test_empty_or_uneven_lists_are_refused(masks):
    pred_dir, gt_paths, ids, _ = masks
    with pytest.raises(InputError, match="the list of names is empty"):
        evaluate_folder(pred_dir, [], [], 3)
    with pytest.raises(InputError, match="1 ground-truth masks for 2"):
        evaluate_folder(pred_dir, gt_paths[:1], ids, 3)


def test_the_truth_as_its_own_prediction_gets_a_line(masks, caplog):
    folder, gt_paths, ids, _ = masks
    evaluate_folder(folder, gt_paths, ids, 3)
    assert not [line for line in caplog.messages if "ground truth itself" in line]
    evaluate_folder(gt_paths[0].parent, gt_paths, [path.stem for path in gt_paths], 3)
    assert f"{len(ids)} of {len(ids)} predictions are the files of the ground truth itself" in caplog.messages
