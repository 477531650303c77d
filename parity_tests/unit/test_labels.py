"""Image-level labels from every form, and what bad ones get."""

from __future__ import annotations

import pickle
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
        ("labels.csv", "image;classes\na.jpg;cat;dog\nb c.jpg;traffic light\n"),
        ("labels.csv", "a.jpg;cat,dog\r\nb c.jpg;traffic light\r\n"),
        ("labels.csv", "image\tclasses\na.jpg\tcat|dog\nb c.jpg\ttraffic light\n"),
        ("labels.csv", 'image,classes\na.jpg,"cat, dog"\nb c.jpg,traffic light\n'),
        ("labels.csv", "image,classes\na.jpg,\"['cat', 'dog']\"\nb c.jpg,['traffic light']\n"),
        ("labels.csv", 'image,classes\na.jpg,"[1, 2]"\nb c.jpg,[3]\n'),
        ("labels.csv", "image,classes\na.jpg,[1 2]\nb c.jpg,3\n"),
        ("labels.csv", "a.jpg,1\nb c.jpg,3\na.jpg,2\n"),
        ("labels.csv", "image,cat,dog,traffic light\na.jpg,1,1,0\nb c.jpg,0,0,1\n"),
        ("labels.csv", ",dog,cat,background,traffic light\r\nx/a.jpg,1,1.0,1,0\r\nb c.jpg,0,0,0,True\r\n"),
        ("labels.csv", "image;traffic light;dog;cat\na;0;1;1\nb c;1;0;0\n"),
        ("labels.csv", "image;cat;dog;traffic light\na.jpg;1,0;1,00;0,0\nb c.jpg;0,0;0,0;1,0\n"),
        ("labels.csv", "image,cat,dog,traffic light\na.jpg,1,1.00,-1\nb c.jpg,-1,-1.0,1\n"),
        ("labels.csv", ",image,label\n0,a.jpg,cat\n1,a.jpg,dog\n2,b c.jpg,traffic light\n"),
        ("labels.csv", "a.jpg,1,1,0\nb c.jpg,0,0,1\n"),
        ("labels.csv", "image,cat,dog,traffic light\na.jpg,x,X,\nb c.jpg,,,x\n"),
        ("labels.csv", "image,cat,dog,traffic light\na.jpg,yes,Yes,no\nb c.jpg,No,n,y\n"),
        ("labels.csv", "image,cat,dog,traffic light\na.jpg,1,1,\nb c.jpg,,,1\n"),
        ("labels.csv", "image,cat,dog,traffic light\na.jpg,cat,dog,\nb c.jpg,,,traffic light\n"),
        ("labels.csv", "image,cat,dog,traffic light\na.jpg,✓,✓,-\nb c.jpg,-,-,✓\n"),
        ("labels.csv", "Bild;cat;dog;traffic light\na.jpg;x;x;\nb c.jpg;;;x\n"),
        ("labels.csv", "a.jpg,cat,dog\nb c.jpg,traffic light,traffic light\n"),
        (
            "labels.csv",
            "filename,width,class,xmin\na.jpg,9,cat,1\na.jpg,9,dog,2\nb c.jpg,9,traffic light,3\n",
        ),
        ("labels.csv", 'id,label,image\n0,"cat, dog",a.jpg\n1,traffic light,b c.jpg\n'),
        ("labels.csv", "image,label,label2\na.jpg,cat,dog\nb c.jpg,traffic light,\n"),
        ("labels.tsv", "a.jpg\tcat\tdog\nb c.jpg\ttraffic light\n"),
        ("labels.csv", "a.jpg,1,1,1,0\nb c.jpg,1,0,0,1\n"),
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
    with pytest.raises(InputError, match=r"cues\.h5: image y has class 3; expected 1 to 2"):
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
        (
            {"d/x.jpg": ""},
            "d",
            "d: no list cat_<set>.txt, no .*Annotations or a folder of YOLO's labels expected",
        ),
        ({"l.csv": "a.jpg,cat\nb.jpg,lion\n"}, "l.csv", "l.csv:2: 'lion' is not one of the classes cat, dog"),
        (
            {"l.csv": "bild,klassen\na.jpg,cat\n"},
            "l.csv",
            "l.csv:1: 'bild, klassen': 'klassen' is not one of .*; if this line names the columns, it should say image",
        ),
        (
            {"l.csv": "datei,breite,klasse\na.jpg,9,cat\n"},
            "l.csv",
            "l.csv:1: 'datei, breite, klasse': .*columns",
        ),
        ({"l.csv": "bild,klassen\na.jpg,1\n"}, "l.csv", "l.csv:1: 'bild, klassen': .*names the columns"),
        ({"l.txt": "bild klassen\na.jpg cat\n"}, "l.txt", "l.txt:1: 'bild, klassen': .*names the columns"),
        ({"l.csv": "a.jpg,background\n"}, "l.csv", "l.csv:1: 'background' is not one of the classes"),
        ({"l.csv": "a.jpg,cat\nb.jpg,\n"}, "l.csv", "l.csv:2: b.jpg has no label"),
        ({"l.txt": "a.jpg cat\nx/a.png dog\n"}, "l.txt", "l.txt:2: a.jpg and x/a.png would share"),
        ({"l.csv": "name,label\n"}, "l.csv", "l.csv: the list is empty"),
        ({"l.csv": "a.jpg,cat\nb.jpg,[2]\n"}, "l.csv", "l.csv:1: 'cat'; expected class indices"),
        ({"l.csv": "a.jpg,cat,1\n"}, "l.csv", "l.csv:1: '1' is not one of the classes"),
        ({"l.csv": "a.jpg,cat\nb.jpg,[]\n"}, "l.csv", "l.csv:2: b.jpg has no label"),
        ({"l.csv": "image,cat,lion\na,0,1\n"}, "l.csv", "l.csv:1: 'lion' is not one of the classes"),
        ({"l.csv": "image,cat,cat\na,0,1\n"}, "l.csv", "l.csv:1: a class that comes twice"),
        (
            {"l.csv": "image,cat,dog\na,0,1\nb,1\n"},
            "l.csv",
            "l.csv:3: 1 cells after the image; expected 2 of 0 or 1",
        ),
        ({"l.csv": "image,cat,dog\na,0,1\nb,1,2\n"}, "l.csv", "l.csv:3: '2' for dog; expected 0 or 1"),
        ({"l.csv": "image,cat,dog\na,0.9,0.1\n"}, "l.csv", "l.csv:2: '0.9' for cat; expected 0 or 1"),
        ({"l.csv": "image,cat,dog\na,1,0\nb,,1\n"}, "l.csv", "l.csv:3: an empty cell for cat"),
        ({"l.csv": "file,split,class\na,train,\n"}, "l.csv", "l.csv:2: a has no label"),
        (
            {"l.csv": "image,cat,dog\na,0,1\na.jpg,1,1\n"},
            "l.csv",
            "l.csv:3: image 'a.jpg' is empty or comes again; expected each once",
        ),
        ({"l.csv": "a.jpg,1\n"}, "l.csv", "l.csv: cannot tell whether its indices count background"),
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
        ({"d/cat_t.txt": "a 2\n"}, "d", "cat_t.txt:1: 'a 2'; expected '<image> -1|0|1'"),
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


