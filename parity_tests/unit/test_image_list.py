"""Lists of images: every form, for every verb, and what bad ones get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repro.cli import run_command
from repro.cli.shared import images_of
from repro.constants import VOID
from repro.data import LabelMapDataset, write_mask
from repro.data.image_list import (
    CueLine,
    LabelLine,
    list_line,
    read_cue_indices,
    read_id_list,
    read_label_list,
    read_pairs_list,
)
from repro.errors import InputError


@pytest.fixture
def list_of(tmp_path):
    def write(content: bytes | str):
        path = tmp_path / "list.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    "content",
    [
        *("a\nb\n", "a\r\nb\r\n", "\n  a \n\nb", "\ufeffa\nb\n", "\ufeffa\r\nb\r\n".encode("utf-16-le")),
        *("a.jpg\r\nb.jpg\r\n".encode(kind) for kind in ("utf-16-le", "utf-16-be")),
        *(
            "a.jpg\nb.PNG\n",
            "a.jpg 3\nb.jpg 0\n",
            "x/a.jpg\n/b.jpg\n",
            '"a"\n"b.jpg"\n',
            "a a.png\r\nb b.png\r\n",
        ),
        "/JPEGImages/a.jpg /SegmentationClassAug/a.png\n/JPEGImages/b.jpg /SegmentationClassAug/b.png\n",
    ],
)
def test_id_lists(list_of, content):
    assert read_id_list(list_of(content)) == ["a", "b"]


def test_paths_of_windows(list_of):
    path = list_of("JPEGImages\\x.jpg Masks\\x.png\r\n\\JPEGImages\\y.jpg \\Masks\\y.png\r\n")
    assert read_id_list(path) == ["x", "y"]
    assert read_label_list(path)[0] == LabelLine("JPEGImages/x.jpg", "Masks/x.png", 1)
    name = "a\\b.jpg"  # a name of its own under Linux
    assert read_pairs_list(list_of(list_line(name, 3))) == [CueLine(name, 3, 1)]


def test_pairs_and_label_lists(list_of):
    path = list_of("x.jpg 3\r\n\r\ny.jpg\t0\nx.jpg 3\n")
    assert read_pairs_list(path) == [CueLine("x.jpg", 3, 1), CueLine("y.jpg", 0, 3), CueLine("x.jpg", 3, 4)]
    assert read_label_list(list_of("a/x.jpg\n")) == [LabelLine("a/x.jpg", "x.png", 1)]
    path = list_of("/JPEGImages/x.jpg /labels/x.png\n")
    assert read_label_list(path) == [LabelLine("/JPEGImages/x.jpg", "/labels/x.png", 1)]


def test_sample_list(voc_sample):
    lines = read_pairs_list(voc_sample / "input_list.txt")
    assert len(lines) == 10582
    assert lines[0] == CueLine("2008_007028.jpg", 0, 1)
    assert sorted(line.cue_index for line in lines) == list(range(10582))


@pytest.mark.parametrize(
    ("read", "content", "reason"),
    [
        (read_id_list, "", "is empty"),
        (read_id_list, "\n \n", "is empty"),
        (read_id_list, "a\nb c\n", ":2: 'b c'; expected '<image>', .* names with spaces in double quotes"),
        (read_id_list, "a\nb\na\n", ":3: 'a' comes again after line 1; expected each name once"),
        (read_id_list, b"a\n\xff\xfe\n", "not UTF-8"),
        (read_id_list, "a\n../b\n", ":2: '../b' leads out of its folder"),
        (read_id_list, "a/../../b\n", ":1: 'a/../../b' leads out"),
        (read_id_list, "..\n", ":1: '..' leads out"),
        (read_id_list, "a\\..\\b\n", ":1: .* leads out"),
        (read_id_list, "a\0b\n", ":1: there is a zero byte"),
        (read_id_list, '"a\\u0000b"\n', ":1: 'a.x00b' leads out"),
        (read_id_list, "/\n", ":1: '/'; expected '<image>'"),
        (read_id_list, "# val\na\n", ":1: '# val': lists have no comments"),
        (read_pairs_list, "a.jpg 1\n #b.jpg 2\n", ":2: '#b.jpg 2': lists have no comments"),
        (read_id_list, "a.jpg,1\n", ":1: 'a.jpg,1': a ',' stands between the fields; expected a space"),
        (read_label_list, "a.JPG;a.png\n", ":1: 'a.JPG;a.png': a ';' stands between the fields"),
        (read_id_list, "a\nb\n".encode("utf-32-le"), ":1: there is a zero byte; .* saved as UTF-8"),
        (read_id_list, "a\nb 2\n", ":2: 'b 2'; expected an image alone as in line 1"),
        (read_id_list, "a.jpg 1\nb.jpg b.png\n", ":2: 'b.jpg b.png'; expected an image and a cue index"),
        (read_id_list, "a/x.jpg\nb/x.png\n", ":2: 'x' comes again after line 1"),
        (read_pairs_list, "../x.jpg 1\n", ":1: '../x.jpg' leads out"),
        (read_label_list, "x.jpg a/../../y.png\n", ":1: 'a/../../y.png' leads out"),
        (read_pairs_list, "", "is empty"),
        (read_pairs_list, "x.jpg 1\ny.jpg\n", ":2: 'y.jpg'; expected '<image> <cue index>'"),
        (read_pairs_list, "x.jpg 1 2\n", ":1: 'x.jpg 1 2'"),
        (read_pairs_list, "x.jpg -1\n", ":1: cue index '-1'"),
        (read_pairs_list, "x.jpg 1.0\n", ":1: cue index '1.0'"),
        (read_pairs_list, "x.jpg 1_0\n", ":1: cue index '1_0'"),
        (read_pairs_list, "x.jpg cat\n", ":1: cue index 'cat'"),
        (read_pairs_list, "x.jpg " + "9" * 30, ":1: cue index"),
        (read_label_list, "x.jpg y.png\nx.jpg\n", ":2: 'x.jpg'; expected an image and its mask"),
        (read_label_list, "x.jpg 3\n", ":1: 'x.jpg 3'; expected '<image> <label>.png'"),
        (read_label_list, "x y z\n", ":1: 'x y z'"),
        (read_label_list, "", "is empty"),
    ],
)
def test_bad_lists_name_file_line_and_what_was_expected(list_of, read, content, reason):
    path = list_of(content)
    with pytest.raises(InputError, match=reason) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["#1.jpg", "a.jpg,b.jpg", "a.png;1", "my #1.jpg"])
def test_names_that_look_like_something_else_in_double_quotes(list_of, name):
    assert read_pairs_list(list_of(f'"{name}" 3\n')) == [CueLine(name, 3, 1)]
    assert read_pairs_list(list_of(list_line(name, 3))) == [CueLine(name, 3, 1)]


@pytest.mark.parametrize("read", [read_id_list, read_pairs_list, read_label_list])
def test_missing_lists(tmp_path, read):
    with pytest.raises(InputError, match="no such list"):
        read(tmp_path / "absent.txt")
    with pytest.raises(InputError, match="a folder, a file expected"):
        read(tmp_path)


FORMS = {
    "pairs": '/JPEGImages/x.jpg /Masks/x.png\n"/JPEGImages/my y.jpg" "/Masks/my y.png"\n',
    "files": '\ufeffx.jpg\r\n"my y.jpg"\r\n',
    "names": 'x\n"my y"\n',
}


@pytest.fixture
def tree(tmp_path):
    """Two images, in JPEGImages and beside it, and their masks."""
    rng = np.random.default_rng(0)
    for name in ("x", "my y"):
        for folder in (tmp_path, tmp_path / "JPEGImages"):
            folder.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (9, 8, 3), np.uint8)).save(folder / f"{name}.jpg")
        for folder in (tmp_path, tmp_path / "Masks"):
            write_mask(folder / f"{name}.png", np.eye(9, 8, dtype=np.uint8))
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
def test_one_list_serves_training_prediction_and_evaluation(tree, list_of, capsys, form):
    path = list_of(FORMS[form])
    assert read_id_list(path) == ["x", "my y"]
    layer = LabelMapDataset(tree, tree, read_label_list(path), crop_size=(9, 9))
    assert [Path(image).stem for image in layer.image_paths()] == ["x", "my y"]
    assert set(np.unique(layer.item(1, np.random.default_rng(0))["label"])) == {0, 1, VOID}
    assert list(images_of(tree / "JPEGImages", path)) == ["x", "my y"]
    scored = ["evaluate", "--pred", tree, "--gt", tree / "Masks", "--list", path, "--num-classes", "2"]
    assert run_command(list(map(str, scored))) == 0
    assert "images                      2" in capsys.readouterr().out


def test_a_name_without_suffix_that_has_no_image_is_named(tree, list_of):
    with pytest.raises(InputError, match=r"list\.txt:2: no such file: .*/z$"):
        LabelMapDataset(tree, tree, read_label_list(list_of("x\nz\n")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 0\na.jpg 5\n", "list.txt:2: a has the cue index 5, and 0 before it"),
        ("a.jpg 0\nb.jpg 0\n", "list.txt:2: b has the cue index 0 of a"),
    ],
)
def test_each_image_has_cues_of_its_own(tmp_path, text, message):
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_cue_indices(path)
