"""The data layers on the recordings and the sample, and the stream of batches that runs through them."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from repro.constants import MEAN_BGR
from repro.data import (
    CueDataset,
    CueFile,
    LabelMapDataset,
    item_rng,
    make_loader,
    read_image_bgr,
    read_label_list,
    resize_bilinear_u8,
    subtract_mean,
    write_cues,
)
from repro.errors import InputError


def save_bgr(path, image):
    Image.fromarray(np.ascontiguousarray(image[:, :, ::-1])).save(path)


def position_of_each_coin() -> dict[bool, int]:
    """A stream position of seed 0 for each side of the coin that is the first draw."""
    return {bool(item_rng(0, position).integers(2)): position for position in range(100)}


# --- stage 1 ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stage1(golden, tmp_path_factory):
    """The recording's images, list and cues as files; ``make(**options)`` gives the layer on them."""
    folder = tmp_path_factory.mktemp("stage1")
    inputs = golden("stage1")["inputs"]
    (folder / "images").mkdir()
    for i in range(6):
        save_bgr(folder / "images" / f"{i}.png", inputs[f"image_bgr_{i}"][()])
    write_cues(
        folder / "cues.pickle", {i: (inputs[f"labels_{i}"][()], inputs[f"cues_{i}"][()]) for i in range(6)}
    )
    (folder / "list.txt").write_text("".join(f"{i}.png {i}\n" for i in range(6)))

    def make(**options) -> CueDataset:
        cues = CueFile.open(options.pop("cues", folder / "cues.pickle"))
        lines = cues.lines(options.pop("list_path", folder / "list.txt"))
        return CueDataset(options.pop("image_root", folder / "images"), lines, cues, **options)

    make.folder = folder
    return make


def test_stage1_batches_are_the_recorded_ones(golden, stage1):
    recorded = golden("stage1")
    batches = list(make_loader(stage1(), batch_size=3, shuffle=False, seed=0, iterations=2))
    for number, batch in enumerate(batches):
        assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
            "images": ((3, 3, 321, 321), torch.float32),
            "labels": ((3, 21), torch.uint8),
            "cues": ((3, 21, 41, 41), torch.uint8),
            "index": ((3,), torch.int64),
        }
        want = recorded[f"image_data/batch{number}_uint8_bgr"][()].astype(np.float32) - np.float32(MEAN_BGR)
        np.testing.assert_array_equal(batch["images"].numpy(), want.transpose(0, 3, 1, 2))
        assert batch["index"].tolist() == [3 * number, 3 * number + 1, 3 * number + 2]
        for labels, i in zip(batch["labels"], batch["index"].tolist(), strict=True):
            present = [0, *recorded[f"inputs/labels_{i}"][()].tolist()]
            assert torch.nonzero(labels).ravel().tolist() == sorted(present)
    np.testing.assert_array_equal(batches[0]["cues"].numpy(), recorded["iteration1/cues"][()])


def test_sec_leaves_background_out_of_the_labels(stage1):
    assert stage1().item(0, item_rng(0, 0))["labels"][0] == 1
    assert stage1(background_label=False).item(0, item_rng(0, 0))["labels"][0] == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_images_change_nothing(stage1, monkeypatch, workers):
    read: list[str] = []

    def counting(path):
        read.append(path)
        return read_image_bgr(path)

    monkeypatch.setattr("repro.data.datasets.read_image_bgr", counting)
    plain, kept = stage1(mirror=True), stage1(mirror=True)
    kept.keep(10**9)
    want = list(make_loader(plain, 4, True, seed=11, iterations=6))
    read.clear()
    assert_same_batches(list(make_loader(kept, 4, True, seed=11, iterations=6, workers=workers)), want)
    # workers are processes of their own: what they have read is in the store all the same
    list(make_loader(kept, 6, False, seed=0, iterations=1))
    assert len(read) == (0 if workers else 6)


