"""The test scripts' masks, with and without CRF, against golden/inference.h5."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from parity_tests.conftest import CAFFE_FILES, assert_close
from parity_tests.tolerances import MASK_PIXELS, NETWORK_BLOB_REL
from repro.config import PredictConfig
from repro.data import preprocess_zoomed, read_mask
from repro.errors import InputError
from repro.inference import memory, predict, predict_mask
from repro.inference.batch_predict import predict_folder
from repro.inference.predict import PROTOCOLS, TorchSegmenter
from repro.layers.resize import zoom_rows, zoom_to
from repro.models import build_model
from weights_conversion import load_caffe_weights

# recorded script -> our protocol, and whether it was restricted to the image's labels
SCRIPTS = {
    "test_ms": ("dsrg_stage1", False),
    "test_ms_f": ("dsrg_final", False),
    "sec_demo": ("sec", False),
    "train_gt": ("sec", True),
}
IMAGES = ("image0", "image1")


@pytest.fixture(scope="module")
def model():
    model = build_model("vgg16_aspp", width_divisor=16)
    load_caffe_weights(model, CAFFE_FILES / "stage1_init.caffemodel")
    return model.eval()


@pytest.mark.parametrize("crf", [True, False], ids=["crf", "raw"])
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("image", IMAGES)
def test_masks(golden, model, image, script, crf):
    recorded = golden("inference")[image]
    protocol, restricted = SCRIPTS[script]
    labels = recorded["labels"][()].tolist() if restricted else None
    mask = predict_mask(model, recorded["image_rgb"][()], protocol=protocol, crf=crf, labels=labels)
    want = recorded[f"{script}_{'crf' if crf else 'raw'}"][()]
    assert mask.dtype == np.uint8
    assert mask.shape == want.shape
    assert (mask != want).mean() <= MASK_PIXELS


@pytest.mark.parametrize("image", IMAGES)
def test_scores_of_each_scale(golden, model, image):
    recorded = golden("inference")[image]
    picture = recorded["image_rgb"][()]
    for group, protocol in (("ms_scores", "dsrg_stage1"), ("msf_scores", "dsrg_final")):
        script = PROTOCOLS[protocol]
        for scale, factors in zip(
            script.sizes or script.factors, script.zooms(*picture.shape[:2]), strict=True
        ):
            with torch.inference_mode():
                scores = model(torch.from_numpy(preprocess_zoomed(picture, factors)[None]))
            want = recorded[group][f"{scale:g}"]
            assert_close(scores, want, NETWORK_BLOB_REL, f"{group} {scale}", relative_to_max=True)


def test_the_mode_of_the_model_is_given_back(golden, model):
    picture = golden("inference")["image0/image_rgb"][()]
    trained = build_model("vgg16_aspp", width_divisor=64).train()
    first = predict_mask(trained, picture, protocol="sec", crf=False)
    assert trained.training
    assert np.array_equal(
        first, predict_mask(trained, picture, protocol="sec", crf=False)
    )  # no dropout inside


def test_bad_arguments(model):
    picture = np.zeros((20, 30, 3), np.uint8)
    with pytest.raises(InputError, match="protocol 'msc': expected one of dsrg_stage1, dsrg_final, sec"):
        predict_mask(model, picture, protocol="msc")
    with pytest.raises(InputError, match=r"expected uint8 \(H, W, 3\), found float64"):
        predict_mask(model, picture / 255, protocol="sec")
    with pytest.raises(InputError, match="label 21: expected a class of 0 to 20"):
        predict_mask(model, picture, protocol="sec", crf=False, labels=[21])


def test_a_folder_resumes(golden, model, tmp_path):
    recorded = golden("inference")
    images = {}
    for name in IMAGES:
        images[name] = tmp_path / f"{name}.png"
        Image.fromarray(recorded[name]["image_rgb"][()]).save(images[name])
    segmenter, described = TorchSegmenter(model, PredictConfig(protocol="sec", crf=False)), {"weights": "a"}
    labels = {name: recorded[name]["labels"][()].tolist() for name in IMAGES}
    out = tmp_path / "masks"
    result = predict_folder(segmenter, images, out, described=described, labels=labels.__getitem__)
    assert (result.written, result.kept, result.failures) == (2, 0, {})
    for name in IMAGES:
        assert_close(read_mask(out / f"{name}.png"), recorded[name]["train_gt_raw"], 0, name)
    (out / "image0.png").unlink()
    result = predict_folder(segmenter, images, out, described=described, labels=labels.__getitem__)
    assert (result.written, result.kept, result.failures) == (1, 1, {})
    with pytest.raises(InputError, match="made with weights = 'a', now 'b'"):
        predict_folder(segmenter, images, out, described={"weights": "b"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_make_no_masks(tmp_path, value):
    net = build_model("vgg16_aspp", width_divisor=16)
    weights = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    weights["conv1_1.weight"].view(-1)[0] = value
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"layer 'conv1_1'.* 1 of 108 values are NaN or infinity"):
        predict.load_every_layer(net, tmp_path / "w.safetensors", "vgg16_aspp")


def test_probabilities_that_are_no_numbers_make_no_mask():
    """Argmax would take the first of them for a class."""
    probs = torch.full((1, 3, 2, 2), 1 / 3)
    probs[0, 1, 0, 1] = torch.nan
    with pytest.raises(InputError, match="the net's probabilities are NaN"):
        predict.decide(probs, torch.zeros(1, 2, 2, 3, dtype=torch.uint8), crf=False)


def test_files_of_others_are_no_masks(model, tmp_path):
    """Photographs or ground truth in the folder were counted as masks that are there already."""
    photo, mine = tmp_path / "a.jpg", tmp_path / "mine"
    mine.mkdir()
    for path in photo, mine / "a.png":
        Image.new("RGB", (8, 8)).save(path)
    segmenter = TorchSegmenter(model, PredictConfig(protocol="sec", crf=False))
    with pytest.raises(InputError, match=r"a\.png exists and no settings\.json"):
        predict_folder(segmenter, {"a": photo}, mine, described={"weights": "a"})
    assert [path.name for path in mine.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_an_image_beyond_the_memory_is_bad_input(model, monkeypatch, error):
    def exhausted(*arguments, **options):
        raise error

    monkeypatch.setattr(predict, "predict_mask", exhausted)
    segmenter = TorchSegmenter(model, PredictConfig(protocol="sec"))
    with pytest.raises(InputError, match="1 image of 30x20 pixels: more memory needed than there is"):
        segmenter.masks(np.zeros((1, 20, 30, 3), np.uint8))


@pytest.mark.parametrize(
    ("protocol", "crf", "needed", "said"),
    [
        ("sec", True, (100 + 17 * 21) * 1024 * 1500, "inference.crf=false takes"),
        (
            "dsrg_final",
            False,
            4 * 4 * 1280 * 1875,
            "GB available",
        ),  # conv1's four channels at a scale of 1.25
    ],
)
def test_what_a_large_image_takes_is_told_before_it_starts(model, monkeypatch, protocol, crf, needed, said):
    done = []
    monkeypatch.setattr(
        predict, "predict_mask", lambda *arguments, **options: done.append(1) or np.zeros((1, 1))
    )
    segmenter = TorchSegmenter(model, PredictConfig(protocol=protocol, crf=crf))
    image = np.zeros((1, 1024, 1500, 3), np.uint8)
    monkeypatch.setattr(memory, "available_memory", lambda device: needed - 1)
    with pytest.raises(InputError, match=rf"1 image of 1500x1024 pixels: at least .* GB .*{said}"):
        segmenter.masks(image)
    assert not done
    monkeypatch.setattr(memory, "available_memory", lambda device: 2 * needed)
    segmenter.masks(image)
    assert done


def test_the_memory_at_hand():
    import os

    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory.available_memory(torch.device("cpu")) < 3 * total


def test_other_errors_stay_what_they_are(model, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(predict, "predict_mask", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        TorchSegmenter(model, PredictConfig(protocol="sec")).masks(np.zeros((1, 20, 30, 3), np.uint8))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("labels", [None, [1, 5]])
def test_strips_are_the_whole_to_the_bit(model, monkeypatch, protocol, labels):
    image = np.random.default_rng(0).integers(0, 256, (97, 131, 3)).astype(np.uint8)
    probs = predict.predict_probs(model, image, protocol=protocol)
    whole = predict.decide(
        probs[None],
        torch.from_numpy(image)[None],
        crf=False,
        labels=None if labels is None else [labels],
    )[0]
    for pixels in (1, 131 * 7, 131 * 96, 1 << 20):
        monkeypatch.setattr(predict, "STRIP", pixels)
        assert torch.equal(predict.predict_probs(model, image, protocol=protocol), probs)
        strips = predict_mask(model, image, protocol=protocol, crf=False, labels=labels)
        np.testing.assert_array_equal(strips, whole)


def test_rows_of_a_zoom_are_those_of_the_whole():
    scores = torch.randn(3, 41, 41, generator=torch.Generator().manual_seed(0))
    for height, width in ((97, 131), (41, 60), (241, 41), (41, 41), (1, 5)):
        whole = zoom_to(scores, height, width)
        for first in range(0, height, 13):
            rows = zoom_rows(scores, height, width, slice(first, first + 13))
            assert torch.equal(rows, whole[:, first : first + 13])
