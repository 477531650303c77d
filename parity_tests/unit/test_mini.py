"""The embedded set: VOC's layout, cues that lie where they should, the same set from the same seed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from parity_tests.conftest import DRAW_SCENE, SIDES
from repro.constants import VOID
from repro.data import CueFile, VocLayout, colour_palette, convert_cues, read_id_list, read_pairs_list
from repro.data import mini as mini_module
from repro.data.mini import CLASSES, GRID, build_mini
from repro.data.voc import read_mask
from repro.errors import InputError

TRAIN, VAL = 24, 8


@pytest.fixture(scope="module", autouse=True)
def scenes_as_they_are():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mini_module, "_draw_scene", DRAW_SCENE)
        patch.setattr(mini_module, "_SIDES", SIDES)
        yield


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> VocLayout:
    return build_mini(tmp_path_factory.mktemp("mini") / "set", train=TRAIN, val=VAL)


@pytest.fixture(scope="module")
def cues(mini) -> CueFile:
    return CueFile.open(mini.root / "localization_cues.pickle")


def file_bytes(root) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def on_grid(mask: np.ndarray) -> np.ndarray:
    """The mask at the pixels that the cells of a corner-aligned grid stand for."""
    return mask[np.ix_(*(np.rint(np.linspace(0, side - 1, GRID)).astype(int) for side in mask.shape))]


def names(mini) -> list[str]:
    return read_id_list(mini.image_set("train_aug")) + read_id_list(mini.image_set("val"))


def test_lists_name_what_is_there(mini):
    train, val = (read_id_list(mini.image_set(name)) for name in ("train_aug", "val"))
    assert (len(train), len(val)) == (TRAIN, VAL)
    assert {p.name for p in mini.images.iterdir()} == {f"{name}.jpg" for name in train + val}
    assert {p.name for p in mini.masks.iterdir()} == {f"{name}.png" for name in train + val}
    lines = read_pairs_list(mini.root / "input_list.txt")
    assert [line.image for line in lines] == [f"{name}.jpg" for name in train]
    assert sorted(line.cue_index for line in lines) == list(range(TRAIN))


def test_images_and_masks_fit(mini):
    sizes = set()
    for name in names(mini):
        image, picture = Image.open(mini.image(name)), Image.open(mini.mask(name))
        assert image.mode == "RGB"
        assert picture.mode == "P"
        assert picture.getpalette() == colour_palette().ravel().tolist()
        assert image.size == picture.size
        assert min(image.size) >= 120
        assert max(image.size) <= 216
        sizes.add(image.size)
    assert len(sizes) > len(names(mini)) // 2
    assert any(width != height for width, height in sizes)


def test_every_class_occurs_and_some_images_have_two(mini):
    found = [set(np.unique(read_mask(mini.mask(name), len(CLASSES)))) - {0, VOID} for name in names(mini)]
    assert set.union(*found) == set(range(1, len(CLASSES)))
    assert {len(classes) for classes in found} == {1, 2}


def test_borders_are_void_and_nothing_else_is(mini):
    for name in names(mini):
        mask = read_mask(mini.mask(name), len(CLASSES)).astype(int)
        for a, b in ((mask[:, 1:], mask[:, :-1]), (mask[1:], mask[:-1])):
            assert not ((a != b) & (a != VOID) & (b != VOID)).any(), f"{name}: classes touch without a border"
        thick = ndimage.minimum_filter(mask == VOID, 7)  # where three borders meet, 5 pixels
        assert not thick.any(), f"{name}: void wider than a border"
        assert 0 < (mask == VOID).mean() < 0.15


def test_labels_are_the_classes_of_the_mask(mini, cues):
    for line in read_pairs_list(mini.root / "input_list.txt"):
        mask = read_mask(mini.masks / line.image.replace("jpg", "png"), len(CLASSES))
        labels = cues.labels(line.cue_index)
        np.testing.assert_array_equal(labels, np.setdiff1d(mask, [0, VOID]), err_msg=line.image)


def test_every_cue_lies_inside_its_class(mini, cues):
    shares = []
    for line in read_pairs_list(mini.root / "input_list.txt"):
        cells = on_grid(read_mask(mini.masks / line.image.replace("jpg", "png"), len(CLASSES)))
        classes, rows, columns = cues.cues(line.cue_index)
        np.testing.assert_array_equal(cells[rows, columns], classes, err_msg=line.image)
        assert len(set(zip(rows, columns, strict=True))) == len(rows), f"{line.image}: a cell has two cues"
        assert set(classes) - {0} == set(cues.labels(line.cue_index)), f"{line.image}: a class without cue"
        assert (classes == 0).any(), f"{line.image}: no background cue"
        assert (classes == 0).sum() < 0.6 * (cells == 0).sum()
        shares += [(classes == k).sum() / (cells == k).sum() for k in set(classes) - {0}]
    assert max(shares) < 0.6, "a cue is a part of its object"
    assert 0.1 < np.mean(shares) < 0.35


def test_cues_lie_on_the_telling_part_alone():
    for index in range(TRAIN):
        rng = np.random.default_rng([0, 0, index])
        _, mask, instances, parts = mini_module._draw_scene(rng)
        classes, rows, columns = mini_module._draw_cues(rng, mask, instances, parts)
        instances, parts = on_grid(instances), on_grid(parts)
        for instance in range(1, instances.max() + 1):
            cue = (classes > 0) & (instances[rows, columns] == instance)
            seen = parts[(instances == instance) & (on_grid(mask) != VOID)]
            if seen.size:
                assert set(parts[rows[cue], columns[cue]]) == {seen.max()}


def test_pickle_is_the_originals_and_converts(mini, cues, tmp_path):
    assert (mini.root / "localization_cues.pickle").read_bytes()[:2] == b"\x80\x02"  # protocol 2
    convert_cues(mini.root / "localization_cues.pickle", tmp_path / "cues.h5")
    converted = CueFile.open(tmp_path / "cues.h5")
    for index in range(TRAIN):
        np.testing.assert_array_equal(converted.cues(index), cues.cues(index))
        np.testing.assert_array_equal(converted.labels(index), cues.labels(index))


def test_same_seed_same_bytes(mini, tmp_path):
    again = build_mini(tmp_path / "again", train=TRAIN, val=VAL)
    assert file_bytes(again.root) == file_bytes(mini.root)


def test_another_seed_gives_other_images(mini, tmp_path):
    other = build_mini(tmp_path / "other", seed=1, train=2, val=1)
    for name in names(other):
        assert other.image(name).read_bytes() != mini.image(name).read_bytes()


def test_a_larger_set_holds_the_smaller(mini, tmp_path):
    small = build_mini(tmp_path / "small", train=2, val=1)
    for name in names(small):
        assert small.image(name).read_bytes() == mini.image(name).read_bytes()
        assert small.mask(name).read_bytes() == mini.mask(name).read_bytes()


def test_second_call_builds_nothing(tmp_path):
    build_mini(tmp_path / "set", train=2, val=1)
    (tmp_path / "set" / "localization_cues.h5").write_bytes(b"made of the pickle later")
    before = {path: path.stat() for path in (tmp_path / "set").rglob("*")}
    assert build_mini(tmp_path / "set", train=2, val=1).root == tmp_path / "set"
    after = {path: path.stat() for path in (tmp_path / "set").rglob("*")}
    assert {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in after.items()} == {
        path: (stat.st_ino, stat.st_mtime_ns) for path, stat in before.items()
    }
    assert [p.name for p in tmp_path.iterdir()] == ["set"]  # no workshop left behind


@pytest.mark.parametrize("change", ["parameters", "lost file", "changed file", "damaged marker"])
def test_a_set_that_differs_is_replaced(tmp_path, change):
    build_mini(tmp_path / "set", train=2, val=1)
    wanted = file_bytes(tmp_path / "set")
    if change == "parameters":
        build_mini(tmp_path / "set", train=3, val=1, seed=4)
    elif change == "lost file":
        (tmp_path / "set/SegmentationClass/mini_val_0000.png").unlink()
    elif change == "changed file":
        (tmp_path / "set/input_list.txt").write_text("mini_train_0000.jpg 1\n")
    else:
        (tmp_path / "set/mini.json").write_text("{")
    build_mini(tmp_path / "set", train=2, val=1)
    assert file_bytes(tmp_path / "set") == wanted
    assert json.loads((tmp_path / "set/mini.json").read_text())["classes"] == list(CLASSES)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("occupied", ["folder", "file"])
def test_what_is_not_the_set_is_left_alone(tmp_path, occupied):
    target = tmp_path / "mine"
    precious = target / "thesis.txt" if occupied == "folder" else target
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("years of work")
    with pytest.raises(InputError, match="mine: expected a new or empty folder"):
        build_mini(target, train=1, val=1)
    assert precious.read_text() == "years of work"


def test_a_build_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    before = file_bytes(build_mini(tmp_path / "set", train=2, val=1).root)

    def fail(*_, **__):
        raise RuntimeError("disk full")

    monkeypatch.setattr(mini_module.pickle, "dump", fail)
    for root in (tmp_path / "set", tmp_path / "new"):
        with pytest.raises(RuntimeError):
            build_mini(root, seed=1, train=1, val=1)
    assert file_bytes(tmp_path / "set") == before
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"seed": -1}, "seed=-1, expected 0"), ({"train": 0}, "train=0, expected 1"), ({"val": 0}, "val=0")],
)
def test_numbers_out_of_range(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        build_mini(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()
