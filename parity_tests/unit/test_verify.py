"""`repro data verify`: a sound tree passes, and each kind of damage is named."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from parity_tests.small_voc import (
    CLASS,
    SBD_ONLY,
    TRAIN,
    TRAIN_AUG,
    VAL,
    mask_of,
    write_cue_files,
    write_sbd,
    write_voc,
)
from repro.cli import run_command
from repro.data import write_cues, write_mask
from repro.fetch.sbd import build_train_aug
from repro.fetch.verify import verify


@pytest.fixture
def tree(tmp_path):
    layout = write_voc(tmp_path / "VOCdevkit" / "VOC2012")
    build_train_aug(write_sbd(tmp_path / "sbd"), layout, expected=len(TRAIN_AUG))
    write_cue_files(tmp_path)
    return layout


def failed(report) -> dict[str, list[str]]:
    return {check.name: check.troubles for check in report.checks if not check.ok}


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
def test_a_sound_tree(tree, quick):
    report = verify(tree.root, quick=quick, partial=True)
    assert failed(report) == {}
    found = {check.name: check.found for check in report.checks}
    assert found["images"] == len(CLASS)
    assert found["masks"] == len(TRAIN) + len(VAL) + len(TRAIN_AUG) + len(VAL)
    assert found["cues"] == found["input_list"] == len(TRAIN_AUG)


def test_counts_are_the_fields(tree):
    assert failed(verify(tree.root)).keys() == {
        "list train",
        "list val",
        "list train_aug",
        "input_list",
        "hashes",
    }
    tree.image_set("test").write_text("2008_000001\n")
    line = next(str(check) for check in verify(tree.root).checks if check.name == "list test")
    assert line.startswith("FAILED  list test")
    assert line.endswith("1 of 1456")


def test_report_as_lines_and_json(tree, tmp_path, capsys):
    assert (
        run_command(
            ["data", "verify", str(tree.root), "--partial", "--out", str(tmp_path / "report.json"), "--pin"]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "ok      images                  9 of 9" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"] is True
    assert {check["name"] for check in report["checks"]} >= {
        "list val",
        "images",
        "masks",
        "cues",
        "unchanged",
    }


def test_a_failing_check_is_status_2_and_is_in_the_json(tree, tmp_path, capsys):
    tree.image(VAL[0]).unlink()
    assert (
        run_command(["data", "verify", str(tree.root), "--partial", "--out", str(tmp_path / "r.json")]) == 2
    )
    captured = capsys.readouterr()
    assert "FAILED  images                  8 of 9" in captured.out
    assert f"{tree.image(VAL[0])}: no such image file" in captured.out
    assert "1 of 8 checks failed: images" in captured.err
    assert json.loads((tmp_path / "r.json").read_text())["ok"] is False


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def flip_a_bit(path):
    """A PNG's checksum notices."""
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated image": (lambda tree: truncate(tree.image(SBD_ONLY[0])), "images", "damaged"),
    "empty image": (lambda tree: tree.image(SBD_ONLY[0]).write_bytes(b""), "images", "0 bytes"),
    "missing mask": (lambda tree: tree.mask(VAL[0]).unlink(), "masks", "no such image"),
    "bit in a mask": (lambda tree: flip_a_bit(tree.mask_aug(SBD_ONLY[0])), "masks", "damaged"),
    "mask of another size": (
        lambda tree: write_mask(tree.mask(VAL[0]), np.zeros((40, 30), np.uint8)),
        "masks",
        "40x30, the 30x40 of its image expected",
    ),
    "mask of another class": (
        lambda tree: write_mask(tree.mask(VAL[0]), np.full((30, 40), 77, np.uint8)),
        "masks",
        "class 77",
    ),
    "mask with colours": (
        lambda tree: Image.new("RGB", (40, 30)).save(tree.mask(VAL[0])),
        "masks",
        "mode 'RGB'",
    ),
    "name of val in train_aug": (
        lambda tree: tree.image_set("train_aug").open("a").write(f"{VAL[0]}\n"),
        "list train_aug",
        "is in val as well",
    ),
    "name twice": (
        lambda tree: tree.image_set("val").open("a").write(f"{VAL[0]}\n"),
        "list val",
        "again",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(tree, damage):
    spoil, check, reason = DAMAGE[damage]
    spoil(tree)
    troubles = failed(verify(tree.root, partial=True))
    assert any(reason in trouble for trouble in troubles[check]), troubles


def test_object_masks_of_0_and_255_are_noticed(tree):
    for folder in (tree.masks, tree.masks_aug):
        for path in folder.iterdir():
            write_mask(path, np.where(np.asarray(Image.open(path)) > 0, 255, 0).astype(np.uint8))
    assert "no class but background" in failed(verify(tree.root, partial=True))["masks"][0]


def test_masks_that_look_like_another_format_get_a_line(tree):
    Image.fromarray(mask_of(VAL[0], void=False) > 0).save(tree.mask(VAL[0]))
    (line,) = (str(check) for check in verify(tree.root, partial=True).checks if check.name == "masks")
    assert line.startswith("ok")
    assert "grey of 1 bit" in line


def test_cues_of_another_grid_are_noticed(tree, tmp_path):
    (tmp_path / "localization_cues.pickle").unlink()
    entries = {index: ([CLASS[name]], [[0], [20], [20]]) for index, name in enumerate(TRAIN_AUG)}
    write_cues(tmp_path / "localization_cues.h5", entries)
    (line,) = (str(check) for check in verify(tree.root, partial=True).checks if check.name == "cues")
    assert "no cue beyond row 20 of the net's 41x41 grid" in line
    write_cues(tmp_path / "localization_cues.h5", entries, (21, 21))
    assert "cues of a 21x21 grid" in failed(verify(tree.root, partial=True))["cues"][0]


def test_quick_sees_what_headers_tell(tree):
    for spoil, check in (
        ("missing mask", "masks"),
        ("mask of another size", "masks"),
        ("empty image", "images"),
    ):
        DAMAGE[spoil][0](tree)
        assert check in failed(verify(tree.root, quick=True, partial=True)), spoil


def test_cues_of_another_set_are_noticed(tree, tmp_path):
    lines = (tmp_path / "input_list.txt").read_text().split("\n")
    shifted = [f"{name}.jpg {(index + 1) % len(TRAIN_AUG)}\n" for index, name in enumerate(TRAIN_AUG)]
    (tmp_path / "input_list.txt").write_text("".join(shifted))
    troubles = failed(verify(tree.root, partial=True))
    assert "do list and cues belong together?" in troubles["cues"][0]
    (tmp_path / "input_list.txt").write_text("\n".join(lines[:-2]) + "\n")
    assert "of train_aug is not in it" in failed(verify(tree.root, partial=True))["cues"][0]
    (tmp_path / "localization_cues.pickle").unlink()
    assert "no such cue file" in failed(verify(tree.root, partial=True))["cues"][0]


def test_a_changed_picture_is_noticed_once_pinned(tree):
    assert failed(verify(tree.root, partial=True, pin=True)) == {}
    write_mask(tree.mask_aug(SBD_ONLY[0]), mask_of(SBD_ONLY[0], void=True))  # as good a mask as any
    assert failed(verify(tree.root, partial=True)).keys() == {"unchanged"}
    write_mask(tree.mask_aug(SBD_ONLY[0]), mask_of(SBD_ONLY[0], void=False))
    assert failed(verify(tree.root, partial=True)) == {}


def test_nothing_is_pinned_that_is_not_sound(tree, tmp_path):
    tree.image(VAL[0]).unlink()
    verify(tree.root, partial=True, pin=True)
    assert not (tmp_path / "fetch.lock.json").exists()


def test_hashes_of_the_releases_files(tree, tmp_path):
    (tmp_path / "localization_cues.pickle.gz").write_bytes(b"not SEC's")
    troubles = failed(verify(tree.root))["hashes"]
    assert any("localization_cues.pickle.gz: 9 bytes; expected 3458043" in trouble for trouble in troubles)


def test_no_tree_at_all(tmp_path, capsys):
    assert run_command(["data", "verify", str(tmp_path)]) == 2
    assert "no VOC data set" in capsys.readouterr().err


@pytest.mark.parametrize("quick", [True, False])
def test_the_sample_is_sound(voc_sample, tmp_path, quick):
    shutil.copytree(voc_sample, tmp_path / "sample", copy_function=os.symlink)
    root = tmp_path / "sample/VOCdevkit/VOC2012"
    assert failed(verify(root, partial=True, quick=quick)) == {}
