"""Stage 0 through the command line: classifiers, cues in every form, their quality, and what bad input gets."""

from __future__ import annotations

import csv
import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from parity_tests.conftest import WHOLE_MINI
from parity_tests.generated_coco import write_coco
from repro.cli import run_command
from repro.config import CuesConfig, load_config
from repro.constants import VOID
from repro.cues.generate import localize, read_saliency
from repro.data import (
    CocoInstances,
    CueFile,
    read_id_list,
    read_image_rgb,
    read_mask,
    read_pairs_list,
    write_mask,
    zoom_linear,
)
from repro.data.experiment import open_labelled
from repro.data.labels import read_labels
from repro.data.mini import build_mini
from repro.errors import InputError
from repro.models import build_model
from repro.training.seed_quality import average_precision
from weights_conversion import load_weights, save_safetensors

TRAIN = 12  # images; enough for every class to occur


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> Path:
    return build_mini(tmp_path_factory.mktemp("data") / "mini", train=TRAIN, val=2).root


@pytest.fixture(scope="module")
def own(mini, tmp_path_factory) -> Path:
    """The embedded set as a user's own data: a folder of images and a CSV, nothing else."""
    root = tmp_path_factory.mktemp("own")
    (root / "photos").mkdir()
    names = load_config("mini").dataset.classes
    cues = CueFile.open(mini / "localization_cues.pickle")
    lines = ["image,classes\n"]
    for line in read_pairs_list(mini / "input_list.txt"):
        (root / "photos" / line.image).write_bytes((mini / "JPEGImages" / line.image).read_bytes())
        lines.append(",".join([line.image, *(names[label] for label in cues.labels(line.cue_index))]) + "\n")
    (root / "labels.csv").write_text("".join(lines))
    return root


def settings(own: Path, *more: str) -> list[str]:
    """A run too short to learn anything."""
    return [
        *(
            "--config",
            "mini",
            "device=cpu",
            f"data.image_root={own}/photos",
            f"data.labels={own}/labels.csv",
        ),
        *(
            "solver.max_iter=2",
            "solver.snapshot=1",
            "data.batch_size=2",
            "data.workers=0",
            "data.held_out=0.25",
        ),
        *("stage0.test_interval=1", "cues.batch_size=5", *more),
    ]


@pytest.fixture(scope="module")
def trained(own, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("run") / "a"
    assert run_command(["seeds", "train", *settings(own, f"output={run}")]) == 0
    return run


def refused(capsys, *arguments) -> str:
    capsys.readouterr()
    assert run_command([str(argument) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("repro: ")]
    assert len(lines) == 1
    return lines[0]


# --- the classifiers ----------------------------------------------------------------------------------------


def test_what_training_leaves(trained):
    for net in ("cam", "bg"):
        folder = trained / "stage0" / net
        assert (folder / "iter_2.safetensors").exists()
        rows = list(csv.DictReader((folder / "log.csv").open()))
        assert [row["iteration"] for row in rows] == ["0", "1"]
        assert all(0 < float(row["loss"]) < 100 for row in rows)
        precision = list(csv.DictReader((folder / "average_precision.csv").open()))
        assert [row["iteration"] for row in precision] == ["1", "2"]
        assert set(precision[0]) == {"iteration", "mean", *load_config("mini").dataset.classes[1:]}
        known = [
            float(value) for key, value in precision[1].items() if key not in ("iteration", "mean") and value
        ]
        assert float(precision[1]["mean"]) == pytest.approx(np.mean(known))
        lines = (folder / "list.txt").read_text().splitlines()
        assert len(lines) == TRAIN - 3  # a quarter is held out
        assert re.fullmatch(r"mini_train_\d{4}(,\w+)+", lines[0])


def test_first_loss_is_that_of_no_knowledge(own, tmp_path):
    """The signal dies in Caffe's gaussian filler, the scores are near 0: six classes at log 2 each, summed."""
    more = ("init.filler=gaussian", "solver.max_iter=1", f"output={tmp_path}/r")
    assert run_command(["seeds", "train", "--net", "vgg16_bg", *settings(own, *more)]) == 0
    (first,) = csv.DictReader((tmp_path / "r" / "stage0" / "bg" / "log.csv").open())
    assert float(first["loss"]) == pytest.approx(6 * np.log(2), rel=1e-3)


def test_an_interrupted_classifier_goes_on_to_the_same_end(own, trained, tmp_path):
    arguments = ["seeds", "train", "--net", "vgg16_cam", *settings(own, f"output={tmp_path}/b")]
    assert run_command(arguments) == 0
    folder = tmp_path / "b" / "stage0" / "cam"
    want = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".csv", ".safetensors")
    }
    assert want["iter_2.safetensors"] == (trained / "stage0" / "cam" / "iter_2.safetensors").read_bytes()
    for name in ("done.json", "iter_2.state", "iter_2.safetensors"):
        (folder / name).unlink()
    assert run_command(arguments) == 0
    got = {name: (folder / name).read_bytes() for name in want}
    assert got == want


