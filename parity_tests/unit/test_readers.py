"""Foreign files of every kind that once ended in a traceback, a crash or gigabytes: one line, or the right reading."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from parity_tests.bad_input import small_net
from repro.cli import run_command
from repro.config import load_config
from repro.data import CocoInstances
from repro.data.coco import ShallowJson, runs_of
from repro.data.labels import read_labels
from repro.data.voc_xml import read_xml
from repro.errors import InputError, StoppedError
from repro.files import read_json
from repro.models.inspection import describe_file
from repro.report.submission import check_submission
from repro.run_folder import Run
from repro.training.csv_log import CsvLog, read_log
from repro.yaml12 import load_yaml
from weights_conversion import read_prototxt, read_pth
from weights_conversion.conversion import read_snapshot

CLASSES = ("background", "cat", "dog")


def one_line(caught, *parts):
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    for part in parts:
        assert part in message, message


# --- labels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding", ["gb2312", "GBK", "gb18030", "big5", "Shift_JIS", "euc-jp", "EUC-KR", "utf-16"]
)
def test_xml_in_the_encoding_that_it_declares(tmp_path, encoding):
    words = {"EUC-KR": "그림", "euc-jp": "画像", "Shift_JIS": "画像", "big5": "圖片"}.get(encoding, "图片")
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n<annotation><folder>{words}</folder>'
    text += "<object><name>dog</name></object></annotation>"
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    assert read_xml(tmp_path / "a.xml").findtext("folder") == words
    assert read_labels(tmp_path, CLASSES) == {"a": [2]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'<?xml version="1.0" encoding="klingon"?><a/>', "'klingon' is unknown"),
        (b'<?xml version="1.0" encoding="rot13"?><n/>', "none of XML's"),
        (b'<?xml version="1.0" encoding="idna"?><a/>', "none of XML's"),
        (b'<?xml version="1.0" encoding="gb2312"?><a>\xff\xff</a>', "text in gb2312"),
        (b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY e "x">]><a>&e;</a>', "damaged"),
        (b"<a>" * 100_000, "damaged"),
        (b"", "damaged"),
    ],
)
def test_xml_that_is_refused(tmp_path, content, reason):
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_labels(tmp_path, CLASSES)
    one_line(caught, "a.xml", reason)


@pytest.mark.parametrize(
    "text",
    [
        'a.jpg,"cat"\nb.jpg,"dog\nc.jpg,cat\n',
        'a.jpg,cat\rb.jpg,dog\rc.jpg,"cat"\r',
        'a.jpg,cat\nb.jpg,dog"\nc.jpg,cat\n' + "\n" * 100_000,
    ],
)
def test_stray_quotes_and_old_line_ends_in_csv(tmp_path, text):
    (tmp_path / "a.csv").write_text(text, newline="")
    assert read_labels(tmp_path / "a.csv", CLASSES) == {"a": [1], "b": [2], "c": [1]}


def test_a_line_that_no_csv_has(tmp_path):
    (tmp_path / "a.csv").write_text(f"image,class\na.jpg,{'x' * 200_000}\n")
    with pytest.raises(InputError) as caught:
        read_labels(tmp_path / "a.csv", CLASSES)
    one_line(caught, "a.csv:2", "more than 100000 letters")


@pytest.mark.parametrize("content", [b"a\0.jpg,cat\n", "a.jpg,cat\n".encode("utf-16-le")])
def test_zero_bytes_in_a_table(tmp_path, content):
    path = tmp_path / "a.csv"
    path.write_bytes(b"image,classes\n" + content)
    with pytest.raises(InputError) as caught:
        read_labels(path, CLASSES)
    one_line(caught, "a.csv:2", "zero byte")


def test_images_without_a_label_are_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("image,dog,cat\na.jpg,0,0\nb.jpg,1,0\n")
    assert run_command(["data", "labels", "a.csv", "labels.csv"]) == 0
    assert capsys.readouterr().out == "labels.csv: 1 images; 1 without a label are left out\n"


# --- COCO -------------------------------------------------------------------------------------------------


def coco(path, segmentation, **more):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 20}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation}],
        "categories": [{"id": 1, "name": "cat"}],
        **more,
    }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "segmentation",
    [
        [[0, 0, 1e300, 0, 1e300, 1e300]],
        [[0, 0, 1e8, 0, 1e8, 1e8]],
        [[0, 0, float("nan"), 0, 5, 5]],
        [[0, 0, 61, 0, 5, 5]],
        [[0, 20, 20, 0] * 3000],
        [[0, 0, 5, 5]],
        [[0, 0, 5, 5, "7", 7]],
        [[0, 0, 5, 5, 7]],
        [5],
        [],
        None,
        "x",
        {"counts": None, "size": [20, 20]},
        {"counts": [100, -1, 301], "size": [20, 20]},
        {"counts": [2**70], "size": [20, 20]},
        {"counts": [400.5], "size": [20, 20]},
        {"counts": [100], "size": [20, 20]},
        {"counts": "zzzz", "size": [20, 20]},
        {"counts": "é~", "size": [20, 20]},
        {"counts": "", "size": [20, 20]},
        {"counts": [400], "size": [400, 1]},
    ],
)
def test_outlines_that_coco_must_not_see(tmp_path, segmentation):
    path = coco(tmp_path / "a.json", segmentation)
    with pytest.raises(InputError) as caught:
        list(CocoInstances(path, CLASSES).write_masks(tmp_path))
    one_line(caught, "a.json")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"id": 2, "file_name": "a.png"}, "a.jpg and a.png would share"),
        ({"id": 2, "file_name": "other/a.jpg"}, "a.jpg and other/a.jpg would share"),
        ({"id": 1, "file_name": "b.jpg"}, "image 1 comes again"),
    ],
)
def test_two_images_of_one_name_or_id(tmp_path, second, said):
    size = {"height": 20, "width": 20}
    images = [{"id": 1, "file_name": "a.jpg", **size}, {**second, **size}]
    path = coco(tmp_path / "a.json", [[0, 0, 5, 5, 0, 5]], images=images)
    with pytest.raises(InputError) as caught:
        CocoInstances(path, CLASSES)
    one_line(caught, "a.json", said)


def test_runs_are_read_as_coco_reads_them():
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = np.asfortranarray(rng.random((37, 41)) < rng.random(), np.uint8)
        packed = coco_mask.encode(mask)
        runs = runs_of(packed["counts"].decode())
        flat = np.repeat(np.arange(len(runs)) % 2, runs).reshape(41, 37).T
        np.testing.assert_array_equal(flat, mask)


@pytest.mark.parametrize(
    "text",
    [
        '{"categories":' + "[" * 50_000,
        '{"x":' + '{"a":' * 50_000,
        '{"categories":[null]}',
        '{"categories":[5]}',
        '{"categories":[{"id":' + "9" * 6000 + ',"name":"cat"}]}',
        '{"categories":[{"id":1,"name":"c\\u0000t"}]}',
        '{"categories":[{"id":1,"name":' + "[" * 40 + "]" * 40 + "}]}",
        "\x00",
        "[",
    ],
)
def test_json_that_is_no_annotation_file(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError) as caught:
        CocoInstances(tmp_path / "a.json", CLASSES)
    one_line(caught, "a.json")


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_depth_is_counted_outside_of_texts_and_across_blocks(size):
    good = json.dumps({"a": ["[" * 300, '\\"[[', "\\\\", [[1]]] * 9}).encode() * 1
    shallow = ShallowJson(io.BytesIO(good))
    assert b"".join(iter(lambda: shallow.read(size), b"")) == good
    deep = ShallowJson(io.BytesIO(b'"\\\\' + b'"' + b"[" * 51))
    with pytest.raises(ValueError, match="nest deeper"):
        list(iter(lambda: deep.read(size), b""))


# --- weights, states and prototxts ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_read(tmp_path, dtype):
    save_file({"conv1_1.weight": torch.tensor([[1.0, -0.5]]).to(dtype)}, tmp_path / "a.safetensors")
    assert any("-0.5 to 1" in line for line in describe_file(tmp_path / "a.safetensors"))
    torch.save({"conv1_1.weight": torch.tensor([[1.0, -0.5]]).to(dtype)}, tmp_path / "a.pth")
    assert any("-0.5 to 1" in line for line in describe_file(tmp_path / "a.pth"))


def test_integers_in_safetensors_are_refused(tmp_path):
    save_file({"conv1_1.weight": torch.tensor([1, 2])}, tmp_path / "a.safetensors")
    with pytest.raises(InputError) as caught:
        describe_file(tmp_path / "a.safetensors")
    one_line(caught, "conv1_1.weight", "int64")


@pytest.mark.parametrize("zipped", [True, False])
def test_parameters_are_read_as_tensors(tmp_path, zipped):
    state = small_net().state_dict(keep_vars=True)
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    read = read_pth(tmp_path / "a.pth")
    assert not any(tensor.requires_grad for tensor in read.values())
    assert describe_file(tmp_path / "a.pth")


@pytest.mark.parametrize("iteration", [float("inf"), float("nan"), "x", None, [1]])
def test_a_state_of_no_iteration(tmp_path, iteration):
    torch.save({"iteration": iteration, "current_step": 0, "history": []}, tmp_path / "a.state")
    with pytest.raises(InputError) as caught:
        read_snapshot(tmp_path / "a.state")
    one_line(caught, "a.state")


def test_a_field_of_an_empty_list_is_no_field(tmp_path):
    (tmp_path / "a.prototxt").write_text('name: "x" layer { type: [] name: "a" top: [] }')
    assert "type" not in read_prototxt(tmp_path / "a.prototxt").layers[0]


# --- archives ---------------------------------------------------------------------------------------------


def test_a_submission_with_a_name_of_megabytes(tmp_path):
    ids = [f"2008_{number:06}" for number in range(1456)]
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("a" * (5 << 20)))
    with pytest.raises(InputError) as caught:
        check_submission(tmp_path / "a.tar.gz", ids)
    one_line(caught, "a.tar.gz")


def test_a_submission_of_bad_blocks(tmp_path):
    ids = [f"2008_{number:06}" for number in range(1456)]
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("results"), io.BytesIO())
    data = bytearray((tmp_path / "a.tar.gz").read_bytes())
    data[20:40] = b"\xff" * 20
    (tmp_path / "a.tar.gz").write_bytes(data)
    with pytest.raises(InputError) as caught:
        check_submission(tmp_path / "a.tar.gz", ids)
    one_line(caught, "a.tar.gz")


# --- YAML and JSON ----------------------------------------------------------------------------------------


def alias_bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        alias_bomb(),
        "a: &a [*a]",
        "[" * 1000,
        "a: " + "9" * 5000,
        "a: !!timestamp 2024-99-99",
        "a: !!int x",
        "a: !!float x",
        "a: !!bool x",
        "a: !!binary é",
        "? [a]\n: 1",
        "- " * 300 + "a",
        "x" * 300_000,
        "[" + "1," * 30_000 + "]",
        "a: *nowhere",
        "\x00",
    ],
)
def test_yaml_that_is_refused(tmp_path, text, capsys):
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)
    (tmp_path / "p.yaml").write_text(text)
    assert run_command(["train", "--config", str(tmp_path / "p.yaml")]) == 2
    error = capsys.readouterr().err
    assert "internal error" not in error
    assert len(error.splitlines()) == 1


def test_yaml_aliases_are_read_where_they_are_few():
    assert load_yaml("a: &a {b: 1}\nc: {<<: *a, d: *a}") == {"a": {"b": 1}, "c": {"b": 1, "d": {"b": 1}}}
    assert load_yaml("2024-01-01") == "2024-01-01"


@pytest.mark.parametrize("value", ["9" * 5000, "!!timestamp 2024-99-99", "[" * 1000, "&a [*a]"])
def test_overrides_that_are_no_values(value):
    with pytest.raises(InputError) as caught:
        load_config("mini", [f"stage1.solver.max_iter={value}"])
    one_line(caught, "max_iter")


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", b"9" * 5000, b"[]" * (9 << 20)])
def test_json_that_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(tmp_path / "a.json", "a table")
    one_line(caught, "a.json", "a table expected")


# --- what runs leave --------------------------------------------------------------------------------------

COLUMNS = ("iteration", "lr", "loss")
ROWS = [f"{iteration},0.1,{9 - iteration / 10}\n" for iteration in range(0, 40, 2)]


def reopened(path, iteration, every=2):
    CsvLog(path, COLUMNS, iteration, every).file.close()
    with path.open() as file:
        return [int(row["iteration"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("content", "kept", "said"),
    [
        ("iteration,lr,loss\n" + "".join(ROWS), list(range(0, 20, 2)), ""),
        ("iteration,lr,loss\n" + "".join(ROWS) + "4", list(range(0, 20, 2)), ""),
        ("iteration,lr,loss\n" + "".join(ROWS[:4]) + "8,0", [0, 2, 4, 6], "from iteration 8 to 19 are lost"),
        ("", [], "are lost"),
        ("iteration,lr,loss\n" + "".join(ROWS).replace("4,0.1", "4,\xff", 1), None, "1 damaged rows"),
        ("iteration,lr,loss\n" + "".join(ROWS).replace("\n4,0.1", "\n,0.1", 1), None, "1 damaged rows"),
        ("iterat", [], "are lost"),
        ("".join(ROWS), list(range(0, 20, 2)), ""),  # without the line of the names
    ],
)
def test_a_damaged_log_keeps_its_whole_rows(tmp_path, caplog, content, kept, said):
    path = tmp_path / "log.csv"
    path.write_text(content, encoding="latin1")
    found = reopened(path, 20)
    assert found == (kept if kept is not None else [0, 2, *range(6, 20, 2)])
    assert said in caplog.text if said else not caplog.text


@pytest.mark.parametrize("steps", [[], "x", {"stage1": "x"}, None])
def test_a_manifest_whose_steps_are_damaged_is_rebuilt(tmp_path, caplog, steps):
    run = Run(load_config("mini", [f"output={tmp_path}"]), torch.device("cpu"), tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"steps": steps}))
    (tmp_path / "stage1").mkdir()
    (tmp_path / "stage1" / "settings.json").write_text('{"a": 1}')
    (tmp_path / "stage1" / "done.json").write_text("{}")
    assert run.manifest() == {"steps": {"stage1": {"settings": {"a": 1}, "resumed": True, "rebuilt": True}}}
    assert "rebuilt" in caplog.text


def test_rows_that_stood_farther_apart_are_not_lost(tmp_path, caplog):
    path = tmp_path / "log.csv"
    path.write_text("iteration,lr,loss\n0,1,1\n10,1,1\n")
    assert reopened(path, 20, every=1) == [0, 10]
    assert not caplog.text


def test_a_damaged_log_is_read(tmp_path, caplog):
    (tmp_path / "log.csv").write_bytes(b"iteration,loss\n0,1\n1,\xff\n2\n3,\n4,5\n")
    rows = read_log(tmp_path / "log.csv")
    assert [row["iteration"] for row in rows] == [0, 3, 4]
    assert np.isnan(rows[1]["loss"])
    assert "2 damaged rows" in caplog.text


# --- the command line -------------------------------------------------------------------------------------


def broken(error):
    def raises(*arguments, **named):
        path = "some.file"
        assert path
        raise error

    return raises


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (
            IndexError("list index\nout of range"),
            2,
            "some.file: internal error: IndexError: list index out of range",
        ),
        (ValueError("embedded null byte"), 2, "a path with a zero byte"),
        (RecursionError(), 2, "internal error: RecursionError"),
        (InputError("a: b"), 2, "repro: a: b"),
        (StoppedError("x", 5), 5, "repro: x"),
        (FileNotFoundError(2, "No such file", "f"), 2, "f: No such file"),
    ],
)
def test_whatever_is_left_becomes_one_line(monkeypatch, capsys, error, status, said):
    monkeypatch.setattr("repro.models.inspection.describe_file", broken(error))
    assert run_command(["inspect", "x"]) == status
    found = capsys.readouterr().err
    assert said in found
    assert len(found.splitlines()) == 1


def test_debug_keeps_the_traceback(monkeypatch, capsys):
    monkeypatch.setattr("repro.models.inspection.describe_file", broken(IndexError("x")))
    assert run_command(["--debug", "inspect", "x"]) == 2
    found = capsys.readouterr().err
    assert "Traceback" in found
    assert found.splitlines()[-1].startswith("repro: some.file: internal error: IndexError: x")


def test_a_zip_member_of_bad_blocks_in_a_state(tmp_path):
    torch.save({"iteration": 1}, tmp_path / "a.state")
    with zipfile.ZipFile(tmp_path / "a.state") as archive:
        name = archive.namelist()[0]
    data = (tmp_path / "a.state").read_bytes()
    (tmp_path / "a.state").write_bytes(data.replace(name.encode(), b"\xff" * len(name)))
    with pytest.raises(InputError) as caught:
        read_snapshot(tmp_path / "a.state")
    one_line(caught, "a.state")
