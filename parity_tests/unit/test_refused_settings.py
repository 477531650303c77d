"""Settings that Caffe's layers refuse when they are set up: one line that names the layer and the field."""

from __future__ import annotations

import re

import pytest

from repro.errors import InputError
from repro.models import load_net
from repro.models.summary import summarise
from weights_conversion.prototxt import parse_prototxt

INPUTS = {"x": (2, 4, 8, 8), "o": (1, 4, 8, 8), "v": (2, 4), "w": (8,), "s": (2,)}
HEAD = 'name: "n"\n' + "".join(
    f'input: "{name}" input_shape {{ {" ".join(f"dim: {size}" for size in shape)} }}\n'
    for name, shape in INPUTS.items()
)

REFUSED = [
    ("Convolution", "num_output: 2 kernel_size: 3 kernel_h: 3 kernel_w: 3", "convolution_param.kernel_size: beside"),
    ("Convolution", "num_output: 2 kernel_h: 3", "convolution_param.kernel_w: missing"),
    ("Convolution", "num_output: 2 kernel_size: 0", "convolution_param.kernel_size: 0"),
    ("Convolution", "num_output: 2 kernel_size: 3 kernel_size: 3 kernel_size: 3", "3 values for 2 spatial axes"),
    ("Convolution", "num_output: 2 kernel_size: 3 stride: 2 stride_h: 2 stride_w: 2", "_param.stride: beside"),
    ("Convolution", "num_output: 2 kernel_size: 3 stride_h: 2 stride_w: 0", "convolution_param.stride: 0"),
    ("Convolution", "num_output: 2 kernel_size: 3 stride_h: 2", "convolution_param.stride"),
    ("Convolution", "num_output: 2 kernel_size: 3 pad: 1 pad_h: 1 pad_w: 1", "convolution_param.pad: beside"),
    ("Convolution", "num_output: 2 kernel_size: 3 pad: -1", "pad"),
    ("Convolution", "num_output: 2 kernel_size: 3 dilation: 2 hole: 2", "convolution_param.hole: beside"),
    ("Convolution", "num_output: 2 kernel_size: 3 dilation: 0", "convolution_param.dilation: 0"),
    ("Convolution", "num_output: 2 kernel_size: 3 dilation: 1 dilation: 1 dilation: 1", "3 values for 2"),
    ("Convolution", "num_output: 0 kernel_size: 3", "convolution_param.num_output"),
    ("Convolution", "num_output: 2 kernel_size: 3 group: 0", "convolution_param.group"),
    ("Convolution", "num_output: 3 kernel_size: 3 group: 2", "convolution_param.group"),
    ("Convolution", 'num_output: 2 kernel_size: 3 weight_filler { type: "xavier" sparse: 2 }', "filler: sparse 2"),
    ("Convolution", 'num_output: 2 kernel_size: 3 weight_filler { type: "gaussian" sparse: -3 }', "sparse -3"),
    ("Convolution", 'num_output: 2 kernel_size: 3 weight_filler { type: "glorot" }', "unknown filler 'glorot'"),
    ("Deconvolution", "num_output: 2 kernel_size: 3 kernel_h: 3 kernel_w: 3", "convolution_param.kernel_size: beside"),
    ("Im2col", "kernel_size: 3 kernel_h: 3 kernel_w: 3", "convolution_param.kernel_size: beside"),
    ("Im2col", "kernel_size: 3 stride: 0", "convolution_param.stride: 0"),
    ("Im2col", "kernel_size: 0", "convolution_param.kernel_size: 0"),
    ("Pooling", "kernel_size: 2 kernel_h: 2 kernel_w: 2", "pooling_param.kernel_size: beside"),
    ("Pooling", "kernel_h: 2", "pooling_param.kernel_w: missing"),
    ("Pooling", "kernel_size: 0", "pooling_param.kernel_size: 0"),
    ("Pooling", "", "pooling_param.kernel_size: missing"),
    ("Pooling", "kernel_size: 2 pad: 1 pad_h: 1 pad_w: 1", "pooling_param.pad: beside"),
    ("Pooling", "kernel_size: 2 pad_h: 1", "pooling_param.pad_w: missing"),
    ("Pooling", "kernel_size: 2 stride: 2 stride_h: 2 stride_w: 2", "pooling_param.stride: beside"),
    ("Pooling", "kernel_size: 2 stride_w: 2", "pooling_param.stride_h: missing"),
    ("Pooling", "global_pooling: true kernel_size: 8", "pooling_param.kernel_size: beside global_pooling"),
    ("Pooling", "global_pooling: true kernel_h: 8 kernel_w: 8", "pooling_param.kernel_h: beside global_pooling"),
    ("Pooling", "global_pooling: true stride: 2", "pooling_param.global_pooling"),
    ("Concat", "axis: 1 concat_dim: 1", "concat_param.concat_dim: beside axis"),
    ("Slice", "axis: 1 slice_dim: 1", "slice_param.slice_dim: beside axis"),
    ("Slice", "slice_point: 2", "slice_param.slice_point"),
    ("Log", "base: 1", "log_param.base: 1"),
    ("Log", "base: 0", "log_param.base: 0"),
    ("Log", "base: nan", "log_param.base: nan"),
    ("Exp", "base: inf", "exp_param.base: inf"),
    ("Scale", "num_axes: -2", "scale_param.num_axes: -2"),
    ("Bias", "num_axes: -2", "bias_param.num_axes: -2"),
    ("Reshape", "num_axes: -2 shape { dim: 2 }", "reshape_param.shape"),
    ("Tile", "axis: 1", "tile_param.tiles"),
    ("Embed", "num_output: 2", "embed_param.input_dim"),
    ("LRN", "local_size: 0", "lrn_param.local_size"),
    ("Reduction", "axis: 5", "reduction_param.axis"),
]  # fmt: skip
_FIELDS = {
    "InnerProduct": "inner_product_param",
    "Deconvolution": "convolution_param",
    "Im2col": "convolution_param",
}