def test_imagenet_weights_fill_the_convolutions(own, tmp_path, capsys):
    """VGG16's fc6 has another shape than vgg16_bg's: Caffe's copy by name would end there."""
    source = build_model("vgg16_largefov", width_divisor=16)
    save_safetensors(source, tmp_path / "vgg16.safetensors")
    for net in ("cam", "bg"):
        more = (
            f"output={tmp_path}/c",
            f"init.weights={tmp_path}/vgg16.safetensors",
            "solver.base_lr=1e-30",
        )
        assert run_command(["seeds", "train", "--net", f"vgg16_{net}", *settings(own, *more)]) == 0
    for net in ("cam", "bg"):
        weights = load_file(tmp_path / "c" / "stage0" / net / "iter_2.safetensors")
        for name in ("conv1_1.weight", "conv5_3.weight"):
            assert torch.equal(weights[name], source.state_dict()[name])


def test_average_precision():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    present = np.array([True, False, True, False, True])
    # precision at the hits: 1, 2/3, 3/5; each is the best from there on
    assert average_precision(scores, present) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # hits at ranks 2 and 3: precision 1/2, then 2/3, which lifts the former
    assert average_precision(scores, np.array([False, True, True, False, False])) == pytest.approx(2 / 3)
    assert average_precision(scores, np.zeros(5, bool)) is None


# --- cues ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(own, trained) -> Path:
    assert run_command(["seeds", "make", *settings(own, f"output={trained}"), "--pickle", "--overlays"]) == 0
    return trained / "stage0" / "cues"


def test_every_form_of_the_cues_says_the_same(own, made):
    lines = read_pairs_list(made / "input_list.txt")
    assert [line.image for line in lines] == sorted(path.name for path in (own / "photos").iterdir())
    assert [line.cue_index for line in lines] == list(range(TRAIN))
    file = CueFile.open(made / "cues.h5")
    assert file.grid == (15, 15)
    # as the original code reads it, by Python's own pickle
    content = pickle.loads((made / "localization_cues.pickle").read_bytes())
    labelled = dict(line.split(",", 1) for line in (own / "labels.csv").read_text().splitlines())
    names = load_config("mini").dataset.classes
    for line in lines:
        png = read_mask(made / "png" / f"{Path(line.image).stem}.png", 7)
        assert png.shape == (15, 15)
        blob = file.cues_blob(line.cue_index, 7, 15, 15)
        np.testing.assert_array_equal(np.where(blob.any(axis=0), blob.argmax(axis=0), VOID), png)
        assert blob.sum(axis=0).max() == 1
        np.testing.assert_array_equal(content[f"{line.cue_index}_cues"], file.cues(line.cue_index))
        assert content[f"{line.cue_index}_cues"].dtype == np.int64
        labels = content[f"{line.cue_index}_labels"]
        assert [names[label] for label in labels] == sorted(labelled[line.image].split(","), key=names.index)
        assert set(np.unique(png)) <= {0, VOID, *labels.tolist()}
        with (
            Image.open(made / "overlays" / f"{Path(line.image).stem}.png") as overlay,
            Image.open(own / "photos" / line.image) as photo,
        ):
            assert overlay.size == photo.size


