"""VOC's colours, and masks, on the sample and on bad files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from repro.constants import CLASS_NAMES, VOID
from repro.data.image_list import read_id_list
from repro.data.voc import VocLayout, colour_palette, read_mask, write_mask
from repro.errors import InputError


@pytest.fixture
def mask():
    values = np.random.default_rng(3).integers(0, 21, (12, 9)).astype(np.uint8)
    values[0, :4] = VOID
    return values


def test_classes_and_colours():
    assert len(CLASS_NAMES) == 21
    assert CLASS_NAMES[0] == "background"
    assert CLASS_NAMES[15] == "person"
    assert CLASS_NAMES[20] == "tvmonitor"
    palette = colour_palette()
    assert palette.shape == (256, 3)
    assert palette.dtype == np.uint8
    # From the development kit's documentation.
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
    }
    known[VOID] = (224, 224, 192)
    assert {index: tuple(palette[index].tolist()) for index in known} == known
    assert len(np.unique(palette, axis=0)) == 256


def test_palette_is_that_of_vocs_masks(voc_sample):
    path = next(VocLayout.open(voc_sample / "VOCdevkit/VOC2012").masks.glob("*.png"))
    with Image.open(path) as image:
        stored = np.array(image.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(stored, colour_palette()[: len(stored)])


def test_layout(voc_sample):
    layout = VocLayout.open(voc_sample / "VOCdevkit/VOC2012")
    train, val = read_id_list(layout.image_set("train_aug")), read_id_list(layout.image_set("val"))
    assert (len(train), len(val)) == (180, 80)
    assert all(layout.image(name).is_file() and layout.mask_aug(name).is_file() for name in train + val)
    assert all(layout.mask(name).is_file() for name in val)
    with pytest.raises(InputError, match="JPEGImages"):
        VocLayout.open(voc_sample)


def test_palette_and_grey_masks_of_voc_agree(voc_sample):
    layout = VocLayout.open(voc_sample / "VOCdevkit/VOC2012")
    for name in read_id_list(layout.image_set("val"))[:20]:
        palette, grey = read_mask(layout.mask(name)), read_mask(layout.mask_aug(name))
        np.testing.assert_array_equal(palette, grey, err_msg=name)
        assert palette.dtype == np.uint8
        assert palette.max() == VOID


def test_masks_come_back(tmp_path, mask):
    write_mask(tmp_path / "deep" / "palette.png", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "deep" / "palette.png"), mask)
    with Image.open(tmp_path / "deep" / "palette.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image.convert("RGB")), colour_palette()[mask])
    Image.fromarray(mask).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "grey.png"), mask)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["palette.png"]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_masks_of_few_bits(tmp_path, bits):
    mask = (np.arange(12).reshape(3, 4) % min(21, 2**bits)).astype(np.uint8)
    image = Image.fromarray(mask)
    image.putpalette(colour_palette().tobytes())
    image.save(tmp_path / "mask.png", bits=bits)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), mask)


def test_one_bit_grey_is_background_and_void(tmp_path):
    Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1").save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), [[0, 255], [255, 0]])


@pytest.mark.parametrize(
    ("picture", "form", "reason"),
    [
        (np.zeros((3, 3, 3), np.uint8), "PNG", "mode 'RGB'"),
        (np.zeros((3, 3, 4), np.uint8), "PNG", "mode 'RGBA'"),
        (np.full((3, 3), 300, np.uint16), "PNG", "16 bits with the value 300"),
        (np.zeros((3, 3), np.uint8), "JPEG", "a PNG of class indices"),
        (np.full((3, 3), 21, np.uint8), "PNG", "class 21; expected 0 to 20 or 255"),
        (np.full((3, 3), 254, np.uint8), "PNG", "class 254"),
    ],
)
def test_bad_masks(tmp_path, picture, form, reason):
    path = tmp_path / "mask.png"
    Image.fromarray(picture).save(path, format=form)
    with pytest.raises(InputError, match=reason) as caught:
        read_mask(path)
    assert str(path) in str(caught.value)


def test_mask_classes_follow_the_class_count(tmp_path):
    Image.fromarray(np.array([[80, 0]], np.uint8)).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", num_classes=81).max() == 80
    with pytest.raises(InputError, match="class 80"):
        read_mask(tmp_path / "mask.png", num_classes=80)


def test_missing_mask_and_wrong_array(tmp_path):
    with pytest.raises(InputError, match="no such image file"):
        read_mask(tmp_path / "mask.png")
    for wrong in (np.zeros((3, 3), np.int64), np.zeros((3, 3, 1), np.uint8)):
        with pytest.raises(InputError, match="uint8"):
            write_mask(tmp_path / "mask.png", wrong)
    assert not (tmp_path / "mask.png").exists()
