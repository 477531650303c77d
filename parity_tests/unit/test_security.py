"""The threat list of docs/security.md: its tests exist, and what no single reader's test covers."""

from __future__ import annotations

import ast
import re

import pytest

from parity_tests.conftest import ROOT
from repro.cli import run_command

PACKAGES = ("repro", "weights_conversion")


def test_every_threat_names_a_test_that_exists():
    rows = [
        line
        for line in (ROOT / "docs/security.md").read_text(encoding="utf-8").splitlines()
        if line[:2] == "| "
    ]
    rows = [row for row in rows if not row.startswith("| threat |")]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        assert named, row
        for file, test in named:
            source = next((ROOT / "parity_tests").rglob(file)).read_text(encoding="utf-8")
            assert re.search(rf"^def {test}\(", source, re.MULTILINE), f"{file}::{test}"


def calls(tree: ast.AST):
    """Dotted name and keywords of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}, node


def executes(source: str) -> list[str]:
    """The calls of a module that would run or build what a file says."""
    found = []
    for name, words, node in calls(ast.parse(source)):
        last = name.rpartition(".")[2]
        dangerous = (
            name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen")
            or name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "marshal.loads")
            or (name == "torch.load" and words.get("weights_only") != "True")
            or words.get("allow_pickle") == "True"
            or words.get("shell") == "True"
            or (name.startswith("yaml.") and last in ("unsafe_load", "full_load", "load_all"))
            or (name == "yaml.load" and "_Yaml12Loader" not in ast.unparse(node))
            or last == "extractall"
        )
        found += [f"line {node.lineno}: {ast.unparse(node)}"] * dangerous
    return found


def test_nothing_foreign_is_executed():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            assert executes(path.read_text(encoding="utf-8")) == [], path


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "archive.extractall(folder)",
        "subprocess.run(command, shell=True)",
        "eval(text)",
    ],
)
def test_the_look_at_the_code_sees(line):
    assert executes(line)


def test_a_profile_runs_no_code(tmp_path, capsys):
    never = tmp_path / "never"
    path = tmp_path / "p.yaml"
    path.write_text(f"name: !!python/object/apply:os.system ['touch {never}']\n")
    assert run_command(["train", "--config", str(path)]) == 2
    assert "not YAML" in capsys.readouterr().err
    value = f"solver.base_lr=!!python/object/apply:os.system ['touch {never}']"
    assert run_command(["train", "--config", "mini", value]) == 2
    assert not never.exists()


def test_a_list_cannot_make_predict_write_elsewhere(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    for number, name in enumerate(("../a", "a/../../a")):
        listed = tmp_path / f"list{number}.txt"
        listed.write_text(f"{name}\n")
        arguments = [
            "--weights",
            "x.safetensors",
            "--images",
            f"{tmp_path}/photos",
            "--out",
            f"{tmp_path}/out",
        ]
        assert run_command(["predict", "--config", "mini", "--list", str(listed), *arguments]) == 2
        assert f"{listed}:1: {name!r}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
