"""From nothing to a data folder, through the command line and a server on this machine."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from parity_tests.conftest import CAFFE_FILES, held_by_another
from parity_tests.server import serving
from parity_tests.small_voc import CLASS, TRAIN_AUG, packed, write_cue_files, write_sbd, write_voc
from repro.cli import run_command
from repro.errors import InputError
from repro.fetch.catalogue import read_catalogue
from repro.fetch.get_data import Fetcher
from weights_conversion.files import temporary_name


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """What the sources serve: the real archives' layout, a dozen images."""
    folder = tmp_path_factory.mktemp("sources")
    write_voc(folder / "VOC2012")
    packed(folder / "voc.tar", folder / "VOC2012", "VOCdevkit/VOC2012")
    write_sbd(folder / "sbd")
    packed(folder / "benchmark.tgz", folder / "sbd", "benchmark_RELEASE/dataset", mode="w:gz")
    write_cue_files(folder)
    with zipfile.ZipFile(folder / "aug.zip", "w") as archive:
        archive.write(
            folder / "VOC2012" / "SegmentationClass" / "2007_000001.png", "SegmentationClassAug/a.png"
        )
        archive.writestr("__MACOSX/._a.png", b"")
    return {
        "voc.tar": (folder / "voc.tar").read_bytes(),
        "benchmark.tgz": (folder / "benchmark.tgz").read_bytes(),
        "aug.zip": (folder / "aug.zip").read_bytes(),
        "localization_cues.pickle.gz": gzip.compress((folder / "localization_cues.pickle").read_bytes()),
        "input_list.txt": (folder / "input_list.txt").read_bytes(),
        "vgg16_20M.caffemodel": (CAFFE_FILES / "vgg16_largefov.caffemodel").read_bytes(),
    }


