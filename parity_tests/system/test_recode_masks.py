"""``repro data masks``: what colours and object masks become, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from repro.cli import run_command
from repro.data import colour_palette, read_mask
from repro.data.recode_masks import recode_masks
from repro.errors import InputError

INDICES = np.array([[0, 0, 1], [15, 20, 255]], np.uint8)
OBJECT = np.array([[0, 0, 1], [0, 1, 1]], np.uint8)


def save(path, values, *, mode=None, palette=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette is not None:
        image.putpalette(np.asarray(palette, np.uint8).tobytes())
    if mode is not None:
        image = image.convert(mode)
    image.save(path, **options)
    return path


def recode(tmp_path, *options):
    return run_command(["data", "masks", str(tmp_path / "in"), str(tmp_path / "out"), *options])


def odd_palette() -> np.ndarray:
    """VOC's colours of 0, 1, 15, 20 and 255 on the indices 0 to 4."""
    palette = np.zeros((256, 3), np.uint8)
    palette[:5] = colour_palette()[[0, 1, 15, 20, 255]]
    return palette


ODD = np.array([[0, 0, 1], [2, 3, 4]], np.uint8)
COLOURS = {
    "RGB": lambda path: save(path, colour_palette()[INDICES]),
    "RGBA": lambda path: save(path, colour_palette()[INDICES], mode="RGBA"),
    "a palette of another order": lambda path: save(path, ODD, palette=odd_palette()),
    "VOC's own": lambda path: save(path, INDICES, palette=colour_palette()),
    "grey": lambda path: save(path, INDICES),
    "grey of 16 bits": lambda path: save(path, INDICES.astype(np.uint16)),
    "grey with alpha": lambda path: save(path, INDICES, mode="LA"),
}


@pytest.mark.parametrize("form", COLOURS)
def test_classes(tmp_path, capsys, form):
    source = COLOURS[form](tmp_path / "in" / "m.png")
    before = source.read_bytes()
    assert recode(tmp_path) == 0
    assert "1 masks, read as " in capsys.readouterr().out
    assert read_mask(tmp_path / "out" / "m.png").tolist() == INDICES.tolist()
    assert source.read_bytes() == before


