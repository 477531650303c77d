"""Layer types that no recording holds, against OpenCV's importer where it has them, else against their formula in
NumPy; what in-place layers do to gradients; and the types that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from parity_tests.conftest import assert_close
from parity_tests.tolerances import IMPORTER_REL, LAYER
from repro.errors import InputError
from repro.models.net import load_net
from repro.models.registry import register
from weights_conversion import write_caffemodel

RNG = np.random.default_rng(3)
X = RNG.normal(0, 3, (2, 4, 6, 5)).astype(np.float32)


def build(folder, layers: str, **inputs: tuple[int, ...]):
    """A net of ``layers`` on inputs of these shapes, ``x`` (2, 4, 6, 5) among them."""
    shapes = {"x": X.shape, **inputs}
    head = "".join(
        f'input: "{name}" input_shape {{ {" ".join(f"dim: {size}" for size in shape)} }} '
        for name, shape in shapes.items()
    )
    path = folder / "net.prototxt"
    path.write_text(f'name: "n" force_backward: true {head} {layers}')
    return load_net(path)


@pytest.mark.parametrize(
    "layer",
    [
        'type: "ReLU6"',
        'type: "Permute" permute_param { order: 0 order: 2 order: 3 order: 1 }',
        'type: "Normalize" norm_param { across_spatial: false channel_shared: false scale_filler { value: 20 } }',
        'type: "Pooling" pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }',
        'type: "Pooling" pooling_param { kernel_size: 3 stride: 2 pad: 1 }',
    ],
)
def test_layer_is_opencvs(layer, tmp_path):
    cv2 = pytest.importorskip("cv2")
    torch.manual_seed(0)
    net = build(tmp_path, f'layer {{ name: "l" bottom: "x" top: "y" {layer} }}')
    ours = net.forward_blobs(torch.from_numpy(X))["y"]
    model = tmp_path / "net.caffemodel"
    if net.params:
        write_caffemodel(net, model)
    imported = cv2.dnn.readNetFromCaffe(str(tmp_path / "net.prototxt"), str(model) if net.params else "")
    imported.setInput(X)
    assert_close(ours, imported.forward("l"), IMPORTER_REL, layer, relative_to_max=True)


FORMULAS = {
    "clip": ('type: "Clip" clip_param { min: -1 max: 2 }', {}, lambda x: np.clip(x, -1, 2)),
    "swish": ('type: "Swish" swish_param { beta: 1.5 }', {}, lambda x: x / (1 + np.exp(-1.5 * x))),
    "permute": ('type: "Permute" permute_param { order: 0 order: 3 }', {}, lambda x: x.transpose(0, 3, 1, 2)),
    "normalize": (
        'type: "Normalize" norm_param { scale_filler { value: 3 } }',
        {},
        lambda x: 3 * x / np.sqrt((x**2).sum((1, 2, 3), keepdims=True)),
    ),
    "crop": (
        'type: "Crop" bottom: "like" crop_param { axis: 2 offset: 1 offset: 2 }',
        {"like": (2, 9, 3, 3)},
        lambda x, like: x[:, :, 1:4, 2:5],
    ),
    "crop channels": (
        'type: "Crop" bottom: "like" crop_param { axis: 1 }',
        {"like": (2, 3, 3, 3)},
        lambda x, like: x[:, :3, :3, :3],
    ),
    "stochastic": (
        'type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 5 }',
        {},
        lambda x: np.stack(
            [(x[:, :, r : r + 5] ** 2).sum((2, 3)) / x[:, :, r : r + 5].sum((2, 3)) for r in (0, 1)], 2
        )[..., None],
    ),
    "stride beyond the kernel": (
        'type: "Pooling" pooling_param { kernel_size: 1 stride: 4 }',
        {},
        lambda x: np.pad(x, ((0, 0), (0, 0), (0, 3), (0, 0)), constant_values=-np.finfo(np.float32).max)[
            :, :, ::4, ::4
        ],
    ),
    "pad beyond half a kernel": (
        'type: "Pooling" pooling_param { kernel_size: 3 stride: 3 pad: 2 }',
        {},
        lambda x: np.stack(
            [
                np.stack([x[:, :, r, c].max((2, 3)) for c in (slice(0, 1), slice(1, 4), slice(4, 5))], -1)
                for r in (slice(0, 1), slice(1, 4), slice(4, 6))
            ],
            2,
        ),
    ),
    "threshold": (
        'type: "Threshold" threshold_param { threshold: 1 }',
        {},
        lambda x: (x > 1).astype(np.float32),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_layer_is_its_formula(name, tmp_path):
    layer, shapes, formula = FORMULAS[name]
    x = np.abs(X) if name == "stochastic" else X
    others = {key: RNG.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    net = build(tmp_path, f'layer {{ name: "l" bottom: "x" top: "out" {layer} }}', **shapes)
    blobs = net.forward_blobs(
        {"x": torch.from_numpy(x), **{key: torch.from_numpy(v) for key, v in others.items()}}
    )
    want = formula(x, *others.values())
    assert net.shapes["out"] == want.shape
    assert_close(blobs["out"], want, LAYER, name, relative_to_max=True)


def test_axpy_and_its_gradients(tmp_path):
    net = build(
        tmp_path,
        'layer { name: "l" type: "Axpy" bottom: "a" bottom: "x" bottom: "y" top: "out" }',
        a=(2, 4, 1, 1),
        y=X.shape,
    )
    a, x, y = (
        torch.from_numpy(RNG.normal(size=s)).float().requires_grad_()
        for s in ((2, 4, 1, 1), X.shape, X.shape)
    )
    out = net.forward_blobs({"a": a, "x": x, "y": y})["out"]
    assert_close(out, a.detach() * x.detach() + y.detach(), 0, "a·x + y")
    out.sum().backward()
    assert_close(a.grad, x.detach().sum((2, 3), keepdim=True), LAYER, "gradient of a")
    assert_close(x.grad, a.detach().expand_as(x), 0, "gradient of x")
    assert_close(y.grad, torch.ones_like(y), 0, "gradient of y")


def test_a_parameter_layer_is_learnt(tmp_path):
    net = build(
        tmp_path,
        'layer { name: "p" type: "Parameter" top: "w" parameter_param { shape { dim: 2 dim: 4 } } }'
        'layer { name: "s" type: "Scale" bottom: "x" bottom: "w" top: "y" scale_param { axis: 0 } }',
    )
    with torch.no_grad():
        net.params["p"][0].fill_(2)
    y = net.forward_blobs(torch.from_numpy(X))["y"]
    assert_close(y, 2 * X, 0, "twice x")
    y.sum().backward()
    assert_close(
        net.params["p"][0].grad, X.sum((2, 3)), LAYER, "gradient of the parameter", relative_to_max=True
    )


def test_stochastic_pooling_draws_in_proportion():
    from repro.layers.pooling import stochastic_pool

    torch.manual_seed(0)
    drawn = stochastic_pool(
        torch.tensor([0.0, 1.0, 3.0, 0.0]).reshape(1, 1, 2, 2).repeat(4000, 1, 1, 1), (2, 2), training=True
    )
    assert set(drawn.unique().tolist()) == {1.0, 3.0}
    assert 0.72 < (drawn == 3).float().mean() < 0.78


def test_unpooling_refuses_places_of_another_size(tmp_path):
    net = build(
        tmp_path,
        'layer { name: "u" type: "Upsample" bottom: "x" bottom: "m" top: "y" upsample_param { scale: 2 } }',
        m=X.shape,
    )
    with pytest.raises(ValueError, match="12x10"):
        net.forward_blobs({"x": torch.from_numpy(X), "m": torch.full(X.shape, 120.0)})


# Caffe's ReLU, Sigmoid, TanH and Softmax read in their backward pass what the last in-place layer left in the blob
IN_PLACE = {
    "ReLU": lambda top_diff, held: top_diff * (held > 0),
    "Sigmoid": lambda top_diff, held: top_diff * held * (1 - held),
    "TanH": lambda top_diff, held: top_diff * (1 - held**2),
    "Softmax": lambda top_diff, held: held * (top_diff - (held * top_diff).sum(1, keepdim=True)),
}


@pytest.mark.parametrize("kind", IN_PLACE)
def test_a_later_in_place_layer_changes_the_gradient(kind, tmp_path):
    net = build(
        tmp_path,
        'layer { name: "b" type: "Bias" bottom: "x" top: "y" }'
        f'layer {{ name: "a" type: "{kind}" bottom: "y" top: "y" }}'
        'layer { name: "s" type: "Scale" bottom: "y" top: "y" scale_param { filler { value: -0.5 } } }',
    )
    x = torch.from_numpy(X).requires_grad_()
    y = net.forward_blobs(x)["y"]
    y.sum().backward()
    assert_close(x.grad, IN_PLACE[kind](torch.full_like(x, -0.5), y.detach()), LAYER, kind)


@pytest.mark.parametrize("kind", [kind for kind in IN_PLACE if kind != "ReLU"])
def test_so_it_does_where_the_layer_itself_is_not_in_place(kind, tmp_path):
    net = build(
        tmp_path,
        f'layer {{ name: "a" type: "{kind}" bottom: "x" top: "y" }}'
        'layer { name: "s" type: "Scale" bottom: "y" top: "y" scale_param { filler { value: -0.5 } } }',
    )
    x = torch.from_numpy(X).requires_grad_()
    y = net.forward_blobs(x)["y"]
    y.sum().backward()
    assert_close(x.grad, IN_PLACE[kind](torch.full_like(x, -0.5), y.detach()), LAYER, kind)


def test_mvns_gradient_is_of_its_own_top(tmp_path):
    """Caffe's reads what the ReLU in place has left of it."""
    mvn = 'layer { name: "m" type: "MVN" bottom: "x" top: "y" }'
    x, own = (torch.from_numpy(X).requires_grad_() for _ in range(2))
    build(tmp_path, mvn + 'layer { name: "r" type: "ReLU" bottom: "y" top: "y" }')(
        x
    ).square().sum().backward()
    build(tmp_path, mvn + 'layer { name: "r" type: "ReLU" bottom: "y" top: "z" }')(
        own
    ).square().sum().backward()
    assert x.grad.abs().max() > 0
    assert_close(x.grad, own.grad, LAYER, "MVN below a ReLU", relative_to_max=True)


