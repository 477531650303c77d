"""Image-level labels from every form, and what bad ones get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parity_tests.generated_coco import write_coco
from repro.cli import run_command
from repro.data import CLASS_NAMES, COCO_CLASS_NAMES, write_cues
from repro.data.labels import (
    CLASSIFIER_MEAN_BGR,
    LabelledImages,
    check_every_class_occurs,
    labels_of,
    read_labels,
)
from repro.errors import InputError

CLASSES = ("background", "cat", "dog", "traffic light")


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def annotation(*names: str) -> str:
    objects = "".join(
        f"<object><name>{name}</name><difficult>{index % 2}</difficult><part><name>head</name></part></object>"
        for index, name in enumerate(names)
    )
    return f"<annotation><filename>x.jpg</filename>{objects}</annotation>"


def test_voc_annotations(tmp_path):
    write(tmp_path / "2007_1.xml", annotation("dog", "cat", "dog"))
    write(tmp_path / "2007_2.xml", annotation("traffic light"))
    assert read_labels(tmp_path, CLASSES) == {"2007_1": [1, 2], "2007_2": [3]}


def test_voc_lists(tmp_path):
    write(tmp_path / "cat_train.txt", "a  1\nb -1\nc  0\n")
    write(tmp_path / "cat_val.txt", "d -1\n")
    write(tmp_path / "dog_train.txt", "a -1\nb  1\nc -1\n")
    write(tmp_path / "dog_val.txt", "d  1\r\n")
    assert read_labels(tmp_path, CLASSES[:3]) == {"a": [1], "b": [2], "c": [1], "d": [2]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "a.jpg,cat,dog\nb c.jpg,traffic light\n"),
        ("labels.csv", "\ufeffname,classes\r\na.jpg, cat, dog\r\nb c.jpg,traffic light,\r\n"),
        ("labels.csv", 'image,label\na.jpg,dog\n"b c.jpg","traffic light"\na.jpg,cat\n'),
    ],
)
def test_csv(tmp_path, name, text):
    assert read_labels(write(tmp_path / name, text), CLASSES) == {"a": [1, 2], "b c": [3]}


def test_text(tmp_path):
    path = write(tmp_path / "labels.txt", "a.jpg cat dog\n\nb\tdog\n")
    assert read_labels(path, CLASSES) == {"a": [1, 2], "b": [2]}


def test_cue_file(tmp_path):
    nothing = np.zeros((3, 0), np.int64)
    write_cues(tmp_path / "cues.h5", {4: ([2, 1], nothing), 0: ([3], nothing)})
    path = write(tmp_path / "list.txt", "x.jpg 4\ny.jpg 0\n")
    assert read_labels(tmp_path / "cues.h5", CLASSES, input_list=path) == {"x": [1, 2], "y": [3]}
    with pytest.raises(InputError, match=r"cues\.h5: image y has class 3, 1 to 2 expected"):
        read_labels(tmp_path / "cues.h5", CLASSES[:3], input_list=path)
    with pytest.raises(InputError, match="give the input_list"):
        read_labels(tmp_path / "cues.h5", CLASSES)


def test_the_released_cue_file(voc_sample):
    labels = read_labels(
        voc_sample / "localization_cues.pickle.gz", CLASS_NAMES, input_list=voc_sample / "input_list.txt"
    )
    assert len(labels) == 10582
    check_every_class_occurs(labels, CLASS_NAMES, "cues")


def test_coco(tmp_path):
    write_coco(tmp_path, train=2, val=1)
    labels = read_labels(tmp_path / "annotations" / "instances_train2014.json", COCO_CLASS_NAMES)
    assert labels == {"COCO_train2014_000000000003": [1, 2], "COCO_train2014_000000000010": [3, 4]}


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ({}, "nowhere", "nowhere: no such file or folder of labels"),
        ({"a.npz": ""}, "a.npz", "a.npz: unknown kind of labels; expected .csv"),
        ({"d/x.jpg": ""}, "d", "d: no list cat_<set>.txt and no .*Annotations expected"),
        ({"l.csv": "a.jpg,cat\nb.jpg,lion\n"}, "l.csv", "l.csv:2: 'lion' is not one of the classes cat, dog"),
        ({"l.csv": "a.jpg,background\n"}, "l.csv", "l.csv:1: 'background' is not one of the classes"),
        ({"l.csv": "a.jpg,cat\nb.jpg,\n"}, "l.csv", "l.csv:2: b.jpg has no label"),
        ({"l.txt": "a.jpg cat\nx/a.png dog\n"}, "l.txt", "l.txt:2: a.jpg and x/a.png would share"),
        ({"l.csv": "name,label\n"}, "l.csv", "l.csv: the list is empty"),
        ({"l.csv": b"a.jpg,c\xff\n"}, "l.csv", "l.csv: byte 7 is not UTF-8"),
        ({"d/a.xml": annotation("wolf")}, "d", "a.xml: 'wolf' is not one of the classes"),
        ({"d/a.xml": "<annotation>"}, "d", "a.xml: damaged"),
        (
            {"d/a.xml": '<!DOCTYPE a [<!ENTITY x "x"><!ENTITY y "&x;&x;">]><a>&y;</a>'},
            "d",
            "a.xml: damaged",
        ),
        (
            {"d/a.xml": '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>'},
            "d",
            "a.xml: damaged",
        ),
        ({"d/cat_t.txt": "a 2\n"}, "d", "cat_t.txt:1: 'a 2', '<image> -1|0|1' expected"),
        ({"d/cat_t.txt": "a 1\n"}, "d", "d: no list dog_<set>.txt"),
    ],
)
def test_bad_labels(tmp_path, files, source, message):
    for name, content in files.items():
        write(tmp_path / name, content)
    with pytest.raises(InputError, match=message) as caught:
        read_labels(tmp_path / source, CLASSES)
    assert "\n" not in str(caught.value)


def test_images_without_labels_and_classes_that_never_occur():
    labels = {"a": [1], "b": [], "c": [2]}
    assert labels_of(["c", "a"], labels, "l.csv") == {"c": [2], "a": [1]}
    for name in ("b", "d"):
        with pytest.raises(InputError, match=rf"l\.csv: no label for image {name}"):
            labels_of(["a", name], labels, "l.csv")
    with pytest.raises(InputError, match=r"l\.csv: no image of traffic light among the 3"):
        check_every_class_occurs(labels, CLASSES, "l.csv")


def test_classifier_input(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (33, 33, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    layer = LabelledImages({"a": tmp_path / "a.png"}, {"a": [1, 3]}, num_classes=4, size=33, mirror=True)
    want = (
        picture[:, :, ::-1].astype(np.float32).transpose(2, 0, 1)
        - np.array(CLASSIFIER_MEAN_BGR, np.float32)[:, None, None]
    )
    seen = set()
    for seed in range(8):
        item = layer.item(0, np.random.default_rng(seed))
        assert item["labels"].tolist() == [1, 0, 1]
        flipped = not np.array_equal(item["images"], want)
        np.testing.assert_array_equal(item["images"], want[:, :, ::-1] if flipped else want)
        seen.add(flipped)
    assert seen == {True, False}


def test_labels_as_csv(tmp_path, capsys):
    """Any form becomes the CSV, and reads back the same."""
    write_coco(tmp_path / "coco", train=3, val=1)
    source = tmp_path / "coco" / "annotations" / "instances_train2014.json"
    target = tmp_path / "labels.csv"
    assert run_command(["data", "labels", str(source), str(target), "--config", "dsrg_vgg16_coco"]) == 0
    assert capsys.readouterr().out == f"{target}: 3 images\n"
    lines = target.read_text().splitlines()
    assert lines[:2] == ["image,classes", "COCO_train2014_000000000003,person,bicycle"]
    assert read_labels(target, COCO_CLASS_NAMES) == read_labels(source, COCO_CLASS_NAMES)
    assert (
        run_command(["data", "labels", str(source), str(tmp_path / "x.txt"), "--config", "dsrg_vgg16_coco"])
        == 2
    )
    assert "x.txt: expected a name that ends in .csv" in capsys.readouterr().err
    assert not (tmp_path / "x.txt").exists()


@pytest.mark.parametrize("space", ['xmlns="http://example.org"', 'xmlns:v="http://example.org"'])
def test_annotations_in_a_name_space(tmp_path, space):
    prefix = "v:" if "xmlns:v" in space else ""
    (tmp_path / "a.xml").write_text(
        f"<{prefix}annotation {space}><{prefix}object><{prefix}name>dog</{prefix}name></{prefix}object>"
        f"</{prefix}annotation>"
    )
    assert read_labels(tmp_path, CLASS_NAMES) == {"a": [CLASS_NAMES.index("dog")]}


def test_no_label_at_all_is_an_error(tmp_path, capsys):
    for name in "ab":
        (tmp_path / f"{name}.xml").write_text("<annotation><obj><name>dog</name></obj></annotation>")
    assert run_command(["data", "labels", str(tmp_path), str(tmp_path / "labels.csv")]) == 2
    assert "no label of any class in it, for 2 images" in capsys.readouterr().err
    assert not (tmp_path / "labels.csv").exists()