def test_cues_do_not_depend_on_the_batch_and_resume(own, trained, made, tmp_path, capsys):
    arguments = [
        "seeds",
        "make",
        *settings(own, f"output={trained}", "cues.batch_size=1"),
        "--out",
        str(tmp_path),
    ]
    assert run_command(arguments) == 0
    pngs = {path.name: path.read_bytes() for path in (made / "png").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "png").iterdir()} == pngs
    assert (tmp_path / "cues.h5").read_bytes() == (made / "cues.h5").read_bytes()
    kept = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.png"))[1:]}
    next(iter(sorted((tmp_path / "png").iterdir()))).unlink()
    capsys.readouterr()
    assert run_command(arguments) == 0
    assert "1 images done now" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "png").iterdir()} == pngs
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    line = refused(capsys, *arguments, "cues.merge=background_first")
    assert "made with merge = 'smaller_wins', now 'background_first'" in line


def test_cues_follow_the_recorded_steps(own, trained, made):
    """The batched pipeline against its steps by hand on one image, with the mean of SEC's classifiers."""
    name = sorted(path.name for path in (own / "photos").iterdir())[3]
    image = read_image_rgb(own / "photos" / name)
    zoomed = zoom_linear(image.astype(np.float32), (113 / image.shape[0], 113 / image.shape[1], 1))
    blob = zoomed[:, :, ::-1] - np.array([104.008, 116.669, 122.675], np.float32)
    images = torch.from_numpy(np.ascontiguousarray(blob.transpose(2, 0, 1)))[None]
    nets = {
        net: build_model(f"vgg16_{net}", num_classes=6, width_divisor=16, input_size=113)
        for net in ("cam", "bg")
    }
    for net, model in nets.items():
        load_weights(model, trained / "stage0" / net / "iter_2.safetensors")
        model.eval()
    features = nets["cam"].forward_blobs(images)["fc7_CAM"][0].detach().numpy()
    weight = nets["cam"].scores.weight.detach().numpy()
    labels = CueFile.open(made / "cues.h5").labels(3)
    claims = {}
    gradient = nets["bg"].gradient_at(images, "conv4_1")[0].abs().amax(dim=0).numpy()
    padded = np.lib.stride_tricks.sliding_window_view(np.pad(gradient, 1, mode="edge"), (3, 3)).reshape(
        15, 15, 9
    )
    saliency = np.median(padded, axis=2)
    claims[0] = saliency < np.sort(saliency.ravel())[int(0.1 * 15 * 15)]
    for label in labels:
        heat = np.tensordot(weight[label - 1], features, 1)
        claims[label] = (heat > 0.2 * heat.max()) & (heat.max() > 0)
    want = np.full((15, 15), VOID)
    for label in sorted(claims, key=lambda c: (-claims[c].sum(), c)):
        want[claims[label]] = label
    assert (read_mask(made / "png" / f"{Path(name).stem}.png", 7) != want).sum() <= 1  # a tie of float32 sums


def test_a_grid_of_another_size(own):
    nets = {
        net: build_model(f"vgg16_{net}", num_classes=3, width_divisor=32, input_size=64).eval()
        for net in ("cam", "bg")
    }
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    cues = localize(nets, CuesConfig(), (9, 9), images=images, labels=labels)
    assert cues.shape == (2, 9, 9)
    assert set(np.unique(cues[1])) <= {0, 2, VOID}


