"""Cue files: the SEC authors' pickle, our HDF5, what both give the layers, and files that must be refused."""

from __future__ import annotations

import collections
import gzip
import os
import pickle

import h5py
import numpy as np
import pytest
from PIL import Image

from repro.data import CueDataset
from repro.data import cues as cues_module
from repro.data.cues import CueFile, convert_cues, write_cues
from repro.errors import InputError

ENTRIES = {
    3: ([5, 8], [[0, 5, 5, 8], [0, 40, 1, 2], [0, 40, 1, 3]]),
    12: ([20], [[20], [7], [9]]),
    7: ([1], np.zeros((3, 0), np.int64)),
}
SUFFIXES = [".pickle", ".pkl", ".pickle.gz", ".pkl.gz", ".h5", ".hdf5"]


def in_the_originals_layout(entries) -> dict:
    content = {f"{index}_labels": np.array(labels) for index, (labels, _) in entries.items()}
    return content | {f"{index}_cues": np.array(cues) for index, (_, cues) in entries.items()}


def dump(path, content, protocol=2):
    data = pickle.dumps(content, protocol=protocol)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def python2_pickle() -> bytes:
    """{'3_labels': array([5, 8])} and its cues as Python 2 writes them: the array's bytes are a str."""

    def array(values) -> bytes:
        raw = np.asarray(values, "<i8").tobytes()
        shape = b"".join(b"K" + bytes([n]) for n in np.shape(values))
        return (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01("
            + shape
            + b"tcnumpy\ndtype\n(U\x02i8K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
            + len(raw).to_bytes(4, "little")
            + raw
            + b"tb"
        )

    labels, cues = ENTRIES[3]
    return b"\x80\x02}(U\x083_labels" + array(labels) + b"U\x063_cues" + array(cues) + b"u."


@pytest.fixture(params=SUFFIXES)
def cue_file(request, tmp_path):
    """A file of ENTRIES of every kind."""
    path = tmp_path / f"cues{request.param}"
    if request.param in (".h5", ".hdf5"):
        write_cues(path, ENTRIES)
        return path
    return dump(path, in_the_originals_layout(ENTRIES))


# --- what is read -------------------------------------------------------------------------------------------


def test_entries_come_back(cue_file):
    file = CueFile.open(cue_file)
    assert len(file) == 3
    assert file.indices.tolist() == [3, 7, 12]
    for index, (labels, cues) in ENTRIES.items():
        assert file.labels(index).tolist() == list(labels)
        np.testing.assert_array_equal(file.cues(index), cues)
        assert file.cues(index).shape[0] == 3
        assert np.issubdtype(file.cues(index).dtype, np.integer)


def test_blobs(cue_file):
    file = CueFile.open(cue_file)
    labels, cues = file.labels_blob(3, 21, background=False), file.cues_blob(3, 21, 41, 41)
    assert (labels.dtype, labels.shape, cues.dtype, cues.shape) == (
        np.uint8,
        (21,),
        np.uint8,
        (21, 41, 41),
    )
    assert np.flatnonzero(labels).tolist() == [5, 8]
    assert np.flatnonzero(file.labels_blob(3, 21, background=True)).tolist() == [0, 5, 8]
    assert np.argwhere(cues).tolist() == [[0, 0, 0], [5, 1, 1], [5, 40, 40], [8, 2, 3]]
    assert set(np.unique(cues)) == {0, 1}
    assert not file.cues_blob(7, 21, 41, 41).any()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol(tmp_path, protocol):
    content = in_the_originals_layout(ENTRIES)
    content["7_labels"] = [np.int64(1)]  # a list of NumPy scalars, and an array in Fortran order
    content["3_cues"] = np.asfortranarray(content["3_cues"].astype(">i4"))
    file = CueFile.open(dump(tmp_path / "cues.pickle", content, protocol))
    for index, (labels, cues) in ENTRIES.items():
        assert file.labels(index).tolist() == list(labels)
        np.testing.assert_array_equal(file.cues(index), cues)


def test_python_2_pickle(tmp_path):
    path = tmp_path / "cues.pickle"
    path.write_bytes(python2_pickle())
    assert pickle.loads(python2_pickle(), encoding="latin1")["3_labels"].tolist() == [5, 8]
    np.testing.assert_array_equal(CueFile.open(path).cues(3), ENTRIES[3][1])


def test_recorded_cues_give_the_recorded_blob(golden):
    recorded = golden("stage1")
    inputs = {name: recorded["inputs"][name][()] for name in recorded["inputs"]}
    file = CueFile.from_entries(
        "stage1.h5", {i: (inputs[f"labels_{i}"], inputs[f"cues_{i}"]) for i in range(6)}
    )
    for i, want in enumerate(recorded["iteration1/cues"][()]):
        np.testing.assert_array_equal(file.cues_blob(i, 21, 41, 41), want)


def test_the_sec_authors_file(voc_sample, tmp_path):
    source, converted = voc_sample / "localization_cues.pickle.gz", tmp_path / "cues.h5"
    original = CueFile.open(source)
    assert len(original) == 10582
    assert original.indices.tolist() == list(range(10582))
    for index in original.indices:
        original.check(index, 21, 41, 41)

    convert_cues(source, converted)
    assert converted.stat().st_size < source.stat().st_size
    file = CueFile.open(converted)
    for name in ("indices", "label_offsets", "flat_labels", "cue_offsets", "flat_cues"):
        np.testing.assert_array_equal(getattr(file, name), getattr(original, name))

    with gzip.open(source) as stream:  # the sample's checksum is known, so this one may be trusted
        trusted = pickle.load(stream, encoding="latin1")
    for index in range(0, 10582, 100):
        np.testing.assert_array_equal(file.labels(index), trusted[f"{index}_labels"])
        np.testing.assert_array_equal(file.cues(index), trusted[f"{index}_cues"])


def test_written_pickle_is_the_originals_layout(tmp_path):
    write_cues(tmp_path / "cues.pickle", ENTRIES)
    content = pickle.loads((tmp_path / "cues.pickle").read_bytes())
    assert sorted(content) == sorted(in_the_originals_layout(ENTRIES))
    assert content["3_cues"].shape == (3, 4)
    assert content["7_cues"].shape == (3, 0)


def test_converting_replaces_and_keeps_the_old_file_on_failure(tmp_path):
    source, target = dump(tmp_path / "cues.pickle", in_the_originals_layout(ENTRIES)), tmp_path / "cues.h5"
    convert_cues(source, target)
    before = target.read_bytes()
    source.write_bytes(b"rubbish")
    with pytest.raises(InputError):
        convert_cues(source, target)
    assert target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cues.h5", "cues.pickle"]


def test_converting_into_the_pickle_itself_leaves_it(tmp_path):
    source = tmp_path / "cues.pickle"
    write_cues(source, {0: (np.array([1]), np.array([[1], [2], [3]]))})
    before = source.read_bytes()
    with pytest.raises(InputError, match=r"ends in \.h5"):
        convert_cues(source, source)
    assert source.read_bytes() == before


def test_an_open_cue_file_can_be_pickled(cue_file):
    """As for a DataLoader worker that is spawned."""
    file = pickle.loads(pickle.dumps(CueFile.open(cue_file)))
    np.testing.assert_array_equal(file.cues(3), ENTRIES[3][1])


def test_an_empty_file_has_no_entry(tmp_path):
    for path in (tmp_path / "cues.pickle", tmp_path / "cues.h5"):
        write_cues(path, {})
        file = CueFile.open(path)
        assert len(file) == 0
        with pytest.raises(InputError, match="no entry for image index 0"):
            file.labels(0)


# --- entries that must be refused ---------------------------------------------------------------------------

GOOD_LABELS, GOOD_CUES = [5], [[5], [1], [2]]


@pytest.mark.parametrize("kind", [".pickle", ".h5"])
@pytest.mark.parametrize(
    ("labels", "cues", "reason"),
    [
        ([], GOOD_CUES, "labels without any present class"),
        ([0], GOOD_CUES, "label 0; expected classes 1 to 20"),
        ([21], GOOD_CUES, "label 21; expected classes 1 to 20"),
        (GOOD_LABELS, [[21], [1], [2]], r"\(21, 1, 2\), classes below 21 on a 41x41 grid"),
        (GOOD_LABELS, [[5, 5], [1, 41], [2, 2]], r"\(5, 41, 2\)"),
        (GOOD_LABELS, [[5], [1], [41]], r"\(5, 1, 41\)"),
    ],
)
def test_entries_that_do_not_fit_the_layer(tmp_path, kind, labels, cues, reason):
    path = tmp_path / f"cues{kind}"
    write_cues(path, {4: (np.array(labels, np.int64), cues)})
    file = CueFile.open(path)
    with pytest.raises(InputError, match=reason) as caught:
        file.check(4, 21, 41, 41)
    assert str(path) in str(caught.value)
    assert "index 4" in str(caught.value)
    with pytest.raises(InputError, match=reason):
        file.labels_blob(4, 21, background=True), file.cues_blob(4, 21, 41, 41)


@pytest.mark.parametrize("call", ["labels", "cues", "check", "labels_blob", "cues_blob"])
@pytest.mark.parametrize("index", [-1, 4, 13])
def test_unknown_index(cue_file, call, index):
    file = CueFile.open(cue_file)
    arguments = {"check": (21, 41, 41), "labels_blob": (21, True), "cues_blob": (21, 41, 41)}.get(call, ())
    with pytest.raises(InputError, match=rf"no entry for image index {index}\b.*3 to 12") as caught:
        getattr(file, call)(index, *arguments)
    assert str(cue_file) in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "cues", "reason"),
    [
        ("5", GOOD_CUES, "is a str"),
        ([[5]], GOOD_CUES, r"labels of index 4: shape \(1, 1\); expected \(L,\)"),
        ([5.0], GOOD_CUES, "labels of index 4: float64; expected integers"),
        (np.array([5.0]), GOOD_CUES, "labels of index 4: float64; expected integers"),
        (["cat"], GOOD_CUES, "4_labels: .*integers"),
        ([5, [5]], GOOD_CUES, "4_labels: nested lists"),
        (GOOD_LABELS, np.zeros((2, 4), int), r"cues of index 4: shape \(2, 4\); expected \(3, K\)"),
        (GOOD_LABELS, np.zeros((4, 3), int), r"cues of index 4: shape \(4, 3\)"),
        (GOOD_LABELS, np.zeros(3, int), r"cues of index 4: shape \(3,\)"),
        (GOOD_LABELS, np.zeros((3, 0, 1), int), r"cues of index 4: shape \(3, 0, 1\)"),
        (GOOD_LABELS, np.zeros((3, 4), bool), "cues of index 4: bool; expected integers"),
        (GOOD_LABELS, np.array([[5], [-1], [2]]), "cues of index 4: values -1 to 5"),
        (GOOD_LABELS, np.array([[5], [1], [2**40]]), "cues of index 4: values 1 to 1099511627776"),
        (GOOD_LABELS, [[np.array([5])], [1], [2]], "4_cues: (nested lists|object)"),
    ],
)
def test_entries_that_are_no_cues(tmp_path, labels, cues, reason):
    path = dump(tmp_path / "cues.pickle", {"4_labels": labels, "4_cues": cues})
    with pytest.raises(InputError, match=reason) as caught:
        CueFile.open(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "holds a list"),
        (np.arange(3), "holds a _?[aA]rray"),
        ({"4_labels": [5]}, "index 4 has only one"),
        ({"4_cues": np.zeros((3, 1), int)}, "index 4 has only one"),
        ({"x_labels": [5]}, "image x has only one"),
        ({"x_labels": [5], "x.jpg_labels": [5]}, "labels of 'x' come again"),
        ({"_labels": [5]}, "key '_labels'"),
        ({"4_boxes": [5]}, "key '4_boxes'"),
        ({4: [5]}, "key '4'"),
    ],
)
def test_contents_that_are_no_cue_file(tmp_path, content, reason):
    path = dump(tmp_path / "cues.pickle", content)
    with pytest.raises(InputError, match=reason) as caught:
        CueFile.open(path)
    assert str(path) in str(caught.value)


