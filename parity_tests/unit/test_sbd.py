"""SBD's masks and the list train_aug."""

from __future__ import annotations

import random
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from parity_tests.fuzz_structure import matlab
from parity_tests.small_voc import (
    SBD_ONLY,
    TRAIN,
    TRAIN_AUG,
    VAL,
    mask_of,
    write_mat,
    write_sbd,
    write_voc,
)
from repro.cli import run_command
from repro.data import colour_palette, read_mask
from repro.errors import InputError
from repro.fetch.sbd import build_train_aug, find_sbd, read_sbd_mask


@pytest.fixture
def sets(tmp_path):
    return write_sbd(tmp_path / "benchmark_RELEASE" / "dataset"), write_voc(tmp_path / "VOC2012")


def test_masks_and_list(sets):
    sbd, layout = sets
    result = build_train_aug(sbd, layout, expected=len(TRAIN_AUG))
    assert (result.written, result.kept) == (len(TRAIN_AUG) + len(VAL), 0)
    assert result.list_path.read_text().split() == TRAIN_AUG
    for name in SBD_ONLY:
        np.testing.assert_array_equal(read_mask(layout.mask_aug(name)), mask_of(name, void=False))
    for name in TRAIN + VAL:  # VOC's own masks, with their void borders, where there is one
        np.testing.assert_array_equal(read_mask(layout.mask_aug(name)), mask_of(name, void=True))
    with Image.open(layout.mask_aug(SBD_ONLY[0])) as image:
        assert image.mode == "P"
        assert image.getpalette()[: 3 * 21] == colour_palette()[:21].ravel().tolist()


def test_a_second_call_keeps_what_is_there(sets):
    sbd, layout = sets
    build_train_aug(sbd, layout, expected=len(TRAIN_AUG))
    layout.image_set("train_aug").unlink()
    layout.mask_aug(TRAIN[0]).unlink()
    own = layout.mask_aug(TRAIN[1])
    own.write_bytes(b"mine")
    result = build_train_aug(sbd, layout, expected=len(TRAIN_AUG))
    assert (result.written, result.kept) == (1, len(TRAIN_AUG) + len(VAL) - 1)
    assert own.read_bytes() == b"mine"
    assert result.list_path.is_file()


@pytest.mark.parametrize("text", ["mine\n", "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png\n"])
def test_the_users_list_stays(sets, text):
    """One of the same images in any form is as good; another is not replaced."""
    sbd, layout = sets
    text = text if "{" not in text else "".join(text.format(name) for name in reversed(TRAIN_AUG))
    layout.image_set("train_aug").write_text(text)
    if text.startswith("/"):
        build_train_aug(sbd, layout, expected=len(TRAIN_AUG))
    else:
        with pytest.raises(InputError, match=r"train_aug\.txt: exists with other images than these 7"):
            build_train_aug(sbd, layout, expected=len(TRAIN_AUG))
        assert not layout.masks_aug.exists()
    assert layout.image_set("train_aug").read_text() == text


def test_a_wrong_count_is_refused_before_anything_is_written(sets, capsys):
    sbd, layout = sets
    assert run_command(["data", "sbd", str(sbd), "--voc-root", str(layout.root)]) == 2
    message = capsys.readouterr().err
    assert (
        "VOC's train (3), SBD's train and val (6) without VOC's val (2) are 7 images; expected 10582"
        in message
    )
    assert not layout.masks_aug.exists()
    assert not layout.image_set("train_aug").exists()


def test_a_missing_mask_leaves_no_list(sets):
    sbd, layout = sets
    (sbd / "cls" / f"{SBD_ONLY[0]}.mat").unlink()
    with pytest.raises(InputError, match=rf"{SBD_ONLY[0]}\.mat: no such file"):
        build_train_aug(sbd, layout, expected=len(TRAIN_AUG))
    assert not layout.image_set("train_aug").exists()


def test_sbd_is_found_from_its_parents(sets, tmp_path):
    assert find_sbd(tmp_path) == find_sbd(tmp_path / "benchmark_RELEASE") == find_sbd(sets[0]) == sets[0]
    with pytest.raises(InputError, match="no SBD"):
        find_sbd(sets[1].root)


