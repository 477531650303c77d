"""Folders of images: batches of one size, files that cannot be used, going on where a call stopped."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from parity_tests.conftest import CAFFE_FILES
from repro.cli import run_command
from repro.data import read_image_rgb, read_mask
from repro.errors import InputError
from repro.inference.batch_predict import predict_folder


class Recorder:
    """An engine whose mask is the red channel, and which remembers its calls."""

    def __init__(self, batch_size: int, refuses: int = -1) -> None:
        self.batch_size, self.refuses = batch_size, refuses
        self.calls: list[tuple[int, ...]] = []
        self.labels: list[object] = []

    def masks(self, images, labels=None):
        self.calls.append(images.shape[:3])
        self.labels.append(labels)
        if images.shape[1] == self.refuses:
            raise InputError("an image this engine cannot take")
        return images[..., 0] % 21


def save(folder, sizes, rng):
    images = {}
    for index, (height, width) in enumerate(sizes):
        path = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        images[str(index)] = path
    return images


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_batches_hold_one_size_and_every_image_gets_its_own_mask(tmp_path, rng):
    images = save(tmp_path, [(4, 6), (6, 4), (4, 6), (4, 6), (6, 4), (4, 6), (5, 5)], rng)
    engine = Recorder(batch_size=3)
    result = predict_folder(engine, images, tmp_path / "masks", described={}, labels=lambda name: [int(name)])
    assert (result.written, result.kept, result.failures) == (7, 0, {})
    assert sorted(engine.calls) == [(1, 4, 6), (1, 5, 5), (2, 6, 4), (3, 4, 6)]
    assert engine.labels[0] == [[0], [2], [3]]
    for name, path in images.items():
        mask = read_mask(tmp_path / "masks" / f"{name}.png")
        np.testing.assert_array_equal(mask, read_image_rgb(path)[..., 0] % 21)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path, rng):
    (tmp_path / "masks").write_text("kept")
    with pytest.raises(InputError, match="masks: a file, a folder for the masks expected"):
        predict_folder(
            Recorder(batch_size=1), save(tmp_path, [(4, 6)], rng), tmp_path / "masks", described={}
        )
    assert (tmp_path / "masks").read_text() == "kept"


@pytest.mark.parametrize("form", ["itself", "link", "dots"])
def test_masks_do_not_go_among_the_images(tmp_path, form):
    """The next call would take them for images."""
    photos, link = tmp_path / "photos", tmp_path / "link"
    photos.mkdir()
    link.symlink_to(photos)
    Image.new("RGB", (4, 4)).save(photos / "a.jpg")
    out = {"itself": photos, "link": link, "dots": photos / ".." / "photos"}[form]
    with pytest.raises(InputError, match="the images are in this folder"):
        predict_folder(Recorder(batch_size=1), {"a": photos / "a.jpg"}, out, described={})
    assert [path.name for path in photos.iterdir()] == ["a.jpg"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path, rng):
    images, out = save(tmp_path, [(4, 6)], rng), tmp_path / "0.png" / "masks"
    with pytest.raises(OSError, match=r"expected a folder, .*0\.png is a file") as caught:
        predict_folder(Recorder(batch_size=1), images, out, described={})
    assert caught.value.filename == str(out)


def test_images_of_many_sizes_do_not_pile_up(tmp_path, rng):
    images = save(tmp_path, [(4, 4 + index) for index in range(20)], rng)
    engine = Recorder(batch_size=2)
    waiting: list[int] = []
    inner = engine.masks
    engine.masks = lambda pictures, labels=None: waiting.append(len(engine.calls)) or inner(pictures, labels)
    assert predict_folder(engine, images, tmp_path / "masks", described={}).written == 20
    assert engine.calls[0] == (1, 4, 4)  # given up waiting for another one of its size
    assert len(engine.calls) == 20


@pytest.mark.parametrize(("silence", "lines"), [(-1.0, ["2 of 5", "4 of 5", "5 of 5"]), (3600.0, [])])
def test_without_a_terminal_a_line_tells_how_far_it_is(tmp_path, rng, caplog, monkeypatch, silence, lines):
    caplog.set_level("INFO")
    monkeypatch.setattr("repro.inference.batch_predict._SILENCE", silence)
    images = save(tmp_path, [(4, 6)] * 5, rng)
    predict_folder(Recorder(batch_size=2), images, tmp_path / "masks", described={}, title="masks")
    assert caplog.messages == [f"masks: {line} images" for line in lines]


def test_bad_images_are_listed_and_the_others_go_on(tmp_path, rng):
    images = save(tmp_path, [(4, 6)] * 3 + [(9, 6)], rng)
    images["1"].write_bytes(b"")
    engine = Recorder(batch_size=2, refuses=9)
    result = predict_folder(engine, images, tmp_path / "masks", described={})
    assert result.written == 2
    assert result.failures == {
        "1": f"{images['1']}: the image file is empty (0 bytes)",
        "3": f"{images['3']}: an image this engine cannot take",
    }
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["0.png", "2.png", "settings.json"]


def test_an_interruption_keeps_the_masks_that_were_made(tmp_path, rng):
    images = save(tmp_path, [(4, 6)] * 6, rng)
    engine = Recorder(batch_size=1)
    inner = engine.masks

    def interrupted(pictures, labels=None):
        if len(engine.calls) == 3:
            raise KeyboardInterrupt
        return inner(pictures, labels)

    engine.masks = interrupted
    with pytest.raises(KeyboardInterrupt):
        predict_folder(engine, images, tmp_path / "masks", described={"a": 1})
    done = len(list((tmp_path / "masks").glob("[0-9].png")))
    assert done >= 1
    result = predict_folder(Recorder(batch_size=1), images, tmp_path / "masks", described={"a": 1})
    assert (result.kept, result.written) == (done, 6 - done)


def awkward_images(folder, rng):
    """Every kind of file that the issue names; the first four are fine, the others are not."""
    pixels = rng.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "alpha.png")
    Image.fromarray(pixels[..., 0]).save(folder / "grey.png")
    Image.fromarray(pixels, mode="CMYK").save(folder / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels[..., :3]).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    (folder / "empty.jpg").write_bytes(b"")
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    (folder / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header)


def test_predict_lists_what_failed_with_status_1(tmp_path, rng, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    awkward_images(folder, rng)
    arguments = [
        *("predict", "--config", "dsrg_vgg16_voc", "--weights", str(CAFFE_FILES / "stage1_init.caffemodel")),
        *("--images", str(folder), "--out", str(tmp_path / "masks"), "device=cpu"),
        *("model.width_divisor=16", "inference.crf=false"),
    ]
    assert run_command(arguments) == 1
    out, err = capsys.readouterr()
    assert "4 masks written, 0 were there" in out
    lines = [line for line in err.splitlines() if line.startswith(("repro: ", "  "))]
    assert lines[0] == "repro: 3 of 7 images failed:"
    assert [line.split(": ")[0].strip() for line in lines[1:]] == [
        str(folder / name) for name in ("deep.png", "empty.jpg", "huge.png")
    ]
    assert "Traceback" not in err
    assert read_mask(tmp_path / "masks" / "turned.png").shape == (20, 30)  # pixels as stored