# --- files that must be refused -----------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


class EvilArray(np.ndarray):
    pass


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (Evil(), "system"),
        ({"4_labels": Evil()}, "system"),
        (np.memmap, "numpy.memmap"),
        (eval, "builtins.eval|__builtin__.eval"),
        (collections.Counter(a=1), "collections.Counter"),
        (np.array([1]).view(EvilArray), "EvilArray"),
        (np.random.default_rng(0), "numpy.random"),
    ],
    ids=["call", "nested", "class", "builtin", "counter", "subclass", "generator"],
)
def test_a_pickle_imports_nothing_else(tmp_path, monkeypatch, content, named):
    monkeypatch.chdir(tmp_path)
    path = dump(tmp_path / "cues.pickle", content)
    with pytest.raises(InputError, match=rf"the pickle imports \S*({named})") as caught:
        CueFile.open(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "content",
    [np.array([object()]), np.array([(1, 2)], "i4,i4"), np.array(["cat"]), np.array(["2007-01-01"], "M8[D]")],
    ids=["object", "structured", "text", "date"],
)
def test_arrays_of_other_than_numbers_are_refused(tmp_path, content):
    path = dump(tmp_path / "cues.pickle", {"4_labels": content, "4_cues": np.zeros((3, 1), int)})
    with pytest.raises(InputError, match=r"damaged pickle|imports|4_labels: <U3; expected integers"):
        CueFile.open(path)


