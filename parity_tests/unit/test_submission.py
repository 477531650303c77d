"""Archives for VOC's test server: whole and the same twice, and each thing that the server would stumble over."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parity_tests.conftest import CAFFE_FILES
from repro.cli import run_command
from repro.data import write_mask
from repro.data.voc import colour_palette
from repro.errors import InputError
from repro.report.submission import FOLDER, TEST_IMAGES, check_submission, write_submission

IDS = [f"2008_{number:06d}" for number in range(30)]
SIZE = (5, 4)


@pytest.fixture(autouse=True)
def short_list(monkeypatch):
    """A test list of as many images as ``IDS`` has."""
    monkeypatch.setattr("repro.report.submission.TEST_IMAGES", len(IDS))


@pytest.fixture(scope="module")
def test_set(tmp_path_factory) -> Path:
    """Tiny images and their masks, in the test list's layout."""
    root = tmp_path_factory.mktemp("test_set")
    for name in ("JPEGImages", "masks"):
        (root / name).mkdir()
    Image.new("RGB", SIZE).save(root / "JPEGImages" / f"{IDS[0]}.jpg")
    write_mask(root / "masks" / f"{IDS[0]}.png", np.arange(20, dtype=np.uint8).reshape(SIZE[::-1]))
    for name in IDS[1:]:
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(
            (root / "JPEGImages" / f"{IDS[0]}.jpg").read_bytes()
        )
        (root / "masks" / f"{name}.png").write_bytes((root / "masks" / f"{IDS[0]}.png").read_bytes())
    (root / "test.txt").write_text("".join(f"{name}\n" for name in IDS))
    return root


@pytest.fixture
def images(test_set) -> dict[str, Path]:
    return {name: test_set / "JPEGImages" / f"{name}.jpg" for name in IDS}


def packed(path: Path, members: dict[str, bytes], *, twice: str = "", link: str = "") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in [*members, *([twice] if twice else [])]:
            member = tarfile.TarInfo(name)
            member.size = len(members[name])
            archive.addfile(member, io.BytesIO(members[name]))
        if link:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
    return path


@pytest.fixture(scope="module")
def members(test_set) -> dict[str, bytes]:
    mask = (test_set / "masks" / f"{IDS[0]}.png").read_bytes()
    return {f"{FOLDER}/{name}.png": mask for name in IDS}


def test_an_archive_is_whole_and_the_same_twice(test_set, images, tmp_path):
    for name in ("a.tar.gz", "b.tar.gz"):
        write_submission(test_set / "masks", images, tmp_path / name)
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        assert archive.getnames() == [
            f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png" for name in IDS
        ]
        content = archive.extractfile(archive.getmembers()[7]).read()
    assert content == (test_set / "masks" / f"{IDS[7]}.png").read_bytes()
    check_submission(tmp_path / "a.tar.gz", IDS, images.__getitem__)


def test_verbs(test_set, images, tmp_path, capsys):
    write_submission(test_set / "masks", images, tmp_path / "a.tar.gz")
    arguments = ["check-submission", str(tmp_path / "a.tar.gz"), "--list", str(test_set / "test.txt")]
    assert run_command(arguments) == 0
    assert "sizes not compared" in capsys.readouterr().out
    assert run_command([*arguments, "--images", str(test_set / "JPEGImages")]) == 0
    assert "a.tar.gz: complete\n" in capsys.readouterr().out
    assert run_command([*arguments[:1], str(test_set / "test.txt"), *arguments[2:]]) == 2
    assert "not a whole .tar.gz" in capsys.readouterr().err


def test_predict_packs_what_it_has_predicted(test_set, tmp_path, golden, capsys):
    """All masks are there but for one image, which the net still has to segment."""
    shutil.copytree(test_set / "JPEGImages", tmp_path / "images")
    arguments = [
        *("predict", "--config", "dsrg_vgg16_voc", "device=cpu", "model.width_divisor=16"),
        *("--weights", str(CAFFE_FILES / "stage1_init.caffemodel"), "--images", str(tmp_path / "images")),
        *("--out", str(tmp_path / "masks"), "inference.crf=false"),
    ]
    one = tmp_path / "one.txt"
    one.write_text(f"{IDS[3]}\n")
    submission = ["--submission", str(tmp_path / "s.tar.gz")]
    assert run_command([*arguments, "--list", str(one), *submission]) == 2
    assert (
        f"one.txt: 1 ids, the {len(IDS)} of VOC 2012's segmentation test list expected"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "masks").exists()
    assert run_command([*arguments, "--list", str(one)]) == 0
    for name in IDS:
        if not (tmp_path / "masks" / f"{name}.png").exists() and name != IDS[5]:
            shutil.copy(tmp_path / "masks" / f"{IDS[3]}.png", tmp_path / "masks" / f"{name}.png")
    assert run_command([*arguments, "--list", str(test_set / "test.txt"), *submission]) == 0
    check_submission(tmp_path / "s.tar.gz", IDS, lambda name: tmp_path / "images" / f"{name}.jpg")


