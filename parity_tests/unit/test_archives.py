"""Archives that mean harm, and those that do not."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zipfile

import pytest

from repro.errors import InputError
from repro.fetch.archives import unpack

LIMITS = {"most_bytes": 100_000, "most_files": 20}


def tar(path, *members, mode="w", format=tarfile.PAX_FORMAT):
    """Members are (name, content) or TarInfo."""
    with tarfile.open(path, mode, format=format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return path


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zipped(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "tar.bz2", "zip"])
def test_wanted_members_are_unpacked(tmp_path, kind):
    members = [
        ("set/a.txt", b"a"),
        ("set/sub/b.txt", b"b" * 5000),
        ("other/c.txt", b"c"),
        ("./set/d.txt", b"d"),
    ]
    path = tmp_path / f"archive.{kind}"
    if kind == "zip":
        zipped(path, *members)
    else:
        tar(path, *members, mode=f"w:{kind[4:]}")
    assert unpack(path, tmp_path / "out", members=["set/*"], **LIMITS) == 3
    found = {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*.txt")}
    assert found == {"set/a.txt": b"a", "set/sub/b.txt": b"b" * 5000, "set/d.txt": b"d"}


def test_modes_and_owners_stay_in_the_archive(tmp_path):
    info = tarfile.TarInfo("a")
    info.mode, info.uid, info.size = 0o6777, 12345, 0
    unpack(tar(tmp_path / "a.tar", info), tmp_path / "out", **LIMITS)
    found = (tmp_path / "out" / "a").stat()
    assert found.st_uid == os.getuid()
    assert not stat.S_IMODE(found.st_mode) & 0o7111


HOSTILE_NAMES = [
    "../out.txt",
    "a/../../out.txt",
    "/else/out.txt",
    "a\\..\\out.txt",
    "C:/out.txt",
    "a/" * 40 + "b",
]


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_that_lead_out_are_refused(tmp_path, name, kind):
    path = tmp_path / f"a.{kind}"
    (tar if kind == "tar" else zipped)(path, (name, b"x"))
    with pytest.raises(InputError, match="leads out of the archive") as caught:
        unpack(path, tmp_path / "deep" / "out", **LIMITS)
    assert str(caught.value).startswith(f"{path}: ")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "member",
    [
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
        special("link", tarfile.LNKTYPE, "../../etc/passwd"),
        special("device", tarfile.CHRTYPE),
        special("disk", tarfile.BLKTYPE),
        special("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda member: f"{member.name}-{member.type}",
)
def test_links_devices_and_pipes_are_refused(tmp_path, member):
    with pytest.raises(InputError, match="is a link, device or pipe"):
        unpack(tar(tmp_path / "a.tar", ("a", b"x"), member), tmp_path / "out", **LIMITS)
    assert not os.path.lexists(tmp_path / "out" / member.name)


def test_links_in_a_zip_are_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match="is a link, device or pipe"):
        unpack(tmp_path / "a.zip", tmp_path / "out", **LIMITS)


def test_a_member_behind_a_link_finds_no_link(tmp_path):
    """The classic: a link to a folder outside, then a file through it."""
    members = (special("door", tarfile.SYMTYPE, str(tmp_path)), ("door/out.txt", b"x"))
    assert unpack(tar(tmp_path / "a.tar", *members), tmp_path / "out", members=["door/*"], **LIMITS) == 1
    assert not (tmp_path / "out.txt").exists()
    assert (tmp_path / "out" / "door" / "out.txt").read_bytes() == b"x"


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_bombs_are_refused(tmp_path, kind):
    path, member = tmp_path / f"a.{kind}", ("zeros", bytes(100_001))
    if kind == "zip":
        zipped(path, member)
    else:
        tar(path, member, mode=f"w:{kind[4:]}")
    with pytest.raises(InputError, match="unpacks to more than the 100000 bytes expected"):
        unpack(path, tmp_path / "out", **LIMITS)
    with pytest.raises(InputError, match="unpacks to more than"):  # what is not wanted has to be unpacked too
        unpack(path, tmp_path / "out", members=["other"], **LIMITS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_too_many_members_are_refused(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    (tar if kind == "tar" else zipped)(path, *((f"{i}", b"") for i in range(21)))
    with pytest.raises(InputError, match="holds more than the 20 members"):
        unpack(path, tmp_path / "out", **LIMITS)


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path):
    path = tar(tmp_path / "a.tar", ("x" * 3_000_000, b""), format=tarfile.GNU_FORMAT)
    with pytest.raises(InputError, match="a header of 3000001 bytes"):
        unpack(path, tmp_path / "out", **LIMITS)


def test_a_size_that_lies_is_noticed(tmp_path):
    path = tar(tmp_path / "a.tar", ("a", b"x" * 2000))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"a\.tar"):
        unpack(path, tmp_path / "out", **LIMITS)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged"),
        (b"not an archive" * 100, "damaged"),
        (gzip.compress(b"no tar" * 1000, mtime=0), "damaged"),
    ],
)
def test_what_is_no_archive_is_refused(tmp_path, content, reason):
    (tmp_path / "a.tgz").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        unpack(tmp_path / "a.tgz", tmp_path / "out", **LIMITS)


def test_damage_in_the_middle_is_refused(tmp_path):
    for path in (
        tar(tmp_path / "a.tgz", ("a", os.urandom(50_000)), mode="w:gz"),
        zipped(tmp_path / "a.zip", ("a", os.urandom(50_000))),
    ):
        content = bytearray(path.read_bytes())
        content[20_000:20_100] = bytes(100)
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged"):
            unpack(path, tmp_path / path.suffix, **LIMITS)


def test_one_name_twice_is_refused(tmp_path):
    with pytest.raises(InputError, match="comes twice"):
        unpack(tar(tmp_path / "a.tar", ("a", b"x"), ("a", b"y")), tmp_path / "out", **LIMITS)
    with pytest.raises(InputError, match="lies below a file"):
        unpack(tar(tmp_path / "b.tar", ("a", b"x"), ("a/b", b"y")), tmp_path / "out2", **LIMITS)


def test_nothing_wanted_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"holds no cls/\*\.mat"):
        unpack(tar(tmp_path / "a.tar", ("a", b"x")), tmp_path / "out", members=["cls/*.mat"], **LIMITS)
    with pytest.raises(InputError, match="no such archive"):
        unpack(tmp_path / "b.tar", tmp_path / "out", **LIMITS)
