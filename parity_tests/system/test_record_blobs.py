"""tools/record_blobs.py, run on a module with pycaffe's surface whose nets are ours: what it writes is read back."""

from __future__ import annotations

import ast
import warnings

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from parity_tests.conftest import ROOT
from repro.cli import run_command
from repro.models import load_net
from repro.parity import compare, read_recording
from weights_conversion import write_caffemodel

TOOL = ROOT / "tools" / "record_blobs.py"
BODY = """
layer { name: "conv/1" type: "Convolution" bottom: "data" top: "conv/1" convolution_param { num_output: 3 kernel_size: 3
        weight_filler { type: "gaussian" std: 0.1 } } }
layer { name: "conv/1/bn" type: "BatchNorm" bottom: "conv/1" top: "conv/1/bn"
        batch_norm_param { use_global_stats: true } }
layer { name: "relu" type: "ReLU" bottom: "conv/1/bn" top: "conv/1/bn" }
layer { name: "fc" type: "InnerProduct" bottom: "conv/1/bn" top: "fc" inner_product_param { num_output: 4
        weight_filler { type: "gaussian" std: 0.1 } } }
"""
INPUT = 'input: "data" input_shape { dim: 2 dim: 3 dim: 6 dim: 7 }'
LOSS = (
    'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" loss_weight: 2 }'
)
LABEL = 'input: "label" input_shape { dim: 2 }'


def net_files(folder, text: str) -> list[str]:
    """Prototxt, weights and the name of a recording."""
    torch.manual_seed(0)
    prototxt, weights = folder / "net.prototxt", folder / "net.caffemodel"
    prototxt.write_text(text)
    net = load_net(prototxt)
    net.params["conv/1/bn"][2].data.fill_(1)
    net.params["conv/1/bn"][1].data.uniform_(0.5, 2)
    write_caffemodel(net, weights)
    return [str(prototxt), str(weights), str(folder / "blobs.h5")]


def test_a_forward_pass(tool, tmp_path, capsys):
    """Names with slashes, of which one begins with another, come back as they are."""
    files = net_files(tmp_path, INPUT + BODY)
    tool.main(files)
    assert capsys.readouterr().out == f"{files[2]}: 5 arrays of {files[0]}\n"
    recorded = read_recording(files[2])
    assert {*recorded.blobs} == {"data", "conv/1", "conv/1/bn", "fc"}
    assert recorded.prototxt == INPUT + BODY
    assert (recorded.phase, recorded.param_diff) == ("TEST", {})
    data = recorded.inputs["data"]
    assert data.shape == (2, 3, 6, 7)
    assert 100 < np.abs(data).max() < 128
    found = compare(load_net(*files[:2]), files[2])
    assert found.first is None
    assert [row.blob for row in found.rows] == ["data", "conv/1", "conv/1/bn", "fc"]
    other = compare(load_net(files[0]), files[2])  # its fillers' values
    assert (other.first.layer, other.first.type) == ("conv/1", "Convolution")


def test_a_backward_pass_from_the_outputs(tool, tmp_path):
    files = net_files(tmp_path, f"force_backward: true {INPUT}{BODY}")
    tool.main([*files, "--backward", "--seed", "3"])
    recorded = read_recording(files[2])
    assert {*recorded.top_diff} == {"fc"}
    assert {*recorded.input_diff} == {"data"}
    assert {*recorded.param_diff} == {
        *("conv/1/0", "conv/1/1", "fc/0", "fc/1"),
        *(f"conv/1/bn/{index}" for index in range(3)),
    }
    net = load_net(*files[:2])
    assert compare(net, recorded).first is None
    net["conv/1"].register_forward_hook(lambda module, x, top: top.detach() + 0 * module.bias.sum())
    assert compare(net, recorded).first.blob == "gradient of parameter 0"


def test_a_backward_pass_from_a_loss(tool, tmp_path):
    np.save(tmp_path / "label.npy", np.float32([1, 3]))
    files = net_files(tmp_path, INPUT + LABEL + BODY + LOSS)
    tool.main([*files, "--backward", "--npy", f"label={tmp_path / 'label.npy'}", "--phase", "TRAIN"])
    recorded = read_recording(files[2])
    assert recorded.inputs["label"].tolist() == [1, 3]
    assert (recorded.phase, recorded.top_diff) == ("TRAIN", {})
    assert np.abs(recorded.param_diff["fc/0"]).max() > 0.01
    assert compare(load_net(*files[:2], phase="train"), recorded).first is None


