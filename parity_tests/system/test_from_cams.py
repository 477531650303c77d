"""``repro seeds from-cams``: the layouts of later projects' maps, and what bad ones get."""

from __future__ import annotations

import io
from collections import OrderedDict

import numpy as np
import pytest
import torch

from repro.cli import run_command
from repro.data import CueFile

GRID = (21, 21)


def save(path, content):
    path.parent.mkdir(exist_ok=True)
    np.save(path, np.array(content, dtype=object), allow_pickle=True)


def heat(row: int, column: int, size=GRID) -> np.ndarray:
    """A map that falls from (row, column) of the grid to its far corners."""
    rows, columns = np.mgrid[0 : 20 : size[0] * 1j, 0 : 20 : size[1] * 1j]
    return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 30).astype(np.float32)


def run(tmp_path, *options):
    arguments = [
        "seeds",
        "from-cams",
        str(tmp_path / "cams"),
        "--config",
        "mini",
        "--out",
        str(tmp_path / "out"),
        *("stage1.data.new_height=161", "stage1.data.new_width=161"),
    ]
    return run_command([*arguments, *options])


FORMS = {
    "class to map": {0: heat(3, 3), 5: heat(17, 17)},
    "keys that are texts": {"0": heat(3, 3), "5": heat(17, 17)},
    "NumPy keys": {np.int64(0): heat(3, 3), np.int64(5): heat(17, 17)},
    "keys and cam": {"keys": np.array([0, 5]), "cam": np.stack([heat(3, 3), heat(17, 17)])},
    "tensors, as IRN writes them": {
        "keys": torch.tensor([[0, 1], [5, 2]])[:, 0],
        "cam": torch.zeros(2, 4, 4),
        "high_res": np.stack([heat(3, 3, (81, 101)), heat(17, 17, (81, 101))]),
    },
    "tensors of other layouts": {
        "keys": torch.tensor([0, 5], dtype=torch.uint8),
        "cam": torch.from_numpy(np.stack([np.zeros(GRID, np.float32), heat(3, 3), heat(17, 17)], -1))
        .double()
        .permute(2, 0, 1)[1:]
        .requires_grad_(),
    },
    "tensors as keys": {torch.tensor(0): heat(3, 3), torch.tensor([5]): torch.from_numpy(heat(17, 17))},
    "parameters": {0: torch.nn.Parameter(torch.from_numpy(heat(3, 3))), 5: torch.from_numpy(heat(17, 17))},
    "high_res goes first": {
        "keys": np.array([0, 5]),
        "cam": np.zeros((2, 4, 4), np.float32),
        "high_res": np.stack([heat(3, 3, (81, 101)), heat(17, 17, (81, 101))]),
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_layouts(tmp_path, capsys, form):
    save(tmp_path / "cams" / "my x.npy", FORMS[form])
    save(tmp_path / "cams" / "y.npy", {2: heat(10, 10)})
    assert run(tmp_path, "--first-class", "0") == 0
    capsys.readouterr()
    file = CueFile.open(tmp_path / "out" / "cues.h5")
    assert (file.grid, file.names) == (GRID, ("my x", "y"))
    assert file.images(tmp_path / "out" / "input_list.txt") == {"my x": 0, "y": 1}
    assert [file.labels(index).tolist() for index in (0, 1)] == [[1, 6], [3]]
    cells = np.full(GRID, 255)
    cells[tuple(file.cues(0)[1:])] = file.cues(0)[0]
    assert (cells[3, 3], cells[17, 17], cells[20, 0]) == (1, 6, 0)
    # exp(-d²/30) > 0.2 is d² < 48.3
    assert (cells == 1).sum() == (heat(3, 3) > 0.2).sum()
    assert 0 < (cells == 0).sum() <= 44


def test_thresholds_and_background(tmp_path):
    save(tmp_path / "cams" / "x.npy", {0: heat(10, 10)})
    assert run(tmp_path, "--first-class", "1") == 2
    assert run(tmp_path, "--first-class", "0", "--background-below", "0.1", "cues.cam_threshold=0.5") == 0
    cues = CueFile.open(tmp_path / "out" / "cues.h5").cues(0)
    assert (cues[0] == 1).sum() == (heat(10, 10) > 0.5).sum()
    assert (cues[0] == 0).sum() == (heat(10, 10) < 0.1).sum()


def test_the_last_index_tells_that_background_counts(tmp_path):
    save(tmp_path / "cams" / "x.npy", {0: heat(0, 0), 6: heat(10, 10)})
    assert run(tmp_path) == 0
    assert CueFile.open(tmp_path / "out" / "cues.h5").labels(0).tolist() == [6]


def with_storage(change):
    """A dict of a tensor whose storage's bytes are changed."""

    class Storage:
        def __reduce__(self):
            buffer = io.BytesIO()
            torch.save(torch.ones(4, 4).storage(), buffer, _use_new_zipfile_serialization=False)
            return torch.storage._load_from_bytes, (change(buffer.getvalue()),)

    return lambda: tensor_of(Storage(), 0, (4, 4), (4, 1))


def tensor_of(storage, offset, size, stride):
    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (storage, offset, size, stride, False, OrderedDict())

    return Tensor()


BAD_TENSORS = {
    "a storage cut off": with_storage(lambda data: data[:-8]),
    "a storage that claims more": with_storage(lambda data: data.replace(b"K\x10", b"K\xff")),
    "a storage of another class": with_storage(
        lambda data: data.replace(b"ctorch\nFloatStorage", b"cos\nsystem")
    ),
    "no storage": with_storage(lambda data: b"no storage at all"),
    "a shape beyond the storage": lambda: tensor_of(torch.ones(4).storage(), 0, (5,), (1,)),
    "strides beyond the storage": lambda: tensor_of(torch.ones(4).storage(), 0, (2, 2), (3, 1)),
    "an offset before it": lambda: tensor_of(torch.ones(4).storage(), -1, (2,), (1,)),
    "one value very often": lambda: tensor_of(torch.ones(4).storage(), 0, (1 << 20, 1 << 20), (0, 0)),
}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_tensors_that_are_none(tmp_path, capsys, kind):
    save(tmp_path / "cams" / "x.npy", {2: BAD_TENSORS[kind]()})
    assert run(tmp_path) == 2
    assert "x.npy: damaged pickle (" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class Evil:
    def __reduce__(self):
        return print, ("evil",)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ({2: heat(1, 1)}, (), "cannot tell whether its indices count background"),
        ({7: heat(1, 1)}, ("--first-class", "0"), "x.npy: maps of the indices 7; expected 0 to 5"),
        ({"cat": heat(1, 1)}, (), "x.npy: keys 'cat'; expected a dict of class index to map"),
        ({}, (), "x.npy: keys none"),
        ({2: np.zeros(3)}, (), "x.npy: index 2 has a map of shape (3,)"),
        ({2: heat(1, 1) * np.nan}, (), "x.npy: NaN or infinity"),
        ({"keys": [1, 2], "cam": heat(1, 1)[None]}, (), "x.npy: as many indices in 'keys'"),
        ({"keys": [1]}, (), "x.npy: as many indices in 'keys'"),
        ({"keys": [1, 1], "cam": np.ones((2, 3, 3))}, (), "x.npy: an index comes twice"),
        ({2: Evil()}, (), "x.npy: the pickle imports"),
        ({2: heat(1, 1)}, ("--background-below", "nan"), "--background-below nan: expected more than 0"),
        ({2: heat(1, 1)}, ("--background-below", "-1"), "--background-below -1.0: expected more than 0"),
        ({2: heat(1, 1)}, ("--list", "ids.txt"), "no maps of image z, z.npy expected"),
    ],
)
def test_refusals_are_a_line_and_write_nothing(tmp_path, monkeypatch, capsys, content, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ids.txt").write_text("x.jpg\nz.jpg\n")
    save(tmp_path / "cams" / "x.npy", content)
    assert run(tmp_path, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_maps_that_give_no_cue_are_told(tmp_path, capsys, caplog):
    save(tmp_path / "cams" / "a.npy", {1: heat(3, 3) - 2})
    assert run(tmp_path, "--first-class", "0") == 2
    assert "no map is above 0 anywhere" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    save(tmp_path / "cams" / "b.npy", {1: heat(3, 3)})
    assert run(tmp_path, "--first-class", "0") == 0
    assert "1 of 2 images have a map that is nowhere above 0" in caplog.text
    assert "a.npy: index 1" in caplog.text


def test_a_name_with_the_images_suffix_is_read_back(tmp_path):
    save(tmp_path / "cams" / "a.jpg.npy", {1: heat(3, 3)})
    assert run(tmp_path, "--first-class", "0") == 0
    file = CueFile.open(tmp_path / "out" / "cues.h5")
    assert file.images(tmp_path / "out" / "input_list.txt") == {"a": 0}


def test_maps_without_a_lowest_cell_are_told(tmp_path, caplog):
    """Where a map is 0 in most cells, none of them is below the others, which the rule asks for."""
    save(tmp_path / "cams" / "a.npy", {1: np.maximum(heat(3, 3) - 0.5, 0)})
    again = ("--out", str(tmp_path / "out2"))
    assert run(tmp_path, "--first-class", "0", *again) == 0
    assert not (CueFile.open(tmp_path / "out2" / "cues.h5").cues(0)[0] == 0).any()
    assert "1 of 1 images get no cue of background" in caplog.text
    told = ("--background-below", "0.05", "--out", str(tmp_path / "out3"))
    assert run(tmp_path, "--first-class", "0", *told) == 0
    assert (CueFile.open(tmp_path / "out3" / "cues.h5").cues(0)[0] == 0).sum() > 100


@pytest.mark.parametrize("name", ["input_list.txt", "cues.h5"])
def test_the_users_files_stay(tmp_path, capsys, name):
    save(tmp_path / "cams" / "a.npy", {1: heat(3, 3)})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    assert run(tmp_path, "--first-class", "0") == 2
    assert "choose another folder" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [(name, "mine")]


def test_cues_of_other_settings_stay(tmp_path, capsys):
    save(tmp_path / "cams" / "a.npy", {1: heat(3, 3)})
    assert [run(tmp_path, "--first-class", "0") for _ in range(2)] == [0, 0]
    before = (tmp_path / "out" / "cues.h5").read_bytes()
    assert run(tmp_path, "--first-class", "0", "cues.cam_threshold=0.5") == 2
    assert "made with cam_threshold = " in capsys.readouterr().err
    assert (tmp_path / "out" / "cues.h5").read_bytes() == before


def test_a_list_of_the_users_among_pseudo_labels_stays(tmp_path, capsys):
    (tmp_path / "list.txt").write_text("mine")
    assert run_command(["pseudo-labels", "--config", "mini", "--weights", "w", "--out", str(tmp_path)]) == 2
    assert "list.txt exists and no settings.json" in capsys.readouterr().err
    assert (tmp_path / "list.txt").read_text() == "mine"
