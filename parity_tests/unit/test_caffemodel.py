"""Caffe's weight files: what is read from the recorded ones, and what is said of damaged ones."""

from __future__ import annotations

import random
import struct
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from parity_tests.conftest import CAFFE_FILES
from repro.errors import InputError
from repro.models import build_model
from weights_conversion import CaffeFileError, caffe_pb2, read_caffemodel, write_caffemodel

BINARY_FILES = sorted(CAFFE_FILES.glob("*.caffemodel"))


def same(left, right) -> None:
    """Equal layers with blobs, bit for bit; old shapes may carry leading ones."""
    left, right = ({n: x.blobs for n, x in model.layers.items() if x.blobs} for model in (left, right))
    assert set(left) == set(right)
    for name in left:
        for index, (a, b) in enumerate(zip(left[name], right[name], strict=True)):
            assert a.tobytes() == b.tobytes(), f"layer {name} blob {index}"
            squeezed = tuple(d for d in a.shape if d != 1), tuple(d for d in b.shape if d != 1)
            assert squeezed[0] == squeezed[1], f"layer {name} blob {index}"


def layer_message(name="c1", **blobs):
    blob = caffe_pb2.BlobProto(shape=caffe_pb2.BlobShape(dim=[2, 3]), data=range(6), **blobs)
    return caffe_pb2.LayerParameter(name=name, type="Convolution", blobs=[blob])


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field, of a payload below 128 bytes or with the length given in two bytes."""
    tag = (
        struct.pack("B", number << 3 | 2)
        if number < 16
        else struct.pack("BB", number << 3 & 127 | 130, number >> 4)
    )
    size = len(payload)
    return tag + (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])) + payload


def net_of_blob(blob: bytes) -> bytes:
    return field(100, field(1, b"c1") + field(2, b"Convolution") + field(7, blob))


SHAPE_2_3 = field(7, field(1, bytes([2, 3])))
VALUES = np.array([1.5, -2.25, 3e-41, np.inf, -0.0, 7.0], "<f4")


def read_bytes(tmp_path, data: bytes, name: str = "x.caffemodel"):
    path = tmp_path / name
    path.write_bytes(data)
    return read_caffemodel(path)


# --- the recorded files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BINARY_FILES, ids=lambda path: path.name)
def test_recorded_file_equals_what_protobuf_reads(path):
    model = read_caffemodel(path)
    message = caffe_pb2.NetParameter.FromString(path.read_bytes())
    recorded = list(message.layers) or list(message.layer)
    assert model.name == message.name
    assert list(model.layers) == [layer.name for layer in recorded]
    for layer in recorded:
        read = model.layers[layer.name]
        assert read.bottoms == tuple(layer.bottom)
        assert read.tops == tuple(layer.top)
        assert len(read.blobs) == len(layer.blobs)
        for values, blob, legacy in zip(read.blobs, layer.blobs, read.legacy, strict=True):
            assert legacy == blob.HasField("num")
            shape = (blob.num, blob.channels, blob.height, blob.width) if legacy else tuple(blob.shape.dim)
            assert values.shape == shape
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values.reshape(-1), np.array(blob.data, np.float32))


@pytest.mark.parametrize("net", ["vgg16_aspp", "vgg16_largefov"])
def test_v1_equals_current(net):
    old, new = (read_caffemodel(CAFFE_FILES / f"{net}{suffix}.caffemodel") for suffix in ("_v1", ""))
    same(old, new)
    assert all(layer.legacy == (True,) * len(layer.blobs) for layer in old.layers.values())
    assert old.layers["conv1_1"].blobs[1].shape == (1, 1, 1, 4)
    for name in set(old.layers) & set(new.layers):
        assert old.layers[name].type == new.layers[name].type, name


def test_hdf5_equals_binary():
    binary = read_caffemodel(CAFFE_FILES / "toy_iter_6.caffemodel")
    hdf5 = read_caffemodel(CAFFE_FILES / "toy_iter_6.caffemodel.h5")
    same(binary, hdf5)
    assert set(binary.layers) == set(hdf5.layers)


def test_stage1_init_equals_recorded_parameters(golden):
    model = read_caffemodel(CAFFE_FILES / "stage1_init.caffemodel")
    recorded = golden("stage1")["params/0"]
    assert [n for n, layer in model.layers.items() if layer.blobs and n not in recorded] == []
    for name, group in recorded.items():
        for index, blob in enumerate(model.layers[name].blobs):
            assert blob.tobytes() == group[str(index)][()].tobytes(), f"{name} {index}"
            assert blob.shape == group[str(index)].shape


def test_batch_norm_keeps_its_three_blobs():
    layers = read_caffemodel(CAFFE_FILES / "resnet101_aspp.caffemodel").layers
    mean, variance, factor = layers["bn2a_branch1"].blobs
    assert layers["bn2a_branch1"].type == "BatchNorm"
    assert mean.shape == variance.shape
    assert factor.shape == (1,)
    assert len(layers["scale2a_branch1"].blobs) == 2


# --- the forms that a blob may have -----------------------------------------------------------------------

DOUBLES = VALUES.astype("<f8").tobytes()
FORMS = {
    "packed": field(5, VALUES.tobytes()),
    "in chunks": field(5, VALUES[:2].tobytes()) + field(5, b"") + field(5, VALUES[2:].tobytes()),
    "unpacked": b"".join(b"\x2d" + value.tobytes() for value in VALUES),
    "packed and unpacked": field(5, VALUES[:4].tobytes())
    + b"".join(b"\x2d" + v.tobytes() for v in VALUES[4:]),
    "unpacked and packed": b"".join(b"\x2d" + v.tobytes() for v in VALUES[:4])
    + field(5, VALUES[4:].tobytes()),
    "doubles": field(8, DOUBLES),
    "doubles unpacked": b"".join(b"\x41" + value.tobytes() for value in VALUES.astype("<f8")),
    "doubles win over floats": field(5, VALUES[:1].tobytes()) + field(8, DOUBLES),
    "with a diff": field(6, b"\0" * 24) + field(5, VALUES.tobytes()) + field(9, b"\0" * 48),
    "with a diff of another length": field(6, b"\0" * 5) + field(5, VALUES.tobytes()),
    "with unknown fields": field(5, VALUES.tobytes()) + b"\xf8\x01\x05" + field(30, b"fork"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape_first", [True, False])
def test_forms_of_a_blob(tmp_path, form, shape_first):
    blob = SHAPE_2_3 + FORMS[form] if shape_first else FORMS[form] + SHAPE_2_3
    (values,) = read_bytes(tmp_path, net_of_blob(blob)).layers["c1"].blobs
    assert values.shape == (2, 3)
    assert values.dtype == np.float32
    assert values.tobytes() == VALUES.tobytes()
    values += 1  # the array is the caller's own


@pytest.mark.parametrize(
    ("fields", "shape", "legacy"),
    [
        (b"\x08\x01\x10\x01\x18\x02\x20\x03", (1, 1, 2, 3), True),
        (b"\x08\x02\x10\x03\x18\x01\x20\x01", (2, 3, 1, 1), True),
        (b"\x08\x01\x10\x01\x18\x02\x20\x03" + SHAPE_2_3, (1, 1, 2, 3), True),  # the old one stands above
        (field(7, field(1, bytes([2]))) + field(7, field(1, bytes([3]))), (2, 3), False),  # messages merge
        (field(7, b"\x08\x02\x08\x03"), (2, 3), False),  # dims one by one
        (field(7, field(1, bytes([1, 2, 1, 1, 3]))), (1, 2, 1, 1, 3), False),
    ],
)
def test_shapes(tmp_path, fields, shape, legacy):
    layer = read_bytes(tmp_path, net_of_blob(fields + field(5, VALUES.tobytes()))).layers["c1"]
    assert layer.blobs[0].shape == shape
    assert layer.legacy == (legacy,)


def test_blob_without_axes_and_blob_without_values(tmp_path):
    scalar = field(5, VALUES[:1].tobytes())
    empty = field(7, field(1, bytes([0, 3])))
    net = field(100, field(1, b"c") + field(7, scalar) + field(7, empty))
    blobs = read_bytes(tmp_path, net).layers["c"].blobs
    assert [blob.shape for blob in blobs] == [(), (0, 3)]


def test_double_beyond_float32_becomes_infinite_as_in_caffe(tmp_path):
    blob = field(7, field(1, b"\x01")) + field(8, struct.pack("<d", 1e300))
    assert read_bytes(tmp_path, net_of_blob(blob)).layers["c1"].blobs[0] == np.inf


@pytest.mark.parametrize(
    ("number", "name"),
    [(4, "Convolution"), (14, "InnerProduct"), (21, "SoftmaxWithLoss"), (99, "V1LayerType99"), (0, "")],
)
def test_v1_types_become_current_names(tmp_path, number, name):
    net = caffe_pb2.NetParameter(layers=[caffe_pb2.V1LayerParameter(name="x", type=number)])
    assert read_bytes(tmp_path, net.SerializeToString()).layers["x"].type == name


def test_same_name_for_two_phases_keeps_the_one_with_blobs(tmp_path):
    bare = caffe_pb2.LayerParameter(name="c1", type="Data")
    net = caffe_pb2.NetParameter(layer=[bare, layer_message(), bare])
    model = read_bytes(tmp_path, net.SerializeToString())
    assert len(model.layers["c1"].blobs) == 1


# --- damaged files ----------------------------------------------------------------------------------------

GOOD = caffe_pb2.NetParameter(name="n", layer=[layer_message("c1"), layer_message("c2")]).SerializeToString()
SIX = field(5, VALUES.tobytes())
DAMAGED = {
    "empty file": (b"", "empty file"),
    "text": (b'name: "net"\nlayer { name: "c1" }\n', "text file"),
    "web page": (b"<!DOCTYPE html><html>404</html>" * 40, "web page"),
    "noise": (random.Random(0).randbytes(400), "protobuf field|cut off"),
    "no layers": (field(1, b"net"), "no layers"),
    "truncated in the floats": (GOOD[:-3], r"cut off\?"),
    "truncated in a tag": (GOOD + b"\xa2", "no protobuf field at byte"),
    "truncated in a length": (GOOD + b"\xa2\x06\xff", "breaks off"),
    "length beyond 64 bits": (GOOD + b"\xa2\x06" + b"\xff" * 10, "breaks off"),
    "group": (GOOD + b"\x0b", "no protobuf field"),
    "field number 0": (GOOD + b"\x02\x00", "no protobuf field"),
    "layer is a number": (b"\xa0\x06\x05", "should be a string or message"),
    "name is a number": (b"\x08\x05" + GOOD, "is a number"),
    "layer name is a number": (field(100, b"\x08\x05"), "layer number 1 .at byte 0.: field 1"),
    "v1 type is a string": (field(2, field(5, b"conv")), "should be a number"),
    "blob is a number": (field(100, field(1, b"c1") + b"\x38\x05"), "blob 0"),
    "name not UTF-8": (field(100, field(1, b"c\xff")), "not UTF-8"),
    "net name not UTF-8": (field(1, b"c\xff") + GOOD, "not UTF-8"),
    "blobs without name": (field(100, field(7, SHAPE_2_3 + SIX)), "no name"),
    "both layouts": (GOOD + field(2, field(4, b"old")), "both V1 and current"),
    "V0 layer is a number": (field(2, b"\x08\x05"), "layer number 1 .at byte 0.: field 1"),
    "twice with blobs": (
        caffe_pb2.NetParameter(layer=[layer_message(), layer_message()]).SerializeToString(),
        "'c1': occurs twice",
    ),
    "fewer values": (net_of_blob(SHAPE_2_3 + field(5, VALUES[:5].tobytes())), r"'c1' blob 0.*needs 6.*has 5"),
    "fewer values, unpacked": (net_of_blob(SHAPE_2_3 + b"\x2d" + VALUES[:1].tobytes()), r"needs 6.*has 1"),
    "no values": (net_of_blob(SHAPE_2_3), "needs 6 values, the file has 0"),
    "no shape": (net_of_blob(SIX), "has 6"),
    "half a float": (net_of_blob(SHAPE_2_3 + field(5, b"\0" * 23)), "23 bytes of 4-byte values"),
    "half a double": (net_of_blob(SHAPE_2_3 + field(8, b"\0" * 44)), "44 bytes of 8-byte values"),
    "negative shape": (net_of_blob(field(7, field(1, b"\xff" * 9 + b"\x01")) + SIX), "impossible shape .-1"),
    "negative old shape": (net_of_blob(b"\x08" + b"\xff" * 9 + b"\x01" + SIX), "impossible shape"),
    "two negative dims": (net_of_blob(field(7, field(1, (b"\xff" * 9 + b"\x01") * 2))), "impossible"),
    "huge shape": (
        net_of_blob(field(7, field(1, b"\xff\xff\xff\xff\x07" * 3)) + SIX),
        "needs 9903520300447984",
    ),
    "huge dim beside a zero": (
        net_of_blob(field(7, field(1, b"\x00" + b"\xff" * 8 + b"\x7f"))),
        "impossible",
    ),
    "too many axes": (net_of_blob(field(7, field(1, b"\x01" * 33)) + SIX), "of 33 axes"),
    "shape is no message": (net_of_blob(field(7, b"\xff") + SIX), "not a valid BlobProto"),
    "bad unpacked blob": (net_of_blob(b"\x2d" + b"\0" * 4 + field(7, b"\xff")), "not a valid BlobProto"),
    "megabytes of names": (
        caffe_pb2.NetParameter(
            layer=[caffe_pb2.LayerParameter(name="x", bottom=["y" * 1000] * 2000)]
        ).SerializeToString(),
        "bytes of names",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_file_is_named_with_place_and_reason(tmp_path, kind):
    data, reason = DAMAGED[kind]
    with pytest.raises(CaffeFileError, match=reason) as caught:
        read_bytes(tmp_path, data)
    assert str(tmp_path / "x.caffemodel") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.caffemodel", "."])
def test_file_that_cannot_be_opened(tmp_path, name):
    with pytest.raises(InputError, match=r"No such file|a folder, a file expected"):
        read_caffemodel(tmp_path / name)


def test_file_of_tiny_fields_is_refused(tmp_path):
    with pytest.raises(CaffeFileError, match="more than 50000 fields"):
        read_bytes(tmp_path, b"\x40\x01" * 3_000_000)


def test_solver_state_is_not_taken_for_weights():
    with pytest.raises(CaffeFileError, match="field 1 at byte 0 is a number"):
        read_caffemodel(CAFFE_FILES / "toy_iter_6.solverstate")


def mutations(data: bytes, count: int, seed: int):
    rng = random.Random(seed)
    for _ in range(count):
        mutated = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            position = rng.randrange(len(mutated))
            choice = rng.randrange(4)
            if choice == 0:
                mutated[position] = rng.randrange(256)
            elif choice == 1:
                mutated[position] ^= 1 << rng.randrange(8)
            elif choice == 2:
                del mutated[position : position + rng.randrange(1, 9)]
            else:
                mutated[position:position] = rng.randbytes(rng.randrange(1, 9))
            if not mutated:
                break
        yield bytes(mutated[: rng.randrange(len(mutated) + 1)] if rng.random() < 0.3 else mutated)


@pytest.mark.parametrize("name", ["toy_iter_6.caffemodel", "toy_iter_6.caffemodel.h5", "good", "unpacked"])
def test_mutated_files_load_or_raise(tmp_path, name):
    data = {"good": GOOD, "unpacked": net_of_blob(SHAPE_2_3 + FORMS["packed and unpacked"])}.get(name)
    data = (CAFFE_FILES / name).read_bytes() if data is None else data
    count = 60 if name.endswith(".h5") else 400  # each HDF5 file is read by a process of its own
    raised = 0
    for mutated in mutations(data, count, seed=7):
        try:
            read_bytes(tmp_path, mutated)
        except CaffeFileError:
            raised += 1
    assert count / 10 < raised < count


@pytest.mark.parametrize("length", range(0, len(GOOD), 7))
def test_every_truncation_loads_or_raises(tmp_path, length):
    try:
        model = read_bytes(tmp_path, GOOD[:length])
    except CaffeFileError:
        return
    assert set(model.layers) <= {"c1", "c2"}


# --- HDF5 -------------------------------------------------------------------------------------------------


def plain(file):
    file["data/c1/0"] = np.ones((2, 3), np.float32)


def elsewhere(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        plain(other)
    return tmp_path / "other.h5"


def soft_layer(file, tmp_path):
    plain(file)
    file["data/c2"] = h5py.SoftLink("/data/c1")


def soft_blob(file, tmp_path):
    plain(file)
    file["data/c1/1"] = h5py.SoftLink("/data/c1/0")


def external_layer(file, tmp_path):
    file.create_group("data")["c1"] = h5py.ExternalLink(elsewhere(tmp_path), "/data/c1")


def external_data(file, tmp_path):
    file["data"] = h5py.ExternalLink(elsewhere(tmp_path), "/data")


def external_storage(file, tmp_path):
    (tmp_path / "raw").write_bytes(b"\0" * 24)
    file.create_dataset("data/c1/0", (2, 3), "<f4", external=[(str(tmp_path / "raw"), 0, 24)])


def virtual(file, tmp_path):
    layout = h5py.VirtualLayout((2, 3), "<f4")
    layout[:] = h5py.VirtualSource(elsewhere(tmp_path), "data/c1/0", (2, 3))
    file.create_virtual_dataset("data/c1/0", layout)


def never_written(file, tmp_path):
    file.create_dataset("data/c1/0", (10_000, 10_000, 100), "<f4")


def partly_written(file, tmp_path):
    file.create_dataset("data/c1/0", (1000,), "<f4", chunks=(10,))[:10] = 1


def compressed_bomb(file, tmp_path):
    file.create_dataset("data/c1/0", data=np.zeros(2_000_000, np.float32), compression="gzip")


def linked_often(file, tmp_path):
    file["data/c1/0"] = np.zeros(100_000, np.float32)
    for index in range(1, 9):
        file[f"data/c1/{index}"] = file["data/c1/0"]


def gap(file, tmp_path):
    plain(file)
    file["data/c1/2"] = np.ones(2, np.float32)


def odd_name(file, tmp_path):
    file["data/c1/weight"] = np.ones(2, np.float32)


def integers(file, tmp_path):
    file["data/c1/0"] = np.ones(2, np.int32)


def null(file, tmp_path):
    file["data/c1/0"] = h5py.Empty("f")


def nested(file, tmp_path):
    file["data/c1/0/0"] = np.ones(2, np.float32)


def dataset_for_layer(file, tmp_path):
    file["data/c1"] = np.ones(2, np.float32)


def no_data(file, tmp_path):
    file["weights/c1/0"] = np.ones(2, np.float32)


def no_layers(file, tmp_path):
    file.create_group("data")


HDF5_DAMAGE = {
    soft_layer: "/data/c2: is a SoftLink",
    soft_blob: "/data/c1/1: is a SoftLink",
    external_layer: "/data/c1: is a ExternalLink",
    external_data: "/data: is a ExternalLink",
    external_storage: "/data/c1/0: keeps its values in another file",
    virtual: "/data/c1/0: keeps its values in another file",
    never_written: "more values than the file can hold",
    partly_written: "/data/c1/0: chunked or compressed",
    compressed_bomb: "/data/c1/0: chunked or compressed",
    linked_often: "more values than the file can hold",
    gap: "expected 0 to 1",
    odd_name: "'weight'",
    integers: "int32 of shape",
    null: "expected floating point",
    nested: "/data/c1/0: is a Group",
    dataset_for_layer: "/data/c1: is a Dataset",
    no_data: "/data: missing",
    no_layers: "no layers",
}


@pytest.mark.parametrize("damage", HDF5_DAMAGE, ids=lambda function: function.__name__)
def test_damaged_hdf5(tmp_path, damage):
    path = tmp_path / "x.caffemodel.h5"
    with h5py.File(path, "w") as file:
        damage(file, tmp_path)
    with pytest.raises(CaffeFileError, match=HDF5_DAMAGE[damage]) as caught:
        read_caffemodel(path)
    assert str(path) in str(caught.value)


def test_hdf5_doubles_are_read(tmp_path):
    values = np.random.default_rng(0).normal(size=(20, 30))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["data/c1/0"] = values
    read = read_caffemodel(tmp_path / "x.h5").layers["c1"].blobs[0]
    np.testing.assert_array_equal(read, values.astype(np.float32))


def test_truncated_hdf5(tmp_path):
    data = (CAFFE_FILES / "toy_iter_6.caffemodel.h5").read_bytes()
    for length in (8, 100, 2000, len(data) - 1):
        with pytest.raises(CaffeFileError, match="damaged HDF5"):
            read_bytes(tmp_path, data[:length], "x.h5")


# --- writing ----------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1_1 = nn.Conv2d(3, 4, 3)
        self.relu1_1 = nn.ReLU()
        self.add_module("fc8-SEC_1", nn.Conv2d(4, 21, 1, bias=False))
        self.top = nn.Sequential()
        self.top.add_module("scores", nn.Linear(21, 5))


def filled_net() -> Net:
    net = Net()
    with torch.no_grad():
        weight = net.conv1_1.weight.view(-1)
        weight[:4] = torch.tensor([float("inf"), -0.0, 1e-42, float("nan")])
    return net


@pytest.mark.parametrize("name", ["x.caffemodel", "x.caffemodel.h5"])
def test_written_file_holds_the_model(tmp_path, name):
    net = filled_net()
    write_caffemodel(net, tmp_path / name)
    layers = read_caffemodel(tmp_path / name).layers
    assert set(layers) == {"conv1_1", "fc8-SEC_1", "scores"}
    for layer, module in (
        ("conv1_1", net.conv1_1),
        ("fc8-SEC_1", getattr(net, "fc8-SEC_1")),
        ("scores", net.top.scores),
    ):
        tensors = list(module.parameters())
        assert [blob.shape for blob in layers[layer].blobs] == [tuple(t.shape) for t in tensors]
        for blob, tensor in zip(layers[layer].blobs, tensors, strict=True):
            assert blob.tobytes() == tensor.detach().numpy().tobytes()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_written_binary_is_what_protobuf_would_write(tmp_path):
    net = filled_net()
    write_caffemodel(net, tmp_path / "x.caffemodel")
    raw = (tmp_path / "x.caffemodel").read_bytes()
    message = caffe_pb2.NetParameter.FromString(raw)
    assert message.ByteSize() == len(raw)
    assert [layer.name for layer in message.layer] == ["conv1_1", "fc8-SEC_1", "scores"]
    assert [layer.type for layer in message.layer] == ["Convolution", "Convolution", "InnerProduct"]
    np.testing.assert_array_equal(message.layer[2].blobs[1].data, net.top.scores.bias.detach())


def test_layout_in_memory_and_dtype_do_not_matter(tmp_path):
    net = Net()
    write_caffemodel(net, tmp_path / "a.caffemodel")
    write_caffemodel(net.to(memory_format=torch.channels_last), tmp_path / "b.caffemodel")
    assert (tmp_path / "a.caffemodel").read_bytes() == (tmp_path / "b.caffemodel").read_bytes()
    write_caffemodel(net.to(torch.bfloat16), tmp_path / "c.caffemodel")
    read = read_caffemodel(tmp_path / "c.caffemodel").layers["scores"].blobs[0]
    np.testing.assert_array_equal(read, net.top.scores.weight.detach().float())


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.caffemodel.h5"
    path.write_bytes(b"old")
    net = nn.Sequential()
    net.add_module("inception/3x3", nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="inception/3x3"):
        write_caffemodel(net, path)
    with pytest.raises(ValueError, match="no layers"):
        write_caffemodel(nn.ReLU(), path)
    assert path.read_bytes() == b"old"
    write_caffemodel(net, tmp_path / "x.caffemodel")
    assert list(read_caffemodel(tmp_path / "x.caffemodel").layers) == ["inception/3x3"]


CONVERT = """
import sys
from repro.cli import run_command
from repro.measure import peak_memory
status = run_command(sys.argv[1:])
print(peak_memory() // 2**20, "MiB at the peak")
sys.exit(status)
"""


@pytest.mark.slow
def test_full_size_file_converts_in_little_memory(tmp_path):
    """In a process of its own, interpreter and imports included."""
    source = tmp_path / "x.caffemodel"
    write_caffemodel(build_model("vgg16_aspp"), source)
    assert source.stat().st_size > 150e6
    command = ["convert", "vgg16_aspp", str(source), str(tmp_path / "x.safetensors")]
    run = subprocess.run(
        [sys.executable, "-c", CONVERT, *command], capture_output=True, text=True, check=True
    )
    assert "loaded 25 of 25 layers" in run.stdout
    assert int(run.stdout.splitlines()[-1].split()[0]) < 700, run.stdout
