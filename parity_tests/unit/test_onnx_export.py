"""Exported networks against PyTorch: every graph, odd and tiny sizes, batches of one and three."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from parity_tests.conftest import CAFFE_FILES, NEEDS_CUDA_PROVIDER, ROOT, assert_close
from parity_tests.tolerances import MASK_PIXELS, ONNX_PROBS, ONNX_SCORES_REL
from repro.data import CLASS_NAMES, zoom_linear
from repro.errors import InputError
from repro.inference.predict import FLOOR, PROTOCOLS, predict_probs
from repro.layers.resize import zoom_to
from repro.models import CLASSIFIERS, SEGMENTATION_NETS, build_model
from weights_conversion import load_weights
from weights_conversion.caffe_pb2 import NetParameter
from weights_conversion.files import file_sha256

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from repro.export import export_onnx  # noqa: E402
from repro.export.graph import IR_VERSION, OPSET, add_zoom, scaled_size  # noqa: E402
from repro.export.onnx import METADATA_KEYS, build_onnx  # noqa: E402
from repro.export.runtime import OnnxSession, providers_for  # noqa: E402
from repro.models.net import CaffeNet  # noqa: E402
from repro.models.onnx import LAYER_NOTE, Graph, add_net  # noqa: E402

SIZES = [(1, 1), (2, 3), (7, 5), (16, 16), (33, 47), (65, 49), (97, 128), (161, 161), (241, 130), (125, 321)]
COUNTS = (1, 3) * 5  # images a batch at each of them
RECORDED = {
    "vgg16_aspp": "stage1_init",
    "vgg16_largefov": "vgg16_largefov",
    "vgg16_cam": "vgg16_cam",
    "vgg16_bg": "vgg16_bg",
    "resnet101_aspp": "resnet101_aspp",
}


def net(name: str, width_divisor: int = 16, **options):
    """A net with recorded parameters where there are some for it."""
    model = build_model(name, width_divisor=width_divisor, **options).eval()
    if width_divisor == 16 and name in RECORDED:
        load_weights(model, CAFFE_FILES / f"{RECORDED[name]}.caffemodel")
    else:
        model.fill("msra", torch.Generator().manual_seed(0))
    return model


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def blobs(rng, count: int, height: int, width: int) -> np.ndarray:
    return rng.uniform(-128, 128, (count, 3, height, width)).astype(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """``exported(name, graph, protocol)``: the net and a session of its export, made once."""
    made: dict[tuple[str, ...], tuple] = {}
    folder = tmp_path_factory.mktemp("exported")

    def make(name: str, graph: str, protocol: str = "dsrg_final"):
        key = (name, graph, protocol)
        if key not in made:
            model = net(name)
            path = export_onnx(model, folder / f"{'_'.join(key)}.onnx", graph=graph, protocol=protocol)
            made[key] = model, session(path)
        return made[key]

    return make


# --- parity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEGMENTATION_NETS)
def test_scores(exported, rng, name):
    model, run = exported(name, "scores")
    for count, (height, width) in zip(COUNTS, SIZES, strict=True):
        images = blobs(rng, count, height, width)
        with torch.inference_mode():
            want = model(torch.from_numpy(images))
        (got,) = run.run(["scores"], {"images": images})
        assert_close(got, want, ONNX_SCORES_REL, f"{name} {count}x{height}x{width}", relative_to_max=True)
        assert (got.argmax(1) != want.numpy().argmax(1)).mean() <= MASK_PIXELS


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("side", [321, 160])
def test_scores_of_classifiers_at_their_one_size(tmp_path, rng, name, side):
    if side == 321:
        model = net(name)
    else:
        model = build_model(name, width_divisor=16, input_size=side).eval()
        model.fill("msra", torch.Generator().manual_seed(0))
    run = session(export_onnx(model, tmp_path / "net.onnx"))
    assert run.get_inputs()[0].shape == ["N", 3, side, side]
    images = blobs(rng, 2, side, side)
    with torch.inference_mode():
        want = model(torch.from_numpy(images))
    (got,) = run.run(["scores"], {"images": images})
    assert_close(got, want, ONNX_SCORES_REL, name, relative_to_max=True)


@pytest.mark.parametrize("name", ["vgg16_aspp", "vgg16_largefov", "resnet101_aspp"])
def test_probs(exported, rng, name):
    model, run = exported(name, "probs")
    for count, (height, width) in zip(COUNTS, SIZES, strict=True):
        images = blobs(rng, count, height, width)
        with torch.inference_mode():
            scores = model(torch.from_numpy(images))
            want = torch.softmax(zoom_to(scores, height, width), dim=1).numpy()
        (got,) = run.run(["probs"], {"images": images})
        # a probability moves by at most half of what a score does, and these nets' scores go up to 210
        bound = max(ONNX_PROBS, 0.5 * ONNX_SCORES_REL * float(scores.abs().max()))
        assert_close(got, want, bound, f"{name} {count}x{height}x{width}")
        assert (got.argmax(1) != want.argmax(1)).mean() <= MASK_PIXELS


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_multiscale(exported, rng, protocol):
    model, run = exported("vgg16_aspp", "multiscale", protocol)
    for count, (height, width) in zip(COUNTS, SIZES, strict=True):
        images = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
        want = torch.stack([predict_probs(model, image, protocol=protocol) for image in images])
        want = want.clamp_min(FLOOR).numpy()
        (got,) = run.run(["multiscale"], {"images": images})
        assert_close(got, want, ONNX_PROBS, f"{protocol} {count}x{height}x{width}")
        assert (got.argmax(1) != want.argmax(1)).mean() <= MASK_PIXELS


def test_multiscale_of_a_resnet(exported, rng):
    model, run = exported("resnet101_aspp", "multiscale", "dsrg_final")
    for height, width in ((1, 1), (33, 47), (97, 128)):
        images = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        want = torch.stack([predict_probs(model, image, protocol="dsrg_final") for image in images])
        (got,) = run.run(["multiscale"], {"images": images})
        assert_close(got, want.clamp_min(FLOOR), ONNX_PROBS, f"{height}x{width}")


@pytest.mark.long
@pytest.mark.parametrize("name", ["vgg16_aspp", "vgg16_largefov", "resnet101_aspp"])
def test_full_width(tmp_path, rng, name):
    model = net(name, width_divisor=1)
    run = session(export_onnx(model, tmp_path / "net.onnx"))
    for count, height, width in ((1, 321, 321), (2, 130, 97)):
        images = blobs(rng, count, height, width)
        with torch.inference_mode():
            want = model(torch.from_numpy(images))
        (got,) = run.run(["scores"], {"images": images})
        assert_close(got, want, ONNX_SCORES_REL, f"{name} {count}x{height}x{width}", relative_to_max=True)


@pytest.mark.cuda
@NEEDS_CUDA_PROVIDER
@pytest.mark.parametrize("name", ["vgg16_aspp", "vgg16_largefov", "resnet101_aspp"])
def test_scores_on_cuda_without_tf32(tmp_path, rng, name):
    model = net(name)
    device = torch.device("cuda", 0)
    path = export_onnx(model, tmp_path / "net.onnx")
    run = OnnxSession(path, providers_for(device))
    for count, (height, width) in zip(COUNTS, SIZES, strict=True):
        images = torch.from_numpy(blobs(rng, count, height, width))
        with torch.inference_mode():
            want = model(images)
        got = run.run(images, want.shape)
        assert got.device == device
        assert_close(got, want, ONNX_SCORES_REL, f"{name} {count}x{height}x{width}", relative_to_max=True)


# --- the pieces without a ready-made operator --------------------------------------------------------------


def piece(content: Graph, inputs: dict[str, tuple[int, list]], output: str, elem_type: int):
    """A session of a graph that holds one piece."""
    model = helper.make_model(
        helper.make_graph(
            content.nodes,
            "piece",
            [helper.make_tensor_value_info(name, *rest) for name, rest in inputs.items()],
            [helper.make_tensor_value_info(output, elem_type, None)],
            list(content.initializers.values()),
        ),
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_zoom_is_scipys_zero_at_the_last_sample_included(rng):
    content = Graph()
    add_zoom(content, "x", "height", "width", "zoom")
    inputs = {
        "x": (TensorProto.FLOAT, ["n", "c", "h", "w"]),
        "height": (TensorProto.INT64, []),
        "width": (TensorProto.INT64, []),
    }
    run = piece(content, inputs, "zoom", TensorProto.FLOAT)
    cases = [
        ((125, 8), (241, 401)),
        ((219, 125), (401, 241)),
        ((1, 1), (5, 7)),
        ((5, 7), (1, 1)),
        ((9, 9), (9, 9)),
    ]
    cases += [tuple(map(tuple, rng.integers(1, 60, (2, 2)))) for _ in range(60)]
    zeros = 0
    for size_in, size_out in cases:
        x = rng.uniform(0, 255, (2, 3, *size_in)).astype(np.float32)
        feed = {"x": x, "height": np.array(size_out[0]), "width": np.array(size_out[1])}
        (got,) = run.run(None, feed)
        want = zoom_to(x, *size_out)
        zeros += not want[..., -1, -1].any()
        assert_close(got, want, 1e-6, f"{size_in} to {size_out}", relative_to_max=True)
    assert zeros >= 2


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.25, 0.3])
def test_scaled_sizes_round_half_up(factor):
    content = Graph()
    output = scaled_size(content, "size", factor, "scaled")
    run = piece(content, {"size": (TensorProto.INT64, [])}, output, TensorProto.INT64)
    for size in range(2, 700):
        (got,) = run.run(None, {"size": np.array(size)})
        assert got == zoom_linear(np.zeros(size, np.float32), [factor]).shape[0], size


def pooling(size, **param):
    """A net of one pooling layer, ``p``, for (1, 2, size, size + 3)."""
    layer = {"name": "p", "type": "Pooling", "bottom": ["x"], "top": ["y"], "pooling_param": param}
    return CaffeNet(NetParameter(input=["x"], input_shape=[{"dim": [1, 2, size, size + 3]}], layer=[layer]))


POOLS = [  # pool, kernel, stride, pad
    *(
        ("MAX", 3, 2, 1),
        ("MAX", 3, 1, 1),
        ("MAX", 2, 2, 0),
        ("MAX", 5, 3, 2),
        ("MAX", 4, 2, 1),
        ("MAX", 3, 3, 0),
    ),
    *(("AVE", 3, 1, 1), ("AVE", 5, 1, 0), ("AVE", 5, 1, 2)),
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pooling_is_caffes_at_every_size(rng, pool):
    param = dict(zip(("pool", "kernel_size", "stride", "pad"), pool, strict=True))
    content = Graph()
    add_net(content, pooling(13, **param), {"x": "x"})
    run = piece(content, {"x": (TensorProto.FLOAT, ["n", "c", "h", "w"])}, "y", TensorProto.FLOAT)
    for height in range(max(pool[1] - 2 * pool[3], 1), 14):
        x = rng.normal(size=(1, 2, height, height + 3)).astype(np.float32) - 5
        want = pooling(height, **param)(torch.from_numpy(x))
        assert_close(run.run(None, {"x": x})[0], want, 1e-6, f"{height}", relative_to_max=True)


@pytest.mark.parametrize("pool", ["MAX", "AVE"])
def test_pooling_padded_along_one_axis(rng, pool):
    param = {"pool": pool, "kernel_h": 2, "kernel_w": 1, "stride_h": 1, "stride_w": 3, "pad_h": 1, "pad_w": 0}
    content = Graph()
    add_net(content, pooling(13, **param), {"x": "x"})
    run = piece(content, {"x": (TensorProto.FLOAT, ["n", "c", "h", "w"])}, "y", TensorProto.FLOAT)
    for height in range(1, 7):
        x = rng.normal(size=(1, 2, height, height + 3)).astype(np.float32)
        want = pooling(height, **param)(torch.from_numpy(x))
        assert_close(run.run(None, {"x": x})[0], want, 1e-6, f"{height}", relative_to_max=True)


def test_pooling_at_random_is_refused():
    with pytest.raises(InputError, match=r"layer 'p' \(Pooling\): .* ONNX"):
        add_net(Graph(), pooling(9, pool="STOCHASTIC", kernel_size=3, stride=2), {"x": "x"})


# --- what a file says ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEGMENTATION_NETS)
def test_nodes_and_tensors_carry_caffes_names(name):
    model = net(name)
    graph = build_onnx(model, graph="scores").graph
    layers = {node.doc_string.removeprefix(LAYER_NOTE) for node in graph.node if node.doc_string}
    assert layers == {layer.name for layer in model.layers}
    assert layers <= {node.name for node in graph.node}
    tops = {layer.top for layer in model.layers}
    assert tops <= {output for node in graph.node for output in node.output}


def test_blobs_are_caffes(rng):
    """A tensor under a blob's name holds what Caffe's blob holds, in-place layers having run."""
    model = build_model("vgg16_aspp", width_divisor=16).eval()
    load_weights(model, CAFFE_FILES / "vgg16_aspp.caffemodel")
    proto = build_onnx(model, graph="scores")
    names = list(dict.fromkeys(layer.top for layer in model.layers))
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    run = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    images = blobs(rng, 1, 65, 49)
    with torch.inference_mode():
        want = model.forward_blobs(torch.from_numpy(images))
    for name in names:
        (got,) = run.run([name], {"images": images})
        assert_close(got, want[name], ONNX_SCORES_REL, name, relative_to_max=True)


def test_the_file_is_pinned_and_describes_itself(tmp_path):
    weights = CAFFE_FILES / "stage1_init.caffemodel"
    path = export_onnx(
        net("vgg16_aspp"),
        tmp_path / "net.onnx",
        graph="multiscale",
        protocol="sec",
        classes=CLASS_NAMES,
        weights=weights,
    )
    content = onnx.load_model(path)
    assert content.ir_version == IR_VERSION == 8
    assert [(entry.domain, entry.version) for entry in content.opset_import] == [("", OPSET)] == [("", 17)]
    assert content.producer_name == "sec-dsrg-repro"
    metadata = {entry.key: entry.value for entry in content.metadata_props}
    assert set(metadata) == set(METADATA_KEYS) - {"agreement"}  # made without a check
    assert json.loads(metadata["classes"]) == list(CLASS_NAMES)
    assert json.loads(metadata["palette"])[15] == [192, 128, 128]
    assert json.loads(metadata["mean_bgr"]) == [104.0, 117.0, 123.0]
    assert (metadata["graph"], metadata["model"], metadata["protocol"]) == ("multiscale", "vgg16_aspp", "sec")
    assert metadata["weights_sha256"] == file_sha256(weights)
    run = session(path)
    assert [(value.name, value.shape) for value in run.get_inputs()] == [("images", ["N", "H", "W", 3])]
    assert [(value.name, value.shape) for value in run.get_outputs()] == [("multiscale", ["N", 21, "H", "W"])]


def test_the_page_lists_the_operators():
    page = (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8")
    listed = re.findall(r": ([A-Za-z, ]+)\.\n", page.partition("## Operators")[2].partition("All are of")[0])
    used: list[set[str]] = [set(), set(), set()]
    for name in (*SEGMENTATION_NETS, *CLASSIFIERS):
        model = net(name, width_divisor=64)
        used[0] |= operators(model, graph="scores")
        used[2] |= operators(model, graph="scores", precision="int8")
    for protocol in PROTOCOLS:
        used[1] |= operators(net("vgg16_largefov"), graph="multiscale", protocol=protocol)
    assert [set(names.split(", ")) for names in listed] == [
        used[0],
        used[1] - used[0],
        used[2] - used[1] - used[0],
    ]


def operators(model, **options) -> set[str]:
    return {node.op_type for node in build_onnx(model, **options).graph.node}


def test_scales_share_their_weights(tmp_path):
    model = net("vgg16_aspp")
    sizes = [
        export_onnx(model, tmp_path / f"{graph}.onnx", graph=graph).stat().st_size
        for graph in ("scores", "multiscale")
    ]
    assert sizes[1] < sizes[0] + 150_000  # three times the nodes, once the 620 kB of weights


def test_large_weights_go_into_a_second_file(tmp_path, rng, monkeypatch):
    model = net("vgg16_aspp")
    small = export_onnx(model, tmp_path / "small.onnx")
    monkeypatch.setattr("repro.export.onnx.LARGEST_FILE", 100_000)
    path = export_onnx(model, tmp_path / "large.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data", "small.onnx"]
    assert path.stat().st_size < 100_000
    images = blobs(rng, 1, 33, 47)
    want, got = (session(file).run(None, {"images": images})[0] for file in (small, path))
    np.testing.assert_array_equal(got, want)
    export_onnx(model, path)  # onto an older pair
    np.testing.assert_array_equal(session(path).run(None, {"images": images})[0], want)


def test_training_mode_and_double_precision_do_not_matter(tmp_path, rng):
    model = net("vgg16_largefov")
    images = blobs(rng, 1, 33, 47)
    want = session(export_onnx(model, tmp_path / "a.onnx")).run(None, {"images": images})[0]
    got = session(export_onnx(model.double().train(), tmp_path / "b.onnx")).run(None, {"images": images})[0]
    np.testing.assert_array_equal(got, want)
    assert model.training


def test_what_cannot_be_exported_is_refused_and_nothing_written(tmp_path):
    model, path = net("vgg16_largefov"), tmp_path / "net.onnx"
    for options, message in (
        ({"graph": "mask"}, "graph 'mask': expected one of scores, probs, multiscale"),
        ({"protocol": "msc"}, "protocol 'msc': expected one of dsrg_stage1, dsrg_final, sec"),
        ({"precision": "fp8"}, "precision 'fp8': expected one of fp32, fp16, int8"),
        ({"classes": ["a"]}, "classes: 1 names, vgg16_largefov has 21 outputs"),
    ):
        with pytest.raises(InputError, match=message):
            export_onnx(model, path, **options)
    with pytest.raises(InputError, match="graph 'probs': vgg16_cam classifies images of one size"):
        export_onnx(net("vgg16_cam"), path, graph="probs")
    assert not list(tmp_path.iterdir())


# --- fp16 and int8 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 3e-3), ("int8", 8e-2)])
@pytest.mark.parametrize("name", ["vgg16_aspp", "resnet101_aspp", "vgg16_bg"])
def test_smaller_numbers_stay_near(tmp_path, rng, name, precision, bound):
    model = net(name)
    path = export_onnx(model, tmp_path / "net.onnx", precision=precision)
    content = onnx.load_model(path)
    assert {entry.key: entry.value for entry in content.metadata_props}["precision"] == precision
    assert (content.ir_version, content.opset_import[0].version) == (IR_VERSION, OPSET)
    kinds = {tensor.data_type for tensor in content.graph.initializer if len(tensor.dims) == 4}
    assert kinds == {TensorProto.FLOAT16 if precision == "fp16" else TensorProto.UINT8}
    side = model.input_size if model.fixed_size else 97
    images = rng.integers(-100, 130, (1, 3, side, side)).astype(np.float32)
    with torch.inference_mode():
        want = model(torch.from_numpy(images))
    (got,) = session(path).run(None, {"images": images})
    assert got.dtype == np.float32
    assert_close(got, want, bound, f"{name} {precision}", relative_to_max=True)
    assert (got != want.numpy()).any()


def test_only_the_layers_are_float16(tmp_path):
    content = build_onnx(net("vgg16_aspp"), graph="multiscale", precision="fp16")
    halves = {tensor.name for tensor in content.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    assert halves == {name for name, _ in net("vgg16_aspp").named_parameters()}
    mean = next(tensor for tensor in content.graph.initializer if tensor.name == "mean")
    assert numpy_helper.to_array(mean).dtype == np.float32
