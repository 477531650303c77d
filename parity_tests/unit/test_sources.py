"""Initial weights from PyTorch's files: converted exactly, told apart, and refused where they are something else."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from parity_tests.conftest import CAFFE_FILES, assert_close
from repro.cli import run_command
from repro.models import build_model
from weights_conversion import CaffeFileError, load_weights, read_pth, save_safetensors
from weights_conversion.mapping import read_weights
from weights_conversion.sources import known_as

WIDTH = 16
ASPP = str(CAFFE_FILES / "vgg16_aspp_deploy.prototxt")
FEATURES = {  # torchvision's index -> Caffe's name, from its configuration "D": a ReLU after each, M after each stage
    0: "conv1_1",
    2: "conv1_2",
    5: "conv2_1",
    7: "conv2_2",
    10: "conv3_1",
    12: "conv3_2",
    14: "conv3_3",
    17: "conv4_1",
    19: "conv4_2",
    21: "conv4_3",
    24: "conv5_1",
    26: "conv5_2",
    28: "conv5_3",
}


@pytest.fixture
def caffe_net() -> nn.Module:
    model = build_model("vgg16_largefov", width_divisor=WIDTH, dropout=0)
    load_weights(model, CAFFE_FILES / "vgg16_largefov.caffemodel")
    return model


def as_rgb(model: nn.Module, pattern: str, **more: str) -> dict[str, torch.Tensor]:
    """The net's weights as the PyTorch world holds them: numbered, and reading RGB."""
    names = {pattern.format(index): name for index, name in FEATURES.items()} | more
    content = {}
    for key, name in names.items():
        for kind, tensor in model.get_submodule(name).named_parameters():
            rgb = tensor.detach().flip(1) if name == "conv1_1" and kind == "weight" else tensor.detach()
            content[f"{key}.{kind}"] = rgb.clone()
    return content


def torchvision_file(model: nn.Module, classifier: float = float("nan")) -> dict[str, torch.Tensor]:
    content = as_rgb(model, "features.{}")
    for index in (0, 3, 6):
        content[f"classifier.{index}.weight"] = torch.full((8, 8), classifier)
        content[f"classifier.{index}.bias"] = torch.full((8,), classifier)
    return content


def ssd_file(model: nn.Module) -> dict[str, torch.Tensor]:
    return as_rgb(model, "{}", **{"31": "fc6", "33": "fc7"})


def blank() -> nn.Module:
    model = build_model("vgg16_largefov", width_divisor=WIDTH, dropout=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    return model


FORMS = {"torchvision": torchvision_file, "ssd": ssd_file}
ZIPPED = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])