def test_work_is_shared_by_processes(tmp_path):
    """More files than one process is given: the same masks."""
    sbd, layout = tmp_path / "sbd", write_voc(tmp_path / "VOC2012")
    write_sbd(sbd)
    more = [f"2010_{number:06d}" for number in range(60)]
    for name in more:
        shutil.copy(sbd / "cls" / f"{SBD_ONLY[0]}.mat", sbd / "cls" / f"{name}.mat")
    (sbd / "train.txt").write_text("\n".join([*SBD_ONLY, *more]))
    result = build_train_aug(sbd, layout, expected=len(TRAIN_AUG) + len(more))
    assert result.written == len(TRAIN_AUG) + len(more) + len(VAL)
    for name in more:
        np.testing.assert_array_equal(read_mask(layout.mask_aug(name)), mask_of(SBD_ONLY[0], void=False))


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data


HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no MATLAB 5 file"),
        (b"not a mat file" * 100, "no MATLAB 5 file"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n", "a MATLAB 7.3 file"),
        (HEADER, "no SBD mask"),
        (HEADER + element(15, zlib.compress(bytes(80 << 20), 1)), "unpacks to more than the 67108864 bytes"),
        (HEADER + element(15, zlib.compress(bytes(40 << 20), 1)) * 2, "unpacks to more than"),
        (HEADER + struct.pack("<II", 14, 1 << 31), "ends in the middle"),
        (HEADER + element(15, b"damaged" * 10), "no SBD mask"),
        # an array that claims 60000 × 60000 values and brings none
        (
            HEADER
            + element(
                14,
                element(6, struct.pack("<II", 9, 0))
                + element(5, struct.pack("<ii", 60000, 60000))
                + element(1, b"GTcls".ljust(8, b"\0"))
                + struct.pack("<II", 2, 0xD6900000),
            ),
            "no SBD mask|claims more",
        ),
    ],
    ids=["empty", "text", "7.3", "no array", "bomb", "two", "claims more", "damaged", "claims an array"],
)
def test_damaged_and_hostile_files_are_refused(tmp_path, content, reason):
    path = tmp_path / "a.mat"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_sbd_mask(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (np.full((3, 4), 21, np.uint8), "other values"),
        (np.full((3, 4), 0.5), "other values"),
        (np.full((3, 4), np.nan), "other values"),
        (np.full((3, 4), -1), "int|other values"),
        (np.zeros((3, 4, 2), np.uint8), r"shape \(3, 4, 2\)"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4\)"),
    ],
)
def test_masks_that_are_none_are_refused(tmp_path, mask, reason):
    write_mat(tmp_path / "a.mat", mask)
    with pytest.raises(InputError, match=reason):
        read_sbd_mask(tmp_path / "a.mat")


def test_another_struct_is_refused(tmp_path):
    write_mat(tmp_path / "a.mat", np.zeros((3, 4), np.uint8), field="Instances")
    with pytest.raises(InputError, match="no SBD mask"):
        read_sbd_mask(tmp_path / "a.mat")


@pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.int32])
def test_number_types_of_matlab(tmp_path, dtype):
    mask = mask_of(SBD_ONLY[0], void=True)
    write_mat(tmp_path / "a.mat", mask.astype(dtype))
    np.testing.assert_array_equal(read_sbd_mask(tmp_path / "a.mat"), mask)


def test_damage_that_crashes_the_library_is_told(tmp_path):
    """Within the compressed part, where no check sum is in the way; SciPy's reader crashes on some of these."""
    write_mat(tmp_path / "good.mat", np.eye(12, dtype=np.uint8))
    good, said = (tmp_path / "good.mat").read_bytes(), set()
    for seed in range(300):
        (tmp_path / "a.mat").write_bytes(matlab(good, random.Random(seed)))
        try:
            read_sbd_mask(tmp_path / "a.mat")
        except InputError as error:
            said.add(str(error).partition("(")[2][:25])
    assert "reading it crashes the li" in said
    assert len(said) > 5