def test_labels_of_a_voc_tree(mini, tmp_path):
    """The cue file's where there is one, else those of the annotations."""
    root = tmp_path / "tree"
    shutil.copytree(mini, root)
    config = load_config("mini", [f"dataset.root={root}", "dataset.kind=voc"])
    names = config.dataset.classes
    first = open_labelled(config)
    assert (first.source, len(first.images)) == (root / "localization_cues.pickle", TRAIN)
    (root / "Annotations").mkdir()
    for name, labels in first.labels.items():
        objects = "".join(f"<object><name>{names[label]}</name></object>" for label in labels)
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    assert open_labelled(config).source == root / "localization_cues.pickle"
    (root / "localization_cues.pickle").unlink()
    second = open_labelled(config)
    assert second.source == root / "Annotations"
    assert (second.labels, second.images) == (first.labels, first.images)


def test_labels_of_images_that_are_not_there_are_told(tmp_path, caplog):
    """A folder of images in sub-folders would else be half a training set in silence."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "l.csv").write_text("image,classes\na.png,fish\nmore/b.png,tree\nmore/c.png,house\n")
    config = load_config(
        "mini", [f"stage0.data.image_root={tmp_path}", f"stage0.data.labels={tmp_path}/l.csv"]
    )
    assert list(open_labelled(config).images) == ["a"]
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "l.csv: 2 of 3 labelled images are not in" in line
    assert line.endswith("the first: b")


def test_pseudo_labels_restricted_to_the_images_labels(own, tmp_path):
    weights = tmp_path / "stage1.safetensors"
    save_safetensors(build_model("vgg16_aspp", num_classes=7, width_divisor=16), weights)
    arguments = [
        *(
            "pseudo-labels",
            "--config",
            "mini",
            "device=cpu",
            "--weights",
            str(weights),
            "--out",
            f"{tmp_path}/l",
        ),
        *("--images", f"{own}/photos", "pseudo_labels.use_labels=true", "pseudo_labels.crf=false"),
        *(f"stage0.data.image_root={own}/photos", f"stage0.data.labels={own}/labels.csv"),
    ]
    assert run_command(arguments) == 0
    labels = read_labels(own / "labels.csv", load_config("mini").dataset.classes)
    lines = (tmp_path / "l" / "list.txt").read_text().splitlines()
    assert len(lines) == TRAIN
    for line in lines:
        image, mask = line.split()
        assert set(np.unique(read_mask(tmp_path / "l" / mask, 7))) <= {0, *labels[Path(image).stem]}


# --- saliency maps ------------------------------------------------------------------------------------------


@pytest.fixture
def maps(own, tmp_path) -> Path:
    """Maps that are dark in the upper half of each image, as PNG, and one as an array."""
    folder = tmp_path / "maps"
    folder.mkdir()
    for path in (own / "photos").iterdir():
        with Image.open(path) as photo:
            width, height = photo.size
        values = np.full((height, width), 240, np.uint8)
        values[: height // 2] = 20
        Image.fromarray(values).save(folder / f"{path.stem}.png")
    last = folder / f"{path.stem}.png"
    np.save(last.with_suffix(".npy"), np.asarray(Image.open(last)).astype(np.float32) / 7 - 3)
    last.unlink()
    return folder


def test_background_from_saliency_maps(own, trained, maps, tmp_path, capsys):
    more = (f"output={trained}", f"cues.saliency={maps}", "cues.merge=background_first")
    arguments = ["seeds", "make", *settings(own, *more), "--out", str(tmp_path / "cues"), "--bg", "/nowhere"]
    assert run_command(arguments) == 0
    for path in sorted((tmp_path / "cues" / "png").iterdir()):
        png = read_mask(path, 7)
        assert (png[:6] != VOID).all()
        assert (png[9:] != 0).all()
    spoiled = sorted(maps.glob("*.png"))[0]
    good = np.asarray(Image.open(spoiled))
    for values, message in (
        (np.zeros_like(good), "constant (0), so it tells nothing apart"),
        (
            good[1:],
            f"a map of {good.shape[0] - 1}x{good.shape[1]}, the image's {good.shape[0]}x{good.shape[1]}",
        ),
        (np.stack([good] * 3, axis=2), "image mode 'RGB'; expected a grey map"),
    ):
        Image.fromarray(values).save(spoiled)
        line = refused(capsys, *arguments[:-4], "--out", tmp_path / "other")
        assert str(spoiled) in line
        assert message in line
    spoiled.unlink()
    assert f"{maps}: no saliency map for image {spoiled.stem}" in refused(
        capsys, *arguments[:-4], "--out", tmp_path / "other"
    )
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0.0, np.nan], [1, 2]]), "NaN or infinity"),
        (np.array([[0.0, np.inf], [1, 2]]), "NaN or infinity"),
        (np.array([["a", "b"], ["c", "d"]]), "expected real numbers"),
        (np.zeros((2, 2, 1)), "a map of 2x2x1, the image's 2x2 expected"),
        (None, "damaged"),
    ],
)
def test_bad_saliency_arrays(tmp_path, values, message):
    path = tmp_path / "a.npy"
    path.write_bytes(b"nothing") if values is None else np.save(path, values)
    with pytest.raises(InputError, match=rf"a\.npy: .*{message}") as caught:
        read_saliency(path, (2, 2), (3, 3))
    assert "\n" not in str(caught.value)


def test_saliency_is_normalised(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[-3, 1], [5, 1]]))
    np.testing.assert_allclose(read_saliency(tmp_path / "a.npy", (2, 2), (2, 2)), [[0, 0.5], [1, 0.5]])
    assert read_saliency(tmp_path / "a.npy", (2, 2), (3, 5)).shape == (3, 5)


# --- quality ------------------------------------------------------------------------------------------------


def test_score_of_the_given_cues(mini, tmp_path, capsys):
    base = [
        "seeds",
        "score",
        "--config",
        "mini",
        "--masks",
        mini / "SegmentationClass",
        "--out",
        tmp_path / "s.json",
    ]
    given = ["--cues", mini / "localization_cues.pickle", "--input-list", mini / "input_list.txt"]
    assert run_command([str(a) for a in (*base, *given)]) == 0
    out = capsys.readouterr().out
    assert f"{TRAIN} images" in out
    metrics = json.loads((tmp_path / "s.json").read_text())
    assert metrics["precision"] > 0.97  # drawn inside their objects
    assert 0.05 < metrics["recall"] < 0.4
    # the same as PNGs on the grid
    cues = CueFile.open(mini / "localization_cues.pickle")
    for line in read_pairs_list(mini / "input_list.txt"):
        label = np.full((15, 15), VOID, np.uint8)
        c, rows, columns = cues.cues(line.cue_index)
        label[rows, columns] = c
        write_mask(tmp_path / "png" / f"{Path(line.image).stem}.png", label)
    assert run_command([str(a) for a in (*base, "--cues", tmp_path / "png")]) == 0
    assert json.loads((tmp_path / "s.json").read_text()) == metrics
    (tmp_path / "ids.txt").write_text("mini_train_0001\n")
    assert run_command([str(a) for a in (*base, *given, "--list", tmp_path / "ids.txt")]) == 0
    assert json.loads((tmp_path / "s.json").read_text())["images"] == 1
    assert "give the input_list.txt" in refused(capsys, *base, *given[:2])
    (tmp_path / "ids.txt").write_text("other\n")
    assert "image other is not in it" in refused(capsys, *base, *given, "--list", tmp_path / "ids.txt")
    base[5] = tmp_path
    assert "mini_train_0000.png: no such image file" in refused(capsys, *base, *given)


def test_score_of_secs_cues_is_a_direct_count(voc_sample, tmp_path):
    """All pixels of a third of the sample's images, each with the cue of the cell that covers it."""
    root = voc_sample / "VOCdevkit" / "VOC2012"
    cues = CueFile.open(voc_sample / "localization_cues.pickle.gz")
    indices = {
        Path(line.image).stem: line.cue_index for line in read_pairs_list(voc_sample / "input_list.txt")
    }
    ids = tmp_path / "ids.txt"
    names = read_id_list(root / "ImageSets" / "Segmentation" / "train_aug.txt")[::3]
    ids.write_text("".join(f"{name}\n" for name in names))
    right, seeded, actual, pixels = np.zeros(21), np.zeros(21), np.zeros(21), 0
    for name in names:
        truth = read_mask(root / "SegmentationClassAug" / f"{name}.png")
        grid = np.full((41, 41), VOID, np.uint8)
        c, rows, columns = cues.cues(indices[name])
        grid[rows, columns] = c
        enlarged = np.asarray(Image.fromarray(grid).resize(truth.shape[::-1], Image.Resampling.NEAREST))
        valid = truth != VOID
        pixels += valid.sum()
        actual += np.bincount(truth[valid], minlength=21)
        seeded += np.bincount(enlarged[valid & (enlarged != VOID)], minlength=21)
        right += np.bincount(truth[valid & (enlarged == truth)], minlength=21)
    arguments = [
        *("seeds", "score", "--config", "dsrg_vgg16_voc", "--masks", root / "SegmentationClassAug"),
        *(
            "--cues",
            voc_sample / "localization_cues.pickle.gz",
            "--input-list",
            voc_sample / "input_list.txt",
        ),
        *("--list", ids, "--out", tmp_path / "scores.json"),
    ]
    assert run_command([str(argument) for argument in arguments]) == 0
    metrics = json.loads((tmp_path / "scores.json").read_text())
    assert metrics["images"] == len(names) == 60
    assert metrics["labelled"] == pytest.approx(seeded.sum() / pixels, abs=1e-12)
    occurring = actual > 0
    for key, want in (
        ("precision", right / np.maximum(seeded, 1)),
        ("recall", right / np.maximum(actual, 1)),
        ("iou", right / np.maximum(seeded + actual - right, 1)),
    ):
        assert metrics[key] == pytest.approx(want[occurring].mean(), abs=1e-12)
        got = [None if entry is None else entry[key] for entry in metrics["per_class"]]
        assert got == pytest.approx(
            [w if o else None for w, o in zip(want, occurring, strict=True)], abs=1e-12
        )


