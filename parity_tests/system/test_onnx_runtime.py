"""Exported models at work: the recorded masks, providers, files that are none of ours, the command line, the client."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from parity_tests.conftest import CAFFE_FILES, NEEDS_CUDA_PROVIDER, ROOT, assert_close
from parity_tests.tolerances import MASK_PIXELS, ONNX_PROBS
from repro.cli import run_command
from repro.config import PredictConfig
from repro.data import CLASS_NAMES, read_mask, write_mask
from repro.errors import InputError
from repro.inference import memory, predict, predict_mask
from repro.inference.batch_predict import predict_folder
from repro.inference.predict import PROTOCOLS, TorchSegmenter, predict_probs
from repro.models import build_model
from weights_conversion import load_weights

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from repro.export import OnnxSegmenter, export_onnx, runtime  # noqa: E402
from repro.export.agreement import measure  # noqa: E402
from repro.export.runtime import OnnxSession, providers_for  # noqa: E402

WEIGHTS = CAFFE_FILES / "stage1_init.caffemodel"
SCRIPTS = {  # of golden/inference.h5: our protocol, and whether it was restricted to the image's labels
    "test_ms": ("dsrg_stage1", False),
    "test_ms_f": ("dsrg_final", False),
    "sec_demo": ("sec", False),
    "train_gt": ("sec", True),
}
CPU = ("CPUExecutionProvider",)


@pytest.fixture(scope="module")
def model():
    model = build_model("vgg16_aspp", width_divisor=16)
    load_weights(model, WEIGHTS)
    return model.eval()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")

    def export(protocol: str) -> Path:
        path = folder / f"{protocol}.onnx"
        if not path.exists():
            export_onnx(model, path, graph="multiscale", protocol=protocol, classes=CLASS_NAMES)
        return path

    return export


@pytest.fixture
def photos(tmp_path, golden) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("image0", "image1"):
        Image.fromarray(golden("inference")[name]["image_rgb"][()]).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(exported, photos, tmp_path, capsys, value):
    content = onnx.load_model(exported("sec"))
    weight = next(tensor for tensor in content.graph.initializer if len(tensor.dims) == 4)
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] = value
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save_model(content, tmp_path / "bad.onnx")
    call = [*("predict", "--config", "sec_vgg16_voc", "--engine", "onnx"), "model.width_divisor=16"]
    files = [
        "--weights",
        str(tmp_path / "bad.onnx"),
        "--images",
        str(photos),
        "--out",
        str(tmp_path / "masks"),
    ]
    assert run_command([*call, *files]) == 2
    assert (
        f"bad.onnx: {weight.name} holds NaN or infinity, finite numbers expected" in capsys.readouterr().err
    )
    assert not (tmp_path / "masks").exists()


# --- masks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crf", [True, False], ids=["crf", "raw"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_recorded_masks(golden, exported, script, crf):
    protocol, restricted = SCRIPTS[script]
    segmenter = OnnxSegmenter(exported(protocol), CPU, crf=crf)
    for image in ("image0", "image1"):
        recorded = golden("inference")[image]
        labels = [recorded["labels"][()].tolist()] if restricted else None
        (mask,) = segmenter.masks(recorded["image_rgb"][()][None], labels)
        want = recorded[f"{script}_{'crf' if crf else 'raw'}"][()]
        assert mask.dtype == np.uint8
        assert mask.shape == want.shape
        assert (mask != want).mean() <= MASK_PIXELS


@pytest.mark.parametrize("protocol", ["coco_stage1", "coco_final"])
def test_protocols_that_see_other_colours(golden, model, exported, protocol):
    picture = golden("inference")["image0/image_rgb"][()]
    want = predict_mask(model, picture, protocol=protocol)
    (mask,) = OnnxSegmenter(exported(protocol), CPU).masks(picture[None])
    assert (mask != want).mean() <= MASK_PIXELS


def test_a_batch_is_its_images(exported):
    segmenter = OnnxSegmenter(exported("dsrg_final"), CPU)
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), dtype=np.uint8)
    together = segmenter.probs(images)
    assert together.shape == (3, 21, 40, 56)
    assert_close(together.sum(1), torch.ones(3, 40, 56), 1e-3, "sums")
    for image, probs in zip(images, together, strict=True):
        assert_close(segmenter.probs(image[None])[0], probs, ONNX_PROBS, "one of the batch")


def test_a_folder_gives_pytorchs_masks(golden, model, exported, photos, tmp_path):
    images = {path.stem: path for path in sorted(photos.iterdir())}
    settings = PredictConfig(protocol="dsrg_final")
    segmenter = OnnxSegmenter(exported("dsrg_final"), CPU, batch_size=2)
    assert predict_folder(segmenter, images, tmp_path / "onnx", described={}).written == 2
    assert (
        predict_folder(TorchSegmenter(model, settings), images, tmp_path / "torch", described={}).written == 2
    )
    for name in images:
        got, want = (read_mask(tmp_path / engine / f"{name}.png") for engine in ("onnx", "torch"))
        assert (got != want).mean() <= MASK_PIXELS


@pytest.mark.cuda
@NEEDS_CUDA_PROVIDER
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_masks_on_cuda(golden, model, exported, protocol):
    segmenter = OnnxSegmenter(exported(protocol), providers_for(torch.device("cuda", 0)))
    picture = golden("inference")["image0/image_rgb"][()]
    assert segmenter.probs(picture[None]).is_cuda
    (mask,) = segmenter.masks(picture[None])
    assert (mask != predict_mask(model, picture, protocol=protocol)).mean() <= MASK_PIXELS


# --- what is refused ----------------------------------------------------------------------------------------


def test_a_missing_provider_is_no_reason_to_run_on_the_cpu(exported):
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(
        InputError,
        match=r"provider CUDAExecutionProvider: this onnxruntime has .*pip install onnxruntime-gpu",
    ):
        OnnxSegmenter(exported("sec"), ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(InputError, match="providers: none given"):
        OnnxSegmenter(exported("sec"), [])


def test_a_provider_that_does_not_start_is_no_reason_either(exported, monkeypatch):
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    # as on a machine whose driver or libraries are missing: it is compiled in, and onnxruntime falls back
    monkeypatch.setattr(
        ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with pytest.raises(InputError, match="CUDAExecutionProvider, device 0: PyTorch sees 0 CUDA devices"):
        OnnxSegmenter(exported("sec"), ["CUDAExecutionProvider"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(
            InputError, match=r"provider CUDAExecutionProvider did not start; .*CPUExecutionProvider"
        ),
    ):
        OnnxSegmenter(exported("sec"), [("CUDAExecutionProvider", {"device_id": "0"})])


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (["CUDAExecutionProvider"], {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}),
        (
            providers_for(torch.device("cuda", 2), tf32=True),
            {"use_tf32": "1", "cudnn_conv_algo_search": "HEURISTIC", "device_id": "2"},
        ),
        (
            [("CUDAExecutionProvider", {"cudnn_conv_algo_search": "EXHAUSTIVE"})],
            {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"},
        ),
    ],
)
def test_cuda_keeps_float32s_bits_unless_told_otherwise(exported, monkeypatch, given, want):
    seen = {}

    def session(path, options, *, providers, provider_options, enable_fallback):
        seen.update(zip(providers, provider_options, strict=True))
        raise RuntimeError("no such device")

    monkeypatch.setattr(
        ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(ort, "InferenceSession", session)
    with pytest.raises(InputError, match="onnxruntime cannot load it: no such device"):
        OnnxSegmenter(exported("sec"), given)
    assert seen == {"CUDAExecutionProvider": want}


def foreign(path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["b"])],
        "foreign",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save_model(helper.make_model(graph, ir_version=8, opset_imports=[opset]), path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: None, "no such model file"),
        (lambda path: path.write_bytes(b""), "onnxruntime cannot load it"),
        (lambda path: path.write_text("not a model\n"), "onnxruntime cannot load it"),
        (foreign, "not a model of 'repro export' "),
    ],
    ids=["missing", "empty", "text", "foreign"],
)
def test_files_that_are_none_of_ours(tmp_path, spoil, message):
    path = tmp_path / "net.onnx"
    spoil(path)
    with pytest.raises(InputError, match=message) as caught:
        OnnxSegmenter(path, CPU)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_which_half_is_missing(model, tmp_path, monkeypatch):
    monkeypatch.setattr("repro.export.onnx.LARGEST_FILE", 100_000)
    path = export_onnx(model, tmp_path / "net.onnx", graph="multiscale")
    (tmp_path / "net.onnx.data").unlink()
    with pytest.raises(InputError, match=r"net\.onnx: onnxruntime cannot load it"):
        OnnxSegmenter(path, CPU)


def test_other_graphs_and_other_arrays(model, exported, tmp_path):
    with pytest.raises(InputError, match="graph 'scores', a model exported with graph 'multiscale' expected"):
        OnnxSegmenter(export_onnx(model, tmp_path / "scores.onnx"), CPU)
    segmenter = OnnxSegmenter(exported("sec"), CPU)
    with pytest.raises(
        InputError, match=r"expected uint8 \(N, H, W, 3\), found torch.float64 \(1, 4, 4, 3\)"
    ):
        segmenter.masks(np.zeros((1, 4, 4, 3)))
    with pytest.raises(InputError, match=r"found torch.uint8 \(4, 4, 3\)"):
        segmenter.masks(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(InputError, match="label 21: expected a class of 0 to 20"):
        segmenter.masks(np.zeros((1, 4, 4, 3), np.uint8), [[21]])
    with pytest.raises(InputError, match="batch size 0"):
        OnnxSegmenter(exported("sec"), CPU, batch_size=0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("classes", None, "classes|expected"),
        ("classes", "[1", "damaged"),
        ("classes", "[1, 2]", "its classes are not names"),
        ("protocol", "other", "protocol 'other' and precision 'fp32' in its metadata"),
        ("precision", None, "protocol 'sec' and precision None in its metadata"),
    ],
)
def test_metadata_that_are_not_ours(exported, tmp_path, key, value, message):
    model = onnx.load_model(exported("sec"))
    properties = {entry.key: entry.value for entry in model.metadata_props if entry.key != key}
    helper.set_model_props(model, properties if value is None else {**properties, key: value})
    onnx.save_model(model, tmp_path / "net.onnx")
    with pytest.raises(InputError, match=rf"net\.onnx: .*({message})"):
        OnnxSegmenter(tmp_path / "net.onnx", CPU).masks(np.zeros((1, 40, 40, 3), np.uint8))


# --- large images -------------------------------------------------------------------------------------------


@pytest.fixture
def large(monkeypatch):
    """Images of a few thousand pixels count as large, and strips are of seven rows."""
    monkeypatch.setattr(runtime, "SMALL", 1)
    monkeypatch.setattr(predict, "STRIP", 131 * 7)
    return np.random.default_rng(0).integers(0, 256, (2, 97, 131, 3)).astype(np.uint8)


@pytest.mark.parametrize("labels", [None, [[1, 5], [3]]])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_strips_of_large_images_are_what_pytorch_makes_of_the_grids(
    exported, monkeypatch, large, protocol, labels
):
    segmenter = OnnxSegmenter(exported(protocol), CPU, crf=False)
    grids = []
    real = runtime.mask_of_grids
    monkeypatch.setattr(
        runtime,
        "mask_of_grids",
        lambda given, *rest, **more: grids.append(given) or real(given, *rest, **more),
    )
    strips = segmenter.masks(large, labels)
    script = PROTOCOLS[protocol]
    for index, of_image in enumerate(grids):
        probs = predict.zoomed_probs(of_image, script, 97, 131, slice(None))
        whole = predict.decide(
            probs[None],
            torch.from_numpy(large[index, None]),
            crf=False,
            labels=labels and labels[index : index + 1],
        )
        np.testing.assert_array_equal(strips[index], whole[0])
    monkeypatch.setattr(runtime, "SMALL", 1 << 20)
    by_the_graph = segmenter.masks(large, labels)
    assert (strips != by_the_graph).mean() <= MASK_PIXELS


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_large_images_in_other_precisions(model, tmp_path, monkeypatch, large, precision):
    path = export_onnx(
        model, tmp_path / "net.onnx", graph="multiscale", protocol="dsrg_final", precision=precision
    )
    segmenter = OnnxSegmenter(path, CPU, crf=False)
    strips = segmenter.masks(large[:1])  # int8 scales by the range over all images of a run
    monkeypatch.setattr(runtime, "SMALL", 1 << 20)
    assert (strips != segmenter.masks(large[:1])).mean() <= MASK_PIXELS


def test_large_images_with_a_crf(exported, monkeypatch, large):
    segmenter = OnnxSegmenter(exported("sec"), CPU)
    strips = segmenter.masks(large[:1])
    monkeypatch.setattr(runtime, "SMALL", 1 << 20)
    assert (strips != segmenter.masks(large[:1])).mean() <= 0.01


@pytest.mark.parametrize(
    ("crf", "needed", "said"),
    [
        (True, (100 + 17 * 21) * 1024 * 1500, "inference.crf=false takes"),
        (False, 4 * 4 * 1280 * 1875, "GB available"),  # conv1's four channels at a scale of 1.25
    ],
)
def test_what_a_large_image_takes_is_told_before_it_starts(exported, monkeypatch, crf, needed, said):
    segmenter = OnnxSegmenter(exported("dsrg_final"), CPU, crf=crf)
    monkeypatch.setattr(runtime, "mask_of_grids", lambda *arguments, **options: np.zeros((1, 1)))
    monkeypatch.setattr(memory, "available_memory", lambda device: needed - 1)
    with pytest.raises(InputError, match=rf"1 image of 1500x1024 pixels: at least .* GB .*{said}"):
        segmenter.masks(np.zeros((1, 1024, 1500, 3), np.uint8))


# --- agreement ----------------------------------------------------------------------------------------------


def test_agreement_is_counted(model, photos, tmp_path):
    """Against an export of another net, whose masks are counted here by hand."""
    picture = np.array(Image.open(photos / "image0.png"))
    (first, second), (_, order) = predict_probs(model, picture, protocol="sec").topk(2, dim=0)
    runner_up = int(order.flatten().mode().values)
    other = build_model("vgg16_aspp", width_divisor=16).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():  # half of the pixels where it is second change to it
        other.get_submodule("fc8-SEC_1").bias[runner_up] += float((first / second).log().median())
    path = export_onnx(other, tmp_path / "other.onnx", graph="multiscale", protocol="sec")
    images = {path.name: path for path in sorted(photos.iterdir())}
    masks = {
        name: [
            predict_mask(net, np.array(Image.open(file)), protocol="sec", crf=False) for net in (model, other)
        ]
        for name, file in images.items()
    }
    for name, (ours, _) in masks.items():
        write_mask(tmp_path / "gt" / f"{Path(name).stem}.png", ours)
    result = measure(model, OnnxSession(path, CPU), images, tmp_path / "gt")
    assert [row.differing for row in result.images] == [int((a != b).sum()) for a, b in masks.values()]
    assert 0 < result.pixel_agreement < 1
    assert 0 < result.mean_iou < 1
    assert result.difference > 1e-4
    assert result.scores is not None
    assert result.scores[0] > result.scores[1]
    assert any("image0.png" in line for line in result.lines())
    with pytest.raises(InputError, match="graph 'scores' gives no masks"):
        measure(model, OnnxSession(export_onnx(model, tmp_path / "s.onnx"), CPU), images, tmp_path / "gt")


# --- the command line ---------------------------------------------------------------------------------------


def run(capsys, *arguments) -> tuple[int, str, str]:
    capsys.readouterr()
    status = run_command([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def base(verb: str, weights: Path = WEIGHTS) -> list[object]:
    return [
        verb,
        "--config",
        "dsrg_vgg16_voc",
        "--weights",
        weights,
        "device=cpu",
        "model.width_divisor=16",
    ]


@pytest.mark.parametrize("graph", ["scores", "probs", "multiscale"])
def test_export_checks_itself(photos, tmp_path, capsys, graph):
    out = tmp_path / "net.onnx"
    status, text, _ = run(capsys, *base("export"), "--out", out, "--graph", graph, "--images", photos)
    assert status == 0
    lines = text.splitlines()
    assert lines[0] == str(out)
    assert [line.split()[0] for line in lines[2:4]] == ["image0.png", "image1.png"]
    assert all(float(line.split()[2]) <= 1e-5 for line in lines[2:4])
    assert "on 2 images 100.0000 % of the pixels agree with PyTorch in float32" in lines[4]
    metadata = {entry.key: entry.value for entry in onnx.load_model(out).metadata_props}
    assert json.loads(metadata["agreement"])["pixel_agreement"] == 1.0
    assert metadata["weights"] == "stage1_init.caffemodel"


def test_export_of_a_classifier(photos, tmp_path, capsys):
    arguments = [*base("export", CAFFE_FILES / "vgg16_cam.caffemodel"), "--net", "vgg16_cam"]
    out = tmp_path / "cam.onnx"
    assert run(capsys, *arguments, "--out", out, "--graph", "scores", "--images", photos)[0] == 0
    metadata = {entry.key: entry.value for entry in onnx.load_model(out).metadata_props}
    assert json.loads(metadata["classes"]) == list(CLASS_NAMES[1:])


def test_smaller_numbers_are_never_silent(photos, tmp_path, capsys):
    out = tmp_path / "net.onnx"
    status, _, error = run(capsys, *base("export"), "--out", out, "--precision", "int8")
    assert status == 2
    assert "precision int8 is other arithmetic than the papers': name images" in error
    assert not out.exists()
    status, text, _ = run(capsys, *base("export"), "--out", out, "--precision", "int8", "--images", photos)
    assert status == 0
    summary = text.splitlines()[-1]
    assert "of the pixels agree with PyTorch in float32, mean IoU with its masks" in summary
    masks = tmp_path / "masks"
    arguments = [*base("predict", out), "--images", photos, "--out", masks, "--engine", "onnx"]
    status, text, _ = run(capsys, *arguments, "inference.crf=false")
    assert status == 0
    assert text.splitlines()[0] == f"precision int8: when it was exported, {summary}"
    status, _, error = run(capsys, *arguments, "--precision", "fp32")
    assert status == 2
    assert "exported with precision int8, fp32 asked for" in error
    status, _, error = run(capsys, *arguments, "inference.protocol=sec")
    assert status == 2
    assert "exported with protocol dsrg_final, sec asked for" in error


def test_predict_measures_fp16_resumes_and_lists_failures(photos, tmp_path, capsys):
    (photos / "a_bad.png").write_bytes(b"")
    masks = tmp_path / "masks"
    arguments = [
        *base("predict"),
        "--images",
        photos,
        "--out",
        masks,
        "--engine",
        "onnx",
        "inference.crf=false",
    ]
    status, text, error = run(capsys, *arguments, "--precision", "fp16", "--batch-size", 2)
    assert status == 1
    assert text.startswith("precision fp16: on 2 images ")
    assert f"{masks}: 2 masks written, 0 were there" in text
    assert "repro: 1 of 3 images failed:" in error
    assert "a_bad.png: the image file is empty (0 bytes)" in error
    (photos / "a_bad.png").unlink()
    (masks / "image0.png").unlink()
    status, text, _ = run(capsys, *arguments, "--precision", "fp16")
    assert status == 0
    assert "1 masks written, 1 were there" in text
    status, _, error = run(capsys, *arguments)
    assert status == 2
    assert "made with precision = 'fp16', now 'fp32'" in error
    without_engine = [argument for argument in arguments if argument not in ("--engine", "onnx")]
    status, _, error = run(capsys, *without_engine)
    assert status == 2
    assert "made with engine = 'onnx', now None" in error


def test_options_that_would_do_nothing_are_refused(photos, tmp_path, capsys):
    arguments = [*base("predict"), "--images", photos, "--out", tmp_path / "masks"]
    status, _, error = run(capsys, *arguments, "--precision", "fp16")
    assert status == 2
    assert "--precision and --batch-size go with --engine onnx" in error
    status, _, error = run(capsys, *base("export"), "--out", tmp_path / "net.onnx", "--gt", tmp_path)
    assert status == 2
    assert "--gt: ground truth of which images?" in error
    status, _, error = run(capsys, *arguments, "--engine", "onnx", "precision=double")
    assert status == 2
    assert "precision=double: the onnx engine computes in float32" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_an_export_whose_check_fails_writes_nothing(photos, tmp_path, capsys):
    (photos / "bad.png").write_bytes(b"")
    out = tmp_path / "net.onnx"
    status, _, error = run(capsys, *base("export"), "--out", out, "--images", photos)
    assert status == 2
    assert "bad.png: the image file is empty" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


# --- the client ---------------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import runpy, sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "repro", "scipy", "weights_conversion"):
            raise ImportError(f"{name}: not in this environment")

sys.meta_path.insert(0, Nothing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert "torch" not in sys.modules
"""


def test_the_minimal_client_needs_no_torch(golden, exported, photos, tmp_path):
    client = ROOT / "examples" / "onnx_minimal.py"
    arguments = [client, exported("dsrg_stage1"), photos / "image0.png", tmp_path / "mask.png"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    want = golden("inference")["image0/test_ms_raw"][()]
    assert (read_mask(tmp_path / "mask.png") != want).mean() <= MASK_PIXELS
    shares = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()}
    assert set(shares) == {CLASS_NAMES[index] for index in np.unique(want)}
    assert sum(shares.values()) == pytest.approx(100, abs=0.2)
    assert Image.open(tmp_path / "mask.png").getpalette()[3:6] == [128, 0, 0]