def test_mirror_flips_image_and_cues_together(stage1):
    plain, mirrored = stage1(), stage1(mirror=True)
    positions = position_of_each_coin()
    for index in range(6):
        want = plain.item(index, item_rng(0, 0))
        for coin, position in positions.items():
            got = mirrored.item(index, item_rng(0, position))
            for name in ("images", "cues"):
                torch.testing.assert_close(
                    got[name], want[name].flip(-1) if coin else want[name], rtol=0, atol=0
                )
            torch.testing.assert_close(got["labels"], want["labels"], rtol=0, atol=0)


def test_stage1_options(stage1):
    layer = stage1(num_classes=30, grid=(41, 50), new_height=100, new_width=120, mean=(1, 2, 3))
    item = layer.item(2, item_rng(0, 0))
    assert item["images"].shape == (3, 100, 120)
    assert item["labels"].shape == (30,)
    assert item["cues"].shape == (30, 41, 50)
    image = resize_bilinear_u8(read_image_bgr(stage1.folder / "images" / "2.png"), 100, 120)
    np.testing.assert_array_equal(item["images"].numpy(), subtract_mean(image, (1, 2, 3)))


@pytest.mark.parametrize("form", ["folder", "folder/", "text", "leading slash"])
def test_roots_are_put_before_names_as_text(stage1, tmp_path, form):
    root = str(stage1.folder / "images")
    prefix = {"folder/": "", "text": "im", "leading slash": "/"}.get(form, "")
    path = tmp_path / "list.txt"
    if form == "text":
        path.write_text("ages/0.png 0\n")
        layer = stage1(image_root=root.removesuffix("ages"), list_path=path)
    else:
        path.write_text(f"{prefix}0.png 0\n")
        layer = stage1(image_root=root + ("/" if form == "folder/" else ""), list_path=path)
    assert layer.item(0, item_rng(0, 0))["index"] == 0


@pytest.mark.parametrize(
    ("content", "options", "line", "reason"),
    [
        ("0.png 0\nabsent.png 1\n", {}, 2, "absent.png"),
        ("0.png 0\n\n1.png 9\n", {}, 3, "no entry for image index 9"),
        ("0.png 0\n2.png\n", {}, 2, "'2.png'"),
        ("0.png 0\n", {"grid": (3, 3)}, 1, "3x3 grid expected"),
        ("0.png 0\n", {"num_classes": 2}, 1, "label"),
    ],
)
def test_stage1_refuses_a_bad_list_at_once(stage1, tmp_path, content, options, line, reason):
    path = tmp_path / "list.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=reason) as caught:
        stage1(list_path=path, **options)
    assert str(caught.value).startswith(f"{path}:{line}: ")


def test_stage1_refuses_cues_of_another_grid(stage1, tmp_path):
    cells = np.stack([np.zeros(441, int), *np.unravel_index(np.arange(441), (21, 21))])
    write_cues(tmp_path / "cues.h5", {index: ([1], cells) for index in range(6)}, (21, 21))
    stage1(cues=tmp_path / "cues.h5", grid=(21, 21))
    with pytest.raises(InputError, match="cues of a 21x21 grid, the net's 41x41 grid expected"):
        stage1(cues=tmp_path / "cues.h5")


def test_stage1_doubts_cues_that_stay_in_a_corner(stage1, tmp_path, caplog):
    cells = np.stack([np.zeros(441, int), *np.unravel_index(np.arange(441), (21, 21))])
    write_cues(tmp_path / "cues.pickle", {index: ([1], cells) for index in range(6)})
    stage1(cues=tmp_path / "cues.pickle", grid=(21, 21))
    assert not caplog.records
    stage1(cues=tmp_path / "cues.pickle")
    assert "no cue beyond row 20 of the net's 41x41 grid" in caplog.text


