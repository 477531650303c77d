"""Images that were dropped or turned without a word: rarer formats, orientations, animations, files that are none."""

from __future__ import annotations

import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from parity_tests.small_voc import write_voc
from repro.cli import run_command
from repro.data import find_images, image_survey, read_image_rgb, write_mask
from repro.data.image_survey import is_turned, survey_images
from repro.data.images import image_size
from repro.errors import InputError
from repro.fetch.verify import verify
from repro.models import build_model
from weights_conversion import save_safetensors

PIXELS = np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)


def save(path, orientation=None, **options):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(path, exif=exif, **options)
    return path


def animated(path):
    frames = [Image.fromarray(np.full((4, 5, 3), value, np.uint8)) for value in (0, 255)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


@pytest.mark.parametrize("suffix", [".webp", ".tif", ".tiff", ".bmp", ".png", ".ppm", ".WEBP"])
def test_lossless_formats_are_read(tmp_path, suffix):
    options = {"lossless": True} if suffix.lower() == ".webp" else {}
    path = tmp_path / f"a{suffix}"
    Image.fromarray(PIXELS).save(path, **options)
    assert find_images(tmp_path) == {"a": path}
    np.testing.assert_array_equal(read_image_rgb(path), PIXELS)
    assert image_size(path) == (12, 16)


def test_gif_is_read(tmp_path):
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "a.gif")
    assert read_image_rgb(find_images(tmp_path)["a"]).shape == (4, 5, 3)


def test_what_is_no_image_is_counted_and_what_is_hidden_is_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    save(tmp_path / "a.png")
    for name in ("notes.txt", "b.xml", "._a.png", ".DS_Store"):
        (tmp_path / name).write_bytes(b"?")
    assert list(find_images(tmp_path)) == ["a"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "2 files are not taken for images by their names; the first: b.xml" in line


def test_sub_folders_are_told(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    save(tmp_path / "a.png")
    for name in ("more", ".hidden"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "b.png")
    assert list(find_images(tmp_path)) == ["a"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "1 sub-folders are not looked into; the first: more" in line


def test_two_formats_of_one_image_are_refused(tmp_path):
    save(tmp_path / "a.jpg")
    save(tmp_path / "a.webp")
    with pytest.raises(InputError, match=r"a\.jpg and a\.webp would share a mask"):
        find_images(tmp_path)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_orientations_are_told_and_not_applied(tmp_path, suffix, orientation):
    path = save(tmp_path / f"a{suffix}", orientation)
    assert is_turned(path) == (orientation in (3, 6, 8))
    assert read_image_rgb(path).shape == (12, 16, 3)


def test_tiff_is_turned_by_pillow_and_so_is_its_size(tmp_path):
    path = save(tmp_path / "a.tif", 6)
    assert read_image_rgb(path).shape == (16, 12, 3)
    assert image_size(path) == (16, 12)
    assert not is_turned(path)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".tif", ".png"])
def test_the_first_frame_of_an_animation_is_taken(tmp_path, suffix):
    path = animated(tmp_path / f"a{suffix}")
    assert read_image_rgb(path).max() < 10
    (line,) = survey_images([path])
    assert line == f"1 of 1 images have several frames, of which the first is taken; the first: {path}"


def test_a_line_tells_how_many(tmp_path, caplog):
    paths = [save(tmp_path / f"{n}.jpg", 6 if n % 2 else 1) for n in range(5)]
    assert survey_images(paths) == [
        f"2 of 5 images carry an EXIF orientation, which is not applied; the first: {paths[1]}"
    ]
    assert len(caplog.records) == 1
    assert survey_images(paths[:1]) == survey_images([]) == []


def test_masks_among_the_images_are_told(tmp_path):
    paths = [save(tmp_path / "a.jpg"), save(tmp_path / "b.png"), tmp_path / "c.png", tmp_path / "d.gif"]
    write_mask(paths[2], np.eye(4, dtype=np.uint8))
    Image.new("P", (4, 4)).save(paths[3])
    (line,) = survey_images(paths)
    assert line == (
        f"1 of 4 images are PNGs with a palette, as masks are; they are read as photographs; the first: {paths[2]}"
    )


def test_of_a_large_set_a_part_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(image_survey, "LOOKED_AT", 2)
    paths = [save(tmp_path / f"{n}.jpg", 6) for n in range(5)]
    (line,) = survey_images(paths)
    assert line.startswith("2 of 2 images looked at (5 in all) carry")


def test_damaged_files_are_left_to_their_readers(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff")
    assert survey_images([tmp_path / "a.jpg", tmp_path / "absent.jpg"]) == []


def test_predict_takes_every_format_and_tells(tmp_path, capsys, caplog):
    photos = tmp_path / "photos"
    photos.mkdir()
    save(photos / "a.webp")
    save(photos / "b.jpg", 6)
    (photos / "list.txt").write_text("a\n")
    weights = tmp_path / "weights.safetensors"
    save_safetensors(build_model("vgg16_aspp", num_classes=7, width_divisor=16), weights)
    status = run_command(
        [
            *("predict", "--config", "mini", "--weights", str(weights), "--images", str(photos)),
            *("--out", str(tmp_path / "masks"), "device=cpu", "inference.crf=false"),
        ]
    )
    assert status == 0
    assert {path.name for path in (tmp_path / "masks").glob("*.png")} == {"a.png", "b.png"}
    assert "1 of 2 images carry an EXIF orientation" in caplog.text


def test_verify_counts_turned_images(tmp_path):
    layout = write_voc(tmp_path / "VOC2012")
    save(tmp_path / "turned.jpg", 6)
    shutil.copy(tmp_path / "turned.jpg", layout.image("2007_000001"))
    (check,) = (check for check in verify(layout.root, partial=True).checks if check.name == "images")
    assert "1 carry an EXIF orientation" in str(check)


def test_pipes_and_endless_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    assert survey_images([tmp_path / "pipe.jpg", tmp_path / "zero.jpg"]) == []