# --- numbers ------------------------------------------------------------------------------------------------

NUMBERS = {
    "vectors without background": {
        "a": np.array([1, 0, 1], np.float32),
        "b": np.array([0, 1, 0], np.float32),
    },
    "vectors with background": {
        "a": np.array([True, True, False, True]),
        "b": np.array([True, False, True, False]),
    },
    "lists of 0 and 1": {"a.jpg": [1, 0, 1], "x/b.jpg": (0, 1, 0)},
    "indices that reach C-1": {"a": np.array([1, 3]), "b": [np.int64(2)]},
    "indices with background listed": {"a": [0, 1, 3], "b": [0, 2]},
    "one index alone, a set": {"a": {3, 1}, "b": 2},
    "all object classes, 0 not always": {"a": [0, 2], "b": [1]},
    "floats": {"a": np.array([1.0, 3.0]), "b": np.array([2.0])},
}


def saved(path: Path, content: object) -> Path:
    if path.suffix == ".npy":
        np.save(path, np.array(content, dtype=object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(content))
    return path


@pytest.mark.parametrize("suffix", [".npy", ".pkl"])
@pytest.mark.parametrize("form", NUMBERS)
def test_dicts_of_numbers(tmp_path, form, suffix):
    assert read_labels(saved(tmp_path / f"labels{suffix}", NUMBERS[form]), CLASSES) == {"a": [1, 3], "b": [2]}


NAMES = {
    "lists": {"x/a.jpg": ["traffic light", "cat", "cat"], "b": ["dog"], "c": []},
    "tuples and a set": {"a": {"cat", "traffic light"}, "b": ("dog",), "c": ()},
    "NumPy's texts": {"a": np.array(["cat", "traffic light"]), "b": [np.str_("dog")], "c": np.array([], str)},
    "one text": {"a": "cat, traffic light", "b": "dog", "c": ""},
    "in parts": {"train": {"a": ["cat", "traffic light"]}, "val": {"b": ["dog"], "c": []}},
}


@pytest.mark.parametrize("suffix", [".npy", ".pkl"])
@pytest.mark.parametrize("form", NAMES)
def test_dicts_of_class_names(tmp_path, form, suffix):
    path = saved(tmp_path / f"labels{suffix}", NAMES[form])
    assert read_labels(path, CLASSES) == {"a": [1, 3], "b": [2], "c": []}


OBJECTS = {
    "a.txt": "2 0.5 0.5 0.2 0.3\n0 .1 .1 .3 .3\n2 0.5 0.5 1.0 1.000001\n",
    "b.txt": "1 0 0 .5 0 .5 .5\n",
    "c.txt": "",
}
IN_ORDER, SHUFFLED = "cat\ndog\ntraffic light\n", {"a.txt": "1 0 0 1 1\n3 0 0 1 1\n", "b.txt": "0 0 0 1 1\n"}


@pytest.mark.parametrize(
    ("objects", "names", "text"),
    [
        (OBJECTS, "labels/train/classes.txt", IN_ORDER),
        (OBJECTS, "labels/classes.txt", IN_ORDER),
        (OBJECTS, "labels/train/obj.names", IN_ORDER),
        (OBJECTS, "data.yaml", "train: ../train/images\nnc: 3\nnames: ['cat', 'dog', 'traffic light']\n"),
        (OBJECTS, "data.yaml", "names:\n  0: cat\n  1: dog\n  2: traffic light\n"),
        # another order, and a class that no image has
        (SHUFFLED | {"c.txt": "\n"}, "data.yaml", "names: [dog, cat, lion, traffic light]"),
    ],
)
def test_yolo_folder(tmp_path, objects, names, text):
    for name, lines in objects.items():
        write(tmp_path / "labels/train" / name, lines)
    write(tmp_path / names, text)
    assert read_labels(tmp_path / "labels/train", CLASSES) == {"a": [1, 3], "b": [2], "c": []}


def test_yolo_classes_without_names_are_asked_for(tmp_path):
    for name, lines in OBJECTS.items():
        write(tmp_path / "d" / name, lines)
    with pytest.raises(
        InputError, match=r"d: no classes\.txt, .* names YOLO's classes; add one, or .*--first-class 0"
    ):
        read_labels(tmp_path / "d", CLASSES)
    assert read_labels(tmp_path / "d", CLASSES, first_class=0) == {"a": [1, 3], "b": [2], "c": []}
    write(tmp_path / "one/x.txt", "0 0 0 1 1\n")
    assert read_labels(tmp_path / "one", CLASSES[:2], first_class=0) == {"x": [1]}
    with pytest.raises(InputError, match=r"a\.txt: class 2, which dataset\.classes does not name"):
        read_labels(tmp_path / "d", CLASSES[:3], first_class=0)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"b.txt": "0 1 1 1\n"}, "b.txt:1: '0 1 1 1'; expected '<class> <x> <y> <width> <height>'"),
        ({"b.txt": "\ncat 0 0 1 1\n"}, "b.txt:2: 'cat 0 0 1 1'"),
        ({"b.txt": "0 12 40 200 300\n"}, "b.txt:1: .*, all from 0 to 1"),
        ({"b.txt": "3 0 0 1 1\n"}, "b.txt: class 3, which .*classes.txt does not name"),
        ({"classes.txt": "cat\nlion\n"}, "classes.txt: class 1: 'lion' is not one of the classes cat, dog"),
        ({"data.yaml": "names: [cat]"}, "data.yaml and classes.txt: both name the classes"),
        ({"classes.txt": None, "data.yaml": "nc: 2"}, "data.yaml: names: expected a list"),
        ({"classes.txt": None, "data.yaml": "names: [cat"}, "data.yaml: not YAML"),
    ],
)
def test_bad_yolo_folders(tmp_path, files, message):
    for name, text in ({"a.txt": "1 0 0 1 1\n", "classes.txt": "cat\ndog\n"} | files).items():
        if text is not None:
            write(tmp_path / "d" / name, text)
    with pytest.raises(InputError, match=message) as caught:
        read_labels(tmp_path / "d", CLASSES)
    assert "\n" not in str(caught.value)


