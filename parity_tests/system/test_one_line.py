"""Bad input that reaches a library before it reaches a check of ours: one line with the file's name, exit status 2."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from parity_tests.conftest import CAFFE_FILES, ROOT
from repro.cli import run_command
from repro.config import load_config
from repro.cues.generate import read_saliency
from repro.data.images import read_image_rgb
from repro.data.voc import read_mask
from repro.errors import InputError
from repro.models import load_net
from repro.models.inspection import describe_file
from weights_conversion import read_prototxt


def refused(call, *parts: object) -> None:
    """The call raises InputError of one line with these parts in it."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert len(message) < 1000
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message


# --- prototxts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", ["9" * 5000, "-" + "1" * 5000, "0x" + "f" * 5000, "0" + "7" * 5000, "0" + "9" * 5000]
)
def test_a_prototxt_with_a_number_of_thousands_of_digits(tmp_path, capsys, number):
    path = tmp_path / "net.prototxt"
    path.write_text(
        f'name: "n" layer {{ name: "a" type: "Convolution" convolution_param {{ pad: {number} }} }}'
    )
    refused(lambda: read_prototxt(path), path, "line 1", "64 bits")
    assert run_command(["inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("axes", [33, 32, 2])
def test_shapes_beyond_what_caffe_takes(tmp_path, axes):
    """Their product has thousands of digits, which Python does not print."""
    path = tmp_path / "net.prototxt"
    dims = f"dim: {2**63 - 1} " * axes
    path.write_text(
        f'input: "x" input_shape {{ {dims}}} layer {{ name: "a" type: "ReLU" bottom: "x" top: "a" }}'
    )
    refused(lambda: describe_file(path), path, "input x: ", "Caffe takes")
    refused(lambda: load_net(path), path, "input x: ", "Caffe takes")
    layer = 'type: "InnerProduct" inner_product_param { num_output: 4294967295 }'
    size = "dim: 4 dim: 100000"
    path.write_text(f'input: "x" input_shape {{ {size} }} layer {{ name: "a" {layer} bottom: "x" top: "a" }}')
    assert any("(more values than Caffe takes" in line for line in describe_file(path))


def test_a_git_lfs_pointer_is_called_so_whatever_its_name(tmp_path):
    for name in ("a.caffemodel", "a.prototxt", "a.txt"):
        path = tmp_path / name
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 8\n")
        refused(lambda path=path: describe_file(path), path, "git lfs pull")


# --- check with an OpenCV that cannot -------------------------------------------------------------------


@pytest.mark.parametrize("names", [["readNetFromONNX"], ["readNetFromCaffe", "DNN_BACKEND_OPENCV"], []])
def test_check_with_an_opencv_without_caffe_importer(monkeypatch, capsys, names):
    """5.0 dropped it; one that stops half-way through is told, too."""
    fake = SimpleNamespace(
        __version__="5.0.0",
        error=type("error", (Exception,), {}),
        utils=SimpleNamespace(
            logging=SimpleNamespace(
                getLogLevel=lambda: 0, setLogLevel=lambda level: level, LOG_LEVEL_SILENT=0
            )
        ),
        dnn=SimpleNamespace(**dict.fromkeys(names, lambda *files: None)),
    )
    monkeypatch.setitem(sys.modules, "cv2", fake)
    source = CAFFE_FILES / "vgg16_largefov"
    assert run_command(["check", f"{source}_deploy.prototxt", f"{source}.caffemodel"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert "this OpenCV (5.0.0) has no Caffe importer" in error[-1]
    assert len(error) == 1


# --- a Ctrl-C during import -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "time.sleep(60)",
        "try:\n    time.sleep(60)\nexcept BaseException:\n    raise ImportError('interrupted')",
        "try:\n    time.sleep(60)\nexcept BaseException:\n    pass",
    ],
)
@pytest.mark.parametrize("name", ["typer", "torch"])  # before the verb is known, and by the verb
def test_ctrl_c_while_modules_are_imported(tmp_path, name, body):
    """Whatever the module at hand would make of a KeyboardInterrupt."""
    module = f"import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\n{body}\n"
    (tmp_path / f"{name}.py").write_text(module)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "repro", "inspect", "x"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "repro: interrupted\n")


# --- a zero byte where a file's name is expected ----------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("output", 'output: "a\\0b"'),
        ("dataset.root", 'dataset: {root: "a\\0b"}'),
        ("stage1.data.list", 'stage1: {data: {list: "a\\0b"}}'),
        ("stage1.init.weights", 'stage1: {init: {weights: "\\0"}}'),
        ("nonsense.3", 'nonsense: [1, 2, 3, "\\0"]'),
    ],
)
def test_a_zero_byte_in_a_profile(tmp_path, key, text):
    path = tmp_path / "p.yaml"
    path.write_text(f"base: mini\nname: p\n{text}\n")
    refused(lambda: load_config(str(path)), path, f"{key}: ", "zero byte")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--config", "a\0b"], "zero byte"),
        (["train", "--config", "mini", "output=a\0b"], "output: a zero byte"),
        (["train", "--config", "mini", "data.list=a\0b"], "stage1.data.list: a zero byte"),
        (["inspect", "a\0b"], "null byte"),
        (["predict", "--config", "mini", "--weights", "a\0b", "--images", "x", "--out", "o"], "null byte"),
    ],
)
def test_a_zero_byte_on_the_command_line(capsys, arguments, said):
    assert run_command(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert "\0" not in error


def test_a_zero_byte_in_a_base(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text('base: "a\\0b"\nname: p\n')
    refused(lambda: load_config(str(path)), path, "base", "zero byte")


# --- deflate blocks that are none -------------------------------------------------------------------------


def with_bad_blocks(data: bytes, level: int = 6) -> bytes:
    """A PNG whose compressed pixels begin well and go on as no deflate block does, with good check sums."""
    at = data.index(b"IDAT")
    length = int.from_bytes(data[at - 4 : at], "big")
    pixels = bytearray(data[at + 4 : at + 4 + length])
    pixels[len(pixels) // 2 :] = b"\xff" * (len(pixels) - len(pixels) // 2)
    check = zlib.crc32(b"IDAT" + pixels).to_bytes(4, "big")
    return data[: at + 4] + bytes(pixels) + check + data[at + 8 + length :]


@pytest.mark.parametrize(("mode", "read"), [("RGB", read_image_rgb), ("L", read_mask), ("P", read_mask)])
def test_bad_deflate_blocks_in_a_png(tmp_path, mode, read):
    path = tmp_path / "a.png"
    shape = (40, 50, 3) if mode == "RGB" else (40, 50)
    pixels = np.random.default_rng(0).integers(0, 21, shape).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    path.write_bytes(with_bad_blocks(path.read_bytes()))
    refused(lambda: read(path), path, "damaged")


def zipped(path: Path, *, is_damaged: bool) -> None:
    """Overwrite a zip file's members by the same, compressed, or by what no inflater takes."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        places = [
            (member.header_offset + 30 + len(member.filename), member.compress_size)
            for member in archive.infolist()
        ]
    data = bytearray(path.read_bytes())
    for at, size in places if is_damaged else ():
        data[at : at + size] = b"\xff" * size
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("is_damaged", [True, False])
def test_bad_deflate_blocks_in_an_archive_of_arrays(tmp_path, name, is_damaged):
    """NumPy tells an archive by its content, whatever its name."""
    np.savez(tmp_path / "b.npz", a=np.ones((3, 4)))
    zipped(tmp_path / "b.npz", is_damaged=is_damaged)
    path = (tmp_path / "b.npz").rename(tmp_path / name)
    refused(lambda: describe_file(path), path)
    saliency = path.rename(tmp_path / "s.npy")
    refused(lambda: read_saliency(saliency, (3, 4), (3, 4)), saliency, "one NumPy array expected")


def test_bad_deflate_blocks_in_a_pth(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"conv1_1.weight": torch.ones(4, 4)}, path)
    zipped(path, is_damaged=True)
    refused(lambda: describe_file(path), path)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 4), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (3, -4), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3, 4), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': ('x',), }",
        "[" * 5000,
        "",
    ],
)
def test_saliency_maps_that_claim_what_they_do_not_hold(tmp_path, header):
    text = header.encode() + b"\n"
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(96))
    refused(lambda: read_saliency(path, (3, 4), (3, 4)), path)