# --- COCO, bad input, the chain -----------------------------------------------------------------------------


def test_coco_from_labels_to_scores(tmp_path, capsys, no_figures):
    """Classifiers, cues as PNGs, both stages and 81 classes, from COCO's own files alone."""
    write_coco(tmp_path / "coco", train=40, val=2)
    shutil.rmtree(tmp_path / "coco" / "cues")
    masks = tmp_path / "coco" / "masks" / "val2014"
    list(CocoInstances(tmp_path / "coco" / "annotations" / "instances_val2014.json").write_masks(masks))
    arguments = [
        *("reproduce", "--config", "dsrg_vgg16_coco", "device=cpu", f"dataset.root={tmp_path}/coco"),
        *(
            f"output={tmp_path}/run",
            "dataset.make_cues=true",
            "model.width_divisor=32",
            "init.filler=looks_linear",
        ),
        *(
            "stage0.init.filler=msra",
            "stage0.data.held_out=0",
            "stage0.solver.max_iter=1",
            "stage0.data.workers=0",
        ),
        *("stage0.data.input_size=97", "stage0.data.batch_size=2", "stage1.data.new_height=97"),
        *("stage1.data.new_width=97", "stage2.data.crop_size=97", "solver.max_iter=1", "data.batch_size=2"),
        *("data.workers=0", "dataset.val_limit=1", "pseudo_labels.crf=false", "inference.crf=false"),
        *("pseudo_labels.protocol=coco_final",),
    ]
    assert run_command(arguments) == 0
    cues = tmp_path / "run" / "stage0" / "cues"
    assert len(list((cues / "png").iterdir())) == 40
    assert not (cues / "cues.h5").exists()
    first = (cues / "input_list.txt").read_text().splitlines()[0]
    assert first == "COCO_train2014_000000000003.jpg COCO_train2014_000000000003.png"
    scores = json.loads((tmp_path / "run" / "scores_stage2.json").read_text())
    assert scores["changed"]["dataset.make_cues"] is True
    assert scores["train_images"] == 40
    assert run_command(arguments) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: (own / "photos" / "new.jpg").write_bytes(b""), "labels.csv: no label for image new"),
        (lambda own: (own / "labels.csv").write_text("a.jpg,lion\n"), "labels.csv:1: 'lion' is not one of"),
        (
            lambda own: (own / "labels.csv").write_text(
                "".join(f"{p.name},fish\n" for p in sorted((own / "photos").iterdir()))
            ),
            "labels.csv: no image of mushroom, house, tree, wheel, bottle among the 9 to train on",
        ),
        (lambda own: (own / "labels.csv").unlink(), "labels.csv: no such file or folder of labels"),
        (lambda own: (own / "list.txt").write_text("nobody\n"), "list.txt: nobody has no image"),
        (
            lambda own: [path.write_bytes(b"no image") for path in (own / "photos").iterdir()],
            "mini_train_.*jpg: not an image",
        ),
    ],
)
def test_bad_input_leaves_nothing(own, tmp_path, capsys, change, message):
    copy = tmp_path / "own"
    shutil.copytree(own, copy)
    change(copy)
    more = (f"data.list={copy}/list.txt",) if (copy / "list.txt").exists() else ()
    line = refused(capsys, "seeds", "train", *settings(copy, f"output={tmp_path}/run", *more))
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


