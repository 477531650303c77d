"""README and what a newcomer meets: its numbers are those of the committed results, its links and commands exist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml

from parity_tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_numbers_are_those_of_the_published_results():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "readme_numbers", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_another_number_is_seen_and_written_over(tmp_path):
    for name in ("README.md", "tools/readme_numbers"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "results" / "published", tmp_path / "results" / "published")
    table = tmp_path / "results/published/mini/tables/table2.csv"
    header, first, *rest = table.read_text(encoding="utf-8").splitlines()
    cells = dict(zip(header.split(","), first.split(","), strict=True))
    changed = {**cells, "ours": "99.1234"}
    table.write_text("\n".join([header, ",".join(changed.values()), *rest]) + "\n", encoding="utf-8")
    command = [sys.executable, tmp_path / "tools" / "readme_numbers"]
    assert subprocess.run([*command, "--check"], capture_output=True, check=False).returncode == 1
    assert subprocess.run(command, check=False).returncode == 0
    assert "| **99.1** ± " in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert subprocess.run([*command, "--check"], check=False).returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, target


def test_the_first_screen_has_the_two_commands():
    first = README.splitlines()[:24]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for name in ("reproduce-mini", "test"):
        assert any(line.startswith(f"make {name} ") for line in first)
        assert name in targets
    assert len(README.splitlines()) <= 100


def test_the_citation_names_both_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    for paper in citation["references"]:
        assert paper["title"] in README
    assert [paper["year"] for paper in citation["references"]] == [2016, 2018]


def test_ci_runs_on_each_python_that_is_named():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["ci"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    low, high = (int(number) for number in re.findall(r"3\.(\d+)", project["requires-python"]))
    assert job["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(low, high)]
    assert any(step.get("run") == ".ci/run" for step in job["steps"])


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_images_copy_what_is_there(name):
    text = (ROOT / "docker" / f"{name}.Dockerfile").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for source in re.findall(r"^COPY (\S+)", text, flags=re.MULTILINE):
        assert (ROOT / source).exists(), source
    for names in re.findall(r"'\.\[(.*?)\]'", text):
        assert set(names.split(",")) <= extras.keys()
    assert "ENTRYPOINT" in text


WITHOUT = """
import sys
from repro.cli import run_command
for missing, arguments in {calls!r}:
    for name in missing:
        sys.modules[name] = None  # as if it were not installed
    print("status", run_command(arguments), file=sys.stderr)
    for name in missing:
        del sys.modules[name]
"""


def test_the_extra_export_alone_exports(tmp_path):
    from repro.models import build_model
    from weights_conversion import save_safetensors

    weights = tmp_path / "net.safetensors"
    net = build_model("vgg16_aspp", num_classes=7, width_divisor=64)
    save_safetensors(net, weights)
    export = ["export", "--config", "mini", "--weights", str(weights), "--out", "net.onnx", "device=cpu"]
    export += ["model.width_divisor=64"]
    image = ["--images", str(ROOT / "results/published/mini/images/000.jpg")]
    calls = [
        (["onnx"], export),
        (["onnxruntime"], [*export, *image]),
        (["onnxruntime", "matplotlib", "cv2"], export),
    ]
    code = WITHOUT.format(calls=calls)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    no_onnx, first, no_runtime, second, *rest = done.stderr.splitlines()
    assert "pip install onnx" in no_onnx
    assert "pip install onnxruntime" in no_runtime
    assert [first, second, rest[-1]] == ["status 2", "status 2", "status 0"], done.stderr
    assert (tmp_path / "net.onnx").stat().st_size > 1000
