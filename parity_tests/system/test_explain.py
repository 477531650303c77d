"""``repro evaluate --explain``: what each mistake makes of a score."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from repro.cli import run_command
from repro.data import read_mask, write_mask
from repro.inference.evaluate import evaluate_folder
from repro.inference.explain import explain, nearest

CLASSES = 4


@pytest.fixture
def masks(tmp_path):
    """Three images: truth with void at the edge and without class 3, predictions with errors at random."""
    rng = np.random.default_rng(0)
    for name in "abc":
        truth = np.repeat(np.repeat(rng.integers(0, 3, (4, 5)), 8, axis=0), 8, axis=1).astype(np.uint8)
        pred = np.where(rng.random(truth.shape) < 0.2, rng.integers(0, 3, truth.shape), truth).astype(
            np.uint8
        )
        truth[:3] = 255
        write_mask(tmp_path / "gt" / f"{name}.png", truth)
        write_mask(tmp_path / "pred" / f"{name}.png", pred)
    (tmp_path / "ids.txt").write_text("a\nb\nc\n")
    return tmp_path


def scores_of(root, classes=CLASSES):
    paths = [root / "gt" / f"{name}.png" for name in "abc"]
    return {score.name: score for score in explain(root / "pred", paths, list("abc"), classes)}


def run(root, *options):
    return run_command(
        [
            *(
                "evaluate",
                "--pred",
                str(root / "pred"),
                "--gt",
                str(root / "gt"),
                "--list",
                str(root / "ids.txt"),
            ),
            *("--num-classes", str(CLASSES), "--explain", *options),
        ]
    )


def test_rules_are_those_of_evaluate(masks):
    found = scores_of(masks)
    paths = [masks / "gt" / f"{name}.png" for name in "abc"]
    means = evaluate_folder(masks / "pred", paths, list("abc"), CLASSES)["mean_iou"]
    first = next(iter(found.values()))
    assert (first.name, first.right) == ("mean over the classes that the truth shows", True)
    assert first.mean_iou == pytest.approx(means["present"])
    assert found["absent classes counted as 0"].mean_iou == pytest.approx(means["voc"])
    assert found["the release's rule: classes without a correct pixel left out"].mean_iou == pytest.approx(
        means["released"]
    )
    assert found["absent classes counted as 1"].mean_iou == pytest.approx(means["voc"] + 1 / CLASSES)
    ious = evaluate_folder(masks / "pred", paths, list("abc"), CLASSES)["per_class_iou"]
    assert found["without the background's IoU"].mean_iou == pytest.approx(np.mean(ious[1:3]))
    assert sum(score.right for score in found.values()) == 1


def test_mistakes_are_those_made_by_hand(masks):
    """The masks, changed as the mistake does and scored as usual, give what the line says."""
    found = scores_of(masks)
    changes = {
        "void counted as background": ("gt", lambda m: np.where(m == 255, 0, m)),
        "background left out of the truth": ("gt", lambda m: np.where(m == 0, 255, m)),
        "classes of the truth one too low": ("gt", lambda m: np.where(m == 255, 255, m - 1)),
        "classes of the predictions one too high": ("pred", lambda m: np.minimum(m + 1, CLASSES - 1)),
        "classes of the predictions one too low": ("pred", lambda m: np.maximum(m, 1) - 1),
    }
    for name, (folder, change) in changes.items():
        for image in "abc":
            for side in ("gt", "pred"):
                mask = read_mask(masks / side / f"{image}.png")
                write_mask(
                    masks / "made" / side / f"{image}.png",
                    (change(mask.astype(int)) % 256).astype(np.uint8) if side == folder else mask,
                )
        paths = [masks / "made" / "gt" / f"{image}.png" for image in "abc"]
        want = evaluate_folder(masks / "made" / "pred", paths, list("abc"), CLASSES)["mean_iou"]["present"]
        assert found[name].mean_iou == pytest.approx(want), name


def test_palettes_read_as_grey_leave_the_background(masks):
    """Grey of VOC's first colours is 38, 75, 113: no class of four."""
    found = scores_of(masks)
    straight = evaluate_folder(
        masks / "pred", [masks / "gt" / f"{n}.png" for n in "abc"], list("abc"), CLASSES
    )
    assert found["predictions' palette read as grey values"].mean_iou == pytest.approx(
        straight["per_class_iou"][0] / 3, abs=0.1
    )
    assert found["truth's palette read as grey values"].mean_iou == pytest.approx(
        straight["per_class_iou"][0], abs=0.2
    )


def test_what_comes_nearest_is_marked(masks, capsys):
    want = 100 * scores_of(masks)["void counted as background"].mean_iou
    assert run(masks, "--expected", f"{want:.4f}", "--out", str(masks / "why.json")) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"<- ", out)) == 3
    line = next(line for line in out.splitlines() if line.startswith("void counted"))
    assert re.search(r"<- [+-]0\.00 from", line)
    assert "red and blue swapped" in out
    assert 100 * json.loads((masks / "why.json").read_text())["void counted as background"] == pytest.approx(
        want
    )
    scores = list(scores_of(masks).values())
    assert nearest(scores, want / 100)[0].name == "void counted as background"


def test_masks_of_other_sizes_are_scored_both_ways(masks, capsys):
    whole = scores_of(masks)["mean over the classes that the truth shows"].mean_iou
    for image in "abc":
        path = masks / "pred" / f"{image}.png"
        mask = read_mask(path)
        write_mask(path, np.repeat(np.repeat(mask, 2, axis=0), 2, axis=1))
    found = scores_of(masks)
    assert found["predictions resized to the truth"].mean_iou == pytest.approx(whole)
    assert found["truth resized to the predictions"].mean_iou == pytest.approx(whole)
    assert not any(score.right for score in found.values())
    assert run(masks) == 0
    assert "   right" not in capsys.readouterr().out


def test_refusals(masks, capsys):
    assert run_command(["evaluate", "--pred", "p", "--gt", "g", "--list", "l", "--expected", "50"]) == 2
    assert "--expected goes with --explain" in capsys.readouterr().err
    (masks / "pred" / "b.png").unlink()
    assert run(masks) == 2
    error = capsys.readouterr().err
    assert "b.png: no prediction for" in error
    assert error.count("\n") == 1
