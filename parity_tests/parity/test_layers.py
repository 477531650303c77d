"""The stage-1 layers against the recordings of the original layer code (golden/layers.h5)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from parity_tests.conftest import assert_close
from parity_tests.tolerances import CRF_LOG, CRF_MARGINALS, LAYER
from repro.layers import (
    CRFParams,
    balanced_seed_loss,
    caffe_softmax,
    constrain_loss,
    crf_log,
    expand_loss,
    grow_seeds,
    mean_field,
    refine,
    seed_loss,
)
from repro.models import CaffeNet
from weights_conversion.caffe_pb2 import NetParameter

SCENES = ("scene", "noise", "small")
SEC_SCENES = ("scene", "noise")  # SEC's layers are fixed to the 41x41 grid
MEAN = np.array([104, 117, 123], dtype=np.float32)
THRESHOLDS = {  # recording: (theta_b = th1, theta_f = th2)
    "paper": (0.99, 0.85),
    "low": (0.7, 0.5),
    "bg_only": (0.99, float("inf")),
    "fg_only": (float("inf"), 0.85),
    "none": (float("inf"), float("inf")),
}


def tensor(group, name: str, *, grad: bool = False) -> torch.Tensor:
    return torch.from_numpy(group[name][()].astype(np.float32)).requires_grad_(grad)


def blob(group) -> torch.Tensor:
    """The mean-subtracted image blob (N, 3, h, w) of a scene."""
    images = group["image_bgr"][()].astype(np.float32) - MEAN
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def top_diff(like: torch.Tensor, step: float) -> torch.Tensor:
    """The incoming gradient of the recordings: sin(step·k), k the flat index."""
    return torch.sin(step * torch.arange(like.numel(), dtype=torch.float64)).reshape(like.shape).float()


@pytest.fixture(params=SCENES)
def scene(request, golden):
    return golden("layers")[request.param]


@pytest.fixture(params=SEC_SCENES)
def sec_scene(request, golden):
    return golden("layers")[request.param]


def test_softmax(scene):
    scores = tensor(scene, "scores", grad=True)
    probs = caffe_softmax(scores)
    assert_close(probs, scene["probs"], LAYER, "softmax")
    probs.backward(top_diff(probs, 0.37))
    assert_close(scores.grad, scene["softmax/bottom_diff"], LAYER, "softmax bottom_diff")


@pytest.mark.parametrize("variant", ["dsrg", "sec"])
def test_crf_layer(golden, variant):
    for name in SCENES if variant == "dsrg" else SEC_SCENES:
        scene = golden("layers")[name]
        recorded = scene[f"crf_{variant}"]
        x = tensor(scene, "probs" if variant == "dsrg" else "scores", grad=True)
        log_result, x_raised = crf_log(x, blob(scene), variant=variant)
        assert_close(log_result, recorded["log_result"], CRF_LOG, f"{name} log_result")
        assert_close(log_result.exp(), np.exp(recorded["log_result"]), CRF_MARGINALS, f"{name} marginals")
        log_result.backward(top_diff(log_result, 0.73))
        got = torch.zeros_like(x) if x.grad is None else x.grad
        assert_close(got, recorded["bottom_diff"], LAYER, f"{name} bottom_diff")
        if variant == "dsrg":
            assert_close(x_raised, recorded["probs_after"], 0, f"{name} probabilities raised in place")
        else:
            assert x_raised is x


def test_raise_passes_gradients_unchanged():
    probs = torch.tensor([[0.0, 5e-5, 0.3, 0.69995]]).reshape(1, 4, 1, 1).requires_grad_()
    _, raised = crf_log(probs, torch.zeros(1, 3, 8, 8), variant="dsrg")
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1)
    (raised * weights).sum().backward()
    assert_close(probs.grad, weights, 0, "gradient through the raise")
    assert raised.min().item() == pytest.approx(1e-4)


def test_refine_leaves_its_input_alone(scene):
    probs = tensor(scene, "probs")
    probs[:, 3] = 0  # something to raise
    before = probs.clone()
    refined = refine(probs, blob(scene), variant="dsrg")
    assert torch.equal(probs, before)
    assert not refined.requires_grad


def test_refined_probabilities(scene):
    refined = refine(tensor(scene, "probs"), blob(scene), variant="dsrg")
    assert_close(refined, scene["refined"], CRF_MARGINALS, "refined")
    # the CRF layer with a result at hand and without is the same layer
    given, _ = crf_log(tensor(scene, "probs"), blob(scene), variant="dsrg", refined=refined)
    assert_close(given, refined.log(), 0, "log of the given result")


@pytest.mark.parametrize("thresholds", THRESHOLDS)
def test_growing(scene, thresholds):
    theta_b, theta_f = THRESHOLDS[thresholds]
    grown = grow_seeds(
        tensor(scene, "labels").flatten(1),
        tensor(scene, "refined"),
        tensor(scene, "cues"),
        theta_f=theta_f,
        theta_b=theta_b,
    )
    assert_close(grown, scene["grow"][thresholds], 0, f"grown cues, {thresholds}")


@pytest.mark.parametrize("case", ["no_bg", "no_fg", "no_seeds", "overlap"])
def test_growing_and_loss_edge_cases(golden, case):
    edge = golden("layers")["edge"]
    theta_b, theta_f = THRESHOLDS["low"]
    labels, cues = tensor(edge, "labels").flatten(1), tensor(edge, f"{case}/cues")
    refined = refine(tensor(edge, "probs"), blob(edge), variant="dsrg")
    grown = grow_seeds(labels, refined, cues, theta_f=theta_f, theta_b=theta_b)
    assert_close(grown, edge[f"{case}/grown"], 0, f"{case} grown")
    probs = tensor(edge, "probs", grad=True)
    loss = balanced_seed_loss(probs, cues)
    loss.backward()
    assert_close(loss, edge[f"{case}/bsl"], LAYER, f"{case} balanced seed loss")
    assert_close(probs.grad, edge[f"{case}/bsl_grad"], LAYER, f"{case} balanced seed loss gradient")


def test_growing_rules_differ_where_the_paper_says():
    """Background alone above theta_b but with theta_f = inf: the paper grows it, the release does not."""
    refined = torch.full((1, 2, 1, 4), 0.005)
    refined[:, 0] = 0.995
    labels, cues = torch.ones(1, 2), torch.zeros(1, 2, 1, 4)
    cues[0, 0, 0, 0] = 1
    released = grow_seeds(labels, refined, cues, theta_f=float("inf"))
    paper = grow_seeds(labels, refined, cues, theta_f=float("inf"), rule="paper")
    assert torch.equal(released, cues)
    assert paper[0, 0].sum() == 4
    with pytest.raises(ValueError, match="growing rule 'both'"):
        grow_seeds(labels, refined, cues, rule="both")


def test_growing_without_a_present_class_returns_the_cues():
    cues = torch.ones(1, 3, 2, 2)
    assert torch.equal(grow_seeds(torch.zeros(1, 3), torch.full((1, 3, 2, 2), 1 / 3), cues), cues)


def check_loss(loss, inputs, recorded, name):
    loss.backward()
    assert_close(loss, recorded["loss"], LAYER, f"{name} loss")
    for index, x in enumerate(inputs):
        assert_close(x.grad, recorded[f"grad{index}"], LAYER, f"{name} gradient {index}")


def test_seed_loss(scene):
    probs = tensor(scene, "probs", grad=True)
    check_loss(seed_loss(probs, tensor(scene, "cues")), [probs], scene["seed_loss"], "seed")


def test_balanced_seed_loss(scene):
    probs = tensor(scene, "crf_dsrg/probs_after", grad=True)
    loss = balanced_seed_loss(probs, tensor(scene, "grow/paper"))
    check_loss(loss, [probs], scene["balanced_seed_loss"], "balanced seed")


def test_constrain_loss_dsrg(scene):
    probs = tensor(scene, "crf_dsrg/probs_after", grad=True)
    log_result = tensor(scene, "crf_dsrg/log_result", grad=True)
    loss = constrain_loss(probs, log_result, clip=True)
    check_loss(loss, [probs, log_result], scene["constrain_dsrg"], "constrain (DSRG)")


def test_constrain_loss_sec(sec_scene):
    probs = tensor(sec_scene, "probs", grad=True)
    log_result = tensor(sec_scene, "crf_sec/log_result", grad=True)
    loss = constrain_loss(probs, log_result, clip=False)
    check_loss(loss, [probs, log_result], sec_scene["constrain_sec"], "constrain (SEC)")


@pytest.mark.parametrize("release", ["dsrg", "sec"])
def test_expand_loss(sec_scene, release):
    probs = tensor(sec_scene, "probs", grad=True)
    loss = expand_loss(probs, tensor(sec_scene, "labels").flatten(1))
    check_loss(loss, [probs], sec_scene[f"expand_{release}"], "expand")


def test_mean_field_says_what_does_not_fit():
    unary = torch.zeros(1, 3, 4, 5)
    with pytest.raises(ValueError, match=r"uint8 \(1, 4, 5, 3\)"):
        mean_field(torch.zeros(1, 4, 5, 3), unary, CRFParams())
    with pytest.raises(ValueError, match=r"uint8 \(1, 4, 5, 3\)"):
        mean_field(torch.zeros(1, 5, 4, 3, dtype=torch.uint8), unary, CRFParams())


def test_unknown_variant():
    with pytest.raises(ValueError, match="expected 'dsrg' or 'sec'"):
        refine(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 9, 9), variant="caffe")


@pytest.mark.parametrize("learns", [False, True])
def test_scale_under_autocast_rounds_once_and_keeps_the_type(learns):
    """A learnt Scale goes PyTorch's way, which returns float32 and gives gain and bias their gradients."""
    generator = torch.Generator().manual_seed(0)
    scale = {"name": "s", "type": "Scale", "bottom": ["x"], "top": ["y"], "scale_param": {"bias_term": True}}
    shape = {"dim": [2, 5, 3, 4]}
    layer = CaffeNet(NetParameter(input=["x"], input_shape=[shape], layer=[scale]))["s"]
    for blob in layer.caffe_blobs().values():
        blob.data = torch.randn(5, generator=generator)
        blob.requires_grad_(learns)
    x = torch.randn(2, 5, 3, 4, generator=generator).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    top_diff = torch.randn(y.shape, generator=generator).to(y.dtype)
    y.backward(top_diff)
    gain, bias = (blob.detach()[:, None, None] for blob in (layer.weight, layer.bias))
    assert y.dtype == (torch.float32 if learns else torch.bfloat16)
    assert torch.equal(y, torch.addcmul(bias, x.float(), gain).to(y.dtype))
    assert torch.equal(x.grad, (top_diff.float() * gain).bfloat16())
    assert (layer.weight.grad is not None) == learns