def test_keys_that_are_numbers(tmp_path):
    path = saved(
        tmp_path / "cls_labels.npy", {2007000032: [1, 0, 1], 139: [0, 1, 0], np.int64(2012004331): [1, 1, 1]}
    )
    assert read_labels(path, CLASSES) == {"2007_000032": [1, 3], "139": [2], "2012_004331": [1, 2, 3]}
    path = saved(tmp_path / "texts.npy", {"2007000032": [1, 0, 1]})
    assert read_labels(path, CLASSES) == {"2007000032": [1, 3]}


@pytest.mark.parametrize(
    ("content", "zero_based", "one_based"),
    [
        ({"a": [1, 2]}, [2, 3], [1, 2]),
        ({"a": [0, 1], "b": [0]}, [1, 2], [1]),
        ({"a": [0, 2], "b": [2]}, [1, 3], [2]),
        ({"a": [0, 2], "b": [0, 1]}, [1, 3], [2]),
    ],
)
def test_whether_indices_count_background_is_asked(tmp_path, capsys, content, zero_based, one_based):
    path = saved(tmp_path / "tags.pkl", content)
    target = tmp_path / "labels.csv"
    profile = tmp_path / "p.yaml"
    profile.write_text(
        "base: mini\nname: p\ndataset: {classes: [background, cat, dog, traffic light]}\nmodel: {num_classes: 4}\n"
    )
    command = ["data", "labels", str(path), str(target), "--config", str(profile)]
    assert run_command(command) == 2
    error = capsys.readouterr().err
    assert "cannot tell whether its indices count background" in error
    assert "--first-class 0" in error
    assert error.count("\n") == 1
    assert not target.exists()
    for first, want in ((0, zero_based), (1, one_based)):
        assert read_labels(path, CLASSES, first_class=first)["a"] == want
        assert run_command([*command, "--first-class", str(first)]) == 0
        assert read_labels(target, CLASSES)["a"] == want