def png(array: np.ndarray, palette: np.ndarray | None = None, mode: str = "P") -> bytes:
    image = Image.fromarray(array).convert("L")
    if mode == "P":
        image.putpalette((colour_palette() if palette is None else palette).tobytes())
    else:
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


FLAT = np.zeros(SIZE[::-1], np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(FLAT[:3]), "5x3 pixels, the image's 5x4 expected"),
        (png(FLAT, mode="L"), "mode L; expected a palette PNG of indices"),
        (png(FLAT, mode="RGB"), "mode RGB; expected a palette PNG"),
        (png(FLAT + 21), "class 21; expected 0 to 20"),
        (png(FLAT + 255), "class 255"),
        (png(FLAT, 255 - colour_palette()), "not the VOC palette"),
        (b"GIF89a", "no readable PNG"),
        (png(FLAT)[:-20], "no readable PNG"),
    ],
)
def test_masks_that_the_server_cannot_use(test_set, images, members, tmp_path, content, message):
    name = IDS[-1]
    archive = packed(tmp_path / "a.tar.gz", {**members, f"{FOLDER}/{name}.png": content})
    with pytest.raises(InputError, match=rf"a\.tar\.gz: .*{name}\.png'?: .*{message}"):
        check_submission(archive, IDS, images.__getitem__)
    masks = tmp_path / "masks"
    masks.mkdir()
    for other in IDS:
        (masks / f"{other}.png").symlink_to(test_set / "masks" / f"{other}.png")
    (masks / f"{name}.png").unlink()
    (masks / f"{name}.png").write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}\.png: .*{message}"):
        write_submission(masks, images, tmp_path / "b.tar.gz")
    assert not (tmp_path / "b.tar.gz").exists()


def test_archives_that_the_server_cannot_use(members, tmp_path):
    names = list(members)
    some = {name: members[name] for name in names[:-3]}
    for archive, message in (
        (packed(tmp_path / "1.tar.gz", some), f"3 of {len(IDS)} masks missing, .?{names[-3]}.? the first"),
        (
            packed(tmp_path / "2.tar.gz", {**members, "results/notes.txt": b""}),
            "notes.txt'?: expected nothing but",
        ),
        (packed(tmp_path / "3.tar.gz", {**members, f"/{names[0]}": b""}), "expected nothing but"),
        (packed(tmp_path / "4.tar.gz", members, twice=names[4]), "is in the archive twice"),
        (packed(tmp_path / "5.tar.gz", some, link=names[-1]), "expected nothing but files"),
        (
            packed(tmp_path / "6.tar.gz", {**some, names[-1]: bytes(10_000_001)}),
            "10000001 bytes, a mask expected",
        ),
    ):
        with pytest.raises(InputError, match=message):
            check_submission(archive, IDS)
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes((tmp_path / "1.tar.gz").read_bytes()[:100])
    damaged = tmp_path / "damaged.tar.gz"
    damaged.write_bytes(gzip.compress(b"no archive"))
    for archive in (cut, damaged, tmp_path / "nowhere.tar.gz"):
        with pytest.raises(InputError, match=r"not a whole \.tar\.gz"):
            check_submission(archive, IDS)


def test_lists_that_are_not_the_test_list(test_set, images, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("repro.report.submission.TEST_IMAGES", TEST_IMAGES)
        with pytest.raises(InputError, match="30 ids, the 1456"):
            check_submission(tmp_path / "a.tar.gz", IDS)
    with pytest.raises(InputError, match="'photo' is no id of VOC 2012"):
        check_submission(tmp_path / "a.tar.gz", [*IDS[:-1], "photo"])
    with pytest.raises(InputError, match=r"a name that ends in \.tar\.gz"):
        write_submission(test_set / "masks", images, tmp_path / "a.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=rf"{IDS[0]}\.png: no mask of test image"):
        write_submission(tmp_path / "empty", images, tmp_path / "a.tar.gz")