PLAIN = pickle.dumps(in_the_originals_layout(ENTRIES), protocol=2)


@pytest.mark.parametrize(
    ("suffix", "data", "reason"),
    [
        (".pickle", b"", "damaged pickle"),
        (".pickle", b"not a pickle", "damaged pickle"),
        (".pickle", PLAIN[:-20], "damaged pickle"),
        (".pickle", PLAIN.replace(b"i8", b"O8"), "damaged pickle .dtype"),
        (
            ".pickle",
            b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
            "bytes in 'hex'",
        ),
        (".pickle", b"\x80\x02}(K\x01K\x02u" + b"(" * 10, "damaged pickle"),
        (".pickle", b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"abc.", "more memory"),
        (".pickle.gz", PLAIN, "cannot be read"),
        (".pickle.gz", gzip.compress(PLAIN, mtime=0)[:-30], "cannot be read"),
        (".pickle.gz", gzip.compress(b"x" * 50, mtime=0)[:-8] + bytes(8), "cannot be read"),
        (".h5", b"", "damaged HDF5"),
        (".h5", PLAIN, "damaged HDF5"),
        (".txt", PLAIN, "unknown kind of cue file"),
    ],
)
def test_damaged_files(tmp_path, suffix, data, reason):
    path = tmp_path / f"cues{suffix}"
    path.write_bytes(data)
    with pytest.raises(InputError, match=reason) as caught:
        CueFile.open(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", range(0, len(PLAIN), 29))
def test_a_flipped_byte_is_an_input_error_or_other_values(tmp_path, place):
    data = bytearray(PLAIN)
    data[place] ^= 0x5A
    path = tmp_path / "cues.pickle"
    path.write_bytes(data)
    try:
        CueFile.open(path)
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017 — not to raise is right as well


@pytest.mark.parametrize("suffix", [".pickle", ".pickle.gz"])
def test_oversized_files(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"cues{suffix}"
    entries = {1: ([1], np.zeros((3, 5000), np.int64))}
    dump(path, in_the_originals_layout(entries))
    CueFile.open(path)
    monkeypatch.setattr(cues_module, "MAX_BYTES", 10_000)
    with pytest.raises(InputError, match=r"unpacks to .*10000") as caught:
        CueFile.open(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_unknown_kind_to_write(tmp_path):
    with pytest.raises(InputError, match="no such cue file"):
        CueFile.open(tmp_path / "cues.h5")
    with pytest.raises(InputError, match="unknown kind"):
        write_cues(tmp_path / "cues.npz", ENTRIES)
    with pytest.raises(InputError, match="labels of index 4"):
        write_cues(tmp_path / "cues.h5", {4: ([0.5], GOOD_CUES)})
    assert not list(tmp_path.iterdir())


def test_arrays_in_a_tuple_are_the_released_form(tmp_path):
    """As ``np.where`` gives them: three arrays of indices."""
    rows = tuple(np.array(row) for row in ENTRIES[3][1])
    path = dump(tmp_path / "cues.pickle", {"3_labels": np.array([5, 8]), "3_cues": rows})
    np.testing.assert_array_equal(CueFile.open(path).cues(3), ENTRIES[3][1])


def spoil_width(file):
    """Offsets of 8 bits: their differences would wrap, and 300 - 44 pass for rising."""
    values = file["cue_offsets"][()].astype(np.int8)
    del file["cue_offsets"]
    file["cue_offsets"] = np.where(np.arange(len(values)) % 2, 127, values).astype(np.int8)


def spoil_too_wide(file):
    values = file["flat_cues"][()].astype(np.int64) + 2**16
    del file["flat_cues"]
    file["flat_cues"] = values


def spoil_format(file):
    file.attrs["format"] = "other"


def spoil_no_format(file):
    del file.attrs["format"]


def spoil_missing(file):
    del file["flat_labels"]


def spoil_dtype(file):
    values = file["flat_labels"][()].astype(float)
    del file["flat_labels"]
    file["flat_labels"] = values


def spoil_group(file):
    del file["indices"]
    file.create_group("indices")


def spoil_order(file):
    file["indices"][...] = file["indices"][()][::-1]


def spoil_offsets(file):
    file["cue_offsets"][1] = 1000


def spoil_end(file):
    file["label_offsets"][-1] += 1


def spoil_rows(file):
    values = file["flat_cues"][:2]
    del file["flat_cues"]
    file["flat_cues"] = values


def spoil_link(file):
    del file["indices"]
    file["indices"] = h5py.SoftLink("/nowhere")


def move_out(file) -> str:
    """The indices in a file of their own beside it."""
    other = file.filename + ".other"
    with h5py.File(other, "w") as target:
        target["indices"] = file["indices"][()]
    del file["indices"]
    return other


def spoil_external_link(file):
    file["indices"] = h5py.ExternalLink(move_out(file), "/indices")


def spoil_virtual(file):
    count = len(file["indices"])
    layout = h5py.VirtualLayout((count,), np.int64)
    layout[:] = h5py.VirtualSource(move_out(file), "indices", (count,))
    file.create_virtual_dataset("indices", layout)


def spoil_external_storage(file):
    values = file["indices"][()]
    raw = move_out(file) + ".raw"
    values.tofile(raw)
    file.create_dataset("indices", values.shape, values.dtype, external=[(raw, 0, values.nbytes)])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_external_link, "/indices: is a ExternalLink"),
        (spoil_virtual, "/indices: keeps its values in another file"),
        (spoil_external_storage, "/indices: keeps its values in another file"),
        (spoil_format, "attribute format"),
        (spoil_width, "offsets that span"),
        (spoil_too_wide, "'flat_cues' is of int64; expected int16"),
        (spoil_no_format, "attribute format"),
        (spoil_missing, "'flat_labels'"),
        (spoil_dtype, "'flat_labels' of 1-d integers"),
        (spoil_group, "'indices'"),
        (spoil_order, "rising indices"),
        (spoil_offsets, "offsets that span"),
        (spoil_end, "offsets that span"),
        (spoil_rows, "offsets that span"),
        (spoil_link, "/indices: is a SoftLink"),
    ],
)
def test_damaged_hdf5(tmp_path, spoil, reason):
    path = tmp_path / "cues.h5"
    write_cues(path, ENTRIES)
    with h5py.File(path, "r+") as file:
        spoil(file)
    with pytest.raises(InputError, match=reason) as caught:
        CueFile.open(path)
    assert str(path) in str(caught.value)