def test_what_stage_0_lacks_is_said(own, tmp_path, capsys):
    base = settings(own, f"output={tmp_path}/run")
    assert "--net 'vgg16_cma': expected one of vgg16_cam, vgg16_bg; did you mean" in refused(
        capsys, "seeds", "train", "--net", "vgg16_cma", *base
    )
    line = refused(capsys, "seeds", "make", *base)
    assert (
        "cam/iter_2.safetensors: no such weights of vgg16_cam; repro seeds train --net vgg16_cam makes them"
        in line
    )
    assert "data.labels: not given" in refused(capsys, "seeds", "train", *base, "data.labels=null")
    assert "no such folder of images" in refused(capsys, "seeds", "train", *base, "data.image_root=/nowhere")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_made_cues_do_as_well_as_the_given_ones(tmp_path, monkeypatch):
    """Cues within 10 points of IoU of the given ones, and both stages on them within 5 points of mean IoU."""
    mini_root = tmp_path / "mini"
    monkeypatch.setattr(build_mini, "__kwdefaults__", WHOLE_MINI)
    base = [
        "reproduce",
        "--config",
        "mini",
        "device=cpu",
        f"dataset.root={mini_root}",
        "rows=[+DSRG, +Retrain]",
    ]
    assert run_command([*base, f"output={tmp_path}/given", "--seeds", "0,1,2"]) == 0
    assert run_command([*base, f"output={tmp_path}/made", "--seeds", "0,1,2", "dataset.make_cues=true"]) == 0
    means = {}
    for kind in ("given", "made"):
        folders = [tmp_path / f"{kind}{suffix}" for suffix in ("", "-seed1", "-seed2")]
        scores = [json.loads((folder / "scores_stage2.json").read_text()) for folder in folders]
        means[kind] = np.mean([entry["scores"]["mean_iou"]["voc"] for entry in scores])
    assert means["made"] > means["given"] - 0.05
    iou = {}
    for kind, cues, lines in (
        ("given", mini_root / "localization_cues.pickle", mini_root / "input_list.txt"),
        ("made", tmp_path / "made/stage0/cues/cues.h5", tmp_path / "made/stage0/cues/input_list.txt"),
    ):
        score = [
            "seeds",
            "score",
            "--config",
            "mini",
            "--cues",
            cues,
            "--input-list",
            lines,
            "--out",
            tmp_path / "s.json",
        ]
        assert run_command([str(a) for a in (*score, "--masks", mini_root / "SegmentationClass")]) == 0
        iou[kind] = json.loads((tmp_path / "s.json").read_text())["iou"]
    assert iou["made"] > iou["given"] - 0.1