def test_stage1_names_the_line_of_an_image_it_cannot_read(stage1, tmp_path):
    (tmp_path / "0.png").write_bytes(b"")
    (tmp_path / "list.txt").write_text("\n0.png 0\n")
    layer = stage1(image_root=tmp_path, list_path=tmp_path / "list.txt")
    with pytest.raises(InputError, match="0 bytes") as caught:
        layer.item(0, item_rng(0, 0))
    assert str(caught.value).startswith(f"{tmp_path / 'list.txt'}:2: {tmp_path / '0.png'}")


def test_stage1_on_the_sample(voc_sample, tmp_path):
    voc = voc_sample / "VOCdevkit/VOC2012"
    present = {path.name for path in (voc / "JPEGImages").iterdir()}
    lines = (voc_sample / "input_list.txt").read_text().splitlines()
    (tmp_path / "list.txt").write_text("\n".join(line for line in lines if line.split()[0] in present))
    cues = CueFile.open(voc_sample / "localization_cues.pickle.gz")
    layer = CueDataset(voc / "JPEGImages", cues.lines(tmp_path / "list.txt"), cues, mirror=True)
    assert len(layer) == 180
    batch = next(iter(make_loader(layer, batch_size=8, shuffle=True, seed=3)))
    assert batch["images"].shape == (8, 3, 321, 321)
    # Cues lie only in classes that are present.
    assert (batch["cues"].amax(dim=(2, 3)) <= batch["labels"]).all()
    assert (batch["labels"].sum(dim=1) >= 2).all()


# --- stage 2 ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def retrain(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrain")
    inputs = golden("retrain")["inputs"]
    for i in range(8):
        save_bgr(folder / f"{i}.png", inputs[f"image_bgr_{i}"][()])
        Image.fromarray(inputs[f"label_{i}"][()]).save(folder / f"label_{i}.png")
    (folder / "list.txt").write_text("".join(f"/{i}.png /label_{i}.png\n" for i in range(8)))

    def make(**options) -> LabelMapDataset:
        lines = read_label_list(options.pop("list_path", folder / "list.txt"))
        return LabelMapDataset(**({"image_root": folder, "label_root": folder, "lines": lines} | options))

    make.folder = folder
    return make


def test_retraining_batches_are_the_recorded_ones(golden, retrain):
    recorded = golden("retrain")
    for number, batch in enumerate(make_loader(retrain(), batch_size=2, shuffle=False, seed=0, iterations=4)):
        assert batch["images"].shape == (2, 3, 321, 321)
        assert batch["label"].shape == (2, 1, 321, 321)
        assert (batch["images"].dtype, batch["label"].dtype) == (torch.float32, torch.uint8)
        if number == 0:
            np.testing.assert_array_equal(
                batch["label"].numpy()[:, :, ::8, ::8], recorded["label_shrink0"][()]
            )
        for place in range(2):
            image = recorded[f"inputs/image_bgr_{2 * number + place}"][()]
            label = recorded[f"inputs/label_{2 * number + place}"][()]
            height, width = label.shape
            got, got_label = batch["images"][place].numpy(), batch["label"][place, 0].numpy()
            np.testing.assert_array_equal(got[:, :height, :width], subtract_mean(image))
            np.testing.assert_array_equal(got_label[:height, :width], label)
            got[:, :height, :width], got_label[:height, :width] = 0, 255
            assert not got.any()
            assert (got_label == 255).all()