# --- the grid of the cues -----------------------------------------------------------------------------------


def every_cell(rows: int, columns: int) -> dict:
    """One image whose cues fill a grid."""
    cells = np.stack(
        [np.zeros(rows * columns, int), *np.unravel_index(np.arange(rows * columns), (rows, columns))]
    )
    return {0: ([1], cells)}


def test_a_stored_grid_comes_back_and_survives_a_conversion(tmp_path):
    write_cues(tmp_path / "cues.h5", every_cell(21, 33), (21, 33))
    convert_cues(tmp_path / "cues.h5", tmp_path / "again.h5")
    for name in ("cues.h5", "again.h5"):
        assert CueFile.open(tmp_path / name).grid == (21, 33)


@pytest.mark.parametrize(("made", "net"), [((21, 21), (41, 41)), ((41, 41), (21, 21)), ((41, 33), (33, 41))])
def test_another_stored_grid_than_the_nets_is_refused(tmp_path, made, net):
    write_cues(tmp_path / "cues.h5", every_cell(*made), made)
    file = CueFile.open(tmp_path / "cues.h5")
    file.check_grid(*made)
    with pytest.raises(
        InputError, match=f"{made[0]}x{made[1]} grid, the net's {net[0]}x{net[1]} grid expected"
    ):
        file.check_grid(*net)


