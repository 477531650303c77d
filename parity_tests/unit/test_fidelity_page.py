"""docs/fidelity.md: every test and file that it names exists."""

from __future__ import annotations

import re

import pytest

from parity_tests.conftest import HERE, ROOT

PAGE = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
SOURCES = {path.name: path.read_text(encoding="utf-8") for path in HERE.rglob("test_*.py")}
NAMES = {
    name for source in SOURCES.values() for name in re.findall(r"^def (test_\w+)\(", source, re.MULTILINE)
}


def test_every_test_file_named_is_there():
    named = set(re.findall(r"test_\w+\.py", PAGE))
    assert len(named) > 15
    assert named <= SOURCES.keys()


@pytest.mark.parametrize(
    "reference", sorted(set(re.findall(r"\b(test_\w+)(\*?)(?!\w|\.py)", PAGE))), ids="".join
)
def test_every_test_named_is_there(reference):
    name, star = reference
    assert any(known.startswith(name) for known in NAMES) if star else name in NAMES