def test_crop_and_mirror_keep_image_and_label_together(tmp_path):
    """An image whose pixels spell their own place: any crop can be found in it, and its label with it."""
    height, width = 40, 60
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    save_bgr(tmp_path / "x.png", np.stack([rows, columns, rows], axis=2))
    Image.fromarray(((rows + 2 * columns) % 21).astype(np.uint8)).save(tmp_path / "y.png")
    (tmp_path / "list.txt").write_text("x.png y.png\n")
    lines = read_label_list(tmp_path / "list.txt")
    layer = LabelMapDataset(tmp_path, tmp_path, lines, crop_size=(32, 70), mirror=True, mean=(0, 0, 0))
    tops, mirrored = set(), set()
    for position in range(200):
        item = layer.item(0, item_rng(5, position))
        images, label = item["images"].numpy(), item["label"].numpy()[0]
        assert images.shape == (3, 32, 70)
        inside = label != 255
        assert inside.sum() == 32 * 60  # wider than the image: padded by 10 columns
        np.testing.assert_array_equal(label[inside], ((images[0] + 2 * images[1]) % 21)[inside])
        assert not images[:, ~inside].any()
        flipped = not inside[0, 0]
        grid = images[:, :, ::-1] if flipped else images
        np.testing.assert_array_equal(grid[1, 0, :60], np.arange(60))
        tops.add(int(grid[0, 0, 0]))
        np.testing.assert_array_equal(grid[0, :, 0], np.arange(32) + grid[0, 0, 0])
        mirrored.add(flipped)
    assert tops == set(range(9))  # 40 − 32, both ends included
    assert mirrored == {False, True}


def test_without_mirror_nothing_is_flipped(retrain):
    layer = retrain(crop_size=(500, 500))
    items = [layer.item(1, item_rng(0, position)) for position in range(10)]
    for item in items[1:]:
        torch.testing.assert_close(item["images"], items[0]["images"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (np.zeros((9, 12), np.uint8), "9x12, the 10x12 of"),
        (np.full((10, 12), 21, np.uint8), "class 21"),
        (np.zeros((10, 12, 3), np.uint8), "mode 'RGB'"),
        (None, "no such file"),
    ],
)
def test_retraining_refuses(tmp_path, label, reason):
    save_bgr(tmp_path / "x.png", np.zeros((10, 12, 3), np.uint8))
    if label is not None:
        Image.fromarray(label).save(tmp_path / "y.png")
    (tmp_path / "list.txt").write_text("\nx.png y.png\n")
    with pytest.raises(InputError, match=reason) as caught:
        LabelMapDataset(tmp_path, tmp_path, read_label_list(tmp_path / "list.txt")).item(0, item_rng(0, 0))
    assert str(caught.value).startswith(f"{tmp_path / 'list.txt'}:2: ")
    assert str(tmp_path / "y.png") in str(caught.value)
    assert "\n" not in str(caught.value)


# --- order --------------------------------------------------------------------------------------------------


