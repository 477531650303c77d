"""Masks of other tools: object masks of 0 and 255, grey of few bits, palettes in another order, too few classes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from repro.cli import run_command
from repro.config import load_config
from repro.data import colour_palette, write_mask
from repro.data.mask_set import MaskSet, check_masks
from repro.data.mini import build_mini
from repro.data.voc import read_mask
from repro.errors import InputError

OBJECT = np.zeros((12, 16), np.uint8)
OBJECT[3:9, 4:12] = 1


def save(path, mask, **options):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(mask).save(path, format="PNG", **options)
    return path


def grey_of_few_bits(path, mask, bits):
    """A PNG of ``bits`` a pixel, whose values are the indices themselves, as pypng and ImageMagick write them."""
    height, width = mask.shape
    per_byte = 8 // bits
    padded = np.zeros((height, -(-width // per_byte) * per_byte), np.uint8)
    padded[:, :width] = mask
    shifts = np.arange(per_byte)[::-1] * bits
    rows = (padded.reshape(height, -1, per_byte) << shifts).sum(axis=2).astype(np.uint8)
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )
    return path


# --- one mask -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_two_or_four_bits_is_refused(tmp_path, bits):
    """Pillow scales it: 1 becomes 85 or 17, which is a class (sheep) with VOC's 21."""
    path = grey_of_few_bits(tmp_path / "mask.png", OBJECT, bits)
    with pytest.raises(InputError, match=f"grey of {bits} bits"):
        read_mask(path)


def test_grey_of_eight_bits_is_read(tmp_path):
    path = grey_of_few_bits(tmp_path / "mask.png", OBJECT, 8)
    np.testing.assert_array_equal(read_mask(path), OBJECT)


def test_one_bit_is_told(tmp_path):
    masks = MaskSet(21)
    for name in "ab":
        masks.read(grey_of_few_bits(tmp_path / f"{name}.png", OBJECT, 1))
    (line,) = masks.lines()
    assert line.startswith(f"{tmp_path}/a.png and 1 more: grey of 1 bit")
    assert "object masks of 0 and 255" in masks.trouble()


@pytest.mark.parametrize("swapped", [(1, 2), (3, 15), (20, 7)])
def test_a_palette_in_another_order_is_told(tmp_path, swapped):
    colours = colour_palette().copy()
    colours[list(swapped)] = colours[list(swapped[::-1])]
    image = Image.fromarray(np.array([[0, swapped[0], 255]], np.uint8))
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "mask.png")
    masks = MaskSet(21)
    assert masks.read(tmp_path / "mask.png").tolist() == [[0, swapped[0], 255]]
    (line,) = masks.lines()
    assert f"index {swapped[0]} has VOC's colour of class {swapped[1]}" in line


@pytest.mark.parametrize("colours", ["voc", "greys", "own", "short"])
def test_other_palettes_are_no_doubt(tmp_path, colours):
    mask = np.arange(21, dtype=np.uint8)[None]
    image = Image.fromarray(mask)
    palettes = {
        "voc": colour_palette(),
        "greys": np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1),
        "own": np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 7)], axis=1).astype(np.uint8),
        "short": colour_palette()[:21],
    }
    image.putpalette(palettes[colours].tobytes())
    image.save(tmp_path / "mask.png")
    masks = MaskSet(21)
    masks.read(tmp_path / "mask.png")
    assert masks.lines() == []


# --- a set --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "trouble"),
    [
        ([0, 255], "object masks of 0 and 255"),
        ([0], "no class but background"),
        ([255], "all void"),
        ([0, 1], ""),
    ],
)
def test_a_set_without_a_class_is_refused(tmp_path, values, trouble):
    paths = [save(tmp_path / f"{n}.png", np.full((2, 2), value, np.uint8)) for n, value in enumerate(values)]
    if not trouble:
        check_masks(paths, 21)
        return
    with pytest.raises(InputError, match=trouble):
        check_masks(paths, 21)


def test_checking_stops_at_the_first_mask_that_holds_a_class(tmp_path):
    check_masks([save(tmp_path / "a.png", OBJECT), tmp_path / "not there.png"], 21)