def test_an_image(tool, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    files = net_files(tmp_path, INPUT + BODY)
    tool.main([*files, "--image", str(tmp_path / "a.png"), "--mean", "10", "20", "30", "--scale", "0.5"])
    data = read_recording(files[2]).inputs["data"]
    want = (picture[:, :, ::-1].astype(np.float32) - [10, 20, 30]).transpose(2, 0, 1) / 2
    assert np.allclose(data, [want, want], atol=1e-4)


def test_an_array_of_another_size(tool, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((1, 3, 6, 7), np.float32))
    files = net_files(tmp_path, INPUT + BODY)
    tool.main([*files, "--npy", f"data={tmp_path / 'x.npy'}"])
    assert read_recording(files[2]).blobs["fc"].shape == (1, 4)
    assert compare(load_net(*files[:2]), files[2]).first is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--npy", "x=a.npy"], "--npy x: expected BLOB=FILE; the net's inputs: data"),
        (["--npy", "data"], "--npy data: expected BLOB=FILE"),
        (["--backward"], "no loss; Caffe then goes backward with force_backward: true alone"),
    ],
)
def test_bad_requests_write_nothing(tool, tmp_path, options, reason):
    files = net_files(tmp_path, f"# force_backward: true\n{INPUT}{BODY}")
    with pytest.raises(SystemExit, match=reason):
        tool.main([*files, *options])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.caffemodel", "net.prototxt"]


def test_a_recording_is_not_overwritten(tool, tmp_path):
    files = net_files(tmp_path, INPUT + BODY)
    (tmp_path / "blobs.h5").write_text("mine")
    with pytest.raises(SystemExit, match=r"blobs\.h5: exists already"):
        tool.main(files)
    assert (tmp_path / "blobs.h5").read_text() == "mine"


def test_the_command_reads_it(tool, tmp_path, capsys):
    files = net_files(tmp_path, INPUT + BODY)
    tool.main(files)
    capsys.readouterr()
    assert run_command(["check", *files[:2], "--recording", files[2]]) == 0
    assert "4 blobs equal those of " in capsys.readouterr().out
    with h5py.File(files[2], "r+") as file:
        file["blobs/conv%2F1%2Fbn"][0, 1, 2, 3] += 1
    assert run_command(["check", *files[:2], "--recording", files[2]]) == 1
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(
        "first difference: layer conv/1/bn (BatchNorm), then relu in-place, blob conv/1/bn: at (0, 1, 2, 3)"
    )


def test_its_syntax_is_python_2s_too():
    """No f-strings, annotations, keyword-only or positional-only arguments, ``nonlocal``, ``yield from``, walrus,
    keyword arguments of classes, exception chains, starred targets or unpacking; print is the function's."""
    source = TOOL.read_text(encoding="ascii")
    tree = ast.parse(source)
    imported = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert [node.module for node in imported] == ["__future__"]
    assert [alias.name for alias in imported[0].names] == ["print_function"]
    newer = (
        *(ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.Nonlocal, ast.YieldFrom, ast.AsyncFunctionDef),
        *(ast.Match, ast.MatMult, ast.TryStar),
    )
    for node in ast.walk(tree):
        where = f"line {getattr(node, 'lineno', 0)}"
        assert not isinstance(node, newer), where
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            a = node.args
            assert a.kwonlyargs == a.posonlyargs == [], where
            assert not any(each.annotation for each in (*a.args, a.vararg, a.kwarg) if each), where
            assert getattr(node, "returns", None) is None, where
        elif isinstance(node, ast.ClassDef):
            assert not node.keywords, where
        elif isinstance(node, ast.Raise):
            assert node.cause is None, where
        elif isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            assert not any(isinstance(each, ast.Starred) for each in node.elts), where
        elif isinstance(node, ast.Dict):
            assert None not in node.keys, where
        elif isinstance(node, ast.Call):
            # one *row, and as the last of the plain arguments
            starred = [isinstance(each, ast.Starred) for each in node.args]
            assert sum(starred) <= 1, where
            assert not any(starred[:-1]), where
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert names == {"argparse", "io", "os", "re", "sys", "h5py", "numpy", "caffe"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile(source, str(TOOL), "exec")