def test_a_channel_of_one_value(tmp_path):
    """Caffe takes two axes as one cell a channel: less its mean nothing is left."""
    x = torch.from_numpy(X[:, :, 0, 0]).requires_grad_()
    layers = (
        'layer { name: "m" type: "MVN" bottom: "v" top: "y" }'
        'layer { name: "c" type: "MVN" bottom: "v" top: "z" mvn_param { normalize_variance: false } }'
        'layer { name: "a" type: "MVN" bottom: "v" top: "w" mvn_param { across_channels: true } }'
    )
    blobs = build(tmp_path, layers, v=x.shape).forward_blobs({"v": x, "x": torch.from_numpy(X)})
    assert not blobs["y"].any()
    assert not blobs["z"].any()
    values = x.detach().numpy()
    expected = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)
    assert_close(blobs["w"], expected, LAYER, "over all channels", relative_to_max=True)


def test_batch_norm_of_one_axis(tmp_path):
    x = torch.from_numpy(X[:, 0, 0, 0])
    layer = 'layer { name: "b" type: "BatchNorm" bottom: "v" top: "y" batch_norm_param { use_global_stats: false } }'
    net = build(tmp_path, layer, v=x.shape)
    found = net.forward_blobs({"v": x, "x": torch.from_numpy(X)})["y"]
    assert_close(
        found, (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt(), LAYER, "one axis", relative_to_max=True
    )
    assert_close(net["b"].variance, x.var()[None], LAYER, "its moving average", relative_to_max=True)


def test_a_layers_own_phase_goes_before_the_nets(tmp_path):
    """Where a layer says ``phase``, Caffe leaves it that (``Net::Init``)."""
    layers = (
        'layer { name: "a" type: "Dropout" bottom: "x" top: "y" phase: TRAIN }'
        'layer { name: "b" type: "Dropout" bottom: "x" top: "z" }'
        'layer { name: "c" type: "Dropout" bottom: "x" top: "w" phase: TEST }'
    )
    x = torch.ones(X.shape)
    for phase in ("test", "train"):
        build(tmp_path, layers)
        net = load_net(tmp_path / "net.prototxt", phase=phase)
        dropped = {name: bool((blob == 0).any()) for name, blob in net.forward_blobs(x).items()}
        assert (dropped["y"], dropped["z"], dropped["w"]) == (True, phase == "train", False)


def test_readers_of_a_blob_before_an_in_place_layer_keep_it(tmp_path):
    net = build(
        tmp_path,
        'layer { name: "b" type: "Bias" bottom: "x" top: "y" }'
        'layer { name: "a" type: "TanH" bottom: "y" top: "z" }'
        'layer { name: "r" type: "Power" bottom: "y" top: "y" power_param { scale: 3 } }',
    )
    x = torch.from_numpy(X).requires_grad_()
    blobs = net.forward_blobs(x)
    (blobs["z"] + blobs["y"]).sum().backward()
    assert_close(x.grad, 1 - np.tanh(X) ** 2 + 3, LAYER, "gradients add")


def test_of_equal_values_the_later_index_wins(tmp_path):
    net = build(tmp_path, 'layer { name: "l" type: "ArgMax" bottom: "x" top: "y" argmax_param { axis: 1 } }')
    x = torch.zeros(X.shape)
    assert net.forward_blobs(x)["y"].unique().tolist() == [3]
    net = build(
        tmp_path, 'layer { name: "l" type: "Accuracy" bottom: "x" bottom: "t" top: "y" }', t=(2, 1, 6, 5)
    )
    right = [net.forward_blobs({"x": x, "t": torch.full((2, 1, 6, 5), float(c))})["y"].item() for c in (0, 3)]
    assert right == [0, 1]


def test_softmax_loss_is_capped_but_its_gradient_is_not(tmp_path):
    net = build(
        tmp_path,
        'layer { name: "l" type: "SoftmaxWithLoss" bottom: "x" bottom: "t" top: "y" }',
        t=(2, 1, 6, 5),
    )
    x = torch.zeros(X.shape)
    x[:, 1] = 200
    x.requires_grad_()
    loss = net.forward_blobs({"x": x, "t": torch.zeros(2, 1, 6, 5)})["y"]
    assert loss.item() == pytest.approx(-np.log(np.finfo(np.float32).tiny), rel=1e-6)
    loss.backward()
    assert_close(x.grad[:, 0], np.full((2, 6, 5), -1 / 60), LAYER, "softmax - 1")


def test_no_label_that_counts_makes_a_loss_of_0(tmp_path):
    net = build(
        tmp_path,
        'layer { name: "l" type: "SoftmaxWithLoss" bottom: "x" bottom: "t" top: "y" loss_param { ignore_label: 255 } }',
        t=(2, 1, 6, 5),
    )
    assert (
        net.forward_blobs({"x": torch.from_numpy(X), "t": torch.full((2, 1, 6, 5), 255.0)})["y"].item() == 0
    )


@pytest.mark.parametrize(
    "kind",
    [
        "LSTM",
        "RNN",
        "PriorBox",
        "DetectionOutput",
        "ROIPooling",
        "DenseCRF",
        "DomainTransform",
        "Data",
        "Mystery",
    ],
)
def test_types_that_are_not_here(kind, tmp_path):
    with pytest.raises(InputError) as caught:
        build(tmp_path, f'layer {{ name: "the one" type: "{kind}" bottom: "x" top: "y" }}')
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in ("'the one'", kind, "register"))