@pytest.mark.parametrize("suffix", [".pickle", ".h5"])
@pytest.mark.parametrize(
    ("made", "net", "doubtful"),
    [
        ((21, 21), (41, 41), True),
        ((41, 21), (41, 41), True),
        ((11, 11), (21, 21), True),
        ((22, 22), (41, 41), False),
        ((41, 41), (41, 41), False),
        ((1, 1), (1, 1), False),
    ],
)
def test_a_file_without_grid_is_judged_by_its_largest_cell(tmp_path, caplog, suffix, made, net, doubtful):
    write_cues(tmp_path / f"cues{suffix}", every_cell(*made))
    CueFile.open(tmp_path / f"cues{suffix}").check_grid(*net)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == doubtful
    if doubtful:
        assert f"{net[0]}x{net[1]} grid" in lines[0]


def test_a_file_without_any_cue_is_no_doubt(tmp_path):
    write_cues(tmp_path / "cues.pickle", {0: ([1], np.empty((3, 0), int))})
    assert CueFile.open(tmp_path / "cues.pickle").grid_doubt(41, 41) == ""


@pytest.mark.parametrize("grid", [[41], [0, 41], "41x41", [41.0, 41.0], [[41, 41]]])
def test_a_damaged_grid_is_refused(tmp_path, grid):
    write_cues(tmp_path / "cues.h5", ENTRIES, (41, 41))
    with h5py.File(tmp_path / "cues.h5", "r+") as file:
        file.attrs["grid"] = grid
    with pytest.raises(InputError, match="'grid' of rows and columns"):
        CueFile.open(tmp_path / "cues.h5")


