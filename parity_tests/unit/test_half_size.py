"""``repro data halve``: a VOC tree at half its size, with the cues that fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parity_tests.small_voc import CLASS, TRAIN, VAL, write_cue_files, write_voc
from repro.cli import run_command
from repro.data import CueFile, VocLayout, read_mask, write_cues


@pytest.fixture
def voc(tmp_path) -> VocLayout:
    layout = write_voc(tmp_path / "VOC2012")
    write_cue_files(layout.root)
    return layout


def halve(voc: VocLayout, target: Path, *arguments: str) -> int:
    return run_command(
        [
            "data",
            "halve",
            str(voc.root),
            str(target),
            "--image-set",
            "train",
            "--image-set",
            "val",
            *arguments,
        ]
    )


def test_images_masks_and_cues_are_half_as_large(voc, tmp_path):
    odd = np.zeros((31, 41, 3), np.uint8)
    odd[:, 20:] = 200
    Image.fromarray(odd).save(voc.image(TRAIN[0]), quality=95)
    assert halve(voc, tmp_path / "half/VOC2012") == 0
    half = VocLayout.open(tmp_path / "half/VOC2012")
    assert sorted(path.stem for path in half.images.iterdir()) == sorted(TRAIN + VAL)
    with Image.open(half.image(TRAIN[0])) as image:
        assert image.size == (21, 16)
        pixels = np.asarray(image)
        assert pixels[:, :8].max() < 20
        assert pixels[:, 12:].min() > 180
    for name in TRAIN + VAL:
        np.testing.assert_array_equal(read_mask(half.mask(name)), read_mask(voc.mask(name))[::2, ::2])
    assert not half.masks_aug.exists()
    assert half.image_set("val").read_text() == voc.image_set("val").read_text()
    cues = CueFile.open(half.root / "localization_cues.h5")
    np.testing.assert_array_equal(cues.labels(0), [CLASS[TRAIN[0]]])
    # (1, 1) of the class is on no even row; (0, 20) becomes (0, 10)
    np.testing.assert_array_equal(cues.cues(0), [[CLASS[TRAIN[0]]], [10], [10]])
    assert (half.root / "input_list.txt").read_text() == (voc.root / "input_list.txt").read_text()


def test_the_grid_and_the_names_of_the_cues_go_with_them(voc, tmp_path):
    cues = tmp_path / "own.h5"
    write_cues(cues, {0: ([3], [[0, 3], [40, 2], [4, 40]])}, (41, 41), [TRAIN[0]])
    assert halve(voc, tmp_path / "half", "--cues", str(cues)) == 0
    found = CueFile.open(tmp_path / "half/localization_cues.h5")
    assert (found.grid, found.names) == ((21, 21), (TRAIN[0],))
    np.testing.assert_array_equal(found.cues(0), [[0, 3], [20, 1], [2, 20]])


def test_a_tree_that_cannot_be_read_leaves_nothing(voc, tmp_path, capsys):
    target = tmp_path / "new/half"
    voc.image(VAL[1]).write_bytes(b"no JPEG")
    assert halve(voc, target) == 2
    assert f"{VAL[1]}.jpg" in capsys.readouterr().err
    assert not target.exists()
    assert not list(target.parent.iterdir())


def test_a_folder_that_is_there_stays(voc, tmp_path, capsys):
    (tmp_path / "half").mkdir()
    assert halve(voc, tmp_path / "half") == 2
    assert "half: exists already, a new folder expected" in capsys.readouterr().err
    assert not list((tmp_path / "half").iterdir())


def test_a_file_above_the_folder_is_named(voc, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert halve(voc, tmp_path / "file" / "half") == 2
    assert f"{tmp_path}/file: expected a folder, {tmp_path}/file is a file" in capsys.readouterr().err