def write_grey(path, values, bits):
    """A grey PNG of few bits, which Pillow does not write."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(
        b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes()
        for row in values
    )
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


BRIGHT = [[255, 255, 255]] * 256
OBJECTS = {
    "0 and 255": lambda path: save(path, OBJECT * 255),
    "0 and 1": lambda path: save(path, OBJECT),
    "0 and 200": lambda path: save(path, OBJECT * 200),
    "one bit": lambda path: save(path, OBJECT.astype(bool)),
    "RGB of black and white": lambda path: save(path, np.repeat(OBJECT[:, :, None] * 255, 3, axis=2)),
    "0 and 1, both white": lambda path: save(path, OBJECT, palette=BRIGHT),
    "grey of 2 bits": lambda path: write_grey(path, OBJECT, 2),
    "grey of 4 bits": lambda path: write_grey(path, OBJECT, 4),
}


@pytest.mark.parametrize("form", OBJECTS)
def test_objects(tmp_path, capsys, form):
    OBJECTS[form](tmp_path / "in" / "m.png")
    assert recode(tmp_path, "--num-classes", "2") == 0
    capsys.readouterr()
    assert read_mask(tmp_path / "out" / "m.png", 2).tolist() == OBJECT.tolist()


def test_grey_of_4_bits_keeps_its_classes(tmp_path):
    values = np.array([[0, 3, 14], [7, 0, 0]], np.uint8)
    write_grey(tmp_path / "in" / "m.png", values, 4)
    assert recode(tmp_path) == 0
    assert read_mask(tmp_path / "out" / "m.png").tolist() == values.tolist()


def test_the_whole_set_decides(tmp_path):
    """A mask of 0 and 255 is one of void where others show classes; a black one is one of colours where others are."""
    save(tmp_path / "a" / "x.png", OBJECT * 255)
    save(tmp_path / "a" / "y.png", INDICES)
    assert recode_masks(tmp_path / "a", tmp_path / "a2", 21)[0] == "indices"
    assert read_mask(tmp_path / "a2" / "x.png").tolist() == (OBJECT * 255).tolist()
    save(tmp_path / "b" / "x.png", colour_palette()[OBJECT * 0])
    save(tmp_path / "b" / "y.png", colour_palette()[OBJECT * 7])  # VOC's car is grey
    save(tmp_path / "b" / "z.png", colour_palette()[INDICES])
    assert recode_masks(tmp_path / "b", tmp_path / "b2", 21)[0] == "colours"
    assert read_mask(tmp_path / "b2" / "y.png").tolist() == (OBJECT * 7).tolist()


def test_what_may_be_two_things_is_asked_for(tmp_path, capsys):
    save(tmp_path / "in" / "m.png", colour_palette()[OBJECT * 7])
    assert recode(tmp_path) == 2
    assert "may be anything" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert recode(tmp_path, "--coding", "colours") == 0
    assert read_mask(tmp_path / "out" / "m.png").tolist() == (OBJECT * 7).tolist()


def blend(path):
    colours = colour_palette()[INDICES]
    colours[1, 2] = (96, 0, 1)
    save(path, colours)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            blend,
            (),
            "m.png: colour (96, 0, 1) at row 1, column 2, one of VOC's colours of the 21 classes expected",
        ),
        (COLOURS["RGB"], ("--num-classes", "20"), "m.png: colour (0, 64, 128) at row 1, column 1"),
        (
            COLOURS["grey"],
            ("--num-classes", "20", "--coding", "indices"),
            "m.png: class 20 at row 1, column 1",
        ),
        (
            COLOURS["grey"],
            ("--coding", "object"),
            "m.png: values 0, 1, 15, 20, 255; expected 0 and one other",
        ),
        (
            lambda path: save(path, OBJECT.astype(np.uint16) * 300),
            (),
            "m.png: grey of 16 bits with the value 300",
        ),
        (lambda path: path.parent.mkdir(), (), "in: no mask (*.png) in it"),
        (lambda path: None, (), "in: no such folder of masks"),
        (lambda path: (path.parent.mkdir(), path.write_bytes(b"\x89PNG")), (), "m.png: "),
    ],
)
def test_refusals_are_a_line_and_write_nothing(tmp_path, capsys, make, options, message):
    make(tmp_path / "in" / "m.png")
    if (tmp_path / "in" / "m.png").exists():
        save(tmp_path / "in" / "a.png", colour_palette()[INDICES * 0])
    assert recode(tmp_path, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_transparent_pixels_are_background(tmp_path, capsys):
    """A white object cut out: the colour is white everywhere, the object is what is opaque."""
    white = np.full((*OBJECT.shape, 4), 255, np.uint8)
    white[:, :, 3] = OBJECT * 255
    save(tmp_path / "in" / "m.png", white)
    assert recode(tmp_path) == 0
    assert read_mask(tmp_path / "out" / "m.png").tolist() == OBJECT.tolist()
    white[0, 0, 3] = 128
    save(tmp_path / "soft" / "m.png", white)
    capsys.readouterr()
    assert run_command(["data", "masks", str(tmp_path / "soft"), str(tmp_path / "out2")]) == 2
    assert "m.png: half transparent pixels" in capsys.readouterr().err
    assert not (tmp_path / "out2").exists()


def test_never_over_the_source_nor_into_a_folder_that_holds_something(tmp_path, capsys):
    source = save(tmp_path / "in" / "m.png", OBJECT * 255).parent
    save(tmp_path / "full" / "other.png", OBJECT)
    for target in (source, source / "new", tmp_path / "full"):
        assert run_command(["data", "masks", str(source), str(target)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*.png")] == ["m.png", "other.png"] or len(
        list(tmp_path.rglob("*.png"))
    ) == 2


def test_colours_and_values_do_not_mix(tmp_path):
    save(tmp_path / "in" / "a.png", INDICES)
    save(tmp_path / "in" / "b.png", colour_palette()[INDICES])
    with pytest.raises(InputError, match=r"a\.png: grey values, while .*b\.png holds colours"):
        recode_masks(tmp_path / "in", tmp_path / "out", 21)