@pytest.mark.parametrize(
    ("layer", "where"),
    [
        ('type: "Slice" top: "z" slice_param { axis: 1 slice_point: 9 }', "slice_param.slice_point"),
        ('type: "Concat" bottom: "o"', "differ in axis 1 alone"),
        ('type: "Reshape" reshape_param { shape { dim: 7 dim: -1 } }', "reshape_param.shape"),
        ('type: "Crop" bottom: "o" crop_param { offset: 9 }', "crop_param.offset"),
        ('type: "ArgMax" argmax_param { top_k: 999 }', "argmax_param.top_k"),
        ('type: "LRN" lrn_param { local_size: 4 }', "lrn_param.local_size"),
        ('type: "Flatten" flatten_param { axis: 9 }', "flatten_param.axis"),
        ('type: "Tile" tile_param { tiles: 0 }', "tile_param.tiles"),
        ('type: "Clip"', "clip_param.min"),
        ('type: "Permute" permute_param { order: 1 order: 1 }', "permute_param.order"),
        ('type: "Pooling" pooling_param { kernel_size: 3 pad: 3 }', "pooling_param.pad"),
        ('type: "SPP" spp_param { pyramid_height: 5 }', "spp_param.pyramid_height"),
        ('type: "SPP" spp_param { pyramid_height: 3 }', "spp_param.pyramid_height: 5 cells do not go into 4"),
        ('type: "SoftmaxWithLoss" bottom: "o"', "labels"),
        ('type: "EuclideanLoss" bottom: "o"', "expected one size"),
        ('type: "Log" log_param { base: -3 }', "log_param.base"),
        ('type: "SegAccuracy" bottom: "o" seg_accuracy_param { reset: false }', "seg_accuracy_param.reset"),
        ('type: "Eltwise" bottom: "o"', "expected equal ones"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(layer, where, tmp_path):
    with pytest.raises(InputError) as caught:
        build(tmp_path, f'layer {{ name: "l" bottom: "x" top: "y" {layer} }}', o=(2, 4, 3, 3))
    assert "layer 'l'" in str(caught.value)
    assert where in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_type_of_ones_own(tmp_path):
    register("Cubed")(lambda x: x**3)
    with pytest.raises(ValueError, match="Cubed is registered already"):
        register("Cubed")(lambda x: x)
    net = build(tmp_path, 'layer { name: "l" type: "Cubed" bottom: "x" top: "y" }')
    assert_close(net.forward_blobs(torch.from_numpy(X))["y"], X**3, LAYER, "x³", relative_to_max=True)
