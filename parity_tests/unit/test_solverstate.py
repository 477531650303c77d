"""Caffe's solver states: the recorded ones, round trips, and what is said of damaged ones."""

from __future__ import annotations

import random

import h5py
import numpy as np
import pytest

from parity_tests.conftest import CAFFE_FILES
from repro.cli import run_command
from repro.config import SolverConfig
from repro.solver import current_step
from weights_conversion import (
    CaffeFileError,
    caffe_pb2,
    read_caffemodel,
    read_prototxt,
    read_solverstate,
    write_solverstate,
)

TOY = CAFFE_FILES / "toy_iter_6.solverstate"
TOY_H5 = CAFFE_FILES / "toy_iter_6.solverstate.h5"


def same_history(left, right) -> None:
    assert [a.shape for a in left] == [b.shape for b in right]
    for index, (a, b) in enumerate(zip(left, right, strict=True)):
        assert a.dtype == b.dtype == np.float32
        assert a.tobytes() == b.tobytes(), f"history {index}"


def test_toy_state():
    state = read_solverstate(TOY)
    message = caffe_pb2.SolverState.FromString(TOY.read_bytes())
    assert (state.iter, state.current_step) == (6, message.current_step) == (6, 1)
    assert state.learned_net == "toy_iter_6.caffemodel"
    same_history(state.history, [np.array(b.data, np.float32).reshape(b.shape.dim) for b in message.history])


def test_hdf5_equals_binary():
    binary, hdf5 = read_solverstate(TOY), read_solverstate(TOY_H5)
    assert (binary.iter, binary.current_step) == (hdf5.iter, hdf5.current_step)
    assert hdf5.learned_net == "toy_iter_6.caffemodel.h5"
    same_history(binary.history, hdf5.history)


def test_history_is_in_the_order_of_the_weights():
    state = read_solverstate(CAFFE_FILES / "stage1_iter_15.solverstate")
    weights = read_caffemodel(CAFFE_FILES / "stage1_iter_15.caffemodel")
    shapes = [blob.shape for layer in weights.layers.values() for blob in layer.blobs]
    assert state.iter == 15
    assert [array.shape for array in state.history] == shapes


@pytest.mark.parametrize("name", ["x.solverstate", "x.solverstate.h5"])
@pytest.mark.parametrize("learned_net", ["", "folder/net_iter_7.caffemodel", "Gewichte-ü.caffemodel"])
def test_round_trip(tmp_path, name, learned_net):
    rng = np.random.default_rng(0)
    history = [rng.normal(size=shape).astype(np.float32) for shape in ((4, 3, 3, 3), (4,), (2, 4), ())]
    history[0][0, 0, 0] = [np.nan, -0.0, 1e-42]
    write_solverstate(tmp_path / name, 7, 2, history, learned_net)
    state = read_solverstate(tmp_path / name)
    assert (state.iter, state.current_step, state.learned_net) == (7, 2, learned_net)
    same_history(state.history, history)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_many_parameters_keep_their_order_in_hdf5(tmp_path):
    write_solverstate(tmp_path / "x.h5", 1, 0, [np.full(2, i, np.float32) for i in range(25)])
    assert [int(a[0]) for a in read_solverstate(tmp_path / "x.h5").history] == list(range(25))


def test_hdf5_is_as_caffe_writes_it(tmp_path):
    state = read_solverstate(TOY_H5)
    write_solverstate(tmp_path / "x.h5", state.iter, state.current_step, state.history, state.learned_net)
    with h5py.File(TOY_H5) as recorded, h5py.File(tmp_path / "x.h5") as written:
        assert set(recorded) == set(written)
        assert set(recorded["history"]) == set(written["history"])
        for name in ("iter", "current_step"):
            assert (written[name].shape, written[name].dtype) == (recorded[name].shape, recorded[name].dtype)
        # room for the zero that ends the string, without which Caffe would read on
        assert written["learned_net"].dtype.itemsize == len(state.learned_net) + 1


def test_written_binary_is_what_protobuf_would_write(tmp_path):
    history = [np.arange(6, dtype=np.float32).reshape(2, 3)]
    write_solverstate(tmp_path / "x.solverstate", 3, 1, history, "net")
    message = caffe_pb2.SolverState.FromString((tmp_path / "x.solverstate").read_bytes())
    blob = caffe_pb2.BlobProto(shape=caffe_pb2.BlobShape(dim=[2, 3]), data=range(6))
    assert message == caffe_pb2.SolverState(iter=3, current_step=1, learned_net=b"net", history=[blob])


@pytest.mark.parametrize("text", ["", "a", "é" * 9, "x" * 9000])
@pytest.mark.parametrize("others", [0, 3])
def test_string_of_variable_length_in_hdf5(tmp_path, text, others):
    path = tmp_path / "x.h5"
    write_solverstate(path, 1, 0, [np.ones(2, np.float32)])
    with h5py.File(path, "r+") as file:
        del file["learned_net"]
        for index in range(others):
            file[f"before{index}"] = "." * 30 * index
        file["learned_net"] = text
        for index in range(others):
            file[f"after{index}"] = "." * 30 * index
    assert read_solverstate(path).learned_net == text


def test_damaged_heap_ends_in_an_error(tmp_path):
    data = bytearray(TOY_H5.read_bytes())
    data[data.index(b"toy_iter_6", data.index(b"GCOL")) - 16] ^= 7  # the string's number in the heap
    (tmp_path / "x.h5").write_bytes(data)
    with pytest.raises(CaffeFileError, match="bad heap pointer"):
        read_solverstate(tmp_path / "x.h5")


