"""From the classifiers' recorded blobs to cues, step by step; merging; Caffe's sigmoid loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from parity_tests.conftest import CAFFE_FILES, assert_close
from parity_tests.tolerances import LAYER, SALIENCY_REL
from repro.constants import VOID
from repro.data import subtract_mean
from repro.layers import (
    activation_maps,
    foreground_cells,
    gradient_saliency,
    lowest_cells,
    merge_cells,
    sigmoid_cross_entropy_loss,
)
from repro.models import build_model
from weights_conversion import load_caffe_weights


def recorded_net(name):
    model = build_model(name, width_divisor=16)
    load_caffe_weights(model, CAFFE_FILES / f"{name}.caffemodel")
    return model.eval()


def images_of(recorded) -> torch.Tensor:
    return torch.from_numpy(subtract_mean(recorded["image_bgr"][()]))[None]


def test_saliency_step_by_step(golden):
    """From each recorded step to the next, so that a difference shows in the step that makes it."""
    recorded = golden("networks")["vgg16_bg/321x321"]
    strongest = torch.from_numpy(recorded["conv4_1_grad_max"][()])
    saliency = gradient_saliency(strongest[None, None])  # its absolute value and maximum are itself
    assert_close(saliency[0], recorded["saliency"], 0, "3x3 median")
    cells = lowest_cells(torch.from_numpy(recorded["saliency"][()])[None])
    assert_close(cells[0], recorded["background"], 0, "lowest tenth")
    assert int(cells.sum()) == 168


def test_saliency_from_the_image(golden):
    recorded = golden("networks")["vgg16_bg/321x321"]
    gradient = recorded_net("vgg16_bg").gradient_at(images_of(recorded), "conv4_1")
    strongest = gradient.abs().amax(dim=1)[0]
    assert_close(strongest, recorded["conv4_1_grad_max"], SALIENCY_REL, "gradient", relative_to_max=True)
    saliency = gradient_saliency(gradient)
    assert_close(saliency[0], recorded["saliency"], SALIENCY_REL, "saliency", relative_to_max=True)
    differing = lowest_cells(saliency)[0].numpy() != recorded["background"][()].astype(bool)
    # only cells that tie with the threshold may fall either way
    want = recorded["saliency"][()]
    threshold = np.sort(want.ravel())[168]
    assert (np.abs(want[differing] - threshold) < 1e-4).all()
    assert differing.sum() <= 2


def test_activation_maps_average_to_the_scores(golden):
    recorded = golden("networks")["vgg16_cam/321x321"]
    model = recorded_net("vgg16_cam")
    features = torch.from_numpy(recorded["blobs/fc7_CAM"][()])
    maps = activation_maps(features, model.scores.weight)
    want = recorded["blobs/scores"][()]
    assert_close(maps.mean(dim=(2, 3)), want, LAYER, "mean of the maps", relative_to_max=True)
    got = model.forward_blobs(images_of(recorded))
    assert_close(got["fc7_CAM"], features, LAYER, "fc7_CAM", relative_to_max=True)
    assert_close(got["scores"], want, LAYER, "scores", relative_to_max=True)


def test_foreground_is_above_a_fifth_of_the_maximum_of_present_classes():
    maps = torch.tensor([[0.0, 1.0, 2.0, 10.0], [5.0, 5.0, 5.0, 5.0], [-4.0, -3.0, -2.0, -1.0]])
    cells = foreground_cells(maps.reshape(1, 3, 2, 2), torch.tensor([[1.0, 0.0, 1.0]]))
    assert cells.reshape(3, 4).tolist() == [[False, False, False, True], [False] * 4, [False] * 4]
    lower = foreground_cells(maps.reshape(1, 3, 2, 2), torch.ones(1, 3), threshold=0.1)
    assert lower.reshape(3, 4).tolist() == [[False, False, True, True], [True] * 4, [False] * 4]


def test_median_repeats_the_edge():
    picture = np.random.default_rng(0).normal(size=(2, 3, 7, 9)).astype(np.float32)
    got = gradient_saliency(torch.from_numpy(picture))
    for image, want in zip(got, np.abs(picture).max(axis=1), strict=True):
        padded = np.pad(want, 1, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).reshape(7, 9, 9)
        assert_close(image, np.median(windows, axis=2), 0, "median")


def test_ties_at_the_threshold_are_no_background():
    assert not lowest_cells(torch.zeros(1, 5, 5)).any()
    rising = torch.arange(100.0).reshape(1, 10, 10)
    assert lowest_cells(rising).sum() == 10
    assert lowest_cells(rising, share=0.25)[0].flatten()[:25].all()


CLAIMS = {  # cells of a 1x6 grid that background and two classes claim
    "background": [1, 1, 1, 0, 0, 0],
    "one": [0, 1, 1, 1, 1, 0],
    "two": [0, 0, 1, 0, 1, 0],
}


@pytest.mark.parametrize(
    ("rule", "want"),
    [
        # background covers 3 cells, one 4, two 2
        ("smaller_wins", [0, 0, 2, 1, 2, VOID]),
        ("background_first", [0, 1, 2, 1, 2, VOID]),
    ],
)
def test_merging(rule, want):
    background = torch.tensor(CLAIMS["background"]).bool().reshape(1, 1, 6)
    foreground = torch.tensor([CLAIMS["one"], CLAIMS["two"]]).bool().reshape(1, 2, 1, 6)
    merged = merge_cells(background, foreground, rule=rule)
    assert merged.dtype == torch.uint8
    assert merged.flatten().tolist() == want


@pytest.mark.parametrize("rule", ["smaller_wins", "background_first"])
def test_merging_is_laying_the_classes_by_falling_size(rule):
    rng = np.random.default_rng(2)
    for _ in range(20):
        claims = rng.random((4, 9, 11)) < rng.uniform(0.05, 0.9, (4, 1, 1))
        want = np.full((9, 11), VOID)
        order = sorted(range(4), key=lambda c: (-claims[c].sum(), c))
        if rule == "background_first":
            order = [0] + [c for c in order if c]
        for c in order:
            want[claims[c]] = c
        batch = torch.from_numpy(np.stack([claims, claims[:, ::-1].copy()]))
        got = merge_cells(batch[:, 0], batch[:, 1:], rule=rule)
        assert_close(got[0], want, 0, "merged")
        assert_close(got[1], want[::-1], 0, "merged, upside down")


def test_sigmoid_loss_is_caffes():
    """Σ over classes of the stable form, divided by the batch; its gradient is (σ(s) − y) / N."""
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(0, 30, (5, 20)), (rng.random((5, 20)) < 0.2).astype(np.float64)
    x = torch.tensor(scores, requires_grad=True)
    loss = sigmoid_cross_entropy_loss(x, torch.from_numpy(labels))
    positive = scores >= 0
    want = -(scores * (labels - positive) - np.log1p(np.exp(scores - 2 * scores * positive))).sum() / 5
    assert_close(loss, want, 1e-9, "loss")
    loss.backward()
    assert_close(x.grad, (1 / (1 + np.exp(-scores)) - labels) / 5, 1e-12, "gradient")