def test_background_alone_may_be_predicted_but_not_255(tmp_path, caplog):
    nothing = save(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    check_masks([nothing], 21, are_predicted=True)
    assert "no class but background" in caplog.text
    with pytest.raises(InputError, match="object masks of 0 and 255"):
        check_masks([nothing, save(tmp_path / "b.png", OBJECT * 255)], 21, are_predicted=True)


def test_sets_read_by_several_processes_are_one(tmp_path):
    parts = [MaskSet(3), MaskSet(3)]
    parts[0].read(save(tmp_path / "a.png", np.zeros((2, 2), np.uint8)))
    parts[1].read(save(tmp_path / "b.png", OBJECT))
    together = MaskSet(3)
    for part in parts:
        together.add(part)
    assert together.seen == {0, 1}
    assert together.trouble() == ""


# --- evaluate -----------------------------------------------------------------------------------------------


def evaluate(tmp_path, capsys, truth, prediction, *options):
    save(tmp_path / "gt" / "m.png", truth)
    save(tmp_path / "pred" / "m.png", prediction)
    (tmp_path / "ids.txt").write_text("m\n")
    status = run_command(
        [
            *("evaluate", "--pred", str(tmp_path / "pred"), "--gt", str(tmp_path / "gt")),
            *("--list", str(tmp_path / "ids.txt"), "--out", str(tmp_path / "scores.json"), *options),
        ]
    )
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_object_masks_of_0_and_255_do_not_score_100(tmp_path, capsys):
    nothing = np.zeros_like(OBJECT)
    status, out, err = evaluate(tmp_path, capsys, OBJECT * 255, nothing)
    assert (status, out) == (2, "")
    assert "object masks of 0 and 255" in err
    status, out, _ = evaluate(tmp_path, capsys, OBJECT, nothing)
    assert status == 0
    assert "pixel accuracy              75.00" in out


SEVEN = (np.arange(12 * 16).reshape(12, 16) % 7).astype(np.uint8)


def test_classes_that_no_mask_shows_are_named(tmp_path, capsys):
    status, out, _ = evaluate(tmp_path, capsys, SEVEN, SEVEN)
    assert status == 0
    assert "mean IoU, rule voc          33.33" in out
    assert "mean IoU, rule present      100.00" in out
    rules = [line for line in out.splitlines() if line.startswith("mean IoU")]
    assert "rule voc" in rules[0]  # the field's comes first
    assert "mean IoU, rule released     100.00  (counts only classes with a correct pixel)" in rules
    assert "aeroplane                   100.00" in out
    assert "14 of the 21 classes are in no ground-truth mask: car, cat, chair" in out
    assert json.loads((tmp_path / "scores.json").read_text())["mean_iou"]["present"] == 1


@pytest.mark.parametrize("form", ["--num-classes", "--classes", "file", "--config"])
def test_the_classes_can_be_said(tmp_path, capsys, form):
    names = load_config("mini").dataset.classes
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    options = {
        "--num-classes": ("--num-classes", "7"),
        "--classes": ("--classes", ",".join(names)),
        "file": ("--classes", str(tmp_path / "names.txt")),
        "--config": ("--config", "mini"),
    }
    status, out, _ = evaluate(tmp_path, capsys, SEVEN, SEVEN, *options[form])
    assert status == 0
    assert "mean IoU, rule voc          100.00" in out
    assert "in no ground-truth mask" not in out
    assert f"{'class 3' if form == '--num-classes' else 'house':<28}100.00" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--classes", "background,cat", "--config", "mini"), "give one of"),
        (("--classes", "background"), "2 to 255 different names"),
        (("--classes", "background,cat,cat"), "2 to 255 different names"),
        (("--classes", "background,cat"), "class 2; expected 0 to 1 or 255"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, capsys, options, message):
    status, _, err = evaluate(tmp_path, capsys, SEVEN, SEVEN, *options)
    assert status == 2
    assert message in err


def test_a_prediction_beyond_the_classes_or_of_another_size_is_refused(tmp_path, capsys):
    status, _, err = evaluate(tmp_path, capsys, OBJECT, SEVEN, "--num-classes", "2")
    assert status == 2
    assert "pred/m.png: class 2; expected 0 to 1 or 255" in err
    status, _, err = evaluate(tmp_path, capsys, OBJECT, OBJECT[:, :8], "--num-classes", "2")
    assert status == 2
    assert "8×12 pixels, expected 16×12" in err


# --- the others that read masks as a set ----------------------------------------------------------------------


@pytest.fixture
def mini(tmp_path):
    layout = build_mini(tmp_path / "mini", train=4, val=2)
    for path in layout.masks.iterdir():
        mask = read_mask(path, 7)
        write_mask(path, np.where(mask > 0, 255, 0).astype(np.uint8))
    return layout


def test_seeds_score_refuses(mini, capsys):
    root = mini.root
    status = run_command(
        [
            *("seeds", "score", "--config", "mini", "--cues", str(root / "localization_cues.pickle")),
            *("--input-list", str(root / "input_list.txt"), "--masks", str(mini.masks)),
        ]
    )
    assert status == 2
    assert "no class but background" in capsys.readouterr().err


@pytest.mark.parametrize("stage", [1, 2])
def test_training_refuses(mini, tmp_path, capsys, stage):
    (tmp_path / "pairs.txt").write_text(
        "".join(f"{p.stem}.jpg {p.name}\n" for p in sorted(mini.masks.iterdir()))
    )
    given = {
        1: [
            *(f"data.list={mini.root}/input_list.txt", f"data.cues={mini.root}/localization_cues.pickle"),
            f"data.truth_root={mini.masks}",
        ],
        2: [f"data.list={tmp_path}/pairs.txt", f"data.label_root={mini.masks}"],
    }
    status = run_command(
        [
            *(
                "train",
                "--stage",
                str(stage),
                "--config",
                "mini",
                f"data.image_root={mini.images}",
                *given[stage],
            ),
            *("data.workers=0", f"output={tmp_path}/run"),
        ]
    )
    assert status == 2
    assert "no class but background" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_reproduce_refuses_before_it_trains(mini, tmp_path, capsys):
    status = run_command(
        [
            "reproduce",
            "--config",
            "mini",
            "dataset.kind=voc",
            f"dataset.root={mini.root}",
            f"output={tmp_path}/run",
        ]
    )
    assert status == 2
    assert "no class but background" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
