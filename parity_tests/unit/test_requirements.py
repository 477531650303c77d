"""What `make setup` installs is pinned by hash, at the versions of constraints.txt."""

from __future__ import annotations

import re

import pytest

from parity_tests.conftest import ROOT

LISTS = sorted((ROOT / "requirements").glob("*.txt"))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def versions(text: str) -> dict[str, str]:
    return {
        canonical(name): version for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    }


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.name)
def test_every_package_has_its_version_and_hashes(path):
    text = path.read_text(encoding="utf-8")
    pinned = versions((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    for entry in re.split(r"\n(?=\S)", text.strip()):
        (name, version), *others = versions(entry).items()
        assert not others
        assert "sys_platform == 'win32'" in entry or pinned[name] == version, name
        assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", entry)) >= 1, name


def test_only_what_comes_with_torch_and_what_is_compiled_here_has_none():
    pinned = versions((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    hashed = {name for path in LISTS for name in versions(path.read_text(encoding="utf-8"))}
    assert pinned.keys() - hashed <= {"torch", "pydensecrf2"}
    assert {path.name for path in LISTS} == {"base.txt", "cpu.txt", "gpu.txt"}