WHOLE = {
    "Flatten in-place": ('type: "Flatten" bottom: "x" top: "x"', "cannot be in-place"),
    "Reshape in-place": (
        'type: "Reshape" bottom: "x" top: "x" reshape_param { shape { dim: 0 dim: -1 } }',
        "cannot be in-place",
    ),
    "Split in-place": ('type: "Split" bottom: "x" top: "x" top: "y"', "cannot be in-place"),
    "AbsVal in-place": ('type: "AbsVal" bottom: "x" top: "x"', "cannot be in-place"),
    "coefficients": ('type: "Eltwise" bottom: "x" bottom: "x" top: "y" eltwise_param { coeff: 1 }', "1 values for 2"),
    "product": (
        'type: "Eltwise" bottom: "x" bottom: "x" top: "y" eltwise_param { operation: PROD coeff: 1 coeff: 1 }',
        "eltwise_param.coeff: only for SUM",
    ),
    "maximum": (
        'type: "Eltwise" bottom: "x" bottom: "x" top: "y" eltwise_param { operation: MAX coeff: 1 coeff: 1 }',
        "eltwise_param.coeff: only for SUM",
    ),
    "sum in-place": ('type: "Eltwise" bottom: "x" bottom: "x" top: "x"', "top: 'x' is the first bottom, too"),
    "no new size": ('type: "Interp" bottom: "x" top: "y" interp_param { pad_beg: -1 }', "expected zoom_factor, shrink"),
    "items of a loss": ('type: "EuclideanLoss" bottom: "x" bottom: "o" top: "y"', "the same number of items in both"),
    "items of a softmax loss": (
        'type: "SoftmaxWithLoss" bottom: "v" bottom: "w" top: "y"',
        "the same number of items in both",
    ),
    "planes": ('type: "ContrastiveLoss" bottom: "x" bottom: "x" bottom: "s" top: "y"', "expected (N, C)"),
    "PReLU of a vector": ('type: "PReLU" bottom: "s" top: "y"', "a bottom of 1 axes"),
    "statistics": ('type: "BatchNorm" bottom: "x" top: "y" param { lr_mult: 1 }', "param: lr_mult above 0"),
    "weights of a loss": ('type: "ReLU" bottom: "x" top: "y" loss_weight: 1 loss_weight: 1', "2 values for 1 tops"),
    "propagate_down": ('type: "ReLU" bottom: "x" top: "y" propagate_down: true propagate_down: true', "2 values for 1"),
    "params": ('type: "ReLU" bottom: "x" top: "y" param { lr_mult: 1 }', "1 given, the layer has 0 blobs"),
    "a top twice": ('type: "Slice" bottom: "x" top: "y" top: "y"', "top: 'y' twice"),
    "an input again": ('type: "ReLU" bottom: "x" top: "o"', "top: 'o' is made twice, by 'input' too"),
    "both shapes": (
        'type: "DummyData" top: "y" dummy_data_param { shape { dim: 2 } num: 2 channels: 1 height: 1 width: 1 }',
        "dummy_data_param.shape: beside num",
    ),
}  # fmt: skip
CASES = [
    *((f'type: "{kind}" bottom: "x" top: "y" {_FIELDS.get(kind, f"{kind.lower()}_param")} {{ {text} }}', reason)
      for kind, text, reason in REFUSED),
    *WHOLE.values(),
]  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "reason"), CASES, ids=[re.sub(r"\W+", "-", text)[:60] for text, _ in CASES]
)
def test_one_line_names_layer_and_field(layer, reason, tmp_path):
    path = tmp_path / "n.prototxt"
    path.write_text(f'{HEAD}layer {{ name: "l" {layer} }}\n')
    with pytest.raises(InputError) as caught:
        load_net(path, phase="train")
    message = str(caught.value)
    assert reason in message
    assert "\n" not in message
    assert "'l'" in message or f"{path}:" in message


@pytest.mark.parametrize("name", WHOLE)
def test_inspect_says_it_too(name, tmp_path):
    layer, reason = WHOLE[name]
    content = parse_prototxt(f'{HEAD}layer {{ name: "l" {layer} }}', "n.prototxt")
    (last,) = [found for found in summarise(content).layers if found.name == "l"]
    assert reason in last.note


def test_a_blob_of_a_copys_name(tmp_path):
    path = tmp_path / "n.prototxt"
    layers = "".join(
        f'layer {{ name: "{top}" type: "ReLU" bottom: "x" top: "{top}" }}\n'
        for top in ("y", "x_input_0_split_1")
    )
    path.write_text(HEAD + layers)
    with pytest.raises(InputError, match="top: 'x_input_0_split_1' is Caffe's name for a copy of 'x'"):
        load_net(path)


def test_a_loss_of_two_tops(tmp_path):
    """Caffe wants a weight for each."""
    path = tmp_path / "n.prototxt"
    path.write_text(
        f'{HEAD}layer {{ name: "l" type: "SoftmaxWithLoss" bottom: "v" bottom: "s" top: "a" top: "b" }}'
    )
    assert load_net(path).layers[-1].loss_weights == (1, 0)