def state_bytes(**changes) -> bytes:
    blob = caffe_pb2.BlobProto(shape=caffe_pb2.BlobShape(dim=[2]), data=[1, 2])
    return caffe_pb2.SolverState(**{"iter": 3, "history": [blob], **changes}).SerializeToString()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b'train_net: "net"\n', "text file"),
        (state_bytes(iter=None), "no iteration"),
        (state_bytes(history=[]), "no history"),
        (state_bytes(iter=-1), "iter -1"),
        (state_bytes(current_step=-2), "current_step -2"),
        (state_bytes(learned_net=b"\xff"), "learned_net: .* not UTF-8"),
        (
            state_bytes(history=[caffe_pb2.BlobProto(data=[1, 2])]),
            r"history 0 .at byte 2.: shape \(\) needs 1",
        ),
        (state_bytes()[:-1], "cut off"),
        ((CAFFE_FILES / "toy_iter_6.caffemodel").read_bytes(), "field 1 at byte 0 is a string"),
    ],
)
def test_damaged_state(tmp_path, data, reason):
    path = tmp_path / "x.solverstate"
    path.write_bytes(data)
    with pytest.raises(CaffeFileError, match=reason) as caught:
        read_solverstate(path)
    assert str(path) in str(caught.value)


def missing_iter(file):
    del file["iter"]


def long_iter(file):
    del file["iter"]
    file["iter"] = [1, 2]


def negative_iter(file):
    file["iter"][0] = -1


def text_is_a_number(file):
    del file["learned_net"]
    file["learned_net"] = 5


def huge_text(file):
    del file["learned_net"]
    file.create_dataset("learned_net", (), "S100000000")


def soft_history(file):
    file.move("history", "elsewhere")
    file["history"] = h5py.SoftLink("/elsewhere")


def empty_history(file):
    del file["history"]
    file.create_group("history")


def history_gap(file):
    del file["history/1"]


HDF5_DAMAGE = {
    missing_iter: "/iter: missing",
    long_iter: "expected one integer",
    negative_iter: "iter -1",
    text_is_a_number: "expected one string",
    huge_text: "/learned_net: claims more values than the file",
    soft_history: "/history: is a SoftLink",
    empty_history: "no history",
    history_gap: "/history: its datasets",
}


@pytest.mark.parametrize("damage", HDF5_DAMAGE, ids=lambda function: function.__name__)
def test_damaged_hdf5_state(tmp_path, damage):
    path = tmp_path / "x.solverstate.h5"
    write_solverstate(path, 1, 0, [np.ones(2, np.float32)] * 3, "net")
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(CaffeFileError, match=HDF5_DAMAGE[damage]) as caught:
        read_solverstate(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("source", [TOY, TOY_H5], ids=lambda path: path.name)
def test_mutated_states_load_or_raise(tmp_path, source):
    rng = random.Random(5)
    data = source.read_bytes()
    raised = 0
    count = 60 if source is TOY_H5 else 300  # each HDF5 file is read by a process of its own
    for _ in range(count):
        mutated = bytearray(data)
        for _ in range(rng.choice((1, 8))):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        (tmp_path / "x").write_bytes(mutated[: rng.choice((len(data), rng.randrange(len(data))))])
        try:
            read_solverstate(tmp_path / "x")
        except CaffeFileError:
            raised += 1
    assert count / 10 < raised < count


# --- conversions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".solverstate", ".solverstate.h5"])
def test_one_form_becomes_the_other(tmp_path, capsys, ending):
    for number, source in enumerate((TOY, TOY_H5)):
        target = tmp_path / f"{number}{ending}"
        assert run_command(["convert", str(source), str(target)]) == 0
        want, got = read_solverstate(source), read_solverstate(target)
        assert (got.iter, got.current_step, got.learned_net) == (
            want.iter,
            want.current_step,
            want.learned_net,
        )
        same_history(got.history, want.history)


def test_inspect_lists_a_state(capsys):
    for path in (TOY, TOY_H5):
        capsys.readouterr()
        assert run_command(["inspect", str(path)]) == 0
        out = capsys.readouterr().out
        assert f"iter 6, current_step 1, learned_net 'toy_iter_6.caffemodel{'.h5' * (path is TOY_H5)}'" in out
        assert "history 0       6x3x3x3                  162" in out
        assert "203 values of history in 4 arrays" in out


def test_current_step_is_the_originals():
    """The recorded states were written after the update of iteration iter - 1."""
    for path, solver in ((TOY, "toy"), (CAFFE_FILES / "stage1_iter_15.solverstate", "stage1")):
        state, fields = read_solverstate(path), read_prototxt(CAFFE_FILES / f"{solver}_solver.prototxt")
        config = SolverConfig(base_lr=1.0, lr_policy="step", stepsize=fields.one("stepsize"))
        assert state.current_step == current_step(config, state.iter - 1) == 1
    config = SolverConfig(base_lr=1.0, lr_policy="multistep", stepvalue=[3, 5])
    assert [current_step(config, t) for t in range(7)] == [0, 0, 0, 1, 1, 2, 2]
    assert current_step(SolverConfig(base_lr=1.0, lr_policy="exp"), 9) == 0
