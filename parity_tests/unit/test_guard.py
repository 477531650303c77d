"""HDF5 files and pickles that loop, crash or fill the memory cost the process that reads them, not ours."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest

from repro.errors import InputError
from weights_conversion import guard

KEPT = {"1_labels": np.array([1, 2]), "1_cues": np.zeros((3, 2), int)}


def refused(path, reason):
    with pytest.raises(InputError, match=reason) as caught:
        guard.read_pickle(
            path, most=1 << 30, expected="a dict"
        ) if path.suffix == ".pickle" else guard.read_hdf5(path, packed=True)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def shared_lists() -> bytes:
    """A list of two references to a list of two references to …, 40 deep."""
    inner = [1]
    for _ in range(40):
        inner = [inner, inner]
    return pickle.dumps({"1_labels": inner})


def one_array_often() -> bytes:
    array = np.zeros(1 << 20, np.int16)
    return pickle.dumps({"1_cues": [array] * 4000})


def deep_key() -> bytes:
    """A key whose hash is a million calls deep: Python's stack ends."""
    return b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s."


PICKLES = {
    "a place in the memo beyond any": b"\x80\x02}r\xff\xff\xff\x3f.",
    "a memo in decimal": b"(dp1000000000\n.",
    "an array of bytes": b"\x80\x05\x96" + (1 << 36).to_bytes(8, "little") + b".",
    "shared lists": shared_lists(),
    "one array often": one_array_often(),
    "a deep key": deep_key(),
    "sets": b"\x80\x04(" + b"\x8f" * 3_000_000 + b"l.",
    "digits": b"(I" + b"9" * 100_000 + b"\nI1\nd.",
    "a deep list": b"\x80\x02}X\x01\0\0\0a" + b"]" * 100_000 + b"a" * 99_999 + b"s.",
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_ask_for_more_than_they_hold(tmp_path, name):
    (tmp_path / "x.pickle").write_bytes(PICKLES[name])
    refused(tmp_path / "x.pickle", "more memory|crashes|come to an end|damaged|lists|list, a dict|key|int")


def test_datasets_are_bounded_together(tmp_path):
    """Each of them is below the limit."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for index in range(4):
            file.create_dataset(f"d{index}", data=np.zeros(1 << 24, np.int16), compression="gzip")
    refused(tmp_path / "x.h5", "/d[0-3]: claims more values")


def test_one_dataset_under_many_names_counts_each_time(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["d"] = np.zeros(1 << 20, np.int64)
        for index in range(40):
            file[f"e{index}"] = file["d"]
    refused(tmp_path / "x.h5", "claims more values")


@pytest.mark.parametrize("place", range(0, 20000, 997))
def test_a_flipped_byte_of_a_cue_file(tmp_path, place):
    """Such a byte sends the HDF5 library into a loop, or makes it crash."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["format"] = "x"
        for name in ("indices", "flat_cues"):
            values = np.random.default_rng(0).integers(0, 40, 3000)
            file.create_dataset(name, data=values, compression="gzip", shuffle=True)
    data = bytearray((tmp_path / "x.h5").read_bytes())
    data[place % len(data)] ^= 0xB4
    (tmp_path / "x.h5").write_bytes(data)
    try:
        guard.read_hdf5(tmp_path / "x.h5", packed=True)
    except InputError as error:
        assert str(tmp_path) in str(error)  # noqa: PT017 - not to raise is right as well


def test_the_next_file_is_read_after_a_crash(tmp_path):
    (tmp_path / "bad.pickle").write_bytes(deep_key())
    (tmp_path / "good.pickle").write_bytes(pickle.dumps(KEPT))
    for _ in range(2):
        refused(tmp_path / "bad.pickle", "crashes")
        content = guard.read_pickle(tmp_path / "good.pickle", most=1 << 20, expected="a dict")
        assert content.arrays["1_labels"].values.tolist() == [1, 2]


def reading_process() -> int:
    """The child of ours that reads files."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"weights_conversion.guarded" in (process / "cmdline").read_bytes():
                return int(process.name)
        except OSError:
            continue  # it has ended
    raise AssertionError("no process reads files")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_a_reader_that_was_killed_is_started_again(tmp_path):
    (tmp_path / "good.pickle").write_bytes(pickle.dumps(KEPT))
    guard.read_pickle(tmp_path / "good.pickle", most=1 << 20, expected="a dict")
    reader = reading_process()
    os.kill(reader, signal.SIGKILL)
    os.waitid(os.P_PID, reader, os.WEXITED | os.WNOWAIT)
    assert guard.read_pickle(tmp_path / "good.pickle", most=1 << 20, expected="a dict").arrays


def test_threads_get_their_own_answers(tmp_path):
    found = {}

    def read(number):
        path = tmp_path / f"{number}.pickle"
        path.write_bytes(pickle.dumps({"a": np.full(1000, number)}))
        found[number] = guard.read_pickle(path, most=1 << 20, expected="a dict").arrays["a"].values[0]

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: number for number in range(8)}


def test_a_forked_process_has_its_own(tmp_path):
    (tmp_path / "good.pickle").write_bytes(pickle.dumps(KEPT))
    guard.read_pickle(tmp_path / "good.pickle", most=1 << 20, expected="a dict")
    process = os.fork()
    if process == 0:
        read = guard.read_pickle(tmp_path / "good.pickle", most=1 << 20, expected="a dict")
        os._exit(0 if read.arrays else 1)
    assert os.waitpid(process, 0)[1] == 0


@pytest.mark.parametrize("name", ["no\0thing.h5", "missing.h5"])
def test_no_file(tmp_path, name):
    with pytest.raises(InputError, match="no such file"):
        guard.read_hdf5(tmp_path / name)