# --- the quality of the seeds that stage 1 grows --------------------------------------------------------------


def stage1_arguments(mini: Path, output: Path, *more: str) -> list[str]:
    return [
        *(
            "train",
            "--stage",
            "1",
            "--config",
            "mini",
            "device=cpu",
            f"data.image_root={mini}/JPEGImages",
        ),
        *(f"data.list={mini}/input_list.txt", f"data.cues={mini}/localization_cues.pickle", "data.workers=0"),
        *("data.batch_size=4", "solver.max_iter=6", "solver.snapshot=4", f"output={output}", *more),
    ]


def test_quality_of_the_grown_seeds_is_logged_each_pass(mini, tmp_path, caplog):
    truth = f"data.truth_root={mini}/SegmentationClass"
    with caplog.at_level("INFO"):
        assert (
            run_command(stage1_arguments(mini, tmp_path / "a", truth, "loss.theta_f=0.2", "loss.theta_b=0.2"))
            == 0
        )
    assert "for the log of the seeds' quality alone; training does not see them" in caplog.text
    text = (tmp_path / "a" / "stage1" / "seed_quality.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert text.splitlines()[0] == "epoch,iteration,precision,recall,iou,labelled"
    assert [(row["epoch"], row["iteration"]) for row in rows] == [("0", "0"), ("1", "3"), ("2", "6")]
    # a pass is 3 batches of 4 of the 12 images: epoch 0 is the score of the given cues
    score = [
        "seeds",
        "score",
        "--config",
        "mini",
        "--out",
        f"{tmp_path}/s.json",
        "--masks",
        f"{mini}/SegmentationClass",
    ]
    given = ["--cues", f"{mini}/localization_cues.pickle", "--input-list", f"{mini}/input_list.txt"]
    assert run_command([*score, *given]) == 0
    metrics = json.loads((tmp_path / "s.json").read_text())
    for name in ("precision", "recall", "iou", "labelled"):
        assert float(rows[0][name]) == pytest.approx(metrics[name], rel=1e-8)
    assert float(rows[1]["labelled"]) > float(rows[0]["labelled"])  # low thresholds: much grows

    # seeds that do not grow keep their quality, mirrored or not
    assert run_command(stage1_arguments(mini, tmp_path / "b", truth, "loss.cues=fixed", "rows=[+BSL]")) == 0
    still = list(csv.DictReader((tmp_path / "b" / "stage1" / "seed_quality.csv").open()))
    for row in still:
        assert float(row["iou"]) == pytest.approx(metrics["iou"], rel=1e-8)


def test_looking_at_the_seeds_changes_nothing_and_survives_an_interruption(mini, tmp_path):
    truth = f"data.truth_root={mini}/SegmentationClass"
    for name, more in (("with", [truth]), ("without", [])):
        assert run_command(stage1_arguments(mini, tmp_path / name, *more)) == 0
    watched, plain = tmp_path / "with" / "stage1", tmp_path / "without" / "stage1"
    assert (watched / "iter_6.safetensors").read_bytes() == (plain / "iter_6.safetensors").read_bytes()
    assert (watched / "log.csv").read_bytes() == (plain / "log.csv").read_bytes()
    assert not (plain / "seed_quality.csv").exists()
    whole = (watched / "seed_quality.csv").read_text()
    for name in ("done.json", "iter_6.safetensors", "iter_6.state"):
        (watched / name).unlink()
    assert (
        run_command(stage1_arguments(mini, tmp_path / "with", truth)) == 0
    )  # from iteration 4, amid the second pass
    assert (watched / "seed_quality.csv").read_text() == whole


def test_masks_that_are_missing_for_the_log(mini, tmp_path, capsys):
    arguments = stage1_arguments(mini, tmp_path / "a", f"data.truth_root={tmp_path}")
    assert "mini_train_" in refused(capsys, *arguments)
    assert "stage1.data.truth_root: no such folder: /nowhere" in refused(
        capsys, *arguments, "data.truth_root=/nowhere"
    )
    assert not (tmp_path / "a").exists()
