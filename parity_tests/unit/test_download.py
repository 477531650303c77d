"""Downloads from servers that break off, stall, lie and redirect."""

from __future__ import annotations

import hashlib
import io
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import requests

from parity_tests.server import serving
from repro.errors import InputError
from repro.fetch.download import Patience, download

CONTENT = np.random.default_rng(0).bytes(20_000)
HASTY = Patience(connect=2, read=1, attempts=3, first_wait=0.001, longest_wait=0.01, least_rate=1000)
# where no server stalls: a busy machine must not look like one
PATIENT = replace(HASTY, connect=20, read=20, least_rate=50)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server():
    with serving(CONTENT) as running:
        yield running


def checker(content: bytes = CONTENT):
    def check(path):
        if hashlib.sha256(path.read_bytes()).digest() != hashlib.sha256(content).digest():
            raise InputError("wrong sha256")

    return check


def get(target, *urls, size: int | None = len(CONTENT), check=None, hash_known=True, most=30_000) -> str:
    stalls = any(behaviour in url for url in urls for behaviour in ("stall", "trickle"))
    patience = HASTY if stalls else PATIENT
    return download(
        urls, target, size=size, most=most, check=check or checker(), hash_known=hash_known, patience=patience
    )


@pytest.mark.parametrize(
    ("behaviour", "known"),
    [
        *((behaviour, True) for behaviour in ("good", "no_ranges", "cut", "stall", "flaky", "redirect")),
        *((behaviour, False) for behaviour in ("good", "no_ranges", "flaky", "redirect")),
    ],
)
def test_a_file_comes_whole(server, tmp_path, behaviour, known):
    target = tmp_path / "data.bin"
    url = get(target, server.url(behaviour), size=len(CONTENT) if known else None, hash_known=known)
    assert target.read_bytes() == CONTENT
    assert url == server.url(behaviour)
    assert [path.name for path in tmp_path.iterdir()] == ["data.bin"]


def test_a_broken_transfer_goes_on_where_it_broke(server, tmp_path):
    get(tmp_path / "data.bin", server.url("cut"))
    assert server.ranges == [None, *(f"bytes={4000 * step}-" for step in range(1, 5))]


def test_a_later_call_goes_on_with_the_part(server, tmp_path):
    target = tmp_path / "data.bin"
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:15_000])
    get(target, server.url("good"))
    assert server.ranges == ["bytes=15000-"]


def test_without_a_hash_nothing_is_resumed(server, tmp_path):
    """Two halves might be of two files, and nothing would tell."""
    (tmp_path / "data.bin.part").write_bytes(b"x" * 15_000)
    get(tmp_path / "data.bin", server.url("good"), size=None, hash_known=False)
    assert server.ranges == [None]
    with pytest.raises(InputError, match="3 attempts without progress"):
        get(tmp_path / "more.bin", server.url("cut"), size=None, hash_known=False)
    assert server.ranges == [None] * 5


def test_a_whole_part_is_not_asked_for_again(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    get(tmp_path / "data.bin", server.url("good"))
    assert server.ranges == []
    (tmp_path / "more.bin.part").write_bytes(CONTENT)
    get(tmp_path / "more.bin", server.url("good"), size=None)
    assert server.ranges == ["bytes=20000-"]  # answered with 416


def test_a_wrong_part_is_thrown_away_and_all_fetched_anew(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(b"x" * 15_000)
    get(tmp_path / "data.bin", server.url("good"))
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert server.ranges == ["bytes=15000-", None]


def test_a_file_that_changes_on_the_server_is_not_mixed(server, tmp_path):
    get(
        tmp_path / "data.bin",
        server.url("changing"),
        size=None,
        hash_known=False,
        check=checker(CONTENT[::-1]),
    )
    assert server.ranges == [None, None]


def test_a_length_that_is_announced_too_long_costs_an_attempt(server, tmp_path):
    get(tmp_path / "data.bin", server.url("announces_more"), size=None)
    assert server.ranges == [
        None,
        "bytes=20000-",
    ]  # nothing is left there, says the server, and the hash is right


def test_mirrors_are_tried_in_order(server, tmp_path):
    urls = [server.url(behaviour) for behaviour in ("gone", "wrong", "cut_without_ranges", "good")]
    assert get(tmp_path / "data.bin", *urls) == urls[-1]
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("behaviour", "options", "reason"),
    [
        ("cut_without_ranges", {}, r"3 attempts without progress"),
        ("trickle", {}, r"stalls: \d+ bytes in \d+ s"),
        ("announces_more", {}, r"announces 21000 bytes; expected 20000"),
        ("announces_less", {}, r"announces 1000 bytes; expected 20000"),
        ("announces_less", {"size": None}, r"wrong sha256"),
        ("good", {"size": None, "most": 10_000}, r"announces 20000 bytes; expected at most 10000"),
        ("unending", {"size": None}, r"sends more than the 30000 bytes expected"),
        ("unending", {}, r"sends more than the 20000 bytes expected"),
        ("wrong", {}, r"wrong sha256"),
        ("gone", {}, r"HTTP 404"),
        ("page", {"size": None}, r"answers with a web page"),
        ("gzip", {"size": None}, r"sends it as gzip"),
        ("loop", {}, r"more than 5 redirects"),
        ("elsewhere", {}, r"neither http nor https"),
        ("other_range", {}, r"HTTP 206"),
    ],
)
def test_what_is_not_the_file_is_refused(server, tmp_path, behaviour, options, reason):
    with pytest.raises(InputError, match=reason) as caught:
        get(tmp_path / "data.bin", server.url(behaviour), **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("data.bin: could not be downloaded from 1 source(s): 127.0.0.1")
    assert not (tmp_path / "data.bin").exists()
    assert len(server.ranges) <= 6


def test_a_range_that_was_not_asked_for_is_refused(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:100])
    with pytest.raises(InputError, match=r"sends 'bytes 7-9/10', the bytes from 100 expected"):
        get(tmp_path / "data.bin", server.url("other_range"))


def test_no_server_at_all(tmp_path):
    with serving(CONTENT) as server:
        url = server.url("good")
    with pytest.raises(InputError, match=r"3 attempts without progress"):
        get(tmp_path / "data.bin", url)


def test_a_full_disk_is_known_before_anything_is_written(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10_000))
    with pytest.raises(InputError, match=r"0\.00 GB needed for data\.bin, 0\.00 GB free"):
        get(tmp_path / "data.bin", server.url("good"), size=None)
    assert list(tmp_path.iterdir()) == []


def test_https_may_not_lead_to_http_without_a_hash(tmp_path, monkeypatch):
    def redirect_to(place):
        first, last = requests.Response(), requests.Response()
        first.url, last.url = "https://example.org/a", place
        last.history, last.status_code = [first], 200
        body = io.BytesIO(CONTENT)
        last.raw = SimpleNamespace(read1=lambda size, **_: body.read(size), close=body.close)
        monkeypatch.setattr(requests.Session, "get", lambda *_, **__: last)

    redirect_to("http://example.org/b")
    with pytest.raises(InputError, match="redirects from https to http"):
        get(tmp_path / "a", "https://example.org/a", hash_known=False)
    assert not (tmp_path / "a").exists()
    redirect_to("http://example.org/b")
    get(tmp_path / "a", "https://example.org/a", hash_known=True)
    redirect_to("https://example.org/b")
    get(tmp_path / "b", "https://example.org/a", hash_known=False)