class Lines:
    """A data layer whose items are the list's indices."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def item(self, index, rng):
        return {"index": index}


def order_of(length, batch_size, shuffle, **options) -> list[list[int]]:
    return [batch["index"].tolist() for batch in make_loader(Lines(length), batch_size, shuffle, **options)]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("length", "batch_size"), [(7, 3), (6, 3), (3, 8), (1, 4), (10, 1)])
def test_each_pass_takes_every_line_once(length, batch_size, shuffle):
    batches = order_of(length, batch_size, shuffle, seed=1, iterations=4 * length)
    assert [len(batch) for batch in batches] == [batch_size] * 4 * length
    stream = list(itertools.chain.from_iterable(batches))
    for start in range(0, len(stream), length):
        indices = stream[start : start + length]
        assert sorted(indices) == list(range(length))
        if not shuffle:
            assert indices == list(range(length))


def test_batches_run_on_into_the_next_pass():
    assert order_of(5, 3, False, seed=0, iterations=3) == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]
    assert order_of(5, 3, False, seed=0, iterations=2, share=slice(1, None)) == [[1, 2], [4, 0]]


def test_passes_and_seeds_differ():
    orders = order_of(50, 50, True, seed=1, iterations=3) + order_of(50, 50, True, seed=2, iterations=1)
    assert len(set(map(tuple, orders))) == 4


@pytest.mark.parametrize("start", [0, 1, 2, 5, 1000])
def test_order_resumes_at_any_iteration(start):
    whole = make_loader(Lines(7), 3, True, seed=9)  # without end
    wanted = [batch["index"].tolist() for batch in itertools.islice(whole, start, start + 6)]
    assert order_of(7, 3, True, seed=9, start_iteration=start, iterations=6) == wanted


@pytest.mark.parametrize(
    "wrong",
    [
        {"length": 0},
        {"batch_size": 0},
        {"seed": -1},
        {"seed": 2**64},
        {"start_iteration": -1},
        {"iterations": -1},
    ],
)
def test_loader_refuses(wrong):
    arguments = {"length": 5, "batch_size": 2, "shuffle": True, "seed": 0} | wrong
    with pytest.raises(InputError, match=f"^{next(iter(wrong))}: .*expected"):
        order_of(**arguments)


def test_coins_are_fair_and_independent_of_each_other():
    coins = np.array([item_rng(4, position).integers(2) for position in range(4000)])
    assert abs(coins.mean() - 0.5) < 0.04
    assert abs((coins[1:] == coins[:-1]).mean() - 0.5) < 0.04
    assert (coins != [item_rng(5, position).integers(2) for position in range(4000)]).any()


# --- loader -------------------------------------------------------------------------------------------------


def assert_same_batches(got, want):
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)


@pytest.fixture(params=["stage1", "stage2"])
def layer(request, stage1, retrain):
    """A mirroring layer of either stage, small enough to be quick."""
    if request.param == "stage1":
        return stage1(mirror=True, new_height=65, new_width=49)
    return retrain(mirror=True, crop_size=(65, 49))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_the_workers(layer, workers):
    want = list(make_loader(layer, 4, True, seed=11, iterations=7))
    assert_same_batches(list(make_loader(layer, 4, True, seed=11, iterations=7, workers=workers)), want)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_resumes_at_any_iteration(layer, workers):
    whole = list(make_loader(layer, 4, True, seed=11, iterations=9))
    rest = make_loader(layer, 4, True, seed=11, start_iteration=5, iterations=4, workers=workers)
    assert len(rest) == 4
    assert_same_batches(list(rest), whole[5:])
    assert_same_batches(list(rest), whole[5:])  # and again, from the same loader


def test_seeds_differ(layer):
    first, second = (next(iter(make_loader(layer, 8, True, seed=seed)))["images"] for seed in (1, 2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_state_is_left_alone(layer, workers):
    """The net's dropout draws from it: a resumed run must find it as its snapshot left it."""
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 — the global state is what is looked at
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    list(make_loader(layer, 4, True, seed=11, iterations=2, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


@pytest.mark.parametrize("workers", [0, 2])
def test_an_input_error_comes_out_of_a_worker_as_it_is(stage1, tmp_path, workers):
    for i in range(4):
        save_bgr(tmp_path / f"{i}.png", np.zeros((9, 9, 3), np.uint8))
    (tmp_path / "list.txt").write_text("".join(f"{i}.png {i}\n" for i in range(4)))
    layer = stage1(image_root=tmp_path, list_path=tmp_path / "list.txt")
    (tmp_path / "3.png").write_bytes(b"")
    batches = iter(make_loader(layer, 2, False, seed=0, workers=workers))
    next(batches)
    with pytest.raises(InputError) as caught:
        next(batches)
    assert str(caught.value) == (
        f"{tmp_path / 'list.txt'}:4: {tmp_path / '3.png'}: the image file is empty (0 bytes)"
    )


def test_workers_are_not_negative(layer):
    with pytest.raises(InputError, match="workers: -1"):
        make_loader(layer, 2, False, seed=0, workers=-1)


def test_layers_can_be_pickled(layer):
    """As for workers that are spawned."""
    copy = pickle.loads(pickle.dumps(layer))
    torch.testing.assert_close(copy.item(1, item_rng(0, 1)), layer.item(1, item_rng(0, 1)), rtol=0, atol=0)