# --- cues as people write them ------------------------------------------------------------------------------

WRITTEN = {
    "np.where": (np.array([5, 8]), np.where(np.eye(3, dtype=int))[:1] + np.where(np.eye(3, dtype=int))),
    "lists": ([5, 8], [[0, 1, 2], [0, 1, 2], [0, 1, 2]]),
    "a list of arrays": ({5, 8}, [np.arange(3), np.arange(3), np.arange(3, dtype=np.int8)]),
    "a tuple of lists of NumPy integers": (
        (np.int64(5), np.uint8(8)),
        tuple([list(map(np.int32, range(3)))] * 3),
    ),
}


@pytest.mark.parametrize("form", WRITTEN)
def test_forms_of_index_arrays(tmp_path, form):
    labels, cues = WRITTEN[form]
    file = CueFile.open(dump(tmp_path / "cues.pickle", {"4_labels": labels, "4_cues": cues}))
    assert sorted(file.labels(4).tolist()) == [5, 8]
    assert file.cues(4).tolist() == [[0, 1, 2]] * 3


@pytest.mark.parametrize("protocol", [2, 4])
def test_other_dicts_and_keys(tmp_path, protocol):
    """A defaultdict, keys that are bytes, and a dict for each index."""
    labels, cues = [5, 8], np.array([[0, 5], [1, 2], [3, 4]])
    default = collections.defaultdict(list, {"3_labels": labels, "3_cues": cues})
    for content in (default, {b"3_labels": labels, b"3_cues": cues}, {3: {"labels": labels, "cues": cues}}):
        file = CueFile.open(dump(tmp_path / "cues.pickle", content, protocol))
        assert file.labels(3).tolist() == labels
        np.testing.assert_array_equal(file.cues(3), cues)
    with pytest.raises(InputError, match="a key twice"):
        CueFile.open(dump(tmp_path / "cues.pickle", {**default, b"3_labels": labels}, protocol))


def test_one_label_alone(tmp_path):
    file = CueFile.open(
        dump(tmp_path / "cues.pickle", {"4_labels": np.int64(5), "4_cues": np.zeros((3, 0), int)})
    )
    assert file.labels(4).tolist() == [5]


NAMED = {
    "underscore": {f"2007_00003{n}_{kind}": value for n in (2, 9) for kind, value in
                   (("labels", [n]), ("cues", [[n], [1], [n]]))},
    "nested": {f"2007_00003{n}": {"labels": np.array([n]), "cues": ([n], [1], [n])} for n in (2, 9)},
    "file names": {f"JPEGImages/2007_00003{n}.jpg_{kind}": value for n in (2, 9) for kind, value in
                   (("cues", [[n], [1], [n]]), ("labels", [n]))},
}  # fmt: skip