class Place:
    """A server with the sources, a catalogue that names it, and an empty data folder."""

    def __init__(self, server, folder: Path, files: dict[str, bytes]) -> None:
        self.server, self.folder = server, folder
        server.files = dict(files)
        self.catalogue = folder / "sources.yaml"
        self.data = folder / "data"
        self.root = self.data / "VOCdevkit" / "VOC2012"
        limits = {"most_bytes": 1_000_000, "most_files": 100}
        self.sources = {
            "voc2012": {
                **self.known("voc.tar", md5=True),
                "kind": "archive",
                "to": "VOC_ROOT",
                "archive": {
                    **limits,
                    "take": "VOCdevkit/VOC2012",
                    "members": ["VOCdevkit/VOC2012/*"],
                    "holds": {"JPEGImages": len(CLASS)},
                },
            },
            "sbd": {
                **self.known("benchmark.tgz"),
                "kind": "sbd",
                "to": "VOC_ROOT/SegmentationClassAug",
                "archive": {
                    **limits,
                    "take": "benchmark_RELEASE/dataset",
                    "members": ["*.mat", "*.txt"],
                    "holds": {"cls": 6},
                    "train_aug": len(TRAIN_AUG),
                },
            },
            "sec_cues": {
                **self.known("localization_cues.pickle.gz"),
                "kind": "cues",
                "to": "DATA/localization_cues.pickle.gz",
            },
            "sec_input_list": {**self.known("input_list.txt"), "kind": "list", "to": "DATA/input_list.txt"},
            "vgg16_20M": {
                **self.unknown("vgg16_20M.caffemodel"),
                "kind": "weights",
                "to": "DATA/vgg16_20M.caffemodel",
            },
        }
        self.write_catalogue()

    def known(self, name: str, md5: bool = False) -> dict:
        content = self.server.files[name]
        kind = "md5" if md5 else "sha256"
        digest = hashlib.new(kind, content).hexdigest()
        return {**self.unknown(name), "size": len(content), kind: digest}

    def unknown(self, name: str) -> dict:
        urls = [self.server.url("file", name)]
        return {"what": name, "file": name, "urls": urls, "at_most": 2_000_000, "note": f"by hand: {name}"}

    def write_catalogue(self) -> None:
        self.catalogue.write_text(yaml.safe_dump(self.sources, sort_keys=False))

    def fetch(self, capsys, *arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        fixed = ["--catalogue", str(self.catalogue), "--voc-root", str(self.root)]
        status = run_command(["data", "fetch", *fixed, *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    def states(self, out: str) -> dict[str, str]:
        return {
            line.split()[0]: line.split()[1] for line in out.splitlines() if line.split()[0] in self.sources
        }


@pytest.fixture
def place(tmp_path, files):
    with serving() as server:
        yield Place(server, tmp_path, files)


def test_everything_from_nothing(place, capsys):
    status, out, _ = place.fetch(capsys)
    assert status == 0, out
    assert set(place.states(out).values()) == {"fetched"}
    weights = f"{place.data}/vgg16_20M.caffemodel"
    assert out.splitlines()[-1] == (
        f'next: make reproduce-voc VOC_ROOT={place.root} ARGS="stage1.init.weights={weights}"'
    )
    assert sorted(path.name for path in place.data.iterdir()) == [
        *(".sec-dsrg-lock", "VOCdevkit", "fetch.lock.json", "input_list.txt"),
        *("localization_cues.pickle.gz", "vgg16_20M.caffemodel"),
    ]
    assert (place.root / "ImageSets/Segmentation/train_aug.txt").read_text().split() == TRAIN_AUG
    assert run_command(["data", "verify", str(place.root), "--partial"]) == 0
    pins = json.loads((place.data / "fetch.lock.json").read_text())
    assert set(pins) == set(place.sources)
    asked = len(place.server.ranges)
    status, out, _ = place.fetch(capsys)  # all is there: the server is not asked again
    assert status == 0
    assert set(place.states(out).values()) == {"there"}
    assert len(place.server.ranges) == asked


def test_only_what_is_named(place, capsys):
    status, out, _ = place.fetch(capsys, "sec_input_list")
    assert (status, place.states(out)) == (0, {"sec_input_list": "fetched"})
    assert "next:" not in out
    status, _, message = place.fetch(capsys, "sec_lists")
    assert status == 2
    assert "'sec_lists': not in the catalogue; expected one of voc2012, sbd," in message


def test_own_copies_need_no_server(place, files, capsys):
    own = place.folder / "own" / "deeper"
    own.mkdir(parents=True)
    for name, content in files.items():
        (own / name).write_bytes(content)
    status, out, _ = place.fetch(capsys, "--from", str(own.parent))
    assert status == 0, out
    assert set(place.states(out).values()) == {"taken"}
    assert place.server.ranges == []
    assert {path.name for path in own.iterdir()} == set(files)  # untouched


def test_own_copies_are_checked_and_what_lacks_is_named(place, files, capsys):
    own = place.folder / "own"
    own.mkdir()
    (own / "voc.tar").write_bytes(files["voc.tar"][:-1] + b"x")
    status, out, message = place.fetch(capsys, "--from", str(own), "voc2012", "sec_cues")
    assert status == 2
    assert f"md5 {hashlib.md5((own / 'voc.tar').read_bytes()).hexdigest()}" in out
    assert "2 of 2 sources are missing (voc2012: voc.tar, by hand: voc.tar; sec_cues: " in message
    assert not place.root.exists()
    assert "no such folder" in place.fetch(capsys, "--from", str(own / "absent"))[2]


def test_a_users_own_tree_is_never_touched(place, capsys):
    (place.root / "JPEGImages").mkdir(parents=True)
    (place.root / "JPEGImages" / "mine.jpg").write_bytes(b"mine")
    status, out, _ = place.fetch(capsys, "voc2012")
    assert status == 0
    assert f"(1 of {len(CLASS)} files in JPEGImages)" in out
    assert [path.name for path in place.root.rglob("*")] == ["JPEGImages", "mine.jpg"]
    assert place.server.ranges == []


def test_first_use_pins_and_a_changed_file_is_refused(place, capsys):
    assert place.fetch(capsys, "vgg16_20M")[0] == 0
    (place.data / "vgg16_20M.caffemodel").unlink()
    place.server.files["vgg16_20M.caffemodel"] = (CAFFE_FILES / "vgg16_aspp.caffemodel").read_bytes()
    status, out, _ = place.fetch(capsys, "vgg16_20M")
    assert status == 2
    assert "fetch.lock.json pins" in out
    assert "remove 'vgg16_20M' from fetch.lock.json" in out
    lock = place.data / "fetch.lock.json"
    lock.write_text(json.dumps({}))
    assert place.fetch(capsys, "vgg16_20M")[0] == 0


def test_a_file_in_place_that_has_changed_is_named(place, capsys):
    assert place.fetch(capsys, "sec_input_list")[0] == 0
    path = place.data / "input_list.txt"
    path.write_bytes(path.read_bytes().replace(b"2007", b"2006"))
    status, out, _ = place.fetch(capsys, "sec_input_list")
    assert status == 2
    assert f"{path}: sha256" in out


def test_what_arrives_must_be_what_it_is_to_be(place, capsys):
    """No hash is known and the server answers with something else: refused, not pinned, asked again next time."""
    right = place.server.files["vgg16_20M.caffemodel"]
    place.server.files["vgg16_20M.caffemodel"] = b"please sign in" * 100
    assert place.fetch(capsys, "vgg16_20M")[0] == 2
    assert not (place.data / "vgg16_20M.caffemodel").exists()
    assert not (place.data / "fetch.lock.json").exists()
    place.server.files["vgg16_20M.caffemodel"] = right
    assert place.fetch(capsys, "vgg16_20M")[0] == 0


def test_an_optional_source_may_be_missing(place, capsys):
    place.sources["vgg16_20M"]["urls"] = [place.server.url("gone")]
    place.sources["vgg16_20M"]["optional"] = True
    place.write_catalogue()
    status, out, _ = place.fetch(capsys)
    assert status == 0
    assert place.states(out)["vgg16_20M"] == "missing"
    assert "HTTP 404" in out


def test_one_missing_source_does_not_stop_the_others(place, capsys):
    place.sources["voc2012"]["urls"] = [place.server.url("gone")]
    place.write_catalogue()
    status, out, message = place.fetch(capsys)
    assert status == 2
    assert place.states(out) == {
        "voc2012": "missing",
        "sbd": "missing",  # SBD needs VOC's lists and is not downloaded in vain
        **dict.fromkeys(("sec_cues", "sec_input_list", "vgg16_20M"), "fetched"),
    }
    assert "2 of 5 sources are missing (voc2012: voc.tar, by hand: voc.tar; sbd:" in message
    assert "next:" not in out
    assert not (place.data / "downloads").exists()


def test_an_incomplete_archive_leaves_nothing(place, capsys):
    place.sources["voc2012"]["archive"]["holds"]["JPEGImages"] = 17125
    place.write_catalogue()
    status, out, _ = place.fetch(capsys, "voc2012")
    assert status == 2
    assert f"VOCdevkit/VOC2012 is incomplete: {len(CLASS)} of 17125 files in JPEGImages" in out
    assert sorted(path.name for path in place.data.iterdir()) == [".sec-dsrg-lock", "downloads"]


def test_archives_can_be_kept(place, capsys):
    assert place.fetch(capsys, "voc2012", "--keep-archives")[0] == 0
    assert [path.name for path in (place.data / "downloads").iterdir()] == ["voc.tar"]


@pytest.mark.parametrize("options", [(), ("--from", "downloads")])
def test_what_the_user_has_put_into_downloads_stays_there(place, capsys, monkeypatch, options):
    downloads = place.data / "downloads"
    downloads.mkdir(parents=True)
    monkeypatch.chdir(place.data)  # so that --from names the same folder in another way
    for name in ("voc.tar", "benchmark.tgz", "vgg16_20M.caffemodel", "input_list.txt"):
        (downloads / name).write_bytes(place.server.files[name])
    before = {path.name: path.read_bytes() for path in downloads.iterdir()}
    assert place.fetch(capsys, "voc2012", "sbd", "vgg16_20M", "sec_input_list", *options)[0] == 0
    assert {path.name: path.read_bytes() for path in downloads.iterdir()} == before
    assert (place.data / "vgg16_20M.caffemodel").read_bytes() == before["vgg16_20M.caffemodel"]
    assert place.server.ranges == []


def test_a_wrong_file_of_the_users_stays(place, capsys):
    downloads = place.data / "downloads"
    downloads.mkdir(parents=True)
    (downloads / "vgg16_20M.caffemodel").write_bytes(b"please sign in" * 100)
    assert place.fetch(capsys, "vgg16_20M")[0] == 2
    assert (downloads / "vgg16_20M.caffemodel").exists()


def test_a_zip_of_masks(place, capsys):
    place.sources = {
        "segmentation_class_aug": {
            **place.unknown("aug.zip"),
            "kind": "archive",
            "to": "VOC_ROOT/SegmentationClassAug",
            "archive": {
                "take": "SegmentationClassAug",
                "members": ["SegmentationClassAug/*.png"],
                "most_bytes": 10_000,
                "most_files": 10,
                "holds": {".": 1},
            },
        }
    }
    place.write_catalogue()
    assert place.fetch(capsys, "segmentation_class_aug")[0] == 0
    assert [path.name for path in (place.root / "SegmentationClassAug").iterdir()] == ["a.png"]


def test_disk_space_is_asked_for_first(place, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    status, _, message = place.fetch(capsys, "voc2012", "sbd")
    assert status == 2
    assert "0.00 GB needed for what is still to be downloaded and unpacked, 0.00 GB free" in message
    assert place.server.ranges == []


def test_what_a_killed_call_left_is_cleared(place, capsys):
    left = place.data / temporary_name()
    (left / "VOCdevkit").mkdir(parents=True)
    (place.data / ".unpacking-mine").mkdir()
    (place.data / "downloads").mkdir()
    part = place.data / "downloads" / "voc.tar.part"
    part.write_bytes(place.server.files["voc.tar"][:5000])
    assert place.fetch(capsys, "voc2012")[0] == 0
    assert place.server.ranges == ["bytes=5000-"]
    assert not left.exists()
    assert (place.data / ".unpacking-mine").exists()


def test_two_calls_at_once(place, capsys):
    place.data.mkdir()
    with held_by_another(place.data) as process:
        status, _, message = place.fetch(capsys)
        assert status == 2
        assert f"{place.data}: in use by process {process} on " in message


def test_a_folder_that_cannot_be_made(place, capsys):
    place.data.write_bytes(b"a file")
    status, _, message = place.fetch(capsys)
    assert status == 2
    assert f"{place.data}: cannot be made" in message


def test_list_shows_every_source(place, capsys):
    status, out, _ = place.fetch(capsys, "--dry-run")
    assert status == 0
    for name, source in place.sources.items():
        assert name in out
        assert source["urls"][0] in out
    assert place.server.ranges == []
    assert not place.data.exists()


# --- the catalogue -----------------------------------------------------------------------------------------


def test_the_packaged_catalogue_holds_what_is_known(tmp_path):
    sources = read_catalogue()
    assert sources["voc2012"].md5 == "6cd6e144f989b92b3379bac3b3de84fd"
    assert sources["sec_cues"].sha256 == "a80939fbcc86cd018066588751adf9bebc4de6f830e357b15b8b7c754556b71a"
    assert (
        sources["sec_input_list"].sha256 == "6be862913abdf55ba827c8ae2b4ccfcb003a2fd3870062902d243312e38dcbbd"
    )
    assert sources["sbd"].archive.train_aug == 10582
    fetcher = Fetcher(tmp_path / "VOCdevkit" / "VOC2012")
    assert fetcher.place(sources["sec_cues"]) == tmp_path / "localization_cues.pickle.gz"
    assert fetcher.place(sources["sbd"]) == tmp_path / "VOCdevkit/VOC2012/SegmentationClassAug"
    assert (
        Fetcher(tmp_path / "voc").place(sources["sec_cues"]) == tmp_path / "voc/localization_cues.pickle.gz"
    )


def test_the_sample_holds_the_cues_that_the_catalogue_names(voc_sample):
    sources = read_catalogue()
    for name in ("sec_cues", "sec_input_list"):
        content = (voc_sample / sources[name].file).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (
            sources[name].size,
            sources[name].sha256,
        )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"urls": ["file:///etc/passwd"]}, r"a\.urls\.0"),
        ({"urls": ["ftp://example.org/a"]}, r"a\.urls\.0"),
        ({"file": "../a"}, r"a\.file"),
        ({"to": "DATA/../../a"}, r"a\.to"),
        ({"to": "/etc/a"}, r"a\.to"),
        ({"sha256": "abc"}, r"a\.sha256"),
        ({"at_most": None}, r"give size, or at_most"),
        ({"colour": 1}, r"a\.colour"),
        ({"kind": "archive"}, r"kind archive without a section archive"),
    ],
)
def test_a_catalogue_that_is_wrong_is_refused(tmp_path, change, reason):
    source = {
        "what": "",
        "file": "a",
        "urls": ["http://example.org/a"],
        "kind": "list",
        "to": "DATA/a",
        "note": "",
    }
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"a": {**source, "at_most": 5}}))
    read_catalogue(path)
    path.write_text(yaml.safe_dump({"a": {**source, "at_most": 5, **change}}))
    with pytest.raises(InputError, match=reason) as caught:
        read_catalogue(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_catalogue_runs_no_code(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: !!python/object/apply:os.system ['touch never']\n")
    with pytest.raises(InputError, match="not YAML"):
        read_catalogue(path)


def test_a_damaged_lock_file_is_named(place, capsys):
    place.data.mkdir()
    (place.data / "fetch.lock.json").write_text("{")
    status, _, message = place.fetch(capsys)
    assert status == 2
    assert "fetch.lock.json: damaged" in message