def test_two_classes_and_rising_pairs_are_asked_for(tmp_path):
    path = saved(tmp_path / "a.pkl", {"a": [0, 1], "b": [0, 1]})
    with pytest.raises(InputError, match="cannot tell indices from vectors"):
        read_labels(path, CLASSES[:3])
    assert read_labels(path, CLASSES[:3], first_class=0) == {"a": [1, 2], "b": [1, 2]}
    path = saved(tmp_path / "b.pkl", {"a": [0, 1], "b": [1, 0]})
    assert read_labels(path, CLASSES[:3]) == {"a": [2], "b": [1]}
    assert read_labels(saved(tmp_path / "c.pkl", {"a": [1], "b": [0]}), CLASSES[:2]) == {"a": [1], "b": []}


@pytest.mark.parametrize(
    ("content", "first", "message"),
    [
        ({"a": [1, 0, 0, 1, 0]}, None, "image a: a vector of 5 values; expected 3 or .with background. 4"),
        ({"a": [True, False]}, None, "a vector of 2 values"),
        (
            {"a": [0, 2, 0], "b": [1, 0, 1]},
            None,
            "image a: a vector of 3 values with 2 in it; expected 0 and 1",
        ),
        ({"a": [2, 0, 1], "b": [0, 3, 0]}, None, "image a: a vector of 3 values with 2 in it"),
        ({"a": [0, 0, 3, 1], "b": [1, 0, 1, 0]}, 0, "image a: a vector of 4 values with 3 in it"),
        ({"a": [1, 4]}, None, "index 4; expected 0 to 3"),
        ({"a": [3], "b": [9]}, None, "image b has index 9; expected 1 to 3"),
        ({"a": [3]}, 0, "image a has index 3; expected 0 to 2"),
        ({"a": [-1, 2]}, 0, "image a has index -1; expected 0 to 2"),
        ({"a": [0.5, 1.0]}, None, "image a: float64, a row of whole numbers"),
        ({"a": [float("nan")]}, None, "a row of whole numbers"),
        ({"a": np.zeros((2, 3))}, None, r"image a: float64 of shape \(2, 3\)"),
        ({}, None, "an empty dict"),
        ({"a": [0, 0, 0]}, None, "no label of any class in it"),
        ({"a": [1, 0, 1], "a.jpg": [1, 1, 1]}, None, "image 'a' comes again; expected each once"),
        ({"a": [b"cat"]}, None, "expected integers"),
        ({"a": ["cat"], "b": ["lion"]}, None, "image b: 'lion' is not one of the classes cat, dog"),
        ({"a": ["cat"], "b": [1]}, None, "image b: numbers; expected class names as for other images"),
        ({"a_labels": ["cat"], "a_cues": [[1], [2]]}, None, "image a_cues: numbers; expected class names"),
        ({"a": ["cat", ["dog"]]}, None, "nested lists of unequal lengths"),
        ([1, 2], None, "holds a list, a dict of image name"),
    ],
)
def test_bad_numbers(tmp_path, content, first, message):
    path = saved(tmp_path / "labels.pkl", content)
    with pytest.raises(InputError, match=message) as caught:
        read_labels(path, CLASSES, first_class=first)
    assert "\n" not in str(caught.value)