@pytest.mark.parametrize("form", NAMED)
def test_keys_that_are_image_names(tmp_path, form):
    """They stay through the conversion, and lists of any form find them, whatever index stands in those."""
    path = dump(tmp_path / "cues.pickle", NAMED[form])
    convert_cues(path, tmp_path / "cues.h5")
    for file in (CueFile.open(path), CueFile.open(tmp_path / "cues.h5")):
        assert file.names == ("2007_000032", "2007_000039")
        for text in ("2007_000039\n2007_000032\n", "2007_000039.jpg 0\n2007_000032.jpg 7\n"):
            (tmp_path / "list.txt").write_text(text)
            images = file.images(tmp_path / "list.txt")
            assert list(images) == ["2007_000039", "2007_000032"]
            assert [file.labels(index).tolist() for index in images.values()] == [[9], [2]]
            assert [file.cues(index).tolist() for index in images.values()] == [
                [[9], [1], [9]],
                [[2], [1], [2]],
            ]
        assert list(file.images()) == ["2007_000032", "2007_000039"]
        (tmp_path / "list.txt").write_text("2007_000032\n2007_000040\n")
        with pytest.raises(InputError, match=r"list\.txt:2: image 2007_000040 has no cues in"):
            file.lines(tmp_path / "list.txt")
    with pytest.raises(InputError, match="knows its images by number"):
        CueFile.from_entries("x.h5", ENTRIES).images()


def test_training_reads_cues_by_name(tmp_path):
    for n in (2, 9):
        Image.fromarray(np.full((8, 8, 3), n, np.uint8)).save(tmp_path / f"2007_00003{n}.png")
    (tmp_path / "list.txt").write_text("2007_000039\n2007_000032.png\n")
    path = dump(tmp_path / "cues.pickle", NAMED["nested"])
    cues = CueFile.open(path)
    layer = CueDataset(tmp_path, cues.lines(tmp_path / "list.txt"), cues, new_height=8, new_width=8)
    labels = [layer.item(i, np.random.default_rng(0))["labels"].nonzero().flatten().tolist() for i in (0, 1)]
    assert labels == [[0, 9], [0, 2]]


def test_cues_of_coco_are_names_for_their_zeros(tmp_path):
    path = dump(
        tmp_path / "cues.pickle", {"000000000139_labels": [1], "000000000139_cues": np.zeros((3, 0), int)}
    )
    assert CueFile.open(path).names == ("000000000139",)


@pytest.mark.parametrize("names", ['["a"]', '["a", "a", "b"]', '["a", "b", 3]', "[", "{}"])
def test_damaged_names_are_refused(tmp_path, names):
    write_cues(
        tmp_path / "cues.h5", {n: ([1], np.zeros((3, 0), int)) for n in range(3)}, names=("x", "y", "z")
    )
    with h5py.File(tmp_path / "cues.h5", "a") as file:
        del file["names"]
        file["names"] = names
    with pytest.raises(InputError, match=r"cues\.h5: damaged"):
        CueFile.open(tmp_path / "cues.h5")


def test_cues_that_contradict_their_labels_get_one_line(tmp_path, caplog):
    entries = {
        3: ([1, 2], [[1, 2, 0], [0, 5, 40], [0, 5, 40]]),
        5: ([4], [[4, 7, 7], [1, 2, 3], [1, 2, 40]]),
        8: ([9], [[2, 9], [1, 2], [3, 4]]),
    }
    path = tmp_path / "cues.pickle"
    write_cues(path, entries)
    CueFile.open(path).check_whole(41, 41)
    said = (
        f"{path}: 2 of 3 images have cues of a class that their labels lack, 3 of 8 cells in all; index 5 has class 7, "
        "its labels are 4"
    )
    assert [record.getMessage() for record in caplog.records] == [said]
    caplog.clear()
    convert_cues(path, tmp_path / "cues.h5")
    assert [record.getMessage() for record in caplog.records] == [said]
    assert CueFile.from_entries("f", {3: entries[3]}).label_doubt() == ""
    assert CueFile.from_entries("f", {}).label_doubt() == ""
    named = CueFile.from_entries("f", {0: entries[3], 1: entries[8]}, names=["a", "b"])
    assert named.label_doubt().endswith("1 of 5 cells in all; image b has class 2, its labels are 9")


def test_a_training_says_it_once(tmp_path, caplog):
    write_cues(tmp_path / "cues.h5", {0: ([1], [[2], [40], [40]])}, (41, 41), ["x"])
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    file = CueFile.open(tmp_path / "cues.h5")
    (tmp_path / "list.txt").write_text("x.png 0\n")
    CueDataset(tmp_path, file.lines(tmp_path / "list.txt"), file)
    assert [
        record.getMessage() for record in caplog.records if "their labels lack" in record.getMessage()
    ] == [file.label_doubt()]
