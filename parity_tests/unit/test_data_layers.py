"""Caffe's data layers as layers of a net: what their tops hold, in which order, and what they say of bad files."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from repro.errors import InputError
from repro.models.net import load_net

RNG = np.random.default_rng(5)
IMAGES = [RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8) for _ in range(3)]  # blue first
LABELS = [RNG.integers(0, 4, (9, 12), dtype=np.uint8) for _ in range(3)]
MEAN = np.array([104, 117, 123], np.float32)
MEANS = "mean_value: 104 mean_value: 117 mean_value: 123"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Three images and label maps, with a list of each kind, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for index, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        Image.fromarray(image[:, :, ::-1]).save(f"{index} a.png")
        Image.fromarray(image[:, :, ::-1]).save(f"{index}.png")
        Image.fromarray(label).save(f"{index}_label.png")
    (tmp_path / "list.txt").write_text("0 a.png 7\n1.png 8\n2.png 9\n")
    (tmp_path / "pairs.txt").write_text("".join(f"{i}.png {i}_label.png\n" for i in range(3)))
    return tmp_path


def build(folder, layer: str, phase: str = "test"):
    (folder / "net.prototxt").write_text(
        f'name: "n" layer {{ name: "d" {layer} }} layer {{ name: "p" type: "Power" bottom: "x" top: "y" }}'
    )
    return load_net(folder / "net.prototxt", phase=phase)


def blob(image: np.ndarray) -> np.ndarray:
    return (image.astype(np.float32) - MEAN).transpose(2, 0, 1)


def test_image_data_goes_round_its_list(files):
    net = build(
        files,
        'type: "ImageData" top: "x" top: "id" image_data_param { source: "list.txt" batch_size: 2 } '
        f"transform_param {{ {MEANS} scale: 0.5 }}",
    )
    assert net.shapes["x"] == (2, 3, 9, 12)
    first, second = net.forward_blobs(), net.forward_blobs()
    assert first["id"].tolist() == [7, 8]
    assert second["id"].tolist() == [9, 7]
    np.testing.assert_array_equal(second["x"][0], 0.5 * blob(IMAGES[2]))


def test_image_data_crops_in_the_middle_in_tests_and_anywhere_in_training(files):
    layer = (
        'type: "ImageData" top: "x" image_data_param { source: "list.txt" } '
        f"transform_param {{ {MEANS} crop_size: 4 mirror: true }}"
    )
    images = build(files, layer).forward_blobs()["x"][0]
    middle = blob(IMAGES[0])[:, 2:6, 4:8]
    assert any(np.array_equal(images, middle[:, :, ::step]) for step in (1, -1))

    net = build(files, layer, "train")
    torch.manual_seed(0)
    seen = set()
    for _ in range(60):
        crop = net.forward_blobs()["x"][0].numpy()
        for index, whole in enumerate(map(blob, IMAGES)):
            for top in range(6):
                for left in range(9):
                    for step in (1, -1):
                        if np.array_equal(crop, whole[:, top : top + 4, left : left + 4][:, :, ::step]):
                            seen.add((index, top, left, step))
    assert len(seen) > 30
    assert {step for *_, step in seen} == {1, -1}


def test_shuffling_shows_every_image_once_each_round(files):
    net = build(
        files, 'type: "ImageData" top: "x" top: "id" image_data_param { source: "list.txt" shuffle: true }'
    )
    torch.manual_seed(1)
    ids = [int(net.forward_blobs()["id"]) for _ in range(30)]
    rounds = [ids[at : at + 3] for at in range(0, 30, 3)]
    assert all(sorted(one) == [7, 8, 9] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1


def test_image_data_resizes_as_opencv_and_reads_grey(files):
    cv2 = pytest.importorskip("cv2")
    net = build(
        files,
        'type: "ImageData" top: "x" image_data_param { source: "list.txt" new_height: 5 new_width: 7 is_color: false }',
    )
    grey = cv2.resize(cv2.imread("0 a.png", cv2.IMREAD_GRAYSCALE), (7, 5))
    np.testing.assert_array_equal(net.forward_blobs()["x"][0, 0], grey)


def test_mean_file(files):
    from weights_conversion.caffe_pb2 import BlobProto

    mean = RNG.uniform(0, 255, (3, 9, 12)).astype(np.float32)
    (files / "mean.binaryproto").write_bytes(
        BlobProto(num=1, channels=3, height=9, width=12, data=mean.ravel().tolist()).SerializeToString()
    )
    net = build(
        files,
        'type: "ImageData" top: "x" image_data_param { source: "list.txt" } '
        'transform_param { mean_file: "mean.binaryproto" crop_size: 5 }',
    )
    want = (IMAGES[0].transpose(2, 0, 1) - mean)[:, 2:7, 3:8]
    np.testing.assert_allclose(net.forward_blobs()["x"][0], want, rtol=1e-6)


def test_image_seg_data_pads_crops_and_mirrors_both_alike(files):
    net = build(
        files,
        'type: "ImageSegData" top: "x" top: "label" top: "size" '
        'image_data_param { source: "pairs.txt" label_type: PIXEL batch_size: 3 } '
        f"transform_param {{ {MEANS} crop_size: 11 mirror: true }}",
        "train",
    )
    assert net.shapes["label"] == (3, 1, 11, 11)
    blobs = net.forward_blobs()
    assert blobs["size"].reshape(3, 2).tolist() == [[9, 11]] * 3
    for index in range(3):
        image = np.pad(blob(IMAGES[index]), ((0, 0), (0, 2), (0, 0)))
        label = np.pad(LABELS[index], ((0, 2), (0, 0)), constant_values=255)
        found = [
            (left, step)
            for left in range(2)
            for step in (1, -1)
            if np.array_equal(blobs["x"][index], image[:, :, left : left + 11][:, :, ::step])
        ]
        ((left, step),) = found
        np.testing.assert_array_equal(blobs["label"][index, 0], label[:, left : left + 11][:, ::step])


@pytest.mark.parametrize(("kind", "value"), [("IMAGE", 8), ("NONE", 200)])
def test_image_seg_data_without_label_maps(files, kind, value):
    (files / "classes.txt").write_text("1.png 8\n")
    net = build(
        files,
        f'type: "ImageSegData" top: "x" top: "label" '
        f'image_data_param {{ source: "classes.txt" label_type: {kind} ignore_label: 200 }}',
    )
    assert net.forward_blobs()["label"].unique().tolist() == [value]


def test_hdf5_data_reads_file_after_file(files):
    rows = RNG.normal(size=(5, 2, 3)).astype(np.float32)
    for name, part in (("a.h5", rows[:2]), ("b.h5", rows[2:])):
        with h5py.File(files / name, "w") as file:
            file["x"], file["t"] = part, part.sum((1, 2))
    (files / "h5.txt").write_text("a.h5\nb.h5\n")
    net = build(
        files, 'type: "HDF5Data" top: "x" top: "t" hdf5_data_param { source: "h5.txt" batch_size: 4 }'
    )
    assert net.shapes["x"] == (4, 2, 3)
    np.testing.assert_array_equal(net.forward_blobs()["x"], rows[:4])
    second = net.forward_blobs()
    np.testing.assert_array_equal(second["x"], rows[[4, 0, 1, 2]])
    np.testing.assert_allclose(second["t"], rows[[4, 0, 1, 2]].sum((1, 2)), rtol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        'type: "ImageData" top: "x" image_data_param { source: "list.txt" batch_size: 2 }',
        'type: "ImageSegData" top: "x" top: "l" image_data_param { source: "pairs.txt" batch_size: 2 '
        "label_type: PIXEL }",
        'type: "HDF5Data" top: "x" hdf5_data_param { source: "h5.txt" batch_size: 2 }',
    ],
    ids=["ImageData", "ImageSegData", "HDF5Data"],
)
def test_batches_begin_where_pytorchs_own_tensors_do(files, layer):
    """MKL's products differ in their last bits with the place of their operands."""
    with h5py.File(files / "a.h5", "w") as file:
        file["x"] = np.ones((3, 5), np.float32)
    (files / "h5.txt").write_text("a.h5\n")
    net = build(files, layer)
    kept = [net.forward_blobs(None)["x"] for _ in range(12)]
    assert {batch.data_ptr() % 64 for batch in kept} == {torch.empty(9).data_ptr() % 64}