@ZIPPED
@pytest.mark.parametrize("form", FORMS)
def test_converted_weights_are_caffes_to_the_bit(tmp_path, caffe_net, form, zipped):
    torch.save(FORMS[form](caffe_net), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    model = blank()
    report = load_weights(model, tmp_path / "x.pth")
    names = [*FEATURES.values(), *(["fc6", "fc7"] if form == "ssd" else [])]
    assert report.loaded == names
    assert set(report.missing) == {"fc6", "fc7", "fc8-SEC"} - set(names)
    assert report.unused == []
    left_out = "classifier: filled with NaN, as torchvision publishes it, and left out"
    assert (left_out in report.changes) == (form == "torchvision")
    assert "conv1_1: input channels from RGB to BGR" in report.changes
    for name in names:
        for tensor, want in zip(
            model.get_submodule(name).parameters(), caffe_net.get_submodule(name).parameters(), strict=True
        ):
            assert torch.equal(tensor, want), name
    again = as_rgb(model, "{}")  # and back
    assert all(torch.equal(again[key], value) for key, value in as_rgb(caffe_net, "{}").items())


def torch_features(content: dict[str, torch.Tensor], rgb: torch.Tensor) -> torch.Tensor:
    """conv1_1 to conv2_2 with ReLUs and the pooling of torchvision's and SSD's nets."""
    x = F.relu(F.conv2d(rgb, content["0.weight"], content["0.bias"], padding=1))
    return F.relu(F.conv2d(x, content["2.weight"], content["2.bias"], padding=1))


def test_activations_are_the_same(tmp_path, caffe_net):
    """torchvision: RGB in 0–1, mean (0.48235, 0.45882, 0.40784), std 1/255. Caffe: BGR in 0–255, mean (104, 117, 123).

    A whole division by 255 would show as activations 255 times too small. What remains is the documented mean,
    which has five digits of 123/255."""
    content = ssd_file(caffe_net)
    torch.save(content, tmp_path / "x.pth")
    model = blank()
    load_weights(model, tmp_path / "x.pth")
    image = torch.randint(0, 256, (1, 3, 33, 41), generator=torch.Generator().manual_seed(0)).float()  # RGB
    caffe_input = (image - torch.tensor([123.0, 117.0, 104.0]).reshape(1, 3, 1, 1)).flip(1)
    documented = torch.tensor([0.48235, 0.45882, 0.40784]).reshape(1, 3, 1, 1)
    for rgb, bound in (
        (image - torch.tensor([123.0, 117.0, 104.0]).reshape(1, 3, 1, 1), 1e-6),  # the SSD project's
        ((image / 255 - documented) / (1 / 255), 1e-4),  # torchvision's
    ):
        got = model.forward_blobs(caffe_input)["conv1_2"]
        assert_close(got, torch_features(content, rgb), bound, "conv1_2", relative_to_max=True)


def test_activations_are_the_same_to_the_bit_where_sums_are_exact(tmp_path, caffe_net):
    """On whole numbers no sum rounds, so the order of the channels leaves no trace at all."""
    with torch.no_grad():
        for name in ("conv1_1", "conv1_2"):
            for parameter in caffe_net.get_submodule(name).parameters():
                parameter.copy_((parameter * 20).round().clamp(-8, 8))
    content = ssd_file(caffe_net)
    torch.save(content, tmp_path / "x.pth")
    model = blank()
    load_weights(model, tmp_path / "x.pth")
    rgb = torch.randint(-128, 128, (1, 3, 20, 20), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(model.forward_blobs(rgb.flip(1))["conv1_2"], torch_features(content, rgb))


def test_reduced_fc_spreads_over_the_branches(tmp_path, caffe_net):
    torch.save(ssd_file(caffe_net), tmp_path / "vgg16_reducedfc.pth")
    model = build_model("vgg16_aspp", width_divisor=WIDTH)
    report = load_weights(model, tmp_path / "vgg16_reducedfc.pth", spread_branches=True)
    assert report.missing == [f"fc8-SEC_{branch}" for branch in (1, 2, 3, 4)]
    assert torch.equal(model.get_submodule("fc6_3").weight, caffe_net.get_submodule("fc6").weight)


def test_a_state_dict_of_ours(tmp_path, caffe_net):
    torch.save(caffe_net.state_dict(), tmp_path / "x.pth")
    model = blank()
    assert load_weights(model, tmp_path / "x.pth").changes == []
    assert torch.equal(model.get_submodule("conv1_1").weight, caffe_net.get_submodule("conv1_1").weight)


WRAPPED = {
    "features in DataParallel": lambda key: key.replace("features.", "features.module."),
    "Lightning": lambda key: f"model.{key}",
    "torch.compile": lambda key: f"_orig_mod.{key}",
    "compiled, in DataParallel, in another net": lambda key: f"module._orig_mod.backbone.{key}",
    "features alone": lambda key: key.removeprefix("features."),
}


@pytest.mark.parametrize("form", WRAPPED)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_names_under_wrappers(tmp_path, caffe_net, form, suffix):
    content = {WRAPPED[form](key): value for key, value in as_rgb(caffe_net, "features.{}").items()}
    path = tmp_path / f"x{suffix}"
    (torch.save if suffix == ".pth" else save_file)(content, path)
    model = blank()
    assert load_weights(model, path).loaded == [*FEATURES.values()]
    for name in FEATURES.values():
        assert torch.equal(model.get_submodule(name).weight, caffe_net.get_submodule(name).weight), name


def test_two_nets_of_one_file_are_not_chosen_between(tmp_path, caffe_net):
    one = as_rgb(caffe_net, "features.{}")
    torch.save(
        {f"{net}.{key}": value for net in ("a", "b") for key, value in one.items()}, tmp_path / "x.pth"
    )
    with pytest.raises(
        CaffeFileError, match=r"neither torchvision's .* its keys are 'a\.features\.0\.weight'"
    ):
        load_weights(blank(), tmp_path / "x.pth")


def test_caffes_own_names_in_safetensors_stay(tmp_path):
    save_file({"module.conv1_1.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "x.safetensors")
    assert list(read_weights(tmp_path / "x.safetensors").layers) == ["module.conv1_1"]


def test_known_by_name_and_hash(tmp_path):
    assert "DSRG release" in known_as("folder/vgg16_20M_mc.caffemodel", "0" * 64)
    assert "DeepLab-v2" in known_as("init.caffemodel", "")
    name = "vgg16_features-amdegroot-88682ab5.pth"
    assert "IMAGENET1K_FEATURES; its SHA-256 is the published one" in known_as(name, "88682ab5" + "0" * 56)
    assert "its SHA-256 is NOT the published one" in known_as(name, "0" * 64)
    assert known_as("mine.pth", "0" * 64) == ""


# --- what is refused --------------------------------------------------------------------------------------


class Call:
    """Unpickles into a call."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def repeated(*shape: int) -> torch.Tensor:
    return torch.zeros(1).expand(shape)


def content_of(name: str, model: nn.Module) -> object:
    good = ssd_file(model)
    return {
        "code": {**good, "x": Call(os.system, "echo code from a pickle ran")},
        "eval": Call(eval, "print('code from a pickle ran')"),
        "bytearray": {"x": Call(bytearray, 10**11)},
        "module": nn.Linear(2, 2),
        "list": [torch.zeros(3)],
        "nothing": {},
        "checkpoint": {"epoch": 3, "weights": list(good.values())},
        "other net": {"layer1.0.conv1.weight": torch.zeros(3)},
        "other training": torchvision_file(model, classifier=0.5),
        "gray": {**good, "0.weight": torch.zeros(4, 1, 3, 3)},
        "repeated": {"0.weight": repeated(1 << 20, 3, 1 << 10, 3), "31.weight": torch.zeros(1)},
        "whole numbers": {**good, "0.weight": torch.zeros(4, 3, 3, 3, dtype=torch.int64)},
        "narrow": {**good, "2.weight": torch.zeros(4, 3, 3, 3)},
        "another bias": {**good, "7.bias": torch.zeros(3)},
        "no bias": {key: value for key, value in good.items() if key != "7.bias"},
        "VGG19": {key: value for key, value in good.items() if not key.startswith("17.")},
    }[name]


REASONS = {
    "code": "imports (posix|nt).system; only tensors are read .weights_only=True",
    "eval": "imports __builtin__.eval",
    "bytearray": "imports __builtin__.bytearray",
    "module": "imports torch.nn.modules.linear.Linear",
    "list": "holds a list, expected a state dict",
    "nothing": "holds a dict, expected a state dict",
    "checkpoint": "'epoch' is a int, expected a state dict",
    "other net": "neither torchvision's VGG16 features, .* its keys are 'layer1.0.conv1.weight'",
    "other training": "classifier.0 holds numbers.*IMAGENET1K_V1",
    "gray": "does not read three channels",
    "repeated": "a tensor of shape .* is more than the file holds",
    "whole numbers": "'weight': torch.int64, expected floating point",
    "narrow": r"layer 'conv1_2'.*shape \(4, 3, 3, 3\) in the file",
    "another bias": r"layer 'conv2_2', blob 'bias': shape \(3,\) in the file, expected \(8,\)",
    "no bias": "layer 'conv2_2', blob 'bias': none in the file",
    "VGG19": r"no weights for 17 \(conv4_1\); VGG19 and VGG16 with batch norms are other nets",
}


@ZIPPED
@pytest.mark.parametrize("name", REASONS)
def test_refused(tmp_path, capfd, caffe_net, name, zipped):
    path = tmp_path / "x.pth"
    torch.save(content_of(name, caffe_net), path, _use_new_zipfile_serialization=zipped)
    model = blank()
    with pytest.raises(CaffeFileError, match=REASONS[name]) as caught:
        load_weights(model, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "code from a pickle ran" not in capfd.readouterr().out
    assert all((parameter == 7).all() for parameter in model.parameters())


def test_a_claim_beyond_the_file(tmp_path):
    """The form before 1.6 says how many values follow; PyTorch would allocate them first."""
    torch.save({"x": torch.zeros(300)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "x.pth").read_bytes()
    count = data.index(b"cpu") + 5  # then the count, a 2-byte integer
    assert data[count : count + 3] == b"M\x2c\x01"
    for claim, reason in (
        (b"J\xff\xff\xff\x7f", "a storage of 2147483647 values is more than the file holds"),
        (b"M\xff\x03", "its storages claim 4092 bytes, the file has"),
        (b"\x8a\x05\0\0\0\0\1", "a storage of 4294967296 values"),
    ):
        (tmp_path / "y.pth").write_bytes(data[:count] + claim + data[count + 3 :])
        with pytest.raises(CaffeFileError, match=reason):
            read_pth(tmp_path / "y.pth")


def rezipped(tmp_path, **options):
    torch.save({"x": torch.zeros(100_000)}, tmp_path / "x.pth")
    with (
        zipfile.ZipFile(tmp_path / "x.pth") as source,
        zipfile.ZipFile(tmp_path / "y.pth", "w", **options) as out,
    ):
        for name in source.namelist():
            out.writestr(name, source.read(name))
    return tmp_path / "y.pth"


def test_zips_that_torch_save_does_not_write(tmp_path):
    with pytest.raises(CaffeFileError, match=r"member '.*data.pkl': compressed"):
        read_pth(rezipped(tmp_path, compression=zipfile.ZIP_DEFLATED))
    assert torch.equal(read_pth(rezipped(tmp_path))["x"], torch.zeros(100_000))  # stored: fine
    with zipfile.ZipFile(tmp_path / "z.pth", "w") as out:
        out.writestr("readme.txt", "hello")
    with pytest.raises(CaffeFileError, match="it has no data"):
        read_pth(tmp_path / "z.pth")
    with zipfile.ZipFile(tmp_path / "many.pth", "w") as out:
        for index in range(50_000):
            out.writestr(f"{index:050d}", b"")
    with pytest.raises(CaffeFileError, match="more members than any net has tensors"):
        read_pth(tmp_path / "many.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"x": 1}, protocol=2))
    with pytest.raises(CaffeFileError, match="damaged PyTorch file"):
        read_pth(tmp_path / "plain.pth")


# --- through the command line -----------------------------------------------------------------------------


def test_convert_keeps_the_provenance(tmp_path, capsys, caffe_net):
    path = tmp_path / "vgg16_features-amdegroot-88682ab5.pth"
    torch.save(torchvision_file(caffe_net), path)
    command = ["convert", ASPP, str(path)]
    assert run_command([*command, str(tmp_path / "x.safetensors")]) == 0
    first = (tmp_path / "x.safetensors").read_bytes()
    assert run_command([*command, str(tmp_path / "y.safetensors")]) == 0
    assert (tmp_path / "y.safetensors").read_bytes() == first
    capsys.readouterr()
    assert run_command(["inspect", str(tmp_path / "x.safetensors")]) == 0
    out = capsys.readouterr().out
    data = path.read_bytes()
    for text in (
        f"from {path.name} (torchvision, VGG16_Weights.IMAGENET1K_FEATURES; its SHA-256 is NOT the published one",
        f"torchvision VGG16, features (RGB), {len(data)} bytes",
        f"SHA-256 {hashlib.sha256(data).hexdigest()}",
        "for name vgg16_aspp, prototxt vgg16_aspp_deploy.prototxt, filler_seed 0",
        "named as in Caffe: features.0 -> conv1_1, features.2 -> conv1_2,",
        "conv1_1: input channels from RGB to BGR",
        "loaded: conv1_1, conv1_2,",
        "missing: fc6_1, fc7_1, fc8-SEC_1,",
        "classifier: filled with NaN, as torchvision publishes it, and left out",
        "unused: none",
    ):
        assert text in out, text


def test_convert_spreads_where_told_to(tmp_path, capsys, caffe_net):
    torch.save(ssd_file(caffe_net), tmp_path / "vgg16_reducedfc.pth")
    command = ["convert", ASPP, str(tmp_path / "vgg16_reducedfc.pth"), str(tmp_path / "x.safetensors")]
    assert run_command([*command, "--spread-branches"]) == 0
    assert "spread fc6 -> fc6_1" in capsys.readouterr().out
    assert run_command(command) == 0
    assert "not in the model, ignored: fc6, fc7" in capsys.readouterr().out


def test_convert_wants_a_net_for_what_runs(tmp_path, capsys, caffe_net):
    save_safetensors(caffe_net, tmp_path / "x.safetensors")
    for name in ("y.onnx", "y.py"):
        assert run_command(["convert", str(tmp_path / "x.safetensors"), str(tmp_path / name)]) == 2
        assert (
            "needs the net, by its prototxt or name: repro convert NET SOURCE TARGET"
            in capsys.readouterr().err
        )
        assert not (tmp_path / name).exists()