def test_dummy_and_memory_data(files):
    net = build(
        files,
        'type: "DummyData" top: "x" top: "n" dummy_data_param { shape { dim: 2 dim: 3 } '
        'data_filler { value: 4 } data_filler { type: "gaussian" std: 1 } }',
    )
    first, second = net.forward_blobs(), net.forward_blobs()
    assert first["x"].unique().tolist() == [4]
    assert not torch.equal(first["n"], second["n"])

    net = build(
        files,
        'type: "MemoryData" top: "x" top: "t" memory_data_param { batch_size: 2 channels: 1 height: 2 width: 2 }',
    )
    with pytest.raises(InputError, match="set_arrays"):
        net.forward_blobs()
    net["d"].set_arrays(torch.arange(16.0).reshape(4, 1, 2, 2), torch.arange(4))
    assert [net.forward_blobs()["t"].tolist() for _ in range(3)] == [[0, 1], [2, 3], [0, 1]]


def test_a_net_whose_blobs_are_given_runs_without_its_data(tmp_path):
    net = build(
        tmp_path,
        'type: "ImageData" top: "x" image_data_param { source: "nowhere.txt" } transform_param { crop_size: 4 }',
    )
    assert net.forward({"x": torch.ones(1, 3, 4, 4)}).shape == (1, 3, 4, 4)
    with pytest.raises(InputError, match="nowhere"):
        net.forward()


@pytest.mark.parametrize(
    ("content", "layer", "message"),
    [
        ("", 'type: "ImageData" top: "x" top: "id"', "list.txt: empty"),
        (
            "0.png seven\n",
            'type: "ImageData" top: "x" top: "id"',
            r"list.txt:1: 'seven'; expected a whole number",
        ),
        ("0.png 1\nnone.png 2\n", 'type: "ImageData" top: "x"', r"list.txt:2: no such file"),
        ("0.png\n", 'type: "ImageSegData" top: "x" top: "l"', r"list.txt:1: ''; expected a class"),
    ],
)
def test_bad_lists_are_told_by_line(files, content, layer, message):
    (files / "list.txt").write_text(content)
    with pytest.raises(InputError, match=message):
        build(files, f'{layer} image_data_param {{ source: "list.txt" }}').forward_blobs()


def test_images_of_two_sizes_in_a_batch(files):
    Image.fromarray(IMAGES[0][:5]).save("1.png")
    net = build(files, 'type: "ImageData" top: "x" image_data_param { source: "list.txt" batch_size: 3 }')
    with pytest.raises(InputError, match=r"list.txt:2: an image of 5x12 in a batch of 9x12"):
        net.forward_blobs()
